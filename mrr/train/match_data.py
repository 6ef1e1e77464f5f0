"""Batches for matching: pages, queries that meet all of them, and which words are where."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from mrr.train import labels, layout, render
from mrr.train.data import ENDLESS, PageSource
from mrr.train.queries import (
    COMMON,
    PageText,
    QueryMaker,
    bare,
    is_function_word,
    page_text,
)
from mrr.train.text import TextSampler
from mrr.train.tokens import WordPieces
from mrr.train.tower import CELLS, WINDOW_PX

_SUFFIX_HEAD = "\n<Query>:"
_IN_A_ROW = 0.1  # what running words add to the share of a query that a page covers


@dataclass(frozen=True, slots=True)
class MatchPage:
    """One page. grid: (R, C) cells. pieces, overlaps: (k, 2) rows (row-major cell, piece id).

    word_cells: cells of each word's pieces. windows: (n, 256, 256) uint8, or None where visual
    tokens are simulated. changed: of a near-duplicate, the words that are not as on the page that
    it is like.
    """

    grid: tuple[int, int]
    pieces: np.ndarray
    overlaps: np.ndarray
    word_cells: dict[str, list[int]]
    text: PageText
    windows: np.ndarray | None
    changed: tuple[int, ...] = ()


@dataclass(slots=True)
class MatchBatch:
    """B pages of one grid and Q queries.

    ids: (Q, S) suffix tokens, padded right; length: (Q,). word_of: (Q, S) index of the query word
    that a token belongs to, -1 for the template. word_end: (Q, S) bool, last token of a word.
    present: (B, Q, W) float, is word w of query q on page b. so_far: (B, Q, W) float, are all up to
    it that count. answer: (B, Q) float, are all. cover: (B, Q) float, the share that is, by rarity,
    and a little more for running words. gold: (k, 4) rows (page, query, token, cell) where a
    token's word is printed. in_a_row: those of them one or two cells left of which the
    token before it is printed. apart: (B, Q, S) bool, the page shows a token and the one before it,
    but nowhere so; where both are in one cell, as all pieces of one word count to be, neither says
    anything.
    pieces, overlaps: (k, 3) rows (page, cell, piece id). windows: (B, n, 256, 256) or None.
    """

    grid: tuple[int, int]
    ids: Tensor
    length: Tensor
    word_of: Tensor
    word_end: Tensor
    present: Tensor
    so_far: Tensor
    answer: Tensor
    cover: Tensor
    gold: Tensor
    in_a_row: Tensor
    apart: Tensor
    pieces: Tensor
    overlaps: Tensor
    windows: Tensor | None
    queries: tuple[tuple[str, ...], ...]

    def to(self, device: torch.device) -> MatchBatch:
        """The same batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> MatchBatch:
        """The same batch where a GPU can fetch it by itself; called by the loader."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> MatchBatch:
        tensors: dict[str, Any] = {
            name: change(value)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), Tensor)
        }
        return replace(self, **tensors)


def row_major(rows: int, cols: int) -> np.ndarray:
    """Row-major cell of every cell counted window by window; rows, cols are windows."""
    index = np.arange(rows * CELLS * cols * CELLS).reshape(rows, CELLS, cols, CELLS)
    return index.swapaxes(1, 2).reshape(-1)


def make_page(
    source: PageSource,
    word_pieces: WordPieces,
    seed: str,
    index: int,
    pixels: bool,
    twin: bool = False,
) -> MatchPage:
    """The page of a seed, or its twin, a near-duplicate; without pixels it is not drawn."""
    rng = random.Random(seed)
    style = source.style_at(index)
    sampler = TextSampler(source.corpus, rng, source.rare_share)
    sheet = layout.compose(*source.size, style, sampler)
    changed: tuple[int, ...] = ()
    if twin:
        sheet, changed = layout.disturbed(sheet, sampler)
    printed = render.draw(sheet, rng, style.scan_share) if pixels else render.blank(sheet)
    rows, cols = source.size[1] // WINDOW_PX, source.size[0] // WINDOW_PX
    order = row_major(rows, cols)
    marked = labels.mark(printed, word_pieces)
    cut = labels.label(marked)

    def ordered(pairs: np.ndarray) -> np.ndarray:
        return np.stack([order[pairs[:, 0]], pairs[:, 1]], 1)

    return MatchPage(
        grid=(rows * CELLS, cols * CELLS),
        pieces=ordered(cut.pieces),
        overlaps=ordered(cut.overlaps),
        word_cells=_word_cells(printed.words, marked, order),
        text=page_text(printed.words, printed.title),
        windows=cut.windows if pixels else None,
        changed=changed,
    )


def _word_cells(
    words: tuple[str, ...], page: labels.MarkedPage, order: np.ndarray
) -> dict[str, list[int]]:
    cells: dict[str, list[int]] = defaultdict(list)
    for owner, where in zip(page.owner, labels.piece_cells(page), strict=True):
        if where >= 0:
            cells[bare(words[owner])].append(int(order[where]))
    return dict(cells)


class SuffixEncoder:
    """Query words to the suffix's token ids, with the word that each token belongs to."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._fast = tokenizer.backend_tokenizer
        control = tokenizer.get_vocab()
        self._tail: list[int] = [
            control["<|im_end|>"],
            *self._plain("\n"),
            control["<|im_start|>"],
            *self._plain("assistant\n"),
        ]

    def _plain(self, text: str) -> list[int]:
        return list(self._fast.encode(text).ids)

    def __call__(self, words: tuple[str, ...]) -> tuple[list[int], list[int]]:
        """(ids, word index of each id or -1)."""
        coded = self._fast.encode(_SUFFIX_HEAD + " ".join(words))
        # A space belongs to the word that it begins.
        ends = np.cumsum([len(word) + 1 for word in words]) + len(_SUFFIX_HEAD) - 1
        owner = [
            int(np.searchsorted(ends, stop, side="left")) if stop > len(_SUFFIX_HEAD) else -1
            for _, stop in coded.offsets
        ]
        return list(coded.ids) + self._tail, owner + [-1] * len(self._tail)


def assemble(
    pages: list[MatchPage],
    queries: list[tuple[str, ...]],
    encoder: SuffixEncoder,
    rarity: Callable[[str], float],
) -> MatchBatch:
    """Tensors for pages of one grid and the queries asked of all of them; rarity: of a word."""
    coded = [encoder(query) for query in queries]
    s, w = max(len(ids) for ids, _ in coded), max(map(len, queries))
    ids = torch.zeros(len(queries), s, dtype=torch.long)
    word_of = torch.full((len(queries), s), -1)
    for q, (row, owner) in enumerate(coded):
        ids[q, : len(row)], word_of[q, : len(row)] = torch.tensor(row), torch.tensor(owner)
    following = torch.cat([word_of[:, 1:], torch.full((len(queries), 1), -1)], 1)
    present = torch.zeros(len(pages), len(queries), w)
    running = torch.zeros(len(pages), len(queries))
    weight = torch.zeros(len(queries), w)
    for q, query in enumerate(queries):
        weight[q, : len(query)] = torch.tensor([rarity(word) for word in query])
    gold, in_a_row = [], []
    apart = torch.zeros(len(pages), len(queries), s, dtype=torch.bool)
    for b, page in enumerate(pages):
        for q, query in enumerate(queries):
            where: dict[int, set[int]] = {}
            for j, word in enumerate(query):
                if word not in page.text.present:
                    continue
                present[b, q, j] = 1.0
                if is_function_word(word):
                    continue  # it need not be looked for
                cells = set(page.word_cells.get(word, ()))
                where |= {t: cells for t, owner in enumerate(coded[q][1]) if owner == j}
            gold += [(b, q, t, cell) for t, cells in where.items() for cell in cells]
            for t in where.keys() & {t + 1 for t in where}:
                follows = [_gap(where[t - 1], cell, page.grid[1]) for cell in where[t]]
                in_a_row += [
                    (b, q, t, cell) for cell, gap in zip(where[t], follows, strict=True) if gap
                ]
                apart[b, q, t] = bool(where[t - 1] and where[t]) and follows == [None] * len(
                    follows
                )
            running[b, q] = page.text.holds_in_a_row(query)
    # Function words count only where nothing else was asked.
    telling = weight > COMMON
    counted = torch.where(telling.any(1, keepdim=True), telling, weight > 0)
    so_far = torch.maximum(present, (~counted).float()).cummin(-1).values

    def rows(name: str) -> Tensor:
        parts = [np.insert(getattr(page, name), 0, b, axis=1) for b, page in enumerate(pages)]
        return torch.from_numpy(np.concatenate(parts))

    drawn = [page.windows for page in pages if page.windows is not None]
    return MatchBatch(
        grid=pages[0].grid,
        ids=ids,
        length=torch.tensor([len(row) for row, _ in coded]),
        word_of=word_of,
        word_end=(word_of >= 0) & (word_of != following),
        present=present,
        so_far=so_far,
        answer=so_far[..., -1],
        cover=(present * weight).sum(-1) / weight.sum(-1) + _IN_A_ROW * running,
        gold=torch.tensor(gold, dtype=torch.long).view(-1, 4),
        in_a_row=torch.tensor(in_a_row, dtype=torch.long).view(-1, 4),
        apart=apart,
        pieces=rows("pieces"),
        overlaps=rows("overlaps"),
        windows=torch.from_numpy(np.stack(drawn)) if drawn else None,
        queries=tuple(queries),
    )


def _gap(before: set[int], cell: int, n_columns: int) -> int | None:
    """How many cells to the left the nearest of `before` is, 0 to 2; None where there is none."""
    reach = min(2, cell % n_columns)
    return next((gap for gap in range(reach + 1) if cell - gap in before), None)


class MatchBatches(IterableDataset[MatchBatch]):
    """Batches first, first + 1, ...: pages, and for each page positives and near misses.

    reuse: batches that a worker makes in a row of the same pages, with other queries. Drawing
    pages, and with one worker looking at them, costs more than asking. twins: share of draws in
    which one page is a near-duplicate of another, and both are asked for what differs.
    """

    def __init__(
        self,
        sources: tuple[tuple[int, PageSource], ...],
        n_pages: int,
        n_positive: int,
        n_near: int,
        seed: str,
        pixels: bool,
        first: int = 0,
        last: int = ENDLESS,
        reuse: int = 1,
        twins: float = 0.0,
    ):
        self.twins = twins
        self.sources, self.n_pages, self.reuse = sources, n_pages, reuse
        self.n_positive, self.n_near = n_positive, n_near
        self.seed, self.pixels, self.first, self.last = seed, pixels, first, last

    def __iter__(self) -> Iterator[MatchBatch]:
        info = get_worker_info()
        offset, step = (info.id, info.num_workers) if info else (0, 1)
        tokenizer = self.sources[0][1].tokenizer
        pieces, encoder = WordPieces(tokenizer), SuffixEncoder(tokenizer)
        for group in itertools.count(self.first // self.reuse + offset, step):
            begin = group * self.reuse
            if begin >= self.last:
                return
            source, pages = self._draw(begin, pieces)
            for index in range(max(begin, self.first), min(begin + self.reuse, self.last)):
                yield self._ask(index, source, pages, encoder)

    def _draw(self, index: int, pieces: WordPieces) -> tuple[PageSource, list[MatchPage]]:
        """The pages of the group of batches that begins with batch `index`."""
        # A growing page: the source that the curriculum has reached.
        reached = [source for first, source in self.sources if first <= index]
        # Sizes already learned are kept in, so that they are not unlearned.
        rng = random.Random(f"{self.seed}/{index}")
        source = reached[-1] if rng.random() < 0.7 else rng.choice(reached)
        seeds = [f"{self.seed}/{index}/{i}" for i in range(self.n_pages)]
        twin = self.n_pages > 1 and rng.random() < self.twins
        if twin:
            seeds[-1] = seeds[0]
        pages = (
            make_page(source, pieces, seed, index, self.pixels, twin and i == self.n_pages - 1)
            for i, seed in enumerate(seeds)
        )
        return source, [page for page in pages if len(page.text.present) > 3]

    def _ask(
        self, index: int, source: PageSource, pages: list[MatchPage], encoder: SuffixEncoder
    ) -> MatchBatch:
        """Batch `index`: its pages with queries of its own."""
        maker = QueryMaker(source.corpus, random.Random(f"{self.seed}/{index}/queries"))
        queries: list[tuple[str, ...]] = []
        for page in pages:
            asked = [maker.positive(page.text) for _ in range(self.n_positive)]
            if page is pages[0] and pages[-1].changed:
                told_apart = [maker.around(page.text, i) for i in pages[-1].changed]
                asked = [*filter(None, told_apart), *asked][: self.n_positive]
            missed = [maker.near_miss(query, page.text) for query in asked]
            queries += asked + missed[: self.n_near]
        return assemble(pages, queries, encoder, maker.rarity)
