"""Which tab or program holds which session, so that its work stops and its pages go with it."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from ui.session import Session

log = logging.getLogger("ui")

IDLE_S = 3600.0  # after its last call a program's session is over
MOST_PROGRAMS = 500  # of those that named no session, each call is one
_MOST_CLOSED = 10_000
_LONGEST_HASH = 100  # Gradio's own have 36 characters at most
_SWEEP_S = 600.0


class States(Protocol):
    """What a browser or a program has in Gradio, by session hash: a quarter of a megabyte each."""

    def __contains__(self, session_hash: str, /) -> bool:
        """Whether there is anything."""

    def drop(self, session_hash: str) -> None:
        """Give it back."""


class Tabs:
    """Sessions by Gradio's session hash, which serves only to close: it opens nothing.

    A browser's tab is over when its heartbeat ends, however long nobody has touched it. A program
    need not have a heartbeat, so its session is over an hour after its last call, too, and sooner
    where 500 others were used since.
    """

    def __init__(self, remove_scope: Callable[[str], object], states: States | None = None) -> None:
        self._remove, self._states = remove_scope, states
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # used last, last
        self._closed: OrderedDict[str, tuple[float, str]] = OrderedDict()  # when, and its scope
        self._replaced: list[Session] = []
        self._failed: list[str] = []  # scopes
        self._watched, self._many = False, threading.Event()
        self._lock = threading.Lock()

    def opened(self, session_hash: str | None, session: Session) -> None:
        """Note whose session this is, and that it is in use; any number of times."""
        if session_hash is None:
            return
        session.touch()
        with self._lock:
            session.gone |= session_hash in self._closed
            before = self._sessions.get(session_hash)
            if before is not None and before is not session:  # Gradio had too many and dropped it
                before.gone = True
                self._replaced.append(before)
            self._sessions[session_hash] = session
            self._sessions.move_to_end(session_hash)
            self._watch()

    def closed(self, session_hash: str | None) -> None:
        """A tab is gone: stop its work within a page, and remove its pages.

        A mark stays for an hour: for calls that are queued still, maybe the first of all, and for a
        page that was stored after its scope was removed.
        """
        if session_hash is None:
            return
        with self._lock:
            session = self._sessions.pop(session_hash, None)
            if session is not None:
                session.gone = True
                self._closed[session_hash] = time.monotonic(), session.scope
            elif len(session_hash) <= _LONGEST_HASH:
                self._closed.setdefault(session_hash, (time.monotonic(), ""))
            # Anybody can close what was never open, under any name.
            while len(self._closed) > _MOST_CLOSED:
                self._closed.popitem(last=False)
            self._watch()
        if session is not None:
            session.end()
            self._remove(session.scope)

    def sweep(self) -> None:
        """End what is over: replaced, dropped by Gradio, or a program's and idle or too many.

        What cannot be removed, as from a disk that fails, is tried again by the next sweep.
        """
        with self._lock:
            over = self._take_over()
            scopes = [*(session.scope for session in over), *self._take_old_marks(), *self._failed]
            self._failed = []
        for session in over:
            session.end()
        for scope in scopes:
            try:
                self._remove(scope)
            except Exception:  # of a thread that nobody waits for
                log.exception("The pages of a session that is over could not be removed")
                with self._lock:
                    self._failed.append(scope)

    def _take_over(self) -> list[Session]:
        """Forget the sessions that are over, and return them."""
        over, self._replaced = self._replaced, []
        since = time.monotonic() - IDLE_S
        programs = [
            (session_hash, session)
            for session_hash, session in self._sessions.items()
            if not session.busy and (session.gone or not session.in_browser)
        ]
        n_too_many = len(programs) - MOST_PROGRAMS
        for n, (session_hash, session) in enumerate(programs):
            if session.used < since or n < n_too_many:
                over.append(self._sessions.pop(session_hash))
                if self._states is not None:
                    self._states.drop(session_hash)
        if self._states is not None:
            for session_hash in [each for each in self._sessions if each not in self._states]:
                over.append(self._sessions.pop(session_hash))
        for session in over:
            session.gone = True
        return over

    def _take_old_marks(self) -> list[str]:
        """Forget the marks of an hour ago, and return their scopes."""
        since, scopes = time.monotonic() - IDLE_S, []
        while self._closed and next(iter(self._closed.values()))[0] < since:
            _, (_, scope) = self._closed.popitem(last=False)
            if scope:
                scopes.append(scope)
        return scopes

    # --------------------------------------------------------------- watch

    def _watch(self) -> None:
        """See that somebody sweeps: now and then, and at once where there are many."""
        if len(self._sessions) > MOST_PROGRAMS:
            self._many.set()
        if not self._watched:
            self._watched = True
            threading.Thread(target=self._sweep_until_empty, daemon=True).start()

    def _sweep_until_empty(self) -> None:
        while True:
            self._many.wait(_SWEEP_S)
            self._many.clear()
            self.sweep()
            with self._lock:
                if not (self._sessions or self._closed or self._replaced or self._failed):
                    self._watched = False
                    return
