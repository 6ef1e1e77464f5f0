"""Traced passes and measurements for one session, kept so that switching back costs nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mrr.config import Pruner
from mrr.errors import InputRejected
from mrr.turn import Progress, Stop, never
from mrr.types import Explanation, Lens
from ui.describe import describe
from ui.run import Run
from ui.session import Session
from ui.workbench import Workbench

if TYPE_CHECKING:
    from mrr.measure.latency import LatencyReport

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
    return session.explanations.get(_key(run, page_id, keep))


def tried(session: Session) -> list[Explanation]:
    """The selected page as it was ranked, then as it was encoded again, oldest first."""
    run, page_id = current(session)
    own = _key(run, page_id, None)[:-1]
    found = [each for key, each in session.explanations.items() if key[:-1] == own and key[-1]]
    ranked = known(session)
    return [*filter(None, [ranked]), *found]


def _key(run: Run, page_id: str, keep: Keep | None) -> tuple[object, ...]:
    settings = run.settings
    return run.query, settings.config, settings.model, settings.embedder, page_id, keep


def trace(
    bench: Workbench,
    session: Session,
    *,
    keep: Keep | None = None,
    occlusion: bool = False,
    progress: Progress | None = None,
    stop: Stop = never,
) -> Explanation:
    """Explain the selected page for the current query.

    keep: (ratio, pruner) to encode this page again with, instead of the run's own. occlusion:
    also hide blocks in turn; progress counts its passes, and after each stop may end it: what was
    measured until then is kept, and measured anew when it is asked for again.
    """
    run, page_id = current(session)
    found = known(session, keep)
    if found is not None and (not occlusion or _measured(found)):
        return found
    page = bench.page(session, page_id)
    engine = bench.engine(run.settings)
    if keep is not None:
        engine = engine.with_config(replace(engine.config, keep_ratio=keep[0], pruner=keep[1]))
    explanation = bench.run(
        type(engine).explain,
        engine,
        run.query,
        page,
        scopes=bench.scopes(session),
        dense=False,
        occlusion=occlusion,
        progress=progress,
        stop=stop,
    )
    session.remember(_key(run, page_id, keep), explanation)
    return explanation


def _measured(explanation: Explanation) -> bool:
    occlusion = explanation.occlusion
    return occlusion is not None and bool(occlusion.measured.all())


def lenses(bench: Workbench, session: Session) -> dict[str, Lens]:
    """The lens of every candidate of the current run, over the layers that mini runs."""
    run, _ = current(session)
    kept = known_lenses(session)
    if kept:
        return kept
    engine = bench.engine(run.settings)
    found = bench.run(
        type(engine).lenses,
        engine,
        run.query,
        [hit.page for hit in run.mini.hits],
        scopes=bench.scopes(session),
    )
    if session.run is run:
        session.lenses = (run, found)
    return found


def complete_lenses(
    bench: Workbench, session: Session, *, progress: Progress, stop: Stop = never
) -> dict[str, Lens]:
    """The same with the layers that mini skips: one full pass for each candidate that lacks it.

    Each pass is a call of its own, after which stop may end the work; what is done is kept.
    """
    run, _ = current(session)
    engine = bench.engine(run.settings)
    found = dict(lenses(bench, session))
    missing = [page_id for page_id, lens in found.items() if lens.dense is None]
    for done, page_id in enumerate(missing, start=len(found) - len(missing) + 1):
        full = bench.run(
            type(engine).lenses,
            engine,
            run.query,
            [page_id],
            scopes=bench.scopes(session),
            dense=True,
        )
        found = {**found, page_id: replace(found[page_id], dense=full[page_id].dense)}
        if session.run is run:
            session.lenses = (run, found)
        progress(done, len(found))
        if stop():
            break
    return found


def known_lenses(session: Session) -> dict[str, Lens]:
    """The lenses of the current run, if they were traced; else empty."""
    if session.lenses is None or session.lenses[0] is not session.run:
        return {}
    return session.lenses[1]


def measure(
    bench: Workbench, session: Session, *, progress: Progress, stop: Stop = never
) -> LatencyReport:
    """Time every system on the current candidates, or on the first pages there are."""
    from mrr.measure.latency import measure_latency

    run = session.run
    if run is not None and run.mini.hits:
        query, pages = run.query, [hit.page.page_id for hit in run.mini.hits]
    else:
        query = (*bench.examples.samples, "a question")[0]
        pages = [page.page_id for page in bench.pages(session)]
    engine = bench.engine(session.settings)
    session.latency_of = describe(engine)
    session.latency = measure_latency(
        engine,
        query,
        pages[:_LATENCY_PAGES],
        scopes=bench.scopes(session),
        progress=lambda _, done, total: progress(done, total),
        stop=stop,
    )
    return session.latency
