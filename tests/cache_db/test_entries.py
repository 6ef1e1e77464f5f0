import gc
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from store_samples import (
    descriptors,
    files_of,
    is_right,
    make_key,
    make_page,
    make_picture,
    make_tensors,
    only_file,
    put,
)

from cache_db import PageStore, health
from mrr.errors import Closed


def test_an_entry_comes_back_from_memory_and_after_reopening_from_disk(tmp_path):
    with PageStore(tmp_path) as store:
        nbytes = put(store, 1)
        assert nbytes == only_file(tmp_path).stat().st_size
        entry = store.get(make_key(1))
        assert is_right(entry, 1) and entry.source == "memory"
    with PageStore(tmp_path) as store:
        assert store.contains([make_key(1), make_key(2)]) == {make_key(1)}
        first, second = store.get(make_key(1)), store.get(make_key(1))
        assert is_right(first, 1) and first.source == "disk" and first.nbytes == nbytes
        assert is_right(second, 1) and second.source == "memory"
        stats = store.stats()
        assert (stats.disk_hits, stats.memory_hits, stats.misses) == (1, 1, 0)


def test_fifty_pages_are_all_there_after_a_restart(tmp_path):
    with PageStore(tmp_path) as store:
        for n in range(50):
            put(store, n)
    with PageStore(tmp_path) as store:
        entries = store.get_many([make_key(n) for n in range(50)])
        assert all(is_right(entries.get(make_key(n)), n) for n in range(50))
        assert (store.stats().disk_hits, store.stats().misses) == (50, 0)


def test_get_many_keeps_the_order_of_the_keys_and_leaves_out_what_is_missing(tmp_path):
    with PageStore(tmp_path, memory_bytes=4000) as store:
        for n in range(4):
            put(store, n)
        entries = store.get_many([make_key(n) for n in (3, 9, 0, 2, 0, 1)])
        assert list(entries) == [make_key(n) for n in (3, 0, 2, 1)]
        assert store.get_many([]) == {}


def test_a_missing_key_is_none_and_counted(tmp_path):
    with PageStore(tmp_path) as store:
        assert store.get(make_key(1)) is None
        assert store.stats().misses == 1


def test_putting_a_key_again_replaces_its_row_and_its_file(tmp_path):
    with PageStore(tmp_path, memory_bytes=0) as store:
        put(store, 1)
        before = only_file(tmp_path)
        store.put(make_key(1), "", make_tensors(2), {"n": 2})
        assert is_right(store.get(make_key(1)), 2)
        assert only_file(tmp_path) != before
        assert store.stats().n_entries == 1


@pytest.mark.parametrize("memory_bytes", [0, 2**30], ids=["no memory tier", "memory tier"])
def test_a_look_gives_the_entry_and_counts_nothing(tmp_path, memory_bytes):
    with PageStore(tmp_path, memory_bytes=memory_bytes) as store:
        put(store, 1)
        before = store.stats()
        assert is_right(store.peek(make_key(1)), 1)
        assert store.peek(make_key(2)) is None
        assert store.stats() == before


def test_a_look_at_a_damaged_entry_finds_nothing_and_drops_it(tmp_path):
    with PageStore(tmp_path, memory_bytes=0) as store:
        put(store, 1)
        only_file(tmp_path).write_bytes(b"junk")
        assert store.peek(make_key(1)) is None
        assert store.stats().corrupt == 1


def test_the_callers_array_may_change_after_put(tmp_path):
    with PageStore(tmp_path) as store:
        mine = np.ones(5, np.float32)
        store.put("key", "", {"k": mine}, {})
        mine[:] = 7
        assert store.get("key").tensors["k"].tolist() == [1] * 5


def test_entries_cannot_be_changed_by_their_readers(tmp_path):
    with PageStore(tmp_path) as store:
        put(store, 1)
        for _ in range(2):
            with pytest.raises(ValueError, match="read-only"):
                store.get(make_key(1)).tensors["k"][...] = 0
            with pytest.raises(TypeError):
                store.get(make_key(1)).tensors["k"] = None


def test_an_entry_of_an_unknown_page_is_not_kept(tmp_path):
    with PageStore(tmp_path) as store:
        assert put(store, 1, page_id=make_page(1).page_id) == 0
        assert store.get(make_key(1)) is None
        assert files_of(tmp_path) == []
        assert store.stats().skipped == 1


def test_kv_of_pages_held_elsewhere_is_kept_and_goes_with_its_page():
    with PageStore(None, holds_pages=False) as store:
        for n in (1, 2):
            assert put(store, n, page_id=make_page(n).page_id) > 0
        assert store.remove_pages([make_page(1).page_id]) == 0
        assert store.get(make_key(1)) is None
        assert is_right(store.get(make_key(2)), 2)


def test_removing_a_page_removes_its_entries_files_and_vectors_and_no_others(tmp_path):
    with PageStore(tmp_path) as store:
        pages = [make_page(1), make_page(2)]
        for n, page in enumerate(pages):
            store.add_page(page, make_picture(n))
            store.put_embedding(page.page_id, "f", np.ones(4, np.float32), np.ones((2, 2)))
            put(store, n, page_id=page.page_id)
        assert store.remove_pages([pages[0].page_id, "unknown"]) == 1
        assert store.get(make_key(0)) is None
        assert store.embedding(pages[0].page_id, "f") is None
        assert store.image(pages[0].page_id) is None
        assert is_right(store.get(make_key(1)), 1)
        assert store.pages(["public"]) == [pages[1]]
        assert len(files_of(tmp_path)) == 2


def test_what_is_read_while_its_page_is_removed_is_not_remembered(tmp_path, monkeypatch):
    with PageStore(tmp_path) as store:
        store.add_page(make_page(1), make_picture(1))
        put(store, 1, page_id=make_page(1).page_id)
        remove = health.remove

        def read_and_remove(*arguments):
            assert is_right(store.get(make_key(1)), 1)
            return remove(*arguments)

        monkeypatch.setattr(health, "remove", read_and_remove)
        assert store.remove_pages([make_page(1).page_id]) == 1
        assert store.get(make_key(1)) is None


FAILURES = (OSError(5, "Input/output error"), sqlite3.OperationalError("database is locked"))


@pytest.fixture(params=FAILURES, ids=["the disk fails", "the database is busy"])
def broken_store(request, tmp_path, monkeypatch):
    """A store with a page and its entry, in which no file can be deleted, and how to mend it."""

    def fail(name):
        raise request.param

    with PageStore(tmp_path) as store:
        store.add_page(make_page(1), make_picture(1))
        put(store, 1, page_id=make_page(1).page_id)
        with monkeypatch.context() as patch:
            patch.setattr(store._files, "delete", fail)
            yield store, patch.undo


def test_a_removed_page_is_forgotten_though_its_files_cannot_be_deleted(broken_store, monkeypatch):
    store, _ = broken_store
    delete_rows = health._delete_rows

    def read_and_delete_rows(*arguments):
        assert is_right(store.get(make_key(1)), 1)
        return delete_rows(*arguments)

    monkeypatch.setattr(health, "_delete_rows", read_and_delete_rows)
    assert store.remove_pages([make_page(1).page_id]) == 1
    assert store.page(make_page(1).page_id) is None
    assert store.get(make_key(1)) is None


def test_what_is_stored_is_reported_so_though_the_old_file_cannot_be_deleted_yet(
    broken_store, tmp_path
):
    store, mend = broken_store
    for path in files_of(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    store.add_page(make_page(1), make_picture(1))
    assert put(store, 1, page_id=make_page(1).page_id) > 0
    assert store.stats().skipped == 0
    assert "Cannot delete files" in store.stats().note
    assert store.image(make_page(1).page_id) is not None
    assert store.verify(repair=False).ok and len(files_of(tmp_path)) == 4
    mend()
    assert put(store, 2) > 0  # the next one deletes them too
    assert store.stats().note == "" and len(files_of(tmp_path)) == 3


def test_what_could_not_be_deleted_goes_when_the_store_is_closed(broken_store, tmp_path):
    store, mend = broken_store
    assert put(store, 1, page_id=make_page(1).page_id) > 0
    assert len(files_of(tmp_path)) == 3
    mend()
    store.close()
    assert len(files_of(tmp_path)) == 2


def test_threads_share_one_store(tmp_path):
    wrong = []

    def work(store, first):
        for n in range(first, first + 10):
            put(store, n)
            if not is_right(store.get(make_key(n)), n):
                wrong.append(n)

    with PageStore(tmp_path, memory_bytes=0) as store:
        threads = [threading.Thread(target=work, args=(store, 10 * i)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert store.stats().n_entries == 60
        assert store.verify().ok


def test_connections_of_finished_threads_are_closed_at_once(tmp_path):
    """Not when garbage is looked for: a service may not do that, and a fork does not wait."""
    with PageStore(tmp_path) as store:
        store.contains([make_key(1)])
        n_open = []
        gc.disable()
        try:
            for _ in range(20):
                thread = threading.Thread(target=store.contains, args=([make_key(1)],))
                thread.start()
                thread.join()
                n_open.append(len(descriptors(tmp_path)))
            assert n_open[-1] == n_open[0]  # SQLite keeps one descriptor, and takes it again
        finally:
            gc.enable()


def test_a_store_that_is_dropped_unclosed_is_no_session_that_lives_on(tmp_path):
    dropped = PageStore(tmp_path)
    name = dropped._session.name
    with PageStore(tmp_path) as store:
        assert store._session.alive(name)
        del dropped
        gc.collect()
        assert not store._session.alive(name)


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_a_closed_store_says_so(tmp_path, on_disk):
    store = PageStore(tmp_path if on_disk else None)
    store.close()
    with pytest.raises(Closed, match="closed"):
        store.pages(["public"])
    with pytest.raises(RuntimeError):
        store.get(make_key(1))


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_a_store_may_be_closed_again(tmp_path, on_disk):
    with PageStore(tmp_path if on_disk else None) as store:
        put(store, 1)
        store.close()
        store.close()


def test_clear_leaves_nothing(tmp_path):
    with PageStore(tmp_path) as store:
        store.add_page(make_page(1), make_picture(1))
        put(store, 1)
        store.clear()
        assert store.get(make_key(1)) is None
        assert store.pages(["public"]) == []
        assert files_of(tmp_path) == []


def test_dropping_a_bad_entry_spares_the_one_that_replaced_it(tmp_path):
    with PageStore(tmp_path, memory_bytes=0) as store:
        put(store, 1)
        (bad,) = store._entries.rows([make_key(1)])
        put(store, 1)
        store._entries.drop([bad])
        assert is_right(store.get(make_key(1)), 1)


def test_a_store_that_is_closed_while_it_is_used_ends_what_comes_after_and_crashes_nothing(
    tmp_path,
):
    """In a process of its own: SQLite's answer to a closed connection is a segmentation fault."""
    code = """
import sys, threading
from pathlib import Path
from cache_db import PageStore
from mrr.errors import Closed
for i in range(6):
    store = PageStore(Path(sys.argv[1]))
    def use():
        try:
            while True:
                store.pages(["public"])
                store.stats()
        except Closed:
            pass
    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.2)
    store.close()
    for thread in threads:
        thread.join()
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path], check=False, timeout=120)
    assert run.returncode == 0
