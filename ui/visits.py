"""Who is here, by their heartbeats, and what goes when they leave or are not heard of any more."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import gradio as gr
from anyio import to_thread
from gradio.route_utils import API_PREFIX
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.own_paths import route
from ui.session import Session, own_scopes

if TYPE_CHECKING:
    from ui.workbench import Workbench

log = logging.getLogger("ui")

GRACE_S = 3.0  # a heartbeat that breaks may come back
AWAY_S = 600.0  # what a tab that left had, but for its pages, is kept so long: it may be asleep
MOST_AWAY = 100  # each has megabytes
IDLE_S = 3600.0  # after its last call the session of a program without a heartbeat is over
MOST_PROGRAMS = 500  # of them; where no session is named, each call is one
SWEEP_S = 60.0
_HEARTBEAT = re.compile(re.escape(API_PREFIX) + r"/heartbeat/([^/]{1,100})")


class Visits:
    """The sessions of all tabs and programs, which Gradio keeps by a hash that opens nothing.

    A tab holds a heartbeat, as a `gradio_client` does: a request that lasts as long as it lives.
    When that ends, its work stops within a page and its pages go. At every sweep what has no
    heartbeat and was not used for long is forgotten, and pages whose scope no session has are
    removed, however they came to be there. But for removing, all of it runs on Gradio's event loop,
    as whatever looks up a session does.
    """

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._beats: Counter[str] = Counter()
        self._left: dict[str, float] = {}  # when the last heartbeat ended, where there was one
        self._drawn: set[str] = set()  # whose page was drawn, though Gradio may have dropped it
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._too_many = asyncio.Event()

    def of(self, demo: gr.Blocks, state: gr.State) -> None:
        """Where the sessions are: this state of this page."""
        self._demo, self._state = demo, state

    def drew(self, session: Session) -> None:
        """The page of this session's tab was drawn."""
        session.new = False
        self._drawn.update(self._beating(session))

    def is_another(self, session: Session) -> bool:
        """Whether its tab shows what an earlier session had, which is gone.

        A tab that has only just been opened may ask before its page is drawn; its heartbeat is
        heard by then.
        """
        if not session.new:
            return False
        beating = self._beating(session)
        return not beating or not self._drawn.isdisjoint(beating)

    def _beating(self, session: Session) -> list[str]:
        return [name for name in list(self._beats) if self._session(name) is session]

    def _session(self, session_hash: str) -> Session | None:
        kept = self._demo.state_holder.session_data.get(session_hash)
        return None if kept is None else kept.state_data.get(self._state._id)

    # ----------------------------------------------------- coming, leaving

    def came(self, session_hash: str) -> None:
        """A heartbeat of this session begins."""
        self._beats[session_hash] += 1
        self._left.pop(session_hash, None)
        session = self._session(session_hash)
        if session is not None and not session.new:
            self._drawn.add(session_hash)

    def went(self, session_hash: str) -> None:
        """A heartbeat of this session has ended."""
        self._beats[session_hash] -= 1
        if not self._beats[session_hash]:
            del self._beats[session_hash]
            self._left[session_hash] = ended = time.monotonic()
            self._run(self._leave(session_hash, ended))

    async def _leave(self, session_hash: str, ended: float) -> None:
        await asyncio.sleep(GRACE_S)
        if self._left.get(session_hash) != ended:  # it came back, and may have gone again since
            return
        session = self._session(session_hash)
        if session is None:
            del self._left[session_hash]
            return
        # What is stored in the old scope from here on, nobody has: the next sweep removes it.
        scope, session.scope = session.scope, self._bench.session().scope
        session.end()
        n_removed = await to_thread.run_sync(self._remove, scope)
        session.n_lost += n_removed  # not in one line: what it was before the removal is no matter

    def _remove(self, scope: str) -> int:
        try:
            return self._bench.remove_scope(scope)
        except Exception:  # nobody waits for this, and the next sweep tries again
            log.exception("The pages of a session that is over could not be removed")
            return 0

    # ------------------------------------------------------------ sweeping

    def look_after(self) -> None:
        """Sweep from now on; at once where there are too many."""
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = self._run(self._sweep_for_good())
        kept = self._demo.state_holder.session_data
        # A heartbeat may be of nobody, and is then no reason to keep anybody.
        n_without = len(kept) - sum(session_hash in kept for session_hash in self._beats)
        if n_without > MOST_PROGRAMS + MOST_AWAY:
            self._too_many.set()

    async def _sweep_for_good(self) -> None:
        while True:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._too_many.wait(), SWEEP_S)
            self._too_many.clear()
            try:
                await self.sweep()
            except Exception:  # a store that is busy, say: the next one finds the same and more
                log.exception("A sweep of the sessions failed")
            await asyncio.sleep(1)

    async def sweep(self) -> None:
        """Forget the sessions that are over, and remove the pages that no session has."""
        for session in self._take_over():
            session.end()
        # In this order: who comes meanwhile has nothing among what was stored before.
        stored = await to_thread.run_sync(own_scopes, self._bench.store)
        theirs = {session.scope for session in map(self._session, self._hashes()) if session}
        for scope in set(stored) - theirs:
            await to_thread.run_sync(self._remove, scope)

    def _hashes(self) -> list[str]:
        return list(self._demo.state_holder.session_data)

    def _take_over(self) -> list[Session]:
        """Forget the sessions that are over, with whatever Gradio keeps for them; those."""
        holder, queue, now = self._demo.state_holder, self._demo._queue, datetime.now()
        in_use = {event.session_hash for event in list(queue.event_ids_to_events.values())}
        in_use |= set(self._beats)
        away: list[tuple[float, str]] = []
        programs: list[tuple[float, str]] = []
        for session_hash in set(self._hashes()) - in_use:
            idle_s = (now - holder.time_last_used.get(session_hash, now)).total_seconds()
            if session_hash in self._left:
                gone_s = time.monotonic() - self._left[session_hash]
                away.append((min(idle_s, gone_s), session_hash))
            else:
                programs.append((idle_s, session_hash))
        over = _beyond(away, AWAY_S, MOST_AWAY) + _beyond(programs, IDLE_S, MOST_PROGRAMS)
        taken = [session for session in map(self._session, over) if session is not None]
        for session_hash in over:
            holder.session_data.pop(session_hash, None)
            holder.time_last_used.pop(session_hash, None)
        known = set(holder.session_data) | in_use
        self._left = {name: at for name, at in self._left.items() if name in known}
        self._drawn &= known
        for answers in (queue.pending_messages_per_session, queue.pending_event_ids_session):
            for session_hash in set(answers) - known:
                answers.pop(session_hash, None)
        return taken

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself does not hold it
        task.add_done_callback(self._tasks.discard)
        return task


def _beyond(kept: list[tuple[float, str]], longest_s: float, most: int) -> list[str]:
    """Hashes of those (seconds idle, hash) that are over: idle for too long, or not used lately."""
    return [
        session_hash
        for n, (idle_s, session_hash) in enumerate(sorted(kept))
        if idle_s > longest_s or n >= most
    ]


class Heartbeats:
    """Middleware that tells visits whose heartbeats begin and end."""

    def __init__(self, app: ASGIApp, visits: Visits) -> None:
        self.app, self.visits = app, visits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] == "http":
            self.visits.look_after()
        beat = _HEARTBEAT.fullmatch(route(scope))
        if beat is None:
            return await self.app(scope, receive, send)
        self.visits.came(beat[1])
        try:
            await self.app(scope, receive, send)
        finally:
            self.visits.went(beat[1])
