"""Whose claims count: those of the living, other than oneself, for as long as a page may take."""

import sqlite3
import threading
import time
from contextlib import closing

from store_samples import kill, make_page, start

from cache_db import PageStore, claims

PAGE = make_page(1).page_id


def test_others_see_what_one_computes_as_long_as_it_does(tmp_path):
    with PageStore(tmp_path) as one, PageStore(tmp_path) as other:
        with one.claimed(PAGE):
            assert (one.claimed_by_others(), other.claimed_by_others()) == (set(), {PAGE})
            with other.pinned([make_page(2).page_id]):
                assert one.claimed_by_others() == set(), "a pin is no claim"
        assert other.claimed_by_others() == set()


def _claim_and_wait(root, claimed):
    with PageStore(root) as store, store.claimed(PAGE):
        claimed.set()
        time.sleep(60)


def test_the_claim_of_a_killed_process_counts_no_more_and_goes_at_the_next_start(tmp_path):
    import multiprocessing

    claimed = multiprocessing.get_context("fork").Event()
    with PageStore(tmp_path) as store:
        child = start(_claim_and_wait, tmp_path, claimed)
        assert claimed.wait(60)
        assert store.claimed_by_others() == {PAGE}
        kill(child)
        assert store.claimed_by_others() == set()
    with PageStore(tmp_path) as store, store._database.read() as db:
        assert db["pins"].count == 0


def test_a_claim_that_is_not_dropped_hides_nothing_for_good(tmp_path, monkeypatch):
    with PageStore(tmp_path) as one, PageStore(tmp_path) as other, one.claimed(PAGE):
        assert other.claimed_by_others() == {PAGE}
        now_ns = claims.now_ns
        monkeypatch.setattr(claims, "now_ns", lambda: now_ns() + (claims.LIMIT_S - 60) * 10**9)
        assert other.claimed_by_others() == {PAGE}
        monkeypatch.setattr(claims, "now_ns", lambda: now_ns() + (claims.LIMIT_S + 1) * 10**9)
        assert other.claimed_by_others() == set()
        monkeypatch.setattr(claims, "now_ns", lambda: now_ns() - 3600 * 10**9)
        assert other.claimed_by_others() == set(), "nor where the clock was set back"


def test_a_claim_outlasts_a_rebuild_of_the_database(tmp_path):
    with PageStore(tmp_path) as one, PageStore(tmp_path) as other:
        with one.claimed(PAGE):
            other._database.rebuild("a test")
            assert other.claimed_by_others() == {PAGE}
        assert other.claimed_by_others() == set()


def test_where_no_claim_can_be_written_the_work_is_done_without(tmp_path, monkeypatch):
    with PageStore(tmp_path) as one, PageStore(tmp_path) as other:

        def full(*given):
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(one._space, "pin", full)
            with one.claimed(PAGE):
                assert other.claimed_by_others() == set()
        assert "full" in one.stats().note
        with one.claimed(PAGE):
            assert other.claimed_by_others() == {PAGE}
        assert one.stats().note == ""


def test_who_asks_for_claims_waits_for_no_writer(tmp_path):
    with PageStore(tmp_path) as one, PageStore(tmp_path) as other, one.claimed(PAGE):
        answers = []
        with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            asking = threading.Thread(target=lambda: answers.append(other.claimed_by_others()))
            asking.start()
            asking.join(10)
            assert answers == [{PAGE}]


def test_a_store_in_memory_knows_of_no_others():
    with PageStore(None) as store, store.claimed(PAGE):
        assert store.claimed_by_others() == set()
