"""Keeping rows and files one to one: the sweep at start, and reading everything on request."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator

import sqlite_utils

from cache_db.catalogue import Catalogue, embedding_in
from cache_db.database import Database
from cache_db.entries import Entries
from cache_db.evict import delete_all_unnamed, named, release_dead
from cache_db.files import Files
from cache_db.latest import R, load_latest
from cache_db.records import VerifyReport
from cache_db.schema import is_sound
from cache_db.session import Session
from cache_db.trouble import is_full
from mrr.errors import CorruptEntry

_DELETION_S = 0.1  # a process that deletes files deletes one at least within this time
_EMBEDDINGS = "SELECT page_id, fingerprint, vector, importance, n_rows, n_cols FROM embeddings"
_WITHOUT_PICTURE = "SELECT page_id FROM pages WHERE file IS NULL ORDER BY id"


def sweep(database: Database, files: Files, catalogue: Catalogue, session: Session) -> None:
    """Remove what killed processes left: pins, reservations, lock files, files without a row."""
    _release(database, session)
    catalogue.delete_orphans(_unnamed(database, files))


def _release(database: Database, session: Session) -> None:
    with database.write() as db:
        release_dead(db, session)
    session.bury()


def _unnamed(database: Database, files: Files) -> set[str]:
    """Names of files that no row and no reservation names.

    A file that a living process is writing has a reservation, which was there before the file
    was: so files are listed first, and rows asked second.
    """
    present = files.names()
    with database.read() as db:
        return present - named(db)


def _orphans(database: Database, files: Files) -> set[str]:
    """Those of the unnamed files that stay: a living process deletes a file after its row."""
    orphans = _unnamed(database, files)
    while orphans:
        time.sleep(_DELETION_S)
        left = orphans & files.names()
        if left == orphans:
            break
        orphans = left
    return orphans


def remove(database: Database, files: Files, page_ids: Collection[str] | None) -> int:
    """Remove pages with all that is theirs, or everything for None; returns how many pages.

    A full disk takes no transaction, not one that deletes either, until some file is gone. So
    then files go first: a row without its file is a miss.
    """
    try:
        n_removed, doomed = _delete_rows(database, page_ids)
    except sqlite3.OperationalError as error:
        # A used-up quota is an I/O error to SQLite. A database that is only busy keeps its files.
        if not (is_full(error) or "disk I/O" in str(error)):
            raise
        with database.read() as db:
            _delete_files(files, _select_files(db, page_ids))
        n_removed, doomed = _delete_rows(database, page_ids)
    delete_all_unnamed(database, files, doomed)
    return n_removed


def _delete_rows(database: Database, page_ids: Collection[str] | None) -> tuple[int, list[str]]:
    """Delete the rows of pages; returns how many pages, and the files that the rows named."""
    condition, parameters = _chosen(page_ids)
    with database.write() as db:
        doomed = _select_files(db, page_ids)
        for table in ("entries", "embeddings"):
            db.execute(f"DELETE FROM {table} WHERE {condition}", parameters)  # noqa: S608
        n_removed = db.execute(f"DELETE FROM pages WHERE {condition}", parameters).rowcount  # noqa: S608
    return n_removed, doomed


def _select_files(db: sqlite_utils.Database, page_ids: Collection[str] | None) -> list[str]:
    condition, parameters = _chosen(page_ids)
    return [
        name
        for table in ("entries", "pages")
        for (name,) in db.execute(f"SELECT file FROM {table} WHERE {condition}", parameters)  # noqa: S608
        if name
    ]


def _delete_files(files: Files, names: Collection[str]) -> None:
    for name in names:
        files.delete(name)


def _chosen(page_ids: Collection[str] | None) -> tuple[str, tuple[str, ...]]:
    """Condition on page_id and its parameters; constants only, so that it may be pasted."""
    if page_ids is None:
        return "true", ()
    return "page_id IN (SELECT value FROM json_each(?))", (json.dumps(list(page_ids)),)


def verify(
    database: Database,
    files: Files,
    entries: Entries,
    catalogue: Catalogue,
    session: Session,
    repair: bool,
) -> VerifyReport:
    """Read and check every entry, picture and the database; with repair, remove what is bad.

    A page whose picture is gone stays, for what is left of it, and is bad until it is added again.
    What others replace or remove meanwhile is not bad. OSError if this process is out of memory
    or of file handles: nothing is known of what it could not read. The database is not right
    either if it had to be rebuilt since this store was opened, or by this very call.
    """
    with database.read() as db:
        sound = is_sound(db)
    database_ok = sound and not database.damage
    if not sound and repair:
        database.rebuild("integrity check")
    with database.read() as db:
        keys = [row[0] for row in db.execute("SELECT key FROM entries")]
        page_ids = [row[0] for row in db.execute("SELECT page_id FROM pages")]
        damaged_vectors = list(_damaged_vectors(db))
        without_picture = [row[0] for row in db.execute(_WITHOUT_PICTURE)]
    bad_rows = _bad(entries.rows(keys), entries.load, entries.latest)
    bad_pictures = _bad(catalogue.pictures(page_ids), catalogue.load, catalogue.latest)
    if repair:
        entries.drop(bad_rows)
        for picture in bad_pictures:
            catalogue.drop_picture(picture)
        catalogue.drop_embeddings(damaged_vectors)
        _release(database, session)  # or files of the dead would count as being written
    orphans = _orphans(database, files)
    if repair:
        catalogue.delete_orphans(orphans)
        database.damage = ""  # this report tells of it
    bad = [
        *(page_id for page_id, _ in damaged_vectors),
        *(row.key for row in bad_rows),
        *(picture.page_id for picture in bad_pictures),
        *without_picture,
    ]
    n_checked = len(keys) + len(page_ids)
    return VerifyReport(n_checked, tuple(bad), len(orphans), database_ok, repair)


def _bad(
    rows: Iterable[R], load: Callable[[R], object], latest: Callable[[R], R | None]
) -> list[R]:
    """Those of the rows that still stand when their files turn out to be bad."""
    bad: list[R] = []
    for row in rows:
        load_latest(row, load, latest, lambda damaged, _: bad.append(damaged))
    return bad


def _damaged_vectors(db: sqlite_utils.Database) -> Iterator[tuple[str, str]]:
    for page_id, fingerprint, *row in db.execute(_EMBEDDINGS):
        try:
            embedding_in(row)
        except CorruptEntry:
            yield page_id, fingerprint
