"""From a latency report to the lines of the charts: cost by candidates, by queries, break-even."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrr.measure.latency import CachingLatency, LatencyReport, SystemLatency


@dataclass(frozen=True, slots=True)
class Cost:
    """What one system costs: once_ms a query, per_page_ms a candidate and query, and caching_ms
    a page, once (0 where nothing is cached)."""

    system: str
    once_ms: float
    per_page_ms: float
    caching_ms: float

    def query_ms(self, n_candidates: float) -> float:
        """One query over n_candidates pages that are cached already."""
        return self.once_ms + self.per_page_ms * n_candidates

    def total_ms(self, n_candidates: float, n_queries: float) -> float:
        """Caching n_candidates pages and asking n_queries queries of them."""
        return self.caching_ms * n_candidates + n_queries * self.query_ms(n_candidates)


def costs(report: LatencyReport) -> list[Cost]:
    """One Cost a system, in the report's order. At the report's candidates a query costs the median
    of its totals, as everywhere."""
    return [_cost(each, caching_of(report, each.system)) for each in report.systems]


def break_even(cheap: Cost, dear: Cost, n_candidates: float) -> float | None:
    """Number of queries from which on `cheap`, caching included, costs less than `dear`.

    0 where it never costs more; None where it never pays.
    """
    ahead = (cheap.caching_ms - dear.caching_ms) * n_candidates
    gain = dear.query_ms(n_candidates) - cheap.query_ms(n_candidates)
    if ahead <= 0:
        return 0.0 if gain >= 0 else None
    return ahead / gain if gain > 0 else None


def first_cheaper(point: float) -> int:
    """The first query after which the cheaper system has cost less. point: as break_even gives."""
    return math.floor(point) + 1


def break_even_sentence(report: LatencyReport) -> str:
    """After how many queries on the same pages mini has paid for its caching."""
    known = {cost.system: cost for cost in costs(report)}
    if "mini" not in known or "original" not in known:
        return ""
    point = break_even(known["mini"], known["original"], report.n_candidates)
    if point is None:
        return "Caching does not pay here: a query costs mini no less than original."
    if point < 1:
        return "Caching included, mini is cheaper than original from the first query on."
    return (
        f"Caching included, mini is cheaper than original from query {first_cheaper(point)} on the "
        "same pages."
    )


def caching_of(report: LatencyReport, system: str) -> CachingLatency | None:
    """What caching one page costs this system; None where it caches nothing."""
    return next((each for each in report.caching if each.system == system), None)


def in_total(measured: SystemLatency) -> float:
    """What the medians of the stages are multiplied by, so that they add up to that of the totals.

    Repeats differ in which stage was slow, so that by themselves they seldom do.
    """
    return measured.total.median / sum(stage.ms.median for stage in measured.stages)


def _cost(measured: SystemLatency, caching: CachingLatency | None) -> Cost:
    # torch comes with this module, so it is only imported once a report exists.
    from mrr.measure.latency import ONCE_A_QUERY

    share = in_total(measured)
    once = share * sum(s.ms.median for s in measured.stages if s.stage in ONCE_A_QUERY)
    page = share * sum(s.ms_per_page for s in measured.stages if s.stage not in ONCE_A_QUERY)
    return Cost(measured.system, once, page, caching.total.median if caching else 0.0)
