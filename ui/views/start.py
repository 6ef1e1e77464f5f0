"""The first screen: what this is, sample queries as buttons, and the pages they are asked of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import gradio as gr

from ui.components import actions, text
from ui.describe import LAYERS_ARE, band, device_name, exit_after, model_name
from ui.markup import MOST_SHOWN, bar, count, esc, note, the_rest
from ui.session import Session
from ui.workbench import Workbench

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

PROMISE = (
    "Ranks document pages for a query with a vision-language model that has read every page "
    "beforehand, and shows why each page scored as it did."
)
_CAUTION = " The model that comes with it is tiny: it finds printed words, not meanings."


def build_header() -> gr.HTML:
    """Name, one line of what this is, and the status strip."""
    return text("header", _header("", ()))


def build_samples(bench: Workbench) -> gr.HTML:
    """Sample queries as buttons; event `sample` with {n}."""
    return actions(["sample"], "samples", samples(bench))


def build_gallery() -> gr.HTML:
    """The pages that can be asked, until there is a ranking."""
    return text("gallery")


def header_before() -> str:
    """The same while there is no engine to tell of."""
    return _header("", (("model", "is being loaded"),))


def header(engine: MiniReranker, n_pages: int) -> str:
    """Heading and status strip. Model names are shown without their folders."""
    config = engine.config
    keep = (
        "all visual tokens"
        if config.keep_ratio == 1.0
        else f"{config.keep_ratio:.0%} of visual tokens"
    )
    facts = (
        ("model", f"{model_name(engine)} on {device_name(engine)}"),
        ("exit", exit_after(engine)),
        ("query reads the page in layers", band(engine)),
        ("keeps", keep),
        ("pages", f"{n_pages:,}"),
    )
    return _header(_CAUTION if model_name(engine) == "tiny-reranker" else "", facts)


def _header(caution: str, facts: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<li>{name} <b>{esc(value)}</b></li>" for name, value in facts)
    strip = f'<ul class="mrr-status" aria-label="Status" title="{LAYERS_ARE}">{items}</ul>'
    return (
        '<header class="mrr mrr-head"><div><h1><span>mini</span>Reranker</h1>'
        f"<p>{esc(PROMISE)}{caution}</p></div>{strip}</header>"
    )


def samples(bench: Workbench, query: str | None = None) -> str:
    """The chips. query: the one that is shown now. Chips carry a number, never their text."""
    queries = sample_queries(bench)
    if not queries:
        return ""
    chips = []
    for n, words in enumerate(queries):
        odd = " (one it gets wrong)" if words == bench.examples.known_failure else ""
        pressed = "true" if words == query else "false"
        chips.append(
            f'<button type="button" class="mrr-chip" data-event="sample" data-n="{n}" '
            f'aria-pressed="{pressed}">{esc(words)}{odd}</button>'
        )
    return f'<div class="mrr mrr-chips"><span>Try</span>{"".join(chips)}</div>'


def sample_queries(bench: Workbench) -> tuple[str, ...]:
    """The samples, and last the one that fails, if it is known."""
    failure = bench.examples.known_failure
    rest = tuple(words for words in bench.examples.samples if words != failure)
    return rest if failure is None else (*rest, failure)


def gallery(bench: Workbench, session: Session) -> str:
    """Every page of the session, its own first, small, in one quiet grid."""
    pages = sorted(bench.pages(session), key=lambda page: not bench.removable(page))
    warms = warming(bench)
    state = "so far" if warms else "ready to be asked"
    if not bench.opening.done:
        state = "stored at an earlier start"
    head = f"<h2>{count(len(pages), 'page')} {state}</h2>" if pages else ""
    cards = "".join(
        f'<figure class="mrr-page" style="margin:0"><img src="{bench.thumbnail(page)}" '
        f'alt="{esc(page.label)}" loading="lazy"><figcaption class="name">{esc(page.label)}'
        "</figcaption></figure>"
        for page in pages[:MOST_SHOWN]
    )
    return (
        f'<section class="mrr">{warms}{head}<div class="mrr-pages">{cards}</div>'
        f"{the_rest([esc(page.label) for page in pages[MOST_SHOWN:]], 'gallery')}</section>"
    )


def still_caching(bench: Workbench) -> str:
    """A sentence while the example pages come in; empty once they are all there."""
    done, total = _cached(bench)
    if done == total:
        return ""
    return (
        f"{done} of {total} example pages are cached so far; rank again in a moment for all of "
        "them."
    )


def warming(bench: Workbench) -> str:
    """That the model is being loaded, then how many example pages are still to be cached."""
    if not bench.opening.done:
        return note("The model is being loaded, which takes a few seconds.")
    done, total = _cached(bench)
    if done == total:
        return ""
    return note(f"Caching the example pages: {done} of {total}. Each is read once.") + bar(
        done / total, "Example pages"
    )


def _cached(bench: Workbench) -> tuple[int, int]:
    """(done, of) the example pages: those that the model that the app began with has read.

    One that cannot be read is done with when all are.
    """
    examples = bench.examples
    if examples.finished:
        return len(examples.pages), len(examples.pages)
    stored = examples.stored(bench.store)
    return len(stored) - len(bench.base.cache.missing(stored)), len(examples.pages)
