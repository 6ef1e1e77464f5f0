"""Endless labelled pages for training, drawn by worker processes. Same seed, same pages.

Drawing costs more than learning on a large device. So a page may be drawn once, larger than needed,
and cut several times at random places: the same words then fall on other cells and windows.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from mrr.train import labels, layout, render
from mrr.train.layout import Style
from mrr.train.text import Corpus, TextSampler
from mrr.train.tokens import WordPieces
from mrr.train.tower import CELLS, WINDOW_PX

ENDLESS = 1 << 60  # batches: more than any run takes


@dataclass(frozen=True, slots=True)
class PageSource:
    """How pages are made. styles: the curriculum, ((first batch, style), ...), ascending.

    size: (width, height) in pixels, whole windows.
    """

    corpus: Corpus
    tokenizer: PreTrainedTokenizerFast
    styles: tuple[tuple[int, Style], ...]
    size: tuple[int, int] = (768, 1024)
    rare_share: float = 0.35

    def style_at(self, index: int) -> Style:
        """The style that the curriculum has reached at batch `index`."""
        return [style for first, style in self.styles if first <= index][-1]

    def page(self, seed: str, index: int = ENDLESS, clean: bool = False) -> render.PrintedPage:
        """The page of a seed, in the style that the curriculum has reached at batch `index`.

        clean: never as a scan.
        """
        style = self.style_at(index)
        rng = random.Random(seed)
        sampler = TextSampler(self.corpus, rng, self.rare_share)
        scan_share = 0.0 if clean else style.scan_share
        return render.draw(layout.compose(*self.size, style, sampler), rng, scan_share)


@dataclass(slots=True)
class WindowBatch:
    """Labelled windows as tensors; shapes as in labels.PageLabels, with n windows in all."""

    windows: Tensor
    pieces: Tensor
    overlaps: Tensor
    characters: Tensor

    def to(self, device: torch.device) -> WindowBatch:
        """The same batch on a device."""
        moved = (getattr(self, name).to(device, non_blocking=True) for name in self.__slots__)
        return WindowBatch(*moved)

    def pin_memory(self) -> WindowBatch:
        """The same batch where a GPU can fetch it by itself; called by the loader."""
        return WindowBatch(*(getattr(self, name).pin_memory() for name in self.__slots__))


def collate(pages: list[labels.PageLabels]) -> WindowBatch:
    """Join pages; cell numbers are shifted to count through all windows."""
    shifts = np.cumsum([0] + [len(page.windows) * CELLS * CELLS for page in pages[:-1]])

    def joined(name: str) -> Tensor:
        parts = [
            getattr(p, name) + np.array([shift, 0]) for p, shift in zip(pages, shifts, strict=True)
        ]
        return torch.from_numpy(np.concatenate(parts))

    return WindowBatch(
        windows=torch.from_numpy(np.concatenate([page.windows for page in pages])),
        pieces=joined("pieces"),
        overlaps=joined("overlaps"),
        characters=torch.from_numpy(np.concatenate([page.characters for page in pages])),
    )


def cut_out(page: labels.MarkedPage, rng: random.Random, scan_share: float) -> labels.MarkedPage:
    """The page less one window's width and height, from a random place; some as light scans."""
    height, width = (side - WINDOW_PX for side in page.pixels.shape)
    cut = page.cut(rng.randint(0, WINDOW_PX), rng.randint(0, WINDOW_PX), width, height)
    return replace(cut, pixels=render.scanned(cut.pixels, rng, scan_share))


class WindowBatches(IterableDataset[WindowBatch]):
    """Batches `first`, `first + 1`, ... of a stream.

    reuse: batches that a page is in. With 1, pages are whole and batch i is the same whatever the
    workers; with more, pages are cut out of larger ones, mixed with those that a worker drew last.
    """

    def __init__(
        self,
        source: PageSource,
        n_pages: int,
        seed: str,
        first: int = 0,
        last: int = ENDLESS,
        reuse: int = 1,
    ):
        self.source, self.n_pages, self.seed, self.reuse = source, n_pages, seed, reuse
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[WindowBatch]:
        info = get_worker_info()
        offset, step = (info.id, info.num_workers) if info else (0, 1)
        pieces = WordPieces(self.source.tokenizer)
        pool: deque[labels.MarkedPage] = deque(maxlen=self.n_pages)
        cutting = self.reuse > 1
        n_drawn = 0
        for turn, index in enumerate(range(self.first + offset, self.last, step), start=1):
            n_due = -(-turn * self.n_pages // self.reuse)
            for i in range(n_due - n_drawn):
                drawn = self.source.page(f"{self.seed}/{index}/{i}", index, clean=cutting)
                pool.append(labels.mark(drawn, pieces))
            n_drawn = n_due
            pages = list(itertools.islice(itertools.cycle(pool), self.n_pages))
            if cutting:
                rng = random.Random(f"{self.seed}/{index}/cuts")
                scan_share = self.source.style_at(index).scan_share
                pages = [cut_out(page, rng, scan_share) for page in pages]
            yield collate([labels.label(page) for page in pages])
