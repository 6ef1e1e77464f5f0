import multiprocessing
import signal
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from store_samples import (
    files_of,
    is_right,
    kill,
    killed,
    leave_stray,
    make_key,
    make_page,
    make_picture,
    put,
    start,
)

from cache_db import PageStore
from cache_db.evict import DOCUMENTS
from cache_db.files import DiskFiles
from mrr.errors import BudgetExceeded, Closed


@pytest.fixture
def nbytes(tmp_path_factory) -> int:
    """Size of one entry."""
    with PageStore(tmp_path_factory.mktemp("size")) as store:
        return put(store, 1)


def held(store: PageStore) -> set[int]:
    return {n for n in range(20) if make_key(n) in store.contains([make_key(n)])}


def test_the_least_recently_used_entry_is_evicted_first(tmp_path, nbytes):
    with PageStore(tmp_path, budget_bytes=3 * nbytes, memory_bytes=0) as store:
        for n in range(3):
            put(store, n)
        store.get(make_key(0))
        put(store, 3)
        assert held(store) == {0, 2, 3}
        assert store.stats().evicted == 1
        assert len(files_of(tmp_path)) == 3


def test_reads_from_memory_count_as_use_and_are_remembered_over_a_restart(tmp_path, nbytes):
    with PageStore(tmp_path) as store:
        for n in range(3):
            put(store, n)
        assert store.get(make_key(0)).source == "memory"
    with PageStore(tmp_path, budget_bytes=3 * nbytes, memory_bytes=0) as store:
        put(store, 3)
        assert held(store) == {0, 2, 3}


def test_of_two_processes_uses_the_later_counts_whoever_notes_his_last(tmp_path, nbytes):
    with (
        PageStore(tmp_path, budget_bytes=2 * nbytes, memory_bytes=0) as store,
        PageStore(tmp_path, budget_bytes=3 * nbytes, memory_bytes=0) as other,
    ):
        put(store, 0)
        put(store, 1)
        store.get(make_key(0))
        put(other, 1)
        put(other, 0)
        put(store, 2)  # notes its use of 0 first
        assert held(store) == {0, 2}


def test_of_entries_used_at_the_same_moment_the_first_that_was_put_goes(
    tmp_path, nbytes, monkeypatch
):
    monkeypatch.setattr("cache_db.entries.now_ns", lambda: 1)
    with PageStore(tmp_path, budget_bytes=4 * nbytes, memory_bytes=0) as store:
        assert nbytes < put(store, 2, n_tokens=20) < 2 * nbytes  # not the smallest
        for n in (0, 1, 3):
            put(store, n)
        assert held(store) == {0, 1, 3}
        put(store, 4)
        put(store, 5)
        assert held(store) == {1, 3, 4, 5}


def test_a_rank_of_many_entries_costs_no_transaction_until_the_notes_are_due(tmp_path, monkeypatch):
    with PageStore(tmp_path) as store:
        for n in range(5):
            put(store, n)
        statements = []
        store._database._handle().db.conn.set_trace_callback(statements.append)
        store.get_many([make_key(n) for n in range(5)])
        assert statements == []
        monkeypatch.setattr("cache_db.evict._TOUCH_INTERVAL_S", -1.0)
        store.get_many([make_key(n) for n in range(5)])
        assert sum("BEGIN" in statement for statement in statements) == 1


def test_pinned_entries_are_not_evicted(tmp_path, nbytes):
    with PageStore(tmp_path, budget_bytes=2 * nbytes, memory_bytes=0) as store:
        put(store, 0)
        put(store, 1)
        with store.pinned([make_key(0)]):
            put(store, 2)
            assert held(store) == {0, 2}
            with store.pinned([make_key(0), make_key(2)]):
                assert put(store, 3) == 0  # nothing can go, so this one is not kept
                assert held(store) == {0, 2}
            put(store, 4)
            assert held(store) == {0, 4}
        put(store, 5)
        assert held(store) == {4, 5}


def test_an_entry_over_the_whole_budget_evicts_nothing_and_is_served_from_memory(tmp_path, nbytes):
    with PageStore(tmp_path, budget_bytes=2 * nbytes) as store:
        put(store, 0)
        assert put(store, 1, n_tokens=100) == 0
        assert is_right(store.get(make_key(1)), 1, n_tokens=100)
        both = {make_key(0), make_key(1)}
        assert store.contains(both) == both
        assert store.stored(both) == {make_key(0)}
        assert is_right(store.get(make_key(0)), 0)
        assert store.stats().skipped == 1
        assert len(files_of(tmp_path)) == 1


def test_a_refused_entry_does_not_forget_what_was_used(tmp_path, nbytes):
    with PageStore(tmp_path, budget_bytes=3 * nbytes, memory_bytes=0) as store:
        for n in range(3):
            put(store, n)
        store.get(make_key(0))
        assert put(store, 10, n_tokens=100) == 0
        put(store, 3)
        assert held(store) == {0, 2, 3}


def test_a_later_use_counts_where_an_earlier_could_not_be_noted(tmp_path, nbytes):
    with PageStore(tmp_path, budget_bytes=3 * nbytes, memory_bytes=0) as store:
        for n in range(3):
            put(store, n)
        store.get_many([make_key(0), make_key(1)])
        with (
            pytest.raises(BudgetExceeded),
            store._space.touches.flush(store._database),
        ):
            store.get(make_key(0))  # in another thread, while the transaction runs
            raise BudgetExceeded
        put(store, 3)
        assert held(store) == {0, 1, 3}
        put(store, 4)
        assert held(store) == {0, 3, 4}


def test_pictures_push_entries_out_and_never_the_other_way_round(tmp_path, nbytes):
    with PageStore(tmp_path / "size") as store:
        store.add_page(make_page(1), make_picture(1))
        picture_bytes = store.stats().picture_bytes
    with PageStore(tmp_path / "own", budget_bytes=nbytes + picture_bytes, memory_bytes=0) as store:
        put(store, 1)
        store.add_page(make_page(1), make_picture(1))
        assert held(store) == {1}
        store.add_page(make_page(2), make_picture(2))
        assert held(store) == set()
        assert put(store, 2) == 0
        n_pages = 2
        with pytest.raises(BudgetExceeded, match="too much is in use"):
            while True:
                store.add_page(make_page(n_pages + 1), make_picture(n_pages + 1))
                n_pages += 1
        assert store.stats().n_pages == n_pages
        assert all(store.image(page.page_id) for page in store.pages(["public"]))
        assert store.stats().picture_bytes <= store.stats().budget_bytes


def document_store(root, n_pages: int, **options) -> PageStore:
    """A store with documents 0, 1, ..., each with an entry, and the room that they take."""
    with PageStore(root) as store:
        for n in range(n_pages):
            store.add_page(make_page(n, DOCUMENTS), make_picture(n))
            put(store, n, page_id=make_page(n, DOCUMENTS).page_id)
        used = store.stats().kv_bytes + store.stats().picture_bytes
    return PageStore(root, budget_bytes=used, memory_bytes=0, **options)


def documents(store: PageStore) -> set[int]:
    return {page.page_num for page in store.pages([DOCUMENTS])}


def test_a_document_goes_with_the_last_of_its_entries_the_oldest_first(tmp_path):
    with document_store(tmp_path, 3) as store:
        store.put_embedding(make_page(1, DOCUMENTS).page_id, "f", *(np.ones((2, 2)),) * 2)
        store.get(make_key(0))
        store.add_page(make_page(7), make_picture(7))  # less than an entry, which is the first
        assert (held(store), documents(store)) == ({0, 2}, {0, 1, 2})
        put(store, 7)
        assert (held(store), documents(store)) == ({0, 2, 7}, {0, 2})
        assert store.embedding(make_page(1, DOCUMENTS).page_id, "f") is None
        assert len(files_of(tmp_path)) == store.stats().n_pages + store.stats().n_entries
        assert store.verify().ok


def test_a_document_that_was_added_before_its_entry_still_goes_after_it(tmp_path):
    with PageStore(tmp_path) as store:
        store.add_page(make_page(0, DOCUMENTS), make_picture(0))
        for n in (8, 9, 0):
            put(store, n, page_id=make_page(0, DOCUMENTS).page_id if n == 0 else "")
        store.get_many([make_key(n) for n in (8, 9, 0)])  # at the same moment
    used = sum(path.stat().st_size for path in files_of(tmp_path))
    with PageStore(tmp_path, budget_bytes=used, memory_bytes=0) as store:
        for n in (20, 21, 22):
            assert documents(store) == {0}
            put(store, n)
        assert (held(store), documents(store)) == (set(), {0})


def test_pages_that_stay_push_documents_out_and_never_the_other_way_round(tmp_path):
    with document_store(tmp_path, 3) as store:
        n = 0
        with pytest.raises(BudgetExceeded):
            for n in range(20, 100):
                store.add_page(make_page(n), make_picture(n))
        assert not documents(store) and not held(store)
        with pytest.raises(BudgetExceeded):
            store.add_page(make_page(0, DOCUMENTS), make_picture(0))
        assert store.stats().n_pages == n - 20 > 3


@pytest.mark.parametrize("by_entry", [False, True], ids=["the page", "an entry of it"])
def test_a_document_that_is_in_use_is_not_evicted(tmp_path, by_entry):
    with document_store(tmp_path, 2) as store:
        pin = make_key(0) if by_entry else make_page(0, DOCUMENTS).page_id
        with store.pinned([pin]):
            for n in (7, 8, 9):
                assert put(store, n) > 0
            assert documents(store) == {0}
            assert store.image(make_page(0, DOCUMENTS).page_id) is not None


def test_a_smaller_budget_takes_effect_with_the_next_entry(tmp_path, nbytes):
    with PageStore(tmp_path) as store:
        for n in range(6):
            put(store, n)
    with PageStore(tmp_path, budget_bytes=2 * nbytes, memory_bytes=0) as store:
        put(store, 6)
        assert held(store) == {5, 6}


def _pin_and_wait(root, n, ready):
    store = PageStore(root)
    with store.pinned([make_key(n)]):
        ready.send(True)
        signal.pause()


@pytest.mark.fault
def test_pins_of_another_process_hold_until_it_is_killed(tmp_path, nbytes):
    with PageStore(tmp_path) as store:
        put(store, 0)
    here, there = multiprocessing.Pipe()
    child = start(_pin_and_wait, tmp_path, 0, there)
    with killed(child), PageStore(tmp_path, budget_bytes=nbytes, memory_bytes=0) as store:
        assert here.poll(60)
        assert put(store, 1) == 0
        assert held(store) == {0}
        kill(child)
        assert put(store, 1) == nbytes
        assert held(store) == {1}


def _put_until_killed(root, n, ready):
    write = DiskFiles.write

    def write_and_wait(self, name, data):
        write(self, name, data)
        ready.send(True)
        signal.pause()

    DiskFiles.write = write_and_wait
    with PageStore(root) as store:
        put(store, n)


@pytest.mark.fault
def test_the_file_that_a_killed_process_was_writing_goes_with_its_reservation(tmp_path, nbytes):
    here, there = multiprocessing.Pipe()
    with PageStore(tmp_path, budget_bytes=2 * nbytes, memory_bytes=0) as store:
        with killed(start(_put_until_killed, tmp_path, 0, there)):
            assert here.poll(60)
            put(store, 1)
            assert len(files_of(tmp_path)) == 2
        put(store, 2)
        assert held(store) == {1, 2}
        assert len(files_of(tmp_path)) == 2


@pytest.mark.fault
def test_a_file_that_a_row_names_does_not_go_with_a_damaged_reservation(tmp_path, nbytes):
    with PageStore(tmp_path, budget_bytes=3 * nbytes, memory_bytes=0) as store:
        store.add_page(make_page(1), make_picture(1))
        with store._database.write() as db:
            db.execute("INSERT INTO reservations SELECT file, 'the dead', 1 FROM pages")
        for n in range(3):
            put(store, n)
        assert store.image(make_page(1).page_id) is not None


def test_what_others_are_writing_counts_against_the_budget(tmp_path, nbytes, monkeypatch):
    with (
        PageStore(tmp_path, budget_bytes=2 * nbytes, memory_bytes=0) as store,
        PageStore(tmp_path, budget_bytes=2 * nbytes, memory_bytes=0) as other,
    ):
        put(store, 0)
        write = DiskFiles.write

        def write_while_another_puts(self, name, data):
            monkeypatch.setattr(DiskFiles, "write", write)
            put(other, 1)
            write(self, name, data)
            assert sum(path.stat().st_size for path in files_of(tmp_path)) <= 2 * nbytes

        monkeypatch.setattr(DiskFiles, "write", write_while_another_puts)
        put(store, 2)
        assert held(store) == {1, 2}


def test_what_is_evicted_counts_no_more_while_its_file_is_deleted(tmp_path, nbytes, monkeypatch):
    with (
        PageStore(tmp_path, budget_bytes=2 * nbytes, memory_bytes=0) as store,
        PageStore(tmp_path, budget_bytes=2 * nbytes, memory_bytes=0) as other,
    ):
        put(store, 0)
        put(store, 1)
        delete = store._space._delete

        def delete_while_another_puts(names):
            if names:
                assert put(other, 3) > 0
            delete(names)

        monkeypatch.setattr(store._space, "_delete", delete_while_another_puts)
        assert put(store, 2) > 0
        assert held(store) == {2, 3}
        assert len(files_of(tmp_path)) == 2


def test_room_that_could_not_be_given_back_at_once_is_there_for_the_next_entry(
    tmp_path, nbytes, monkeypatch
):
    def fail(*_):
        raise OSError(5, "Input/output error")

    with PageStore(tmp_path, budget_bytes=nbytes, memory_bytes=0) as store:
        with monkeypatch.context() as patch:
            for operation in ("write", "delete"):
                patch.setattr(store._files, operation, fail)
            assert put(store, 1) == 0
        assert put(store, 2) > 0


def _open(store, root):
    PageStore(root).close()


def _verify(store, root):
    store.verify()


@pytest.mark.fault
@pytest.mark.parametrize("action", [_open, _verify])
def test_the_files_of_the_dead_count_until_they_are_gone(tmp_path, monkeypatch, action):
    with (
        PageStore(tmp_path) as store,
        closing(sqlite3.connect(tmp_path / "store.db")) as other,
    ):
        stray = leave_stray(tmp_path)
        with store._database.write() as db:
            db.execute("INSERT INTO reservations VALUES (?, 'the dead', 1)", (stray.name,))
        delete, n_reserved = DiskFiles.delete, []

        def delete_after_a_look(self, name):
            n_reserved.extend(other.execute("SELECT count(*) FROM reservations"))
            delete(self, name)

        monkeypatch.setattr(DiskFiles, "delete", delete_after_a_look)
        action(store, tmp_path)
        assert n_reserved == [(1,)]
        assert list(other.execute("SELECT count(*) FROM reservations")) == [(0,)]
        assert files_of(tmp_path) == []


def test_files_that_nothing_names_go_however_many_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("cache_db.removal._FILES_AT_ONCE", 2)
    with PageStore(tmp_path, memory_bytes=0) as store:
        for n in range(5):
            put(store, n)
        with store._database.write() as db:
            db.execute("DELETE FROM entries WHERE key != ?", (make_key(3),))
    with PageStore(tmp_path, memory_bytes=0) as store:
        assert is_right(store.get(make_key(3)), 3) and len(files_of(tmp_path)) == 1


@pytest.mark.parametrize("closes", [False, True])
def test_a_page_whose_file_another_threads_close_deleted_gets_no_row(tmp_path, monkeypatch, closes):
    with PageStore(tmp_path) as store:
        write = store._files.write

        def interrupted(name, data):
            write(name, data)
            monkeypatch.undo()
            store.close() if closes else store._release()

        monkeypatch.setattr(store._files, "write", interrupted)
        if closes:
            with pytest.raises(Closed):
                store.add_page(make_page(1), make_picture(1))
        else:  # and what is begun again goes well
            store.add_page(make_page(1), make_picture(1))
            assert store.image(make_page(1).page_id) is not None
    with PageStore(tmp_path) as store:
        assert (store.page(make_page(1).page_id) is None) == closes
        assert store.verify(repair=False).ok and len(files_of(tmp_path)) == (0 if closes else 1)


def test_a_file_that_cannot_be_deleted_holds_nothing_else_up(tmp_path, nbytes, monkeypatch):
    monkeypatch.setattr("cache_db.removal._FILES_AT_ONCE", 2)
    delete, stuck = DiskFiles.delete, set()

    def fails(files, name):
        if name in stuck:
            raise OSError(5, "Input/output error")
        delete(files, name)

    monkeypatch.setattr(DiskFiles, "delete", fails)
    with PageStore(tmp_path, budget_bytes=9 * nbytes, memory_bytes=0) as store:
        put(store, 0)
        stuck.update(path.name for path in files_of(tmp_path))
        for n in range(1, 7):
            put(store, n)
        store.clear()
        assert {path.name for path in files_of(tmp_path)} == stuck
        assert "Cannot delete files" in store.stats().note
        store._space.pin([make_key(1)])
    with PageStore(tmp_path, budget_bytes=2 * nbytes, memory_bytes=0) as store:
        with store._database.read() as db:
            assert db.execute("SELECT file FROM reservations").fetchall() == [(*stuck,)]
            assert db["pins"].count == 0
        for n in range(4):
            assert put(store, n) == nbytes
        stuck.clear()
    assert len(files_of(tmp_path)) == 2
