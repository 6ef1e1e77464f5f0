"""What the app does with the engine, for one session at a time. Knows no component, no torch.

Every page id that comes from a browser goes through `page`, which looks only into the session's
own scopes: a page of another session does not exist here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cache_db import PageStore
from mrr.config import Limits, default_limits
from mrr.errors import InputRejected, NotFinite, PageLost
from mrr.pages.sandbox import Decoder
from mrr.types import Hit, Page, PageImage, System
from ui.describe import describe, embedder_name
from ui.engines import Engines, LoadModel
from ui.examples import Examples
from ui.gpu import Gpu
from ui.opening import Opening
from ui.pictures import Pictures
from ui.run import Run
from ui.session import PUBLIC, Session, Settings, new_scope
from ui.visits import Visits

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

log = logging.getLogger("ui")
_PAGE_SIDE = 1400
MAX_RUNS = 200
_MOMENT_S = 0.3  # a wait that nobody need be told of


@dataclass(frozen=True, slots=True)
class Plan:
    """What a change of settings would encode again. seconds: None where nothing was measured."""

    n_pages: int
    n_missing: int
    seconds: float | None


class Pace:
    """Milliseconds a page takes with a model, by what is done to it: the mean of the last few."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[float]] = {}

    def saw(self, engine: MiniReranker, work: str, ms: float) -> None:
        """Note one measurement."""
        seen = self._seen.setdefault((engine.loaded.digest, work), [])
        seen.append(ms)
        del seen[:-20]

    def ms(self, engine: MiniReranker, work: str) -> float | None:
        """The mean, or None before the first."""
        seen = self._seen.get((engine.loaded.digest, work))
        return sum(seen) / len(seen) if seen else None


class Workbench:
    """The engine with its examples, shared by all sessions.

    opening: the reranker that the app begins with; its store is usable before that is loaded.
    limits: of what is taken, as the reranker's. load_model: see Engines. keep_uploads: uploads join
    the public pages for good; for a single user only. hosted: strangers share this process, so
    counts over all sessions are not shown. run: where the model runs.
    """

    def __init__(
        self,
        opening: Opening,
        store: PageStore,
        examples: Examples,
        *,
        limits: Limits | None = None,
        load_model: LoadModel | None = None,
        keep_uploads: bool = False,
        hosted: bool = False,
        run: Gpu | None = None,
    ) -> None:
        self.opening, self.store = opening, store
        self.limits = limits or default_limits()
        self.decoder = Decoder(self.limits)  # the engine's own comes with torch
        self.examples = examples
        self.engines = Engines(opening, load_model)
        self.keep_uploads = keep_uploads
        self.hosted = hosted
        self.run = run or Gpu(opening, store)
        self.thumbnails = Pictures(220, 72, kept=600)
        self.pictures = Pictures(_PAGE_SIDE, 80, kept=60)
        self.pace = Pace()
        self.visits = Visits(self)

    # ------------------------------------------------------------ engines

    @property
    def base(self) -> MiniReranker:
        """The reranker that the app began with; waits while it is loaded."""
        return self.opening()

    def engine(self, settings: Settings) -> MiniReranker:
        """The reranker of these settings; loads another model where they name one."""
        return self.engines.of(settings)

    def close(self) -> None:
        """Stop the decoding processes, and close every engine and the store that they share."""
        self.decoder.close()
        self.engines.close()
        self.store.close()

    # -------------------------------------------------------------- pages

    def session(self, new: bool = False) -> Session:
        """A visitor's, whose pages live as long as this process at most."""
        return Session(scope=new_scope(self.store.owner), new=new)

    def scopes(self, session: Session) -> tuple[str, ...]:
        """Whose pages this session sees: the examples and its own."""
        return (PUBLIC, session.scope)

    def upload_scope(self, session: Session) -> str:
        """Where this session's uploads go."""
        return PUBLIC if self.keep_uploads else session.scope

    def pages(self, session: Session) -> list[Page]:
        """Every page that the session sees, examples first."""
        return self.store.pages(self.scopes(session))

    def page(self, session: Session, page_id: str) -> Page:
        """One of the session's pages; InputRejected for any other id."""
        page = self.store.page(page_id)
        if page is None or page.scope not in self.scopes(session):
            raise InputRejected("That page is not here any more. Add it again.")
        return page

    def removable(self, page: Page) -> bool:
        """Whether a visitor may remove it: the examples stay, those still to be cached too, and
        so does whatever else is public where strangers come."""
        if page.scope != PUBLIC:
            return True
        known = self.examples.finished and not self.hosted
        return known and page.page_id not in set(self.examples.page_ids.values())

    def other_public_pages(self) -> list[Page]:
        """What everyone sees beside the examples: pages that were kept, or added by `mrr add`."""
        examples = set(self.examples.page_ids.values())
        return [p for p in self.store.pages([PUBLIC]) if p.page_id not in examples]

    def thumbnail(self, page: Page) -> str:
        """A small picture as a data URI; empty where the store has lost the picture."""
        known = self.thumbnails.get(page.page_id)
        if known is not None:
            return known
        image = self.store.image(page.page_id)
        return self.thumbnails.put(page.page_id, image) if image is not None else ""

    def picture(self, page: Page) -> str:
        """The whole page as a data URI, for the inspector."""
        known = self.pictures.get(page.page_id)
        return known or self.pictures.put(page.page_id, self.base.cache.picture(page))

    def remove(self, session: Session, page_id: str) -> None:
        """Remove one of the session's own pages."""
        page = self.page(session, page_id)
        if not self.removable(page):
            raise InputRejected("The example pages stay; only pages that you added can be removed.")
        self._remove_pages([page.page_id])
        self._forget(session, {page.page_id})

    def remove_document(self, session: Session, page_id: str) -> None:
        """Remove all of the session's own pages that came from the same file as this one."""
        source = self.page(session, page_id).source
        self.remove(session, page_id)  # which refuses an example
        rest = [p.page_id for p in self.pages(session) if self.removable(p) and p.source == source]
        self._remove_pages(rest)
        self._forget(session, set(rest))

    def remove_own(self, session: Session) -> int:
        """Remove everything that this session added."""
        own = [p.page_id for p in self.pages(session) if self.removable(p)]
        n_removed = self._remove_pages(own)
        self._forget(session, set(own))
        session.uploaded_bytes = 0
        return n_removed

    def forget_gone(self, session: Session, run: Run) -> int:
        """Forget pages of a run that the store has no longer, which another tab may have removed;
        returns how many."""
        here = {page.page_id for page in self.pages(session)}
        gone = {hit.page.page_id for hit in run.mini.hits} - here
        self._forget(session, gone)
        return len(gone)

    @staticmethod
    def _forget(session: Session, page_ids: set[str]) -> None:
        """Past rankings can be opened again without the pages that are gone."""
        for page_id in page_ids:
            session.added.pop(page_id, None)
        for run in session.runs:
            run.forget(page_ids)
        if session.run is not None and session.selected in page_ids:
            hits = session.run.mini.hits
            session.selected = hits[0].page.page_id if hits else None

    def remove_scope(self, scope: str) -> int:
        """Remove all pages of a scope; returns how many."""
        return self._remove_pages([page.page_id for page in self.store.pages([scope])])

    def _remove_pages(self, page_ids: list[str]) -> int:
        for made in (self.thumbnails, self.pictures):
            made.drop(page_ids)
        return self.engines.remove_pages(page_ids)

    # --------------------------------------------------------------- rank

    def rank(self, session: Session, query: str, wanted: Callable[[], bool] = lambda: True) -> Run:
        """Rank with the mini system, and make it the session's current run if that is wanted."""
        settings, unread = session.settings, session.reading
        engine = self.engine(settings)
        ranked = self.run(
            type(engine).rank, engine, query, top_k=settings.top_k, scopes=self.scopes(session)
        )
        run = Run(
            query=ranked.query,
            settings=settings,
            described=describe(engine),
            instruction=engine.config.instruction,
            embedder=embedder_name(engine),
            mini=ranked,
            dense_system=session.dense_system,
            unread=unread,
            started=datetime.now().astimezone().isoformat(timespec="seconds"),
        )
        if not wanted():
            return run
        for past in reversed(session.runs):
            if past.same_pages(run):  # what dense systems said of them holds for this run too
                run.scored, run.took_ms = past.scored, past.took_ms
                run.caching_ms = past.caching_ms
                break
        session.run = run
        session.runs.append(run)
        del session.runs[:-MAX_RUNS]
        session.selected = ranked.hits[0].page.page_id if ranked.hits else None
        return run

    def rank_alike(self, one: Settings, other: Settings) -> bool:
        """Whether these settings give the same ranking, however they are written down."""
        names, others = ((s.model, s.embedder, s.top_k) for s in (one, other))
        if names != others:
            return False  # and no other model is loaded to know more
        return self.engine(one).config == self.engine(other).config

    def relevant(self, session: Session, query: str) -> set[str]:
        """Page ids that count as relevant: the bundled labels, as the user's ticks changed them."""
        return self.examples.labels(query) ^ session.ticked.get(query, set())

    def dense_estimate(self, run: Run, system: System) -> float | None:
        """Seconds that the dense ranking has left, from what was measured; None before that.

        For `dense-reuse` with caching, once, the pages that have no K/V of every layer yet.
        """
        engine = self.engine(run.settings)
        per_page = self.pace.ms(engine, system)
        if per_page is None:
            return None
        scored = run.scored.get(system, {})
        left = [hit.page for hit in run.mini.hits if hit.page.page_id not in scored]
        n_missing, encode_ms = 0, self.pace.ms(engine, "encode")
        if system == "dense-reuse":
            n_missing = len(engine.dense_cache.missing(left))
        return (per_page * len(left) + (encode_ms or 0.0) * n_missing) / 1e3

    def dense(self, session: Session, run: Run, system: System) -> Iterator[Hit]:
        """Score the run's candidates with a dense system, one page at a time.

        The engine is free between pages, so a mini query never waits for more than one of them.
        """
        engine = self.engine(run.settings)
        run.dense_system = system
        known = run.scored.get(system, {})
        left = [hit for hit in run.mini.hits if hit.page.page_id not in known]
        if not known or not left:  # else it was stopped, and goes on
            run.scored[system], run.took_ms[system] = {}, {}
            run.caching_ms[system], left = 0.0, list(run.mini.hits)
        for hit in left:
            self.forget_gone(session, run)
            if hit.page.page_id not in {each.page.page_id for each in run.mini.hits}:
                continue  # removed meanwhile
            ranked = self.run(
                type(engine).rank,
                engine,
                run.query,
                system=system,
                pages=[hit.page.page_id],
                scopes=self.scopes(session),
            )
            # Caching a page is paid once, whichever system reuses it: it is no query's cost.
            caching_ms = ranked.usage.ms.get("encode", 0.0)
            query_ms = ranked.usage.total_ms - caching_ms
            self.pace.saw(engine, system, query_ms)
            run.caching_ms[system] += caching_ms
            for scored in ranked:
                run.took_ms[system][scored.page.page_id] = query_ms
                run.scored[system][scored.page.page_id] = scored
                yield scored

    # ----------------------------------------------------------- settings

    def plan(self, session: Session, settings: Settings) -> Plan:
        """What these settings would encode again before they can rank every page."""
        engine = self.engine(settings)
        pages = self.pages(session)
        n_missing = len(engine.cache.missing(pages))
        per_page = self.pace.ms(engine, "encode")
        seconds = None if per_page is None else per_page * n_missing / 1e3
        return Plan(len(pages), n_missing, seconds)

    def is_free(self, session: Session) -> bool:
        """Whether the session's models are loaded, and idle or will be within a moment."""
        end = time.monotonic() + _MOMENT_S
        return self.opening.done and self.wait(session, lambda: time.monotonic() < end)

    def wait(self, session: Session, wanted: Callable[[], bool]) -> bool:
        """Wait for the session's models, in the order of coming; False once wanted() says no."""
        lock = self.engine(session.settings).lock
        if free := lock.acquire(wanted):
            lock.release()
        return free

    def missing(self, session: Session, query: str | None = None) -> list[Page]:
        """The session's pages, or a query's candidates, that its settings have no K/V of."""
        engine = self.engine(session.settings)
        missing = engine.cache.missing(self.pages(session))
        if query is None or not missing:
            return missing
        settings = session.settings
        first = self.run(
            type(engine).retrieve, engine, query, top_k=settings.top_k, scopes=self.scopes(session)
        )
        return engine.cache.missing([page for page, _ in first])

    def encode(self, session: Session, pages: Sequence[Page]) -> Iterator[tuple[int, int]]:
        """Encode pages for the session's settings: yields (done, of) page by page.

        A page whose picture is lost, or whose numbers are not finite, is passed over; a ranking
        says so.
        """
        engine = self.engine(session.settings)
        for done, page in enumerate(pages):
            yield done, len(pages)
            try:
                image = engine.cache.picture(page)
                item = PageImage(image, page.label, page.source, page.page_num)
                added = self.run(type(engine).add_page, engine, item, page.scope)
            except (PageLost, NotFinite):
                continue
            session.added[page.page_id] = added
            self.pace.saw(engine, "encode", added.elapsed_ms)
        yield len(pages), len(pages)
