"""Handlers of everything around the ranking: pages, settings, latency, exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from mrr.errors import InputRejected, MRRError
from ui import caching, explaining
from ui.components import File, field
from ui.exports import (
    as_csv,
    as_json,
    latency_rows,
    layer_rows,
    page_rows,
    ranking_rows,
    run_record,
)
from ui.handlers import Handlers
from ui.markup import note
from ui.parts import OtherTabs, Values
from ui.session import Session, Settings
from ui.stops import ready, stoppable, stopping
from ui.told import tell
from ui.views import history, labels, latency, ranking_words, settings, start, upload
from ui.views.report import report
from ui.workbench import Workbench


class Housekeeping:
    """One object for the app; whatever differs is in the session."""

    def __init__(self, bench: Workbench, views: OtherTabs, rank: Handlers) -> None:
        self.bench, self.views, self.ranking = bench, views, rank

    # -------------------------------------------------------------- pages

    @property
    def shows_stored(self) -> list[gr.components.Component]:
        """Components that `stored` fills."""
        view, rank = self.views.upload, self.ranking.views
        return [view.store, view.pages, rank.header, rank.gallery]

    def stored(self, session: Session) -> Values:
        """What the session has stored, wherever that is shown."""
        view, rank = self.views.upload, self.ranking.views
        if self.bench.opening.done:  # else there is more to show than examples
            session.n_examples_seen = self.bench.examples.steps
        shown = {
            view.store: upload.store(self.bench, session),
            view.pages: upload.pages(self.bench, session),
            rank.header: self.ranking.header(session),
            rank.gallery: start.gallery(self.bench, session),
        }
        session.drawn = {part.elem_id: hash(html) for part, html in shown.items()}
        return shown

    def stored_since(self, session: Session) -> Values:
        """The same where it is no longer what was drawn: a ranking, or another tab, changed it."""
        drawn = session.drawn
        return {
            part: html
            for part, html in self.stored(session).items()
            if drawn.get(part.elem_id) != hash(html)
        }

    def add(self, paths: list[str] | None, page_range: str, session: Session) -> Iterator[Values]:
        """Files were dropped: cache them page by page, and say how each goes."""
        session.sure = False  # it was of fewer pages
        view, meanwhile, n_shown = self.views.upload, self.ranking.views.meanwhile, 0
        shown: Values = {view.cancel: ready(view.cancel)}
        try:
            files = caching.read_uploads(self.bench, session, paths)
            for work in caching.upload(self.bench, session, files, page_range.strip() or None):
                came, n_shown = work.n_done > n_shown, work.n_done
                yield {
                    **shown,
                    view.progress: upload.progress(work),
                    meanwhile: ranking_words.under_way(
                        work.n_closed, len(work.lines), of_upload=True
                    ),
                    **(self.stored(session) if came or work.finished else {}),
                }
                shown = {}  # what was pressed meanwhile stays pressed
            yield {view.cancel: gr.update(visible=False), view.files: None, meanwhile: ""}
        except InputRejected as error:  # refused whole: the drop zone is free for the next try
            tell(str(error))
            yield {view.files: None}
        except Exception:
            yield {view.cancel: gr.update(visible=False), meanwhile: ""}
            raise

    def cancel(self, session: Session) -> dict[str, object]:
        """The upload, or the encoding, stops after the page in hand."""
        session.busy = False
        return stopping()

    def remove(self, session: Session, event: gr.EventData) -> Values:
        """Remove one page of the session's own."""
        session.sure = False
        self.bench.remove(session, field(event, "page"))
        return self.stored(session)

    def remove_document(self, session: Session, event: gr.EventData) -> Values:
        """Remove every page of one document of the session's own."""
        session.sure = False
        self.bench.remove_document(session, field(event, "page"))
        return self.stored(session)

    def remove_all(self, session: Session) -> Values:
        """Remove every page of the session's own, at the second press."""
        if session.sure:
            self.bench.remove_own(session)
        session.sure = not session.sure
        return self.stored(session)

    # ----------------------------------------------------------- settings

    def switches(self, session: Session) -> Values:
        """The switches as the model has them, when the tab is opened."""
        engine = self.bench.engine(session.settings)
        session.planned = settings.values_of(session.settings, engine)
        return settings.switches(self.views.settings, engine)

    def preset(self, name: str, session: Session) -> Values:
        """Put the switches where a preset has them; nothing is applied yet."""
        view, own = self.views.settings, self.bench.engines.unchanged(session.settings)
        exit_layer, start, end, keep, pruner = settings.preset_values(
            name, own.config, own.loaded.n_layers
        )
        return {
            view.exit_layer: exit_layer,
            view.band_start: start,
            view.band_end: end,
            view.keep_ratio: keep,
            view.pruner: pruner,
        }

    def plan(self, session: Session, *values: Any) -> Values:
        """What Apply would encode again, and the preset that the switches stand for, if any.

        Nothing where that is what the screen is about: the app's own changes are told as well.
        """
        view = self.views.settings
        if values == session.planned:
            return {}
        session.planned = values
        return {
            view.plan: self._planned(session, values),
            view.preset: self._preset(session, values),
        }

    def _planned(self, session: Session, values: tuple[Any, ...]) -> str:
        try:
            wanted = self._wanted(session, values)
            if self._is_new(session, wanted.model, wanted.embedder):
                return note(
                    "Apply will load that model with its own band and exit, and encode the pages "
                    "it has not read yet."
                )
            return settings.plan(self.bench.plan(session, wanted))
        except MRRError as error:  # on the way to what is meant; Apply would refuse it
            return note(str(error))

    def _preset(self, session: Session, values: tuple[Any, ...]) -> str | None:
        own = self.bench.engines.unchanged(session.settings)
        return settings.preset_of(values, own.config, own.loaded.n_layers)

    def _wanted(self, session: Session, values: tuple[Any, ...]) -> Settings:
        """The settings that the switches stand for."""
        model, embedder = (str(name).strip() for name in values[-2:])
        another = self._is_new(session, model, embedder)
        return settings.read(
            self.bench.engines.unchanged(session.settings).config, another, *values
        )

    def _is_new(self, session: Session, model: str, embedder: str) -> bool:
        """Whether these name another model than the one that is in use."""
        now = session.settings
        return (model, embedder) != (now.model, now.embedder)

    def apply(self, session: Session, *values: Any) -> Iterator[Values]:
        """Take the settings, then encode what they lack, page by page."""
        view, meanwhile = self.views.settings, self.ranking.views.meanwhile
        if session.busy:
            raise InputRejected("Pages are being encoded. Wait for it, or cancel it.")
        # A plan of these switches that is still on its way adds nothing, but for their preset.
        session.planned, of_switches = values, {view.preset: self._preset(session, values)}
        try:
            wanted = self._wanted(session, values)
        except InputRejected as error:
            yield {view.plan: settings.refused(str(error)), **of_switches}
            return
        another = self._is_new(session, wanted.model, wanted.embedder)
        session.busy, session.halted = True, False
        try:
            yield of_switches
            if another:
                yield {view.plan: note("Loading the model…")}
            engine = self.bench.engine(wanted)  # refused before anything changes
            session.changed |= not self.bench.rank_alike(session.settings, wanted)
            session.settings = wanted
            session.added.clear()  # what caching said under the settings before
            session.latency = None
            yield dict(zip(self.views.latency.outputs, latency.blank(), strict=True))
            if another:
                session.planned = values = (*settings.depth_values(engine), *values[3:])
                yield settings.depth(view, engine)
            missing = self.bench.missing(session)
            shown: Values = {view.stop: ready(view.stop)} if missing else {}
            for done, total in self.bench.encode(session, missing):
                yield {
                    **shown,
                    view.plan: settings.encoding(done, total),
                    meanwhile: ranking_words.under_way(done, total, of_upload=False),
                }
                shown = {}  # what was pressed meanwhile stays pressed
                if not session.busy:
                    session.halted = True
                    yield {view.plan: note("Stopped. The rest is encoded when it is asked.")}
                    break
        except Exception:  # a full memory too: the words that it goes on must not stay
            session.halted = True
            # As `plan` says, which may still be on its way for the last letter that was typed.
            planned = self._planned(session, session.planned)
            yield {view.plan: planned, view.stop: gr.update(visible=False), meanwhile: ""}
            raise
        finally:
            session.busy = False
        moved = session.planned != values  # the switches, meanwhile
        yield {
            **({view.plan: self._planned(session, session.planned)} if moved else {}),
            view.stop: gr.update(visible=False),
            meanwhile: "",
            **self.stored(session),
        }

    # ------------------------------------------------------------ latency

    def measure(
        self,
        session: Session,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Values]:
        """Time every system, here and now, until it is stopped."""
        view = self.views.latency

        def work() -> Values:
            found = explaining.measure(
                self.bench,
                session,
                progress=lambda done, total: progress((done, total), unit="rounds"),
                stop=lambda: not session.timing,
            )
            return dict(zip(view.outputs, latency.render(found, session.latency_of), strict=True))

        session.timing = True
        try:
            yield from stoppable(view.measure, view.stop, view.busy, work)
        finally:
            session.timing = False

    def stop_measuring(self, session: Session) -> dict[str, object]:
        """The measurement of latency stops after the repeat in hand."""
        session.timing = False
        return stopping()

    # ------------------------------------------------------------ exports

    def saving(self, export: Callable[[Session], File]) -> Callable[[Session], dict[str, object]]:
        """A handler that sends a file to the browser."""
        return lambda session: export(session).value()

    def exports(self) -> dict[str, Callable[[Session], File]]:
        """elem_id of a button -> the file that it saves."""
        return {
            "save-csv": lambda s: as_csv("ranking", ranking_rows(explaining.current(s)[0])),
            "save-json": lambda s: as_json("ranking", run_record(explaining.current(s)[0])),
            "save-report": self._report,
            "save-pages": lambda s: as_csv("pages", page_rows(self.bench, s)),
            "save-pages-json": lambda s: as_json("pages", page_rows(self.bench, s)),
            "save-layers": lambda s: as_csv("layers", layer_rows(s)),
            "save-layers-json": lambda s: as_json("layers", layer_rows(s)),
            "save-latency": lambda s: as_csv("latency", latency_rows(s)),
            "save-latency-json": lambda s: as_json("latency", latency_rows(s)),
            "save-scores": lambda s: as_csv("scores", labels.rows(self.bench, s)),
            "save-scores-json": lambda s: as_json("scores", labels.rows(self.bench, s)),
            "save-labels": lambda s: File(
                "qrels.tsv", "text/tab-separated-values", labels.qrels(self.bench, s)
            ),
            "save-runs": lambda s: File("rankings.trec", "text/plain", labels.trec_runs(s)),
            "save-history-csv": lambda s: as_csv("history", history.rows(s)),
            "save-history-json": lambda s: as_json("history", list(map(run_record, s.runs))),
            "save-trace": self._trace,
        }

    def _report(self, session: Session) -> File:
        run, _ = explaining.current(session)
        return report(self.bench, session, run, explaining.known(session))

    def _trace(self, session: Session) -> File:
        """Chrome trace events: of the measurement where there is one, else of the rankings."""
        from mrr.measure.perfetto import ranked_to_perfetto, to_perfetto

        if session.latency is not None:
            return as_json("trace", to_perfetto(session.latency))
        if not session.runs:
            raise InputRejected("Rank something or measure first; there is nothing to trace yet.")
        return as_json("trace", ranked_to_perfetto([run.mini for run in session.runs]))
