import numpy as np

from cache_db.memory import MemoryTier
from cache_db.records import Entry


def entry(nbytes: int) -> Entry:
    return Entry({"k": np.zeros(nbytes, np.uint8)}, {}, nbytes, "disk")


def test_the_least_recently_used_goes_first_and_bytes_are_counted():
    tier = MemoryTier(100)
    for key in "abc":
        tier.add(key, "page", entry(30))
    tier.get_many(["a"])
    tier.add("d", "page", entry(30))
    assert tier.contains("abcd") == {"a", "c", "d"}
    assert (len(tier), tier.nbytes) == (3, 90)


def test_asking_whether_it_contains_a_key_is_not_use():
    tier = MemoryTier(60)
    tier.add("a", "page", entry(30))
    tier.add("b", "page", entry(30))
    tier.contains(["a"])
    tier.add("c", "page", entry(30))
    assert tier.contains("abc") == {"b", "c"}


def test_a_look_at_an_entry_is_not_use():
    tier = MemoryTier(60)
    tier.add("a", "page", entry(30))
    tier.add("b", "page", entry(30))
    assert tier.peek("a") is tier.peek("a") and tier.peek("z") is None
    tier.add("c", "page", entry(30))
    assert tier.contains("abc") == {"b", "c"}


def test_an_entry_larger_than_the_tier_is_not_kept_and_its_old_version_is_gone():
    tier = MemoryTier(100)
    tier.add("a", "page", entry(50))
    tier.add("b", "page", entry(50))
    tier.add("a", "page", entry(101))
    assert tier.contains("ab") == {"b"} and tier.nbytes == 50
    tier.add("c", "page", entry(100))
    assert tier.contains("abc") == {"c"}


def test_hits_share_the_arrays_and_say_that_they_come_from_memory():
    tier = MemoryTier(100)
    original = entry(10)
    tier.add("a", "page", original)
    held = tier.get_many(["a", "b"])
    assert held.keys() == {"a"}
    assert held["a"].source == "memory"
    assert held["a"].tensors["k"] is original.tensors["k"]


def test_pages_and_keys_can_be_forgotten():
    tier = MemoryTier(100)
    for key, page_id in ("ax", "bx", "cy", "dy"):
        tier.add(key, page_id, entry(10))
    tier.discard_pages({"x"})
    tier.discard(["c", "unknown"])
    assert tier.contains("abcd") == {"d"}
    assert tier.nbytes == 10
    tier.clear()
    assert tier.nbytes == 0
