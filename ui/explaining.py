"""Traced passes and measurements for one session, kept so that switching back costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mrr.config import Pruner
from mrr.errors import InputRejected
from mrr.types import Explanation, Lens
from ui.session import Run, Session
from ui.workbench import Workbench

if TYPE_CHECKING:
    from mrr.measure.latency import LatencyReport

Progress = Callable[[int, int], None]
Keep = tuple[float, Pruner]
_LATENCY_PAGES = 10


def current(session: Session) -> tuple[Run, str]:
    """The run and the selected page id; InputRejected before there is one."""
    if session.run is None or session.selected is None:
        raise InputRejected("Rank something first, then select a page.")
    return session.run, session.selected


def known(session: Session, keep: Keep | None = None) -> Explanation | None:
    """The selected page's explanation, if it was traced for this run."""
    run, page_id = current(session)
    return session.explanations.get(
        (run.query, run.settings.config, run.settings.model, page_id, keep)
    )


def trace(
    bench: Workbench,
    session: Session,
    *,
    keep: Keep | None = None,
    occlusion: bool = False,
    progress: Progress | None = None,
) -> Explanation:
    """Explain the selected page for the current query.

    keep: (ratio, pruner) to encode this page again with, instead of the run's own. occlusion:
    also hide blocks in turn; progress counts its passes.
    """
    from mrr.explain.explanation import explain  # torch: only where the engine is

    run, page_id = current(session)
    found = known(session, keep)
    if found is not None and (found.occlusion is not None or not occlusion):
        return found
    page = bench.page(session, page_id)
    engine = bench.engine(run.settings)
    if keep is not None:
        engine = engine.with_config(replace(engine.config, keep_ratio=keep[0], pruner=keep[1]))
    explanation = explain(
        engine,
        run.query,
        page,
        scopes=bench.scopes(session),
        dense=False,
        occlusion=occlusion,
        progress=progress,
    )
    key = (run.query, run.settings.config, run.settings.model, page_id, keep)
    session.remember(key, explanation)
    return explanation


def lenses(
    bench: Workbench, session: Session, *, dense: bool = False, progress: Progress | None = None
) -> dict[str, Lens]:
    """The lens of every candidate of the current run; dense adds the layers that mini skips."""
    from mrr.explain.explanation import lenses as trace_lenses

    run, _ = current(session)
    kept = known_lenses(session)
    if kept and (not dense or all(lens.dense is not None for lens in kept.values())):
        return kept
    found = trace_lenses(
        bench.engine(run.settings),
        run.query,
        [hit.page for hit in run.mini.hits],
        scopes=bench.scopes(session),
        dense=dense,
        progress=progress,
    )
    session.lenses = (run, found)
    return found


def known_lenses(session: Session) -> dict[str, Lens]:
    """The lenses of the current run, if they were traced; else empty."""
    if session.lenses is None or session.lenses[0] is not session.run:
        return {}
    return session.lenses[1]


def measure(bench: Workbench, session: Session, progress: Progress) -> LatencyReport:
    """Time every system on the current candidates, or on the first pages there are."""
    from mrr.measure.latency import measure_latency

    run = session.run
    if run is not None and run.mini.hits:
        query, pages = run.query, [hit.page.page_id for hit in run.mini.hits]
    else:
        query = (*bench.examples.samples, "a question")[0]
        pages = [page.page_id for page in bench.pages(session)]
    session.latency = measure_latency(
        bench.engine(session.settings),
        query,
        pages[:_LATENCY_PAGES],
        scopes=bench.scopes(session),
        progress=lambda _, done, total: progress(done, total),
    )
    return session.latency
