"""A page is named by its id, its hit, or what `add` or `retrieve` returned; one, or any number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cache_db.store import PageStore
from mrr import MiniReranker
from mrr.errors import Closed, InputRejected
from mrr.types import AddedPage
from tests.tiny import DEVICE, picture

WAYS: dict[str, Callable[[AddedPage, MiniReranker], object]] = {
    "id": lambda added, engine: added.page.page_id,
    "page": lambda added, engine: added.page,
    "added": lambda added, engine: added,
    "hit": lambda added, engine: engine.rank("x", pages=added)[0],
    "candidate": lambda added, engine: engine.retrieve("x", pages=added)[0],
    "ids": lambda added, engine: [added.page.page_id],
    "generator": lambda added, engine: (p for p in [added.page.page_id]),
    "ranking": lambda added, engine: engine.rank("x", pages=added),
    "first stage": lambda added, engine: engine.retrieve("x", pages=added),
}


@pytest.fixture
def added(reranker: MiniReranker) -> tuple[AddedPage, ...]:
    return reranker.add([picture(i) for i in range(3)]).pages


@pytest.mark.parametrize("way", WAYS)
def test_a_ranking_is_restricted_to_pages_however_they_are_named(
    reranker: MiniReranker, added: tuple[AddedPage, ...], way: str
) -> None:
    ranked = reranker.rank("blue page", pages=WAYS[way](added[1], reranker))
    assert [hit.page for hit in ranked] == [added[1].page] and not ranked.notes
    candidates = reranker.retrieve("blue page", pages=WAYS[way](added[1], reranker))
    assert [page for page, _ in candidates] == [added[1].page]


def test_what_the_first_stage_returned_is_ranked_as_documents(
    reranker: MiniReranker, added: tuple[AddedPage, ...]
) -> None:
    candidates = reranker.retrieve("blue page")
    assert len(reranker.rerank("blue page", candidates)) == len(added)
    assert len(reranker.lenses("blue page", candidates[0])) == 1


@pytest.mark.parametrize("way", WAYS)
def test_pages_are_removed_however_they_are_named(
    reranker: MiniReranker, added: tuple[AddedPage, ...], way: str
) -> None:
    reranker.rank("x", system="dense-reuse")
    assert reranker.remove_pages(WAYS[way](added[1], reranker)) == 1
    left = [page.page_id for page in reranker.store.pages(["public"])]
    assert left == [added[0].page.page_id, added[2].page.page_id]


def test_every_page_of_a_generator_is_ranked_and_removed(
    reranker: MiniReranker, added: tuple[AddedPage, ...]
) -> None:
    assert len(reranker.rank("x", pages=(p for p in reversed(added)))) == len(added)
    assert reranker.remove_pages(p.page.page_id for p in added) == len(added)


@pytest.mark.parametrize("way", ["id", "page", "added", "hit", "candidate"])
def test_a_page_is_explained_however_it_is_named(
    reranker: MiniReranker, added: tuple[AddedPage, ...], way: str
) -> None:
    why = reranker.explain("blue page", WAYS[way](added[1], reranker))
    assert why.page == added[1].page


def test_what_names_no_page_is_refused(
    reranker: MiniReranker, added: tuple[AddedPage, ...]
) -> None:
    for call in (
        lambda: reranker.rank("x", pages=[3]),
        lambda: reranker.remove_pages([None]),
        lambda: reranker.explain("x", 3.5),
    ):
        with pytest.raises(InputRejected, match="named by its id, a hit"):
            call()


def test_pages_that_are_not_there_are_counted_in_a_note(
    reranker: MiniReranker, added: tuple[AddedPage, ...]
) -> None:
    ranked = reranker.rank("x", pages=[added[0], "0" * 64, "1" * 64])
    assert len(ranked) == 1 and ranked.notes[-1].startswith("2 of the pages that were named")
    assert not reranker.rank("x", pages=added, top_k=1).notes, "the others are there"


def test_the_scope_of_pictures_in_hand_is_nobody_elses(reranker: MiniReranker) -> None:
    with pytest.raises(InputRejected, match="choose another name"):
        reranker.add(picture(0), scope="documents")
    for scope in (None, b"public", "half \ud800"):
        with pytest.raises(InputRejected, match=r"^The scope is .* it is a name"):
            reranker.add(picture(0), scope=scope)


def test_an_engine_closes_itself_at_the_end_of_its_block(reranker: MiniReranker) -> None:
    with reranker as same:
        assert same is reranker and len(same.rank("x")) == 0
    with pytest.raises(Closed):
        reranker.rank("x")


def test_what_was_evicted_while_pages_were_added_is_told(pair, tmp_path: Path) -> None:
    with PageStore(tmp_path / "store", budget_bytes=60_000, memory_bytes=0) as small:
        engine = MiniReranker.from_pretrained(
            pair[0], embedder=pair[1], store=small, device=DEVICE, self_check=False
        )
        reports = [engine.add(picture(i)) for i in range(12)]
        engine.close()
    assert not reports[0].notes
    assert (
        "The store was full" in reports[-1].notes[-1] and "of its entries" in reports[-1].notes[-1]
    )
