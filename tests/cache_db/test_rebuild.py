"""A damaged database is rebuilt from what can be read, and no picture goes because of it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing.synchronize import Event
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from store_samples import (
    files_of,
    finish,
    is_right,
    make_key,
    make_page,
    make_picture,
    put,
    start,
)

from cache_db import PageStore, VerifyReport, health, pictures, rebuild

pytestmark = pytest.mark.fault
N_PAGES = 60  # on several pages of the database
PAGE_BYTES = 4096
SECONDARY = (
    "idx_pages_page_id",
    "idx_pages_scope",
    "sqlite_autoindex_embeddings_1",
    "sqlite_autoindex_entries_1",
    "idx_entries_page_id",
    "idx_entries_last_used_ns_nbytes",
)


def fill(root: Path, n_pages: int = N_PAGES) -> None:
    with PageStore(root) as store:
        for n in range(n_pages):
            page_id = make_page(n).page_id
            store.add_page(make_page(n), make_picture(n))
            store.put_embedding(page_id, "f", np.full(4, n, np.float32), np.ones((2, 2)))
            put(store, n, page_id=page_id)
    with closing(sqlite3.connect(root / "store.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filled")
    fill(root)
    return root


@pytest.fixture
def root(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "store"))


@pytest.fixture
def root_without_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store whose pictures do not say what page they are of, as older ones do not."""
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "PngInfo", _NoInfo)
        fill(tmp_path)
    yield tmp_path


class _NoInfo(pictures.PngInfo):
    def add_text(self, *_: object, **__: object) -> None:
        pass


def pages_of(root: Path, name: str) -> list[int]:
    """Numbers of the database's pages that a table or index takes, counted from 0."""
    with closing(sqlite3.connect(root / "store.db")) as db:
        sql = "SELECT pageno - 1 FROM dbstat WHERE name = ? AND pagetype = 'leaf'"
        try:
            return [row[0] for row in db.execute(sql, (name,))]
        except sqlite3.OperationalError:
            pytest.skip("this SQLite has no dbstat")


def change(root: Path, at: int, content: bytes) -> None:
    with (root / "store.db").open("r+b") as file:
        file.seek(at)
        file.write(content)


def flip(root: Path, at: int) -> None:
    byte = (root / "store.db").read_bytes()[at]
    change(root, at, bytes([byte ^ 1]))


def look_and_verify(root: Path) -> VerifyReport:
    """What a user does: look at the store, and verify it the next time."""
    with PageStore(root, memory_bytes=0) as store:
        store.pages(["public"])
        store.stats()
        store.get_many([make_key(n) for n in range(N_PAGES)])
    with PageStore(root, memory_bytes=0) as store:
        return store.verify()


def pictures_in(root: Path) -> set[bytes]:
    return {path.read_bytes() for path in files_of(root) if path.suffix == ".png"}


def assert_all_pages(root: Path, n_pages: int = N_PAGES) -> None:
    with PageStore(root, memory_bytes=0) as store:
        assert store.stats().note == ""
        pages = store.pages(["public"])
        assert sorted(pages, key=attrgetter("page_num")) == [make_page(n) for n in range(n_pages)]
        for n in range(n_pages):
            image = store.image(make_page(n).page_id)
            assert image is not None and image.tobytes() == make_picture(n).tobytes()
        assert store.verify(repair=False).ok


@pytest.mark.parametrize("index", SECONDARY)
def test_a_flipped_bit_in_an_index_loses_nothing_at_all(root: Path, index: str) -> None:
    leaf = pages_of(root, index)[-1]
    flip(root, (leaf + 1) * PAGE_BYTES - 5)
    with PageStore(root, memory_bytes=0) as store:
        report = store.verify()
        assert not report.database_ok and report.bad == ()
        assert report.n_checked == 2 * N_PAGES
        assert store.verify().ok
        for n in range(N_PAGES):
            assert is_right(store.get(make_key(n)), n)
        page_ids, vectors = store.vectors("f", ["public"])
        assert page_ids == [make_page(n).page_id for n in range(N_PAGES)]
        assert vectors[:, 0].tolist() == list(range(N_PAGES))
    assert_all_pages(root)


def test_a_damaged_index_hides_no_page(root: Path) -> None:
    leaf = pages_of(root, "idx_pages_scope")[-1]
    change(root, leaf * PAGE_BYTES + 4, b"\x02")  # it says that it holds 2 rows or 512
    with PageStore(root) as store:
        assert len(store.pages(["public"])) == N_PAGES
        assert len(store.vectors("f", ["public"])[0]) == N_PAGES


def test_closing_over_a_damaged_index_loses_nothing(root: Path, caplog) -> None:
    leaf = pages_of(root, "idx_entries_last_used_ns_nbytes")[-1]
    change(root, leaf * PAGE_BYTES, b"\xff")
    with PageStore(root) as store:  # notes what was used, in that index
        assert len(store.get_many([make_key(n) for n in range(N_PAGES)])) == N_PAGES
    ours = [record.levelname for record in caplog.records if record.name == "cache_db"]
    assert ours == ["WARNING"]
    assert_all_pages(root)


@pytest.mark.parametrize("where", [0, 3, 9, 100, PAGE_BYTES - 30])
@pytest.mark.parametrize("table", ["entries", "embeddings", "pages"])
def test_a_flipped_bit_in_a_table_loses_no_page(root: Path, table: str, where: int) -> None:
    leaves = pages_of(root, table)
    flip(root, leaves[len(leaves) // 2] * PAGE_BYTES + where)
    before = pictures_in(root)
    look_and_verify(root)
    assert pictures_in(root) == before
    with PageStore(root) as store:
        assert store.vectors("f", ["public"])[1].shape[0] >= N_PAGES // 2
    assert_all_pages(root)


def test_rows_on_both_sides_of_a_damaged_piece_stay_and_every_picture_does(
    root_without_notes: Path,
) -> None:
    root = root_without_notes
    leaves = pages_of(root, "pages")
    assert len(leaves) > 2
    change(root, leaves[1] * PAGE_BYTES, bytes(PAGE_BYTES))
    before = pictures_in(root)
    look_and_verify(root)
    assert (root / "store.db.damaged").exists()
    with PageStore(root) as store:
        kept = {page.page_num for page in store.pages(["public"])}
        lost = store.pages([pictures.LOST])
        assert {0, N_PAGES - 1} < kept and len(kept) > N_PAGES // 2
        assert len(kept) + len(lost) == N_PAGES and lost
        assert pictures_in(root) == before
        assert store.verify(repair=False).ok
        for n in range(N_PAGES):  # those whose rows were lost are new again
            store.add_page(make_page(n), make_picture(n))
        store.remove_scope(pictures.LOST)
    assert_all_pages(root)


def _delete(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    os.truncate(path, 5000)


def _overwrite(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


@pytest.mark.parametrize("wreck", [_delete, _empty, _cut, _overwrite])
@pytest.mark.parametrize("look_first", [False, True])
def test_a_lost_database_is_reported_and_its_pages_come_back_from_their_pictures(
    root: Path, wreck: Callable[[Path], object], look_first: bool, caplog
) -> None:
    before = pictures_in(root)
    wreck(root / "store.db")
    with PageStore(root, memory_bytes=0) as store:
        if look_first:
            assert store.stats().n_pages == N_PAGES
            assert "damaged" in store.stats().note
            assert not store.verify(repair=False).database_ok
        report = store.verify()
        assert not report.ok and not report.database_ok
        assert "database was damaged" in caplog.text
        assert store.verify().ok and store.stats().note == ""  # it is told once
        assert pictures_in(root) == before
        assert [page.page_num for page in store.pages(["public"])] == list(range(N_PAGES))
        for n in range(N_PAGES):
            store.add_page(make_page(n), make_picture(n))
        assert pictures_in(root) == before
    assert_all_pages(root)


@pytest.mark.parametrize("wreck", [_empty, _overwrite])
def test_pictures_that_say_nothing_stay_until_the_store_is_cleared(
    root_without_notes: Path, wreck: Callable[[Path], object]
) -> None:
    root = root_without_notes
    before = pictures_in(root)
    wreck(root / "store.db")
    assert len(before) == N_PAGES
    look_and_verify(root)
    assert pictures_in(root) == before
    with PageStore(root) as store:
        assert store.stats().n_pages == N_PAGES
        assert store.stats().picture_bytes == sum(len(picture) for picture in before)
        store.add_page(make_page(1), make_picture(1))
        assert store.pages(["public"]) == [make_page(1)]
        assert store.image(make_page(1).page_id) is not None
        store.clear()
    assert files_of(root) == []
    assert not list(root.glob("store.db.*"))


@pytest.mark.parametrize(
    "wrong", ["digest = zeroblob(16)", "nbytes = 7", "file = 'f' || substr(file, 2)", "file = 'x'"]
)
def test_a_page_keeps_its_picture_when_only_its_row_is_wrong(root: Path, wrong: str) -> None:
    before = pictures_in(root)
    with PageStore(root) as store:
        page_ids = [make_page(n).page_id for n in (3, 4)]
        with store._database.write() as db:
            db.execute(f"UPDATE pages SET {wrong} WHERE page_num IN (3, 4)")
        store.image(page_ids[0])
        store.verify()
    assert pictures_in(root) == before
    assert_all_pages(root)


def test_a_page_whose_row_was_removed_does_not_come_back_with_its_file(root: Path) -> None:
    with PageStore(root) as store:
        store._files.delete = lambda name: None  # as if killed between row and file
        store.remove_pages([make_page(1).page_id])
    with PageStore(root) as store:
        assert store.page(make_page(1).page_id) is None
        assert len(pictures_in(root)) == N_PAGES - 1


def test_a_page_that_is_just_being_removed_does_not_come_back_by_a_rebuild(
    root: Path, monkeypatch
) -> None:
    with PageStore(root) as store, PageStore(root) as other:
        delete_rows = health._delete_rows

        def delete_rows_then_rebuild(*arguments):
            n_removed = delete_rows(*arguments)
            other._database.rebuild("a test")
            return n_removed

        monkeypatch.setattr(health, "_delete_rows", delete_rows_then_rebuild)
        assert store.remove_pages([make_page(1).page_id]) == 1
        assert store.page(make_page(1).page_id) is None
        assert store.image(make_page(1).page_id) is None
        assert len(pictures_in(root)) == N_PAGES - 1
        assert store.verify(repair=False).n_orphans == 0


def _remove_until_killed(root: Path) -> None:
    """Die by kill -9 between the rows of a page and its files."""
    with PageStore(root) as store:
        store._files.delete = lambda name: os.kill(os.getpid(), signal.SIGKILL)
        store.remove_pages([make_page(1).page_id])


def test_a_page_whose_removal_was_killed_does_not_come_back_by_a_rebuild(root: Path) -> None:
    with PageStore(root) as store:
        child = start(_remove_until_killed, root)
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        assert len(pictures_in(root)) == N_PAGES
        store._database.rebuild("a test")
        assert store.page(make_page(1).page_id) is None
        assert len(pictures_in(root)) == N_PAGES - 1
        assert len(files_of(root)) == 2 * (N_PAGES - 1)
        assert len(store.pages(["public"])) == N_PAGES - 1


def test_a_row_with_nonsense_in_it_is_not_copied(root_without_notes: Path) -> None:
    with closing(sqlite3.connect(root_without_notes / "store.db")) as db:
        db.execute("UPDATE pages SET width = 'wide' WHERE page_num = 1")
        db.execute("UPDATE entries SET file = NULL WHERE key = ?", (make_key(2),))
        db.commit()
    with PageStore(root_without_notes) as store:
        store._database.rebuild("a test")
        assert store.page(make_page(1).page_id) is None
        assert len(store.pages([pictures.LOST])) == 1
        assert len(store.pages(["public"])) == N_PAGES - 1
        assert store.stats().n_entries == N_PAGES - 1


def _as_before_file_digests(root: Path) -> None:
    """The database as the first migration alone made it."""
    with closing(sqlite3.connect(root / "store.db")) as db:
        db.execute("ALTER TABLE pages DROP COLUMN file_digest")
        db.execute("DELETE FROM _sqlite_migrations WHERE name = 'm002_file_digest'")
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_a_store_of_an_earlier_version_goes_on_with_all_its_pages(root: Path) -> None:
    _as_before_file_digests(root)
    assert_all_pages(root)
    with closing(sqlite3.connect(root / "store.db")) as db:  # the note of it alone is lost
        db.execute("DELETE FROM _sqlite_migrations WHERE name = 'm002_file_digest'")
        db.commit()
    assert_all_pages(root)
    with PageStore(root) as store:
        later = replace(make_page(N_PAGES), file_digest="f")
        store.add_page(later, make_picture(N_PAGES))
        assert store.page(later.page_id) == later


def test_a_schema_that_is_no_text_is_damage_as_any_other(root: Path) -> None:
    """Messages that quote it cannot be read either."""
    content = (root / "store.db").read_bytes()
    at = content.index(b"tablepagespages") + 5
    change(root, at, b"\xff\xff")
    look_and_verify(root)
    assert_all_pages(root)


def test_a_file_that_was_noted_later_is_known_after_a_rebuild(root: Path) -> None:
    with PageStore(root) as store:
        noted = store.note_file(make_page(1), "f")
        store._database.rebuild("a test")
        assert store.page(noted.page_id) == noted
        assert store.note_file(noted, "another") == noted, "the first stands"


def test_a_damaged_store_of_an_earlier_version_keeps_its_rows(root_without_notes: Path) -> None:
    _as_before_file_digests(root_without_notes)
    path = root_without_notes / "store.db"
    rebuild.rebuild(path, None)  # whoever meets damage before the migration
    assert_all_pages(root_without_notes)


def _open_and_count(root: Path) -> None:
    with PageStore(root, memory_bytes=0) as store:
        assert len(store.pages(["public"])) == N_PAGES
        assert put(store, os.getpid()) > 0


def test_processes_that_meet_the_damage_together_rebuild_once(root: Path) -> None:
    _overwrite(root / "store.db")
    junk = (root / "store.db").read_bytes()
    finish(*[start(_open_and_count, root) for _ in range(6)])
    assert (root / "store.db.damaged").read_bytes() == junk  # and not a rebuilt one
    with PageStore(root) as store:
        assert store.stats().n_entries == 6
    assert_all_pages(root)


def test_who_meets_damage_that_another_has_mended_meanwhile_replaces_nothing(root: Path) -> None:
    with PageStore(root) as store, PageStore(root) as other:
        with pytest.raises(sqlite3.DatabaseError), store._database.read():
            other._database.rebuild("a test")
            mended = (root / "store.db").stat().st_ino
            raise sqlite3.DatabaseError("database disk image is malformed")
        assert (root / "store.db").stat().st_ino == mended
        assert len(store.pages(["public"])) == N_PAGES


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE _sqlite_migrations SET name = 'm001_tabmes' WHERE name = 'm001_tables'",
        "UPDATE _sqlite_migrations SET name = 'm002_file' WHERE name = 'm002_file_digest'",
        "UPDATE _sqlite_migrations SET migration_set = 'cacheOdb'",
        "ALTER TABLE _sqlite_migrations RENAME COLUMN name TO nbme",
        "ALTER TABLE pages RENAME COLUMN label TO labem",
        "DELETE FROM catalogue_version",
        "UPDATE pages SET label = CAST(x'ff' AS TEXT)",
        "UPDATE pages SET file = CAST(file AS BLOB)",
        "UPDATE entries SET file = CAST(file AS BLOB) WHERE rowid = 1",
        "INSERT INTO pins VALUES ('a pin', x'ff', 'a key')",
        "INSERT INTO reservations VALUES (x'ff', 'the dead', 1)",
        "UPDATE embeddings SET vector = CAST(x'ff' AS TEXT) WHERE rowid = 1",
    ],
)
def test_what_is_wrong_inside_a_whole_database_is_damage_too(root: Path, sql: str) -> None:
    with closing(sqlite3.connect(root / "store.db")) as db:
        db.execute(sql)
        db.commit()
    with PageStore(root) as store:
        assert store.stats().persistent
        store.vectors("f", ["public"])
        store.pages(["public"])
        assert not store.verify().database_ok
    assert_all_pages(root)


def test_a_writer_that_waited_for_a_rebuild_writes_into_the_new_database(
    root: Path, monkeypatch
) -> None:
    page = replace(make_page(N_PAGES), label="late")
    with PageStore(root) as writer, PageStore(root) as other:
        handle_of = writer._database._handle

        def handle_then_rebuild():
            handle = handle_of()
            monkeypatch.undo()
            other._database.rebuild("a test")
            return handle

        data = pictures.encode(page, make_picture(N_PAGES))
        monkeypatch.setattr(writer._catalogue, "_has_picture", lambda _: False)
        monkeypatch.setattr(writer._database, "_handle", handle_then_rebuild)
        with pytest.raises(sqlite3.DatabaseError, match="replaced by another process"):
            writer._catalogue._write(page, data, alone=False)
        writer.add_page(page, make_picture(N_PAGES))
        assert other.page(page.page_id) == page
        assert other.image(page.page_id) is not None


@pytest.mark.parametrize("wreck", [_empty, _overwrite, None])
def test_a_rebuild_that_fails_halfway_is_made_good_by_the_next(
    root: Path, monkeypatch, wreck: Callable[[Path], object] | None
) -> None:
    if wreck:
        wreck(root / "store.db")
    for n_done in range(4):  # of the renames; then the process dies, as it were
        with monkeypatch.context() as patch:
            left = iter(range(n_done))

            def rename(source, target, left=left):
                if next(left, None) is None:
                    raise OSError(5, "Input/output error")
                shutil.move(source, target)

            patch.setattr(rebuild.os, "replace", rename)
            with PageStore(root) as store, suppress(OSError):
                store._database.rebuild("a test")
    look_and_verify(root)
    assert_all_pages(root)


N_RENAMES = 5  # of a rebuild: the new one, the old one with its log and its index, the new one


def _rebuild_until_killed(root: Path, n_done: int, go_on: Event) -> None:
    """Die by kill -9 after that many renames."""
    replace_file, left = os.replace, iter(range(n_done))

    def rename(source: str | Path, target: str | Path) -> None:
        if os.path.exists(source):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
        replace_file(source, target)

    with PageStore(root) as store:
        go_on.wait(60)
        rebuild.os.replace = rename
        store._database.rebuild("a test")


@pytest.mark.parametrize("n_done", range(N_RENAMES))
def test_a_rebuild_that_is_killed_loses_nothing_of_what_it_has_read(
    root: Path, n_done: int
) -> None:
    go_on = multiprocessing.get_context("fork").Event()
    with PageStore(root, memory_bytes=0) as other:
        child = start(_rebuild_until_killed, root, n_done, go_on)
        put(other, N_PAGES)  # stands in the log only
        go_on.set()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        put(other, N_PAGES + 1)  # into the old database where that still stands
        assert ("cut short" in other.stats().note) == (n_done > 1)
        with PageStore(root, memory_bytes=0) as store:
            store.verify()
            for n in range(N_PAGES + 2):
                assert is_right(store.get(make_key(n)), n), n
            page_ids, vectors = store.vectors("f", ["public"])
            assert page_ids == [make_page(n).page_id for n in range(N_PAGES)]
            assert vectors[:, 0].tolist() == list(range(N_PAGES))
            assert store.verify(repair=False).ok
    assert_all_pages(root)
    assert not (root / "store.db.whole").exists()


def test_a_rebuild_that_was_cut_short_before_its_end_is_not_taken_for_the_database(
    root: Path, monkeypatch
) -> None:
    _empty(root / "store.db")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "_restore_pages", interrupt)
        with pytest.raises(KeyboardInterrupt):
            PageStore(root)
    look_and_verify(root)
    assert_all_pages(root)
