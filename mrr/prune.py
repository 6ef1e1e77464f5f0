"""Which visual tokens a page keeps: by the embedder's attention, or by a control."""

from __future__ import annotations

import numpy as np

from mrr.config import Pruner

# Fractions of the plastic number: the cells r*a + c*b mod 1 fill a grid evenly at any ratio.
_PLASTIC = 1.324717957244746


def kept_tokens(
    pruner: Pruner,
    keep_ratio: float,
    grid: tuple[int, int],
    *,
    importance: np.ndarray | None = None,
    seed: tuple[int, ...] = (0,),
) -> np.ndarray:
    """Ascending row-major indices (n_kept,) of the visual tokens that survive; at least one.

    importance (R, C) is needed by the embedder's pruner; seed by the random one. Equal importance
    keeps the earlier token. Source: miniReranker 3.2.
    """
    n = grid[0] * grid[1]
    if pruner == "none":
        return np.arange(n)
    rank: np.ndarray
    if pruner == "random":
        rank = np.random.default_rng(seed).random(n)
    elif pruner == "uniform":
        rank = _even_order(grid)
    else:
        if importance is None or importance.shape != grid:
            shape = None if importance is None else importance.shape
            raise ValueError(f"The embedder's pruner needs importance of {grid}, not {shape}.")
        rank = -importance.reshape(-1)
    n_kept = max(1, round(keep_ratio * n))
    return np.sort(np.argsort(rank, kind="stable")[:n_kept])


def kept_mask(kept: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(R, C) bool, True where a token was kept."""
    mask = np.zeros(grid[0] * grid[1], dtype=bool)
    mask[kept] = True
    return mask.reshape(grid)


def _even_order(grid: tuple[int, int]) -> np.ndarray:
    """A low-discrepancy order of the cells, so that any leading share covers the page evenly."""
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    return ((rows / _PLASTIC + columns / _PLASTIC**2) % 1.0).reshape(-1)
