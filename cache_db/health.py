"""Keeping rows and files one to one: the sweep at start, and reading everything on request."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator

import sqlite_utils

from cache_db import codec
from cache_db.catalogue import Catalogue
from cache_db.database import Database
from cache_db.entries import Entries
from cache_db.evict import release_dead
from cache_db.files import Files
from cache_db.records import VerifyReport
from cache_db.session import Session
from mrr.errors import CorruptEntry

_NAMED = """
    SELECT file FROM entries UNION ALL SELECT file FROM reservations
    UNION ALL SELECT file FROM pages WHERE file IS NOT NULL
"""


def sweep(database: Database, files: Files, session: Session) -> int:
    """Remove what killed processes left: pins, reservations, lock files, files without a row.

    A file that a living process is writing has a reservation, which was there before the file
    was: so files are listed first, and rows asked second. Returns the number of files removed.
    """
    with database.write() as db:
        release_dead(db, session)
    session.bury()
    orphans = find_orphans(database, files)
    for name in orphans:
        files.delete(name)
    return len(orphans)


def find_orphans(database: Database, files: Files) -> set[str]:
    """Names of files that no row and no reservation names."""
    present = files.names()
    with database.read() as db:
        return present - {row[0] for row in db.execute(_NAMED)}


def remove_pages(database: Database, page_ids: Collection[str]) -> tuple[int, list[str]]:
    """Delete all rows of some pages; returns how many pages, and the files left to delete."""
    ids = (json.dumps(list(page_ids)),)
    chosen = "page_id IN (SELECT value FROM json_each(?))"
    with database.write() as db:
        files = [
            file
            for table in ("entries", "pages")
            for (file,) in db.execute(f"SELECT file FROM {table} WHERE {chosen}", ids)  # noqa: S608
        ]
        for table in ("entries", "embeddings"):
            db.execute(f"DELETE FROM {table} WHERE {chosen}", ids)  # noqa: S608
        removed = db.execute(f"DELETE FROM pages WHERE {chosen}", ids).rowcount  # noqa: S608
    return removed, [file for file in files if file]


def clear(database: Database) -> None:
    """Delete every row but the reservations of files that are being written."""
    with database.write() as db:
        for table in ("entries", "embeddings", "pages", "pins"):
            db.execute(f"DELETE FROM {table}")  # noqa: S608


def verify(
    database: Database,
    files: Files,
    entries: Entries,
    catalogue: Catalogue,
    session: Session,
    repair: bool,
) -> VerifyReport:
    """Read and check every entry, picture and the database; with repair, remove what is bad."""
    with database.read() as db:
        database_ok = db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        keys = [row[0] for row in db.execute("SELECT key FROM entries")]
        page_ids = [row[0] for row in db.execute("SELECT page_id FROM pages")]
        damaged_vectors = list(_damaged_vectors(db))
    bad = [page_id for page_id, _ in damaged_vectors]
    if repair and damaged_vectors:
        catalogue.drop_embeddings(damaged_vectors)
    for row in entries.rows(keys):
        try:
            entries.load(row)
        except (CorruptEntry, OSError):
            bad.append(row.key)
            if repair:
                entries.drop(row)
    for picture in catalogue.pictures(page_ids):
        try:
            catalogue.load(picture)
        except (CorruptEntry, OSError):
            bad.append(picture.page_id)
            if repair:
                catalogue.drop_picture(picture)
    n_orphans = sweep(database, files, session) if repair else len(find_orphans(database, files))
    return VerifyReport(len(keys) + len(page_ids), tuple(bad), n_orphans, database_ok, repair)


def _damaged_vectors(db: sqlite_utils.Database) -> Iterator[tuple[str, str]]:
    sql = "SELECT page_id, fingerprint, vector, importance FROM embeddings"
    for page_id, fingerprint, vector, importance in db.execute(sql):
        try:
            codec.unseal(vector)
            codec.unseal(importance)
        except CorruptEntry:
            yield page_id, fingerprint
