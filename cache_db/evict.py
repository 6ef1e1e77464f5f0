"""The byte budget: room is reserved before a file is written, least recently used K/V goes first.

Pages that were added to stay and whatever is pinned are never evicted to make room. Because
reservations of all processes count as used, those of killed ones until their files are gone, the
files stay within the budget while they are written too, not only in the end. Whatever is evicted,
replaced or removed loses its row first and its file right after. In between a reservation of no
bytes stands for the file, which counts no more; if its owner is killed, it is deleted by the next
start, or by who needs the room.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import sqlite_utils

from cache_db.database import Database, Rebuilt, retried
from cache_db.files import Files, new_name
from cache_db.removal import delete_unnamed, keep_for, parts, raise_first, release_dead
from cache_db.schema import typed
from cache_db.session import Session
from cache_db.trouble import Tally, Trouble, is_busy
from mrr.errors import BudgetExceeded

# Scope of pages that nobody added: pictures passed to rerank(). A cache like K/V, evicted with it.
DOCUMENTS = "documents"
_TOUCH_INTERVAL_S = 5.0
_USED = """
    SELECT (SELECT coalesce(sum(nbytes), 0) FROM entries)
         + (SELECT coalesce(sum(nbytes), 0) FROM pages)
         + (SELECT coalesce(sum(nbytes), 0) FROM reservations)
"""
_FORGET = "DELETE FROM reservations WHERE file = ? AND session = ?"
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

    def try_to_flush(self, database: Database) -> None:
        """Write the notes, if nobody else writes now: who reads must not wait for a writer."""
        try:
            with self.flush(database, waits=False):
                pass
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise

    @contextmanager
    def flush(self, database: Database, *, waits: bool = True) -> Iterator[sqlite_utils.Database]:
        """A transaction that the notes are written in first; they are kept if it fails."""
        with self._lock:
            pending, self._pending = self._pending, {}
            self._flushed_s = time.monotonic()
        try:
            with database.write(waits=waits) as db:
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
        """Turn the reservation into a kept file, in the transaction that inserts the row.

        Without a reservation there may be no file either: whoever closed the store deletes both.
        """
        if db.execute("DELETE FROM reservations WHERE file = ?", (self.name,)).rowcount != 1:
            raise Rebuilt(f"the reservation of {self.name} is gone")
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
    trouble: Trouble
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
        self._try_to_clean_up()
        try:
            self._delete(self._make_room(room.name, nbytes))
            yield room
            if not room.kept:
                self._abandoned.add(room.name)
        except BaseException:  # an interrupt may have come right after a transaction's end
            if self._is_reserved(room.name):
                self._abandoned.add(room.name)
            self._try_to_clean_up()
            raise
        self.clean_up()

    def abandon(self, db: sqlite_utils.Database, names: Collection[str]) -> None:
        """Give files up in the transaction that takes their rows; `clean_up` then deletes them.

        Not in this transaction: killed before its end, we would leave rows without files. Until
        they are gone our reservations keep others from taking them for files whose rows were
        lost, of which a rebuild would make pages again. Where others have one, theirs stays.
        """
        keep_for(db, self.session.name, names)
        # Where the transaction fails the rows still stand, so `clean_up` deletes nothing.
        self._abandoned.update(names)

    def clean_up(self) -> None:
        """Delete what was abandoned. What fails, as on a full disk it may, is tried again later:
        what is stored or removed is so all the same."""
        with self.trouble.guard("delete files"):
            self._delete_abandoned()

    def pin(self, keys: Iterable[str], mark: str = "") -> str:
        """Keep entries, or pages by their ids, from being evicted, until `unpin` or the end of
        this process. mark: what the pin's name begins with."""
        pin = mark + secrets.token_hex(8)
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
                release_dead(db, self.files, self.session)
                victims = self._victims(db, _used(db) + nbytes - self.budget_bytes, nbytes)
                _delete_rows(db, victims)
                self.abandon(db, [victim.file for victim in victims])
            db.execute(
                "INSERT INTO reservations (file, session, nbytes) VALUES (?, ?, ?)",
                (name, self.session.name, nbytes),
            )
        self.tally.add("evicted", len(victims))
        return [victim.file for victim in victims]

    def _victims(self, db: sqlite_utils.Database, excess: int, nbytes: int) -> list[_Victim]:
        """The least recently used of what may go, to free excess bytes."""
        victims = []
        for row in db.execute(_IDLE, (DOCUMENTS,)):
            if excess <= 0:
                break
            table, key, file, size = typed(row[:4], str, str, str, int)
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

    def _try_to_clean_up(self) -> None:
        """The same around what fails by itself, and is reported, if the disk is in trouble."""
        with suppress(OSError, sqlite3.DatabaseError):
            self._delete_abandoned()

    def _delete_abandoned(self) -> None:
        retried(lambda: self._delete(list(self._abandoned)))

    def _delete(self, names: list[str]) -> None:
        """Delete abandoned files, and what stood for them, in transactions that are short."""
        stuck: dict[str, OSError] = {}
        for some in parts(names):
            with self.database.write() as db:
                # Files first: a full disk takes no row's deletion either until a file is gone.
                stuck |= delete_unnamed(db, self.files, some, self.session.name)
                gone = set(some) - stuck.keys()
                db.conn.executemany(_FORGET, [(name, self.session.name) for name in gone])
            self._abandoned -= gone
        raise_first(stuck)


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
