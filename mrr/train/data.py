"""Endless labelled pages for training, drawn by worker processes. Same seed, same pages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from mrr.train import labels, layout, render
from mrr.train.layout import Style
from mrr.train.text import Corpus, TextSampler
from mrr.train.tokens import WordPieces
from mrr.train.tower import CELLS


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

    def page(self, seed: str, index: int = 1 << 60) -> render.PrintedPage:
        """The page of a seed, in the style that the curriculum has reached at batch `index`."""
        style = self.style_at(index)
        rng = random.Random(seed)
        sampler = TextSampler(self.corpus, rng, self.rare_share)
        return render.draw(layout.compose(*self.size, style, sampler), rng, style.scan_share)


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


class WindowBatches(IterableDataset[WindowBatch]):
    """Batches `first`, `first + 1`, ... of a stream; batch i is the same whatever the workers."""

    def __init__(
        self, source: PageSource, n_pages: int, seed: str, first: int = 0, last: int = 1 << 60
    ):
        self.source, self.n_pages, self.seed, self.first, self.last = (
            source,
            n_pages,
            seed,
            first,
            last,
        )

    def __iter__(self) -> Iterator[WindowBatch]:
        info = get_worker_info()
        offset, step = (info.id, info.num_workers) if info else (0, 1)
        pieces = WordPieces(self.source.tokenizer)
        for index in range(self.first + offset, self.last, step):
            pages = (
                self.source.page(f"{self.seed}/{index}/{i}", index) for i in range(self.n_pages)
            )
            yield collate([labels.label(page, pieces) for page in pages])
