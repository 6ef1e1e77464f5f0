"""What a power loss needs: the order of writes, recorded, as no test can pull the plug."""

import os
import sqlite3
from itertools import groupby

import pytest
from store_samples import make_page, make_picture, put

from cache_db import PageStore, files


class Recorder:
    """Stands in for the module os and for sqlite3.Connection; writes down who is called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in {"open", "write", "fsync", "replace", "unlink"}:
            return real

        def operation(target, *arguments):
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            kind = "folder" if os.path.isdir(path) else os.path.splitext(path)[1]
            if name != "open":
                self.calls.append(f"{name} {kind}")
            return real(target, *arguments)

        return operation

    def listen(self, store: PageStore) -> None:
        """Record the store's transactions too."""

        def note(statement):
            words = statement.split()
            if words[0] in {"INSERT", "DELETE", "COMMIT"}:
                tables = [word for word in words if word in {"entries", "pages", "reservations"}]
                self.calls.append(" ".join([words[0], *tables]))

        store._database._handle().db.conn.set_trace_callback(note)


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(files, "os", recorder)
    return recorder


def _put(store):
    put(store, 1)


def _add(store):
    store.add_page(make_page(1), make_picture(1))


@pytest.mark.parametrize(("action", "table"), [(_put, "entries"), (_add, "pages")])
def test_a_file_is_synced_renamed_and_its_folder_synced_before_the_row_is_committed(
    tmp_path, recorder, action, table
):
    with PageStore(tmp_path) as store:
        recorder.listen(store)
        action(store)
        # SQLite reports a statement again after its triggers.
        assert [call for call, _ in groupby(recorder.calls)] == [
            "INSERT reservations",
            "COMMIT",
            "write .tmp",
            "fsync .tmp",
            "replace .tmp",
            "fsync folder",
            f"INSERT {table}",
            "DELETE reservations",
            "COMMIT",
        ]


def test_the_row_goes_before_the_file_when_an_entry_is_evicted(tmp_path, recorder):
    with PageStore(tmp_path / "size") as store:
        nbytes = put(store, 1)
    with PageStore(tmp_path / "own", budget_bytes=nbytes) as store:
        put(store, 1)
        recorder.listen(store)
        recorder.calls.clear()
        put(store, 2)
        assert [call for call, _ in groupby(recorder.calls)][:5] == [
            "DELETE entries",
            "INSERT reservations",  # of the new file, and of the evicted one until it is gone
            "COMMIT",
            "unlink .kv",
            "DELETE reservations",
        ]


def test_the_database_syncs_as_its_journal_mode_needs(tmp_path):
    with PageStore(tmp_path) as store, store._database.read() as db:
        assert isinstance(db.conn, sqlite3.Connection)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (1,)
