"""Several processes and threads on one store: nothing lost, nothing wrong, nothing locked."""

import os
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from store_samples import (
    files_of,
    finish,
    is_right,
    leave_stray,
    make_key,
    make_page,
    make_picture,
    make_tensors,
    only_file,
    put,
    start,
)

from cache_db import PageStore, pictures
from cache_db.database import TIMEOUT_S, Database
from cache_db.files import DiskFiles


def _count_up(path, n_times):
    database = Database(path)
    for _ in range(n_times):
        with database.write() as db:
            (version,) = db.execute("SELECT version FROM catalogue_version").fetchone()
            db.execute("UPDATE catalogue_version SET version = ?", (version + 1,))


def test_no_update_of_four_processes_is_lost(tmp_path):
    path = tmp_path / "store.db"
    database = Database(path)
    with database.write() as db:
        db.execute("UPDATE catalogue_version SET version = 0")
    finish(*[start(_count_up, path, 200) for _ in range(4)])
    with database.read() as db:
        assert db.execute("SELECT version FROM catalogue_version").fetchone() == (800,)


def _put_same(root, n_times):
    with PageStore(root, memory_bytes=0) as store:
        for _ in range(n_times):
            assert put(store, 1) > 0
            assert is_right(store.get(make_key(1)), 1)
        assert store.stats().corrupt == 0


def test_eight_processes_putting_one_key_leave_one_row_and_one_file(tmp_path):
    finish(*[start(_put_same, tmp_path, 20) for _ in range(8)])
    with PageStore(tmp_path) as store:
        assert store.stats().n_entries == 1
        assert only_file(tmp_path).stat().st_size == store.stats().kv_bytes
        assert store.verify(repair=False).ok


def test_one_page_added_by_many_threads_at_once_has_one_row_and_one_file(tmp_path):
    with PageStore(tmp_path) as store:
        barrier = threading.Barrier(8)

        def add():
            barrier.wait()
            store.add_page(make_page(1), make_picture(1))

        threads = [threading.Thread(target=add) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.pages(["public"]) == [make_page(1)]
        assert only_file(tmp_path).stat().st_size == store.stats().picture_bytes


def test_a_store_is_refused_in_a_forked_child(tmp_path):
    with PageStore(tmp_path) as store:
        put(store, 1)

        def use_it():
            with pytest.raises(RuntimeError, match="does not survive fork"):
                store.contains([make_key(1)])

        finish(start(use_it))
        assert is_right(store.get(make_key(1)), 1)


def _open_and_wait(root, n_tokens, started, go_on):
    """Stop in the middle of a put: the file is there, the row is not."""
    write = DiskFiles.write

    def write_and_wait(self, name, data):
        write(self, name, data)
        started.set()
        go_on.wait(60)

    DiskFiles.write = write_and_wait
    with PageStore(root) as store:
        assert put(store, 1, n_tokens) > 0


def test_the_sweep_of_a_second_process_spares_the_file_that_a_first_is_writing(tmp_path):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    started, go_on = context.Event(), context.Event()
    child = start(_open_and_wait, tmp_path, 16, started, go_on)
    assert started.wait(60)
    leave_stray(tmp_path, ".kv.tmp")
    with PageStore(tmp_path) as store:
        assert len(files_of(tmp_path)) == 1  # the stray one is gone, the other is not
        assert store.verify().ok
        go_on.set()
        finish(child)
        assert is_right(store.get(make_key(1)), 1)


def _evict(store):
    store.clear()


def _replace(store):
    store.put(make_key(1), "", make_tensors(2), {"n": 2})


def _remove_page(store):
    store.remove_pages([make_page(1).page_id])


MOMENTS = {"before open": "open", "between open and read": "readv", "after read": "close"}


def act_within(patch: pytest.MonkeyPatch, moment: str, action) -> None:
    """Call action at that moment of the next read of a file."""
    real = getattr(os, MOMENTS[moment])

    def act_first(*arguments):
        patch.undo()
        action()
        return real(*arguments)

    patch.setattr(f"cache_db.files.os.{MOMENTS[moment]}", act_first)


@pytest.mark.fault
@pytest.mark.parametrize("action", [_evict, _replace, _remove_page])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_reader_overtaken_by_a_writer_gets_right_bytes_or_a_miss(
    tmp_path, monkeypatch, action, moment
):
    """The writer acts from another process's store exactly at a chosen point of the read."""
    with (
        PageStore(tmp_path, memory_bytes=0) as reader,
        PageStore(tmp_path, memory_bytes=0) as writer,
    ):
        for _ in range(6):  # in nine combinations
            writer.add_page(make_page(1), make_picture(1))
            writer.put(make_key(1), make_page(1).page_id, make_tensors(1), {"n": 1})
            with monkeypatch.context() as patch:
                act_within(patch, moment, lambda: action(writer))
                entry = reader.get(make_key(1))
            later = reader.get(make_key(1))
            if action is _replace:
                assert is_right(later, 2)
                assert is_right(entry, entry.meta["n"])
            else:
                assert later is None
                assert entry is None or is_right(entry, 1)
        assert reader.stats().corrupt == 0
        assert reader.verify(repair=False).ok


@pytest.mark.fault
@pytest.mark.parametrize("action", [_evict, _replace, _remove_page])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("repair", [False, True], ids=["looking", "repairing"])
def test_what_a_writer_replaces_or_removes_during_verify_is_not_bad(
    tmp_path, monkeypatch, action, moment, repair
):
    with (
        PageStore(tmp_path, memory_bytes=0) as reader,
        PageStore(tmp_path, memory_bytes=0) as writer,
    ):
        writer.add_page(make_page(1), make_picture(1))
        for n in (1, 2):
            writer.put(make_key(n), make_page(1).page_id, make_tensors(n), {"n": n})
        with monkeypatch.context() as patch:
            act_within(patch, moment, lambda: action(writer))
            report = reader.verify(repair)
        assert report.ok, report
        assert reader.stats().corrupt == 0
        if action is _replace:
            assert reader.get(make_key(1)).meta["n"] == 2
            assert is_right(reader.get(make_key(2)), 2)


def _replace_picture(store):
    store.remove_pages([make_page(1).page_id])
    store.add_page(make_page(1), make_picture(1))


@pytest.mark.fault
@pytest.mark.parametrize("action", [_remove_page, _replace_picture])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_picture_that_a_writer_has_just_replaced_is_shown_and_not_counted_as_damaged(
    tmp_path, monkeypatch, action, moment
):
    with PageStore(tmp_path) as reader, PageStore(tmp_path) as writer:
        for look in (reader.image, lambda _: reader.verify().ok):
            writer.add_page(make_page(1), make_picture(1))
            with monkeypatch.context() as patch:
                act_within(patch, moment, lambda: action(writer))
                seen = look(make_page(1).page_id)
            if action is _replace_picture:
                assert seen
                now = reader.image(make_page(1).page_id)
                assert now.tobytes() == make_picture(1).tobytes()
        assert reader.stats().corrupt == 0
        assert reader.verify(repair=False).ok


def _drop(store):
    store._entries.drop(store._entries.rows([make_key(1)]))


@pytest.mark.parametrize("action", [_evict, _replace, _remove_page, _drop])
@pytest.mark.parametrize("repair", [False, True], ids=["looking", "repairing"])
def test_files_that_a_writer_is_about_to_delete_are_no_orphans(
    tmp_path, monkeypatch, repair, action
):
    with PageStore(tmp_path) as reader, PageStore(tmp_path) as writer:
        writer.add_page(make_page(1), make_picture(1))
        put(writer, 1, page_id=make_page(1).page_id)
        delete, reports = writer._space._delete, []

        def delete_after_verify(names):
            if names:
                reports.append(reader.verify(repair))
            delete(names)

        monkeypatch.setattr(writer._space, "_delete", delete_after_verify)
        action(writer)
        assert len(reports) == 1 and reports[0].ok
        assert len(files_of(tmp_path)) == writer.stats().n_pages + writer.stats().n_entries
        leave_stray(tmp_path)
        assert reader.verify(repair).n_orphans == 1


def test_files_that_are_deleted_while_verify_asks_for_their_rows_are_no_orphans(
    tmp_path, monkeypatch
):
    with PageStore(tmp_path) as reader, PageStore(tmp_path) as writer:
        put(writer, 1)
        names = reader._files.names

        def names_before_they_go():
            monkeypatch.setattr(reader._files, "names", names)
            present = names()
            writer.clear()
            return present

        monkeypatch.setattr(reader._files, "names", names_before_they_go)
        assert reader.verify(repair=False).n_orphans == 0
        assert files_of(tmp_path) == []


def _verify(store):
    store.verify()


def _look(store):
    store.image(make_page(1).page_id)


@pytest.mark.parametrize("action", [_verify, _look])
def test_a_picture_that_another_process_has_just_given_back_is_not_deleted(
    tmp_path, monkeypatch, action
):
    with PageStore(tmp_path) as store, PageStore(tmp_path) as other:
        store.add_page(make_page(1), make_picture(1))
        wrong = "digest = zeroblob(16)" if action is _look else "file = NULL"
        with store._database.write() as db:
            db.execute(f"UPDATE pages SET {wrong}")
        give_back = store._catalogue.give_back

        def give_back_after_the_other(names):
            other.verify()
            return give_back(names)

        monkeypatch.setattr(store._catalogue, "give_back", give_back_after_the_other)
        action(store)
        assert other.image(make_page(1).page_id).tobytes() == make_picture(1).tobytes()
        assert len(files_of(tmp_path)) == 1


def test_nobody_can_name_an_orphan_while_it_is_deleted(tmp_path, monkeypatch):
    with (
        PageStore(tmp_path) as store,
        closing(sqlite3.connect(tmp_path / "store.db", timeout=0)) as other,
    ):
        leave_stray(tmp_path)
        delete, deleted = store._files.delete, []

        def delete_meanwhile(name):
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            deleted.append(name)
            delete(name)

        monkeypatch.setattr(store._files, "delete", delete_meanwhile)
        store.verify()
        assert len(deleted) == 1 and files_of(tmp_path) == []


def test_a_picture_that_another_process_has_just_deleted_is_not_given_back(tmp_path, monkeypatch):
    with PageStore(tmp_path) as store:
        store.add_page(make_page(1), make_picture(1))
        with store._database.write() as db:
            db.execute("UPDATE pages SET file = NULL")
        page_in = pictures.page_in

        def page_in_then_gone(data, name):
            only_file(tmp_path).unlink()
            return page_in(data, name)

        monkeypatch.setattr(pictures, "page_in", page_in_then_gone)
        store.verify()
        with store._database.read() as db:
            assert db.execute("SELECT file FROM pages").fetchone() == (None,)


def test_a_reader_does_not_wait_for_a_writer_to_note_what_was_used(tmp_path, monkeypatch):
    monkeypatch.setattr("cache_db.evict._TOUCH_INTERVAL_S", -1.0)
    with PageStore(tmp_path) as store:
        put(store, 1)

        def ask(sql):
            with store._database.read() as db:
                return db.execute(sql).fetchone()[0]

        put_at = ask("SELECT last_used_ns FROM entries")
        with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            begin = time.monotonic()
            assert is_right(store.get(make_key(1)), 1)
            assert is_right(store.get(make_key(1)), 1)
            assert time.monotonic() - begin < TIMEOUT_S / 2  # a wait for the other takes all of it
            assert store.stats().note == ""  # that somebody writes is no trouble
        assert ask("SELECT last_used_ns FROM entries") == put_at
        assert store.get(make_key(2)) is None
        assert ask("SELECT last_used_ns FROM entries") > put_at  # the notes were kept
        assert ask("PRAGMA busy_timeout") == TIMEOUT_S * 1000  # who must write waits as before


def test_pages_that_cannot_be_removed_because_the_database_is_busy_keep_their_files(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("cache_db.database.TIMEOUT_S", 0.05)
    with PageStore(tmp_path, memory_bytes=0) as store:
        store.add_page(make_page(1), make_picture(1))
        put(store, 1, page_id=make_page(1).page_id)
        with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert store.remove_pages([make_page(1).page_id]) == 0
        assert "locked" in store.stats().note
        assert is_right(store.get(make_key(1)), 1)
        assert store.image(make_page(1).page_id) is not None
        assert store.remove_pages([make_page(1).page_id]) == 1
