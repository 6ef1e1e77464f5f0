"""The tower's confidence: what it is, and that the first band layer takes it off."""

from __future__ import annotations

import pytest
import torch

from mrr.model.lexical import SHARPNESS, confidence_axis, split_confidence
from mrr.train.confidence import UNIT, confidence, confidence_loss
from mrr.train.embedding import guide_loss
from mrr.train.interact import project
from mrr.train.match_data import MatchBatch
from mrr.train.matching import Matcher
from mrr.train.search import STRENGTH
from mrr.train.stages import Workshop
from mrr.train.tokens import spelling_embeddings


@pytest.fixture
def table(shop: Workshop) -> torch.Tensor:
    return spelling_embeddings(shop.tokenizer, 64)


def test_a_clear_cell_is_surer_than_a_blurred_one_and_the_loss_asks_for_just_that(
    table: torch.Tensor,
) -> None:
    cells = torch.stack([table[100], table[[100, 200, 150, 120]].sum(0)])
    clear, blurred = confidence(cells, table)
    assert clear > blurred + 0.1
    assert confidence_loss(cells, torch.stack([clear, blurred]), table) < 1e-10
    assert confidence_loss(cells, torch.stack([blurred, clear]), table) > 0.01


def test_a_fresh_matcher_takes_the_confidence_off_its_scores(
    shop: Workshop, matcher: Matcher
) -> None:
    """The score of a cell falls by what its level stands for, whatever the query's word."""
    layer = matcher.lm.layers[matcher.depths.match_layer]
    layer.self_attn.q_proj.weight.data.zero_()  # leaves what every word of a query has in common
    level = 0.2
    rest = matcher.table[matcher.prefix_ids[-1]]  # nothing like it, to see the confidence alone
    axis = confidence_axis(matcher.table)
    rest, _ = split_confidence(rest, axis)  # as the search does, and as the tower writes cells
    for piece in range(100, 700, 50):
        cell, _ = split_confidence(matcher.table[piece], axis)
        cell = cell - (cell @ rest) * rest / rest.norm() ** 2
        cell = cell / cell.norm()
        both = torch.stack([cell, cell + level * axis])
        hidden = torch.cat([both, matcher.table[200][None]])[None, None]
        positions = torch.zeros(3, 1, 3, dtype=torch.long)
        q, k, _ = project(layer, hidden, matcher.lm.rotary_emb(hidden[0], positions))
        scores = (q[0, 0, 0] @ k[0, 0, 0].T) * layer.self_attn.scaling
        fall = scores[2, 0] - scores[2, 1]
        wanted = STRENGTH / SHARPNESS * level / UNIT
        assert float(fall.detach()) == pytest.approx(wanted, rel=0.05)


def test_attention_on_printed_cells_is_what_the_guide_is_asked_for(batch: MatchBatch) -> None:
    n = batch.grid[0] * batch.grid[1]
    printed = torch.zeros(len(batch.present), n)
    printed[batch.pieces[:, 0], batch.pieces[:, 1]] = 1.0
    on_print = printed / printed.sum(1, keepdim=True)
    beside = (1 - printed) / (1 - printed).sum(1, keepdim=True)
    assert guide_loss(on_print, batch) < guide_loss(torch.full_like(printed, 1 / n), batch)
    assert guide_loss(torch.full_like(printed, 1 / n), batch) < guide_loss(beside, batch)
