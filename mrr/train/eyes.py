"""Where visual tokens come from: the labels, with a reader's errors, or the trained tower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mrr.train import tower
from mrr.train.match_data import MatchBatch, row_major
from mrr.train.matching import SimulatedReader

# Makes the visual tokens (B, cells, D) of a batch, and says which are kept (None: all).
Eyes = Callable[[MatchBatch], tuple[Tensor, Tensor | None]]


def simulated(table: Tensor, blank_id: int, reader: SimulatedReader) -> Eyes:
    """Visual tokens made from the labels and the frozen token table (V, D)."""

    def look(batch: MatchBatch) -> tuple[Tensor, None]:
        return reader(table, table[blank_id], batch), None

    return look


def real(visual: Any) -> Eyes:
    """Visual tokens of the trained tower, which is not trained further here.

    The last pages are remembered: they come several times in a row, with other queries.
    """
    last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def look(batch: MatchBatch) -> tuple[Tensor, None]:
        nonlocal last
        assert batch.windows is not None, "real eyes need drawn pages"
        if last is None or not torch.equal(last[0], batch.windows):
            last = batch.windows, see(visual, batch.windows, batch.grid)
        return last[1], None

    return look


def pruned(eyes: Eyes, keep: Callable[[Tensor, tuple[int, int]], Tensor]) -> Eyes:
    """The same visual tokens, with the cells that `keep` chooses marked as kept."""
    last: tuple[Tensor, Tensor] | None = None

    def look(batch: MatchBatch) -> tuple[Tensor, Tensor]:
        nonlocal last
        visual, _ = eyes(batch)
        if last is None or last[0] is not visual:  # the same pages, asked again
            last = visual, keep(visual, batch.grid)
        return last

    return look


def see(visual: Any, windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, n, 256, 256) windows to (B, cells, D) visual tokens in row-major order."""
    cells, _ = tower.encode(visual, windows.flatten(0, 1), tap=0)
    order = torch.from_numpy(row_major(grid[0] // tower.CELLS, grid[1] // tower.CELLS))
    flat = cells.view(len(windows), -1, cells.shape[-1])
    return torch.empty_like(flat).index_copy_(1, order.to(flat.device), flat)
