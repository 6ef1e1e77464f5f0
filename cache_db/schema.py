"""The tables, as sqlite-utils migrations. A released migration is never edited, only followed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from sqlite_utils import Database, Migrations

MIGRATIONS = Migrations("cache_db")
NOT_A_STORE = (
    "The store.db in its folder was not written by a store. Move it, or choose another folder."
)

# In the order of Page.
PAGE_COLUMNS = "page_id, label, source, page_num, width, height, scope, file_digest"


class UnknownDatabase(Exception):
    """The database was written by a newer version of this code, or by something else."""


@MIGRATIONS()
def m001_tables(db: Database) -> None:
    """Pages, their first-stage vectors, their K/V entries; and who is busy with what."""
    db.table("pages").create(
        {
            "id": int,  # order of first adding
            "page_id": str,
            "label": str,
            "source": str,
            "page_num": int,
            "width": int,
            "height": int,
            "scope": str,
            "file": str,  # NULL once the picture was found damaged
            "nbytes": int,
            "digest": bytes,
        },
        pk="id",
    )
    db.table("pages").create_index(["page_id"], unique=True)
    db.table("pages").create_index(["scope"])
    # vector stands before importance: SQLite reads a row's overflow pages only as far as asked.
    db.table("embeddings").create(
        {
            "page_id": str,
            "fingerprint": str,
            "n_rows": int,
            "n_cols": int,
            "vector": bytes,
            "importance": bytes,
        },
        pk=("page_id", "fingerprint"),
    )
    db.table("entries").create(
        {
            "key": str,
            "page_id": str,  # empty for an entry that belongs to no page
            "file": str,
            "nbytes": int,
            "digest": bytes,
            "last_used_ns": int,
        },
        pk="key",
    )
    db.table("entries").create_index(["page_id"])
    db.table("entries").create_index(["last_used_ns", "nbytes"])
    db.table("pins").create({"pin": str, "session": str, "key": str}, pk=("key", "pin"))
    db.table("pins").create_index(["pin"])
    db.table("reservations").create({"file": str, "session": str, "nbytes": int}, pk="file")
    _count_versions(db)


@MIGRATIONS()
def m002_file_digest(db: Database) -> None:
    """Which file a page came from, so that two files of one name are told apart."""
    if "file_digest" not in db.table("pages").columns_dict:  # only the note of it may be lost
        db.table("pages").add_column("file_digest", str, not_null_default="")


def _count_versions(db: Database) -> None:
    """A number that changes with the pages or vectors, whichever process changes them.

    PRAGMA data_version would change with every pin too, and is not comparable across
    connections. It starts at random so that a rebuilt database never repeats an old number.
    """
    db.execute("CREATE TABLE catalogue_version (version INTEGER NOT NULL)")
    db.execute("INSERT INTO catalogue_version VALUES (abs(random()) / 2)")
    for table in ("pages", "embeddings"):
        for event in ("INSERT", "UPDATE", "DELETE"):
            db.execute(
                f"CREATE TRIGGER {table}_{event.lower()} AFTER {event} ON {table} BEGIN "  # noqa: S608
                "UPDATE catalogue_version SET version = version + 1; END"
            )


def is_new(db: Database) -> bool:
    """Whether the database is empty; reads only.

    Raises
    ------
    UnknownDatabase: if it holds what this code does not know, so that nothing may be written.
    sqlite3.DatabaseError: if it is a store's, but what was done to it cannot be read.
    """
    known = [migration.name for migration in MIGRATIONS.pending(Database(memory=True))]
    try:
        applied = {migration.name for migration in MIGRATIONS.applied(db)}
        tables = set(db.table_names())
    except (KeyError, UnicodeDecodeError) as error:
        raise sqlite3.DatabaseError("its schema is damaged") from error
    unknown, done = applied - set(known), [name in applied for name in known]
    is_in_order = done[0] and done == sorted(done, reverse=True) and (all(done) or not unknown)
    if {"pages", "embeddings", "entries"} <= tables and not is_in_order:
        raise sqlite3.DatabaseError("its list of migrations is damaged")
    if unknown:
        raise UnknownDatabase(
            f"Its database is of a newer version (migration {min(unknown)}). Update this program, "
            "or choose another folder."
        )
    if not applied and tables - {MIGRATIONS.migrations_table}:
        raise UnknownDatabase(NOT_A_STORE)
    return not applied


def typed(row: Sequence[Any] | None, *types: type) -> Sequence[Any]:
    """The row, if its columns are of these types; SQLite itself would let anything stand there.

    Raises
    ------
    sqlite3.DatabaseError: as for any other damage.
    """
    if row is None or any(map(lambda value, kind: not isinstance(value, kind), row, types)):
        raise sqlite3.DatabaseError("a row is damaged")
    return row


def texts(rows: Iterable[Sequence[Any]]) -> list[str]:
    """The text in the only column of each row; raises as `typed` does."""
    return [typed(row, str)[0] for row in rows]


def is_sound(db: Database) -> bool:
    """Whether every page of the database is whole, the indexes are right, and no table is gone."""
    if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
        return False
    whole = Database(memory=True)
    migrate(whole)
    return _columns(whole) <= _columns(db)


def _columns(db: Database) -> set[tuple[str, ...]]:
    """(type, name, column) of all that the migrations make."""
    sql = """SELECT m.type, m.name, c.name FROM sqlite_master AS m
             LEFT JOIN pragma_table_info(m.name) AS c WHERE m.tbl_name != ?"""
    return set(db.execute(sql, (MIGRATIONS.migrations_table,)))


def migrate(db: Database) -> None:
    """Bring the schema up to date."""
    if MIGRATIONS.pending(db):
        MIGRATIONS.apply(db)
