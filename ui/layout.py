"""The page: which view stands where, and which event calls which handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import gradio as gr
from anyio import to_thread

from ui.api import ENDPOINTS, build_api
from ui.components import download, heading, text
from ui.figures import warm
from ui.handlers import Handlers
from ui.housekeeping import Housekeeping
from ui.parts import OtherTabs, RankTab
from ui.session import Session
from ui.tabs import Tabs
from ui.told import told
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
from ui.workbench import Workbench

TITLE = "miniReranker"
_WARM_TICK_S = 1.0
_TEMP_FILES_S = 3600
_UP = '<button type="button" class="mrr-link mrr-up">↑ Back to the ranking</button>'
# On a phone the results begin below the samples. The address names the query of the ranking that is
# shown; behind its #, no server is told of it.
_TO_RESULTS = """() => {
  const q = document.querySelector("#summary [data-asked]")?.dataset.asked;
  const there = "#" + new URLSearchParams({ q });
  if (q && history.state?.asks) history.replaceState(null, "", there);
  else if (q && location.hash !== there) history.pushState(null, "", there);
  const narrow = matchMedia("(max-width: 760px)").matches;
  if (narrow) document.getElementById("results")?.scrollIntoView();
}"""
# Each takes minutes, and shows from the first moment on that it waits for others; but it holds one
# of the forty threads that Gradio has for everything.
_MAX_UPLOADS = 12
_MAX_WAITING = 128  # events of all visitors; one more is told that the queue is full


def build_ui(bench: Workbench) -> gr.Blocks:
    """The whole app around one workbench."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(_TEMP_FILES_S, _TEMP_FILES_S)
    ) as demo:
        states = _States(demo)
        tabs = Tabs(bench.remove_scope, states)
        # A function: every tab makes its own secret, and Gradio, which copies it for each visitor,
        # does not copy along what a bound method is bound to, which in the end is the model.
        state = gr.State(lambda: bench.session())
        build_api(bench, tabs, state)  # first, so that no handler takes its names
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
        handlers = Handlers(bench, tabs, views)
        house = Housekeeping(bench, tabs, OtherTabs(pages, timing, side), handlers)
        _wire_opening(demo, state, handlers, house)
        _wire_ranking(state, house, handlers)
        _wire_detail(state, handlers)
        _wire_pages(state, house, handlers)
        _wire_settings(state, house, handlers)
        _wire_exports(demo, state, house)
        demo.unload(_closing(tabs, states))
    for function in demo.fns.values():
        if function.api_name not in ENDPOINTS:
            function.api_visibility = "private"
    # Off Spaces, api_open would let a POST run handlers past the queue and its limits.
    demo.queue(max_size=_MAX_WAITING, api_open=False, default_concurrency_limit=4)
    return demo


class _States:
    """Gradio's states, with the outputs of every component: it would keep them for good."""

    def __init__(self, demo: gr.Blocks) -> None:
        self._demo = demo

    def __contains__(self, session_hash: str) -> bool:
        return session_hash in self._demo.state_holder

    def drop(self, session_hash: str) -> None:
        holder = self._demo.state_holder
        holder.session_data.pop(session_hash, None)
        holder.time_last_used.pop(session_hash, None)


def _closing(tabs: Tabs, states: _States) -> Callable[[gr.Request], Awaitable[None]]:
    async def closed(request: gr.Request) -> None:
        await to_thread.run_sync(tabs.closed, request.session_hash)
        # On Gradio's event loop, as all that looks up a state, so that nothing does meanwhile.
        states.drop(request.session_hash or "")

    return closed


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


def _wire_opening(
    demo: gr.Blocks, state: gr.State, handlers: Handlers, house: Housekeeping
) -> None:
    views = handlers.views
    opened = [views.header, views.gallery, views.labels.scores, views.history.runs]
    clock = gr.Timer(_WARM_TICK_S, active=not handlers.bench.examples.finished)
    warmed = [*house.shows_stored, clock]

    def warm(session: Session) -> dict[Any, Any]:
        if not handlers.bench.opening.done:
            return {}
        examples = handlers.bench.examples
        finished = examples.finished  # before they are counted: it may be the last one
        stop = {clock: gr.Timer(active=False)} if finished else {}
        if examples.steps == session.n_examples_seen:
            return stop  # what somebody does meanwhile is not overwritten
        return {**house.stored(session), **stop}

    _on(demo.load, handlers.open, state, opened)
    _on(demo.load, house.stored, state, house.shows_stored)
    _on(demo.load, house.switches, state, house.views.settings.of_model)
    _on(clock.tick, warm, state, warmed)


def _wire_ranking(state: gr.State, house: Housekeeping, handlers: Handlers) -> None:
    views, rank = handlers.views, handlers.views.ranking
    shown_as = [rank.view, rank.only_changes]
    starts = []
    for event, handler, asked in (
        (views.query.submit, handlers.rank, [views.query]),
        (views.button.click, handlers.rank, [views.query]),
        (views.samples.sample, handlers.rank_sample, []),
        (views.history.runs.reopen, handlers.reopen, []),
    ):
        inputs = [*asked, *shown_as, state]
        # Each: the last query wins, also while one is waiting.
        asked_for = _on(event, handler, inputs, views.ranked, busy=[views.query], each=True)
        starts.append(asked_for)
    _on(rank.halt.click, handlers.stop_encoding, state, rank.halt)
    for ranked in starts:
        ranked.success(None, js=_TO_RESULTS)
        _on(ranked.success, house.stored_since, state, house.shows_stored, each=True)
        traced = _on(ranked.success, handlers.detail.trace_selected, state, views.detail, each=True)
        # Last: while the browser runs plotly for the first time, it draws nothing else.
        _on(traced.success, lambda: gr.update(visible=True), None, views.warm)
    for change in (rank.view.change, rank.only_changes.change):
        _on(change, handlers.redraw, [*shown_as, state], rank.hits)
    ticked = [rank.hits, views.labels.scores]
    _on(rank.hits.tick, handlers.tick, [*shown_as, state], ticked, in_order=True)
    _on(
        rank.system.input,
        handlers.choose_dense,
        [rank.system, *shown_as, state],
        [rank.hits, rank.estimate, rank.only_changes, rank.compare],
    )
    compared = _on(
        rank.compare.click,
        handlers.compare,
        [rank.system, *shown_as, state],
        [
            rank.hits,
            rank.estimate,
            rank.only_changes,
            rank.compare,
            rank.stop,
            rank.system,
            rank.summary,
            views.labels.scores,
            views.history.runs,
            *views.detail,
        ],
    )
    _on(compared.success, handlers.detail.trace_selected, state, views.detail, each=True)
    _on(rank.stop.click, handlers.stop_comparing, state, rank.stop)


def _wire_detail(state: gr.State, handlers: Handlers) -> None:
    detail, views = handlers.detail, handlers.views
    page, changed = views.inspector, _changed_by_removal(views)
    picked = _on(views.ranking.hits.pick, handlers.pick, state, changed, in_order=True)
    _on(picked.success, detail.trace_selected, state, views.detail, each=True)
    for view in (page, views.layers, views.bands):
        _on(view.trace.click, detail.trace, state, views.detail, busy=[view.view])
    controls = (page.occlude, page.stop, page.busy)
    _stoppable(state, controls, detail.occlude, detail.stop_occluding, views.detail)
    _on(
        page.reencode.click,
        detail.reencode,
        [page.keep_ratio, page.pruner, state],
        page.outputs,
        busy=[page.view],
        each=True,
    )
    _on(
        page.controls.click,
        detail.try_controls,
        [page.keep_ratio, state],
        page.outputs,
        busy=[page.view],
        each=True,
    )
    _on(page.as_ranked.click, detail.as_ranked, state, views.detail, busy=[page.view])
    curves = views.layers
    _on(curves.mode.change, detail.show_curves_as, [curves.mode, state], curves.outputs)
    controls = (curves.run, curves.stop, curves.busy)
    _stoppable(state, controls, detail.trace_dense, detail.stop_tracing, curves.outputs)
    _on(views.bands.view.layer_click, detail.layer, state, [views.why])


def _wire_pages(state: gr.State, house: Housekeeping, handlers: Handlers) -> None:
    view, rank = house.views.upload, handlers.views.ranking
    _on(
        view.files.upload,
        house.add,
        [view.files, view.page_range, state],
        [view.progress, view.cancel, view.files, handlers.views.meanwhile, *house.shows_stored],
        each=True,  # a second drop meanwhile is refused in words, not lost
        n_at_once=_MAX_UPLOADS,
    )
    _on(view.cancel.click, house.cancel, state, view.cancel)
    for removed in (
        _on(view.pages.remove, house.remove, state, house.shows_stored, each=True),
        _on(view.pages.remove_document, house.remove_document, state, house.shows_stored),
        _on(view.pages.remove_all, house.remove_all, state, house.shows_stored),
    ):
        shown_as = [rank.view, rank.only_changes, state]
        changed = _changed_by_removal(handlers.views)
        left = _on(removed.success, handlers.after_removal, shown_as, changed, each=True)
        _on(left.success, handlers.detail.trace_selected, state, handlers.views.detail, each=True)


def _changed_by_removal(views: RankTab) -> list[Any]:
    """Where a page that is gone leaves the ranking that is shown."""
    rank = views.ranking
    dense = [rank.estimate, rank.only_changes, rank.compare]
    return [rank.summary, rank.hits, *dense, *views.detail]


def _wire_settings(state: gr.State, house: Housekeeping, handlers: Handlers) -> None:
    view, timing = house.views.settings, house.views.latency
    depth = [view.exit_layer, view.band_start, view.band_end]
    switches = [*depth, view.keep_ratio, view.pruner]
    _on(view.preset.input, house.preset, [view.preset, state], switches)
    # Changes, also the app's own: what is typed is kept within its limits after every other event.
    moved = [switch.change for switch in switches]  # type: ignore[attr-defined]
    moved += [view.kv_dtype.input, view.model.input, view.instruction.blur]
    plan = [view.plan, view.preset]
    _on(partial(gr.on, moved), house.plan, [state, *view.values], plan, last=True, raw=True)
    applied = _on(
        view.apply.click,
        house.apply,
        [state, *view.values],
        [
            view.plan,
            view.stop,
            handlers.views.meanwhile,
            *house.shows_stored,
            *depth,
            *timing.outputs,
        ],
        raw=True,
    )
    _on(view.stop.click, house.cancel, state, view.stop)
    rank = handlers.views.ranking
    again = _on(
        applied.success,
        handlers.rank_changed,
        [rank.view, rank.only_changes, state],
        handlers.views.ranked,
    )
    _on(again.success, handlers.detail.trace_selected, state, handlers.views.detail)
    _on(again.success, house.stored_since, state, house.shows_stored, each=True)


def _wire_exports(demo: gr.Blocks, state: gr.State, house: Housekeeping) -> None:
    by_id: dict[str, Any] = {b.elem_id: b for b in demo.blocks.values() if b.elem_id}
    for elem_id, export in house.exports().items():
        _on(by_id[elem_id].click, house.saving(export), state, house.ranking.views.download)
    timing = house.views.latency
    controls = (timing.measure, timing.stop, timing.busy)
    _stoppable(state, controls, house.measure, house.stop_measuring, timing.outputs)


def _stoppable(
    state: gr.State,
    controls: tuple[gr.Button, gr.Button, gr.HTML],
    work: Any,
    halt: Any,
    outputs: list[Any],
) -> None:
    """Wire long work: the button that starts it, the one that stops it, and where it shows."""
    start, stop, busy = controls
    _on(start.click, work, state, [*outputs, *controls], busy=[busy])
    _on(stop.click, halt, state, stop)


def _on(
    event: Any,
    handler: Any,
    inputs: Any,
    outputs: Any,
    busy: Any = None,
    each: bool = False,
    in_order: bool = False,
    last: bool = False,
    raw: bool = False,
    n_at_once: int | None = None,
) -> Any:
    """Wire one event: its errors are told, and progress shows only where it helps.

    each: while one is being handled, those that follow are taken too; Gradio drops them otherwise.
    in_order: one after the other, for what is quick and where the last one must win. last: of
    those that come meanwhile only the last one is taken, as while somebody types. raw: as the
    browser sends it; Gradio would fail at a slider whose number is missing or out of its range.
    n_at_once: of all visitors, where that is not what it is for other events.
    """
    mode = "always_last" if last else "multiple" if each or in_order else None
    return event(
        told(handler),
        inputs,
        outputs,
        show_progress="minimal" if busy else "hidden",
        show_progress_on=busy,
        trigger_mode=mode,
        preprocess=not raw,
        concurrency_limit=1 if in_order else n_at_once or "default",
    )
