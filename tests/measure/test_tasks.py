"""Candidates depend on the seed and the query, and on nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrr.errors import InputRejected
from mrr.measure.dataset import CorpusPage, Dataset, Query
from mrr.measure.tasks import make_tasks

N_PAGES, N_QUERIES = 40, 30


@pytest.fixture
def dataset() -> Dataset:
    """Every third query has a second relevant page of a higher grade."""
    return Dataset(
        name="made up",
        pages=tuple(CorpusPage(f"p{i}", Path(f"{i}.png"), 1) for i in range(N_PAGES)),
        queries=tuple(
            Query(f"q{i}", f"words {i}", ("keyword", "title")[i % 2]) for i in range(N_QUERIES)
        ),
        qrels={
            f"q{i}": {f"p{i}": 1} | ({f"p{i + 5}": 2} if i % 3 == 0 else {})
            for i in range(N_QUERIES)
        },
        texts=None,
    )


def test_a_full_ranking_has_every_page_and_every_label(dataset: Dataset) -> None:
    tasks = make_tasks(dataset)
    assert len(tasks) == N_QUERIES
    for task in tasks:
        assert task.candidates == tuple(page.page_id for page in dataset.pages)
        assert task.grades == dataset.qrels[task.query.query_id]


def test_candidates_are_the_best_page_and_others_that_are_not_relevant(dataset: Dataset) -> None:
    for task in make_tasks(dataset, "candidates"):
        (best,) = task.grades
        number = int(task.query.query_id[1:])
        assert best == (f"p{number + 5}" if number % 3 == 0 else f"p{number}")
        assert len(set(task.candidates)) == 20
        relevant = set(task.candidates) & set(dataset.qrels[task.query.query_id])
        assert relevant == {best}


def test_candidates_do_not_change_with_what_else_is_asked(dataset: Dataset) -> None:
    everything = {t.query.query_id: t for t in make_tasks(dataset, "candidates", seed=5)}
    part = make_tasks(dataset, "candidates", seed=5, kinds=["title"], limit=4)
    assert len(part) == 4 and {t.query.kind for t in part} == {"title"}
    for task in part:
        assert task == everything[task.query.query_id]


def test_another_seed_draws_other_candidates_and_other_queries(dataset: Dataset) -> None:
    first, second = (make_tasks(dataset, "candidates", seed=s) for s in (0, 1))
    assert all(a.candidates != b.candidates for a, b in zip(first, second, strict=True))
    chosen = [
        [t.query.query_id for t in make_tasks(dataset, limit=10, seed=seed)] for seed in (0, 1)
    ]
    assert chosen[0] != chosen[1] and len(chosen[0]) == len(chosen[1]) == 10


def test_negatives_are_spread_over_the_corpus(dataset: Dataset) -> None:
    drawn = {c for task in make_tasks(dataset, "candidates") for c in task.candidates}
    assert drawn == {page.page_id for page in dataset.pages}


def test_what_cannot_be_drawn_is_refused(dataset: Dataset) -> None:
    with pytest.raises(InputRejected, match="No query is of kind verse; there are keyword, title"):
        make_tasks(dataset, kinds=["verse"])
    with pytest.raises(InputRejected, match=r"needs 39 pages that are not relevant.*has 38"):
        make_tasks(dataset, "candidates", n_negatives=39)
    with pytest.raises(InputRejected, match="at least two pages"):
        make_tasks(dataset, "candidates", n_negatives=0)
    with pytest.raises(InputRejected, match="limit is 0"):
        make_tasks(dataset, limit=0)
