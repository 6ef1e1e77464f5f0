"""Deleting files that nothing names: neither a row, nor the reservation of one who is at work."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator

import sqlite_utils

from cache_db.database import Database
from cache_db.files import Files
from cache_db.schema import texts
from cache_db.session import Session

_NAMED = """
    SELECT file FROM entries WHERE file IS NOT NULL
    UNION ALL SELECT file FROM pages WHERE file IS NOT NULL
    UNION ALL SELECT file FROM reservations WHERE session != ?
"""
_NAMED_OF = f"SELECT file FROM ({_NAMED}) WHERE file IN (SELECT value FROM json_each(?))"  # noqa: S608
_FILES_AT_ONCE = 50  # others wait for the transaction that they are deleted in


def named(db: sqlite_utils.Database) -> set[str]:
    """The files that a row or a reservation names."""
    return set(texts(db.execute(_NAMED, ("",))))


def delete_unnamed(
    db: sqlite_utils.Database, files: Files, names: Collection[str], session: str = ""
) -> None:
    """Delete those of the files that are named by nothing, but for reservations of a session.

    In a transaction: nobody can come to name one between the question and the deletion. A damaged
    row can have named the file of another, so no file is deleted for want of one row.
    """
    taken = {row[0] for row in db.execute(_NAMED_OF, (session, json.dumps(list(names))))}
    for name in set(names) - taken:
        files.delete(name)


def delete_all_unnamed(database: Database, files: Files, names: Collection[str]) -> None:
    """The same for any number of files, in transactions that are short."""
    for some in parts(list(names)):
        with database.write() as db:
            delete_unnamed(db, files, some)


def release_dead(db: sqlite_utils.Database, session: Session) -> list[str]:
    """Drop pins and reservations of processes that died; returns the files that were reserved.

    These are to be deleted in the same transaction: their bytes count no more after it.
    """
    names = texts(db.execute("SELECT session FROM pins UNION SELECT session FROM reservations"))
    return [file for name in names if not session.alive(name) for file in release(db, name)]


def release(db: sqlite_utils.Database, session: str) -> list[str]:
    """Drop pins and reservations of one session; returns the files that were reserved."""
    reserved = texts(db.execute("SELECT file FROM reservations WHERE session = ?", (session,)))
    db.execute("DELETE FROM pins WHERE session = ?", (session,))
    db.execute("DELETE FROM reservations WHERE session = ?", (session,))
    return reserved


def parts(names: list[str]) -> Iterator[list[str]]:
    """As many of the files at a time as one transaction deletes."""
    for start in range(0, len(names), _FILES_AT_ONCE):
        yield names[start : start + _FILES_AT_ONCE]
