"""Which processes are alive, told by file locks that the kernel drops when a process dies."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_db.fork import gate

LOCK_TIMEOUT_S = 30.0
_NAME = re.compile(r"[0-9a-f]{16}")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file at path, waiting for other holders; TimeoutError after 30 s."""
    with gate:  # a child forked meanwhile would hold it as long as it lives
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path.name} was held for {LOCK_TIMEOUT_S:.0f} s")
                time.sleep(0.005)
            yield
        finally:
            os.close(fd)


def _try_lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Session:
    """This store object's sign of life: a lock file held from opening to closing.

    Pins and reservations name the session that made them, so those of a killed process can be
    told from those in use. A child forked from the process shares the lock and prolongs it.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: where the lock files lie; None where there are no other processes."""
        self.name = secrets.token_hex(8)
        self._folder = folder
        self._fd: int | None = None
        if folder is None:
            return
        with exclusive(folder / "gate"):  # nobody may find the file before it is locked
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(folder / self.name, flags, 0o600)
            _try_lock(self._fd)
        # What is dropped without `close` is a dead session, not one that lives with the process.
        self._dropped = weakref.finalize(self, os.close, self._fd)

    def alive(self, name: str) -> bool:
        """Whether the session of that name is still open, here or in another process."""
        if name == self.name:
            return True
        if self._folder is None:
            return False
        try:
            fd = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(fd, fcntl.LOCK_SH)  # shared by all who ask at the same moment
        finally:
            os.close(fd)

    def bury(self) -> None:
        """Delete the lock files of sessions that are gone, and nothing else that lies there."""
        if self._folder is None:
            return
        with exclusive(self._folder / "gate"):
            for name in os.listdir(self._folder):
                if _is_sign(self._folder / name) and not self.alive(name):
                    (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Give the sign of life up."""
        if self._fd is not None and self._folder is not None:
            (self._folder / self.name).unlink(missing_ok=True)
            self._dropped()
            self._fd = None


def _is_sign(path: Path) -> bool:
    """Whether this can be a session's lock file: it is named like one, regular and empty."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:  # closed meanwhile
        return False
    named = _NAME.fullmatch(path.name) is not None
    return named and stat.S_ISREG(status.st_mode) and status.st_size == 0
