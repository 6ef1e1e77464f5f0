"""K/V entries: memory first, then row, file, digest, header; anything wrong is a miss."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlite_utils

from cache_db import codec
from cache_db.database import Database, retried
from cache_db.evict import Space, now_ns
from cache_db.files import Files
from cache_db.latest import load_latest
from cache_db.memory import MemoryTier
from cache_db.records import Entry
from cache_db.schema import texts, typed
from cache_db.trouble import Tally, Trouble
from mrr.errors import BudgetExceeded, CorruptEntry

_SELECT = """
    SELECT key, page_id, file, nbytes, digest FROM entries
    WHERE key IN (SELECT value FROM json_each(?))
"""
_REPLACE = """
    INSERT OR REPLACE INTO entries (key, page_id, file, nbytes, digest, last_used_ns)
    VALUES (?, ?, ?, ?, ?, ?)
"""
log = logging.getLogger("cache_db")


@dataclass(frozen=True, slots=True)
class EntryRow:
    """The commit of an entry: which file, how long, which digest."""

    key: str
    page_id: str
    file: str
    nbytes: int
    digest: bytes


class PageUnknown(Exception):
    """The page of an entry is not in the store, or not any more."""


@dataclass
class Entries:
    """The K/V part of a store. Nothing here raises because of a disk or a damaged file."""

    database: Database
    files: Files
    space: Space
    memory: MemoryTier
    trouble: Trouble
    tally: Tally
    holds_pages: bool = True

    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries that are there and whole, in the order of the keys."""
        found = self.memory.get_many(keys)
        self.tally.add("memory_hits", len(found))
        wanted = [key for key in dict.fromkeys(keys) if key not in found]
        if wanted:
            read = self._read_rows(wanted)
            self.tally.add(f"{self.files.source}_hits", len(read))
            self.tally.add("misses", len(wanted) - len(read))
            found |= read
        self.touch(found)
        return {key: found[key] for key in keys if key in found}

    def peek(self, key: str) -> Entry | None:
        """The entry of a key, for a look: no hit, no miss, and it does not count as use."""
        with self.trouble.guard("read entries"):
            return self.memory.peek(key) or next(map(self._read, self.rows([key])), None)
        return None

    def put(
        self, key: str, page_id: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> int:
        """Store an entry, replacing one of the same key; returns its bytes, 0 if not kept."""
        data = codec.encode(key, tensors, meta)
        kept = False
        with self.trouble.guard("store entries"):
            try:
                row = EntryRow(key, page_id, "", data.nbytes, codec.digest(data.data))
                retried(lambda: self._write(row, data))
                kept = True
            except BudgetExceeded as refusal:
                log.info("An entry was not stored: %s", refusal)
            except PageUnknown:
                log.info("An entry was not stored: its page is not in the store.")
                self.tally.add("skipped")
                return 0
        if not kept:
            self.tally.add("skipped")
        self.memory.add(key, page_id, codec.decode(data, key, "memory"))
        return data.nbytes if kept else 0

    def contains(self, keys: Collection[str]) -> set[str]:
        """Those of the keys that have a row or are in memory. Reads no file."""
        return self.memory.contains(keys) | self.stored(keys)

    def stored(self, keys: Collection[str]) -> set[str]:
        """Those of the keys that have a row: memory alone may hold what there was no room for."""
        with self.trouble.guard("read entries"):
            return {row.key for row in self.rows(list(keys))}
        return set()

    def rows(self, keys: Sequence[str]) -> list[EntryRow]:
        """The rows of the keys."""
        with self.database.read() as db:
            rows = db.execute(_SELECT, (json.dumps(list(keys)),))
            return [EntryRow(*typed(row, str, str, str, int, bytes)) for row in rows]

    def latest(self, row: EntryRow) -> EntryRow | None:
        """The row of the same key as it stands now."""
        return next(iter(self.rows([row.key])), None)

    def load(self, row: EntryRow) -> Entry:
        """Read and check one file; CorruptEntry or OSError if anything is wrong with it."""
        data = self.files.read(row.file, row.nbytes)
        if self.files.source == "disk":  # memory keeps what was written
            codec.check(data, row.digest)
        return codec.decode(data, row.key, self.files.source)

    def drop(self, rows: Sequence[EntryRow]) -> None:
        """Remove bad entries: their rows, unless replaced meanwhile, then their files.

        A damaged row can name the file of another, which keeps it.
        """
        if not rows:
            return
        self.tally.add("corrupt", len(rows))
        self.memory.discard([row.key for row in rows])
        with self.database.write() as db:
            db.conn.executemany(
                "DELETE FROM entries WHERE key = ? AND file = ?",
                [(row.key, row.file) for row in rows],
            )
            self.space.abandon(db, [row.file for row in rows])
        self.space.clean_up()

    def _read_rows(self, keys: Sequence[str]) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        with self.trouble.guard("read entries"):
            for row in self.rows(keys):
                if entry := self._read(row):
                    self.memory.add(row.key, row.page_id, entry)
                    found[row.key] = entry
        return found

    def _read(self, row: EntryRow) -> Entry | None:
        """One entry; None after dropping it if it is gone, damaged or unreadable."""
        try:
            entry = load_latest(row, self.load, self.latest, self._on_damage)
        except OSError as error:
            self.trouble.report("read an entry's file", error)
            return None
        if entry is not None:
            self.trouble.recovered("read an entry's file")
        return entry

    def _on_damage(self, row: EntryRow, error: CorruptEntry | OSError) -> None:
        if isinstance(error, OSError):
            self.trouble.report("read an entry's file", error)
        else:
            log.warning("An entry was dropped: %s", error)
        with self.trouble.guard("drop damaged entries"):
            self.drop([row])

    def touch(self, keys: Collection[str]) -> None:
        """Note that entries were used; written down now and then, and never waited for."""
        self.space.touches.add(keys)
        if self.space.touches.due:
            with self.trouble.guard("note what was used"):
                self.space.touches.try_to_flush(self.database)

    def _write(self, row: EntryRow, data: np.ndarray) -> None:
        with self.space.reserve(row.nbytes, ".kv") as room:
            self.files.write(room.name, data)
            with self.database.write() as db:
                if self.holds_pages and row.page_id and not _is_page(db, row.page_id):
                    raise PageUnknown
                find = "SELECT file FROM entries WHERE key = ? AND file IS NOT NULL"
                old = texts(db.execute(find, (row.key,)))
                values = (row.key, row.page_id, room.name, row.nbytes, row.digest, now_ns())
                db.execute(_REPLACE, values)
                room.keep(db)
                self.space.abandon(db, old)


def _is_page(db: sqlite_utils.Database, page_id: str) -> bool:
    return bool(db.execute("SELECT 1 FROM pages WHERE page_id = ?", (page_id,)).fetchone())
