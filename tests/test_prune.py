"""Pruning keeps the right number of the right tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrr.prune import kept_mask, kept_tokens


@given(
    st.sampled_from(["uniform", "random", "embedder", "none"]),
    st.floats(0.01, 1.0),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_kept_indices_ascend_are_unique_and_match_the_ratio(pruner, ratio, grid) -> None:
    importance = np.arange(grid[0] * grid[1], dtype=np.float32).reshape(grid)
    kept = kept_tokens(pruner, ratio, grid, importance=importance)
    n = grid[0] * grid[1]
    assert len(kept) == (n if pruner == "none" else max(1, round(ratio * n)))
    assert (np.diff(kept) > 0).all()
    assert kept_mask(kept, grid).sum() == len(kept)


def test_the_embedders_pruner_keeps_the_most_important() -> None:
    importance = np.array([[0.1, 0.9, 0.2], [0.8, 0.0, 0.7]], dtype=np.float32)
    kept = kept_tokens("embedder", 0.5, (2, 3), importance=importance)
    assert kept.tolist() == [1, 3, 5]


def test_equal_importance_keeps_the_earlier_token() -> None:
    kept = kept_tokens("embedder", 0.5, (1, 4), importance=np.ones((1, 4), np.float32))
    assert kept.tolist() == [0, 1]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_uniform_keep_covers_every_quarter_of_the_page_alike(ratio: float) -> None:
    mask = kept_mask(kept_tokens("uniform", ratio, (24, 32)), (24, 32))
    quarters = mask.reshape(2, 12, 2, 16).mean(axis=(1, 3))
    assert np.abs(quarters - ratio).max() < 0.03
    assert np.abs(mask.mean(axis=0) - ratio).max() < 0.15
    assert np.abs(mask.mean(axis=1) - ratio).max() < 0.15


def test_random_keep_depends_on_its_seed_only() -> None:
    one = kept_tokens("random", 0.5, (10, 10), seed=(1, 2))
    assert one.tolist() == kept_tokens("random", 0.5, (10, 10), seed=(1, 2)).tolist()
    assert one.tolist() != kept_tokens("random", 0.5, (10, 10), seed=(1, 3)).tolist()


def test_importance_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="importance"):
        kept_tokens("embedder", 0.5, (2, 2), importance=np.ones((3, 2), np.float32))
