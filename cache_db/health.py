"""Keeping rows and files one to one: the sweep at start, and reading everything on request."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

import sqlite_utils

from cache_db.catalogue import Catalogue, embedding_in, usual_length
from cache_db.entries import Entries
from cache_db.evict import Space
from cache_db.latest import R, load_latest
from cache_db.records import VerifyReport
from cache_db.removal import named, release_dead
from cache_db.schema import is_sound, texts
from cache_db.trouble import is_full
from mrr.errors import CorruptEntry

_EMBEDDINGS = "SELECT page_id, fingerprint, vector, importance, n_rows, n_cols FROM embeddings"
_WITHOUT_PICTURE = "SELECT page_id FROM pages WHERE file IS NULL ORDER BY id"


def sweep(catalogue: Catalogue) -> None:
    """Remove what killed processes left: pins, reservations, lock files, files without a row."""
    _release(catalogue.space)
    catalogue.delete_orphans(_orphans(catalogue.space))


def _release(space: Space) -> None:
    with space.database.write() as db:
        release_dead(db, space.files, space.session)
    space.session.bury()


def _orphans(space: Space) -> set[str]:
    """Names of files that no row and no reservation names.

    A file that a living process writes or deletes has a reservation, which is there before the
    file and until it is gone: so files are listed, rows asked, and files listed again.
    """
    present = space.files.names()
    with space.database.read() as db:
        unnamed = present - named(db)
    return unnamed & space.files.names()


def remove(space: Space, page_ids: Collection[str] | None) -> int:
    """Remove pages with all that is theirs, or everything for None; returns how many pages.

    Rows go in one transaction, files after it, reserved until they are gone: see `Space.abandon`.
    A full disk takes no transaction, not one that deletes either, until some file is gone. So
    then files go first: a row without its file is a miss.
    """
    try:
        n_removed = _delete_rows(space, page_ids)
    except sqlite3.OperationalError as error:
        # A used-up quota is an I/O error to SQLite. A database that is only busy keeps its files.
        if not (is_full(error) or "disk I/O" in str(error)):
            raise
        _delete_files(space, page_ids)
        n_removed = _delete_rows(space, page_ids)
    space.clean_up()
    return n_removed


def _delete_rows(space: Space, page_ids: Collection[str] | None) -> int:
    """Delete the rows of pages, and abandon the files that they named; returns how many pages."""
    condition, parameters = _chosen(page_ids)
    with space.database.write() as db:
        space.abandon(db, _select_files(db, condition, parameters))
        for table in ("entries", "embeddings"):
            db.execute(f"DELETE FROM {table} WHERE {condition}", parameters)  # noqa: S608
        return db.execute(f"DELETE FROM pages WHERE {condition}", parameters).rowcount  # noqa: S608


def _delete_files(space: Space, page_ids: Collection[str] | None) -> None:
    """Delete the files of pages, but for one that the row of another page names too."""
    condition, parameters = _chosen(page_ids)
    with space.database.read() as db:
        doomed = _select_files(db, condition, parameters)
        spared = _select_files(db, f"({condition}) IS NOT TRUE", parameters)
    for name in doomed - spared:
        space.files.delete(name)


def _select_files(
    db: sqlite_utils.Database, condition: str, parameters: tuple[str, ...]
) -> set[str]:
    """The files that rows name which meet a condition."""
    tables = ("entries", "pages")
    find = "SELECT file FROM {} WHERE file IS NOT NULL AND {}"
    found = [texts(db.execute(find.format(table, condition), parameters)) for table in tables]
    return set().union(*found)


def _chosen(page_ids: Collection[str] | None) -> tuple[str, tuple[str, ...]]:
    """Condition on page_id and its parameters; constants only, so that it may be pasted."""
    if page_ids is None:
        return "true", ()
    return "page_id IN (SELECT value FROM json_each(?))", (json.dumps(list(page_ids)),)


def verify(catalogue: Catalogue, entries: Entries, repair: bool) -> VerifyReport:
    """Read and check every entry, picture and the database; with repair, remove what is bad.

    A page whose picture is gone stays, for what is left of it, and is bad until it is added again.
    What others replace or remove meanwhile is not bad. OSError if this process is out of memory
    or of file handles: nothing is known of what it could not read. The database is not right
    either if it had to be rebuilt since this store was opened, or by this very call.
    """
    space, database = catalogue.space, catalogue.database
    with database.read() as db:
        sound = is_sound(db)
    database_ok = sound and not database.damage
    if not sound and repair:
        database.rebuild("integrity check")
    with database.read() as db:
        keys = [row[0] for row in db.execute("SELECT key FROM entries")]
        page_ids = [row[0] for row in db.execute("SELECT page_id FROM pages")]
        damaged_vectors = _damaged_vectors(db)
        without_picture = [row[0] for row in db.execute(_WITHOUT_PICTURE)]
    bad_rows = _bad(entries.rows(keys), entries.load, entries.latest)
    bad_pictures = _bad(catalogue.pictures(page_ids), catalogue.load, catalogue.latest)
    if repair:
        entries.drop(bad_rows)
        for picture in bad_pictures:
            catalogue.drop_picture(picture)
        catalogue.drop_embeddings(damaged_vectors)
        _release(space)
    orphans = _orphans(space)
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
    # Nothing here brings back a picture that is gone.
    to_repair = damaged_vectors or bad_rows or bad_pictures or orphans or not database_ok
    return VerifyReport(
        n_checked, tuple(bad), len(orphans), database_ok, repaired=repair and bool(to_repair)
    )


def _bad(
    rows: Iterable[R], load: Callable[[R], object], latest: Callable[[R], R | None]
) -> list[R]:
    """Those of the rows that still stand when their files turn out to be bad."""
    bad: list[R] = []
    for row in rows:
        load_latest(row, load, latest, lambda damaged, _: bad.append(damaged))
    return bad


def _damaged_vectors(db: sqlite_utils.Database) -> list[tuple[str, str]]:
    """Page id and fingerprint of vectors that cannot be read, or are of an odd length."""
    damaged: list[tuple[str, str]] = []
    lengths: dict[str, dict[str, int]] = defaultdict(dict)  # by fingerprint, then by page id
    for page_id, fingerprint, *row in db.execute(_EMBEDDINGS):
        try:
            lengths[fingerprint][page_id] = len(embedding_in(row).vector)
        except CorruptEntry:
            damaged.append((page_id, fingerprint))
    for fingerprint, of_pages in lengths.items():
        n_dims = usual_length(of_pages.values())
        damaged += [(page_id, fingerprint) for page_id, n in of_pages.items() if n != n_dims]
    return damaged
