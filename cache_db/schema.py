"""The tables, as sqlite-utils migrations. A released migration is never edited, only followed."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

MIGRATIONS = Migrations("cache_db")
NOT_A_STORE = (
    "The store.db in its folder was not written by a store. Move it, or choose another folder."
)


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
    """
    applied = {migration.name for migration in MIGRATIONS.applied(db)}
    known = {migration.name for migration in MIGRATIONS.pending(Database(memory=True))}
    if unknown := applied - known:
        raise UnknownDatabase(
            f"Its database is of a newer version (migration {min(unknown)}). Update this program, "
            "or choose another folder."
        )
    if not applied and set(db.table_names()) - {MIGRATIONS.migrations_table}:
        raise UnknownDatabase(NOT_A_STORE)
    return not applied


def migrate(db: Database) -> None:
    """Bring the schema up to date."""
    if MIGRATIONS.pending(db):
        MIGRATIONS.apply(db)
