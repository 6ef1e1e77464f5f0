"""The latency view: one axis, honest totals, break-even, and no headline out of noise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mrr.types import SYSTEM_NAMES
from tests.ui.views import generated
from ui import costs
from ui.latency_figures import candidates_figure, queries_figure, stages_figure
from ui.markup import duration
from ui.views import latency

REPORT = generated.latency_report()
WITH = "tiny-reranker, exit after layer 6"
# Repeats differ in which stage was slow: medians of stages do not add up to that of the totals.
UNEVEN = replace(
    REPORT,
    systems=tuple(
        replace(each, total=replace(each.total, median=1.25 * each.total.median))
        for each in REPORT.systems
    ),
)
COSTS = {cost.system: cost for cost in costs.costs(REPORT)}


def bars(figure, axis: str) -> list:
    return [trace for trace in figure.data if trace.type == "bar" and (trace.xaxis or "x") == axis]


def test_stages_of_a_system_add_up_to_its_bar():
    figure = stages_figure(REPORT)
    for system, name in (("original", "original"), ("mini", "mini")):
        length = sum(
            x for bar in bars(figure, "x") for x, y in zip(bar.x, bar.y, strict=True) if y == name
        )
        assert length == pytest.approx(sum(generated.STAGES[system].values()))


def test_bar_label_whisker_point_and_table_are_the_same_median_total():
    stages, points = stages_figure(UNEVEN), candidates_figure(UNEVEN)
    marked = {trace.hovertemplate.split(",")[0]: trace.y[0] for trace in points.data[1::2]}
    (whiskers, labels) = [t for t in stages.data if t.type == "scatter" and t.xaxis == "x"]
    for each in UNEVEN.systems:
        name, median = SYSTEM_NAMES[each.system], each.total.median
        row = labels.y.index(name)
        length = sum(
            x for bar in bars(stages, "x") for x, y in zip(bar.x, bar.y, strict=True) if y == name
        )
        assert length == pytest.approx(median)
        assert whiskers.x[row] == median
        assert labels.text[row].strip() == duration(median)
        assert marked[name] == pytest.approx(median / 1e3)
        assert f">{duration(median)}<" in latency.numbers(UNEVEN)


def test_a_stage_tells_its_part_of_the_total_and_its_own_median():
    (vision,) = [bar for bar in bars(stages_figure(UNEVEN), "x") if bar.name == "vision"]
    own = generated.STAGES["original"]["vision"]
    assert vision.x[0] == pytest.approx(1.25 * own) and vision.customdata[0][0] == own
    assert "of the median total" in vision.hovertemplate and "by itself" in vision.hovertemplate


def test_short_bars_are_drawn_again_magnified_and_only_then():
    assert {y for bar in bars(stages_figure(REPORT), "x2") for y in bar.y} == {
        "mini",
        "dense + reuse",
    }
    alike = replace(REPORT, systems=REPORT.systems[1:])
    assert bars(stages_figure(alike), "x2") == []


def test_each_stage_is_named_once_in_the_legend():
    named = [bar.name for bar in stages_figure(REPORT).data if bar.showlegend]
    assert (
        len(named)
        == len(set(named))
        == len({s for stages in generated.STAGES.values() for s in stages})
    )


def test_a_cost_splits_into_once_a_query_and_once_a_page():
    assert COSTS["mini"].once_ms == pytest.approx(10.0)
    assert COSTS["mini"].per_page_ms == pytest.approx(7.0)
    assert COSTS["mini"].query_ms(10) == pytest.approx(REPORT["mini"].total.median)
    assert COSTS["original"].query_ms(20) == pytest.approx(2 * REPORT["original"].total.median)


def test_the_measured_number_of_candidates_is_marked_on_each_line():
    points = [t for t in candidates_figure(REPORT).data if t.mode == "markers"]
    assert [point.x[0] for point in points] == [10, 10, 10]
    assert points[-1].y[0] == pytest.approx(0.080)


def test_break_even_is_where_both_have_cost_the_same():
    cheap = costs.Cost("mini", once_ms=1, per_page_ms=1, caching_ms=1000)
    dear = costs.Cost("original", once_ms=0, per_page_ms=101, caching_ms=0)
    point = costs.break_even(cheap, dear, 10)
    assert cheap.total_ms(10, point) == pytest.approx(dear.total_ms(10, point))
    assert costs.break_even(dear, cheap, 10) is None
    assert costs.break_even(replace(cheap, caching_ms=0), dear, 10) == 0.0


def test_the_break_even_point_is_drawn_where_caching_is_dear():
    dear = replace(REPORT.caching[1], total=replace(REPORT.caching[1].total, median=40_000.0))
    slow = replace(REPORT, caching=(REPORT.caching[0], dear))
    known = {cost.system: cost for cost in costs.costs(slow)}
    point = costs.break_even(known["mini"], known["original"], 10)
    marks = [t for t in queries_figure(slow).data if t.name and t.name.startswith("break-even")]
    assert [mark.x[0] for mark in marks] == [pytest.approx(point)]
    lowest = min(y for trace in queries_figure(slow).data for y in trace.y)
    assert 10 ** queries_figure(slow).layout.yaxis.range[0] < lowest / 3, "no room for its words"
    said = f"from query {int(point) + 1} on"  # the same in the chart and below it
    assert said in costs.break_even_sentence(slow) and said in marks[0].text[0]
    assert not [t for t in queries_figure(REPORT).data if t.name and t.name.startswith("break")]


def test_the_headline_names_the_conditions_and_the_ratios():
    text = latency.headline(REPORT, WITH)
    assert "80 ms" in text and "original takes <b>115 ×" in text
    assert WITH in text and "median of 5, warm" in text and "Example CPU, 2 of 2 cores" in text
    assert "measured on 2 pages and scaled" in text


def test_noise_gets_no_headline():
    text = latency.headline(generated.latency_report(wobble=0.5), WITH)
    assert "No ratio is claimed" in text and "115" not in text


def test_the_query_is_shown_as_text():
    assert "“&lt;i&gt;”" in latency.headline(replace(REPORT, query="<i>"), WITH)


def test_the_table_gives_bytes_cold_call_and_scaling_of_every_system():
    table = latency.numbers(REPORT)
    for text in ("4.2 MB", "610 kB", "2, scaled to 10", "first call, cold", "79 ms to 81 ms"):
        assert text in table
    n_stages = sum(len(stages) for stages in generated.STAGES.values())
    n_caching = sum(len(each.stages) for each in REPORT.caching)
    assert n_caching and table.count("<tr>") == 2 + 9 + n_stages + n_caching


def test_render_and_blank_fill_every_output():
    shown, hidden = latency.render(REPORT, WITH), latency.blank("Wait.")
    assert len(shown) == len(hidden) == 5
    assert all(each["visible"] for each in shown[1:4])
    assert not any(each["visible"] for each in hidden[1:4])


def test_the_bars_stand_in_the_order_of_the_table():
    drawn = stages_figure(REPORT)
    names = [SYSTEM_NAMES[each.system] for each in REPORT.systems]
    for axis in drawn.select_yaxes():
        assert list(axis.categoryarray) == names and axis.autorange == "reversed"
