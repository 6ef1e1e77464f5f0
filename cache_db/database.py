"""Connections: one a thread, write-ahead log, immediate transactions, a rebuild after damage."""

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
from typing import TypeVar

import sqlite_utils

from cache_db.files import Files
from cache_db.fork import gate
from cache_db.rebuild import finish, rebuild, remove_damaged
from cache_db.schema import NOT_A_STORE, UnknownDatabase, is_new, migrate
from cache_db.session import exclusive
from mrr.errors import Closed

TIMEOUT_S = 30.0
_LET_GO = -2  # no inode: the thread's next block opens a new connection
_MARK = b"The store.db beside this file is a page store's.\n"
T = TypeVar("T")
log = logging.getLogger("cache_db")


class Rebuilt(sqlite3.DatabaseError):
    """The database was damaged, and is rebuilt by now: what failed may be tried again."""


class _Lost(sqlite3.DatabaseError):
    """There is no database any more where files of one are."""


def retried(action: Callable[[], T]) -> T:
    """Call action, and once more if what it met was a damaged database."""
    try:
        return action()
    except Rebuilt:
        return action()


@dataclass(eq=False)
class _Handle:
    """One thread's connection, and the inode of the file it was opened on.

    Closed with it: a connection lies in a reference cycle of its own, so that one which is only
    dropped stays open until garbage is looked for, unseen by whoever closes all before a fork.
    """

    db: sqlite_utils.Database
    inode: int

    def __post_init__(self) -> None:
        weakref.finalize(self, self.db.close)


class Database:
    """The rows of a store. Each `read` or `write` block uses the calling thread's connection."""

    def __init__(self, path: Path | None, files: Files | None = None) -> None:
        """path: None for a database in memory. files: what its rows name, and what it is rebuilt
        from where rows are lost."""
        self.damage = ""  # a sentence, once it had to be rebuilt
        self.on_rebuilt: Callable[[], object] | None = None
        self._to_tell = False  # whether on_rebuilt is still to be called
        self._path, self._files = path, files
        self._pid = os.getpid()
        self._local = threading.local()
        self._handles: weakref.WeakSet[_Handle] = weakref.WeakSet()  # a dead thread's goes with it
        self._closed = False
        self._free, self._n_inside = threading.Condition(), 0  # blocks that use a connection
        # A database in memory belongs to one connection, so its threads take turns.
        self._turn = threading.RLock() if path is None else None
        self._shared = _Handle(_connect(":memory:"), 0) if path is None else None
        if self._shared is not None:
            migrate(self._shared.db)
        else:
            gate.join(self)
            with gate:
                self._handle()

    @contextmanager
    def read(self) -> Iterator[sqlite_utils.Database]:
        """A connection on which each statement sees the last commit."""
        if self._turn is not None and self._shared is not None:
            with self._turn:
                self._check_open()
                yield self._shared.db
            return
        with gate, self._inside():
            handle = self._handle()
            try:
                yield handle.db
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._rebuild(handle.inode, str(error))
                raise Rebuilt(str(error)) from error

    @contextmanager
    def write(self, *, waits: bool = True) -> Iterator[sqlite_utils.Database]:
        """One transaction, commit at the end or nothing.

        IMMEDIATE, because a deferred transaction that reads before it writes fails at once,
        without the timeout, when another process wrote in between. waits: for one who writes now;
        False fails at once instead, as busy.
        """
        with self.read() as db:
            try:  # an interrupt may fall between BEGIN's success and the next line
                if not waits:
                    db.conn.execute("PRAGMA busy_timeout = 0")
                db.conn.execute("BEGIN IMMEDIATE")
                if self._is_replaced():  # while this waited
                    raise Rebuilt("it was replaced by another process")
                yield db
                db.conn.execute("COMMIT")
            except BaseException:
                if db.conn.in_transaction:
                    db.conn.execute("ROLLBACK")
                raise
            finally:
                if not waits:
                    db.conn.execute(f"PRAGMA busy_timeout = {TIMEOUT_S * 1000:.0f}")

    def close(self) -> None:
        """Close the connections of all threads, once none of them is used any more.

        SQLite would crash under a statement whose connection is closed by another thread.
        """
        self._closed = True
        with self._free:
            self._free.wait_for(lambda: self._n_inside <= self._depth, TIMEOUT_S)
        self.let_go()
        if self._shared is not None and self._turn is not None:
            with self._turn:
                self._shared.db.close()

    @property
    def _depth(self) -> int:
        """Blocks that this thread is in."""
        return getattr(self._local, "depth", 0)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with self._free:
            self._n_inside += 1
            self._local.depth = self._depth + 1
        try:
            yield
        finally:
            with self._free:
                self._n_inside -= 1
                self._local.depth = self._depth - 1
                self._free.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("The store is closed; open it again to use it.")

    def let_go(self) -> None:
        """Close every connection to the file; each thread opens a new one when it needs it."""
        for handle in list(self._handles):
            handle.db.close()
            handle.inode = _LET_GO

    def _handle(self) -> _Handle:
        """This thread's connection; a new one if the file was replaced by another process."""
        assert self._path is not None
        if os.getpid() != self._pid:
            raise RuntimeError("A store does not survive fork: open a new one in the child.")
        self._check_open()
        handle: _Handle | None = getattr(self._local, "handle", None)
        if handle is not None and handle.inode == _inode(self._path):
            return handle
        if handle is not None:
            handle.db.close()
        with exclusive(self._lock_path):  # migrations begin deferred
            if finish(self._path):
                self._remember("its rebuild was cut short")
            try:
                db = self._open()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                if not isinstance(error, _Lost) and not _is_marked(self._lock_path):
                    raise UnknownDatabase(NOT_A_STORE) from error
                self._replace(str(error))
                db = self._open()
            handle = _Handle(db, _inode(self._path))
        self._local.handle = handle
        self._handles.add(handle)
        if self._to_tell and self.on_rebuilt:
            self._to_tell = False
            self.on_rebuilt()
        return handle

    @property
    def _lock_path(self) -> Path:
        assert self._path is not None
        return self._path.with_suffix(".lock")

    def rebuild(self, reason: str) -> None:
        """Replace a database that was found damaged."""
        if self._path is not None:
            with gate:
                self._rebuild(self._handle().inode, reason)

    def forget_damage(self) -> None:
        """Delete what a rebuild has kept of the damaged database, and speak of it no more."""
        self.damage = ""
        if self._path is not None:
            remove_damaged(self._path)

    def _open(self) -> sqlite_utils.Database:
        """A connection to a database with all its tables; the caller holds the lock."""
        db = _connect(str(self._path))
        try:
            # Before anything is written to it.
            if is_new(db) and self._files is not None and self._files.names():
                raise _Lost("it is empty, and the files are not")
            _set_journal(db)
            migrate(db)
        except BaseException:
            db.close()
            raise
        _mark(self._lock_path)
        return db

    def _is_replaced(self) -> bool:
        """Whether the file that this thread's connection was opened on is the database no more."""
        return self._path is not None and self._local.handle.inode != _inode(self._path)

    def _rebuild(self, inode: int, reason: str) -> None:
        """Rebuild the database, unless another process has replaced it already."""
        assert self._path is not None
        with exclusive(self._lock_path):
            if _inode(self._path) == inode:
                self._replace(reason)

    def _replace(self, reason: str) -> None:
        """Rebuild the database; the caller holds the lock."""
        assert self._path is not None
        rebuild(self._path, self._files)
        self._remember(reason)

    def _remember(self, reason: str) -> None:
        """Note that the database was damaged, and is rebuilt."""
        self.damage = f"The store's database was damaged ({reason}); what can be read was kept."
        self._to_tell = self.on_rebuilt is not None
        log.warning(self.damage)


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


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return -1


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Malformed or no database at all, as opposed to busy, full or failing to read."""
    signs = ("no such table", "no such column", "Could not decode to UTF-8")
    return type(error) in (sqlite3.DatabaseError, _Lost) or any(s in str(error) for s in signs)
