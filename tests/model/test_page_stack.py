"""Pages side by side, as a GPU attends to them, score as they do one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mrr.config import KVDtype, RerankConfig
from mrr.model.band import band_layer, run_band, run_before_band
from mrr.model.kv import KVPage
from mrr.model.layers import MASKED
from mrr.model.load import LoadedModel
from mrr.model.page_attention import PageAttention
from mrr.model.page_stack import COLUMN_MULTIPLE, PageStack, stack
from mrr.model.scorer import Scorer
from tests.model.helpers import DENSE, QUERY, SIZES, SPARSE, Launches, case, scorer
from tests.tiny import picture

EXIT = replace(DENSE, band=(2, 5), exit_layer=5)


def pages_of(s: Scorer, order=(0, 1, 2, 3)) -> list[KVPage]:
    return [case(s, picture(i, SIZES[i])).page for i in order]


@pytest.mark.parametrize("kv_dtype", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("config", [DENSE, SPARSE, EXIT])
def test_a_stack_of_pages_gives_the_states_of_each_page_alone(
    loaded: LoadedModel, config: RerankConfig, kv_dtype: KVDtype
) -> None:
    s = scorer(loaded, replace(config, kv_dtype=kv_dtype))
    pages = pages_of(s)
    suffix = run_before_band(loaded, s.config, [s.prompt(QUERY, 1).suffix])
    together = PageStack.of(loaded, s.instruction(), pages, suffix.hidden.shape[1])
    states = run_band(loaded, s.config, suffix, s.instruction(), together)
    for state, page in zip(states, pages, strict=True):
        alone = run_band(loaded, s.config, suffix, s.instruction(), [page])
        assert (state - alone[0]).abs().max() < 1e-4
    assert (states[0] - states[1]).abs().max() > 1e-2, "the pages do not differ"


def test_columns_lie_as_instruction_page_and_zeros(qwen3: LoadedModel) -> None:
    s = scorer(qwen3, replace(SPARSE, kv_dtype="int8"))
    pages, head = pages_of(s), s.instruction()
    k, v = stack(head, pages, 200).unbind()
    assert k.shape == v.shape == (2, 4, *head.k.shape[1:2], 200, head.k.shape[3])
    for i, page in enumerate(pages):
        for there, own, first in ((k, page.k, head.k), (v, page.v, head.v)):
            end = head.n_tokens + page.n_tokens
            assert torch.equal(there[:, i, :, : head.n_tokens], first)
            assert torch.equal(there[:, i, :, head.n_tokens : end], own.expanded(first.dtype))
            assert not there[:, i, :, end:].any()


def test_a_stack_is_overwritten_in_place_by_pages_of_other_lengths(qwen3: LoadedModel) -> None:
    s = scorer(qwen3, replace(SPARSE, kv_dtype="int8"))
    head = s.instruction()
    there = stack(head, pages_of(s), 200)
    there[..., 190:, :] = 7.0  # as a query leaves its own columns
    second = pages_of(s, (3, 0, 2, 2))
    assert stack(head, second, 200, there) is there
    assert torch.equal(there, stack(head, second, 200))


def test_what_fills_a_stack_up_is_not_seen(qwen3: LoadedModel) -> None:
    s = scorer(qwen3, SPARSE)
    pages, head = pages_of(s), s.instruction()
    suffix = run_before_band(qwen3, s.config, [s.prompt("x", 1).suffix])
    n = suffix.hidden.shape[1]
    exact, filled, shorter = (PageStack.of(qwen3, head, pages, n) for _ in range(3))
    assert exact.k.shape[3] % COLUMN_MULTIPLE == 0
    for i, page in enumerate(pages):
        end = head.n_tokens + page.n_tokens
        for stored in (filled.k, filled.v):
            assert end < stored.shape[3] - n, "nothing was filled up"
            stored[:, i, :, end:] = 1e3
        shorter.mask[i, :, :, end - 1] = MASKED
    states = [run_band(qwen3, s.config, suffix, head, x) for x in (exact, filled, shorter)]
    assert (states[0] - states[1]).abs().max() < 1e-4
    assert (states[2] - states[0]).abs().max() > 1e-3, "the mask decides nothing"


def test_a_stack_is_made_anew_in_the_memory_of_an_earlier_one(qwen3: LoadedModel) -> None:
    """Of pages of other lengths and places, which is what a graph's inputs are for."""
    s = scorer(qwen3, SPARSE)
    head, first, second = s.instruction(), pages_of(s), pages_of(s, (3, 0, 2, 2))
    n = 6
    there = PageStack.of(qwen3, head, first, n)
    before = [tensor.clone() for tensor in there.tensors]
    fresh = PageStack.of(qwen3, head, second, n)
    again = PageStack.of(qwen3, head, second, n, into=there)
    for old, was, new, expected in zip(
        there.tensors, before, again.tensors, fresh.tensors, strict=True
    ):
        assert new.data_ptr() == old.data_ptr() and torch.equal(new, expected)
        assert not torch.equal(new, was)


def test_hidden_cells_are_hidden_in_a_stack_too(qwen3: LoadedModel) -> None:
    s = scorer(qwen3, SPARSE)
    pages, head = pages_of(s), s.instruction()
    suffix = run_before_band(qwen3, s.config, [s.prompt(QUERY, 1).suffix])
    cells = torch.zeros(len(pages), min(page.n_tokens for page in pages), dtype=torch.bool)
    cells[torch.arange(len(pages)), torch.arange(len(pages))] = True
    stacked = PageStack.of(qwen3, head, pages, suffix.hidden.shape[1], cells)
    states = run_band(qwen3, s.config, suffix, head, stacked)
    expected = run_band(qwen3, s.config, suffix, head, pages, hidden_cells=cells)
    assert (states - expected).abs().max() < 1e-4
    unhidden = run_band(qwen3, s.config, suffix, head, pages)
    assert (unhidden - states).abs().amax(1).min() > 1e-4, "a hidden cell changes nothing"


def test_a_layer_against_pages_side_by_side_is_twenty_operations(qwen3: LoadedModel) -> None:
    s = scorer(qwen3, replace(SPARSE, kv_dtype="int8"))
    suffix = run_before_band(qwen3, s.config, [s.prompt(QUERY, 1).suffix])
    pages = PageStack.of(qwen3, s.instruction(), pages_of(s), suffix.hidden.shape[1])
    hidden = suffix.hidden
    attention = PageAttention(s.instruction(), pages, 2, hidden.shape[1], qwen3.n_sharing, hidden)
    with torch.inference_mode(), Launches() as launches:
        band_layer(qwen3.lm, 3, hidden.expand(4, -1, -1), pages.cos_sin, attention)
    assert len(launches) == 20, launches.seen
