"""What is said over a ranking: how it went, what is still to come, what the baseline costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrr.types import SYSTEM_NAMES, System
from ui.describe import embedder_name
from ui.markup import bar, count, duration, esc, nbytes, note, shortened
from ui.run import Run
from ui.session import Settings

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

_BASELINES: dict[System, str] = {
    "original": "<b>original</b>: page and query through every layer, for every query anew.",
    "dense-reuse": "<b>dense + reuse</b>: every token and layer, but each page's K/V is kept.",
}
_EVEN = 0.5  # as likely yes as no
# What a query waits for.
BUSY = "The models are busy: encoding, a dense pass or a measurement."
LOADING = "The model is being loaded, which takes a few seconds."
FIRST_PAGE = "The first example page is being read."


def summary(run: Run | None, *more: str) -> str:
    """One line over the ranking: how many, how fast; the times of its stages are folded.

    more: sentences about what is not in it, empty where there is nothing to say.
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
    each = f"{duration(run.mini_page_ms)} a page" if len(mini) else "Times"
    gone = f"{run.n_removed} of them removed since; the others moved up."
    said = (*mini.notes, gone if run.n_removed else "", _unread(run), *more)
    notes = "".join(f'<p class="mrr-note">{esc(text)}</p>' for text in said if text)
    return (
        f'<div class="mrr" data-asked="{esc(run.query)}">'
        f'<p><b class="mrr-num">{count(n_ranked, "page")}</b> '
        f"ranked for <b>“{shortened(run.query)}”</b> in "
        f'<b class="mrr-num" id="took">{duration(usage.total_ms)}</b></p>'
        f'{_unlikely(run)}{notes}<details class="mrr-note" data-key="times">'
        f"<summary>{each}{encoded}</summary>"
        f"{stages}{read}. Single run.{chosen}</details></div>"
    )


def _unread(run: Run) -> str:
    """What of an upload that was going on is not in the ranking."""
    if run.unread is None:
        return ""
    n_read, n_pages = run.unread
    return (
        f"{n_read} of {count(n_pages, 'page')} of your upload had been read by then; the others "
        "are not in this ranking. Rank again for them."
    )


def earlier(run: Run, now: MiniReranker, settings: Settings) -> str:
    """That a ranking is of other settings than those in force, and of which.

    now, settings: what is in force.
    """
    parts = [run.described]
    if run.embedder != embedder_name(now):
        parts.append(f"embedder {run.embedder or 'none'}")
    if run.settings.top_k != settings.top_k:
        parts.append(count(run.settings.top_k, "candidate"))
    if run.instruction != now.config.instruction:
        parts.append(f"instruction “{run.instruction}”")
    return (
        f"Ranked with: {', '.join(parts)}. Other settings are in force now: press Rank for a "
        "ranking with those; what they lack is then encoded first."
    )


def under_way(done: int, total: int, of_upload: bool) -> str:
    """One line on the Rank tab while pages are encoded in another panel."""
    if of_upload:
        return note(f"Your upload is being read: {done} of {count(total, 'page')} done.")
    return note(
        f"Apply encodes the pages for the new settings: {done} of {count(total, 'page')} done."
    )


def _unlikely(run: Run) -> str:
    """That even the first page is more likely not what was asked for; empty where it is not so."""
    if not run.mini.hits or (best := run.mini.hits[0].score) >= _EVEN:
        return ""
    return f"<p>No page looks relevant: the best has {best:.3f}, and 0.5 would be even.</p>"


def waiting(shown: Run | None, query: str, for_what: str = BUSY) -> str:
    """In the place of the summary while something else has to be done before a query."""
    words = f'<p class="mrr mrr-note">{for_what} “{shortened(query)}” comes next.</p>'
    return words + _still(shown)


def encoding(done: int, total: int, shown: Run | None, stopped: bool = False) -> str:
    """Progress of what a ranking needs first, in the place of its summary.

    shown: the ranking before, which stays on the screen.
    """
    if stopped:
        words = note(f"Stopped after {done} of {total}. Rank again to go on from there.")
        return words + _still(shown)
    head = "Ranking…" if done == total else f"Encoding page {done + 1} of {total}"
    words = note(f"{head}. These settings had not read the candidates yet.")
    return words + bar(done / total, "Pages") + _still(shown)


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
            f"{bar(len(run.dense) / n, f'Pages scored by {name}', 'dense')}</div>"
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
