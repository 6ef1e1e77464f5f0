"""Forking while the store is busy: no connection crosses, no thread is left behind."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

from store_samples import (
    descriptors,
    finish,
    is_right,
    make_key,
    make_page,
    make_picture,
    put,
    start,
)

from cache_db import PageStore
from cache_db.fork import ForkGate


def connections(root: Path) -> list[str]:
    """Files of the database of a store that this process has open."""
    return [name for name in descriptors(root) if Path(name).name.startswith("store.db")]


def test_a_child_inherits_no_connection_and_the_parent_goes_on_with_a_new_one(tmp_path):
    with PageStore(tmp_path) as store:
        put(store, 1)
        assert connections(tmp_path)

        def look():
            assert not connections(tmp_path)
            with store.reopened() as mine:
                assert is_right(mine.get(make_key(1)), 1)
                put(mine, 2)

        finish(start(look))
        assert is_right(store.get(make_key(1)), 1)
        assert is_right(store.get(make_key(2)), 2)


def test_a_store_opened_anew_is_of_the_same_kind(tmp_path):
    with PageStore(tmp_path, budget_bytes=5000, holds_pages=False) as store:
        with store.reopened() as mine:
            assert put(mine, 1, page_id=make_page(1).page_id) > 0  # a page that another store knows
            assert mine.stats().budget_bytes == 5000
        assert is_right(store.get(make_key(1)), 1)


def test_children_forked_amid_reads_and_writes_leave_a_whole_store(tmp_path):
    n_forks, stop = 12, threading.Event()
    with PageStore(tmp_path, memory_bytes=0) as store:
        failed: list[BaseException] = []

        def busy(n):
            try:
                store.add_page(make_page(n), make_picture(n))
                while not stop.is_set():
                    assert put(store, n, page_id=make_page(n).page_id) > 0
                    assert is_right(store.get(make_key(n)), n)
            except BaseException as error:
                failed.append(error)

        def child(n):
            with store.reopened() as mine:
                assert put(mine, 100 + n) > 0
                assert is_right(mine.get(make_key(100 + n)), 100 + n)

        threads = [threading.Thread(target=busy, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            children = [start(child, n) for n in range(n_forks)]
            finish(*children)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert not failed
        assert store.contains([make_key(100 + n) for n in range(n_forks)]) == {
            make_key(100 + n) for n in range(n_forks)
        }
        assert store.stats().corrupt == 0
        assert store.verify(repair=False).ok


def test_who_is_inside_may_go_further_in_while_a_fork_waits():
    gate, inside, forked = ForkGate(), threading.Event(), threading.Event()

    def fork():
        inside.wait(60)
        gate.before_fork()
        forked.set()
        gate.after_in_parent()

    thread = threading.Thread(target=fork)
    thread.start()
    with gate:
        inside.set()
        assert not forked.wait(0.1), "a fork went through an open connection"
        with gate:
            pass
    thread.join(60)
    assert forked.is_set()
    with gate:
        pass


def test_a_thread_that_has_died_leaves_no_connection_to_a_child(tmp_path):
    """SQLite in the child would count on locks that the child does not hold, and lose pages."""
    with PageStore(tmp_path) as store:
        put(store, 1)
        gc.disable()
        try:
            thread = threading.Thread(target=store.stats)
            thread.start()
            thread.join()

            def look():
                assert not connections(tmp_path)

            finish(start(look))
        finally:
            gc.enable()
