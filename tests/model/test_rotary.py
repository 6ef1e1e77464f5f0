"""Turns by table are those that the model computes."""

from __future__ import annotations

import pytest
import torch

from mrr.model.load import LoadedModel
from mrr.model.rotary import text_tables, text_turns


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("starts", [None, [0, 7, 40], [3, 2000]])
def test_a_row_is_what_the_model_computes_for_its_position(
    loaded: LoadedModel, starts: list[int] | None, dtype: torch.dtype
) -> None:
    like = loaded.lm.embed_tokens.weight.to(dtype)
    n = 9
    positions = torch.tensor(starts or [0])[:, None] + torch.arange(n)
    expected = loaded.lm.rotary_emb(like, positions.expand(3, -1, -1).to(loaded.device))
    for table, own in zip(text_tables(loaded.lm, like, n, starts), expected, strict=True):
        assert table.dtype == dtype and torch.equal(table, own)


def test_a_longer_table_leaves_the_earlier_one_where_it_is(qwen3: LoadedModel) -> None:
    """A captured graph goes on reading it."""
    like = qwen3.lm.embed_tokens.weight
    first = text_turns(qwen3.lm, like, 10)
    longer = text_turns(qwen3.lm, like, len(first) + 1)
    assert len(longer) >= len(first) + 1 and torch.equal(longer[: len(first)], first)
    assert text_turns(qwen3.lm, like, 10) is first
    assert text_turns(qwen3.lm, like, len(first) + 1) is longer
