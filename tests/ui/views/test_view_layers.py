"""The lens chart: which lines are drawn, where they are dashed, and when the order settled."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.ui.views import generated
from ui import lenses
from ui.svg import lines_svg
from ui.views import layers

MANY = {f"p{i}": generated.lens(i) for i in range(5)}
LABELS = {page_id: f"<b>{page_id}</b>" for page_id in MANY}


def drawn(figure, *, dash: bool) -> list:
    return [t for t in figure.data if t.x[0] is not None and (t.line.dash == "dash") == dash]


def lens_of(*mini: float):
    return replace(generated.lens(0, dense=False), mini=np.array(mini, np.float32), band=(0, 3))


def test_each_candidate_has_a_solid_line_over_the_layers_that_ran():
    lines = drawn(layers.figure(MANY, LABELS, "p2"), dash=False)
    assert len(lines) == 5
    assert all(list(line.x) == list(range(generated.EXIT)) for line in lines)


def test_dashes_begin_after_the_exit_and_only_where_a_full_pass_was_run():
    some = {**MANY, "p1": generated.lens(1, dense=False)}
    dashed = drawn(layers.figure(some, LABELS, "p2"), dash=True)
    assert len(dashed) == 4
    assert all(list(line.x) == list(range(generated.EXIT, generated.LAYERS)) for line in dashed)
    fast = {page_id: generated.lens(i, dense=False) for i, page_id in enumerate(MANY)}
    assert drawn(layers.figure(fast, LABELS, "p2"), dash=True) == []


def test_the_selected_line_is_strong_and_drawn_last():
    figure = layers.figure(MANY, LABELS, "p2")
    widths = [line.line.width for line in drawn(figure, dash=False)]
    assert widths[-1] > max(widths[:-1])
    assert len({line.line.width for line in drawn(figure, dash=False)[:-1]}) == 1


def test_labels_are_text_in_the_figure_and_in_the_table():
    figure = layers.figure(MANY, LABELS, "p2")
    assert all("<" not in line.name for line in figure.data)
    assert "<b>" not in layers.numbers(MANY, LABELS, mode="logit")


def test_probability_is_the_sigmoid_and_rank_counts_from_one():
    for page_id, curve in lenses.ran(MANY, "probability").items():
        np.testing.assert_allclose(curve, 1 / (1 + np.exp(-MANY[page_id].mini)), rtol=1e-5)
    ranks = np.stack(list(lenses.ran(MANY, "rank").values()))
    assert sorted(ranks[:, -1]) == [1, 2, 3, 4, 5]
    assert ranks[4, -1] == 1, "the last candidate has the highest logit"
    assert np.isnan(ranks[:, 0]).all(), "before the band all candidates are equal"


def test_the_order_is_settled_from_the_first_layer_after_its_last_change():
    early = {"a": lens_of(1, 2, 3), "b": lens_of(0, 0, 0)}
    late = {"a": lens_of(1, -1, 3), "b": lens_of(0, 0, 0)}
    never = {"a": lens_of(1, 2, -1), "b": lens_of(0, 0, 0)}
    assert [lenses.settled_from(each) for each in (early, late, never)] == [0, 2, 2]


def test_the_sentence_counts_layers_before_the_exit_and_moves_of_the_full_pass():
    said = lenses.settled_sentence(MANY)
    assert said.startswith("The order of the 5 candidates was final from layer")
    assert said.endswith("ends with the same order.")
    swapped = {**MANY, "p0": replace(MANY["p0"], dense=MANY["p4"].dense + 1)}
    assert "at another rank" in lenses.settled_sentence(swapped)
    fast = {page_id: replace(lens, dense=None) for page_id, lens in MANY.items()}
    assert "full pass" not in lenses.settled_sentence(fast)
    assert "no order" in lenses.settled_sentence({"p1": MANY["p1"]})


def test_the_table_holds_the_bands_layers_and_says_what_was_not_run():
    some = {**MANY, "p1": generated.lens(1, dense=False)}
    table = layers.numbers(some, LABELS, mode="logit")
    assert table.count("<tr>") == 1 + 5
    assert "not run" in table
    assert f"{MANY['p3'].mini[-1]:.3f}".replace("-", "−") in table


@pytest.mark.parametrize("mode", ["logit", "probability", "rank"])
def test_every_mode_renders_plot_sentence_and_table(mode):
    plot, sentence, table = layers.render(MANY, LABELS, None, mode=mode)
    assert plot["visible"] and "candidates" in sentence and "mrr-table" in table


def test_without_lenses_the_chart_is_hidden_behind_a_sentence():
    plot, sentence, table = layers.render({}, {}, None)
    assert plot["visible"] is False and "Trace" in sentence and table == ""


def test_the_still_picture_has_the_same_lines_band_exit_and_legend():
    figure = layers.figure(MANY, LABELS, "p2")
    still = lines_svg(figure, "five pages")
    root = ElementTree.fromstring(still)
    lines = list(root.iter("polyline"))
    assert len(lines) == len(drawn(figure, dash=False)) + len(drawn(figure, dash=True))
    assert sum("stroke-dasharray" in line.attrib for line in lines) == 5
    (shade,) = root.iter("rect")
    words = [text.text for text in root.iter("text")]
    start, end = generated.BAND
    assert f"band {start}–{end - 1}" in words and "exit" in words
    assert "selected page" in words and "logit, yes − no" in words
    # Each layer stands over its number, and the shade reaches half a layer beyond the band.
    across = {t.text: float(t.attrib["x"]) for t in root.iter("text") if t.text.isdigit()}
    points = lines[0].attrib["points"].split()
    assert [float(p.split(",")[0]) for p in points] == [
        pytest.approx(across[str(layer)], abs=0.1) for layer in range(generated.EXIT)
    ]
    step = across["1"] - across["0"]
    assert float(shade.attrib["x"]) == pytest.approx(across[str(start)] - step / 2, abs=0.2)
    assert float(shade.attrib["width"]) == pytest.approx((end - start) * step, abs=0.2)


def test_the_still_picture_of_ranks_has_rank_one_on_top_and_a_gap_where_all_are_tied():
    still = ElementTree.fromstring(
        lines_svg(layers.figure(MANY, LABELS, "p4", mode="rank"), "ranks")
    )
    best = next(line for line in still.iter("polyline") if "p4" in line[0].text)
    heights = [float(p.split(",")[1]) for p in best.attrib["points"].split()]
    others = [
        float(line.attrib["points"].split()[-1].split(",")[1]) for line in still.iter("polyline")
    ]
    assert heights[-1] == min(others), "upwards is less in SVG"
    assert len(heights) < generated.EXIT


def test_a_label_stays_text_in_the_still_picture():
    still = lines_svg(layers.figure(MANY, LABELS, "p2"), "<b>")
    assert "<b>" not in still and "&lt;b&gt;p2" in still


def test_some_full_passes_are_counted_in_the_sentence():
    some = {**MANY, "p1": generated.lens(1, dense=False)}
    assert "full pass was run for 4 of them" in lenses.settled_sentence(some)
    assert "drawn once it was run for all" not in lenses.settled_sentence(some, "probability")
    # Among some candidates they would be other ranks: nothing is drawn, and this says why.
    assert "drawn once it was run for all" in "".join(layers.words(some, "rank"))
