"""A new database in a damaged one's place, with every row and every page that can still be read.

Rows are read from the tables alone, never through an index, so a damaged index costs nothing. A
damaged piece of a table costs the rows on it; pages among them come back from their pictures.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import astuple
from operator import itemgetter
from pathlib import Path

import sqlite_utils

from cache_db import codec, pictures
from cache_db.files import Files
from cache_db.schema import PAGE_COLUMNS, migrate
from mrr.errors import CorruptEntry

_TABLES = ("pages", "embeddings", "entries", "pins", "reservations")
_TYPES: dict[str, type] = {"INTEGER": int, "TEXT": str, "BLOB": bytes}
_BESIDE = ("", "-wal", "-journal", "-shm")  # what SQLite keeps of one database
# The rightmost assignment of a column counts: a digest may have been noted after the picture.
_RESTORE = f"""
    INSERT INTO pages ({PAGE_COLUMNS}, file, nbytes, digest)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (page_id) DO UPDATE SET ({PAGE_COLUMNS}, file, nbytes, digest) =
    (excluded.{PAGE_COLUMNS.replace(", ", ", excluded.")},
     excluded.file, excluded.nbytes, excluded.digest),
    file_digest = coalesce(nullif(excluded.file_digest, ''), file_digest)
"""  # noqa: S608 - constants only


def rebuild(path: Path, files: Files | None) -> None:
    """Replace the database at path; the damaged one is kept beside it.

    The caller holds the store's lock. Whatever moment the process is killed at, there is the old
    database or the new one, or none and the new one ready beside: see `finish`.
    """
    new = path.with_name(path.name + ".rebuilt")
    _remove(new)
    with closing(_connect(path)) as old:
        _keep_writers_out(old)
        with closing(_connect(new)) as db:
            migrate(sqlite_utils.Database(db, execute_plugins=False))
            db.execute("BEGIN")
            for table in _TABLES:
                _copy(old, db, table)
            if files is not None:
                _restore_pages(db, files)
            db.execute("COMMIT")
        os.replace(new, _whole(path))
        _put_in_place(path)


def finish(path: Path) -> bool:
    """Put a database that was rebuilt in its place, if only that is missing; whether it was.

    Where the old one still stands it may have been written to since; it is rebuilt anew when
    somebody meets the damage. The caller holds the store's lock.
    """
    if not _whole(path).exists():
        return False
    if _stands(path):
        _whole(path).unlink()
        return False
    _put_in_place(path)
    return True


def remove_damaged(path: Path) -> None:
    """Delete what a rebuild has kept of the damaged database."""
    _remove(_damaged(path))


def _whole(path: Path) -> Path:
    """Where a rebuilt database stands once it is whole: no name that it ever had before that."""
    return path.with_name(path.name + ".whole")


def _stands(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _put_in_place(path: Path) -> None:
    _set_aside(path)
    os.replace(_whole(path), path)


def _damaged(path: Path) -> Path:
    return path.with_name(path.name + ".damaged")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode(errors="replace")
    return connection


def _keep_writers_out(old: sqlite3.Connection) -> None:
    """Wait for transactions to end, as far as a damaged database has locks, and let none begin.

    Who waits to begin one finds afterwards that the database was replaced.
    """
    try:
        old.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:  # busy, or the disk fails: nothing was changed yet
        raise
    except sqlite3.DatabaseError:
        pass


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> None:
    """Copy the rows that can be read and hold what their columns say."""
    types = {
        name: _TYPES[kind]
        for _, name, kind, _, default, _ in new.execute(f"PRAGMA table_info({table})")
        if default is None or _has_column(old, table, name)  # an earlier version may not have it
    }
    marks = ", ".join("?" * len(types))
    insert = f"INSERT OR IGNORE INTO {table} ({', '.join(types)}) VALUES ({marks})"  # noqa: S608
    for values in _rows(old, table, list(types)):
        if all(
            isinstance(value, kind) or (value is None and (table, column) == ("pages", "file"))
            for value, (column, kind) in zip(values, types.items(), strict=True)
        ):
            new.execute(insert, values)


def _has_column(old: sqlite3.Connection, table: str, name: str) -> bool:
    with suppress(sqlite3.DatabaseError, UnicodeDecodeError):  # as in _rows
        old.execute(f"SELECT {name} FROM {table} LIMIT 0")  # noqa: S608 - ours
        return True
    return False


def _rows(old: sqlite3.Connection, table: str, columns: list[str]) -> Iterator[list[object]]:
    """The rows before the first that cannot be read, and those after the last."""
    seen: set[int] = set()
    for order in ("ASC", "DESC"):
        sql = f"SELECT rowid, {', '.join(columns)} FROM {table} NOT INDEXED ORDER BY rowid {order}"  # noqa: S608
        with suppress(sqlite3.DatabaseError, UnicodeDecodeError):  # of a message that quotes damage
            for rowid, *values in old.execute(sql):
                if rowid in seen:  # all of them, or a damaged tree that leads back into itself
                    return
                seen.add(rowid)
                yield values
            return


def _restore_pages(db: sqlite3.Connection, files: Files) -> None:
    """Make the pages what their pictures say they are, and a page of each picture without one."""
    reserved = {row[0] for row in db.execute("SELECT file FROM reservations")}
    named = {row[0] for row in db.execute("SELECT file FROM pages")}
    found = []
    for name, nbytes in files.sizes(files.names() - reserved):  # being written or deleted
        if not name.endswith(".png"):
            continue
        with suppress(CorruptEntry, OSError):
            data = files.read(name, nbytes)
            page, added_ns = pictures.page_in(data, name)
            if page.scope != pictures.LOST or name not in named:  # else the row knows more
                found.append((added_ns, name, page, nbytes, codec.digest(data.data)))
    for _, name, page, nbytes, digest in sorted(found, key=itemgetter(0, 1)):
        db.execute("UPDATE OR IGNORE pages SET page_id = ? WHERE file = ?", (page.page_id, name))
        db.execute(_RESTORE, (*astuple(page), name, nbytes, digest))


def _set_aside(path: Path) -> None:
    """Keep the damaged database for whoever wants to look; an empty one is not worth it."""
    if _stands(path):
        remove_damaged(path)
        for suffix in _BESIDE:
            with suppress(FileNotFoundError):
                os.replace(f"{path}{suffix}", f"{_damaged(path)}{suffix}")
    _remove(path)  # a log that is left would be taken for the new one's


def _remove(path: Path) -> None:
    for suffix in _BESIDE:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
