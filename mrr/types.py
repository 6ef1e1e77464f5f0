"""The data that crosses modules: frozen dataclasses over plain Python and numpy, no torch.

Shape letters, used everywhere: L layers, H key/value heads, T tokens, D head dimension,
N candidates, R x C the page's token grid (rows x columns, row-major).

What holds arrays is equal to itself only (eq=False): two arrays have no one truth value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from mrr.config import RerankConfig
from mrr.errors import InputRejected

System = Literal["mini", "dense-reuse", "original"]
SYSTEMS: tuple[System, ...] = ("mini", "dense-reuse", "original")
# As people read them, everywhere.
SYSTEM_NAMES = {"mini": "mini", "dense-reuse": "dense + reuse", "original": "original"}
AddOutcome = Literal["encoded", "hit"]


@dataclass(frozen=True, slots=True)
class PageImage:
    """One decoded page on its way into the store.

    image: canonical RGB, upright, alpha flattened over white.
    label: what a person calls it ("report.pdf p. 3"); never a path.
    source: name of the file it came from, without folders.
    page_num: 1-based; 1 for a plain image.
    file_digest: 32 hex digits of XXH3-128 over that file, which tell two of one name apart; empty
    where there was none.
    """

    image: Image.Image
    label: str
    source: str
    page_num: int
    file_digest: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One page known to the store.

    page_id: 64 hex digits of SHA-256 over the canonical pixels and the scope.
    width, height: pixels of the canonical page; the model sees it resized, and its (R, C) token
    grid divides the page evenly whatever the size.
    scope: who may see it: "public", or one session's secret.
    file_digest: of the file that it was first added from, as in PageImage; empty where there was
    none, or where it was added before digests were kept.
    """

    page_id: str
    label: str
    source: str
    page_num: int
    width: int
    height: int
    scope: str
    file_digest: str = ""


@dataclass(frozen=True, slots=True)
class AddedPage:
    """What `add` did for one page.

    grid: (R, C) visual tokens before pruning. nbytes: stored K/V. elapsed_ms: this call's work.
    note: a sentence where the store had no room for the K/V. added_as: the name it came under this
    time, where the store has its pixels under that of another file already.
    """

    page: Page
    outcome: AddOutcome
    grid: tuple[int, int]
    n_kept_tokens: int
    nbytes: int
    elapsed_ms: float
    note: str | None = None
    added_as: str | None = None


@dataclass(frozen=True, slots=True)
class FailedFile:
    """A file that was refused, and why, in a sentence for the user.

    error: the name of the error's class; mrr.errors says whether it is the file's fault.
    """

    file: str
    reason: str
    error: str = "InputRejected"


@dataclass(frozen=True, slots=True)
class AddReport:
    """The outcome of one `add` call: every page that is in, every file that is not."""

    pages: tuple[AddedPage, ...]
    failed: tuple[FailedFile, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[AddedPage]:
        return iter(self.pages)

    def __len__(self) -> int:
        return len(self.pages)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one query cost. cached_pages, missed_pages: of the pages that were ranked.

    ms: milliseconds per stage, in the order they ran. The stages are "retrieve", "query",
    "load", "band" and "head" where pages are cached, and "retrieve", "decode", "preprocess",
    "vision", "layers" and "head" where none is: for `original`, and with the query first. Besides
    them "embed", for pages whose embedding was missing, and "encode", for those whose K/V was.
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

    score: sigmoid(logit), in [0, 1]. logit: z_yes - z_no, float32, at the exit layer for `mini` and
    after the last layer for the two others.
    retrieval_score: similarity of the first stage, or None where there was no embedder.
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


class Candidate(NamedTuple):
    """What the first stage passes on. similarity: None where there is no embedder."""

    page: Page
    similarity: float | None


# Whatever names a page of the store: the last is its id.
PageLike = Page | Hit | AddedPage | Candidate | str


def page_id_of(page: PageLike) -> str:
    """The id of a page, however it is named. Raises InputRejected for what is none."""
    if isinstance(page, Hit | AddedPage | Candidate):
        page = page.page
    if isinstance(page, Page):
        return page.page_id
    if isinstance(page, str):
        return page
    raise InputRejected(
        "A page is named by its id, a hit, or what add() or retrieve() returned of it, not by "
        f"{type(page)}."
    )


def page_ids_of(pages: Iterable[PageLike] | PageLike) -> set[str]:
    """The ids of one page or of several."""
    if isinstance(pages, PageLike):
        return {page_id_of(pages)}
    return {page_id_of(page) for page in pages}


@dataclass(frozen=True, slots=True)
class RerankResult:
    """One result of `rerank`, in the field's convention: index is the input position."""

    index: int
    relevance_score: float
    logit: float
    document: object | None = None


@dataclass(frozen=True, eq=False, slots=True)
class KeepMap:
    """Which visual tokens the reranker saw, and the importance that decided it.

    kept: (R, C) bool. importance: (R, C) float32 share of the embedder's last token's attention,
    averaged over its layers and heads, or None where the pruner has none.
    """

    kept: np.ndarray
    importance: np.ndarray | None
    pruner: str
    keep_ratio: float


@dataclass(frozen=True, eq=False, slots=True)
class Lens:
    """Relevance read after every layer through the final norm and the yes/no rows.

    Index i is the output of layer i, counted from 0, float32 logits. Source: miniReranker 3.2.
    mini: (E,) the layers that the fast path runs, E the exit layer; before the band they have not
    seen the page, so there all pages have the same value. dense: (L,) a separate full pass over
    every token and layer in the same prompt order, never run by the fast path; None where it was
    not asked for. band: layers [start, end), the end excluded as everywhere in the Python API;
    for people, `mrr.config.layer_range` writes both ends included.
    """

    mini: np.ndarray
    dense: np.ndarray | None
    exit_layer: int
    band: tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class AttentionTrace:
    """Where the query's attention went, per layer, in a traced pass of the mini system.

    tokens: the n tokens after the page, as text; query_span: [start, end) of the user's words.
    mass: (E, heads, n, 3) share of each row's 1.0 on instruction (all before the first visual
    token), page (kept visual tokens and the <|vision_end|> after them) and query (all tokens
    after the page). Outside the band it is 0 on instruction and page by construction.
    page_maps: {band layer: (n, R, C)} mean over heads, 0 at pruned tokens. A map sums to the page
    mass less what <|vision_end|> took, which has no place on the grid.
    head_maps: {band layer: (heads, R, C)} each head by itself, mean over the user's words.
    neutral_maps: page_maps for content-free queries on the same page, row for row: a template
    token's own row, and for every word the mean row of the neutral words. neutral_head_maps: the
    same for head_maps. neutral_queries: those.
    sinks: (R, C) bool, cells that take outlying attention whatever the query (see `sink_cells`).
    """

    tokens: tuple[str, ...]
    query_span: tuple[int, int]
    mass: np.ndarray
    page_maps: Mapping[int, np.ndarray]
    head_maps: Mapping[int, np.ndarray]
    neutral_maps: Mapping[int, np.ndarray]
    neutral_head_maps: Mapping[int, np.ndarray]
    neutral_queries: tuple[str, ...]
    sinks: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class Occlusion:
    """Measured change of the logit, logit(hidden) - base_logit, when cells are hidden.

    delta: (R, C) float32, one value for every cell of a block of block x block cells, hidden
    together; 0 where pruning had left nothing to hide. measured: (R, C) bool, False at the blocks
    that were not reached because the work was stopped; their delta is 0 and means nothing.
    top_deltas: {ranking: change} when the n_top kept cells that a map ranks first, taken block by
    block, are hidden together. The rankings are "contrast" and "attention" (the query's words,
    with and without the neutral queries taken off), "occlusion" (the blocks that lowered the
    logit most, so chosen on the measure itself) and "importance" (what the pruner went by, the
    same for every query; absent for the control pruners). A stopped measurement lacks "occlusion",
    and may lack more.
    random_deltas: (n_random,) the control, as many kept cells of as many random blocks, set by set
    like the top set of one map after the other; fewer, or none, where the work was stopped first,
    and none where there are too few blocks for another set than the top ones.
    """

    delta: np.ndarray
    measured: np.ndarray
    block: int
    base_logit: float
    n_top: int
    top_deltas: Mapping[str, float]
    random_deltas: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class Explanation:
    """Everything a front end needs to show why the mini system scored a page as it did.

    logit: by the untraced path, as `rank` gives it. keep: the mask of that very forward pass.
    model, embedder: the checkpoints as they were named, so perhaps paths; the second is empty
    where there was none. config: in full, as it was in force. `mrr.explain.saving.save` writes all
    of it to a file.
    """

    query: str
    page: Page
    logit: float
    keep: KeepMap
    lens: Lens
    attention: AttentionTrace
    model: str
    embedder: str
    config: RerankConfig
    occlusion: Occlusion | None = None
    notes: tuple[str, ...] = ()
