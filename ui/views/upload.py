"""Pages: drop files, watch each page being cached, see what is stored, remove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from mrr.config import Limits
from mrr.types import AddedPage, Page
from ui.caching import MAX_SESSION_BYTES, MAX_SESSION_PAGES, Line, Upload
from ui.components import actions, text
from ui.markup import MOST_SHOWN, bar, count, duration, empty, esc, nbytes, note, the_rest
from ui.session import Session
from ui.workbench import Workbench

_STATES = {
    "queued": "queued",
    "encoding": "encoding",
    "cached": "cached",
    "hit": "already cached",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class UploadView:
    """pages: events `remove` and `remove_document` with {page}, and `remove_all`."""

    files: gr.File
    page_range: gr.Textbox
    cancel: gr.Button
    progress: gr.HTML
    store: gr.HTML
    pages: gr.HTML


def build(limits: Limits, kept: bool, hosted: bool) -> UploadView:
    """Drop zone above, what is stored below.

    kept: whether uploads outlive their tab. hosted: whether sessions are limited.
    """
    size = f"{limits.max_file_bytes / 2**20:.4g} MB"
    gr.HTML(
        note(
            "Drop page images (PNG, JPEG, WebP, GIF, TIFF) or PDFs: up to "
            f"{limits.max_files} files at once, {size} and {limits.max_pdf_pages} pages a file. "
            "Each page is read once and can then be asked anything."
            + (
                " They stay in the store until you remove them."
                if kept
                else " Your pages are seen by this browser tab only and removed when it is "
                "closed or reloaded."
            )
            + (
                f" A session may hold {MAX_SESSION_PAGES} pages and upload "
                f"{MAX_SESSION_BYTES / 2**20:.0f} MB in all."
                if hosted
                else ""
            )
        ),
        apply_default_css=False,
    )
    with gr.Row():
        files = gr.File(
            file_count="multiple",
            file_types=None,  # Gradio would refuse the whole drop, in a message that goes away
            type="filepath",
            label="Page images and PDFs",
            height=150,
            elem_id="files",
            scale=3,
        )
        with gr.Column(scale=1, min_width=200):
            page_range = gr.Textbox(
                label="Pages of PDFs and TIFFs",
                placeholder="all, or 1-5, 8",
                info="Set this before dropping the file.",
                max_length=100,
                elem_id="page-range",
            )
            cancel = gr.Button("Cancel", visible=False, elem_id="cancel-upload")
    progress = text("progress")
    store = text("store")
    with gr.Row(elem_classes="mrr-tools"):
        gr.Button("Save CSV", size="sm", elem_id="save-pages", scale=0)
        gr.Button("Save JSON", size="sm", elem_id="save-pages-json", scale=0)
    pages = actions(["remove", "remove_document", "remove_all"], "pages")
    return UploadView(files, page_range, cancel, progress, store, pages)


def progress(work: Upload) -> str:
    """The upload as it goes: a bar, the pace, and one line a page or file."""
    total, closed = len(work.lines), work.n_closed
    states = [line.state for line in work.lines]
    n_hit, n_failed = states.count("hit"), states.count("failed")
    words = [f"{count(work.n_done, 'page')} in"]
    if n_hit:
        words.append(f"{n_hit} already cached")
    if n_failed:
        words.append(f"{n_failed} failed")
    if work.cancelled:
        words.append("cancelled; what was done is kept")
    elif not work.finished:
        words.append(f"{total - closed} to go")
    share = 1.0 if work.finished and not work.cancelled else closed / max(total, 1)
    rows = "".join(_row(line, work.cancelled) for line in work.lines)
    return (
        '<section class="mrr mrr-card"><div class="mrr-row spread">'
        f'<b aria-live="polite">{", ".join(words)}</b>'
        f'<span class="mrr-note mrr-num">{_pace(work)}</span></div>'
        f"{bar(share, 'Pages')}"
        '<div class="mrr-scroll"><table class="mrr-table mrr-steps">'
        "<thead><tr><th>page</th><th>state</th>"
        '<th class="num fact">grid</th><th class="num fact">kept tokens</th>'
        '<th class="num fact">K/V</th>'
        f'<th class="num">time</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _pace(work: Upload) -> str:
    """What a page that is cached now takes, and the pages to go; nothing before there is one."""
    if not work.n_cached:
        return ""
    page_ms = work.cached_s * 1e3 / work.n_cached
    pace = f"{duration(page_ms)} for a page cached now, with decoding and waiting"
    to_go = len(work.lines) - work.n_closed
    if work.finished or work.cancelled or not to_go:
        return pace
    known = any(line.state == "hit" for line in work.lines)  # as those to go may be
    return f"{pace}; {'at most' if known else 'about'} {duration(page_ms * to_go)} left"


def _row(line: Line, cancelled: bool) -> str:
    said = "not read" if cancelled and line.state == "queued" else _STATES[line.state]
    state = f'<span class="mrr-state {line.state}">{said}</span>'
    if line.added is None:
        reason = f'<td colspan="4" class="mrr-note">{esc(line.reason)}</td>'
        return f"<tr><td>{esc(line.label)}</td><td>{state}</td>{reason}</tr>"
    if line.added.page.label != line.label:
        state += f' <span class="mrr-note">as {esc(line.added.page.label)}</span>'
    *known, took = facts(line.added)
    cells = "".join(f'<td class="num fact">{cell}</td>' for cell in known)
    row = f"<td>{esc(line.label)}</td><td>{state}</td>{cells}"
    return f'<tr>{row}<td class="num">{took}</td></tr>'


def facts(added: AddedPage) -> tuple[str, str, str, str]:
    """Grid, kept of visual tokens, K/V bytes, milliseconds."""
    rows, columns = added.grid
    return (
        f"{rows} × {columns}",
        f"{added.n_kept_tokens:,} of {rows * columns:,}",
        nbytes(added.nbytes) if added.note is None else f"not stored. {esc(added.note)}",
        duration(added.elapsed_ms),
    )


def _told(added: AddedPage) -> tuple[str, ...]:
    """The same with words, for a picture's caption."""
    grid, tokens, size, took = facts(added)
    encoded = (f"encoded in {took}",) if added.outcome == "encoded" else ()
    return f"{grid} grid", f"kept {tokens}", f"{size} of K/V", *encoded


def store(bench: Workbench, session: Session) -> str:
    """Size and budget. On a hosted app only this session's share: totals would tell of others."""
    stats = bench.store.stats()
    budget = f"budget {nbytes(stats.budget_bytes)}"
    if bench.hosted:
        pages = bench.pages(session)
        shown = sum(added.nbytes for added in known_pages(bench, session, pages).values())
        line = f"Your pages and the examples take {nbytes(shown)} of K/V; {budget} for everybody."
    else:
        line = (
            f"The store holds {count(stats.n_pages, 'page')}: {nbytes(stats.kv_bytes)} of K/V in "
            f"{count(stats.n_entries, 'entry', 'entries')} and "
            f"{nbytes(stats.picture_bytes)} of pictures; {budget}. "
            f"Since the start: {count(stats.memory_hits + stats.disk_hits, 'cache hit')}, "
            f"{count(stats.misses, 'miss', 'misses')}."
        )
    trouble = f" {stats.note}" if stats.note else ""
    return note(line + trouble)


def known_pages(bench: Workbench, session: Session, pages: Sequence[Page]) -> dict[str, AddedPage]:
    """What caching said of these pages, or, of those from an earlier start, what is stored."""
    cache = bench.engine(session.settings).cache
    as_started = cache.fingerprint == bench.base.cache.fingerprint
    examples = bench.examples.added if as_started else {}
    told = {**examples, **session.added}
    for page in pages:
        if page.page_id not in told and (stored := cache.stored(page)) is not None:
            told[page.page_id] = session.added[page.page_id] = stored
    return {page.page_id: told[page.page_id] for page in pages if page.page_id in told}


def pages(bench: Workbench, session: Session) -> str:
    """Thumbnails of everything stored for this session, its own first."""
    everything = bench.pages(session)
    own = [page for page in everything if bench.removable(page)]
    examples = [page for page in everything if not bench.removable(page)]
    if not everything:
        return empty("Nothing is stored yet. Drop page images or a PDF above.")
    whose = "Kept in the store" if bench.keep_uploads else "Added by you"
    strangers_see = bench.hosted and bench.other_public_pages()
    others = "Examples and other pages of this app" if strangers_see else "Examples"
    if not bench.hosted and not bench.examples.finished:  # which are which is not known yet
        others = "Stored so far"
    return (
        '<section class="mrr">'
        + _group(bench, session, whose, own, removable=True)
        + _group(bench, session, others, examples, removable=False)
        + "</section>"
    )


def _remove_all(bench: Workbench, session: Session, n_own: int) -> str:
    """What removes everything of one's own; it asks once before it does.

    Of the same HTML as the pages: Gradio can lose that a button of its own is to appear, while
    tabs are changing.
    """
    said = "Remove all kept pages" if bench.keep_uploads else "Remove what I added"
    if session.sure:
        said = f"Really remove {count(n_own, 'page')}"
    return (
        '<button type="button" class="mrr-link" id="remove-all" data-event="remove_all">'
        f"{said}</button>"
    )


def _group(
    bench: Workbench, session: Session, title: str, members: Sequence[Page], removable: bool
) -> str:
    """Pages under a title: the first in pictures, the others by name. One's own stand document by
    document, so that one of many pages is removed at once."""
    if not members:
        return ""
    head = f"<h2>{title}, {count(len(members), 'page')}</h2>"
    if not removable:
        return head + _grid(bench, session, members, MOST_SHOWN, "examples")
    head += _remove_all(bench, session, len(members))
    room = MOST_SHOWN
    documents = _documents(members)
    single = [pages[0] for pages in documents.values() if len(pages) == 1]
    if single:
        head += _grid(bench, session, single, room, "single", removable)
        room = max(0, room - len(single))
    for source, pages in documents.items():
        if len(pages) > 1:
            head += _document_head(source, pages)
            head += _grid(bench, session, pages, room, f"document {source}", removable)
            room = max(0, room - len(pages))
    return head


def _documents(members: Sequence[Page]) -> dict[str, list[Page]]:
    """Pages by the file that they came from, in the order of its first page."""
    found: dict[str, list[Page]] = {}
    for page in members:
        found.setdefault(page.source, []).append(page)
    return found


def _document_head(source: str, pages: Sequence[Page]) -> str:
    return (
        f'<div class="mrr-row mrr-document"><h3>{esc(source)}, {count(len(pages), "page")}</h3>'
        '<button type="button" class="mrr-link" data-event="remove_document" '
        f'data-page="{pages[0].page_id}" aria-label="Remove document {esc(source)}">'
        "Remove document</button></div>"
    )


def _grid(
    bench: Workbench,
    session: Session,
    pages: Sequence[Page],
    room: int,
    key: str,
    removable: bool = False,
) -> str:
    """room: how many pictures there is room for."""
    shown, rest = pages[:room], pages[room:]
    known = known_pages(bench, session, shown)
    cards = "".join(_card(bench, page, known.get(page.page_id), removable) for page in shown)
    lines = [f"{esc(page.label)} {_remove(page) if removable else ''}" for page in rest]
    grid = f'<div class="mrr-pages">{cards}</div>' if shown else ""
    return grid + the_rest(lines, key, begun=bool(shown))


def _remove(page: Page) -> str:
    return (
        f'<button type="button" class="mrr-link" data-event="remove" data-page="{page.page_id}" '
        f'aria-label="Remove {esc(page.label)}">Remove</button>'
    )


def _card(bench: Workbench, page: Page, added: AddedPage | None, removable: bool) -> str:
    button = _remove(page) if removable else ""
    told = "" if added is None else "<br>".join(_told(added))
    return (
        f'<figure class="mrr-page" style="margin:0"><img src="{bench.thumbnail(page)}" '
        f'alt="{esc(page.label)}" loading="lazy"><figcaption><div class="name">{esc(page.label)}'
        f'</div><div class="facts">{told}</div>{button}</figcaption></figure>'
    )
