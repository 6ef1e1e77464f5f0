"""Reports as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from mrr.measure.ablation import AblationRow
from mrr.measure.evaluate import EvalReport, Quality
from mrr.measure.metrics import MEASURES, Estimate

# What the figures are, as mrr.measure.metrics computes them.
_HOW = (
    "Intervals are 95%, from a bootstrap over queries. What is kept is a ratio of means, with "
    "queries drawn in pairs.\nTau is over all candidates. NDCG has linear gains. KB is 1,000 bytes."
    "\nQuery ms are of all candidates together; what caching them takes is not in them."
)


def eval_table(report: EvalReport) -> str:
    """Systems and anchors, one line each, with what was compared and what it cost."""
    head = ["system", *MEASURES, "median query ms"]
    body = [_quality_row(each) for each in (*report.systems, *report.anchors)]
    kinds = [
        [f"{each.name}: {kind} ({estimates['mrr'].n})", *map(_mean, estimates.values()), ""]
        for each in report.systems
        if len(each.by_kind) > 1
        for kind, estimates in each.by_kind.items()
    ]
    lines = [
        f"{report.dataset}: {_asked(report)}, {report.n_candidates} candidates each, "
        f"{report.n_pages} pages, {report.mode}, seed {report.seed}",
        f"{report.model} on {report.machine}",
        "",
        columns([head, *body, *kinds]),
        "",
        *(f"ndcg@5 of {each.name}: {each.metrics['ndcg@5']}" for each in report.systems),
    ]
    if report.first_stage_recall_at_20 is not None:
        lines.append(f"first stage, recall@20 of all pages: {report.first_stage_recall_at_20}")
    for comparison in report.comparisons:
        agreed = comparison.agreement
        lines.append(
            f"{comparison.system} against {comparison.reference}: keeps "
            f"{_kept(comparison.ndcg_kept)} of ndcg@5, Kendall tau {agreed.kendall_tau}, "
            f"same first page {agreed.top_1.value:.0%}, overlap@5 {agreed.overlap_at_5.value:.0%}"
        )
    return "\n".join([*lines, _caching_line(report), *report.notes, _HOW])


def _asked(report: EvalReport) -> str:
    asked, labelled = report.n_queries, report.n_labelled_queries
    of = f" of {labelled}" if asked < labelled else ""
    return f"{asked}{of} {'query' if labelled == 1 else 'queries'}"


def ablation_table(rows: Sequence[AblationRow]) -> str:
    """One line a configuration."""
    head = [
        "configuration",
        "ndcg@5",
        "of dense",
        "tau",
        "same first",
        "KB a page",
        "median query ms",
    ]
    body = []
    for row in rows:
        versus = row.against_dense
        body.append(
            [
                row.name,
                str(row.metrics["ndcg@5"]),
                _kept(versus.ndcg_kept) if versus else "",
                _mean(versus.agreement.kendall_tau) if versus else "",
                f"{versus.agreement.top_1.value:.0%}" if versus else "",
                f"{row.nbytes_per_page / 1000:,.0f}",
                f"{row.query_ms.median:.1f}",
            ]
        )
    return columns([head, *body])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def _quality_row(quality: Quality) -> list[str]:
    ms = f"{quality.query_ms.median:.1f}" if quality.query_ms else ""
    return [quality.name, *map(_mean, quality.metrics.values()), ms]


def _caching_line(report: EvalReport) -> str:
    cost = report.caching
    ms = cost.page_ms
    per_page = f"median {ms.median:.0f} ms a page" if ms else "all were cached before"
    return (
        f"cached {cost.n_encoded} of {cost.n_pages} pages in {cost.wall_s:.1f} s ({per_page}), "
        f"{cost.nbytes_per_page / 1000:,.0f} KB a page"
    )


def _mean(estimate: Estimate) -> str:
    return f"{estimate.value:.3f}"


def _kept(estimate: Estimate | None) -> str:
    if estimate is None:
        return "n/a"
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"
