"""What a file is called in the store: two files of one name are two documents.

A page knows the name of its file, and what is removed together, or listed under one heading, goes
by it. So a file whose name another has already becomes "report (2).pdf", as in a folder.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import PurePath

from PIL import Image

from cache_db.store import PageStore
from mrr.errors import NameTaken
from mrr.types import Page, PageImage

# What follows a file's name in a label that was made of it.
_TAIL = re.compile(r"( p\. .+| \(first (frame|page)\))?", re.DOTALL)
_FIRST_OF_TIFF = " (first page)"  # its only page, before all of them were read


def keep(page: Page, image: Image.Image, store: PageStore) -> Page:
    """Store a page that is new, under a name that no other file of its scope has; the page then.

    A picture in memory, which came from no file, keeps its name, and so does a label that was
    given by hand.
    """
    tail = _tail(page)
    if not page.file_digest or tail is None:
        store.add_page(page, image)
        return page
    refused = set[str]()  # whatever the store says of them
    while True:
        name = _free_name(page, store, refused)
        renamed = replace(page, source=name, label=name + tail)
        try:
            store.add_page(renamed, image, alone=True)
            return renamed
        except NameTaken:  # by another engine, at the same moment
            refused.add(name)


def _free_name(page: Page, store: PageStore, refused: Collection[str]) -> str:
    """The name that the page's file has already, or the first that nobody has.

    Pages of it may be without a digest, from a time when none were kept.
    """
    mine = page.file_digest
    files = store.sources(page.scope, PurePath(page.source).stem)
    for name, digests in files.items():
        if mine in digests <= {mine, ""} and is_numbered(name, page.source) and name not in refused:
            return name
    return next(name for name in numbered(page.source) if name not in {*files, *refused})


def is_of_other_file(page: Page, item: PageImage) -> bool:
    """Whether a page that is stored came from another file than this one, or under another name.

    That may be a blank page or a cover, which many files have.
    """
    digests = {page.file_digest, item.file_digest} - {""}
    return len(digests) > 1 or not is_renamed(page, item)


def is_of_file(page: Page, item: PageImage) -> bool:
    """Whether a page that is stored without its file's digest is of this file, by its name."""
    return not page.file_digest and bool(item.file_digest) and is_renamed(page, item)


def numbered(name: str) -> Iterator[str]:
    """A file's name, and those that it has where it is not the only one: "report (2).pdf"."""
    path = PurePath(name)
    yield name
    for n in itertools.count(2):
        yield f"{path.stem} ({n}){path.suffix}"


def is_renamed(page: Page, item: PageImage) -> bool:
    """Whether a stored page may be this page of this file, by its number and names."""
    tail = item.label.removeprefix(item.source)
    labels = {page.source + tail, page.source + _FIRST_OF_TIFF}
    if (page.source, page.label) != (item.source, item.label):  # which may be given by hand
        if page.label not in labels or not is_numbered(page.source, item.source):
            return False
    return page.page_num == item.page_num


def is_numbered(name: str, of: str) -> bool:
    """Whether a name is one of those that another may have been given."""
    path = PurePath(of)
    pattern = re.escape(path.stem) + r" \(\d+\)" + re.escape(path.suffix)
    return name == of or re.fullmatch(pattern, name) is not None


def _tail(page: Page) -> str | None:
    """What follows the file's name in a label; None in one that was given by hand."""
    tail = page.label.removeprefix(page.source)
    return tail if page.label.startswith(page.source) and _TAIL.fullmatch(tail) else None
