"""Pages are attended to in groups, and how they are grouped decides nothing but the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mrr.model import page_attention
from mrr.model.band import run_band, run_before_band
from mrr.model.kv import KVPage
from mrr.model.layers import folded_attention
from mrr.model.load import LoadedModel
from mrr.model.page_attention import PageAttention
from mrr.model.scorer import Scorer
from tests.model.helpers import DENSE, QUERY, SIZES, SPARSE, STAGES, case, scorer
from tests.tiny import DEVICE, picture

# On a GPU all pages are one group.
pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="groups are a CPU's")
EXIT = replace(DENSE, band=(2, 5), exit_layer=5)
# The longest page comes first, so that what it leaves in the buffer could show in the others.
ORDER = (3, 0, 1, 2, 0, 1)


def pages_of(s: Scorer) -> list[KVPage]:
    pages = [case(s, picture(i, SIZES[size])).page for i, size in enumerate(ORDER)]
    return sorted(pages, key=lambda page: -page.n_tokens)


def grouped(
    monkeypatch: pytest.MonkeyPatch,
    s: Scorer,
    pages: list[KVPage],
    n: int,
    texts: Sequence[str] = (QUERY,),
) -> list[int]:
    """From here on groups hold as many as n of the longest page; the sizes of those of `pages`."""
    like = torch.zeros(1, dtype=s.loaded.dtype)
    n_suffix = max(len(s.prompt(text, 1).suffix) for text in texts)
    what = s.instruction(), pages, s.config.band[0], n_suffix, s.loaded.n_sharing, like
    every = PageAttention(*what, at_once=True)
    row = sum(t[:1].nbytes for t in every.expand(s.config.band[0], every.groups[0]))
    share = -(-n * row // torch.get_num_threads())
    monkeypatch.setattr(page_attention, "_GROUP_BYTES_PER_THREAD", share)
    some = PageAttention(*what)
    return [group.mask.shape[0] for group in some.groups]


@pytest.mark.parametrize("kv_dtype", ["int8", "fp32"])
@pytest.mark.parametrize("config", [DENSE, SPARSE, EXIT])
@pytest.mark.parametrize(("n", "sizes"), [(1, [1] * 6), (2, [2] * 3), (4, [4, 2])])
def test_pages_score_the_same_in_groups_as_all_at_once(
    qwen3: LoadedModel, monkeypatch: pytest.MonkeyPatch, config, kv_dtype, n, sizes
) -> None:
    s = scorer(qwen3, replace(config, kv_dtype=kv_dtype))
    pages = pages_of(s)
    at_once = s.score([QUERY], pages, STAGES)
    assert grouped(monkeypatch, s, pages, n) == sizes
    assert s.score([QUERY], pages, STAGES) == pytest.approx(at_once, abs=1e-5)
    assert at_once.std() > 1e-2, "the pages do not differ"


def test_many_texts_score_the_same_in_groups(
    qwen3: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scorer(qwen3, SPARSE)
    page = case(s, picture(0)).page
    texts = ["a", "blue page", "a much longer candidate text than the first", "of words"]
    at_once = s.score(texts, [page], STAGES)
    assert grouped(monkeypatch, s, [page] * 4, 3, texts) == [3, 1]
    assert s.score(texts, [page], STAGES) == pytest.approx(at_once, abs=1e-5)


def test_cells_stay_hidden_from_the_query_in_every_group(
    qwen3: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scorer(qwen3, SPARSE)
    page = case(s, picture(0)).page
    pages = [page] * 5
    hidden = torch.eye(5, page.n_tokens, dtype=torch.bool)
    suffix = run_before_band(qwen3, s.config, [s.prompt(QUERY, 1).suffix])

    def states(cells: torch.Tensor | None) -> torch.Tensor:
        return run_band(qwen3, s.config, suffix, s.instruction(), pages, hidden_cells=cells)

    at_once = states(hidden)
    assert grouped(monkeypatch, s, pages, 2) == [2, 2, 1]
    assert torch.allclose(states(hidden), at_once, atol=1e-5)
    assert (states(None) - at_once).abs().amax(1).min() > 1e-4, "a hidden cell changes nothing"


def test_heads_that_share_keys_see_what_each_would_see_alone() -> None:
    query, key, value = torch.randn(2, 6, 4, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    mask = torch.zeros(2, 1, 4, 9).masked_fill(torch.rand(2, 1, 4, 9) < 0.3, float("-inf"))
    mask[..., 0] = 0.0
    copied = (x.repeat_interleave(2, dim=1) for x in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, *copied, attn_mask=mask, scale=0.3
    )
    seen = folded_attention(query, key, value, mask.repeat(1, 1, 2, 1), 0.3)
    assert torch.allclose(seen, expected.transpose(1, 2), atol=1e-6)
