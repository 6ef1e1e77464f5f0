"""What files and pages are called on screen, and which pages of a document are meant.

A name is a label only: no path is ever built from one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mrr.errors import InputRejected
from mrr.plain import nfc, one_line

MAX_NAME_CHARS = 80
_MAX_LABEL_CHARS = 20
_ENDING_CHARS = 12  # of a shortened name: room for the extension
NOT_FETCHED = "a URL, and none is fetched. Download it and pass its path."
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # one slash is left of two in a Path
_RANGE_PART = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?")


def is_url(text: str) -> bool:
    """Whether what names no file is a URL."""
    return _URL.match(text) is not None


def display_name(name: str) -> str:
    """Basename of either kind of path, without control characters, at most 80 characters."""
    base = one_line(re.split(r"[/\\]", name)[-1])
    if len(base) > MAX_NAME_CHARS:
        base = f"{base[: MAX_NAME_CHARS - _ENDING_CHARS - 1]}…{base[-_ENDING_CHARS:]}"
    return nfc(base, MAX_NAME_CHARS) or "unnamed file"


def page_label(name: str, page_num: int, own_label: str) -> str:
    """Call a page by its number, and by the label printed in the document if that differs."""
    own = nfc(one_line(own_label), _MAX_LABEL_CHARS)
    if own in ("", str(page_num)):
        return f"{name} p. {page_num}"
    return f"{name} p. {own} ({page_num})"


def page_numbers(page_range: str | None, name: str, n_pages: int) -> Sequence[int]:
    """The ascending 1-based numbers of a page range in a document; None means every page.

    A range may end past the last page, so that one range serves documents of any length. Raises
    InputRejected for another form, or for a page or a start that the document does not have.
    """
    if page_range is None:
        return range(1, n_pages + 1)
    chosen: set[int] = set()
    for first, last in parse_range(page_range):
        if first > n_pages:
            pages = "1 page" if n_pages == 1 else f"{n_pages:,} pages"
            raise InputRejected(
                f"{name} has {pages}; page {first} was asked for. Choose pages up to {n_pages:,}."
            )
        chosen.update(range(first, min(last, n_pages) + 1))
    return sorted(chosen)


def parse_range(page_range: str) -> list[tuple[int, int]]:
    """Parse "1-3,7" into (first, last) of each part. Raises InputRejected for another form."""
    if not isinstance(page_range, str):
        raise InputRejected(f"A page range is text, such as 1-3,7; this one is {page_range!r:.40}.")
    parts = []
    for part in page_range.split(","):
        match = _RANGE_PART.fullmatch(part.strip())
        if match is None:
            raise InputRejected(
                f'"{nfc(one_line(page_range), _MAX_LABEL_CHARS)}" is not a page range. '
                "Write page numbers and ranges, such as 1-3,7."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last:
            raise InputRejected(
                f"The page range {first}-{last} runs backwards or starts at 0. "
                "Count pages from 1, the lower number first."
            )
        parts.append((first, last))
    return parts


def as_range(numbers: Sequence[int]) -> str:
    """Write ascending page numbers in the form that `parse_range` reads."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
