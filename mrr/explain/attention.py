"""Where the query's attention goes, measured in a traced pass and reduced as it is seen.

The maps are exact: the probabilities of the very attention that ran, without eager attention and
without an n x n map of the page. What they mean is another matter: attention is not a cause, and
cells may take it whatever the query. Hence the neutral queries, the sinks, and occlusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from mrr.explain.maps import sink_cells
from mrr.explain.trace import trace
from mrr.model.kv import KVPage
from mrr.model.layers import causal_mask
from mrr.model.scorer import Scorer
from mrr.prune import kept_mask
from mrr.types import AttentionTrace

# Words that ask for nothing in particular: what they attend to is not about a query.
NEUTRAL_QUERIES = ("this", "the page", "a document", "something here", "what is shown")


class AttentionRecorder:
    """Reduces each layer's attention over one page to masses and maps, for B queries at once.

    n_instruction: tokens before the page's own. n_kept: visual tokens that the page kept; its
    <|vision_end|> follows them. spans: [start, end) of the user's words in each of the B queries.
    mass: one (B, heads, n, 3) a layer. maps: {band layer: (B, n, n_kept)} mean over heads.
    head_maps: {band layer: (B, heads, n_kept)} mean over the words.
    """

    def __init__(self, n_instruction: int, n_kept: int, spans: Sequence[tuple[int, int]]) -> None:
        self._n_instruction = n_instruction
        self._n_kept = n_kept
        self._spans = spans
        self.mass: list[np.ndarray] = []
        self.maps: dict[int, np.ndarray] = {}
        self.head_maps: dict[int, np.ndarray] = {}

    def record(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float
    ) -> None:
        """query (B, heads, n, D), key (B, H, S, D); S is n where the layer has no page."""
        weights = attention_weights(query, key, mask, scaling)
        n_prefix = key.shape[2] - query.shape[2]
        page = min(self._n_instruction, n_prefix)
        parts = (weights[..., :page], weights[..., page:n_prefix], weights[..., n_prefix:])
        self.mass.append(torch.stack([part.sum(-1) for part in parts], dim=-1).cpu().numpy())
        if n_prefix:
            cells = weights[..., page : page + self._n_kept]
            self.maps[layer] = cells.mean(dim=1).cpu().numpy()
            words = zip(cells, self._spans, strict=True)
            of_words = [own[:, first:last].mean(dim=1) for own, (first, last) in words]
            self.head_maps[layer] = torch.stack(of_words).cpu().numpy()


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """(B, heads, n, S) float32 probabilities; mask None is causal over the n tokens themselves."""
    b, heads, n, d = query.shape
    grouped = query.float().view(b, key.shape[1], -1, n, d)
    scores = torch.einsum("bhgnd,bhsd->bhgns", grouped, key.float()) * scaling
    if mask is None:
        mask = causal_mask(n, scores)
    return (scores + mask[:, :, None]).softmax(dim=-1).view(b, heads, n, -1)


def trace_attention(scorer: Scorer, text: str, page: KVPage) -> tuple[np.ndarray, AttentionTrace]:
    """Lens (E,) and attention of one query over one page, from one pass, with its control."""
    span = query_span(scorer, text)
    recorder = _recorder(scorer, page, [span])
    lens = trace(scorer, [text], [page], recorder)[0]
    ids = scorer.prompt(text, 1).suffix
    spans = [query_span(scorer, q) for q in NEUTRAL_QUERIES]
    neutral = _recorder(scorer, page, spans)
    trace(scorer, NEUTRAL_QUERIES, [page], neutral)
    lengths = [len(scorer.prompt(q, 1).suffix) for q in NEUTRAL_QUERIES]
    neutral_means = np.stack(
        [
            np.mean([rows[i, :n].mean(axis=0) for rows in neutral.maps.values()], axis=0)
            for i, n in enumerate(lengths)
        ]
    )
    kept = kept_mask(page.kept, page.grid)
    return lens, AttentionTrace(
        tokens=tuple(scorer.encoder.pieces(ids)),
        query_span=span,
        mass=np.stack([mass[0] for mass in recorder.mass]),
        page_maps={layer: scatter(rows[0], page) for layer, rows in recorder.maps.items()},
        head_maps={layer: scatter(rows[0], page) for layer, rows in recorder.head_maps.items()},
        neutral_head_maps={
            layer: scatter(rows.mean(axis=0), page) for layer, rows in neutral.head_maps.items()
        },
        neutral_maps={
            layer: scatter(_aligned(rows, lengths, spans, len(ids), span), page)
            for layer, rows in neutral.maps.items()
        },
        neutral_queries=NEUTRAL_QUERIES,
        sinks=sink_cells(scatter(neutral_means, page), kept),
    )


def query_span(scorer: Scorer, text: str) -> tuple[int, int]:
    """[start, end) of the user's words among the tokens after the page.

    Found by comparison with an empty query, since a word and the template before it may share a
    token; that token counts as the user's.
    """
    ids, empty = scorer.prompt(text, 1).suffix, scorer.prompt("", 1).suffix
    start = _common(ids, empty)
    tail = min(_common(ids[::-1], empty[::-1]), len(empty) - start)
    return start, max(start, len(ids) - tail)


def scatter(rows: np.ndarray, page: KVPage) -> np.ndarray:
    """(m, n_kept) values of the kept tokens to (m, R, C) maps of the true grid, else 0."""
    maps = np.zeros((len(rows), page.grid[0] * page.grid[1]), dtype=np.float32)
    maps[:, page.kept] = rows
    return maps.reshape(-1, *page.grid)


def _recorder(scorer: Scorer, page: KVPage, spans: Sequence[tuple[int, int]]) -> AttentionRecorder:
    return AttentionRecorder(scorer.instruction().n_tokens, len(page.kept), spans)


def _aligned(
    rows: np.ndarray,
    lengths: list[int],
    spans: list[tuple[int, int]],
    n: int,
    span: tuple[int, int],
) -> np.ndarray:
    """Mean over B queries' rows (B, *, n_kept), laid out as the n rows of another query.

    Template tokens keep their own rows, counted from either end; every word gets the mean word.
    A template token that only some queries have apart from a word counts as a word.
    """
    layouts = []
    for own, length, (first, last) in zip(rows, lengths, spans, strict=True):
        lead, tail = min(span[0], first), min(n - span[1], length - last)
        words = own[first:last].mean(axis=0, keepdims=True).repeat(n - lead - tail, axis=0)
        layouts.append(np.concatenate([own[:lead], words, own[length - tail : length]]))
    return np.mean(layouts, axis=0)


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
