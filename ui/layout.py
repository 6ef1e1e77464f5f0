"""The page: which view stands where. What its events do: ui/wiring.py."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.api import ENDPOINTS, build_api
from ui.components import download, heading, text
from ui.figures import warm
from ui.handlers import Handlers
from ui.housekeeping import Housekeeping
from ui.parts import OtherTabs, RankTab
from ui.views import (
    bands,
    history,
    inspector,
    labels,
    latency,
    layers,
    ranking,
    settings,
    start,
    upload,
)
from ui.wiring import wire
from ui.workbench import Workbench

TITLE = "miniReranker"
_TEMP_FILES_S = 3600
_UP = '<button type="button" class="mrr-link mrr-up">↑ Back to the ranking</button>'
# Between two looks of Gradio for something to do: its own thousand a second take 7% of a core from
# an app that nobody uses.
_POLL_S = 0.01
_MAX_WAITING = 128  # events of all visitors; one more is told that the queue is full


def build_ui(bench: Workbench) -> gr.Blocks:
    """The whole app around one workbench."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(_TEMP_FILES_S, _TEMP_FILES_S)
    ) as demo:
        # A function: every tab makes its own secret, and Gradio, which copies it for each visitor,
        # does not copy along what a bound method is bound to, which in the end is the model.
        state = gr.State(lambda: bench.session(new=True))
        # Gradio would call it once more when the page has loaded, and put the second session in the
        # place of the first, whatever was done with that by then.
        state.load_event_to_attach = None
        bench.visits.of(demo, state)
        build_api(bench, state)  # first, so that no handler takes its names
        side = _side_bar(bench)
        header = start.build_header()
        with gr.Tabs(elem_id="main") as main:
            with gr.Tab("Rank", id="rank"):
                rank_parts = _rank_tab(bench)
            with gr.Tab("Pages", id="pages"):
                pages = upload.build(bench.limits, bench.keep_uploads, bench.hosted)
            with gr.Tab("Latency", id="latency"):
                timing = latency.build()
                with gr.Row(elem_classes="mrr-tools"):
                    gr.Button("Save CSV", size="sm", elem_id="save-latency", scale=0)
                    gr.Button("Save JSON", size="sm", elem_id="save-latency-json", scale=0)
                    gr.Button("Save trace (Perfetto)", size="sm", elem_id="save-trace", scale=0)
            with gr.Tab("History", id="history"):
                heading("Quality, by relevance labels")
                label_view = labels.build()
                heading("Queries of this session")
                history_view = history.build()
        views = RankTab(
            tabs=main,
            header=header,
            labels=label_view,
            history=history_view,
            download=download(),
            **rank_parts,
        )
        handlers = Handlers(bench, views)
        wire(demo, state, Housekeeping(bench, OtherTabs(pages, timing, side), handlers))
    for function in demo.fns.values():
        if function.api_name not in ENDPOINTS:
            function.api_visibility = "private"
    # Off Spaces, api_open would let a POST run handlers past the queue and its limits.
    demo.queue(max_size=_MAX_WAITING, api_open=False, default_concurrency_limit=4)
    demo._queue.sleep_when_free = _POLL_S
    return demo


def _side_bar(bench: Workbench) -> settings.SettingsView:
    with gr.Sidebar(open=False, width=340, position="right", elem_id="settings"):
        return settings.build(bench.engines.load_model is not None)


def _rank_tab(bench: Workbench) -> dict[str, Any]:
    with gr.Row(elem_classes="mrr-search", equal_height=True):
        query = gr.Textbox(
            placeholder="What are you looking for?", show_label=False, label="Query",
            container=False, scale=8, min_width=160, max_length=2000, max_lines=4, autofocus=True,
            elem_id="query",
        )  # fmt: skip
        button = gr.Button("Rank", variant="primary", scale=1, min_width=80, elem_id="rank")
    meanwhile = text("meanwhile")
    samples = start.build_samples(bench)
    with gr.Row(visible=False, elem_id="results") as results:
        with gr.Column(scale=5, min_width=330):
            ranked = ranking.build()
        with gr.Column(scale=7, min_width=330, elem_classes="mrr-sticky", elem_id="reasons"):
            gr.HTML(_UP, apply_default_css=False)
            chosen = text("chosen")
            with gr.Tabs(elem_id="why") as why:
                with gr.Tab("Page", id="page"):
                    page = inspector.build()
                with gr.Tab("Layers", id="layers"):
                    curves = layers.build()
                    with gr.Row(elem_classes="mrr-tools"):
                        gr.Button("Save CSV", size="sm", elem_id="save-layers", scale=0)
                        gr.Button("Save JSON", size="sm", elem_id="save-layers-json", scale=0)
                with gr.Tab("Bands", id="bands"):
                    strip = bands.build()
        unseen = warm()
    gallery = start.build_gallery()
    query.submit(None, js="() => document.activeElement && document.activeElement.blur()")
    return {
        "query": query, "button": button, "meanwhile": meanwhile, "samples": samples,
        "gallery": gallery, "results": results, "ranking": ranked, "chosen": chosen, "why": why,
        "inspector": page, "layers": curves, "bands": strip, "warm": unseen,
    }  # fmt: skip
