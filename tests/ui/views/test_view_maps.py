"""What the inspector and the bands send to the browser, from what the engine gives them."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mrr.errors import InputRejected
from mrr.explain.maps import Word
from tests.ui.views import generated
from ui import maps
from ui.heads import MAX_HEAD_BYTES, shown_heads
from ui.packing import pack_mask, pack_values
from ui.printed import attended, pruned
from ui.views import bands, inspector

IMAGE = "data:image/webp;base64,AAAA"
WHOLE = generated.explanation()
KEPT = WHOLE.keep.kept


def values(packed: str, *shape: int) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(packed), dtype="<f2")
    return array.reshape(shape).astype(np.float32)


def mask(packed: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), dtype=np.uint8).reshape(KEPT.shape).astype(bool)


def sent_attention():
    return maps.attention_payload(WHOLE.attention, WHOLE.query, KEPT)


def test_the_map_of_the_report_is_the_one_that_the_inspector_opens_with():
    sent = sent_attention()
    n_layers, n_maps = len(sent["layers"]), len(sent["tokens"]) + 2
    row = sent["layers"].index(sent["focus"])
    drawn = values(sent["maps"], n_layers, n_maps, *KEPT.shape)[row, 1]
    neutral = values(sent["neutral"], n_layers, 2, *KEPT.shape)[row, 0]
    found = maps.first_map(WHOLE.attention, WHOLE.query, KEPT)
    assert found is not None and found.layer == sent["focus"]
    np.testing.assert_allclose(found.values, drawn - neutral, atol=2e-3 * found.limit)
    assert found.limit == pytest.approx(sent["contrast_limit_without_sinks"])
    assert (found.shown == KEPT & ~WHOLE.attention.sinks).all()


def test_printed_pages_are_pale_where_nothing_was_read_and_coloured_where_attention_went():
    kept = np.array([[True, True], [True, False]])
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    found = maps.FirstMap(3, np.array([[1.0, -1.0], [0.0, 0.0]]), kept, limit=1.0)
    drawn = np.asarray(printed_picture(attended(grey, kept, found)))
    more, less, none, unread = (
        drawn[y, x].astype(int) for y, x in ((16, 16), (16, 48), (48, 16), (48, 48))
    )
    assert more[0] > more[2] + 20 and less[2] > less[0] + 20
    assert np.ptp(none) < 8 and abs(none[0] - 128) < 8
    assert unread.min() > 200
    read = np.asarray(printed_picture(pruned(grey, kept)))
    assert read[48, 48].min() > 200 and abs(int(read[16, 16, 0]) - 128) < 8


def printed_picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_packed_values_come_back_with_three_significant_digits():
    array = np.random.default_rng(0).lognormal(-5, 2, (7, 5)).astype(np.float32)
    np.testing.assert_allclose(values(pack_values(array), 7, 5), array, rtol=6e-4)
    assert pack_mask(np.array([True, False])) == base64.b64encode(b"\x01\x00").decode()


def test_a_packed_slice_is_row_major_whatever_its_memory_layout():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert pack_values(array.T) == pack_values(array.T.copy())


def test_the_value_holds_the_grid_the_mask_and_the_controls():
    value, note = inspector.render(WHOLE, IMAGE, tried=[WHOLE])
    assert (value["rows"], value["cols"]) == KEPT.shape
    assert (mask(value["keep"]["mask"]) == KEPT).all()
    assert [control["name"] for control in value["keep"]["controls"]] == ["uniform", "random"]
    assert {int(mask(c["mask"]).sum()) for c in value["keep"]["controls"]} == {int(KEPT.sum())}
    assert note == "", "nothing else was tried"


def test_controls_are_the_other_pruners_and_none_where_all_is_kept():
    uniform = replace(WHOLE.keep, pruner="uniform")
    assert set(maps.control_masks(uniform)) == {"embedder", "random"}
    blind = replace(uniform, importance=None)
    assert set(maps.control_masks(blind)) == {"random"}
    assert maps.control_masks(replace(WHOLE.keep, kept=np.ones_like(KEPT))) == {}


def test_attention_sends_the_whole_query_then_its_words_then_the_scoring_position():
    sent = sent_attention()
    assert [t["text"] for t in sent["tokens"]] == ["revenue", "by", "region?", ""]
    assert [t["index"] for t in sent["tokens"]] == [0, 1, 2, maps.SCORE]
    assert sent["tokens"][-1]["role"] == "score" and sent["left_out"] == 0
    stack = values(sent["maps"], len(sent["layers"]), 2 + 4, *KEPT.shape)
    rows = WHOLE.attention.page_maps[4]
    close = {"rtol": 1e-3, "atol": 1e-7}
    np.testing.assert_allclose(stack[1, 0], rows[2:7].mean(0), **close)
    revenue, region = rows[2:4].mean(0), rows[5:7].mean(0)
    np.testing.assert_allclose(stack[1, 1], np.max([revenue, rows[4], region], axis=0), **close)
    np.testing.assert_allclose(stack[1, 2], revenue, **close)
    np.testing.assert_allclose(stack[1, 5], rows[-1], **close)


def test_heads_are_sent_for_kept_cells_only_on_one_scale_a_layer():
    trace, heads = WHOLE.attention, sent_attention()["heads"]
    layers = sorted(trace.head_maps)
    assert heads["shown"] == [[0, 1, 2, 3]] * len(layers) and heads["n_heads"] == 4
    for name, source in (("maps", trace.head_maps), ("neutral", trace.neutral_head_maps)):
        sent = values(heads[name], len(layers), 4, int(KEPT.sum()))
        np.testing.assert_allclose(sent[1, 2], source[layers[1]][2][KEPT], rtol=1e-3, atol=1e-7)
    tops = [trace.head_maps[layer][:, KEPT].max() for layer in layers]
    assert heads["limit"] == pytest.approx(tops, rel=1e-3)
    assert all(np.array(heads["limit_without_sinks"]) < tops)
    assert heads["mass"][1][2] == pytest.approx(trace.mass[4, 2, 2:7, 1].mean(), abs=1e-4)


def test_of_very_many_heads_those_that_give_the_page_most_are_sent():
    mass = np.array([[0.1, 0.5, 0.2, 0.4], [0.9, 0.1, 0.2, 0.3]])
    assert shown_heads(mass, 8).tolist() == [[0, 1, 2, 3]] * 2
    two = shown_heads(mass, MAX_HEAD_BYTES)
    assert two.tolist() == [[1, 3], [0, 3]]
    assert two.shape[1] * MAX_HEAD_BYTES / 2 <= MAX_HEAD_BYTES
    assert shown_heads(mass, 10 * MAX_HEAD_BYTES).shape == (2, 1)


def test_every_layer_and_token_shares_one_scale_that_sinks_do_not_set():
    trace, sent = WHOLE.attention, sent_attention()
    sink = generated.SINK
    all_maps = np.stack([trace.page_maps[layer] for layer in sorted(trace.page_maps)])
    rows = ([2, 3], [4], [5, 6], [7])
    shown = np.stack([all_maps[:, own].mean(axis=1) for own in rows], axis=1)
    assert sent["limit"] == pytest.approx(shown.max())
    shown = shown.copy()
    shown[..., sink[0], sink[1]] = 0
    assert sent["limit_without_sinks"] == pytest.approx(shown.max())
    assert sent["limit_without_sinks"] < sent["limit"]
    assert sent["n_sinks"] == 1 and mask(sent["sinks"])[sink]


def test_the_contrast_limit_covers_each_token_against_its_own_neutral_row():
    trace, sent = WHOLE.attention, sent_attention()
    largest = max(
        np.abs(trace.page_maps[layer][rows].mean(0) - trace.neutral_maps[layer][2])[KEPT].max()
        for layer in trace.page_maps
        for rows in ([2, 3], [4], [5, 6])
    )
    assert sent["contrast_limit"] >= largest * 0.999
    assert values(sent["neutral"], len(sent["layers"]), 2, *KEPT.shape)[0, 1] == pytest.approx(
        trace.neutral_maps[3][-1], rel=1e-3, abs=1e-7
    )


def test_mass_is_the_pages_share_over_the_heads():
    sent = sent_attention()
    mean = WHOLE.attention.mass[4, :, :, 1].mean(axis=0)
    assert sent["mass"][1][2] == pytest.approx(mean[2:4].mean(), abs=1e-4)
    assert sent["mass"][1][0] == pytest.approx(mean[slice(*generated.QUERY_SPAN)].mean(), abs=1e-4)


def test_a_long_query_sends_as_many_words_as_fit():
    typed = [Word("x", range(i, i + 1)) for i in range(400)]
    cells = maps.MAX_MAP_BYTES // 200
    shown = maps.shown_words(typed, cells)
    assert shown[0] == typed[0] and len(shown) < 400
    assert (len(shown) + 5) * cells * 2 <= maps.MAX_MAP_BYTES
    assert maps.shown_words(typed[:5], 100) == typed[:5]


def test_nothing_traced_sends_no_attention():
    empty = replace(WHOLE.attention, page_maps={}, neutral_maps={})
    assert maps.attention_payload(empty, WHOLE.query, KEPT) is None


def test_a_map_on_another_grid_is_refused_with_both_counts():
    small = generated.attention(generated.keep_map(6, 5).kept)
    value, _ = inspector.render(replace(WHOLE, attention=small), IMAGE)
    assert value["kind"] == "error" and "maps" not in str(value)
    assert "12 × 8 = 96 cells" in value["sentence"] and "6 × 5 = 30 cells" in value["sentence"]


@pytest.mark.parametrize("part", ["importance", "delta", "neutral", "heads", "sinks"])
def test_each_array_is_held_against_the_grid(part):
    wrong = np.zeros((3, 3), np.float32)
    broken = {
        "importance": replace(WHOLE, keep=replace(WHOLE.keep, importance=wrong)),
        "delta": replace(WHOLE, occlusion=replace(WHOLE.occlusion, delta=wrong)),
        "neutral": replace(
            WHOLE, attention=replace(WHOLE.attention, neutral_maps={3: wrong[None]})
        ),
        "heads": replace(WHOLE, attention=replace(WHOLE.attention, head_maps={3: wrong[None]})),
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


def test_a_measurement_that_was_stopped_says_how_far_it_came():
    whole = maps.occlusion_payload(WHOLE.occlusion, KEPT)
    assert whole["stopped"] == "" and mask(whole["measured"]).all()
    measured = np.zeros_like(KEPT)
    measured[:6] = True
    part = replace(WHOLE.occlusion, measured=measured)
    sent = maps.occlusion_payload(part, KEPT)
    assert f"Stopped after {KEPT[:6].sum()} of {KEPT.sum()} cells" in sent["stopped"]
    assert (mask(sent["measured"]) == measured).all()
    early = replace(part, top_deltas={}, random_deltas=np.zeros(0))
    assert "control was not run" in maps.occlusion_payload(early, KEPT)["verdict"]


def test_the_occlusion_scale_is_symmetric():
    sent = maps.occlusion_payload(WHOLE.occlusion, KEPT)
    assert sent["limit"] == pytest.approx(np.abs(WHOLE.occlusion.delta).max())


def test_pages_encoded_again_are_told_beside_the_ranked_one_with_the_change():
    after = replace(WHOLE, logit=-0.5, keep=generated.keep_map(ratio=0.25))
    rows = inspector.keep_table([WHOLE, after]).split("<tr>")[2:]
    assert "as ranked" in rows[0] and "+1.25" in rows[0]
    assert "25 of 96 (26%)" in rows[1] and "−0.50" in rows[1] and "−1.75" in rows[1]


def test_a_real_layer_is_accepted():
    assert bands.layer_from({"layer": 6}, 7) == 6


@pytest.mark.parametrize(
    "data", [None, {"layer": 7}, {"layer": -1}, {"layer": "3"}, {"layer": True}]
)
def test_a_forged_layer_is_rejected(data):
    with pytest.raises(InputRejected):
        bands.layer_from(data, 7)


def test_bands_send_every_head_and_the_rows_of_each_word():
    (value,) = bands.render(WHOLE)
    assert value["band"] == [3, 7] and value["layers"] == 7
    np.testing.assert_allclose(
        values(value["mass"], *WHOLE.attention.mass.shape), WHOLE.attention.mass, atol=1e-3
    )
    assert value["query"] == [2, 3, 4, 5, 6] and value["n_tokens"] == 8
    rows = {token["text"]: token["rows"] for token in value["tokens"]}
    assert rows == {"revenue": [2, 3], "by": [4], "region?": [5, 6], "answer ▸": [7]}
