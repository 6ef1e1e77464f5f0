"""Cost curves derived from one latency report; derived, not measured, and to be labelled so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrr.measure.latency import ONCE_A_QUERY, LatencyReport, SystemLatency
from mrr.types import System


@dataclass(frozen=True, slots=True)
class Curve:
    """Milliseconds of one system against x."""

    system: System
    x: tuple[int, ...]
    ms: tuple[float, ...]


def against_top_k(report: LatencyReport, top_ks: Sequence[int]) -> tuple[Curve, ...]:
    """Cost of one query by number of candidates: what runs once, plus a share for each page."""
    return tuple(
        Curve(each.system, tuple(top_ks), tuple(_query_ms(each, k) for k in top_ks))
        for each in report.systems
    )


def against_queries(report: LatencyReport, n_queries: Sequence[int]) -> tuple[Curve, ...]:
    """Total cost of caching the report's pages once and asking so many queries of all of them."""
    return tuple(
        Curve(
            each.system,
            tuple(n_queries),
            tuple(_caching_ms(report, each.system) + n * each.total.median for n in n_queries),
        )
        for each in report.systems
    )


def break_even(report: LatencyReport, system: System, reference: System = "original") -> int | None:
    """The first number of queries at which `system` has cost less in total; None if never.

    Raises ValueError where one of the two was not measured.
    """
    for name in (system, reference):
        if name not in {each.system for each in report.systems}:
            raise ValueError(f"{name} was not measured.")
    saved_ms = report[reference].total.median - report[system].total.median
    extra_ms = _caching_ms(report, system) - _caching_ms(report, reference)
    if extra_ms < 0:
        return 1 if saved_ms > extra_ms else None
    return int(extra_ms // saved_ms) + 1 if saved_ms > 0 else None


def _query_ms(latency: SystemLatency, n_candidates: int) -> float:
    return sum(
        cost.ms.median if cost.stage in ONCE_A_QUERY else cost.ms_per_page * n_candidates
        for cost in latency.stages
    )


def _caching_ms(report: LatencyReport, system: System) -> float:
    """Of all the report's pages; `original` caches nothing."""
    per_page = sum(each.total.median for each in report.caching if each.system == system)
    return per_page * report.n_candidates
