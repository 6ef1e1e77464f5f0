"""Quality of rankings against relevance labels, and agreement of two rankings.

A run here is an order, not scores: whoever ranked has broken the ties (the engine keeps the order
of the candidates). trec_eval sorts by score and breaks ties by name, so it is given scores that
strictly decrease along the order, and has no tie to break.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from ir_measures import RR, R, nDCG
from scipy.stats import kendalltau

Run = Mapping[str, Sequence[str]]  # query id -> page ids, best first
Qrels = Mapping[str, Mapping[str, int]]  # query id -> page id -> grade; 1 and above is relevant

MEASURES: dict[str, ir_measures.Measure] = {
    "ndcg@5": nDCG @ 5,
    "ndcg@10": nDCG @ 10,
    "recall@1": R @ 1,
    "recall@3": R @ 3,
    "recall@5": R @ 5,
    "recall@20": R @ 20,
    "mrr": RR,
}
_N_RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n queries with its 95% bootstrap interval [low, high]."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two systems rank the same candidates, averaged over queries.

    kendall_tau: 1 the same order, -1 the reverse. top_1: share of queries with the same first
    page. overlap_at_5: share of the first five that both have, in any order.
    """

    kendall_tau: Estimate
    top_1: Estimate
    overlap_at_5: Estimate


def per_query(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """{measure: {query id: value}} for every query of the run.

    Raises ValueError for a query without labels and for a page ranked twice.
    """
    for query_id, ranking in run.items():
        if query_id not in qrels:
            raise ValueError(f"Query {query_id} has no relevance labels.")
        if len(set(ranking)) != len(ranking):
            raise ValueError(f"Query {query_id} ranks a page twice.")
    scores = {q: _decreasing(ranking) for q, ranking in run.items()}
    labels = {q: dict(qrels[q]) for q in run}
    names = {measure: name for name, measure in MEASURES.items()}
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(run, 0.0) for name in MEASURES}
    for metric in ir_measures.iter_calc(list(names), labels, scores):
        values[names[metric.measure]][metric.query_id] = float(metric.value)
    return values


def of_ranking(ranking: Sequence[str], relevant: Iterable[str]) -> dict[str, float]:
    """{measure: value} of one ranking, given the pages that are relevant."""
    values = per_query({"q": ranking}, {"q": dict.fromkeys(relevant, 1)})
    return {name: by_query["q"] for name, by_query in values.items()}


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean over queries, its interval by resampling queries. The same seed, the same interval.

    Raises ValueError without values.
    """
    x = np.asarray(values, dtype=np.float64)
    means = x[_resamples(len(x), seed)].mean(axis=1)
    return _estimate(float(x.mean()), means, len(x))


def retention(values: Sequence[float], reference: Sequence[float], *, seed: int = 0) -> Estimate:
    """Share of a reference's mean that a system keeps; both over the same queries in one order.

    Paired: each resample draws the same queries for both, so the noise they share cancels.
    Raises ValueError where the lengths differ or the reference is zero throughout.
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} queries cannot be paired with {len(y)}.")
    if not y.any():
        raise ValueError("The reference is zero for every query; there is nothing to keep.")
    rows = _resamples(len(x), seed)
    kept, whole = x[rows].mean(axis=1), y[rows].mean(axis=1)
    return _estimate(float(x.mean() / y.mean()), kept[whole > 0] / whole[whole > 0], len(x))


def agreement(first: Run, second: Run, *, seed: int = 0) -> Agreement:
    """Compare two runs over the same queries and candidates.

    Raises ValueError where they rank different pages, or fewer than two.
    """
    if set(first) != set(second):
        raise ValueError("The two runs answer different queries.")
    pairs = [(first[query_id], second[query_id]) for query_id in first]
    return Agreement(
        kendall_tau=bootstrap([rank_correlation(a, b) for a, b in pairs], seed=seed),
        top_1=bootstrap([float(a[0] == b[0]) for a, b in pairs], seed=seed),
        overlap_at_5=bootstrap([overlap(a, b, 5) for a, b in pairs], seed=seed),
    )


def rank_correlation(first: Sequence[str], second: Sequence[str]) -> float:
    """Kendall's tau of two orders of the same pages."""
    place = {page: i for i, page in enumerate(second)}
    if len(place) < 2 or set(first) != set(place):
        raise ValueError("Rank correlation needs two orders of the same two or more pages.")
    return float(kendalltau(range(len(first)), [place[page] for page in first]).statistic)


def overlap(first: Sequence[str], second: Sequence[str], k: int) -> float:
    """Share of the first k pages that both orders have; k is cut to the shorter of the two."""
    k = min(k, len(first), len(second))
    return len(set(first[:k]) & set(second[:k])) / k


def _decreasing(ranking: Sequence[str]) -> dict[str, float]:
    return {page: float(len(ranking) - i) for i, page in enumerate(ranking)}


def _resamples(n: int, seed: int) -> np.ndarray:
    """(resamples, n) indices of queries, drawn with replacement."""
    if n == 0:
        raise ValueError("There is no query to average over.")
    return np.random.default_rng(seed).integers(0, n, (_N_RESAMPLES, n))


def _estimate(value: float, resampled: np.ndarray, n: int) -> Estimate:
    low, high = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)
