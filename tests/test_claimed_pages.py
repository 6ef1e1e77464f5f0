"""A query beside a process that adds pages: what that one computes, the query does not."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache_db.store import PageStore
from mrr import MiniReranker
from mrr.config import RerankConfig
from mrr.errors import NotFinite
from mrr.model.scorer import Scorer
from mrr.types import RankedList
from tests.engines import reopen
from tests.tiny import picture

LEFT_OUT = "1 page is still being added by another process and was left out."
OLD, NEW = picture(0), picture(1)
BROKEN_OFF = (NotFinite("not finite"), KeyboardInterrupt())


def in_the_middle(
    monkeypatch: pytest.MonkeyPatch, engine: MiniReranker, what: str, act: Callable[[], object]
) -> list[object]:
    """Call act when engine is about to compute a vector, or K/V; what act gave, once it has."""
    owner: Any = engine.embedder if what == "vector" else engine.cache.scorer
    name = "embed_page" if what == "vector" else "encode"
    compute, given = getattr(owner, name), list[object]()

    def act_first(*arguments: Any) -> Any:
        if not given:
            given.append(act())
        return compute(*arguments)

    monkeypatch.setattr(owner, name, act_first)
    return given


def is_without_new(ranked: RankedList) -> bool:
    """Whether only the old page is ranked, nothing was computed for it, and it is said."""
    computed = ranked.usage.missed_pages or {"embed", "encode"} & ranked.usage.ms.keys()
    return len(ranked) == 1 and not computed and LEFT_OUT in ranked.notes


def is_whole(ranked: RankedList) -> bool:
    return len(ranked) == 2 and not any("left out" in note for note in ranked.notes)


def _add_and_hang(pair: tuple[Path, Path], tmp_path: Path, is_held: Any) -> None:
    """Add a page in a process of its own, and come no further than to its K/V."""
    writer = reopen(pair, tmp_path)

    def hang(*given: Any) -> None:
        is_held.set()
        time.sleep(300)

    writer.cache.scorer.encode = hang  # type: ignore[method-assign]
    writer.add(NEW)


def test_a_query_computes_nothing_that_a_living_process_does_and_all_that_a_killed_one_left(
    reranker: MiniReranker, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.add(OLD)
    context = multiprocessing.get_context("spawn")
    is_held = context.Event()
    writer = context.Process(target=_add_and_hang, args=(pair, tmp_path, is_held), daemon=True)
    writer.start()
    try:
        assert is_held.wait(120)
        assert len(reranker.store.pages(["public"])) == 2, "it is one of the store's already"
        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "encode", lambda *given: pytest.fail("a query encodes"))
            for _ in range(3):
                assert is_without_new(reranker.rank("blue page"))
    finally:
        writer.kill()
        writer.join(60)
    ranked = reranker.rank("blue page")
    assert is_whole(ranked) and ranked.usage.missed_pages == 1
    assert reranker.rank("blue page").usage.missed_pages == 0


@pytest.mark.parametrize("what", ["vector", "K/V"])
def test_a_page_is_left_out_until_both_its_vector_and_its_kv_are_there(
    reranker: MiniReranker, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    reranker.add(OLD)
    writer = reopen(pair, tmp_path)
    seen = in_the_middle(
        monkeypatch,
        writer,
        what,
        lambda: (reranker.rank("blue page"), reranker.retrieve("blue page")),
    )
    writer.add([NEW])
    ((ranked, retrieved),) = seen  # type: ignore[misc]
    assert is_without_new(ranked) and len(retrieved) == 1
    after = reranker.rank("blue page")
    assert is_whole(after) and after.usage.missed_pages == 0
    writer.close()


def test_without_an_embedder_a_page_is_left_out_until_its_kv_is_there(
    pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = (reopen(pair, tmp_path, embedder=None) for _ in range(2))
    reader.add(OLD)
    seen = in_the_middle(monkeypatch, writer, "K/V", lambda: reader.rank("blue page"))
    writer.add(NEW)
    assert [is_without_new(ranked) for ranked in seen] == [True]  # type: ignore[arg-type]
    assert is_whole(reader.rank("blue page"))
    for engine in (reader, writer):
        engine.close()


def test_with_the_query_first_a_page_is_left_out_until_its_vector_is_there(
    pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RerankConfig(order="query-first")
    reader, writer = (reopen(pair, tmp_path, config=config) for _ in range(2))
    reader.add(OLD)
    seen = in_the_middle(
        monkeypatch, writer, "vector", lambda: [reader.rank("blue page") for _ in range(2)]
    )
    writer.add(NEW)
    ((first, second),) = seen  # type: ignore[misc]
    assert len(first) == len(second) == 1 and LEFT_OUT in first.notes
    assert is_whole(reader.rank("blue page"))
    for engine in (reader, writer):
        engine.close()


def test_a_page_that_is_asked_for_by_name_is_never_left_out(
    reranker: MiniReranker, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = reranker.add(OLD).pages
    writer = reopen(pair, tmp_path)

    def ask() -> tuple[RankedList, RankedList, list[Any]]:
        (new,) = {page.page_id for page in reranker.store.pages(["public"])} - {old.page.page_id}
        without = reranker.rank("blue page")
        return without, reranker.rank("blue page", pages=[new]), reranker.rerank("blue page", [new])

    seen = in_the_middle(monkeypatch, writer, "vector", ask)
    (added,) = writer.add(NEW).pages
    ((without, (named,), (reranked,)),) = seen  # type: ignore[misc]
    assert is_without_new(without)
    expected = {hit.page.page_id: hit.logit for hit in reranker.rank("blue page")}
    logit = pytest.approx(expected[added.page.page_id], abs=1e-4)
    assert (named.logit, reranked.logit) == (logit, logit)
    writer.close()


def test_only_what_lacks_something_here_is_left_out_and_only_what_is_computed_is_claimed(
    reranker: MiniReranker, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.add([OLD, NEW])
    config = replace(reranker.config, keep_ratio=0.75)
    writer, claimed = reopen(pair, tmp_path, config=config), list[str]()
    other, pin = reranker.with_config(config), writer.store._space.pin

    def watched(keys: Any, mark: str = "") -> str:
        claimed.append(mark)
        return pin(keys, mark)

    monkeypatch.setattr(writer.store._space, "pin", watched)
    other.add(OLD)
    seen = in_the_middle(
        monkeypatch, writer, "K/V", lambda: (reranker.rank("blue page"), other.rank("blue page"))
    )
    for _ in range(2):  # the second time both are there
        assert len(writer.add([OLD, NEW]).pages) == 2
    ((here, there),) = seen  # type: ignore[misc]
    assert is_whole(here) and is_without_new(there)
    assert len(claimed) == 1 and claimed[0].startswith("computing ")
    writer.close()


@pytest.mark.parametrize("error", BROKEN_OFF, ids=lambda error: type(error).__name__)
def test_a_page_whose_adding_is_broken_off_is_left_to_whoever_needs_it(
    reranker: MiniReranker, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error
) -> None:
    reranker.add(OLD)
    writer, seen = reopen(pair, tmp_path), list[RankedList]()

    def broken(*given: Any) -> None:
        seen.append(reranker.rank("blue page"))
        raise error

    monkeypatch.setattr(writer.cache.scorer, "encode", broken)
    try:
        assert writer.add(NEW).failed
    except KeyboardInterrupt:
        pass
    assert [is_without_new(ranked) for ranked in seen] == [True]
    after = reranker.rank("blue page")
    n_stored = len(reranker.store.pages(["public"]))
    assert n_stored == (1 if isinstance(error, NotFinite) else 2)
    assert len(after) == n_stored and not any("left out" in note for note in after.notes)
    writer.close()


def test_a_page_that_a_killed_process_left_is_left_out_while_another_adds_it_again(
    reranker: MiniReranker, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.add(OLD)
    writer = reopen(pair, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(writer.cache, "_computed", lambda *given: time.sleep(-1))
        with pytest.raises(ValueError, match="non-negative"):
            writer.add(NEW)
    assert len(reranker.store.pages(["public"])) == 2
    seen = in_the_middle(monkeypatch, writer, "vector", lambda: reranker.rank("blue page"))
    writer.add(NEW)
    assert [is_without_new(ranked) for ranked in seen] == [True]  # type: ignore[arg-type]
    writer.close()


def test_a_page_that_is_removed_while_it_is_added_is_spoken_of_no_more(
    reranker: MiniReranker, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = reranker.add(OLD).pages
    writer = reopen(pair, tmp_path)

    def remove() -> tuple[RankedList, RankedList]:
        before = reranker.rank("blue page")
        new = {page.page_id for page in reranker.store.pages(["public"])} - {old.page.page_id}
        assert reranker.remove_pages(new) == 1
        return before, reranker.rank("blue page")

    seen = in_the_middle(monkeypatch, writer, "K/V", remove)
    (added,) = writer.add(NEW).pages
    assert "removed from the store" in (added.note or "")
    ((before, after),) = seen  # type: ignore[misc]
    assert is_without_new(before) and len(after) == 1 and LEFT_OUT not in after.notes
    writer.close()


def test_a_page_without_room_for_its_kv_is_computed_by_queries_once_it_is_added(
    pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        PageStore(tmp_path / "store", budget_bytes=9000, memory_bytes=0) as small,
        PageStore(tmp_path / "store", budget_bytes=9000, memory_bytes=0) as same,
    ):
        reader, writer = (reopen(pair, tmp_path, store=store) for store in (small, same))
        seen = in_the_middle(monkeypatch, writer, "K/V", lambda: reader.rank("blue page"))
        (added,) = writer.add(picture(0, (256, 256))).pages
        assert "not stored" in (added.note or "")
        (during,) = seen
        assert isinstance(during, RankedList) and not during.hits and LEFT_OUT in during.notes
        after = reader.rank("blue page")
        assert len(after) == 1 and after.usage.missed_pages == 1
        for engine in (reader, writer):
            engine.close()
