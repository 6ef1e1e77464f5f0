"""Hiding cells changes what a masked stock pass would change, and the control is a fair one."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mrr.errors import InvalidConfig
from mrr.explain.occlusion import block_ids, hidden_logits, occlude, shuffled, top_cells
from mrr.explain.verdict import occlusion_verdict
from mrr.types import Occlusion
from tests.model.helpers import DENSE, PRUNED, QUERY, SPARSE, STAGES, case, scorer, stock_logit
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

    def counting(s, text, page, hidden, *rest):
        sizes.extend(hidden.sum(axis=1).tolist())
        return original(s, text, page, hidden, *rest)

    monkeypatch.setattr(module, "hidden_logits", counting)
    s = scorer(qwen3, PRUNED)
    page = case(s, picture(3, (384, 256))).page
    ranking = np.random.default_rng(0).random(page.grid)
    result = occlude(s, QUERY, page, {"attention": ranking}, n_random=4)
    assert result.n_top == round(0.1 * len(page.kept)) > 1
    assert [*sizes[1:6], sizes[-1]] == [result.n_top] * 6
    assert set(result.top_deltas) == {"attention", "occlusion"}
    assert result.random_deltas.shape == (4,)


def test_random_sets_hide_whole_blocks_of_the_page_as_top_sets_do(qwen3, monkeypatch):
    from mrr.explain import occlusion as module

    sets: list[np.ndarray] = []
    original = module.hidden_logits

    def noting(s, text, page, hidden, *rest):
        sets.extend(hidden)
        return original(s, text, page, hidden, *rest)

    monkeypatch.setattr(module, "hidden_logits", noting)
    s = scorer(qwen3, DENSE)
    page = case(s, picture(3, (320, 192))).page
    rows, columns = page.grid
    assert (rows, columns, len(page.kept)) == (6, 10, 60)
    ranking = np.random.default_rng(0).random(page.grid)
    result = occlude(s, QUERY, page, {"attention": ranking}, n_random=8)
    assert result.n_top == 6
    top, *randoms = sets[1:10]
    for hidden in (top, *randoms):
        squares = hidden.reshape(rows // 2, 2, columns // 2, 2).sum(axis=(1, 3))
        assert sorted(squares[squares > 0]) == [2, 4]
    assert len({hidden.tobytes() for hidden in randoms}) > 4


def test_a_page_of_one_block_has_no_control(qwen3):
    """Every other set would be the same cells."""
    s = scorer(qwen3, DENSE)
    page = case(s, picture(3, (320, 192))).page
    ranking = np.random.default_rng(0).random(page.grid)
    result = occlude(s, QUERY, page, {"contrast": ranking}, block=50, n_random=8)
    assert set(result.top_deltas) == {"contrast", "occlusion"} and result.measured.all()
    assert not len(result.random_deltas)
    assert "cannot be drawn from so few blocks" in occlusion_verdict(result)


def test_a_control_that_was_drawn_like_the_top_set_by_chance_stays(monkeypatch):
    """It can be, where blocks are few: that is chance too."""
    monkeypatch.setattr(
        "mrr.explain.occlusion.hidden_logits",
        lambda s, text, page, hidden, *rest: np.zeros(len(hidden), np.float32),
    )
    page = SimpleNamespace(grid=(2, 4), kept=np.arange(8))
    ranking = {"contrast": np.arange(8.0).reshape(2, 4)}
    for seed in range(20):
        drawn = occlude(None, "", page, ranking, n_random=1, seed=(seed,)).random_deltas
        assert drawn.shape == (1,)


@pytest.fixture
def noise(monkeypatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of 50 maps of noise over a pruned page: cells that each of 50 top and of 100 random sets
    hides in each block, (sets, blocks), and how many each block has."""
    seen: list[np.ndarray] = []

    def note(s, text, page, hidden, *rest):
        seen.extend(hidden)
        return np.zeros(len(hidden), np.float32)

    monkeypatch.setattr("mrr.explain.occlusion.hidden_logits", note)
    rng = np.random.default_rng(0)
    page = SimpleNamespace(grid=(36, 28), kept=np.sort(rng.permutation(36 * 28)[:504]))
    rankings = {str(i): rng.random(page.grid) for i in range(50)}
    assert occlude(None, "", page, rankings, n_random=100).n_top == 50
    own = block_ids(page.grid, 2).reshape(-1)[page.kept]
    cells = np.stack([np.bincount(own, weights=hidden) for hidden in seen[1:151]])
    return cells[:50], cells[50:], np.bincount(own)


def test_random_sets_touch_as_many_blocks_as_the_top_sets_of_noise(noise):
    tops, randoms, _ = noise
    assert (tops > 0).sum(axis=1).mean() == (randoms > 0).sum(axis=1).mean() > 28
    alike = np.sort(randoms) == np.sort(np.tile(tops, (2, 1)))
    assert alike.all(), "each is like one top set, in turn, block by block"


def test_random_sets_are_whole_blocks_but_one_and_owe_nothing_to_the_map(noise):
    tops, randoms, sizes = noise
    assert (randoms.sum(axis=1) == 50).all()
    assert (((randoms > 0) & (randoms < sizes)).sum(axis=1) <= 1).all()
    assert len(np.unique(randoms, axis=0)) == 100
    shared = np.minimum(randoms, np.tile(tops, (2, 1))).sum(axis=1).mean() / 50
    assert shared < 0.2  # 0.1 if blocks had equally many cells, 1 for the top set itself


def test_a_map_without_differences_is_held_against_other_blocks():
    blocks, rng = np.arange(40).repeat(2), np.random.default_rng(0)
    same = np.ones(80)
    sets = [top_cells(blocks, shuffled(blocks, same, rng), 8).tobytes() for _ in range(9)]
    assert len({top_cells(blocks, same, 8).tobytes(), *sets}) == 10


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


def test_progress_counts_every_pass_to_the_end(qwen3):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    seen: list[tuple[int, int]] = []
    occlude(s, QUERY, page, {}, n_random=2, progress=lambda *at: seen.append(at))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1]


def test_stopped_after_a_pass_it_keeps_what_was_measured_and_says_what_was_not(qwen3, monkeypatch):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    whole = occlude(s, QUERY, page, {"attention": np.ones(page.grid)}, n_random=3)
    assert whole.measured.all() and whole.measured.shape == page.grid
    monkeypatch.setattr("mrr.explain.occlusion.MAX_BATCH_COLUMNS", page.n_tokens)
    n_passes = iter(range(1, 1000))
    part = occlude(
        s, QUERY, page, {"attention": np.ones(page.grid)}, n_random=3,
        stop=lambda: next(n_passes) == 1 + 1 + 3 + 4,
    )  # fmt: skip
    own = block_ids(page.grid, 2).reshape(-1)[page.kept]
    reached = np.unique(own)[:4]
    np.testing.assert_array_equal(
        part.measured, ~np.isin(block_ids(page.grid, 2), np.setdiff1d(own, reached))
    )
    np.testing.assert_allclose(part.delta, whole.delta * part.measured, atol=1e-5)
    assert set(part.top_deltas) == {"attention"}, "the map's own ranking needs the whole map"
    np.testing.assert_allclose(part.random_deltas, whole.random_deltas, atol=1e-5)


def test_stopped_at_once_there_is_a_logit_and_no_control(qwen3, monkeypatch):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    monkeypatch.setattr("mrr.explain.occlusion.MAX_BATCH_COLUMNS", page.n_tokens)
    result = occlude(s, QUERY, page, {}, n_random=3, stop=lambda: True)
    assert abs(result.base_logit - s.score([QUERY], [page], STAGES)[0]) <= 1e-5
    assert not result.top_deltas and not len(result.random_deltas)
    assert (result.delta == 0).all()
    assert "control was not run" in occlusion_verdict(result)


def test_the_lock_is_free_between_passes(qwen3, monkeypatch):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    monkeypatch.setattr("mrr.explain.occlusion.MAX_BATCH_COLUMNS", page.n_tokens)
    lock, got_in, n_passes = threading.RLock(), [], []

    def other() -> None:
        got_in.append(lock.acquire(timeout=60))
        if got_in[-1]:
            lock.release()

    def between(*_: int) -> None:
        n_passes.append(None)
        if all(got_in):  # else it is known already, after a minute
            someone = threading.Thread(target=other)
            someone.start()
            someone.join()

    result = occlude(s, QUERY, page, {}, n_random=2, progress=between, lock=lock)
    assert got_in == [True] * len(n_passes) and len(n_passes) > 5
    assert result.measured.all()


@pytest.mark.parametrize("options", [{"block": 0}, {"n_random": 0}])
def test_sizes_below_one_are_refused(qwen3, options):
    s = scorer(qwen3, MINI)
    with pytest.raises(InvalidConfig, match="at least 1"):
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
        measured=np.ones((1, 1), bool),
        block=2,
        base_logit=3.0,
        n_top=12,
        top_deltas={"contrast": top},
        random_deltas=np.array([-0.2, 0.1, 0.4]),
    )
    verdict = occlusion_verdict(result)
    assert conclusion in verdict
    change = f"{top:+.2f}".replace("-", "−")
    for number in ("12 cells", "+3.00", change, "3 times", "+0.10", "−0.20", "+0.40"):
        assert number in verdict


def test_the_verdict_knows_a_set_that_matters_less_than_chance():
    result = Occlusion(
        np.zeros((1, 1), np.float32), np.ones((1, 1), bool), 2, 3.0, 1,
        {"contrast": -0.1}, np.array([-0.5, -0.4]),
    )  # fmt: skip
    assert "matter less" in occlusion_verdict(result)
    assert "the one cell that gets" in occlusion_verdict(result)
