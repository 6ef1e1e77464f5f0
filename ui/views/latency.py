"""Latency: the three systems on one axis, what more candidates cost, and when caching pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import gradio as gr
from gradio.components import Component

from mrr.types import SYSTEM_NAMES
from ui.components import running
from ui.costs import break_even_sentence, caching_of
from ui.figures import chart
from ui.latency_figures import candidates_figure, queries_figure, stages_figure
from ui.markup import duration, empty, esc, nbytes, note, table

if TYPE_CHECKING:
    from mrr.measure.latency import LatencyReport, StageCost, SystemLatency
    from mrr.measure.spread import Spread

_EMPTY = (
    "Measure times every system on this machine, with your pages. That takes a minute or two on "
    "two cores: original reads every page anew."
)


@dataclass(frozen=True, slots=True)
class LatencyView:
    """The buttons, the headline, three charts and the numbers behind them."""

    measure: gr.Button
    stop: gr.Button
    busy: gr.HTML
    headline: gr.HTML
    stages: gr.Plot
    candidates: gr.Plot
    queries: gr.Plot
    table: gr.HTML

    @property
    def outputs(self) -> list[Component]:
        """What render() and blank() fill, in this order."""
        return [self.headline, self.stages, self.candidates, self.queries, self.table]


def build() -> LatencyView:
    """Place the view into the surrounding Blocks."""
    with gr.Row():
        measure = gr.Button(
            "Measure on this machine",
            elem_id="measure",
            size="sm",
            scale=0,
            min_width=210,
            variant="primary",
        )
        stop = gr.Button(
            "Stop after this repeat", size="sm", scale=0, elem_id="stop-measuring", visible=False
        )
    busy = running()
    headline = gr.HTML(empty(_EMPTY), apply_default_css=False, elem_id="latency-says")
    stages = chart("Time of each stage, by system; below as a table")
    with gr.Row():
        with gr.Column(min_width=320):
            candidates = chart("Time of a query against the number of candidates, by system")
        with gr.Column(min_width=320):
            queries = chart("Time of caching and asking against the number of queries, by system")
    return LatencyView(
        measure, stop, busy, headline, stages, candidates, queries, gr.HTML(apply_default_css=False)
    )


def render(report: LatencyReport, measured_with: str) -> tuple[object, ...]:
    """Values of LatencyView.outputs. measured_with: model and settings, in words."""
    figures = (stages_figure(report), candidates_figure(report), queries_figure(report))
    return (
        headline(report, measured_with),
        *(gr.update(value=figure, visible=True) for figure in figures),
        numbers(report),
    )


def blank(sentence: str = _EMPTY) -> tuple[object, ...]:
    """Values of LatencyView.outputs while there is nothing to show."""
    hidden = gr.update(value=None, visible=False)
    return (empty(sentence), hidden, hidden, hidden, "")


def headline(report: LatencyReport, measured_with: str) -> str:
    """The result in one sentence, or that the machine was too noisy for one; then how measured.

    measured_with: model and settings, in words.
    """
    how = (
        f"Times: median of {report.repeats}, {report.state} after {report.warmup} warm-up, "
        f"{report.n_candidates} candidates, {measured_with}, on {report.machine}. "
        f"Query: “{report.query}”."
    )
    notes = "".join(note(each) for each in report.notes)
    said = f'<p class="mrr-headline">{_claim(report)}</p>'
    return f'<div class="mrr">{said}{note(break_even_sentence(report))}{note(how)}{notes}</div>'


def numbers(report: LatencyReport) -> str:
    """Every charted value: one column a system, then each stage, with quartiles."""
    columns = [_totals(report, each) for each in report.systems]
    rows = [[esc(name), *(column[name] for column in columns)] for name in columns[0]]
    names = [SYSTEM_NAMES[each.system] for each in report.systems]
    totals = table(["", *names], rows, numeric=range(1, len(names) + 1))
    stages = table(
        ["system", "stage", "median", "quartiles", "per page"],
        [
            [f"{SYSTEM_NAMES[each.system]}{what}", esc(stage.stage), *_stage_cells(stage)]
            for what, group in (("", report.systems), (", caching a page", report.caching))
            for each in group
            for stage in each.stages
        ],
        numeric=range(2, 5),
    )
    own = note("Medians of stages need not add up to the median total, which the bars split.")
    folded = (
        f'<details class="mrr"><summary>Every stage as a table</summary>{own}{stages}</details>'
    )
    return totals + folded


def _claim(report: LatencyReport) -> str:
    noisy = [SYSTEM_NAMES[each.system] for each in report.systems if each.total.noisy]
    if noisy:
        names = ", ".join(noisy)
        return (
            f"No ratio is claimed: {names} varied too much between repeats, so take those in the "
            "table as rough. Close other work and measure again."
        )
    mini = next((each for each in report.systems if each.system == "mini"), None)
    if mini is None:
        return "Mini was not measured."
    start = f"<b>{duration(mini.total.median)}</b> a query with mini"
    others = [
        f"{SYSTEM_NAMES[system]} takes <b>{_times(ratio)}</b> as long"
        for system, ratio in report.times_mini.items()
        if system in SYSTEM_NAMES
    ]
    return f"{start}; {', '.join(others)}." if others else f"{start}."


def _times(ratio: Spread) -> str:
    between = f" ({ratio.q1:.3g} to {ratio.q3:.3g})" if ratio.n > 1 else ""
    return f"{ratio.median:.3g} ×{between}"


def _totals(report: LatencyReport, each: SystemLatency) -> dict[str, str]:
    """The table's column of one system, by the name of the row."""
    caching, ratio = caching_of(report, each.system), report.times_mini.get(each.system)
    pages = f"{each.n_measured}, scaled to {report.n_candidates}"
    return {
        "a query, median": duration(each.total.median),
        "quartiles": _quartiles(each.total),
        "times mini, median of pairs": f"{ratio.median:.3g} ×" if ratio else "1 ×",
        "repeats": str(each.total.n),
        "pages timed": pages if each.scaled else str(each.n_measured),
        "first call, cold, unscaled": duration(sum(each.first_call.values())),
        "read from disk a query": nbytes(each.bytes_read),
        "caching a page, once": duration(caching.total.median) if caching else "–",
        "K/V stored a page": nbytes(caching.nbytes) if caching else "–",
    }


def _stage_cells(stage: StageCost) -> list[str]:
    return [duration(stage.ms.median), _quartiles(stage.ms), duration(stage.ms_per_page)]


def _quartiles(ms: Spread) -> str:
    return f"{duration(ms.q1)} to {duration(ms.q3)}" if ms.n > 1 else "one repeat"
