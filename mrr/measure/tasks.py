"""What each query has to rank: the same for every system and configuration, by the seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mrr.errors import InputRejected
from mrr.measure.dataset import Dataset, Query
from mrr.types import SYSTEMS

# `original` by the prompt that Qwen published. The three systems have the page first: what that
# costs a checkpoint which was not trained so shows in none of them.
QUERY_FIRST = "original-query-first"
EVALUATED = (*SYSTEMS, QUERY_FIRST)
Mode = Literal["full", "candidates"]


@dataclass(frozen=True, slots=True)
class Task:
    """One query, the pages it ranks, and the grades of those among them that have one."""

    query: Query
    candidates: tuple[str, ...]
    grades: Mapping[str, int]


def make_tasks(
    dataset: Dataset,
    mode: Mode = "full",
    *,
    n_negatives: int = 19,
    seed: int = 0,
    kinds: Collection[str] | None = None,
    limit: int | None = None,
) -> tuple[Task, ...]:
    """One task a query, in the dataset's order.

    "full": every page. "candidates": the page of the highest grade and n_negatives random pages
    that are not relevant. kinds: of queries to use, None for all. limit: queries to draw at
    random. Raises InputRejected for a kind that is not there and for too small a corpus.
    """
    if n_negatives < 1 or len(dataset.pages) < 2:
        raise InputRejected("Ranking needs at least two pages, one of them not relevant.")
    queries = _sample(_of_kinds(dataset.queries, kinds), limit, seed)
    if mode == "full":
        pages = tuple(page.page_id for page in dataset.pages)
        return tuple(Task(q, pages, dataset.qrels[q.query_id]) for q in queries)
    return tuple(_fixed_candidates(dataset, query, n_negatives, seed) for query in queries)


def _fixed_candidates(dataset: Dataset, query: Query, n_negatives: int, seed: int) -> Task:
    grades = dataset.qrels[query.query_id]
    positive = max(grades, key=lambda page_id: grades[page_id])
    others = [p.page_id for p in dataset.pages if grades.get(p.page_id, 0) <= 0]
    if len(others) < n_negatives:
        raise InputRejected(
            f"Query {query.query_id} needs {n_negatives} pages that are not relevant and "
            f"{dataset.name} has {len(others)}. Ask for fewer negatives."
        )
    chosen = _rng(seed, query.query_id).choice(len(others), n_negatives, replace=False)
    wanted = {positive, *(others[i] for i in chosen)}
    # In the corpus's order, so that no position in the list gives the positive away.
    candidates = tuple(p.page_id for p in dataset.pages if p.page_id in wanted)
    return Task(query, candidates, {positive: grades[positive]})


def _of_kinds(queries: tuple[Query, ...], kinds: Collection[str] | None) -> list[Query]:
    known = sorted({query.kind for query in queries})
    for kind in kinds or ():
        if kind not in known:
            raise InputRejected(f"No query is of kind {kind}; there are {', '.join(known)}.")
    return [query for query in queries if not kinds or query.kind in kinds]


def _sample(queries: list[Query], limit: int | None, seed: int) -> list[Query]:
    if limit is None or limit >= len(queries):
        return queries
    if limit < 1:
        raise InputRejected(f"The limit is {limit}; at least one query must be left.")
    chosen = _rng(seed, "limit").choice(len(queries), limit, replace=False)
    return [queries[i] for i in sorted(chosen)]


def _rng(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one name's own, whatever else is drawn: a limit changes no candidates."""
    return np.random.default_rng([seed, int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)])
