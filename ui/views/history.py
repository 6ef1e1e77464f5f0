"""History: the queries of this session with the settings they ran under; a click reopens one."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from mrr.types import SYSTEM_NAMES
from ui.components import actions
from ui.markup import duration, empty, esc, shortened
from ui.run import Run
from ui.session import Session


@dataclass(frozen=True, slots=True)
class HistoryView:
    """runs: event `reopen` with {n}."""

    runs: gr.HTML


def build() -> HistoryView:
    """A table and its exports."""
    runs = actions(["reopen"], "history")
    with gr.Row(elem_classes="mrr-tools"):
        gr.Button("Save CSV", size="sm", elem_id="save-history-csv", scale=0)
        gr.Button("Save JSON", size="sm", elem_id="save-history-json", scale=0)
    return HistoryView(runs)


def rows(session: Session) -> list[dict[str, object]]:
    """One row a run, oldest first."""
    return [
        {
            "time": run.started,
            "query": run.query,
            "settings": run.described,
            "instruction": run.instruction,
            "embedder": run.embedder,
            "candidates": len(run.mini),
            "first_page": run.mini.hits[0].page.label if run.mini.hits else "",
            "mini_ms": round(run.mini.usage.total_ms, 2),
            "dense_system": SYSTEM_NAMES[run.dense_system] if run.dense_done else "",
            "dense_ms": round(run.dense_ms, 2) if run.dense_done else "",
        }
        for run in session.runs
    ]


def _baseline(run: Run) -> str:
    if not run.dense_done:
        return ""
    return f"{SYSTEM_NAMES[run.dense_system]}, {duration(run.dense_ms)}"


def runs(session: Session) -> str:
    """The table, newest first."""
    if not session.runs:
        return empty("No queries in this session yet. The last 200 are kept here.")
    head = (
        "<th>time</th><th>query</th><th>first page</th><th class='num'>mini</th>"
        "<th>baseline</th>"
        "<th class='wide'>settings</th>"
    )
    body = "".join(
        f'<tr><td class="mrr-num">{esc(run.started[11:19])}</td><td><button type="button" '
        f'class="mrr-link" data-event="reopen" data-n="{n}">{shortened(run.query)}</button></td>'
        f"<td>{esc(run.mini.hits[0].page.label) if run.mini.hits else ''}</td>"
        f'<td class="num">{duration(run.mini.usage.total_ms)}</td><td>{_baseline(run)}</td>'
        f'<td class="mrr-note wide">{esc(run.described)}</td></tr>'
        for n, run in reversed(list(enumerate(session.runs)))
    )
    return (
        '<div class="mrr mrr-scroll"><table class="mrr-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
