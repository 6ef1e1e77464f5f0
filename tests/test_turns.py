"""Several callers of one engine: each gets its own answer, and nobody waits for everything."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from mrr import MiniReranker, systems
from mrr.model.scorer import Scorer
from mrr.timing import Stages
from tests.engines import logits, pictures
from tests.test_turn import waiting
from tests.tiny import picture


def test_two_queries_at_once_take_turns_at_the_models(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.add(pictures()[:2])
    engines = (reranker, reranker.with_config(replace(reranker.config, exit_layer=5)))
    for engine in engines:
        engine.rank("blue page")
    running, start = threading.Lock(), threading.Barrier(2)
    alone: list[bool] = []

    def watched(run):
        def watch(*given):
            alone.append(running.acquire(blocking=False))
            time.sleep(0.05)
            try:
                return run(*given)
            finally:
                if alone[-1]:
                    running.release()

        return watch

    def ask(engine: MiniReranker) -> None:
        start.wait()
        engine.rank("blue page")

    for owner, name in (
        (reranker.embedder, "similarity"),
        *((engine.cache.scorer, name) for engine in engines for name in ("read", "score_read")),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    threads = [threading.Thread(target=ask, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone == [True] * 6


def test_several_threads_get_the_same_answers(reranker: MiniReranker) -> None:

    reranker.add(pictures())
    queries = ["blue page", "red", "a longer query of words", "x"]
    alone = {q: logits(reranker.rank(q)) for q in queries}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(reranker.rank, queries * 3))
    for ranked in together:
        assert logits(ranked) == alone[ranked.query]


def test_a_query_waits_for_the_page_that_is_encoded_and_not_for_all_of_them(
    reranker: MiniReranker, monkeypatch
) -> None:
    reranker.add([pictures()[0]])
    add, happened, others = reranker.cache.add, list[str](), list[threading.Thread]()

    def watched(item, scope):
        if not others:
            ask = waiting(reranker.lock, lambda: (reranker.rank("x"), happened.append("query")))
            others.append(ask)
        added = add(item, scope)
        happened.append("page")
        return added

    monkeypatch.setattr(reranker.cache, "add", watched)
    reranker.add([picture(20 + i, (96, 96)) for i in range(2)])
    others[0].join(60)
    assert happened == ["page", "query", "page"]


@pytest.mark.parametrize(
    ("system", "order", "scored"),
    [
        ("original", "vision-first", "score_original"),
        ("mini", "query-first", "score_joint"),
        ("dense-reuse", "vision-first", "encode"),
    ],
)
def test_others_go_in_between_passes_that_take_long(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch, system, order, scored
) -> None:
    reranker.add(pictures()[:3])
    engine = reranker.with_config(replace(reranker.config, order=order))
    happened: list[str] = []
    others: list[threading.Thread] = []
    long = getattr(Scorer, scored)

    def watched(*given):
        happened.append("pass")
        others.append(waiting(engine.lock, lambda: happened.append("another")))
        return long(*given)

    monkeypatch.setattr(Scorer, scored, watched)
    engine.rank("blue page", system=system)
    for other in others:
        other.join(60)
    assert happened == ["pass", "another"] * 3


def test_a_query_is_read_again_where_others_may_have_run_meanwhile(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU its states lie where the next query's will."""
    reranker.add(pictures()[:2])
    read, texts = Scorer.read, []
    monkeypatch.setattr(Scorer, "read", lambda *given: (texts.append(given[1]), read(*given))[1])
    for _ in range(2):
        reranker.rank("blue page", system="dense-reuse")
    assert texts == [["blue page"]] * 3, "twice while pages were encoded, once with all at hand"


def test_it_is_read_again_too_where_an_earlier_round_had_encoded_the_page(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = reranker.add(pictures()[:1]).pages[0].page
    read, texts, stages = Scorer.read, [], Stages(reranker.device)
    monkeypatch.setattr(Scorer, "read", lambda *given: (texts.append(given[1]), read(*given))[1])
    stages.missed.add(added.page_id)
    with reranker.lock:
        systems.cached(reranker.dense_cache, "blue page", [added], stages, 20, reranker.lock.rest)
    assert len(texts) == 2
