"""Lexical vectors: what a page shows, and how much of a query that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mrr.model.embedder import Embedder
from mrr.model.lexical import confidence_axis, page_vector, similarity
from mrr.model.load import LoadedModel
from tests.model.helpers import embed
from tests.tiny import picture


@pytest.fixture
def table() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(300, 64, generator=generator), dim=-1)


def test_pieces_that_are_shown_are_on_the_page_and_control_tokens_never(
    table: torch.Tensor,
) -> None:
    vector = page_vector(table[[7, 8, 99]], table, control=[99])
    assert vector[[7, 8]].min() > 0.99 and vector[99] == 0
    assert np.delete(vector, [7, 8, 99]).max() < 0.5
    assert vector.dtype == np.float32 and vector.shape == (300,)


def test_a_blurred_token_counts_less_than_a_clear_one(table: torch.Tensor) -> None:
    blurred = table[[7, 20, 21, 22]].sum(0, keepdim=True)
    assert page_vector(blurred, table, [])[7] < page_vector(table[[7]], table, [])[7] - 0.1


def test_what_the_tower_says_of_its_confidence_is_not_read_as_words(table: torch.Tensor) -> None:
    bare = page_vector(table[[7, 8]], table, [])
    sure = table[[7, 8]] + 0.9 * confidence_axis(table)
    assert page_vector(sure, table, []) == pytest.approx(bare, abs=1e-4)


def test_rare_pieces_count_more_and_the_whole_query_is_one() -> None:
    pages = np.zeros((4, 10), np.float32)
    pages[:, 1] = 1.0  # on every page
    pages[2, 5] = 1.0  # on one
    scores = similarity([1, 5], pages)
    assert scores.argmax() == 2 and scores[2] == pytest.approx(1.0)
    assert scores[0] < 0.3
    assert similarity([1, 5, 5], pages) == pytest.approx(scores)


def test_a_checkpoint_that_says_so_is_searched_lexically(qwen3: LoadedModel) -> None:
    embedder = Embedder(replace(qwen3, trained={"pooling": "lexical"}))
    image = picture(1, (128, 128))
    vector, importance = embed(embedder, image)
    assert vector.shape == (len(qwen3.lm.embed_tokens.weight),)
    plain = embed(Embedder(qwen3), image)[1]
    assert np.array_equal(importance, plain)  # the guide of pruning is the same
    scores = embedder.similarity("red page", np.stack([vector, np.zeros_like(vector)]))
    assert scores.shape == (2,) and 0 <= scores[1] <= scores[0] <= 1
