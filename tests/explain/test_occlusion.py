"""Hiding cells changes what a masked stock pass would change, and the control is a fair one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrr.explain.occlusion import block_ids, hidden_logits, occlude, occlusion_verdict, top_cells
from mrr.types import Occlusion
from tests.model.helpers import PRUNED, QUERY, SPARSE, STAGES, case, scorer, stock_logit
from tests.tiny import picture

MINI = replace(SPARSE, pruner="random", keep_ratio=0.5, kv_dtype="fp32")
WIDE = picture(1, (256, 128))


def masks_with_hidden(s, c, hidden_tokens: np.ndarray) -> dict[int, torch.Tensor]:
    """The mini system as 4D masks of a stock pass, in which the query sees no hidden token."""
    n, cut = len(c.prompt.ids), c.prompt.cut
    image = np.flatnonzero(np.asarray(c.prompt.ids) == s.encoder.image_id)
    inside = torch.full((1, 1, n, n), float("-inf")).triu(1)
    dropped = np.delete(image, c.kept)
    inside[..., dropped] = float("-inf")
    inside[..., dropped, dropped] = 0.0
    apart = inside.clone()
    apart[..., cut:, :cut] = float("-inf")
    inside[..., cut:, image[hidden_tokens]] = float("-inf")
    start, end = s.config.band
    return {i: inside if start <= i < end else apart for i in range(6)}


@pytest.mark.parametrize("which", ["none", "some", "all"])
def test_hiding_equals_a_stock_pass_whose_query_cannot_see_those_tokens(loaded, which):
    s = scorer(loaded, MINI)
    c = case(s, WIDE)
    hidden = np.zeros(len(c.kept), dtype=bool)
    hidden[{"none": slice(0, 0), "some": slice(3, 9), "all": slice(None)}[which]] = True
    (logit,) = hidden_logits(s, QUERY, c.page, hidden[None])
    expected = stock_logit(loaded, s, c, masks_with_hidden(s, c, c.kept[hidden]))
    assert abs(logit - expected) <= 1e-4


def test_hiding_nothing_changes_nothing_and_hiding_all_does(loaded):
    s = scorer(loaded, MINI)
    page = case(s, WIDE).page
    nothing, everything = hidden_logits(
        s, QUERY, page, np.stack([np.zeros(len(page.kept), bool), np.ones(len(page.kept), bool)])
    )
    (logit,) = s.score([QUERY], [page], STAGES)
    assert abs(nothing - logit) <= 1e-5
    assert abs(everything - logit) > 0.01


def test_every_cell_of_a_block_has_the_change_of_hiding_that_block_alone(qwen3):
    s = scorer(qwen3, MINI)
    c = case(s, picture(2, (224, 160)))  # 5 x 7: blocks at two edges are cut
    result = occlude(s, QUERY, c.page, {}, block=2, n_random=3)
    assert result.delta.shape == c.pixels.grid == (5, 7)
    blocks = block_ids(c.pixels.grid, 2)
    own = blocks.reshape(-1)[c.kept]
    for block in range(blocks.max() + 1):
        values = result.delta[blocks == block]
        assert (values == values[0]).all()
        (logit,) = hidden_logits(s, QUERY, c.page, (own == block)[None])
        assert abs(values[0] - (logit - result.base_logit)) <= 1e-5
        if block not in own:
            assert values[0] == 0
    assert np.abs(result.delta).max() > 0.01


def test_base_logit_is_that_of_the_fast_path(loaded):
    s = scorer(loaded, replace(MINI, kv_dtype="int8"))
    page = case(s, WIDE).page
    result = occlude(s, QUERY, page, {}, n_random=1)
    assert abs(result.base_logit - s.score([QUERY], [page], STAGES)[0]) <= 1e-5


def test_top_and_random_sets_hide_equally_many_cells(qwen3, monkeypatch):
    sizes: list[int] = []
    from mrr.explain import occlusion as module

    original = module.hidden_logits

    def counting(s, text, page, hidden, progress):
        sizes.extend(hidden.sum(axis=1).tolist())
        return original(s, text, page, hidden, progress)

    monkeypatch.setattr(module, "hidden_logits", counting)
    s = scorer(qwen3, PRUNED)
    page = case(s, picture(3, (384, 256))).page
    ranking = np.random.default_rng(0).random(page.grid)
    result = occlude(s, QUERY, page, {"attention": ranking}, n_random=4)
    assert result.n_top == round(0.1 * len(page.kept)) > 1
    assert sizes[-6:] == [result.n_top] * 6
    assert set(result.top_deltas) == {"attention", "occlusion"}
    assert result.random_deltas.shape == (4,)


def test_a_top_set_is_what_hiding_those_very_cells_does(qwen3):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    ranking = np.random.default_rng(0).random(page.grid)
    result = occlude(s, QUERY, page, {"attention": ranking}, n_random=2)
    own = block_ids(page.grid, 2).reshape(-1)[page.kept]
    for name, values in (("attention", ranking), ("occlusion", -result.delta)):
        chosen = top_cells(own, values.reshape(-1)[page.kept], result.n_top)
        (logit,) = hidden_logits(s, QUERY, page, chosen[None])
        assert abs(result.top_deltas[name] - (logit - result.base_logit)) <= 1e-5


def test_hidden_logits_do_not_depend_on_the_batches(qwen3, monkeypatch):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    hidden = np.random.default_rng(0).random((7, len(page.kept))) < 0.3
    together = hidden_logits(s, QUERY, page, hidden)
    monkeypatch.setattr("mrr.explain.occlusion.MAX_BATCH_COLUMNS", 3 * page.n_tokens)
    np.testing.assert_allclose(hidden_logits(s, QUERY, page, hidden), together, atol=1e-5)
    assert len(set(together.tolist())) == 7


def test_random_sets_differ_and_come_back_with_the_seed(qwen3):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    first, again, other = (
        occlude(s, QUERY, page, {}, n_random=5, seed=seed).random_deltas
        for seed in ((1,), (1,), (2,))
    )
    np.testing.assert_array_equal(first, again)
    assert len(set(first.tolist())) > 1
    assert (first != other).any()


def test_top_cells_take_whole_blocks_by_mean_and_cut_the_last():
    blocks = np.array([0, 0, 1, 1, 2, 2, 2])
    values = np.array([0.0, 0.9, 0.5, 0.6, 0.1, 0.1, 0.1])
    chosen = top_cells(blocks, values, 3)
    np.testing.assert_array_equal(chosen, [True, False, True, True, False, False, False])


def test_progress_counts_every_pass_to_the_end_and_may_stop_the_work(qwen3):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    seen: list[tuple[int, int]] = []
    occlude(s, QUERY, page, {}, n_random=2, progress=lambda *at: seen.append(at))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        occlude(s, QUERY, page, {}, n_random=2, progress=stop)


@pytest.mark.parametrize("options", [{"block": 0}, {"n_random": 0}])
def test_sizes_below_one_are_refused(qwen3, options):
    s = scorer(qwen3, MINI)
    with pytest.raises(ValueError, match="at least 1"):
        occlude(s, QUERY, case(s, WIDE).page, {}, **options)


@pytest.mark.parametrize(
    ("top", "conclusion"),
    [
        (-0.9, "support the score more than any random set"),
        (0.9, "speak against the page"),
        (0.0, "within chance"),
        (-0.2, "within chance"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(top, conclusion):
    result = Occlusion(
        delta=np.zeros((1, 1), np.float32),
        block=2,
        base_logit=3.0,
        n_top=12,
        top_deltas={"contrast": top},
        random_deltas=np.array([-0.2, 0.1, 0.4]),
    )
    verdict = occlusion_verdict(result)
    assert conclusion in verdict
    for number in ("12 cells", "+3.00", f"{top:+.2f}", "3 times", "+0.10", "-0.20", "+0.40"):
        assert number in verdict


def test_the_verdict_knows_a_set_that_matters_less_than_chance():
    result = Occlusion(
        np.zeros((1, 1), np.float32), 2, 3.0, 1, {"contrast": -0.1}, np.array([-0.5, -0.4])
    )
    assert "matter less" in occlusion_verdict(result)
    assert "the one cell" in occlusion_verdict(result)
