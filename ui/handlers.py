"""What happens on a click: thin functions from the session and an event to component values.

Each returns {component: value} for what changes; what is left out stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import gradio as gr

from mrr.errors import InputRejected
from mrr.query import clean_query
from mrr.types import System
from ui import explaining
from ui.components import field, number
from ui.detail import Detail
from ui.parts import RankTab, Values
from ui.session import Session, View
from ui.stops import ready, stopping
from ui.told import tell
from ui.views import history, labels, ranking, ranking_words, start
from ui.workbench import Workbench

_POLL_S = 0.2
# Of a tab that slept for long, say. What its side bar shows would not be what is ranked with.
LOST = (
    "This page was not heard of for a while, or there were too many: its settings and rankings are "
    "gone. Reload the page."
)
_MOST_EVENTS = 2**53  # the browser counts no further


class Handlers:
    """Handlers of the first tab. One object for the app; whatever differs is in the session.

    detail: those of the views of the selected page.
    """

    def __init__(self, bench: Workbench, views: RankTab) -> None:
        self.bench, self.views = bench, views
        self.detail = Detail(bench, views)

    # --------------------------------------------------------------- rank

    def open(self, session: Session) -> Values:
        """A tab was opened: what can be shown before the model is loaded."""
        self.bench.visits.drew(session)
        ready = self.bench.opening.done
        return {
            self.views.header: self.header(session) if ready else start.header_before(),
            self.views.gallery: start.gallery(self.bench, session),
            self.views.labels.scores: labels.scores(self.bench, session),
            self.views.history.runs: history.runs(session),
        }

    def header(self, session: Session) -> str:
        """Name and status strip."""
        return start.header(self.bench.engine(session.settings), len(self.bench.pages(session)))

    def rank(self, query: str, view: View, only: bool, session: Session) -> Iterator[Values]:
        """Rank with mini and show it; whatever was selected gives way to the first page.

        Candidates that the settings have no K/V of are encoded first, page by page, until that is
        stopped: then the ranking that was shown stays. Of queries that wait, only the last one is
        ranked. The query's box is left alone: somebody may be typing the next one there. Raises
        InputRejected in a tab whose session is gone, and for a query that nobody could rank.
        """
        if self.bench.visits.is_another(session):
            raise InputRejected(LOST)
        if lost := session.lost():
            tell(lost)
        # What is refused anyway need not wait.
        cleaned, _ = clean_query(query, self.bench.limits)
        session.asked = asked = session.asked + 1
        session.shown_as = view, only
        if cleaned != query:  # at once, while the box still holds what was asked
            yield {self.views.query: cleaned}
        try:
            yield from self._ranked(query, session, asked)
        except Exception:  # what was said meanwhile must not stay
            if session.asked == asked:
                yield self._given_up(session)
            raise
        if session.asked != asked:
            # Gradio sends the last values once more when a generator ends, over the next query's.
            yield {}

    def _ranked(self, query: str, session: Session, asked: int) -> Iterator[Values]:
        if not self.bench.opening.done:
            yield self._waiting(session, query, ranking_words.LOADING)
        elif not self.bench.is_free(session):
            yield self._waiting(session, query, ranking_words.BUSY)
        if self._lacks_pages(session):
            yield self._waiting(session, query, ranking_words.FIRST_PAGE)
        while session.wants(asked) and self._lacks_pages(session):
            time.sleep(_POLL_S)
        self.bench.engine(session.settings)  # waits for the model, and raises what loading raises
        self.bench.wait(session, lambda: session.wants(asked))
        if session.wants(asked):
            yield from self._encoded(session, query, asked)
        elif session.asked == asked:  # stopped
            yield self._given_up(session)
        if not session.wants(asked):
            return
        run = self.bench.rank(session, query, lambda: session.asked == asked)
        if session.run is run:
            session.changed = False
            yield self._shown(session, *session.shown_as)

    def _given_up(self, session: Session) -> Values:
        """Nothing was ranked: what was said while it waited goes."""
        return {**self._as_before(session), self.views.ranking.halt: gr.update(visible=False)}

    def _as_before(self, session: Session) -> Values:
        """The ranking that is shown, or the gallery where there is none yet."""
        ranked = session.run is not None
        return {
            self.views.gallery: gr.update(visible=not ranked),
            self.views.results: gr.update(visible=ranked),
            self.views.ranking.summary: self.summary(session),
        }

    def summary(self, session: Session) -> str:
        """What is said over the ranking that is shown."""
        run, now = session.run, session.settings
        if run is None:
            return ""
        still = start.still_caching(self.bench)
        if self.bench.rank_alike(run.settings, now):
            return ranking_words.summary(run, still)
        earlier = ranking_words.earlier(run, self.bench.engine(now), now)
        return ranking_words.summary(run, still, earlier)

    def _waiting(self, session: Session, query: str, for_what: str) -> Values:
        waiting = ranking_words.waiting(session.run, query, for_what)
        return {**self._results_awaited(session), self.views.ranking.summary: waiting}

    def _lacks_pages(self, session: Session) -> bool:
        """Whether there is nothing to rank yet, but soon will be."""
        return not self.bench.examples.finished and not self.bench.pages(session)

    def _encoded(self, session: Session, query: str, asked: int) -> Iterator[Values]:
        """Encode what the query's candidates lack, with its progress over the ranking."""
        view = self.views.ranking
        missing = self.bench.missing(session, query)
        if not missing:
            return
        shown = {
            **self._results_awaited(session),
            self.views.samples: start.samples(self.bench, query),
            view.halt: ready(view.halt),
        }
        for done, total in self.bench.encode(session, missing):
            if session.asked == asked:
                yield {**shown, view.summary: ranking_words.encoding(done, total, session.run)}
            shown = {}  # what was pressed meanwhile stays pressed
            if not session.wants(asked):
                break
        if session.asked != asked:
            return  # the next query says how it goes
        if session.stopped == asked:
            stopped = ranking_words.encoding(done, total, session.run, stopped=True)
            yield {view.summary: stopped}
        yield {view.halt: gr.update(visible=False)}

    def _results_shown(self) -> Values:
        """The results in the place of the gallery of all pages."""
        return {
            self.views.gallery: gr.update(visible=False),
            self.views.results: gr.update(visible=True),
        }

    def _results_awaited(self, session: Session) -> Values:
        """The results before the first ranking of all: nothing in them can be pressed yet."""
        awaited = {} if session.run is not None else self.detail.awaiting()
        return {**self._results_shown(), **awaited}

    def stop_encoding(self, session: Session) -> dict[str, object]:
        """The encoding before a ranking stops after the page in hand."""
        session.stopped = session.asked
        return stopping()

    def rank_changed(self, view: View, only: bool, session: Session) -> Iterator[Values]:
        """After Apply: rank what is shown again, where that has changed what it would be."""
        run, changed = session.run, session.changed
        session.changed = False
        if run is None or not changed:
            return
        if session.halted or self.bench.rank_alike(run.settings, session.settings):
            yield {self.views.ranking.summary: self.summary(session)}
            return
        yield from self.rank(run.query, view, only, session)

    def rank_sample(
        self, view: View, only: bool, session: Session, event: gr.EventData
    ) -> Iterator[Values]:
        """A sample query was clicked."""
        queries = start.sample_queries(self.bench)
        n = number(event, "n", len(queries))
        box: Values = {self.views.query: queries[n]}
        for values in self.rank(queries[n], view, only, session):
            yield values and {**box, **values}  # not into a box that is the next query's by now
            box = {}

    def reopen(self, view: View, only: bool, session: Session, event: gr.EventData) -> Values:
        """Show a past run as it was; nothing is ranked again."""
        session.run = run = session.runs[number(event, "n", len(session.runs))]
        session.asked += 1  # a query that waits would take its place
        self.bench.forget_gone(session, run)
        hits = run.mini.hits
        session.selected = hits[0].page.page_id if hits else None
        session.dense_system = run.dense_system
        return {
            **self._shown(session, view, only),
            self.views.query: run.query,
            self.views.tabs: gr.update(selected="rank"),
        }

    def _shown(self, session: Session, view: View, only: bool) -> Values:
        run, rank = session.run, self.views.ranking
        assert run is not None
        session.comparing = False
        seconds = self.bench.dense_estimate(run, run.dense_system)
        config = self.bench.engine(run.settings).config
        return {
            self.views.inspector.keep_ratio: config.keep_ratio,
            self.views.inspector.pruner: "embedder" if config.pruner == "none" else config.pruner,
            rank.system: gr.update(value=run.dense_system, interactive=True),
            self.views.samples: start.samples(self.bench, run.query),
            **self._results_shown(),
            rank.summary: self.summary(session),
            rank.halt: gr.update(visible=False),
            rank.hits: ranking.hits(self.bench, session, view, only),
            rank.estimate: ranking_words.estimate(run, seconds),
            rank.compare: gr.update(visible=True, value=ranking_words.compare_label(run)),
            rank.stop: gr.update(visible=False),
            rank.only_changes: gr.update(visible=run.dense_done),
            self.views.labels.scores: labels.scores(self.bench, session),
            self.views.history.runs: history.runs(session),
            **self.detail.until_traced(session),
        }

    def redraw(self, view: View, only: bool, session: Session) -> str:
        """The same ranking, shown another way."""
        session.shown_as = view, only
        return ranking.hits(self.bench, session, view, only)

    def pick(self, session: Session, event: gr.EventData) -> Values:
        """A page was selected: every view follows, from what is known of it.

        Pages that another tab has removed since leave the ranking first, with a sentence over it.
        Nothing where a later one was here first: what the browser marks is the last.
        """
        nth = number(event, "nth", _MOST_EVENTS)
        if nth < session.picked:
            return {}
        session.picked = nth
        if session.run is None or not self.bench.forget_gone(session, session.run):
            return self.detail.pick(session, event)
        try:
            session.selected = self.bench.page(session, field(event, "page")).page_id
        except InputRejected as error:
            tell(str(error))
        return self.after_removal(*session.shown_as, session)

    def after_removal(self, view: View, only: bool, session: Session) -> Values:
        """Pages are gone: the ranking and the views of the selected page without them."""
        if session.run is None:
            return {}
        return {
            self.views.ranking.summary: self.summary(session),
            **self._dense(session, view, only, running=session.comparing),
            **self.detail.until_traced(session),
        }

    def tick(self, view: View, only: bool, session: Session, event: gr.EventData) -> Values:
        """A page was called relevant, or not."""
        run, _ = explaining.current(session)
        page = self.bench.page(session, field(event, "page"))
        session.ticked.setdefault(run.query, set()).symmetric_difference_update({page.page_id})
        return {
            self.views.ranking.hits: self.redraw(view, only, session),
            self.views.labels.scores: labels.scores(self.bench, session),
        }

    # -------------------------------------------------------------- dense

    def choose_dense(self, system: System, view: View, only: bool, session: Session) -> Values:
        """Another baseline was chosen: show what is known of it, or what it would cost."""
        session.dense_system = system
        if session.run is None or session.comparing:
            return {}
        session.run.dense_system = system
        return self._dense(session, view, only, running=False)

    def compare(self, system: System, view: View, only: bool, session: Session) -> Iterator[Values]:
        """Score the same pages with a dense system; rows arrive as they are done."""
        run, _ = explaining.current(session)
        rank, n_removed = self.views.ranking, run.n_removed
        session.comparing, session.shown_as = True, (view, only)
        running = {
            rank.compare: gr.update(visible=False),
            rank.stop: ready(rank.stop),
            rank.system: gr.update(interactive=False),
        }
        idle = {rank.stop: gr.update(visible=False), rank.system: gr.update(interactive=True)}
        try:
            for _ in self.bench.dense(session, run, system):
                if session.run is not run or not session.comparing:
                    break
                yield {**self._dense(session, *session.shown_as, running=True), **running}
                running = {}  # what was pressed meanwhile stays pressed
        except Exception:  # its rows so far stay, and it can go on from them
            if session.run is run:
                yield {**self._dense(session, *session.shown_as, running=False), **idle}
            raise
        finally:
            session.comparing = session.comparing and session.run is not run
        if session.run is not run:
            # Gradio sends the last values once more when a generator ends, over the new ranking.
            yield {}
        else:
            gone = run.n_removed > n_removed  # by another tab; `after_removal` tells of this tab's
            yield {
                **self._dense(session, *session.shown_as, running=False),
                **(self.after_removal(*session.shown_as, session) if gone else {}),
                **idle,
                self.views.labels.scores: labels.scores(self.bench, session),
                self.views.history.runs: history.runs(session),
            }

    def _dense(self, session: Session, view: View, only: bool, running: bool) -> Values:
        run = session.run
        assert run is not None
        seconds = self.bench.dense_estimate(run, run.dense_system)
        return {
            self.views.ranking.hits: ranking.hits(self.bench, session, view, only),
            self.views.ranking.estimate: ranking_words.estimate(run, seconds, running),
            self.views.ranking.only_changes: gr.update(visible=run.dense_done),
            self.views.ranking.compare: gr.update(
                visible=not running, value=ranking_words.compare_label(run)
            ),
        }

    def stop_comparing(self, session: Session) -> dict[str, object]:
        """The dense ranking stops after the page in hand."""
        session.comparing = False
        return stopping()
