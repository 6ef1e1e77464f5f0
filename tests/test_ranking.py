"""Rankings: which pages are in them, in what order, and what is said of those that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_db.store import PageStore
from mrr import MiniReranker
from mrr.config import Limits
from mrr.errors import InputRejected, NotFinite
from mrr.systems import Scored
from mrr.types import SYSTEMS, Page
from tests.engines import N_PAGES, logits, pictures, reopen
from tests.tiny import picture


def test_a_ranking_is_complete_sorted_and_numbered(reranker: MiniReranker) -> None:
    reranker.add(pictures())
    ranked = reranker.rank("blue page")
    assert [hit.rank for hit in ranked] == list(range(1, N_PAGES + 1))
    values = [hit.logit for hit in ranked]
    assert values == sorted(values, reverse=True)
    for hit in ranked:
        assert hit.score == pytest.approx(1 / (1 + np.exp(-hit.logit)))
        assert -1.001 <= hit.retrieval_score <= 1.001
    assert ranked.usage.cached_pages == N_PAGES and ranked.usage.missed_pages == 0
    assert list(ranked.usage.ms) == ["retrieve", "query", "load", "band", "head"]


def test_however_many_pages_tie_they_keep_their_order(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 128  # a sort that is not stable shows beyond 16
    pages = [Page(f"{i:064x}", f"page {i}", "", 1, 8, 8, "public") for i in range(n)]
    levels = [float(i % 2) for i in range(n)]
    best_first = [f"page {i}" for i in (*range(1, n, 2), *range(0, n, 2))]
    monkeypatch.setattr(reranker.store, "pages", lambda scopes: pages)
    monkeypatch.setattr(reranker.cache, "vectors", lambda *_: None)
    monkeypatch.setattr(reranker.embedder, "similarity", lambda *_: np.array(levels))
    assert [page.label for page, _ in reranker.retrieve("blue page")] == best_first

    scored = Scored(levels, [1] * n, [1] * n)
    monkeypatch.setattr(reranker.embedder, "similarity", lambda *_: np.zeros(n))
    monkeypatch.setattr("mrr.systems.cached", lambda *_: scored)
    assert [hit.page.label for hit in reranker.rank("blue page")] == best_first


def test_a_lost_picture_takes_one_page_out_of_the_ranking_and_says_so(
    reranker: MiniReranker, monkeypatch
) -> None:
    reranker.add(pictures())
    victim = reranker.store.pages(["public"])[1]
    picture_of = reranker.store.image
    monkeypatch.setattr(
        reranker.store, "image", lambda i: None if i == victim.page_id else picture_of(i)
    )
    for system in ("original", "dense-reuse"):
        ranked = reranker.rank("blue page", system=system)
        assert victim.page_id not in logits(ranked) and len(ranked) == N_PAGES - 1
        assert any(victim.label in note for note in ranked.notes)


def test_the_usage_counts_what_was_done_before_a_page_turned_out_to_be_lost(
    reranker: MiniReranker, pair, tmp_path: Path, monkeypatch
) -> None:
    added = [done.page for done in reranker.add(pictures()).pages]
    reranker.close()
    with PageStore(tmp_path / "store") as store:
        engine = reopen(pair, tmp_path, store=store)
        for row in store._entries.rows([engine.cache.key(page) for page in added[1:]]):
            store._entries.drop([row])
        picture_of, victim = store.image, added[3].page_id
        monkeypatch.setattr(store, "image", lambda i: None if i == victim else picture_of(i))
        usage = engine.rank("blue page").usage
        engine.close()
    assert (usage.cached_pages, usage.missed_pages) == (1, 3)
    assert usage.bytes_read > 0 and usage.ms["encode"] > 0


def test_pages_are_ranked_in_bounded_chunks_with_the_same_result(
    reranker: MiniReranker, monkeypatch
) -> None:
    reranker.add(pictures())
    together = logits(reranker.rank("blue page"))
    monkeypatch.setattr("mrr.systems.PAGES_AT_ONCE", 2)
    apart = logits(reranker.rank("blue page"))
    assert apart == pytest.approx(together, abs=1e-5)


def test_a_page_that_gives_no_finite_numbers_is_left_out_and_the_others_are_ranked(
    reranker: MiniReranker, monkeypatch
) -> None:
    report = reranker.add(pictures())
    other = reranker.with_config(replace(reranker.config, keep_ratio=0.75))
    victim, encode = report.pages[0].page, other.cache.scorer.encode

    def broken(sight, kept, stages):
        if broken.first:
            broken.first = False
            raise NotFinite("not finite")
        return encode(sight, kept, stages)

    broken.first = True
    monkeypatch.setattr(other.cache.scorer, "encode", broken)
    ranked = other.rank("blue page", pages={page.page.page_id for page in report.pages})
    assert len(ranked) == N_PAGES - 1
    assert any("not finite" in note and "without it" in note for note in ranked.notes)
    assert victim.page_id in {page.page_id for page in reranker.store.pages(["public"])}


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "0; at least one must be asked for"),
        (-1, "-1; at least one must be asked for"),
        (1.5, "1.5; it must be a whole number, or None for all"),
        ("3", "'3'; it must be a whole number"),
        (True, "True; it must be a whole number"),
        (False, "False; it must be a whole number"),
    ],
)
def test_what_is_no_number_of_results_is_refused_before_anything_is_read(
    reranker: MiniReranker, count, message: str
) -> None:
    for ask in (reranker.rank, reranker.retrieve):
        with pytest.raises(InputRejected, match=f"^top_k is {message}"):
            ask("x", top_k=count)
    for ask in (reranker.rerank, reranker.rank_texts):
        with pytest.raises(InputRejected, match=f"^top_n is {message}"):
            ask("x", ["not even read"], top_n=count)


def test_a_number_of_results_may_come_from_numpy(reranker: MiniReranker) -> None:
    page, _, third = reranker.add(pictures()[:3])
    two = np.int64(2)
    assert len(reranker.rank("x", top_k=two)) == len(reranker.retrieve("x", top_k=two)) == 2
    assert len(reranker.rerank("x", [page, third, page], top_n=two)) == 2
    assert len(reranker.rank_texts(page, ["a", "b", "c"], top_n=two)) == 2


def test_the_first_stage_passes_on_its_top_k(reranker: MiniReranker) -> None:
    reranker.add(pictures())
    everything = reranker.rank("blue page")
    by_retrieval = sorted(everything, key=lambda hit: -hit.retrieval_score)
    some = reranker.rank("blue page", top_k=2)
    assert {h.page.page_id for h in some} == {h.page.page_id for h in by_retrieval[:2]}
    found = reranker.retrieve("blue page", top_k=2)
    assert found == [(hit.page, hit.retrieval_score) for hit in by_retrieval[:2]]


def test_without_an_embedder_every_page_is_a_candidate_and_it_says_so(pair, tmp_path: Path) -> None:
    engine = reopen(pair, tmp_path, embedder=None)
    report = engine.add(pictures())
    assert engine.config.pruner == "uniform" and "embedder" in report.notes[0]
    ranked = engine.rank("blue page", top_k=2)
    assert len(ranked) == N_PAGES and ranked[0].retrieval_score is None
    assert any("embedder" in note for note in ranked.notes)
    whole = engine.with_config(replace(engine.config, keep_ratio=1.0))
    assert "top_k" in whole.notes[0] and "evenly" not in whole.notes[0]
    assert "evenly" in engine.with_config(replace(engine.config, instruction="x")).notes[0]
    engine.close()


def test_one_scope_or_one_page_may_be_named_by_itself(reranker: MiniReranker) -> None:
    first, *_ = reranker.add(pictures()).pages
    assert len(reranker.rank("x", scopes="public")) == N_PAGES
    (hit,) = reranker.rank("x", pages=first.page.page_id)
    assert hit.page == first.page


def test_scopes_are_kept_apart(reranker: MiniReranker) -> None:
    reranker.add(pictures()[:2])
    mine = reranker.add(pictures()[2:4], scope="session-a")
    assert {h.page.page_id for h in reranker.rank("x", scopes=["session-a"])} == {
        p.page.page_id for p in mine.pages
    }
    assert len(reranker.rank("x")) == 2
    theirs = reranker.add(pictures()[2:3], scope="session-b")
    assert theirs.pages[0].outcome == "encoded"  # no scope can learn what another has cached
    assert theirs.pages[0].page.page_id != mine.pages[0].page.page_id


def test_pictures_that_callers_passed_to_rerank_are_shown_to_nobody(
    reranker: MiniReranker,
) -> None:
    reranker.rerank("blue page", pictures()[:2])
    (page, _) = reranker.store.pages(["documents"])
    for scopes in (["documents"], "documents", ("public", "documents")):
        for ask in (
            lambda scopes: reranker.rank("x", scopes=scopes),
            lambda scopes: reranker.retrieve("x", scopes=scopes),
            lambda scopes: reranker.explain("x", page, scopes=scopes),
            lambda scopes: reranker.lenses("x", page, scopes=scopes),
            lambda scopes: reranker.rerank("x", [page], scopes=scopes),
        ):
            with pytest.raises(InputRejected, match="Pages in the scope 'documents' are those"):
                ask(scopes)


@pytest.mark.parametrize("scopes", [None, 5, [b"x"], [None]])
def test_scopes_that_are_no_names_are_refused(reranker: MiniReranker, scopes: object) -> None:
    page = reranker.add(picture(0)).pages[0].page
    for ask in (
        lambda: reranker.rank("x", scopes=scopes),
        lambda: reranker.retrieve("x", scopes=scopes),
        lambda: reranker.explain("x", page, scopes=scopes),
        lambda: reranker.lenses("x", page, scopes=scopes),
    ):
        with pytest.raises(
            InputRejected, match=r"^scopes is .*; it must be names, as \['public'\]"
        ):
            ask()


@pytest.mark.parametrize("query", ["", "   ", "\u200b\n"])
def test_an_empty_query_is_refused(reranker: MiniReranker, query: str) -> None:
    with pytest.raises(InputRejected):
        reranker.rank(query)


def test_a_long_query_is_cut_and_says_so(pair, tmp_path: Path) -> None:
    engine = reopen(pair, tmp_path, limits=Limits(max_query_tokens=8))
    engine.add(pictures()[:1])
    ranked = engine.rank("word " * 50)
    assert any("8 tokens" in note for note in ranked.notes)
    engine.close()


@pytest.mark.parametrize("system", SYSTEMS)
def test_ranking_an_empty_store_is_an_empty_list(reranker: MiniReranker, system) -> None:
    assert len(reranker.rank("anything", system=system)) == 0


def test_an_unknown_system_is_refused_by_name(reranker: MiniReranker) -> None:
    with pytest.raises(InputRejected, match="fastest"):
        reranker.rank("x", system="fastest")
