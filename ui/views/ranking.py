"""The ranking: mini and dense as one list, side by side, or as a table of numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import gradio as gr

from mrr.explain.verdict import signed
from mrr.types import SYSTEM_NAMES, Hit, System
from ui.components import actions, text
from ui.markup import bar, count, duration, empty, esc, nbytes, note, shortened
from ui.session import Run, Session, View
from ui.views import start
from ui.views.ranking_table import moved, retrieval_ranks, table
from ui.workbench import Workbench, dense_list, dense_ranks

VIEWS: tuple[View, ...] = ("List", "Side by side", "Table")


_SHARE = "mini takes all pages through the band together: an even share of the query's time"
_BASELINES: dict[System, str] = {
    "original": "<b>original</b>: page and query through every layer, for every query anew.",
    "dense-reuse": "<b>dense + reuse</b>: every token and layer, but each page's K/V is kept.",
}


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


def summary(run: Run | None, waiting: str = "") -> str:
    """One line over the ranking: how many, how fast, from where.

    waiting: a sentence about pages that are still to come.
    """
    if run is None:
        return ""
    usage, mini = run.mini.usage, run.mini
    encoded = f", {count(usage.missed_pages, 'page')} encoded first" if usage.missed_pages else ""
    read = f", {nbytes(usage.bytes_read)} read" if usage.bytes_read else ""
    stages = " + ".join(f"{name} {duration(ms)}" for name, ms in usage.ms.items())
    n_ranked = len(mini) + run.n_removed
    cut = (
        n_ranked == run.settings.top_k
        and len(mini) > 0
        and mini.hits[0].retrieval_score is not None
    )
    chosen = " Chosen by the first stage; Settings holds how many (Candidates)." if cut else ""
    each = f" {duration(run.mini_page_ms)} a page." if len(mini) else ""
    gone = f"{run.n_removed} of them removed since; the others moved up."
    said = (*mini.notes, *([gone] if run.n_removed else []), *([waiting] if waiting else []))
    notes = "".join(f'<p class="mrr-note">{esc(text)}</p>' for text in said)
    return (
        f'<div class="mrr" aria-live="polite"><p><b class="mrr-num">{count(n_ranked, "page")}</b> '
        f"ranked for <b>“{shortened(run.query)}”</b> in"
        f' <b class="mrr-num" id="took">'
        f"{duration(usage.total_ms)}</b></p>"
        f'<p class="mrr-note">{stages}{encoded}{read}.{each} Single run.{chosen}</p>'
        f"{notes}</div>"
    )


def waiting(shown: Run | None) -> str:
    """In the place of the summary while something else runs the models."""
    busy = "The models are busy: encoding, a dense pass or a measurement. This comes next."
    return note(busy) + _still(shown)


def encoding(done: int, total: int, shown: Run | None, stopped: bool = False) -> str:
    """Progress of what a ranking needs first, in the place of its summary.

    shown: the ranking before, which stays on the screen.
    """
    if stopped:
        words = note(f"Stopped after {done} of {total}. Rank again to go on from there.")
        return words + _still(shown)
    head = "Ranking…" if done == total else f"Encoding page {done + 1} of {total}"
    words = note(f"{head}. These settings had not read the candidates yet.")
    return words + bar(done / total) + _still(shown)


def _still(shown: Run | None) -> str:
    """What the list below is meanwhile."""
    if shown is None:
        return ""
    said = f"Below is still the ranking for “{shortened(shown.query)}” as it was made before."
    return f'<p class="mrr mrr-note"><b>{said}</b></p>'


def compare_label(run: Run) -> str:
    """What the button of the dense baseline would do."""
    return "Compare again" if run.dense_done else "Go on" if run.dense else "Compare"


def estimate(run: Run | None, seconds: float | None, running: bool = False) -> str:
    """What the dense comparison costs, before it is asked for, and how it goes."""
    if run is None or not run.mini.hits:
        return ""
    n, name = len(run.mini.hits), SYSTEM_NAMES[run.dense_system]
    if running:
        return (
            f'<div class="mrr"><p class="mrr-note">{name}: page {len(run.dense)} of {n}, '
            f"{duration(run.dense_ms)} so far. mini does not wait for it.</p>"
            f"{bar(len(run.dense) / n, 'dense')}</div>"
        )
    if run.dense_done:
        ratio = run.dense_ms / run.mini_ms
        caching = run.caching_ms.get(run.dense_system, 0.0)
        once = f", after {duration(caching)} of caching, not counted" if caching else ""
        return (
            f'<p class="mrr mrr-note">{name} took {duration(run.dense_ms)} for the same pages'
            f"{once}, about {float(f'{ratio:.2g}'):g} × mini. One run each, page by page; for a "
            "fair figure press Measure under Latency.</p>"
        )
    cost = (
        "Its cost is known after the first page."
        if seconds is None
        else f"It would take about {duration(seconds * 1e3)} for "
        f"{count(n - len(run.dense), 'page')}, judging by what was measured here."
    )
    part = f"Stopped after {len(run.dense)} of {n}. " if run.dense else ""
    return f'<p class="mrr mrr-note">{_BASELINES[run.dense_system]} {part}{cost}</p>'


def hits(
    bench: Workbench, session: Session, view: View = "List", only_changes: bool = False
) -> str:
    """The ranking itself."""
    run = session.run
    if run is None:
        return empty("Type a query, or try one of the samples.")
    if not run.mini.hits:
        return empty(start.still_caching(bench) or "No pages yet. Add some under Pages.")
    ranks = dense_ranks(run)
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
        return table(run, shown, ranks, selected)
    if view == "Side by side":
        return _side_by_side(bench, run, shown, selected, session.comparing)
    items = "".join(
        _card(bench, hit, run, ranks, hit.page.page_id == selected, relevant) for hit in shown
    )
    return f'<ol class="mrr mrr-hits" aria-label="Ranked pages">{items}</ol>'


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
    facts.append(f"kept {share:.0%} of {hit.n_visual_tokens:,} tokens · {took}")
    if hit.retrieval_score is not None:
        before = retrieval_ranks(run)[page.page_id]
        facts.append(f"first stage rank {before} ({hit.retrieval_score:.3f})")
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
        f'<span class="track"><span class="fill" style="width:{100 * hit.score:.1f}%"></span>'
        f'</span><span class="value"><b>{hit.score:.3f}</b> '
        f'<span class="name">logit {signed(hit.logit)}</span></span></div>'
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
    finished = dense_list(run)
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
    ranks = dense_ranks(run)
    right = "".join(
        _small(bench, hit, "mini", selected, ranks.get(hit.page.page_id)) for hit in shown
    )
    name = SYSTEM_NAMES[run.dense_system]
    hint = "" if run.dense else ' <span class="mrr-note">not run yet</span>'
    return (
        f'<div class="mrr mrr-pair"><div><h3>{name}{hint}</h3><ol class="mrr-hits">{left}'
        f'</ol></div><div><h3 class="mini">mini</h3><ol class="mrr-hits">{right}</ol></div></div>'
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
        f'<div class="title">{esc(hit.page.label)}</div><div class="mrr-facts"><b>{hit.score:.3f}'
        f"</b><span>logit {signed(hit.logit)}</span>{change}</div></div></li>"
    )
