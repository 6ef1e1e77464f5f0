"""What `mrr bench` found: three systems side by side, and the table of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mrr.config import layer_range
from mrr.measure.spread import Spread
from mrr.measure.table import columns


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system. timing: ms of one query over all candidates; per_page_ms: one candidate's share.

    flops_per_page: of one candidate, by arithmetic.
    """

    system: str
    candidates: int
    timing: Spread
    per_page_ms: float
    flops_per_page: float
    bytes_per_page: int


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything that was measured, and on what.

    engine_overhead: share by which `mini` takes longer than its bare tensor operations, turn by
    turn. graphs: the cached systems were CUDA graphs.
    """

    model: str
    device: str
    dtype: str
    threads: int
    n_visual_tokens: int
    n_kept_tokens: int
    n_suffix_tokens: int
    band: tuple[int, int]
    exit_layer: int
    systems: list[SystemResult]
    caching_ms: Spread
    caching_flops: float
    bare_ms: Spread
    engine_overhead: Spread
    graphs: bool


def table(report: BenchReport) -> str:
    """The report as text, ratios included."""
    original, dense = report.systems[0].per_page_ms, report.systems[1].per_page_ms
    n = report.systems[-1].candidates
    head = ["system", "ms/query", "(quartiles)", "ms/page", "vs original", "vs dense"]
    rows = [
        [
            # `original` is timed over one page, whatever the others rank.
            f"{s.system}, one page" if s.candidates == 1 else s.system,
            f"{s.timing.median:.1f}",
            f"({s.timing.q1:.1f} - {s.timing.q3:.1f}, n={s.timing.n})",
            f"{s.per_page_ms:.2f}",
            f"{original / s.per_page_ms:.1f}x",
            f"{dense / s.per_page_ms:.2f}x",
            _three_digits(s.flops_per_page / 1e9),
            _three_digits(s.bytes_per_page / 1e6),
        ]
        for s in report.systems
    ]
    return "\n".join(
        [
            f"{report.model}, {report.dtype} on {report.device}, {report.threads} threads; "
            f"page of {report.n_visual_tokens} visual tokens, {report.n_kept_tokens} kept, query "
            f"of {report.n_suffix_tokens}; band layers {layer_range(report.band)}, exit after "
            f"layer {report.exit_layer - 1}; {n} candidate{'s' if n > 1 else ''}, warm"
            f"{', CUDA graphs' if report.graphs else ''}",
            columns([[*head, "GFLOP/page", "MB/page"], *rows]),
            f"caching a page once: {report.caching_ms.median:.0f} ms, "
            f"{_three_digits(report.caching_flops / 1e12)} TFLOP; engine over bare tensor "
            f"operations: {_overhead(report.engine_overhead)}",
        ]
    )


def _overhead(share: Spread) -> str:
    within = ", within the noise" if share.q1 <= 0 <= share.q3 else ""
    quartiles = f"quartiles {share.q1:+.1%} to {share.q3:+.1%}, n={share.n}"
    return f"{share.median:+.1%} ({quartiles}){within}"


def _three_digits(value: float) -> str:
    """At least three significant digits, in full: 7534, 74.0, 0.00412."""
    if value <= 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
