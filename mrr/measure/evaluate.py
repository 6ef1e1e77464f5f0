"""Quality of the systems on a labelled dataset, with intervals, anchors and what it cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from mrr.measure.anchors import bm25_run, first_stage_run, has_bm25, page_texts, restrict
from mrr.measure.corpus import CachingCost, Corpus, Progress, SystemRun, add_corpus, run_tasks
from mrr.measure.dataset import Dataset
from mrr.measure.late import late_interaction_run
from mrr.measure.machine import Machine, describe
from mrr.measure.metrics import (
    Agreement,
    Estimate,
    Qrels,
    Run,
    agreement,
    bootstrap,
    per_query,
    retention,
)
from mrr.measure.spread import Spread
from mrr.measure.tasks import QUERY_FIRST, Mode, Task, make_tasks
from mrr.reranker import MiniReranker
from mrr.types import System

HEADLINE = "ndcg@5"


@dataclass(frozen=True, slots=True)
class Quality:
    """One system's, or anchor's, quality.

    ranking: {query id: candidates' page ids in the dataset, best first}.
    metrics: {measure: estimate}. by_kind: {kind of query: {measure: estimate}}.
    first_relevant: {query id: rank of the first relevant page}, to look at what went wrong.
    query_ms: None for anchors, which are not timed.
    """

    name: str
    ranking: Run
    metrics: Mapping[str, Estimate]
    by_kind: Mapping[str, Mapping[str, Estimate]]
    first_relevant: Mapping[str, int]
    query_ms: Spread | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`system` against `reference` on the same queries and candidates.

    ndcg_kept: share of the reference's mean NDCG@5; None where the reference found nothing.
    """

    system: str
    reference: str
    ndcg_kept: Estimate | None
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Everything needed to read, and to repeat, one evaluation.

    n_queries: that were asked, of the n_labelled_queries that the dataset has.
    """

    dataset: str
    mode: Mode
    n_pages: int
    n_queries: int
    n_labelled_queries: int
    n_candidates: int
    seed: int
    model: str
    embedder: str | None
    config: Mapping[str, Any]
    machine: Machine
    caching: CachingCost
    systems: tuple[Quality, ...]
    anchors: tuple[Quality, ...]
    comparisons: tuple[Comparison, ...]
    first_stage_recall_at_20: Estimate | None
    notes: tuple[str, ...]


def evaluate(
    reranker: MiniReranker,
    dataset: Dataset,
    *,
    systems: Sequence[str] = ("mini",),
    mode: Mode = "full",
    n_negatives: int = 19,
    seed: int = 0,
    kinds: Collection[str] | None = None,
    limit: int | None = None,
    late_interaction: bool = False,
    progress: Progress | None = None,
) -> EvalReport:
    """Cache the dataset's pages once and rank them for every query with every system.

    systems: of EVALUATED. `original` runs every pair from scratch, in either order: give it mode
    "candidates" and a limit.
    late_interaction: an anchor more, for which every page goes through the tower again. The other
    arguments are those of make_tasks. Raises InputRejected for a dataset that cannot be run.
    """
    tasks = make_tasks(dataset, mode, n_negatives=n_negatives, seed=seed, kinds=kinds, limit=limit)
    corpus = add_corpus(reranker, dataset, progress)
    runs = {s: _run(reranker, corpus, tasks, s, progress) for s in systems}
    qrels = {task.query.query_id: task.grades for task in tasks}
    anchors, notes = _anchor_runs(reranker, dataset, corpus, tasks)
    if late_interaction:
        anchors["late interaction"] = late_interaction_run(reranker, corpus, tasks, progress)
    return EvalReport(
        dataset=dataset.name,
        mode=mode,
        n_pages=len(dataset.pages),
        n_queries=len(tasks),
        n_labelled_queries=len(dataset.queries),
        n_candidates=len(tasks[0].candidates),
        seed=seed,
        model=reranker.loaded.name,
        embedder=reranker.embedder.loaded.name if reranker.embedder else None,
        config=asdict(reranker.config),
        machine=describe(reranker.loaded),
        caching=corpus.cost,
        systems=tuple(_quality(s, r.run, tasks, qrels, seed, r) for s, r in runs.items()),
        anchors=tuple(
            _quality(name, restrict(run, tasks), tasks, qrels, seed)
            for name, run in anchors.items()
        ),
        comparisons=tuple(
            compare("mini", runs["mini"].run, reference, runs[reference].run, qrels, seed)
            for reference in runs
            if reference != "mini" and "mini" in runs
        ),
        first_stage_recall_at_20=(
            _recall_at_20(anchors["first stage"], dataset.qrels, seed)
            if "first stage" in anchors
            else None
        ),
        notes=reranker.notes + notes,
    )


def _run(
    reranker: MiniReranker,
    corpus: Corpus,
    tasks: Sequence[Task],
    name: str,
    progress: Progress | None,
) -> SystemRun:
    """The rankings of one of EVALUATED."""
    if name == QUERY_FIRST:
        as_published = reranker.with_config(replace(reranker.config, order="query-first"))
        return run_tasks(as_published, corpus, tasks, "original", name, progress)
    return run_tasks(reranker, corpus, tasks, cast(System, name), name, progress)


def compare(
    system: str, run: Run, reference: str, reference_run: Run, qrels: Qrels, seed: int
) -> Comparison:
    """How much of a reference's quality and order a system keeps."""
    ours = list(per_query(run, qrels)[HEADLINE].values())
    theirs = list(per_query(reference_run, qrels)[HEADLINE].values())
    return Comparison(
        system=system,
        reference=reference,
        ndcg_kept=retention(ours, theirs, seed=seed) if any(theirs) else None,
        agreement=agreement(run, reference_run, seed=seed),
    )


def estimates(run: Run, qrels: Qrels, seed: int) -> dict[str, Estimate]:
    """{measure: mean with interval} over the run's queries."""
    return {
        measure: bootstrap(list(values.values()), seed=seed)
        for measure, values in per_query(run, qrels).items()
    }


def _quality(
    name: str,
    run: Run,
    tasks: Sequence[Task],
    qrels: Qrels,
    seed: int,
    measured: SystemRun | None = None,
) -> Quality:
    kinds: dict[str, dict[str, Sequence[str]]] = {}
    for task in tasks:
        query_id = task.query.query_id
        kinds.setdefault(task.query.kind, {})[query_id] = run[query_id]
    return Quality(
        name=name,
        ranking=run,
        metrics=estimates(run, qrels, seed),
        by_kind={kind: estimates(part, qrels, seed) for kind, part in kinds.items()},
        first_relevant={
            query_id: next(r for r, p in enumerate(ranking, 1) if qrels[query_id].get(p, 0) > 0)
            for query_id, ranking in run.items()
        },
        query_ms=measured.query_ms if measured else None,
    )


def _anchor_runs(
    reranker: MiniReranker, dataset: Dataset, corpus: Corpus, tasks: Sequence[Task]
) -> tuple[dict[str, Run], tuple[str, ...]]:
    """Anchors over every page, and why one is missing."""
    runs: dict[str, Run] = {}
    notes: tuple[str, ...] = ()
    if reranker.embedder is not None:
        runs["first stage"] = first_stage_run(reranker, corpus, tasks)
    texts = page_texts(dataset)
    if texts is None:
        notes += ("No BM25 anchor: not every page comes with its text.",)
    elif not has_bm25():
        notes += ("No BM25 anchor: bm25s, a development requirement, is not installed.",)
    else:
        runs["bm25 on the text"] = bm25_run(texts, tasks)
    return runs, notes


def _recall_at_20(run: Run, qrels: Qrels, seed: int) -> Estimate:
    return bootstrap(list(per_query(run, qrels)["recall@20"].values()), seed=seed)
