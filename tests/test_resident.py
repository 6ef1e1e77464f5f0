"""K/V that stays on an accelerator; the tests keep it on the CPU, where it is the same code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrr import MiniReranker
from mrr.model.kv import KVPage, quantize_page
from mrr.resident import Resident, resident_for
from mrr.types import SYSTEMS
from tests.engines import logits, pictures


def kv(n_tokens: int = 4) -> KVPage:
    values = torch.zeros(1, 1, n_tokens, 8)
    return quantize_page(
        values, values, "fp32", next_position=0, grid=(2, 2), kept=np.arange(n_tokens)
    )


def test_the_least_recently_used_page_goes_first() -> None:
    each = kv().nbytes
    resident = Resident(2 * each)
    resident.put("a", "page a", kv())
    resident.put("b", "page b", kv())
    assert resident.get("a") is not None
    resident.put("c", "page c", kv())
    assert [resident.get(key) is not None for key in "abc"] == [True, False, True]
    resident.put("large", "page d", kv(n_tokens=99))
    assert resident.get("large") is None and resident.get("a") is not None


def test_a_removed_page_is_let_go_of_under_every_configuration() -> None:
    resident = Resident(10**6)
    for key, page_id in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        resident.put(key, page_id, kv())
    resident.remove_pages(["a"])
    assert [resident.get(key) is not None for key in ("a1", "a2", "b1")] == [False, False, True]


def test_each_system_keeps_its_pages_apart_and_a_removed_page_leaves_both(
    reranker: MiniReranker,
) -> None:
    reranker._resident, reranker._dense_resident = Resident(10**9), Resident(10**9)
    own = reranker.with_config(replace(reranker.config, keep_ratio=0.75))  # its caches have them
    page, other = (added.page for added in own.add(pictures()[:2]).pages)
    for system in ("mini", "dense-reuse"):
        own.rank("blue page", system=system)
    homes = [(own.cache, reranker._resident), (own.dense_cache, reranker._dense_resident)]
    for cache, resident in homes:
        assert cache.resident is resident and len(resident._held) == 2
    own.remove_pages([page])
    for cache, resident in homes:
        assert resident.get(cache.key(page)) is None
        assert resident.get(cache.key(other)) is not None


def test_a_second_query_takes_its_pages_from_the_device_and_scores_the_same(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.add(pictures())
    expected = logits(reranker.rank("blue page"))
    resident = reranker.cache.resident = reranker._resident = Resident(10**9)
    assert logits(reranker.rank("blue page")) == pytest.approx(expected, abs=1e-6)
    asked: list[str] = []
    from_store = reranker.store.get_many
    monkeypatch.setattr(reranker.store, "get_many", lambda k: asked.extend(k) or from_store(k))
    assert logits(reranker.rank("blue page")) == pytest.approx(expected, abs=1e-6)
    assert asked == [], "pages that are on the device were read again"
    (held, *_) = (resident.get(reranker.cache.key(p)) for p in reranker.store.pages(["public"]))
    assert held.k.scale is None and held.k.values.dtype == reranker.loaded.dtype
    with monkeypatch.context() as patched:
        patched.setattr(reranker.store, "pinned", None)  # to pin is to write
        reranker.rank("blue page")
    used: list[str] = []
    monkeypatch.setattr(reranker.store, "touch", used.extend)
    reranker.rank("blue page")
    assert set(used) == set(map(reranker.cache.key, reranker.store.pages(["public"])))
    gone = reranker.store.pages(["public"])[0]
    reranker.remove_pages([gone.page_id])
    assert resident.get(reranker.cache.key(gone)) is None


def test_a_cpu_needs_none_of_it() -> None:
    assert resident_for(torch.device("cpu")) is None


def test_pages_on_the_device_are_kept_in_the_store_while_others_are_computed(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.add(pictures())
    resident = reranker.cache.resident = reranker._resident = Resident(10**9)
    reranker.rank("blue page")
    keys = [reranker.cache.key(page) for page in reranker.store.pages(["public"])]
    resident._drop(keys[0])
    monkeypatch.setattr(reranker.store, "get_many", lambda keys: {})
    pinned: list[set[str]] = []
    pin = reranker.store.pinned
    monkeypatch.setattr(reranker.store, "pinned", lambda k: pinned.append(set(k)) or pin(k))
    reranker.rank("blue page")
    assert pinned == [set(keys)]


def test_a_query_of_stored_pages_writes_nothing(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for notes of what was used, every few seconds, which the store waits for nobody to take:
    see `test_a_reader_does_not_wait_for_a_writer_to_note_what_was_used`."""
    reranker.add(pictures())
    known = logits(reranker.rank("blue page"))

    def write(**_: bool) -> None:
        raise AssertionError("a transaction was begun")

    monkeypatch.setattr("cache_db.evict._TOUCH_INTERVAL_S", float("inf"))

    monkeypatch.setattr(reranker.store._database, "write", write)
    assert logits(reranker.rank("blue page")) == known
    reranker.store._memory.clear()  # what is read from the disk is not written to it either
    assert logits(reranker.rank("blue page")) == known


def test_many_candidates_are_read_one_part_after_another_and_the_text_once(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.add(pictures())
    known = {system: logits(reranker.rank("blue page", system=system)) for system in SYSTEMS[:2]}
    read: list[str] = []
    for scorer in (reranker.cache.scorer, reranker.dense_cache.scorer):
        own = scorer.read
        monkeypatch.setattr(scorer, "read", lambda t, s, own=own: read.extend(t) or own(t, s))
    monkeypatch.setattr("mrr.systems.PAGES_AT_ONCE", 1)
    monkeypatch.setattr("mrr.systems.DENSE_PAGES_AT_ONCE", 1)
    for system, before in known.items():
        assert logits(reranker.rank("blue page", system=system)) == pytest.approx(before, abs=1e-4)
    assert read == ["blue page"] * 2
