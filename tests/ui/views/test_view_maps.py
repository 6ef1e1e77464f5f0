"""What the inspector and the bands send to the browser, from what the engine gives them."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from mrr.errors import InputRejected
from tests.ui.views import generated
from ui import maps
from ui.packing import pack_mask, pack_values
from ui.views import bands, inspector

IMAGE = "data:image/webp;base64,AAAA"
WHOLE = generated.explanation()
KEPT = WHOLE.keep.kept


def values(packed: str, *shape: int) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(packed), dtype="<f2")
    return array.reshape(shape).astype(np.float32)


def mask(packed: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), dtype=np.uint8).reshape(KEPT.shape).astype(bool)


def test_packed_values_come_back_with_three_significant_digits():
    array = np.random.default_rng(0).lognormal(-5, 2, (7, 5)).astype(np.float32)
    np.testing.assert_allclose(values(pack_values(array), 7, 5), array, rtol=6e-4)
    assert pack_mask(np.array([True, False])) == base64.b64encode(b"\x01\x00").decode()


def test_a_packed_slice_is_row_major_whatever_its_memory_layout():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert pack_values(array.T) == pack_values(array.T.copy())


def test_the_value_holds_the_grid_the_mask_and_the_controls():
    value, note = inspector.render(WHOLE, IMAGE, note="<b>5 kept</b>")
    assert (value["rows"], value["cols"]) == KEPT.shape
    assert (mask(value["keep"]["mask"]) == KEPT).all()
    assert [control["name"] for control in value["keep"]["controls"]] == ["uniform", "random"]
    assert {int(mask(c["mask"]).sum()) for c in value["keep"]["controls"]} == {int(KEPT.sum())}
    assert "<b>" not in note and "&lt;b&gt;5 kept" in note


def test_controls_are_the_other_pruners_and_none_where_all_is_kept():
    uniform = replace(WHOLE.keep, pruner="uniform")
    assert set(maps.control_masks(uniform)) == {"embedder", "random"}
    blind = replace(uniform, importance=None)
    assert set(maps.control_masks(blind)) == {"random"}
    assert maps.control_masks(replace(WHOLE.keep, kept=np.ones_like(KEPT))) == {}


def test_attention_sends_the_whole_query_then_its_tokens_then_the_scoring_one():
    sent = maps.attention_payload(WHOLE.attention, KEPT)
    start, end = generated.QUERY_SPAN
    assert [t["index"] for t in sent["tokens"]] == [*range(start, end), len(generated.TOKENS) - 1]
    assert sent["tokens"][-1]["role"] == "score" and sent["left_out"] == 0
    stack = values(sent["maps"], len(sent["layers"]), 2 + len(sent["tokens"]), *KEPT.shape)
    words = WHOLE.attention.page_maps[4][start:end]
    np.testing.assert_allclose(stack[1, 0], words.mean(0), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(stack[1, 1], words.max(0), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(stack[1, 3], words[1], rtol=1e-3, atol=1e-7)


def test_every_layer_and_token_shares_one_scale_that_sinks_do_not_set():
    trace = WHOLE.attention
    sent = maps.attention_payload(trace, KEPT)
    sink = generated.SINK
    all_maps = np.stack([trace.page_maps[layer] for layer in sorted(trace.page_maps)])
    shown = all_maps[:, [2, 3, 4, 5, 6]]
    assert sent["range"] == [0.0, pytest.approx(shown.max())]
    shown = shown.copy()
    shown[..., sink[0], sink[1]] = 0
    assert sent["range_without_sinks"] == [0.0, pytest.approx(shown.max())]
    assert sent["range_without_sinks"][1] < sent["range"][1]
    assert sent["n_sinks"] == 1 and mask(sent["sinks"])[sink]


def test_the_contrast_limit_covers_each_token_against_its_own_neutral_row():
    trace = WHOLE.attention
    sent = maps.attention_payload(trace, KEPT)
    largest = max(
        np.abs(trace.page_maps[layer][t] - trace.neutral_maps[layer][t])[KEPT].max()
        for layer in trace.page_maps
        for t in range(*generated.QUERY_SPAN)
    )
    assert sent["contrast_limit"] >= largest * 0.999
    assert values(sent["neutral"], len(sent["layers"]), 2, *KEPT.shape)[0, 1] == pytest.approx(
        trace.neutral_maps[3][-1], rel=1e-3, abs=1e-7
    )


def test_mass_is_the_pages_share_over_the_heads():
    sent = maps.attention_payload(WHOLE.attention, KEPT)
    mean = WHOLE.attention.mass[4, :, :, 1].mean(axis=0)
    assert sent["mass"][1][2] == pytest.approx(mean[2], abs=1e-4)
    assert sent["mass"][1][0] == pytest.approx(mean[slice(*generated.QUERY_SPAN)].mean(), abs=1e-4)


def test_a_long_query_sends_as_many_tokens_as_fit_and_counts_the_rest():
    n = 400
    span = (2, n - 1)
    trace = replace(WHOLE.attention, tokens=("x",) * n, query_span=span)
    cells = maps.MAX_MAP_BYTES // 200
    shown = maps.shown_tokens(trace, cells)
    assert shown[0] == 2 and shown[-1] == n - 1 and len(shown) < n
    assert (len(shown) + 4) * cells * 2 <= maps.MAX_MAP_BYTES
    everything = maps.shown_tokens(WHOLE.attention, 100)
    assert everything == [2, 3, 4, 5, 6]


def test_nothing_traced_sends_no_attention():
    empty = replace(WHOLE.attention, page_maps={}, neutral_maps={})
    assert maps.attention_payload(empty, KEPT) is None


def test_a_map_on_another_grid_is_refused_with_both_counts():
    small = generated.attention(generated.keep_map(6, 5).kept)
    value, _ = inspector.render(replace(WHOLE, attention=small), IMAGE)
    assert value["kind"] == "error" and "maps" not in str(value)
    assert "12 × 8 = 96 cells" in value["sentence"] and "6 × 5 = 30 cells" in value["sentence"]


@pytest.mark.parametrize("part", ["importance", "delta", "neutral", "sinks"])
def test_each_array_is_held_against_the_grid(part):
    wrong = np.zeros((3, 3), np.float32)
    broken = {
        "importance": replace(WHOLE, keep=replace(WHOLE.keep, importance=wrong)),
        "delta": replace(WHOLE, occlusion=replace(WHOLE.occlusion, delta=wrong)),
        "neutral": replace(
            WHOLE, attention=replace(WHOLE.attention, neutral_maps={3: wrong[None]})
        ),
        "sinks": replace(WHOLE, attention=replace(WHOLE.attention, sinks=wrong > 0)),
    }[part]
    assert "3 × 3 = 9 cells" in maps.grid_disagreement(broken)
    assert maps.grid_disagreement(WHOLE) is None


@pytest.mark.parametrize(
    "uri", ["https://example.org/x.png", "data:image/svg+xml;base64,AAAA", IMAGE + "'onload=x"]
)
def test_only_inline_pictures_are_drawn(uri):
    with pytest.raises(ValueError, match="data URI"):
        inspector.render(WHOLE, uri)


def test_the_verdict_compares_the_top_cells_with_every_random_draw():
    strong = maps.occlusion_verdict(WHOLE.occlusion)
    assert "−1.60 logit" in strong and "larger drop than every random draw" in strong
    weak = replace(WHOLE.occlusion, top_deltas={"contrast": -0.05})
    n = int((weak.random_deltas <= -0.05).sum())
    assert f"{n} of 20 random draws" in maps.occlusion_verdict(weak)
    assert "No control" in maps.occlusion_verdict(replace(weak, random_deltas=np.zeros(0)))


def test_the_occlusion_scale_is_symmetric():
    sent = maps.occlusion_payload(WHOLE.occlusion)
    assert sent["limit"] == pytest.approx(np.abs(WHOLE.occlusion.delta).max())


def test_the_note_of_a_new_keep_ratio_gives_both_logits_and_the_change():
    after = replace(WHOLE, logit=-0.5, keep=generated.keep_map(ratio=0.25))
    note = inspector.keep_note(WHOLE, after)
    assert "+1.25 → −0.50 (−1.75)" in note and "of 96 visual tokens" in note


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"row": "1", "col": 1}, {"row": True, "col": 1}, {"row": -1, "col": 0},
     {"row": 12, "col": 0}, {"row": 0, "col": 8}, {"row": 1.0, "col": 1}],
)  # fmt: skip
def test_a_forged_cell_is_rejected(data):
    with pytest.raises(InputRejected):
        inspector.cell_from(data, (12, 8))


def test_a_real_cell_and_a_real_layer_are_accepted():
    assert inspector.cell_from({"row": 11, "col": 7}, (12, 8)) == (11, 7)
    assert bands.layer_from({"layer": 6}, 7) == 6


@pytest.mark.parametrize(
    "data", [None, {"layer": 7}, {"layer": -1}, {"layer": "3"}, {"layer": True}]
)
def test_a_forged_layer_is_rejected(data):
    with pytest.raises(InputRejected):
        bands.layer_from(data, 7)


def test_bands_send_every_head_and_the_band():
    (value,) = bands.render(WHOLE, layer=4)
    assert value["band"] == [3, 7] and value["layers"] == 7 and value["select"]["layer"] == 4
    np.testing.assert_allclose(
        values(value["mass"], *WHOLE.attention.mass.shape), WHOLE.attention.mass, atol=1e-3
    )
    assert value["words"] == [2, 3, 4, 5] and value["shown"] == [2, 3, 4, 5, 6]
