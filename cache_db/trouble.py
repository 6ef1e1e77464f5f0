"""What happens when the disk fails: one warning, then on without it, and a word on recovery."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("cache_db")


def reason(error: Exception) -> str:
    """Why the disk or the database failed, without paths."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def is_full(error: Exception) -> bool:
    """Whether freeing space would help."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "full" in str(error)


def is_busy(error: Exception) -> bool:
    """Whether only somebody else's transaction was in the way."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


class Trouble:
    """Remembers what is failing, so that a full disk is one line in the log and not thousands."""

    def __init__(self) -> None:
        self._failing: dict[str, str] = {}

    @property
    def note(self) -> str:
        """What is failing now, in a sentence each; empty if nothing is."""
        return " ".join(self._failing.values())

    @contextmanager
    def guard(self, action: str) -> Iterator[None]:
        """Swallow I/O and database failures of an action ("store an entry"), warning once."""
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
            raise  # a bug of ours, not of the disk
        except (OSError, sqlite3.DatabaseError) as error:
            self.report(action, error)
        else:
            self.recovered(action)

    def report(self, action: str, error: Exception) -> None:
        """Note a failure, and log it if the action was working before."""
        sentence = f"Cannot {action}: {reason(error)}."
        if action not in self._failing:
            log.warning("%s Going on without until it works again.", sentence)
        self._failing[action] = sentence

    def recovered(self, action: str) -> None:
        """Note that an action worked."""
        if self._failing.pop(action, None):
            log.info("Can %s again.", action)


class Tally:
    """Counts of what happened, from any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, n: int = 1) -> None:
        """Count n more of something."""
        with self._lock:
            self._counts[name] += n

    def __getitem__(self, name: str) -> int:
        return self._counts[name]
