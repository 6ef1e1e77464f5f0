"""The way of a query: first stage, candidates' K/V, logits, a list in descending relevance."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cache_db.evict import DOCUMENTS
from mrr import systems
from mrr.errors import InputRejected, PageLost
from mrr.timing import Stages
from mrr.types import (
    SYSTEMS,
    Candidate,
    Hit,
    Page,
    PageLike,
    RankedList,
    System,
    Usage,
    page_ids_of,
)

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

T = TypeVar("T")


def rank(
    engine: MiniReranker,
    query: str,
    top_k: int | None,
    system: System,
    pages: Iterable[PageLike] | PageLike | None,
    scopes: Collection[str],
) -> RankedList:
    """See MiniReranker.rank."""
    if system not in SYSTEMS:
        raise InputRejected(f"No system {system!r}; choose one of {', '.join(SYSTEMS)}.")
    check_count("top_k", top_k)
    text, notes = engine.clean(query)
    only = None if pages is None else page_ids_of(pages)
    stages = Stages(engine.device)  # of all rounds: what an earlier one computed was not there

    def once(lost: set[str]) -> tuple[list[Candidate], int, systems.Scored]:
        candidates, n_left = _candidates(engine, text, only, scopes, lost, top_k, stages)
        pages = [page for page, _ in candidates]
        return candidates, n_left, _score(engine, text, pages, system, stages)

    (candidates, n_left, scored), lost = _without_lost(engine, once)
    # One page less, instead of no ranking at all.
    notes += tuple(f"{error} The ranking is without it." for error in lost.values())
    if n_left:
        are, were = ("pages are", "were") if n_left > 1 else ("page is", "was")
        notes += (f"{n_left} {are} still being added by another process and {were} left out.",)
    if not candidates:  # of a store that cannot be read, and looks empty
        notes += tuple(filter(None, (engine.store.stats().note,)))
    n_unknown = 0 if only is None else len(only - lost.keys()) - len(candidates)
    if n_unknown > 0 and (top_k is None or len(candidates) < top_k):
        notes += (f"{n_unknown} of the pages that were named are not among those to be seen.",)
    return _ranked(text, system, candidates, scored, stages, engine.notes + notes)


def retrieve(
    engine: MiniReranker,
    query: str,
    top_k: int | None,
    pages: Iterable[PageLike] | PageLike | None,
    scopes: Collection[str],
) -> list[Candidate]:
    """See MiniReranker.retrieve."""
    check_count("top_k", top_k)
    text, _ = engine.clean(query)
    only = None if pages is None else page_ids_of(pages)
    stages = Stages(engine.device)
    (candidates, _), _ = _without_lost(
        engine, lambda lost: _candidates(engine, text, only, scopes, lost, top_k, stages)
    )
    return candidates


def _without_lost(
    engine: MiniReranker, once: Callable[[set[str]], T]
) -> tuple[T, dict[str, PageLost]]:
    """once(ids of lost pages), again as long as it meets pages whose pictures are lost; those."""
    lost: dict[str, PageLost] = {}
    with engine.lock:
        while True:
            try:
                return once(set(lost)), lost
            except PageLost as error:
                lost[error.page_id] = error


def _candidates(
    engine: MiniReranker,
    text: str,
    only: set[str] | None,
    scopes: Collection[str],
    lost: set[str],
    top_k: int | None,
    stages: Stages,
) -> tuple[list[Candidate], int]:
    """First stage: the best pages first; without an embedder all of them, unscored.

    And how many were left out because another process computes what they lack: to do the same
    beside it takes as long as many queries. Pages that were asked for by name are never left out.
    """
    engine.check_open()
    with stages("retrieve"):
        pages = [
            page
            for page in engine.store.pages(scopes)
            if (only is None or page.page_id in only) and page.page_id not in lost
        ]
        left = engine.cache.in_other_hands(pages) if only is None else set()
        pages = [page for page in pages if page.page_id not in left]
        if engine.embedder is None or not pages:
            return [Candidate(page, None) for page in pages], len(left)
    vectors = engine.cache.vectors(pages, stages)
    with stages("retrieve"):
        suits = engine.embedder.similarity(text, vectors)
        order = np.argsort(-suits, kind="stable")[:top_k]
        return [Candidate(pages[i], float(suits[i])) for i in order], len(left)


def _score(
    engine: MiniReranker, text: str, pages: list[Page], system: System, stages: Stages
) -> systems.Scored:
    """Logits of the candidates by the path that the system and the prompt order call for."""
    rest = engine.lock.rest
    if system == "original":
        return systems.original(engine.cache, text, pages, stages, rest)
    if system == "dense-reuse":
        at_once = systems.DENSE_PAGES_AT_ONCE
        return systems.cached(engine.dense_cache, text, pages, stages, at_once, rest)
    if engine.cache.scorer.image_first:
        return systems.cached(engine.cache, text, pages, stages, systems.PAGES_AT_ONCE, rest)
    return systems.joint(engine.cache, text, pages, stages, rest)


def _ranked(
    query: str,
    system: System,
    candidates: list[Candidate],
    scored: systems.Scored,
    stages: Stages,
    notes: tuple[str, ...],
) -> RankedList:
    """Sort by logit, ties in candidate order."""
    logits = np.asarray(scored.logits, dtype=np.float32)
    hits = tuple(
        Hit(
            rank=rank,
            page=candidates[i][0],
            score=sigmoid(logits[i]),
            logit=float(logits[i]),
            retrieval_score=candidates[i][1],
            n_visual_tokens=scored.n_visual[i],
            n_kept_tokens=scored.n_kept[i],
        )
        for rank, i in enumerate(np.argsort(-logits, kind="stable"), start=1)
    )
    n_missed = sum(page.page_id in stages.missed for page, _ in candidates)
    usage = Usage(
        cached_pages=len(candidates) - n_missed,
        missed_pages=n_missed,
        bytes_read=stages.bytes_read,
        ms=dict(stages.ms),
    )
    return RankedList(query, system, hits, usage, notes)


def check_count(name: str, count: int | None) -> None:
    """Raise InputRejected for what is no number of results: not whole, or less than one."""
    if count is None:
        return
    try:
        whole = None if isinstance(count, bool) else operator.index(count)
    except TypeError:
        whole = None
    if whole is None:
        raise InputRejected(f"{name} is {count!r:.80}; it must be a whole number, or None for all.")
    if whole < 1:
        raise InputRejected(f"{name} is {count}; at least one must be asked for.")


def check_scopes(scopes: Collection[str] | str) -> Collection[str]:
    """The scopes, one by itself in a list. Raises InputRejected for what callers cannot name.

    Those who passed pictures to rerank() did not mean to show them to each other.
    """
    names = (scopes,) if isinstance(scopes, str) else scopes  # not its letters
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise InputRejected(f"scopes is {scopes!r:.80}; it must be names, as ['public'].")
    if DOCUMENTS in names:
        raise InputRejected(
            f"Pages in the scope {DOCUMENTS!r} are those that rerank() was given, and are not "
            "shown; choose another name."
        )
    return names


def sigmoid(logit: float | np.floating) -> float:
    """1 / (1 + exp(-logit)), in float64."""
    return float(0.5 * (1.0 + np.tanh(0.5 * np.float64(logit))))  # exp would overflow
