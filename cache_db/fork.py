"""No SQLite connection crosses a fork.

SQLite remembers in the process's memory which file locks it holds. A forked child inherits that
memory but not the locks, so even a connection of its own would read without a lock. Before a fork
every connection is therefore closed, and threads that want one wait until it is over; each opens a
new one afterwards.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Closable(Protocol):
    """Whatever has connections to close."""

    def let_go(self) -> None:
        """Close every connection; each is opened again when it is needed."""


class ForkGate:
    """Lets any number of threads in, as often as they like, or one thread fork."""

    def __init__(self) -> None:
        self._members: weakref.WeakSet[Closable] = weakref.WeakSet()
        self._reset()

    def _reset(self) -> None:
        self._free = threading.Condition()
        self._mine = threading.local()
        self._n_inside = 0
        self._forking = False

    def join(self, member: Closable) -> None:
        """Call member.let_go() before every fork."""
        self._members.add(member)

    @property
    def _depth(self) -> int:
        return getattr(self._mine, "depth", 0)

    def __enter__(self) -> None:
        with self._free:
            while self._forking and not self._depth:
                self._free.wait()
            self._n_inside += 1
            self._mine.depth = self._depth + 1

    def __exit__(self, *exc: object) -> None:
        with self._free:
            self._n_inside -= 1
            self._mine.depth = self._depth - 1
            self._free.notify_all()

    def before_fork(self) -> None:
        """Wait until nobody else is inside, and close everything."""
        with self._free:
            while self._forking:
                self._free.wait()
            self._forking = True
            while self._n_inside > self._depth:
                self._free.wait()
        if not self._depth:  # else the forking thread itself is in the middle of something
            for member in list(self._members):
                member.let_go()

    def after_in_parent(self) -> None:
        """Let the threads go on."""
        with self._free:
            self._forking = False
            self._free.notify_all()

    def after_in_child(self) -> None:
        """Only the forking thread is left; whoever waited does not exist here."""
        self._reset()


gate = ForkGate()
os.register_at_fork(
    before=gate.before_fork,
    after_in_parent=gate.after_in_parent,
    after_in_child=gate.after_in_child,
)
