"""The budget under fire: two processes write, two read, a fifth looks at the disk all the time."""

import os
import random

import pytest
from store_samples import is_right, make_key, put, start

from cache_db import PageStore

pytestmark = pytest.mark.fault
N_TOKENS = 100  # 16 KB an entry
N_KEYS = 60
N_OPERATIONS = 500
PINNED = 1000


def _write(root, budget_bytes, seed):
    numbers = random.Random(seed)
    with PageStore(root, budget_bytes=budget_bytes, memory_bytes=0) as store:
        for _ in range(N_OPERATIONS):
            put(store, numbers.randrange(N_KEYS), N_TOKENS)


def _read(root, budget_bytes, seed):
    numbers = random.Random(seed)
    with PageStore(root, budget_bytes=budget_bytes, memory_bytes=0) as store:
        for _ in range(N_OPERATIONS):
            n = numbers.randrange(N_KEYS)
            entry = store.get(make_key(n))
            assert entry is None or is_right(entry, n, N_TOKENS)
        assert store.stats().corrupt == 0
        assert store.stats().disk_hits > 10


def disk_bytes(folder) -> int:
    """Bytes of the files listed at one moment; a rename in between counts once."""
    sizes = {}
    for entry in os.scandir(folder):
        try:
            sizes[entry.name.removesuffix(".tmp")] = entry.stat().st_size
        except FileNotFoundError:
            continue
    return sum(sizes.values())


def test_the_disk_stays_within_the_budget_and_pinned_entries_stay_on_it(tmp_path):
    with PageStore(tmp_path, memory_bytes=0) as store:
        nbytes = put(store, PINNED, N_TOKENS)
        budget_bytes = 16 * nbytes
        with store.pinned([make_key(PINNED)]):
            children = [start(_write, tmp_path, budget_bytes, seed) for seed in (1, 2)]
            children += [start(_read, tmp_path, budget_bytes, seed) for seed in (3, 4)]
            samples = []
            while any(child.is_alive() for child in children):
                samples.append(disk_bytes(tmp_path / "files"))
                assert store.contains([make_key(PINNED)])
            assert all(child.exitcode == 0 for child in children)
        assert len(samples) > 50
        assert 10 * nbytes < max(samples) <= budget_bytes + nbytes
        stats = store.stats()
        assert stats.kv_bytes == disk_bytes(tmp_path / "files") <= budget_bytes
        assert stats.n_entries == len(os.listdir(tmp_path / "files"))
        assert is_right(store.get(make_key(PINNED)), PINNED, N_TOKENS)
        assert store.verify(repair=False).ok
