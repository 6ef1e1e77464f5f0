"""kill -9 at any moment: what is readable is right, what is left over is swept.

The control is the order that suggests itself, row first and then the file in place. It must fail,
or the kills would prove nothing.
"""

import multiprocessing
import os
import random
import time
from itertools import count

import pytest
from store_samples import files_of, is_right, killed, make_key, make_page, make_picture, put, start

from cache_db import PageStore
from cache_db.entries import Entries
from cache_db.evict import now_ns

pytestmark = pytest.mark.fault
N_TOKENS = 2000  # 350 KB an entry
N_KEYS = 12
BUDGET_BYTES = 3_000_000  # eight entries: evictions are part of what is interrupted


def _write_until_killed(root, ready):
    store = PageStore(root, budget_bytes=BUDGET_BYTES, memory_bytes=0)
    for step in range(1_000_000):
        n = step % N_KEYS
        store.add_page(make_page(n), make_picture(n))
        put(store, n, N_TOKENS, make_page(n).page_id)
        ready.send(step)
        if n == N_KEYS - 1:
            store.remove_pages([make_page(3).page_id])


def _write_row_first(self, row, data):
    name = os.urandom(16).hex() + ".kv"
    with self.database.write() as db:
        values = (row.key, row.page_id, name, row.nbytes, row.digest, now_ns())
        db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", values)
    with open(self.files._folder / name, "wb") as file:
        for start in range(0, data.nbytes, 4096):
            file.write(data[start : start + 4096])
            file.flush()


def kill_a_writer(root, numbers: random.Random) -> None:
    """Let a writer finish a few puts, and kill it in the middle of a later one."""
    here, there = multiprocessing.Pipe()
    with killed(start(_write_until_killed, root, there)):
        for _ in range(numbers.randint(1, 10)):
            assert here.poll(300)  # a machine may stall
            here.recv()
        time.sleep(numbers.uniform(0.0, 0.01))


def test_forty_kills_leave_no_wrong_entry_and_nothing_to_clean_up(tmp_path):
    numbers = random.Random(0)
    n_left_over = n_read = 0
    for n_kills in count(1):
        kill_a_writer(tmp_path, numbers)
        names = {path.name.removesuffix(".tmp") for path in files_of(tmp_path)}
        with PageStore(tmp_path, budget_bytes=BUDGET_BYTES, memory_bytes=0) as store:
            n_left_over += len(names) - len(files_of(tmp_path))
            report = store.verify(repair=False)
            assert report.ok, report
            for n in range(N_KEYS):
                entry = store.get(make_key(n))
                n_read += entry is not None
                assert entry is None or is_right(entry, n, N_TOKENS)
                image = store.image(make_page(n).page_id)
                assert image is None or image.tobytes() == make_picture(n).tobytes()
            stats = store.stats()
            assert (stats.corrupt, len(files_of(tmp_path))) == (0, stats.n_entries + stats.n_pages)
        if n_kills >= 40 and n_left_over:  # they were hit in the middle
            break
        assert n_kills < 400, "four hundred kills have interrupted nothing"
    assert n_read > 40  # the writers got somewhere


def test_the_control_that_writes_the_row_first_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(Entries, "_write", _write_row_first)
    numbers = random.Random(0)
    for _ in range(100):
        kill_a_writer(tmp_path, numbers)
        with PageStore(tmp_path, memory_bytes=0) as store:
            if store.verify().bad:
                return
    pytest.fail("a hundred kills of a wrong writer went unnoticed")
