"""The three charts of a latency report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mrr.types import SYSTEM_NAMES
from ui.colour import OTHER_STAGE, STAGE_COLOURS, SYSTEM_COLOURS, TEXT
from ui.costs import Cost, break_even, costs, first_cheaper, in_total
from ui.figures import finish
from ui.markup import duration

if TYPE_CHECKING:
    from mrr.measure.latency import LatencyReport, SystemLatency

# Past this ratio the shorter bars vanish on a common axis, and a magnified copy is drawn.
_MAGNIFY_FROM = 8.0
_MANY_QUERIES = 30  # the middle of the axis of queries, from 1 to 1,000 by powers of ten
_MARKERS = {"mini": "circle", "dense-reuse": "square", "original": "diamond"}
_DASHES = {"mini": "solid", "dense-reuse": "dash", "original": "dot"}


def stages_figure(report: LatencyReport) -> go.Figure:
    """One bar a system, as long as its median total and split by the medians of its stages, on
    one millisecond axis; below it the shorter bars again, magnified, where the longest hides them.
    """
    near = _magnified(report)
    rows = 2 if near else 1
    drawn = make_subplots(
        rows=rows,
        cols=1,
        row_heights=[len(report.systems), len(near)] if near else None,
        vertical_spacing=0.24,
    )
    named: set[str] = set()
    for row, systems in enumerate([report.systems, near][:rows], start=1):
        for stage in _stage_names(report):
            drawn.add_trace(_stage_bar(systems, stage, stage not in named), row=row, col=1)
            named.add(stage)
        drawn.add_trace(_whiskers(systems), row=row, col=1)
        drawn.add_trace(_totals(systems), row=row, col=1)
        longest = max(each.total.q3 for each in systems)
        # Room at the right for the totals, on a phone too.
        drawn.update_xaxes(range=[0, longest * 1.4], row=row, col=1)
    finish(drawn, 120 + 52 * (len(report.systems) + len(near)) + (40 if near else 0))
    drawn.update_layout(barmode="stack", bargap=0.35, legend={"y": -0.22, "traceorder": "normal"})
    order = [SYSTEM_NAMES[each.system] for each in report.systems]
    drawn.update_yaxes(
        autorange="reversed", showgrid=False, categoryorder="array", categoryarray=order
    )
    drawn.update_xaxes(tickformat=",")
    drawn.update_xaxes(title_text="median ms a query, by stage", row=rows, col=1)
    if near:
        factor = max(s.total.q3 for s in report.systems) / max(s.total.q3 for s in near)
        drawn.add_annotation(
            text=f"the same bars, {factor:.0f} × magnified",
            x=0,
            y=1.0,
            xref="x2 domain",
            yref="y2 domain",
            yanchor="bottom",
            xanchor="left",
            showarrow=False,
        )
    return drawn


def candidates_figure(report: LatencyReport) -> go.Figure:
    """Cost of one query against the number of candidates; the measured point is marked."""
    drawn = go.Figure()
    counts = np.unique(np.geomspace(1, 100, 40).round())
    for cost in costs(report):
        drawn.add_trace(_line(cost, counts, [cost.query_ms(n) / 1e3 for n in counts], "candidates"))
        point = cost.query_ms(report.n_candidates) / 1e3
        drawn.add_trace(_point(cost, report.n_candidates, point))
    return _log_log(drawn, "candidates (top-k)", "seconds a query")


def queries_figure(report: LatencyReport) -> go.Figure:
    """Cost of caching and asking, against the number of queries on the same pages."""
    drawn = go.Figure()
    n = report.n_candidates
    known = {cost.system: cost for cost in costs(report)}
    counts = np.unique(np.geomspace(1, 1000, 60).round())
    for cost in known.values():
        drawn.add_trace(_line(cost, counts, [cost.total_ms(n, q) / 1e3 for q in counts], "queries"))
    _log_log(drawn, "queries on the same pages", f"seconds in all, {n} pages")
    drawn.update_xaxes(range=[0, np.log10(counts[-1]) + 0.03])  # the last tick too
    if "mini" in known and "original" in known:
        point = break_even(known["mini"], known["original"], n)
        if point and 1 < point < counts[-1]:
            seconds = known["mini"].total_ms(n, point) / 1e3
            drawn.add_trace(_crossing(point, seconds))
            _make_room_below(drawn)
    return drawn


def _magnified(report: LatencyReport) -> list[SystemLatency]:
    longest = max(each.total.median for each in report.systems)
    return [each for each in report.systems if each.total.median * _MAGNIFY_FROM < longest]


def _stage_names(report: LatencyReport) -> list[str]:
    """Every stage of every system, as the pipeline runs them."""
    present = {cost.stage for each in report.systems for cost in each.stages}
    known = [stage for stage in STAGE_COLOURS if stage in present]
    return known + sorted(present - set(known))


def _stage_bar(systems: Sequence[SystemLatency], stage: str, in_legend: bool) -> go.Bar:
    found = [(each, cost) for each in systems for cost in each.stages if cost.stage == stage]
    return go.Bar(
        y=[SYSTEM_NAMES[each.system] for each, _ in found],
        x=[cost.ms.median * in_total(each) for each, cost in found],
        customdata=[
            [cost.ms.median, cost.ms.q1, cost.ms.q3, cost.ms.n, cost.ms_per_page]
            for _, cost in found
        ],
        name=stage,
        legendgroup=stage,
        showlegend=in_legend,
        orientation="h",
        marker={
            "color": STAGE_COLOURS.get(stage, OTHER_STAGE),
            "line": {"color": "rgba(255,255,255,0.7)", "width": 0.6},
        },
        hovertemplate=(
            "%{y}, %{fullData.name}: %{x:.3~s} ms of the median total<br>by itself: median "
            "%{customdata[0]:.3~s} ms, quartiles %{customdata[1]:.3~s} to "
            "%{customdata[2]:.3~s} ms, n = %{customdata[3]}<br>%{customdata[4]:.3~s} ms a page"
            "<extra></extra>"
        ),
    )


def _whiskers(systems: Sequence[SystemLatency]) -> go.Scatter:
    """The quartiles of the total, around its median."""
    totals = [each.total for each in systems]
    return go.Scatter(
        y=[SYSTEM_NAMES[each.system] for each in systems],
        x=[total.median for total in totals],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [total.q3 - total.median for total in totals],
            "arrayminus": [total.median - total.q1 for total in totals],
            "color": TEXT,
            "thickness": 1.5,
            "width": 4,
        },
        mode="markers",
        marker={"color": "rgba(0,0,0,0)", "size": 1},
        showlegend=False,
        hoverinfo="skip",
    )


def _totals(systems: Sequence[SystemLatency]) -> go.Scatter:
    """The median total in words, right of the whisker."""
    return go.Scatter(
        y=[SYSTEM_NAMES[each.system] for each in systems],
        x=[each.total.q3 for each in systems],
        mode="text",
        text=[f"  {duration(each.total.median)}" for each in systems],
        textposition="middle right",
        showlegend=False,
        hoverinfo="skip",
    )


def _line(cost: Cost, x: np.ndarray, y: list[float], unit: str) -> go.Scatter:
    return go.Scatter(
        x=x.tolist(),
        y=y,
        mode="lines",
        name=SYSTEM_NAMES[cost.system],
        line={
            "color": SYSTEM_COLOURS[cost.system],
            "width": 3 if cost.system == "mini" else 2,
            "dash": _DASHES[cost.system],
        },
        hovertemplate="%{fullData.name}: %{y:.3~s} s at %{x} " + unit + "<extra></extra>",
    )


def _point(cost: Cost, x: float, y: float) -> go.Scatter:
    marker = {
        "color": SYSTEM_COLOURS[cost.system],
        "symbol": _MARKERS[cost.system],
        "size": 9,
        "line": {"color": "#ffffff", "width": 1},
    }
    name = SYSTEM_NAMES[cost.system]
    hover = f"{name}, measured: " + "%{y:.3~s} s at %{x} candidates<extra></extra>"
    return go.Scatter(
        x=[x], y=[y], mode="markers", marker=marker, showlegend=False, hovertemplate=hover
    )


def _crossing(point: float, seconds: float) -> go.Scatter:
    return go.Scatter(
        x=[point],
        y=[seconds],
        mode="markers+text",
        marker={"symbol": "circle-open", "size": 13, "color": TEXT, "line": {"width": 2}},
        # Two lines, and towards the middle: on a phone one line would leave the chart.
        text=[f"mini cheaper<br>from query {first_cheaper(point)} on"],
        textposition="bottom right" if point < _MANY_QUERIES else "bottom left",
        name="break-even, mini and original",
        showlegend=False,
        hovertemplate="mini = original at %{x:.1f} queries<extra></extra>",
    )


def _make_room_below(drawn: go.Figure) -> None:
    """Lower the axis by half a decade: the words under the crossing stand in nobody's way there."""
    seconds = np.concatenate([trace.y for trace in drawn.data])
    drawn.update_yaxes(range=[np.log10(seconds.min()) - 0.5, np.log10(seconds.max()) + 0.1])


def _log_log(drawn: go.Figure, x: str, y: str) -> go.Figure:
    finish(drawn, 340)
    drawn.update_xaxes(type="log", title_text=x, dtick=1, tickformat=",~r")
    drawn.update_yaxes(type="log", title_text=y, dtick=1, tickformat=",~r")
    drawn.update_layout(legend={"y": -0.24})
    return drawn
