"""The page inspector: what was kept of the page, where attention went, what hiding blocks does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from mrr.explain.verdict import signed
from mrr.types import Explanation, Page
from ui.components import running
from ui.maps import attention_payload, grid_disagreement, keep_payload, occlusion_payload
from ui.markup import esc, table
from ui.packing import Json, script
from ui.run import Run
from ui.terms import title

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
    controls: gr.Button
    as_ranked: gr.Button
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
            "page_picture.js",
            "page_pointer.js",
            "inspector.js",
        ),
        apply_default_css=False,
        elem_classes="mrr-inspector",
    )
    with gr.Row(equal_height=True):
        trace = gr.Button("Trace this page", size="sm", elem_id="trace-page", visible=False)
        occlude = gr.Button("Measure occlusion", size="sm", elem_id="occlude")
        stop = gr.Button("Stop after this pass", size="sm", elem_id="stop-occlusion", visible=False)
    busy = running()
    with gr.Accordion("Keep more or fewer tokens of this page", open=False, elem_id="encode-again"):
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
        with gr.Row(equal_height=True):
            reencode = gr.Button("Encode again and compare", size="sm", elem_id="reencode")
            controls = gr.Button("All three at this ratio", size="sm", elem_id="controls")
            as_ranked = gr.Button("Show as ranked", size="sm", elem_id="as-ranked")
        note = gr.HTML(apply_default_css=False)
    return InspectorView(
        view, note, keep_ratio, pruner, reencode, controls, as_ranked, occlude, stop, busy, trace
    )


def render(
    explanation: Explanation,
    image_uri: str,
    *,
    mode: str | None = None,
    tried: Sequence[Explanation] = (),
    again: bool = False,
) -> tuple[Json, str]:
    """Values of InspectorView.outputs.

    mode: None leaves the user where they are. tried: this page as it was ranked, then as it was
    encoded again. again: this is one of the latter. Raises ValueError unless image_uri is an inline
    PNG, JPEG or WebP.
    """
    _check(image_uri)
    message = keep_table(tried)
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


def untraced(page: Page, image_uri: str, sentence: str, late: str = "") -> tuple[Json, str]:
    """Values of InspectorView.outputs while only the page itself is known.

    sentence: why. late: what is added to it where that lasts.
    """
    _check(image_uri)
    value: Json = {
        **_sentence("picture", sentence),
        "late": late,
        "label": page.label,
        "image": image_uri,
        "width": page.width,
        "height": page.height,
    }
    return value, ""


def heading(run: Run, page_id: str) -> str:
    """Which page the reasons are of: its rank, its name and its score."""
    hit = next((hit for hit in run.mini.hits if hit.page.page_id == page_id), None)
    if hit is None:
        return ""
    return (
        f'<h2 class="mrr mrr-num">{hit.rank} · {esc(hit.page.label)} · '
        f"<span {title('score')}>{hit.score:.3f}</span></h2>"
    )


def blank(sentence: str) -> tuple[Json, str]:
    """Values of InspectorView.outputs while there is nothing to show."""
    return _sentence("blank", sentence), ""


def keep_table(tried: Sequence[Explanation]) -> str:
    """What other tokens did to a page's score; empty where none were tried."""
    if len(tried) < 2:
        return ""
    ranked = tried[0]
    rows = [
        (
            "as ranked" if each is ranked else "encoded again",
            each.keep.pruner,
            f"{each.keep.kept.sum():,} of {each.keep.kept.size:,} ({each.keep.kept.mean():.0%})",
            signed(each.logit),
            "" if each is ranked else signed(each.logit - ranked.logit),
        )
        for each in tried
    ]
    return table(("", "chosen by", "tokens kept", "logit", "change"), rows, numeric=(2, 3, 4))


def _check(image_uri: str) -> None:
    if not _IMAGE_URI.fullmatch(image_uri):
        raise ValueError("The page image must be an inline PNG, JPEG or WebP data URI.")


def _sentence(kind: str, sentence: str) -> Json:
    return {"kind": kind, "sentence": sentence}
