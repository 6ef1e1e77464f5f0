"""What happens on a click in the views of the selected page: why it scored as it did.

Handlers as in ui/handlers.py, for the inspector, the layers and the bands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from mrr.config import Pruner
from mrr.errors import MRRError
from ui import explaining
from ui.components import field
from ui.lenses import Mode
from ui.packing import Json
from ui.parts import RankTab, Values
from ui.session import Session
from ui.stops import stoppable, stopping
from ui.told import tell
from ui.views import bands, inspector, layers
from ui.workbench import Workbench

CONTROLS: tuple[Pruner, ...] = ("random", "uniform", "embedder")
TRACING = "Tracing… The maps follow."
LATE = "Still waiting: the models may be busy with other work."
NO_RANKING = "There is no ranking yet."
UNTRACED = "This needs one traced pass over the page. Press “Trace this page”."


class Detail:
    """Handlers of the three views. One object for the app; whatever differs is in the session."""

    def __init__(self, bench: Workbench, views: RankTab) -> None:
        self.bench, self.views = bench, views

    def pick(self, session: Session, event: gr.EventData) -> Values:
        """A page was selected: every view follows, from what is known of it."""
        session.selected = self.bench.page(session, field(event, "page")).page_id
        return self.until_traced(session)

    def until_traced(self, session: Session) -> Values:
        """The three views of the selected page; `trace_selected` is to follow."""
        if self._awaits_trace(session):
            session.promised += 1
        return self.shown(session)

    def trace_selected(self, session: Session) -> Values:
        """Trace the selected page, if it was not, and if the session wants that by itself.

        What is known is shown once more where maps were promised: another call of this may have
        traced the page, whose maps then reached the browser before the promise did.
        """
        run, page_id = session.run, session.selected
        promised, session.promised = session.promised, max(0, session.promised - 1)
        if run is None or page_id is None or not session.settings.auto_trace:
            return {}
        if not promised and not self._awaits_trace(session):
            return {}
        try:
            return self.trace(session)
        except MRRError as error:
            tell(str(error))
            failed = self._blank("This page could not be traced.")
            return {**failed, self.views.chosen: inspector.heading(run, page_id)}

    def _awaits_trace(self, session: Session) -> bool:
        """Whether the selected page is going to be traced by itself."""
        if session.run is None or session.selected is None or not session.settings.auto_trace:
            return False
        return explaining.known(session) is None or not explaining.known_lenses(session)

    def trace(self, session: Session) -> Values:
        """One traced pass, and the lens of every candidate.

        Nothing where another page was picked meanwhile: what shows that one may be there already.
        """
        chosen = session.run, session.selected
        explaining.trace(self.bench, session)
        explaining.lenses(self.bench, session)
        shown = self.shown(session)
        return shown if chosen == (session.run, session.selected) else {}

    def shown(self, session: Session, mode: str | None = None) -> Values:
        """The three views of the selected page as far as it was traced."""
        if session.run is None or session.selected is None:
            return self._blank("Select a page.")
        explanation = explaining.known(session)
        if explanation is None:
            sentence = TRACING if session.settings.auto_trace else UNTRACED
            return {
                **self._blank(sentence),
                **_values(self.views.inspector.outputs, self._untraced(session, sentence)),
                # The layers of all candidates may be known already; then their chart stays.
                **(self.curves(session) if explaining.known_lenses(session) else {}),
                self.views.chosen: inspector.heading(session.run, session.selected),
            }
        page = self.bench.page(session, session.selected)
        tried = explaining.tried(session)
        shown = inspector.render(explanation, self.bench.picture(page), mode=mode, tried=tried)
        return {
            **_values(self.views.inspector.outputs, shown),
            **_values(self.views.bands.outputs, bands.render(explanation)),
            **self.curves(session),
            **self._offer_trace(False),
            self.views.chosen: inspector.heading(session.run, session.selected),
        }

    def _untraced(self, session: Session, sentence: str) -> tuple[Json, str]:
        """The page by itself, while its maps are to come; the sentence alone where it is lost."""
        _, page_id = explaining.current(session)
        try:
            page = self.bench.page(session, page_id)
            late = LATE if sentence == TRACING else ""
            return inspector.untraced(page, self.bench.picture(page), sentence, late)
        except MRRError:  # what traces the page says why
            return inspector.blank(sentence)

    def show_curves_as(self, mode: Mode, session: Session) -> Values:
        """Another unit for the layers, which stays until the next choice."""
        session.lens_mode = mode
        return self.curves(session)

    def curves(self, session: Session) -> Values:
        """Relevance against layer, for every candidate that was traced."""
        run, lenses = session.run, explaining.known_lenses(session)
        if run is None or not lenses:
            return _values(self.views.layers.outputs, layers.blank(UNTRACED))
        names = {hit.page.page_id: hit.page.label for hit in run.mini.hits}
        return _values(
            self.views.layers.outputs,
            layers.render(lenses, names, session.selected, mode=session.lens_mode),
        )

    def awaiting(self) -> Values:
        """The three views before the first ranking."""
        return self._blank(NO_RANKING)

    def _blank(self, sentence: str) -> Values:
        return {
            **_values(self.views.inspector.outputs, inspector.blank(sentence)),
            **_values(self.views.bands.outputs, bands.blank(sentence)),
            **_values(self.views.layers.outputs, layers.blank(sentence)),
            **self._offer_trace(sentence == UNTRACED),
            self.views.chosen: "",
        }

    def _offer_trace(self, offered: bool) -> Values:
        """The button that traces the page, in each of its three tabs, while there is need of it."""
        buttons = (self.views.inspector.trace, self.views.layers.trace, self.views.bands.trace)
        return {button: gr.update(visible=offered) for button in buttons}

    def trace_dense(
        self,
        session: Session,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Values]:
        """The layers that mini never runs, from one full pass a candidate, until it is stopped."""

        def work() -> Values:
            explaining.complete_lenses(
                self.bench,
                session,
                progress=lambda done, total: progress((done, total), unit="pages"),
                stop=lambda: not session.completing,
            )
            return self.curves(session)

        session.completing = True
        try:
            view = self.views.layers
            yield from stoppable(view.run, view.stop, view.busy, work)
        finally:
            session.completing = False

    def stop_tracing(self, session: Session) -> dict[str, object]:
        """The full passes stop after the page in hand."""
        session.completing = False
        return stopping()

    def occlude(
        self,
        session: Session,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Values]:
        """Hide blocks of the page in turn, and random ones beside them, until it is stopped."""

        def work() -> Values:
            asked = explaining.current(session)
            measured = explaining.trace(
                self.bench,
                session,
                occlusion=True,
                progress=lambda done, total: progress((done, total), unit="passes"),
                stop=lambda: not session.occluding,
            )
            # Another page may have been selected meanwhile: this one keeps its map for later.
            still = (session.run, session.selected) == asked
            occlusion = measured.occlusion
            shown = occlusion is not None and bool(occlusion.measured.any())
            return self.shown(session, mode="occlusion" if shown else None) if still else {}

        session.occluding = True
        try:
            view = self.views.inspector
            yield from stoppable(view.occlude, view.stop, view.busy, work)
        finally:
            session.occluding = False

    def stop_occluding(self, session: Session) -> dict[str, object]:
        """The measurement of occlusion stops after the pass in hand."""
        session.occluding = False
        return stopping()

    def reencode(self, ratio: float, pruner: Pruner, session: Session) -> Values:
        """The selected page under another keep ratio, beside what it was."""
        explaining.trace(self.bench, session)
        after = explaining.trace(self.bench, session, keep=(float(ratio), pruner))
        picture, tried = self.bench.picture(after.page), explaining.tried(session)
        shown = inspector.render(after, picture, mode="pruned", tried=tried, again=True)
        return _values(self.views.inspector.outputs, shown)

    def as_ranked(self, session: Session) -> Values:
        """Back from an encoding that was tried to the page as it was ranked."""
        explaining.trace(self.bench, session)
        return self.shown(session, mode="pruned")

    def try_controls(self, ratio: float, session: Session) -> Iterator[Values]:
        """The selected page under each way to choose as many tokens; the embedder's comes last."""
        asked = explaining.current(session)
        for pruner in CONTROLS:
            if explaining.current(session) != asked:
                yield {}  # another page was selected meanwhile: see compare
                return
            yield self.reencode(ratio, pruner, session)

    def layer(self, session: Session, event: gr.EventData) -> Values:
        """A layer was clicked in the bands: its map, which the browser has, is on the page."""
        run, _ = explaining.current(session)
        bands.layer_from(event._data, self.bench.engine(run.settings).loaded.n_layers)
        return {self.views.why: gr.update(selected="page")}


def _values(components: Sequence[Any], values: Sequence[Any]) -> Values:
    return dict(zip(components, values, strict=True))
