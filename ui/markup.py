"""Small pieces of HTML. Whatever came from a user or a file passes through `esc`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def esc(text: object) -> str:
    """Text as text: nothing in it is markup, also inside a quoted attribute."""
    return html.escape(str(text), quote=True)


_SHORT = 120  # characters of a query that are repeated beside its results


def shortened(text: str) -> str:
    """Escaped text, cut where it is long; a pointer that rests on it shows all of it."""
    if len(text) <= _SHORT:
        return esc(text)
    return f'<span title="{esc(text)}">{esc(text[:_SHORT].rstrip())}…</span>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    """A table in its own scroller. Cells are HTML already; numeric columns are right-aligned."""
    right = set(numeric)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="num">{cell}</{tag}>' if i in right else f"<{tag}>{cell}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', header)}</tr></thead>".replace("<th></th>", "<td></td>")
    whole = f'<table class="mrr-table">{head}<tbody>{body}</tbody></table>'
    return f'<div class="mrr mrr-scroll">{whole}</div>'


def empty(sentence: str) -> str:
    """An empty state: one sentence that says what to do."""
    return f'<div class="mrr mrr-empty">{esc(sentence)}</div>'


def note(sentence: str) -> str:
    """Small, quiet text."""
    return f'<p class="mrr mrr-note">{esc(sentence)}</p>' if sentence else ""


def bar(share: float, name: str, system: str = "mini") -> str:
    """A progress bar. share: 0..1. name: what comes along, for screen readers."""
    percent = round(100 * min(max(share, 0.0), 1.0))
    kind = "" if system == "mini" else " dense"
    return (
        f'<div class="mrr-bar{kind}" role="progressbar" aria-label="{esc(name)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>'
    )


def nbytes(count: float) -> str:
    """Bytes for people: 812 B, 4.1 kB, 37 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def duration(ms: float) -> str:
    """Milliseconds for people: 0.4 ms, 84 ms, 1.2 s, 3 min."""
    if ms < 10:
        return f"{ms:.1f} ms"
    if ms < 1000:
        return f"{ms:.0f} ms"
    return f"{ms / 1e3:.1f} s" if ms < 120_000 else f"{ms / 6e4:.0f} min"


MOST_SHOWN = 60  # pages drawn in one grid; each is a picture in the page itself


def the_rest(lines: Sequence[str], key: str, begun: bool = True) -> str:
    """The pages that a grid has no picture of, by name, when it is opened.

    lines: HTML already. key: by which the browser keeps it open when it is drawn again. begun:
    there are pictures above it.
    """
    if not lines:
        return ""
    said = count(len(lines), "more page" if begun else "page")
    items = "".join(f"<li>{line}</li>" for line in lines)
    return (
        f'<details class="mrr mrr-note mrr-rest" data-key="{esc(key)}">'
        f"<summary>{said}, by name</summary><ul>{items}</ul></details>"
    )


def count(n: int, noun: str, plural: str = "") -> str:
    """`1 page`, `3 pages`; `2 queries` where the plural is its own."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
