"""Labels: which pages are relevant to which query, and what that makes of each system."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import gradio as gr

from mrr.types import SYSTEM_NAMES
from ui.components import text
from ui.markup import count, empty, esc, note, table
from ui.run import Run
from ui.session import Session
from ui.workbench import Workbench

MEASURES = ("ndcg@5", "ndcg@10", "mrr")
FIRST_STAGE = "first stage"


@dataclass(frozen=True, slots=True)
class LabelsView:
    """scores: metrics of this session's queries."""

    scores: gr.HTML


def build() -> LabelsView:
    """A table and its export."""
    scores = text("scores")
    with gr.Row(elem_classes="mrr-tools"):
        gr.Button("Save CSV", size="sm", elem_id="save-scores", scale=0)
        gr.Button("Save JSON", size="sm", elem_id="save-scores-json", scale=0)
        gr.Button("Save labels (TREC qrels)", size="sm", elem_id="save-labels", scale=0)
        gr.Button("Save rankings (TREC run)", size="sm", elem_id="save-runs", scale=0)
    return LabelsView(scores)


def systems_of(run: Run) -> dict[str, list[tuple[str, float]]]:
    """{system: (page id, score) best first} of one query, the first stage's own order included."""
    found = {
        SYSTEM_NAMES[ranked.system]: [(hit.page.page_id, hit.logit) for hit in ranked]
        for ranked in filter(None, (run.mini, run.dense_list))
    }
    retrieved = [
        (hit.page.page_id, hit.retrieval_score)
        for hit in run.mini
        if hit.retrieval_score is not None
    ]
    if retrieved:
        found[FIRST_STAGE] = sorted(retrieved, key=lambda each: -each[1])
    return found


def labelled_runs(bench: Workbench, session: Session) -> list[Run]:
    """The last run of every query that has a relevant page, in order of asking."""
    latest = {run.query: run for run in session.runs}
    return [run for query, run in latest.items() if bench.relevant(session, query)]


def score(ranking: Sequence[str], relevant: Collection[str]) -> dict[str, float]:
    """{measure: value} of one ranking of page ids, best first."""
    from mrr.measure.metrics import of_ranking  # ir_measures takes a second to import

    return of_ranking(ranking, relevant)


def rows(bench: Workbench, session: Session) -> list[dict[str, object]]:
    """One row a labelled query and system, for the table and its exports."""
    found: list[dict[str, object]] = []
    for run in labelled_runs(bench, session):
        relevant = bench.relevant(session, run.query)
        for system, ranked in systems_of(run).items():
            values = score([page_id for page_id, _ in ranked], relevant)
            found.append(
                {
                    "query": run.query,
                    "system": system,
                    "relevant": len(relevant),
                    **{name: round(values[name], 4) for name in MEASURES},
                }
            )
    return found


def scores(bench: Workbench, session: Session) -> str:
    """The table, its means where several queries are labelled, and what they rest on."""
    found = rows(bench, session)
    if not found:
        return empty("Tick relevant pages in a ranking to get NDCG and MRR.")
    bundled = sum(bool(bench.examples.labels(run.query)) for run in labelled_runs(bench, session))
    body = [
        [esc(row["query"]), esc(row["system"]), str(row["relevant"])]
        + [f"{row[name]:.3f}" for name in MEASURES]
        for row in found
    ]
    body += [
        [f"<b>mean of {n}</b>", f"<b>{esc(system)}</b>", ""]
        + [f"<b>{mean:.3f}</b>" for mean in means]
        for system, n, means in _means(found)
    ]
    where = (
        f"{count(bundled, 'query', 'queries')} with labels that come with the "
        "examples; ticks change them for this session. "
        if bundled
        else ""
    )
    return table(
        ["query", "system", "relevant", "NDCG@5", "NDCG@10", "MRR"], body, (2, 3, 4, 5)
    ) + (
        note(
            where + "Pages beyond the candidates count as not found. Compare systems on the same "
            "queries only."
        )
    )


def _means(found: Sequence[dict[str, object]]) -> list[tuple[str, int, list[float]]]:
    by_system: dict[str, list[dict[str, object]]] = {}
    for row in found:
        by_system.setdefault(str(row["system"]), []).append(row)
    return [
        (system, len(group), [sum(float(str(r[m])) for r in group) / len(group) for m in MEASURES])
        for system, group in by_system.items()
        if len(group) > 1
    ]


def qrels(bench: Workbench, session: Session) -> str:
    """TREC qrels: query, 0, page id, 1. A query's id is its words, joined: TREC allows no space."""
    return "".join(
        f"{_query_id(run.query)}\t0\t{page_id}\t1\n"
        for run in labelled_runs(bench, session)
        for page_id in sorted(bench.relevant(session, run.query))
    )


def trec_runs(session: Session) -> str:
    """TREC run of the last ranking of every query: query, Q0, page id, rank, score, system."""
    latest = {run.query: run for run in session.runs}
    return "".join(
        f"{_query_id(query)} Q0 {page_id} {rank} {value:.6f} {_query_id(system)}\n"
        for query, run in latest.items()
        for system, ranked in systems_of(run).items()
        for rank, (page_id, value) in enumerate(ranked, start=1)
    )


def _query_id(words: str) -> str:
    return "_".join(words.split())
