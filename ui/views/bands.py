"""Bands: per layer, the share of the query's attention on instruction, page and query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from mrr.errors import InputRejected
from mrr.explain.maps import words
from mrr.types import Explanation
from ui.maps import SCORE
from ui.packing import Json, pack_values, script

# Words that get a button of their own; all of them count in the whole query.
MAX_WORDS = 64


@dataclass(frozen=True, slots=True)
class BandsView:
    """view emits layer_click {layer}; it must never be an input."""

    view: gr.HTML
    trace: gr.Button

    @property
    def outputs(self) -> list[Component]:
        """What render() and blank() fill."""
        return [self.view]


def build() -> BandsView:
    """Place the strip of layers into the surrounding Blocks."""
    view = gr.HTML(
        value=blank("Trace a page to see its layers.")[0],
        html_template="<div class='bands'></div>",
        js_on_load=script("common.js", "bands.js"),
        apply_default_css=False,
        elem_classes="mrr-bands",
    )
    with gr.Row(elem_classes="mrr-tools"):
        trace = gr.Button(
            "Trace this page", size="sm", scale=0, elem_id="trace-for-bands", visible=False
        )
    return BandsView(view, trace)


def render(explanation: Explanation) -> tuple[Json]:
    """Values of BandsView.outputs."""
    trace = explanation.attention
    n_layers, n_heads, n_tokens, _ = trace.mass.shape
    shown = words(trace, explanation.query)[:MAX_WORDS]
    value: Json = {
        "kind": "bands",
        "layers": n_layers,
        "heads": n_heads,
        "band": list(explanation.lens.band),
        "n_tokens": n_tokens,
        "query": list(range(*trace.query_span)),
        "tokens": [
            *({"index": i, "text": w.text, "rows": list(w.rows)} for i, w in enumerate(shown)),
            {"index": SCORE, "text": "answer ▸", "rows": [n_tokens - 1]},
        ],
        "mass": pack_values(trace.mass),
    }
    return (value,)


def blank(sentence: str) -> tuple[Json]:
    """Values of BandsView.outputs while there is nothing to show."""
    return ({"kind": "blank", "sentence": sentence},)


def layer_from(data: object, n_layers: int) -> int:
    """The layer of a layer_click; InputRejected for anything but a layer that ran.

    data: the payload of the event (`gr.EventData._data`), which any client may have forged.
    """
    layer = data.get("layer") if isinstance(data, Mapping) else None
    # bool is an int to Python, but no layer.
    if type(layer) is not int or not 0 <= layer < n_layers:
        raise InputRejected(f"That is none of the {n_layers} layers. Click one again.")
    return layer
