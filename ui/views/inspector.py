"""The page inspector: what was kept of the page, where attention went, what hiding blocks does."""

from __future__ import annotations

import re
from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from mrr.explain.verdict import signed
from mrr.types import Explanation
from ui.components import running
from ui.maps import attention_payload, grid_disagreement, keep_payload, occlusion_payload
from ui.markup import note as small_print
from ui.packing import Json, script

_IMAGE_URI = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True)
class InspectorView:
    """The inspector and the controls that need the engine; all others live in the browser.

    view must never be an input: what it holds is for the browser.
    """

    view: gr.HTML
    note: gr.HTML
    keep_ratio: gr.Slider
    pruner: gr.Radio
    reencode: gr.Button
    occlude: gr.Button
    stop: gr.Button
    busy: gr.HTML
    trace: gr.Button

    @property
    def outputs(self) -> list[Component]:
        """What render() and blank() fill, in this order."""
        return [self.view, self.note]


def build() -> InspectorView:
    """Place the inspector and its engine controls into the surrounding Blocks."""
    view = gr.HTML(
        value=_sentence("blank", "Select a page."),
        html_template="<div class='pi'></div>",
        js_on_load=script(
            "common.js",
            "palette.js",
            "page_model.js",
            "page_margins.js",
            "page_draw.js",
            "page_control.js",
            "page_heads.js",
            "page_panels.js",
            "page_controls.js",
            "page_table.js",
            "page_pointer.js",
            "inspector.js",
        ),
        apply_default_css=False,
        elem_classes="mrr-inspector",
    )
    with gr.Row(equal_height=True):
        trace = gr.Button("Trace this page", size="sm", elem_id="trace-page")
        occlude = gr.Button("Measure occlusion", size="sm", elem_id="occlude")
        stop = gr.Button("Stop after this pass", size="sm", elem_id="stop-occlusion", visible=False)
    busy = running()
    with gr.Accordion("Keep more or fewer tokens of this page", open=False):
        with gr.Row(equal_height=True):
            keep_ratio = gr.Slider(
                0.05,
                1.0,
                value=0.5,
                step=0.05,
                label="Keep ratio",
                min_width=180,
                elem_id="page-keep-ratio",
            )
            pruner = gr.Radio(
                ["embedder", "uniform", "random"], value="embedder", label="Chosen by"
            )
        reencode = gr.Button("Encode again and compare", size="sm", elem_id="reencode")
        note = gr.HTML(apply_default_css=False)
    return InspectorView(view, note, keep_ratio, pruner, reencode, occlude, stop, busy, trace)


def render(
    explanation: Explanation,
    image_uri: str,
    *,
    mode: str | None = None,
    note: str = "",
    again: bool = False,
) -> tuple[Json, str]:
    """Values of InspectorView.outputs.

    mode: None leaves the user where they are. again: this is the page as it was encoded again,
    beside the one that was ranked. Raises ValueError unless image_uri is an inline PNG,
    JPEG or WebP.
    """
    if not _IMAGE_URI.fullmatch(image_uri):
        raise ValueError("The page image must be an inline PNG, JPEG or WebP data URI.")
    message = small_print(note)
    disagreement = grid_disagreement(explanation)
    if disagreement:
        return _sentence("error", disagreement), message
    keep, page = explanation.keep, explanation.page
    rows, columns = keep.kept.shape
    occlusion = explanation.occlusion
    if occlusion is not None and not occlusion.measured.any():
        occlusion = None  # stopped before the first pass: there is nothing to show
    value: Json = {
        "kind": "page",
        "page_id": page.page_id,
        "label": page.label,
        "query": explanation.query,
        "image": image_uri,
        "width": page.width,
        "height": page.height,
        "rows": rows,
        "cols": columns,
        "keep": keep_payload(keep),
        "attention": attention_payload(explanation.attention, explanation.query, keep.kept),
        "occlusion": None if occlusion is None else occlusion_payload(occlusion, keep.kept),
        "mode": mode,
        "again": again,
    }
    return value, message


def blank(sentence: str) -> tuple[Json, str]:
    """Values of InspectorView.outputs while there is nothing to show."""
    return _sentence("blank", sentence), ""


def keep_note(before: Explanation, after: Explanation) -> str:
    """What encoding a page again with other tokens did to its score, in one sentence."""
    kept = after.keep.kept
    change = signed(after.logit - before.logit)
    return (
        f"Kept {kept.sum()} of {kept.size} visual tokens ({kept.mean():.0%}, {after.keep.pruner}): "
        f"logit {signed(before.logit)} → {signed(after.logit)} ({change})."
    )


def _sentence(kind: str, sentence: str) -> Json:
    return {"kind": kind, "sentence": sentence}
