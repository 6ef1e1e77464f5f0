"""The byte budget: room is reserved before a file is written, least recently used K/V goes first.

Pages that were added to stay and whatever is pinned are never evicted to make room. Because
reservations of all processes count as used, those of killed ones until their files are gone, the
files stay within the budget while they are written too, not only in the end. What is evicted loses
its row first and its file right after; the files of one who is killed in between count no more,
and are swept at the next start.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlite_utils

from cache_db.database import Database
from cache_db.files import Files, new_name
from cache_db.schema import typed
from cache_db.session import Session
from cache_db.trouble import Tally
from mrr.errors import BudgetExceeded

# Scope of pages that nobody added: pictures passed to rerank(). A cache like K/V, evicted with it.
DOCUMENTS = "documents"
_TOUCH_INTERVAL_S = 5.0
_USED = """
    SELECT (SELECT coalesce(sum(nbytes), 0) FROM entries)
         + (SELECT coalesce(sum(nbytes), 0) FROM pages)
         + (SELECT coalesce(sum(nbytes), 0) FROM reservations)
"""
_NAMED = """
    SELECT file FROM entries WHERE file IS NOT NULL UNION ALL SELECT file FROM reservations
    UNION ALL SELECT file FROM pages WHERE file IS NOT NULL
"""
_NAMED_OF = f"SELECT file FROM ({_NAMED}) WHERE file IN (SELECT value FROM json_each(?))"  # noqa: S608
_FILES_AT_ONCE = 50  # others wait for the transaction that they are deleted in
# What may go, in the order in which it goes: a document right after the last of its entries.
_IDLE = """
    SELECT 'entries', key, file, nbytes, last_used_ns, rowid FROM entries
    WHERE key NOT IN (SELECT key FROM pins)
    UNION ALL
    SELECT 'pages', page_id, file, nbytes,
        (SELECT coalesce(max(last_used_ns), 0) FROM entries WHERE page_id = pages.page_id), id
    FROM pages WHERE scope = ? AND file IS NOT NULL AND page_id NOT IN (
        SELECT key FROM pins UNION SELECT page_id FROM entries JOIN pins USING (key)
    )
    ORDER BY 5, 1, 6
"""


def now_ns() -> int:
    """Wall clock in nanoseconds, shared by all processes; coarser units make ties of quick puts."""
    return time.time_ns()


class Touches:
    """Which entries were used when, written in batches: reading stays free of transactions."""

    def __init__(self) -> None:
        self._pending: dict[str, int] = {}
        self._lock = threading.Lock()
        self._flushed_s = time.monotonic()

    def add(self, keys: Iterable[str]) -> None:
        """Note that the keys were used now."""
        stamp = now_ns()
        with self._lock:
            self._pending.update(dict.fromkeys(keys, stamp))

    @property
    def due(self) -> bool:
        """Whether the notes are old enough to be worth a transaction."""
        return bool(self._pending) and time.monotonic() - self._flushed_s > _TOUCH_INTERVAL_S

    @contextmanager
    def flush(self, database: Database) -> Iterator[sqlite_utils.Database]:
        """A transaction that the notes are written in first; they are kept if it fails."""
        with self._lock:
            pending, self._pending = self._pending, {}
            self._flushed_s = time.monotonic()
        try:
            with database.write() as db:
                db.conn.executemany(
                    "UPDATE entries SET last_used_ns = max(last_used_ns, ?) WHERE key = ?",
                    [(stamp, key) for key, stamp in pending.items()],
                )
                yield db
        except BaseException:
            with self._lock:
                self._pending = pending | self._pending  # later notes count
            raise


@dataclass
class Room:
    """Reserved space for one file. name: of the file; kept: whether a row now names it."""

    name: str
    kept: bool = False

    def keep(self, db: sqlite_utils.Database) -> None:
        """Turn the reservation into a kept file, in the transaction that inserts the row."""
        db.execute("DELETE FROM reservations WHERE file = ?", (self.name,))
        self.kept = True


@dataclass(frozen=True, slots=True)
class _Victim:
    """What is evicted. table: entries, or pages; key: of an entry, or a page's id."""

    table: str
    key: str
    file: str


@dataclass
class Space:
    """The bytes that the files of a store may take."""

    database: Database
    files: Files
    session: Session
    budget_bytes: int
    tally: Tally
    touches: Touches = field(default_factory=Touches)
    _abandoned: set[str] = field(default_factory=set)

    @contextmanager
    def reserve(self, nbytes: int, suffix: str) -> Iterator[Room]:
        """Make room for a file, and clean up after it if it is not kept.

        Raises
        ------
        BudgetExceeded: if it does not fit, whatever is evicted; nothing is evicted then.
        """
        room = Room(new_name(suffix))
        self._clear_abandoned()
        undo = False
        try:
            victims = self._make_room(room.name, nbytes)
            for file in victims:  # their rows are gone: a reader finds no row, or a file
                self.files.delete(file)
            yield room
            undo = not room.kept
        except BaseException:  # an interrupt may have come right after a transaction's end
            undo = self._is_reserved(room.name)
            raise
        finally:
            if undo:
                self._abandoned.add(room.name)
                self._clear_abandoned()

    def pin(self, keys: Iterable[str]) -> str:
        """Keep entries, or pages by their ids, from being evicted, until `unpin` or the end of
        this process."""
        pin = secrets.token_hex(8)
        with self.database.write() as db:
            db.conn.executemany(
                "INSERT INTO pins (pin, session, key) VALUES (?, ?, ?)",
                [(pin, self.session.name, key) for key in set(keys)],
            )
        return pin

    def unpin(self, pin: str) -> None:
        """Undo one `pin`."""
        with self.database.write() as db:
            db.execute("DELETE FROM pins WHERE pin = ?", (pin,))

    def _make_room(self, name: str, nbytes: int) -> list[str]:
        """Enter a reservation, deleting the rows in its way; returns the files of those rows."""
        victims: list[_Victim] = []
        with self.touches.flush(self.database) as db:
            if _used(db) + nbytes > self.budget_bytes:
                if doomed := release_dead(db, self.session):
                    delete_unnamed(db, self.files, doomed)
                victims = self._victims(db, _used(db) + nbytes - self.budget_bytes, nbytes)
                _delete_rows(db, victims)
            db.execute(
                "INSERT INTO reservations (file, session, nbytes) VALUES (?, ?, ?)",
                (name, self.session.name, nbytes),
            )
        self.tally.add("evicted", len(victims))
        return [victim.file for victim in victims]

    def _victims(self, db: sqlite_utils.Database, excess: int, nbytes: int) -> list[_Victim]:
        """The least recently used of what may go, to free excess bytes."""
        victims = []
        for table, key, file, size, *_ in db.execute(_IDLE, (DOCUMENTS,)):
            if excess <= 0:
                break
            victims.append(_Victim(table, key, file))
            excess -= size
        if excess > 0:
            raise BudgetExceeded(
                f"{_mb(nbytes)} do not fit: the store's budget is {_mb(self.budget_bytes)} and "
                f"{_mb(excess)} too much is in use. Remove pages, or raise budget_bytes or "
                "MRR_BUDGET_GIB."
            )
        return victims

    def _is_reserved(self, name: str) -> bool:
        """Whether a reservation stands; where that cannot be read, it is taken to."""
        try:
            with self.database.read() as db:
                sql = "SELECT 1 FROM reservations WHERE file = ?"
                return db.execute(sql, (name,)).fetchone() is not None
        except (OSError, sqlite3.DatabaseError):
            return True

    def _clear_abandoned(self) -> None:
        """Undo reservations that were not kept; on a full disk that may take several tries."""
        for name in list(self._abandoned):
            self.files.delete(name)
            with self.database.write() as db:
                db.execute("DELETE FROM reservations WHERE file = ?", (name,))
            self._abandoned.discard(name)


def named(db: sqlite_utils.Database) -> set[str]:
    """The files that a row or a reservation names."""
    return {typed(row, str)[0] for row in db.execute(_NAMED)}


def delete_unnamed(db: sqlite_utils.Database, files: Files, names: Collection[str]) -> None:
    """Delete those of the files that are named by nothing.

    In a transaction: nobody can come to name one between the question and the deletion.
    """
    taken = {row[0] for row in db.execute(_NAMED_OF, (json.dumps(list(names)),))}
    for name in set(names) - taken:
        files.delete(name)


def delete_all_unnamed(database: Database, files: Files, names: Collection[str]) -> None:
    """The same for any number of files, in transactions that are short."""
    left = list(names)
    while left:
        with database.write() as db:
            delete_unnamed(db, files, left[:_FILES_AT_ONCE])
        del left[:_FILES_AT_ONCE]


def release_dead(db: sqlite_utils.Database, session: Session) -> list[str]:
    """Drop pins and reservations of processes that died; returns the files that were reserved."""
    doomed: list[str] = []
    names = db.execute("SELECT session FROM pins UNION SELECT session FROM reservations").fetchall()
    for row in names:
        (name,) = typed(row, str)
        if not session.alive(name):
            reserved = db.execute("SELECT file FROM reservations WHERE session = ?", (name,))
            doomed += [typed(row, str)[0] for row in reserved]
            db.execute("DELETE FROM pins WHERE session = ?", (name,))
            db.execute("DELETE FROM reservations WHERE session = ?", (name,))
    return doomed


def _delete_rows(db: sqlite_utils.Database, victims: Iterable[_Victim]) -> None:
    for victim in victims:
        if victim.table == "entries":
            db.execute("DELETE FROM entries WHERE key = ?", (victim.key,))
        else:  # its entries stood before it, and are gone
            db.execute("DELETE FROM embeddings WHERE page_id = ?", (victim.key,))
            db.execute("DELETE FROM pages WHERE page_id = ?", (victim.key,))


def _used(db: sqlite_utils.Database) -> int:
    return int(db.execute(_USED).fetchone()[0])


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"
