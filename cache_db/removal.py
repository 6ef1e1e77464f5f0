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
) -> dict[str, OSError]:
    """Delete those of the files that are named by nothing, but for reservations of a session.

    Returns why those are still there that could not be deleted; none of them stops the others.

    In a transaction: nobody can come to name one between the question and the deletion. A damaged
    row can have named the file of another, so no file is deleted for want of one row.
    """
    taken = {row[0] for row in db.execute(_NAMED_OF, (session, json.dumps(list(names))))}
    stuck: dict[str, OSError] = {}
    for name in set(names) - taken:
        try:
            files.delete(name)
        except OSError as error:
            stuck[name] = error
    return stuck


def delete_all_unnamed(database: Database, files: Files, names: Collection[str]) -> None:
    """The same for any number of files, in transactions that are short."""
    stuck: dict[str, OSError] = {}
    for some in parts(list(names)):
        with database.write() as db:
            stuck |= delete_unnamed(db, files, some)
    raise_first(stuck)


def raise_first(stuck: dict[str, OSError]) -> None:
    """Why one of the files could not be deleted, if there are such."""
    for error in stuck.values():
        raise error


def keep_for(db: sqlite_utils.Database, session: str, names: Collection[str]) -> None:
    """Reserve files that are to be deleted, of no bytes; where another has one, that stays."""
    sql = "INSERT OR IGNORE INTO reservations (file, session, nbytes) VALUES (?, ?, 0)"
    db.conn.executemany(sql, [(name, session) for name in names])


def release(db: sqlite_utils.Database, files: Files, sessions: Collection[str], heir: str) -> None:
    """Drop what sessions leave: pins, and reservations with the files that they stand for.

    All in the caller's transaction, for the bytes of the files count no more after it. What cannot
    be deleted is reserved by the heir, whose own end tries again.
    """
    doomed: list[str] = []
    for session in sessions:
        doomed += texts(db.execute("SELECT file FROM reservations WHERE session = ?", (session,)))
        db.execute("DELETE FROM pins WHERE session = ?", (session,))
        db.execute("DELETE FROM reservations WHERE session = ?", (session,))
    if doomed:
        keep_for(db, heir, delete_unnamed(db, files, doomed))


def release_dead(db: sqlite_utils.Database, files: Files, session: Session) -> None:
    """The same of processes that died; the heir is the one who asks."""
    names = texts(db.execute("SELECT session FROM pins UNION SELECT session FROM reservations"))
    release(db, files, [name for name in names if not session.alive(name)], session.name)


def parts(names: list[str]) -> Iterator[list[str]]:
    """As many of the files at a time as one transaction deletes."""
    for start in range(0, len(names), _FILES_AT_ONCE):
        yield names[start : start + _FILES_AT_ONCE]
