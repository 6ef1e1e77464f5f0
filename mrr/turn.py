"""One pass at a time: who waits for the models gets them in the order of coming.

A lock of the standard library goes to whoever is quickest. A thread that takes it again at once is
quicker than one that has to wake up first, so long work would keep it from pass to pass.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

Progress = Callable[[int, int], None]  # (passes done, of)
Stop = Callable[[], bool]  # asked after each pass
Wanted = Callable[[], bool]  # asked while something is waited for
Rest = Callable[[], None]  # called between two passes
NO_LOCK = nullcontext()
_LOOK_S = 0.1


class FairLock:
    """A reentrant lock that goes to the thread that has waited longest."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    def acquire(self, wanted: Wanted | None = None) -> bool:
        """Wait for the lock; False, without it, once wanted() says no while it is waited for."""
        with self._changed:
            if self._owner != threading.get_ident() and not self._take(wanted):
                return False
            self._depth += 1
            return True

    def release(self) -> None:
        """Leave one block; the last one of a thread gives the lock away."""
        with self._changed:
            if self._owner != threading.get_ident():
                raise RuntimeError("The lock is released by a thread that does not hold it.")
            self._depth -= 1
            if not self._depth:
                self._give()

    def rest(self) -> None:
        """Between two passes of its owner: those who wait have the lock first, then it again."""
        with self._changed:
            depth, interrupt = self._depth, None
            self._depth = 0
            self._give()
            # Interrupted or not: the blocks that hold the lock give it back.
            while self._owner != threading.get_ident():
                try:
                    self._take()
                except BaseException as error:
                    interrupt = error
            self._depth = depth
            if interrupt is not None:
                raise interrupt

    def __enter__(self) -> FairLock:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _take(self, wanted: Wanted | None = None) -> bool:
        """Become the owner, in turn; the caller holds the condition."""
        me = object()
        try:
            self._waiting.append(me)
            while self._owner is not None or self._waiting[0] is not me:
                self._changed.wait(None if wanted is None else _LOOK_S)
                if wanted is not None and not wanted():
                    return False
            self._owner = threading.get_ident()
            return True
        finally:
            if me in self._waiting:
                self._waiting.remove(me)
            self._changed.notify_all()  # who is first now may have been waiting for that

    def _give(self) -> None:
        self._owner = None
        self._changed.notify_all()


def no_rest() -> None:
    """The Rest of work that nobody waits for."""


def never() -> bool:
    """The Stop of work that runs to its end."""
    return False
