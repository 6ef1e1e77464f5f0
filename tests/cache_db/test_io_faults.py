"""Fail the n-th I/O operation, once or from then on, until a run has fewer than n."""

import errno
import os
import resource
import sqlite3
import subprocess
from functools import partial
from itertools import count

import pytest
from store_samples import (
    files_of,
    finish,
    is_right,
    make_key,
    make_page,
    make_picture,
    make_tensors,
    put,
    start,
)

from cache_db import PageStore, database, files
from mrr.errors import BudgetExceeded

pytestmark = pytest.mark.fault
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
OPERATIONS = {"open", "write", "fsync", "replace", "unlink", "readv", "scandir"}


class Faults:
    """Counts operations of the store and fails the n-th (or all from the n-th on)."""

    def __init__(self, n: int, for_ever: bool) -> None:
        self.n, self.for_ever = n, for_ever
        self.n_seen = 0

    def due(self) -> int | None:
        """The error to fail with, if this operation is to fail."""
        self.n_seen += 1
        fails = self.n_seen >= self.n if self.for_ever else self.n_seen == self.n
        return ERRORS[self.n % len(ERRORS)] if fails else None

    def __getattr__(self, name):
        """Stands in for the module os."""
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real

        def operation(*arguments):
            if error := self.due():
                raise OSError(error, os.strerror(error))
            return real(*arguments)

        return operation

    @property
    def connection(self) -> type[sqlite3.Connection]:
        """Stands in for sqlite3.Connection."""
        faults = self

        class FaultyConnection(sqlite3.Connection):
            def execute(self, sql, *parameters):
                if sql != "ROLLBACK" and faults.due():
                    raise sqlite3.OperationalError("disk I/O error")
                return super().execute(sql, *parameters)

            def executemany(self, *arguments):
                if faults.due():
                    raise sqlite3.OperationalError("disk I/O error")
                return super().executemany(*arguments)

        return FaultyConnection


def inject(patch: pytest.MonkeyPatch, faults: Faults) -> None:
    real_connect = sqlite3.connect

    def connect(path, **options):
        factory = sqlite3.Connection if path == ":memory:" else faults.connection
        return real_connect(path, **options, factory=factory)

    patch.setattr(files, "os", faults)
    patch.setattr(database.sqlite3, "connect", connect)


def use(store: PageStore) -> None:
    """A little of everything; asserts that what comes back is right or missing."""
    page_id = make_page(1).page_id
    try:
        store.add_page(make_page(1), make_picture(1))
    except BudgetExceeded:
        page_id = ""
    for n in range(3):  # the budget holds two and the picture
        put(store, n, page_id=page_id)
    with store.pinned([make_key(1), make_key(2)]):
        entries = store.get_many([make_key(n) for n in range(4)])
    assert all(is_right(entries.get(make_key(n)), n) for n in range(3) if make_key(n) in entries)
    image = store.image(make_page(1).page_id)
    assert image is None or image.tobytes() == make_picture(1).tobytes()
    assert set(store.pages(["public"])) <= {make_page(1)}
    store.put_embedding(page_id, "f", make_tensors(1)["scale"][0], make_tensors(1)["scale"])
    assert store.embedding(page_id, "f") is None or len(store.vectors("f", ["public"])) == 2
    store.remove_pages([page_id])
    store.verify()
    store.stats()
    store.close()


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_any_failing_operation_is_survived_and_leaves_a_sound_store(
    tmp_path, monkeypatch, for_ever
):
    with PageStore(tmp_path / "size") as store:
        budget_bytes = 3 * put(store, 1)
    for n in count(1, 3 if for_ever else 1):
        root = tmp_path / str(n)
        faults = Faults(n, for_ever)
        with monkeypatch.context() as patch:
            inject(patch, faults)
            use(PageStore(root, budget_bytes=budget_bytes, memory_bytes=0))
        with PageStore(root, budget_bytes=budget_bytes, memory_bytes=0) as store:
            report = store.verify(repair=False)
            assert report.ok, (n, report)
            assert store.stats().persistent
            put(store, 9)
            assert is_right(store.get(make_key(9)), 9), n
        if faults.n_seen < n:
            break
    assert n > 100


def test_a_failed_commit_gives_the_reserved_room_back_at_once(tmp_path, monkeypatch):
    class NoSecondCommit(sqlite3.Connection):
        n_commits = None

        def execute(self, sql, *parameters):
            if sql == "COMMIT" and self.n_commits is not None:
                self.n_commits += 1
                if self.n_commits == 2:  # the first is the reservation's
                    raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *parameters)

    connect = partial(sqlite3.connect, factory=NoSecondCommit)
    monkeypatch.setattr(database.sqlite3, "connect", connect)
    with PageStore(tmp_path, memory_bytes=0) as store:
        with store._database.read() as db:
            db.conn.n_commits = 0
            assert put(store, 1) == 0
            assert db.execute("SELECT count(*) FROM reservations").fetchone() == (0,)
        assert files_of(tmp_path) == []
        assert put(store, 1) > 0


@pytest.mark.parametrize("message", ["database or disk is full", "disk I/O error"])
def test_pages_can_be_removed_where_nothing_can_be_written_until_a_file_is_gone(
    tmp_path, monkeypatch, message
):
    """A used-up quota is an I/O error to SQLite."""

    class Full(sqlite3.Connection):
        is_full = False

        def execute(self, sql, *parameters):
            if sql == "COMMIT" and self.is_full and len(files_of(tmp_path)) == 4:
                raise sqlite3.OperationalError(message)
            return super().execute(sql, *parameters)

    connect = partial(sqlite3.connect, factory=Full)
    monkeypatch.setattr(database.sqlite3, "connect", connect)
    with PageStore(tmp_path, memory_bytes=0) as store:
        for n in (1, 2):
            store.add_page(make_page(n), make_picture(n))
            put(store, n, page_id=make_page(n).page_id)
        with store._database.read() as db:
            db.conn.is_full = True
        assert store.remove_pages([make_page(1).page_id]) == 1
        assert store.pages(["public"]) == [make_page(2)]
        assert is_right(store.get(make_key(2)), 2)
        assert store.image(make_page(2).page_id) is not None
        assert store.verify(repair=False).ok


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
@pytest.mark.parametrize("nth", [1, 2])  # of the reservation, and of the row
def test_an_interrupt_just_after_a_statement_leaves_no_lock_and_no_damage(
    statement, nth, tmp_path, monkeypatch
):
    class Interrupted(sqlite3.Connection):
        n_left = 0

        def execute(self, sql, *parameters):
            result = super().execute(sql, *parameters)
            if sql == statement and self.n_left:
                self.n_left -= 1
                if not self.n_left:
                    raise KeyboardInterrupt
            return result

    connect = partial(sqlite3.connect, factory=Interrupted)
    monkeypatch.setattr(database.sqlite3, "connect", connect)
    with PageStore(tmp_path, memory_bytes=0) as store:
        with store._database.read() as db:
            db.conn.n_left = nth
        with pytest.raises(KeyboardInterrupt):
            store.add_page(make_page(1), make_picture(1))
        report = store.verify(repair=False)
        assert report.ok and report.n_orphans == 0
        with sqlite3.connect(tmp_path / "store.db", timeout=1, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            assert other.execute("SELECT count(*) FROM reservations").fetchone() == (0,)
            other.execute("COMMIT")
        store.add_page(make_page(1), make_picture(1))
        assert store.image(make_page(1).page_id) is not None


def _fill_a_limited_disk(root):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with PageStore(root, memory_bytes=0) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        assert put(store, 1, n_tokens=4000) == 0
        assert put(store, 2) > 0
        assert is_right(store.get(make_key(2)), 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert put(store, 1, n_tokens=4000) > 400_000
        assert is_right(store.get(make_key(1)), 1, 4000)
        assert store.stats().note == ""


def test_a_file_size_limit_is_survived_and_puts_resume(tmp_path):
    finish(start(_fill_a_limited_disk, tmp_path))
    assert len(files_of(tmp_path)) == 2


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_warning_and_puts_resume_when_there_is_room(small_disk, caplog):
    with PageStore(small_disk / "store", memory_bytes=0) as store:
        page_id = make_page(1).page_id
        store.add_page(make_page(1), make_picture(1))
        put(store, 100, n_tokens=2000, page_id=page_id)
        kept = [put(store, n, n_tokens=2000) > 0 for n in range(20)]
        assert any(kept) and not all(kept)
        ours = [record for record in caplog.records if record.name == "cache_db"]
        assert sum(record.levelname == "WARNING" for record in ours) == 1
        assert "No space left" in store.stats().note or "full" in store.stats().note
        for n in range(20):
            entry = store.get(make_key(n))
            assert is_right(entry, n, 2000) if kept[n] else entry is None
        with pytest.raises(BudgetExceeded, match="Free some space"):
            for n in range(1000):
                store.add_page(make_page(n), make_picture(n))
        assert store.remove_pages([page_id]) == 1
        store.clear()
        store.add_page(make_page(1), make_picture(1))
        assert put(store, 30, n_tokens=2000) > 0
        assert is_right(store.get(make_key(30)), 30, 2000)
        assert store.stats().note == ""
        assert store.verify(repair=False).ok
