"""Layers: every candidate's relevance after every layer, and the layers that were never run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr
import numpy as np
import plotly.graph_objects as go
from gradio.components import Component

from mrr.config import layer_range
from mrr.types import Lens
from ui.colour import BAND, DENSE, MINI
from ui.components import running
from ui.describe import LAYERS_ARE
from ui.figures import chart, finish, plain
from ui.lenses import Mode, full, ran, settled_sentence
from ui.markup import empty, esc, note, table

_HEIGHT = 420
_AXIS = {
    "logit": "logit, yes − no",
    "probability": "probability of yes",
    "rank": "rank among the candidates",
}
_CAVEAT = (
    "A raw logit lens: each layer's state through the model's last norm and its yes/no rows. "
    "Before the band no page is seen, so all candidates coincide there. "
    f"Only the exit's value is the score. {LAYERS_ARE}"
)


@dataclass(frozen=True, slots=True)
class LayersView:
    """The chart, what it says in one sentence, the same numbers as a table, and the controls."""

    view: gr.Plot
    sentence: gr.HTML
    table: gr.HTML
    mode: gr.Radio
    run: gr.Button
    stop: gr.Button
    busy: gr.HTML
    trace: gr.Button

    @property
    def outputs(self) -> list[Component]:
        """What render() and blank() fill, in this order."""
        return [self.view, self.sentence, self.table]


def build() -> LayersView:
    """Place the view into the surrounding Blocks."""
    with gr.Row():
        mode = gr.Radio(
            ["logit", "probability", "rank"], value="logit", show_label=False, container=False,
            elem_classes="mrr-seg", scale=0, min_width=230,
        )  # fmt: skip
        trace = gr.Button(
            "Trace this page", size="sm", scale=0, elem_id="trace-for-layers", visible=False
        )
        run = gr.Button("Add the full pass", size="sm", scale=0, elem_id="trace-layers")
        stop = gr.Button(
            "Stop after this page", size="sm", scale=0, elem_id="stop-layers", visible=False
        )
    busy = running()
    sentence = gr.HTML(
        empty("Trace the candidates to see their layers."),
        apply_default_css=False,
        elem_id="layers-say",
    )
    plot = chart("Relevance after each layer, one line a page; below as a table")
    with gr.Accordion("Layers as a table", open=False):
        values = gr.HTML(apply_default_css=False)
    return LayersView(plot, sentence, values, mode, run, stop, busy, trace)


def render(
    lenses: Mapping[str, Lens],
    labels: Mapping[str, str],
    selected: str | None,
    *,
    mode: Mode = "logit",
) -> tuple[object, str, str]:
    """Values of LayersView.outputs; lenses and labels by page id, in the order of candidates."""
    if not lenses:
        return blank("Trace the candidates to see their layers.")
    drawn = figure(lenses, labels, selected, mode=mode)
    said = "".join(words(lenses, mode))
    return gr.update(value=drawn, visible=True), said, numbers(lenses, labels, mode=mode)


def blank(sentence: str) -> tuple[object, str, str]:
    """Values of LayersView.outputs while there is nothing to show."""
    return gr.update(value=None, visible=False), empty(sentence), ""


def figure(
    lenses: Mapping[str, Lens],
    labels: Mapping[str, str],
    selected: str | None,
    *,
    mode: Mode = "logit",
) -> go.Figure:
    """One solid line a candidate over the layers that ran; dashed from the exit on where a
    separate full pass was run. The selected candidate is strong and drawn last."""
    one = next(iter(lenses.values()))
    drawn = go.Figure()
    solid, dashed = ran(lenses, mode), full(lenses, mode)
    for page_id in sorted(lenses, key=lambda page_id: page_id == selected):
        strong = page_id == selected
        name = plain(labels.get(page_id, page_id))
        drawn.add_trace(_line(name, solid[page_id], 0, strong))
        if page_id in dashed:
            beyond = dashed[page_id][one.exit_layer :]
            drawn.add_trace(_line(name, beyond, one.exit_layer, strong, dash=True))
    _mark_layers(drawn, one)
    _name_lines(drawn, one, bool(dashed), selected in lenses)
    finish(drawn, _HEIGHT)
    drawn.update_xaxes(title_text="after layer", dtick=_step(one, dashed), range=_span(one, dashed))
    drawn.update_yaxes(title_text=_AXIS[mode])
    if mode == "rank":
        drawn.update_yaxes(autorange="reversed", dtick=max(1, len(lenses) // 10))
    # Room at the top for plotly's own buttons, and under them for the band and the exit.
    drawn.update_layout(hovermode="closest", margin={"t": 46})
    return drawn


def words(lenses: Mapping[str, Lens], mode: Mode = "logit") -> tuple[str, str]:
    """When the order settled, and what the curves are, as HTML."""
    return f'<p class="mrr">{esc(settled_sentence(lenses, mode))}</p>', note(_CAVEAT)


def numbers(lenses: Mapping[str, Lens], labels: Mapping[str, str], *, mode: Mode) -> str:
    """The chart's values as an HTML table: the band's layers, then the full pass's last one."""
    one = next(iter(lenses.values()))
    solid, dashed = ran(lenses, mode), full(lenses, mode)
    layers = range(one.band[0], one.exit_layer)
    header = ["page", *(f"layer {layer}" for layer in layers)]
    if dashed:
        header.append("last layer, full pass")
    rows = []
    for page_id in lenses:
        row = [esc(labels.get(page_id, page_id)), *(_said(solid[page_id][i], mode) for i in layers)]
        if dashed:
            row.append(_said(dashed[page_id][-1], mode) if page_id in dashed else "not run")
        rows.append(row)
    return table(header, rows, numeric=range(1, len(header)))


def _line(
    name: str, values: np.ndarray, start: int, strong: bool, *, dash: bool = False
) -> go.Scatter:
    kind = "never run by mini, from a separate full pass" if dash else "run by mini"
    return go.Scatter(
        x=list(range(start, start + len(values))),
        y=[None if np.isnan(value) else float(value) for value in values],
        name=name,
        mode="lines",
        line={
            "color": MINI if strong else DENSE,
            "width": 3 if strong else 1.3,
            "dash": "dash" if dash else "solid",
        },
        opacity=1.0 if strong else 0.8,
        showlegend=False,
        meta=kind,
        hovertemplate="%{fullData.name}<br>layer %{x}: %{y:.3~f}<br>%{meta}<extra></extra>",
    )


def _mark_layers(drawn: go.Figure, one: Lens) -> None:
    """The band as a shade, the exit as a line, both named at the top."""
    start, end = one.band
    drawn.add_vrect(start - 0.5, end - 0.5, fillcolor=BAND, line_width=0, layer="below")
    drawn.add_vline(one.exit_layer - 1, line={"color": MINI, "width": 1.5, "dash": "dot"})
    for x, text, anchor in (
        (start - 0.5, f"band {layer_range(one.band)}", "left"),
        (one.exit_layer - 1, "exit", "left"),
    ):
        drawn.add_annotation(
            x=x, y=1, yref="paper", text=text, showarrow=False, xanchor=anchor, yanchor="bottom"
        )


def _name_lines(drawn: go.Figure, one: Lens, has_dashed: bool, has_selected: bool) -> None:
    """A legend of kinds of line instead of one entry a page; its traces hold no data."""
    kinds = [("other candidates" if has_selected else "candidates", DENSE, "solid")]
    if has_selected:
        kinds.insert(0, ("selected page", MINI, "solid"))
    if has_dashed:
        kinds.append((f"after layer {one.exit_layer - 1}: never run by mini", DENSE, "dash"))
    for name, colour, dash in kinds:
        line = {"color": colour, "dash": dash, "width": 2}
        drawn.add_trace(go.Scatter(x=[None], y=[None], mode="lines", name=name, line=line))


def _n_layers(one: Lens, dashed: Mapping[str, np.ndarray]) -> int:
    return max([one.exit_layer, *(len(values) for values in dashed.values())])


def _step(one: Lens, dashed: Mapping[str, np.ndarray]) -> int:
    return 1 if _n_layers(one, dashed) <= 16 else 4


def _span(one: Lens, dashed: Mapping[str, np.ndarray]) -> list[float]:
    return [-0.5, _n_layers(one, dashed) - 0.5]


def _said(value: float, mode: Mode) -> str:
    if np.isnan(value):
        return "tied"
    return f"{value:.0f}" if mode == "rank" else f"{value:.3f}".replace("-", "−")
