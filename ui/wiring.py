"""Which event calls which handler, and what it may change."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from ui.handlers import Handlers
from ui.housekeeping import Housekeeping
from ui.parts import RankTab
from ui.session import Session
from ui.told import told

_WARM_TICK_S = 1.0
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


def wire(demo: gr.Blocks, state: gr.State, house: Housekeeping) -> None:
    """Every event of the page."""
    handlers = house.ranking
    _opening(demo, state, handlers, house)
    _ranking(state, house, handlers)
    _detail(state, handlers)
    _pages(state, house, handlers)
    _settings(state, house, handlers)
    _exports(demo, state, house)


def _opening(demo: gr.Blocks, state: gr.State, handlers: Handlers, house: Housekeeping) -> None:
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


def _ranking(state: gr.State, house: Housekeeping, handlers: Handlers) -> None:
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


def _detail(state: gr.State, handlers: Handlers) -> None:
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


def _pages(state: gr.State, house: Housekeeping, handlers: Handlers) -> None:
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


def _settings(state: gr.State, house: Housekeeping, handlers: Handlers) -> None:
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
            *plan,
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


def _exports(demo: gr.Blocks, state: gr.State, house: Housekeeping) -> None:
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
