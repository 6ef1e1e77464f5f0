"""The data that crosses modules: frozen dataclasses over plain Python and numpy, no torch.

Shape letters, used everywhere: L layers, H key/value heads, T tokens, D head dimension,
N candidates, R x C the page's token grid (rows x columns, row-major).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

System = Literal["mini", "dense-reuse", "original"]
SYSTEMS: tuple[System, ...] = ("mini", "dense-reuse", "original")
AddOutcome = Literal["encoded", "hit"]


@dataclass(frozen=True, slots=True)
class PageImage:
    """One decoded page on its way into the store.

    image: canonical RGB, upright, alpha flattened over white.
    label: what a person calls it ("report.pdf p. 3"); never a path.
    source: name of the file it came from, without folders.
    page_num: 1-based; 1 for a plain image.
    """

    image: Image.Image
    label: str
    source: str
    page_num: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page known to the store.

    page_id: 64 hex digits of SHA-256 over the canonical pixels and the scope.
    width, height: pixels of the canonical page; the model sees it resized, and its (R, C) token
    grid divides the page evenly whatever the size.
    scope: who may see it: "public", or one session's secret.
    """

    page_id: str
    label: str
    source: str
    page_num: int
    width: int
    height: int
    scope: str


@dataclass(frozen=True, slots=True)
class AddedPage:
    """What `add` did for one page.

    grid: (R, C) visual tokens before pruning. nbytes: stored K/V. elapsed_ms: this call's work.
    """

    page: Page
    outcome: AddOutcome
    grid: tuple[int, int]
    n_kept_tokens: int
    nbytes: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class FailedFile:
    """A file that was refused, and why, in a sentence for the user."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class AddReport:
    """The outcome of one `add` call: every page that is in, every file that is not."""

    pages: tuple[AddedPage, ...]
    failed: tuple[FailedFile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one query cost.

    ms: milliseconds per stage, in the order they ran. The stages are "retrieve", "load",
    "query", "band" and "head" for the cached systems, "decode", "preprocess", "vision",
    "layers" and "head" for `original`, and "encode" for pages that had to be cached first.
    """

    cached_pages: int
    missed_pages: int
    bytes_read: int
    ms: Mapping[str, float]

    @property
    def total_ms(self) -> float:
        """Sum over the stages."""
        return sum(self.ms.values())


@dataclass(frozen=True, slots=True)
class Hit:
    """One ranked page.

    score: sigmoid(logit), in [0, 1]. logit: z_yes - z_no at the exit layer, float32.
    retrieval_score: cosine of the first stage, or None where there was no embedder.
    n_kept_tokens of n_visual_tokens: what the reranker read of the page.
    """

    rank: int
    page: Page
    score: float
    logit: float
    retrieval_score: float | None
    n_visual_tokens: int
    n_kept_tokens: int


@dataclass(frozen=True, slots=True)
class RankedList:
    """Pages in descending order of logit; ties keep the order of the candidates."""

    query: str
    system: System
    hits: tuple[Hit, ...]
    usage: Usage
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: int) -> Hit:
        return self.hits[index]


@dataclass(frozen=True, slots=True)
class RerankResult:
    """One result of `rerank`, in the field's convention: index is the input position."""

    index: int
    relevance_score: float
    logit: float
    document: object | None = None


@dataclass(frozen=True, slots=True)
class KeepMap:
    """Which visual tokens the reranker saw, and the importance that decided it.

    kept: (R, C) bool. importance: (R, C) float32, or None where the pruner has none.
    """

    kept: np.ndarray
    importance: np.ndarray | None
    pruner: str
    keep_ratio: float


@dataclass(frozen=True, slots=True)
class Lens:
    """Relevance read after every layer through the final norm and the yes/no rows.

    mini: (E,) logits of the layers that the fast path runs, E the exit layer.
    dense: (L,) logits of a separate full pass over every token and layer, same prompt order.
    Index i is the output of layer i (0-based). Source: miniReranker section 3.2.
    """

    mini: np.ndarray
    dense: np.ndarray
    exit_layer: int
    band: tuple[int, int]


@dataclass(frozen=True, slots=True)
class AttentionTrace:
    """Where the query's attention went, per layer, from a traced pass of the mini system.

    tokens: the suffix tokens, as text; query_span: [start, end) of the user's words in them.
    mass: (E, heads, n_suffix, 3) share of each row's 1.0 on instruction, page, query; layers
    outside the band are 0 on instruction and page by construction.
    page_maps: {layer: (n_suffix, R, C)} mean over heads, float32, 0 at pruned tokens; band
    layers only. neutral_maps: {layer: (R, C)} mean over neutral queries on the same page.
    """

    tokens: tuple[str, ...]
    query_span: tuple[int, int]
    mass: np.ndarray
    page_maps: Mapping[int, np.ndarray]
    neutral_maps: Mapping[int, np.ndarray]


@dataclass(frozen=True, slots=True)
class Occlusion:
    """Measured change of the logit when blocks of the page are hidden from the query.

    delta: (R, C) float32, logit(hidden) - logit(full), one value for every cell of a block.
    block: cells along a side. top_delta: change when the n_top most important cells are hidden
    together; random_deltas: (repeats,) the same number of random kept cells, the control.
    """

    delta: np.ndarray
    block: int
    base_logit: float
    n_top: int
    top_delta: float
    random_deltas: np.ndarray


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything a front end needs to show why a page scored as it did."""

    query: str
    page: Page
    logit: float
    keep: KeepMap
    lens: Lens
    attention: AttentionTrace
    occlusion: Occlusion | None = None
    notes: tuple[str, ...] = field(default=())
