"""Connections: one a thread, write-ahead log, immediate transactions, fresh start after damage."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlite_utils

from cache_db.fork import gate
from cache_db.schema import NOT_A_STORE, UnknownDatabase, is_new, migrate
from cache_db.session import exclusive
from mrr.errors import Closed

TIMEOUT_S = 30.0
_LET_GO = -2  # no inode: the thread's next block opens a new connection
_MARK = b"The store.db beside this file is a page store's.\n"
log = logging.getLogger("cache_db")


@dataclass(eq=False)
class _Handle:
    """One thread's connection, and the inode of the file it was opened on."""

    db: sqlite_utils.Database
    inode: int


class Database:
    """The rows of a store. Each `read` or `write` block uses the calling thread's connection."""

    def __init__(self, path: Path | None) -> None:
        """path: None for a database in memory."""
        self.on_fresh: Callable[[], object] | None = None  # called when a lost one was replaced
        self._path = path
        self._pid = os.getpid()
        self._local = threading.local()
        self._handles: weakref.WeakSet[_Handle] = weakref.WeakSet()  # a dead thread's goes with it
        self._closed = False
        # A database in memory belongs to one connection, so its threads take turns.
        self._turn = threading.RLock() if path is None else None
        self._shared = _Handle(_connect(":memory:"), 0) if path is None else None
        if self._shared is not None:
            migrate(self._shared.db)
        else:
            gate.join(self)
            self._open_or_rebuild()

    @contextmanager
    def read(self) -> Iterator[sqlite_utils.Database]:
        """A connection on which each statement sees the last commit."""
        if self._turn is not None and self._shared is not None:
            with self._turn:
                self._check_open()
                yield self._shared.db
            return
        with gate:
            handle = self._handle()
            try:
                yield handle.db
            except sqlite3.DatabaseError as error:
                if _is_damage(error):
                    self._discard(handle.inode, str(error))
                raise

    @contextmanager
    def write(self) -> Iterator[sqlite_utils.Database]:
        """One transaction, commit at the end or nothing.

        IMMEDIATE, because a deferred transaction that reads before it writes fails at once,
        without the timeout, when another process wrote in between.
        """
        with self.read() as db:
            try:  # an interrupt may fall between BEGIN's success and the next line
                db.conn.execute("BEGIN IMMEDIATE")
                yield db
                db.conn.execute("COMMIT")
            except BaseException:
                if db.conn.in_transaction:
                    db.conn.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections of all threads."""
        self._closed = True
        self.let_go()
        if self._shared:
            self._shared.db.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("The store is closed; open it again to use it.")

    def let_go(self) -> None:
        """Close every connection to the file; each thread opens a new one when it needs it."""
        for handle in list(self._handles):
            handle.db.close()
            handle.inode = _LET_GO

    def _open_or_rebuild(self) -> None:
        """First connection; a store's file that is no database is replaced by an empty one."""
        with gate:
            try:
                self._handle()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                if not _is_marked(self._lock_path):
                    raise UnknownDatabase(NOT_A_STORE) from error
                assert self._path is not None
                self._discard(self._path.stat().st_ino, str(error))
                self._handle()

    def _handle(self) -> _Handle:
        """This thread's connection; a new one if the file was replaced by another process."""
        assert self._path is not None
        if os.getpid() != self._pid:
            raise RuntimeError("A store does not survive fork: open a new one in the child.")
        self._check_open()
        handle: _Handle | None = getattr(self._local, "handle", None)
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            inode = -1
        if handle is not None and handle.inode == inode:
            return handle
        if handle is not None:
            handle.db.close()
        with exclusive(self._lock_path):  # migrations begin deferred
            db = _connect(str(self._path))
            fresh = is_new(db)  # before anything is written to it
            _set_journal(db)
            migrate(db)
            _mark(self._lock_path)
            handle = _Handle(db, os.stat(self._path).st_ino)
        self._local.handle = handle
        self._handles.add(handle)
        if fresh and self.on_fresh:
            self.on_fresh()
        return handle

    @property
    def _lock_path(self) -> Path:
        assert self._path is not None
        return self._path.with_suffix(".lock")

    def discard(self) -> None:
        """Give a damaged database up; the next block starts with an empty one."""
        if self._path is not None:
            with gate:
                self._discard(self._handle().inode, "integrity check")

    def _discard(self, inode: int, reason: str) -> None:
        """Delete the database file, unless another process has replaced it already."""
        assert self._path is not None
        with exclusive(self._lock_path):
            if self._path.exists() and self._path.stat().st_ino == inode:
                log.warning("The store's database is damaged (%s); starting an empty one.", reason)
                for suffix in ("", "-wal", "-shm", "-journal"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _connect(path: str) -> sqlite_utils.Database:
    # isolation_level None: no hidden BEGIN. Other threads only ever close a connection.
    connection = sqlite3.connect(
        path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    return sqlite_utils.Database(connection, execute_plugins=False)


def _set_journal(db: sqlite_utils.Database) -> None:
    """Write-ahead log where the file system has it; otherwise a journal, synced in full."""
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA journal_size_limit = 4194304")  # a large log shrinks again
        return
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA synchronous = FULL")


def _mark(lock: Path) -> None:
    """Note in the lock file, which is empty at first, that the database beside it is a store's."""
    if lock.stat().st_size == 0:
        with suppress(OSError):  # a full disk; a later connection will
            lock.write_bytes(_MARK)


def _is_marked(lock: Path) -> bool:
    """Whether a store was here before: what is no database may be anybody's otherwise."""
    return lock.is_file() and lock.read_bytes() == _MARK


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Malformed or no database at all, as opposed to busy, full or failing to read."""
    return type(error) is sqlite3.DatabaseError or "no such table" in str(error)
