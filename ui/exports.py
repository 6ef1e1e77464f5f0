"""Tables as CSV and JSON. They are saved by the browser; the server writes no file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mrr.errors import InputRejected
from mrr.types import SYSTEM_NAMES
from ui.components import File
from ui.explaining import known_lenses
from ui.run import Run
from ui.session import Session
from ui.views.upload import known_pages
from ui.workbench import Workbench

if TYPE_CHECKING:
    from mrr.measure.latency import CachingLatency, SystemLatency

Row = Mapping[str, object]
# A spreadsheet runs what begins so; a quote before it makes it text. Numbers are never strings.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(name: str, rows: Sequence[Row]) -> File:
    """name.csv with a header line, safe to open in a spreadsheet."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return File(f"{name}.csv", "text/csv", text.getvalue())


def as_json(name: str, content: Any) -> File:
    """name.json, readable."""
    text = json.dumps(content, ensure_ascii=False, indent=2)
    return File(f"{name}.json", "application/json", text)


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value


def ranking_rows(run: Run) -> list[Row]:
    """One row a candidate, with the dense system where it has run."""
    ranks = run.dense_ranks
    return [
        {
            "rank": hit.rank,
            "page": hit.page.label,
            "source": hit.page.source,
            "page_num": hit.page.page_num,
            "page_id": hit.page.page_id,
            "score": hit.score,
            "logit": hit.logit,
            "first_stage": hit.retrieval_score,
            "visual_tokens": hit.n_visual_tokens,
            "kept_tokens": hit.n_kept_tokens,
            "ms_even_share": run.mini_page_ms,
            "dense_system": SYSTEM_NAMES[run.dense_system] if run.dense else None,
            "dense_rank": ranks.get(hit.page.page_id),
            "dense_logit": dense.logit if (dense := run.dense.get(hit.page.page_id)) else None,
            "dense_ms": run.dense_took_ms.get(hit.page.page_id),
        }
        for hit in run.mini.hits
    ]


def run_record(run: Run) -> dict[str, object]:
    """A whole run: query, settings, cost and candidates."""
    usage = run.mini.usage
    return {
        "query": run.query,
        "time": run.started,
        "settings": run.described,
        "candidates_asked_for": run.settings.top_k,
        "instruction": run.instruction,
        "embedder": run.embedder,
        "mini_ms": dict(usage.ms),
        "cached_pages": usage.cached_pages,
        "missed_pages": usage.missed_pages,
        "bytes_read": usage.bytes_read,
        "dense_ms": run.dense_ms if run.dense_done else None,
        "notes": list(run.mini.notes),
        "candidates": ranking_rows(run),
    }


def page_rows(bench: Workbench, session: Session) -> list[Row]:
    """One row a page that the session sees."""
    pages = bench.pages(session)
    known = known_pages(bench, session, pages)
    rows: list[Row] = []
    for page in pages:
        added = known.get(page.page_id)
        rows.append(
            {
                "page": page.label,
                "source": page.source,
                "page_num": page.page_num,
                "page_id": page.page_id,
                "width": page.width,
                "height": page.height,
                "grid_rows": added.grid[0] if added else None,
                "grid_columns": added.grid[1] if added else None,
                "kept_tokens": added.n_kept_tokens if added else None,
                "kv_bytes": added.nbytes if added else None,
                "ms": round(added.elapsed_ms, 2) if added else None,
            }
        )
    return rows


def layer_rows(session: Session) -> list[Row]:
    """One row a candidate and layer; dense is empty where no full pass was traced."""
    run, lenses = session.run, known_lenses(session)
    if run is None or not lenses:
        raise InputRejected("No layers are traced yet. Trace a page first.")
    names = {hit.page.page_id: hit.page.label for hit in run.mini.hits}
    return [
        {
            "page": names[page_id],
            "page_id": page_id,
            "layer": layer,
            "mini_logit": float(lens.mini[layer]) if layer < len(lens.mini) else None,
            "dense_logit": None if lens.dense is None else float(lens.dense[layer]),
        }
        for page_id, lens in lenses.items()
        for layer in range(len(lens.mini if lens.dense is None else lens.dense))
    ]


def latency_rows(session: Session) -> list[Row]:
    """One row a system and stage of the last measurement, and one for each total.

    once: "query" for what a query costs, "page" for what caching a page costs, once.
    """
    report = session.latency
    if report is None:
        raise InputRejected("Nothing is measured yet. Press Measure first.")
    parts: list[tuple[str, SystemLatency | CachingLatency, int | None, int]] = [
        *(("query", each, report.n_candidates, each.n_measured) for each in report.systems),
        *(("page", each, None, each.n_pages) for each in report.caching),
    ]
    return [
        {
            "system": SYSTEM_NAMES[each.system],
            "once": once,
            "stage": stage,
            "median_ms": spread.median,
            "q1_ms": spread.q1,
            "q3_ms": spread.q3,
            "candidates": candidates,
            "pages_timed": n_pages,
            "repeats": spread.n,
        }
        for once, each, candidates, n_pages in parts
        for stage, spread in [(s.stage, s.ms) for s in each.stages] + [("total", each.total)]
    ]
