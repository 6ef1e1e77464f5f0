"""The ranking: mini and dense as one list, side by side, or as a table of numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import gradio as gr

from mrr.explain.verdict import signed
from mrr.types import SYSTEM_NAMES, Hit
from ui.components import actions, text
from ui.markup import duration, empty, esc
from ui.run import Run
from ui.session import Session, View
from ui.terms import glossary, title
from ui.views import start
from ui.views.ranking_table import moved, retrieval_ranks, table
from ui.workbench import Workbench

VIEWS: tuple[View, ...] = ("List", "Side by side", "Table")
_SHARE = "mini takes all pages through the band together: an even share of the query's time"


@dataclass(frozen=True, slots=True)
class RankingView:
    """hits: events `pick` and `tick`, both with {page}."""

    summary: gr.HTML
    halt: gr.Button
    hits: gr.HTML
    view: gr.Radio
    only_changes: gr.Checkbox
    system: gr.Radio
    compare: gr.Button
    stop: gr.Button
    estimate: gr.HTML


def build() -> RankingView:
    """The results column."""
    summary = text("summary")
    halt = gr.Button("Stop encoding", size="sm", visible=False, elem_id="halt")
    with gr.Row(elem_classes="mrr-tools"):
        view = gr.Radio(
            list(VIEWS), value="List", label="Show as", show_label=False, container=False,
            elem_classes="mrr-seg", elem_id="ranking-view", min_width=210, scale=0,
        )  # fmt: skip
        only_changes = gr.Checkbox(
            False, label="Only where they differ", container=False, elem_id="only-changes",
            min_width=180, scale=0, visible=False,
        )  # fmt: skip
    with gr.Row(elem_classes="mrr-tools mrr-dense-bar"):
        gr.HTML('<span class="mrr-note">Baseline</span>', apply_default_css=False)
        system = gr.Radio(
            [("original", "original"), ("dense + reuse", "dense-reuse")], value="original",
            label="Dense baseline", show_label=False, container=False, elem_classes="mrr-seg",
            elem_id="dense-system", min_width=200, scale=0,
        )  # fmt: skip
        compare = gr.Button("Compare", size="sm", elem_id="compare", scale=0)
        stop = gr.Button("Stop", size="sm", visible=False, elem_id="stop-dense", scale=0)
    estimate = text("estimate")
    hits = actions(["pick", "tick"], "hits")
    with gr.Row(elem_classes="mrr-tools"):
        gr.Button("Save CSV", size="sm", elem_id="save-csv", scale=0)
        gr.Button("Save JSON", size="sm", elem_id="save-json", scale=0)
        gr.Button("Save HTML report", size="sm", elem_id="save-report", scale=0)
    return RankingView(summary, halt, hits, view, only_changes, system, compare, stop, estimate)


def hits(
    bench: Workbench, session: Session, view: View = "List", only_changes: bool = False
) -> str:
    """The ranking itself."""
    run = session.run
    if run is None:
        return empty("Type a query, or try one of the samples.")
    if not run.mini.hits:
        return empty(start.still_caching(bench) or "No pages yet. Add some under Pages.")
    ranks = run.dense_ranks
    shown = [
        hit
        for hit in run.mini.hits
        if not (only_changes and ranks) or ranks[hit.page.page_id] != hit.rank
    ]
    if not shown:
        return empty("Both systems rank every page the same.")
    relevant = bench.relevant(session, run.query)
    selected = session.selected
    if view == "Table":
        return glossary("Score") + table(run, shown, ranks, selected)
    if view == "Side by side":
        return _side_by_side(bench, run, shown, selected, session.comparing)
    items = "".join(
        _card(bench, hit, run, ranks, hit.page.page_id == selected, relevant) for hit in shown
    )
    return f'{glossary()}<ol class="mrr mrr-hits" aria-label="Ranked pages">{items}</ol>'


def _card(
    bench: Workbench,
    hit: Hit,
    run: Run,
    ranks: dict[str, int],
    selected: bool,
    relevant: Collection[str],
) -> str:
    page, dense = hit.page, run.dense.get(hit.page.page_id)
    ticked = page.page_id in relevant
    meters = _meter("mini", hit)
    facts = []
    if dense is not None:
        meters += _meter(SYSTEM_NAMES[run.dense_system], dense)
        took = f" · {duration(run.dense_took_ms[page.page_id])}"
        name = SYSTEM_NAMES[run.dense_system]
        facts.append(_change(hit.rank, ranks.get(page.page_id), name) + took)
    share = hit.n_kept_tokens / hit.n_visual_tokens
    took = f'<span class="mrr-took" title="{_SHARE}">{duration(run.mini_page_ms)}</span>'
    kept = f"kept {share:.0%} of {hit.n_visual_tokens:,} tokens"
    facts.append(f"<span {title('token')}>{kept}</span> · {took}")
    if hit.retrieval_score is not None:
        before = retrieval_ranks(run)[page.page_id]
        said = f"first stage rank {before} ({hit.retrieval_score:.3f})"
        facts.append(f"<span {title('first stage')}>{said}</span>")
    spans = "".join(f"<span>{fact}</span>" for fact in facts)
    return (
        f'<li class="mrr-hit{" is-selected" if selected else ""}" data-item="{page.page_id}">'
        f"{_cover(hit, selected)}{_thumb(bench, hit, 'mini')}<div>"
        f'<div class="title">{esc(page.label)}</div>{_source(hit)}{meters}'
        f'<div class="mrr-row spread"><div class="mrr-facts">{spans}</div>'
        f'<button type="button" class="mrr-tick" data-event="tick" data-page="{page.page_id}" '
        'title="Your judgement, for the metrics under History. The examples come with labels." '
        f'aria-pressed="{str(ticked).lower()}">{"☑ relevant" if ticked else "☐ relevant"}</button>'
        "</div></div></li>"
    )


def _cover(hit: Hit, selected: bool) -> str:
    """The button over a whole card, so that it is one target for finger and keyboard."""
    return (
        f'<button type="button" class="cover" data-event="pick" data-page="{hit.page.page_id}" '
        f'aria-pressed="{str(selected).lower()}" aria-label="Rank {hit.rank}: '
        f'{esc(hit.page.label)}. Show why."></button>'
    )


def _thumb(bench: Workbench, hit: Hit, system: str) -> str:
    kind = "" if system == "mini" else " dense"
    picture = bench.thumbnail(hit.page)
    return (
        f'<div class="mrr-thumb"><img src="{picture}" alt="{esc(hit.page.label)}">'
        f'<span class="mrr-rank{kind}">{hit.rank}</span></div>'
    )


def _source(hit: Hit) -> str:
    page = hit.page
    if page.label.startswith(page.source):
        return ""
    return f'<div class="source">{esc(page.source)}</div>'


def _meter(system: str, hit: Hit) -> str:
    kind = "" if system == "mini" else " dense"
    return (
        f'<div class="mrr-meter{kind}"><span class="name">{system}</span>'
        f'<span class="track" role="meter" aria-label="{system}: probability of yes" '
        f'aria-valuemin="0" aria-valuemax="1" aria-valuenow="{hit.score:.3f}">'
        f'<span class="fill" style="width:{100 * hit.score:.1f}%"></span>'
        f'</span><span class="value"><b {title("score")}>{hit.score:.3f}</b> '
        f'<span class="name" {title("logit")}>logit {signed(hit.logit)}</span></span></div>'
    )


def _change(mini_rank: int, dense_rank: int | None, name: str) -> str:
    """Where mini puts the page against a dense system, in words with an arrow. Neither colour nor
    arrow says who is right: that takes labels."""
    if dense_rank is None:
        return f'<span class="mrr-same">{name} rank when all are done</span>'
    return (
        f'<span class="mrr-same">{name} rank {dense_rank}, {moved(dense_rank - mini_rank)}</span>'
    )


def _side_by_side(
    bench: Workbench, run: Run, shown: list[Hit], selected: str | None, running: bool
) -> str:
    """Dense on the left in grey, mini on the right in colour; the same selection on both.

    running: the dense system is at work, so what it has not scored is still to come.
    """
    keep = {hit.page.page_id for hit in shown}
    finished = run.dense_list
    if finished is not None:
        left = "".join(
            _small(bench, hit, "dense", selected) for hit in finished if hit.page.page_id in keep
        )
    else:
        waiting = len(shown) - len(run.dense)
        done = "".join(
            f'<li class="mrr-note">{esc(hit.page.label)}: logit {signed(hit.logit)}</li>'
            for hit in run.dense.values()
        )
        rest = '<li class="mrr-skeleton" aria-hidden="true"></li>' * max(waiting, 0)
        if not running:
            rest = f'<li class="mrr-note">{waiting} not scored</li>' if run.dense else ""
        left = done + rest
    ranks = run.dense_ranks
    right = "".join(
        _small(bench, hit, "mini", selected, ranks.get(hit.page.page_id)) for hit in shown
    )
    name = SYSTEM_NAMES[run.dense_system]
    hint = "" if run.dense else ' <span class="mrr-note">not run yet</span>'
    return (
        f'{glossary("Score")}<div class="mrr mrr-pair"><div><h2>{name}{hint}</h2>'
        f'<ol class="mrr-hits">{left}'
        f'</ol></div><div><h2 class="mini">mini</h2><ol class="mrr-hits">{right}</ol></div></div>'
    )


def _small(
    bench: Workbench, hit: Hit, system: str, selected: str | None, other: int | None = None
) -> str:
    """A card of the side-by-side view. other: the page's rank on the other side, where known."""
    chosen = hit.page.page_id == selected
    change = "" if other is None else f"<span>{moved(other - hit.rank)}</span>"
    return (
        f'<li class="mrr-hit{" is-selected" if chosen else ""}" data-item="{hit.page.page_id}">'
        f"{_cover(hit, chosen)}{_thumb(bench, hit, system)}<div>"
        f'<div class="title">{esc(hit.page.label)}</div><div class="mrr-facts">'
        f"<b {title('score')}>{hit.score:.3f}</b><span {title('logit')}>"
        f"logit {signed(hit.logit)}</span>{change}</div></div></li>"
    )
