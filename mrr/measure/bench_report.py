"""What `mrr bench` found: three systems side by side, and the table of it."""

from __future__ import annotations

from dataclasses import dataclass

from mrr.config import layer_range


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one query over all candidates: median and quartiles of n repeats."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    n: int


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system. per_page: share of one candidate. flops: of one candidate, by arithmetic."""

    system: str
    candidates: int
    timing: Timing
    per_page_ms: float
    flops_per_page: float
    bytes_per_page: int


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything that was measured, and on what. graphs: the cached systems were CUDA graphs."""

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
    caching_ms: Timing
    caching_flops: float
    bare_ms: Timing
    engine_overhead: float
    graphs: bool


def table(report: BenchReport) -> str:
    """The report as text, ratios included."""
    original, dense = report.systems[0].per_page_ms, report.systems[1].per_page_ms
    lines = [
        f"{report.model}, {report.dtype} on {report.device}, {report.threads} threads; "
        f"page of {report.n_visual_tokens} visual tokens, {report.n_kept_tokens} kept, query of "
        f"{report.n_suffix_tokens}; band layers {layer_range(report.band)}, exit after layer "
        f"{report.exit_layer - 1}; {report.systems[-1].candidates} candidates, warm"
        f"{', CUDA graphs' if report.graphs else ''}",
        f"{'system':14}{'ms/query':>12}{'(quartiles)':>22}{'ms/page':>11}{'vs original':>13}"
        f"{'vs dense':>10}{'GFLOP/page':>12}{'MB/page':>9}",
    ]
    for s in report.systems:
        spread = f"({s.timing.q1_ms:.1f} - {s.timing.q3_ms:.1f}, n={s.timing.n})"
        lines.append(
            f"{s.system:14}{s.timing.median_ms:12.1f}{spread:>22}{s.per_page_ms:11.2f}"
            f"{original / s.per_page_ms:12.1f}x{dense / s.per_page_ms:9.2f}x"
            f"{s.flops_per_page / 1e9:12.1f}{s.bytes_per_page / 1e6:9.2f}"
        )
    lines.append(
        f"caching a page once: {report.caching_ms.median_ms:.0f} ms, "
        f"{report.caching_flops / 1e12:.2f} TFLOP; engine over bare tensor operations: "
        f"{report.engine_overhead:+.1%}"
    )
    return "\n".join(lines)
