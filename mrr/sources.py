"""What a file is called in the store: two files of one name are two documents.

A page knows the name of its file, and what is removed together, or listed under one heading, goes
by it. So a file whose name another has already becomes "report (2).pdf", as in a folder.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath

from cache_db.store import PageStore
from mrr.types import Page, PageImage

_MAX_FILES = 4096
# What follows a file's name in a label that was made of it.
_TAIL = re.compile(r"( p\. .+| \(first (frame|page)\))?", re.DOTALL)
_FIRST_OF_TIFF = " (first page)"  # its only page, before all of them were read


class Sources:
    """Which file has which name, as far as it came by; used under the engine's lock.

    The store remembers names and page numbers, and no files: there, another page under the same
    number is what tells two files apart.
    """

    def __init__(self) -> None:
        self._names: OrderedDict[tuple[str, str], str] = OrderedDict()  # (scope, file): its name
        self._files: dict[tuple[str, str], str] = {}  # (scope, name): whose it is

    def named(self, page: Page, file: str, store: PageStore) -> Page:
        """A page that is new to the store, under a name that no other file of its scope has.

        file: a digest of the file that it came from, empty where there was none: a picture in
        memory keeps its name, and so does a label that was given by hand.
        """
        tail = _tail(page)
        if not file or tail is None:
            return page
        numbers = store.page_numbers(page.scope, PurePath(page.source).stem)
        names: Iterator[str] = numbered(page.source)
        mine = self._names.get((page.scope, file), "")
        if mine in numbers and is_numbered(mine, page.source):
            names = itertools.chain([mine], names)
        for name in names:
            if name not in numbers:
                self._files.pop((page.scope, name), None)  # whose pages are gone
                break
            is_ours = self._files.get((page.scope, name), file) == file
            if is_ours and page.page_num not in numbers[name]:
                break
        self._remember(page.scope, file, name)
        return replace(page, source=name, label=name + tail)

    def met(self, page: Page, item: PageImage) -> bool:
        """Take note of a page that the store knows; whether another file has it, as far as known.

        It tells a file's name where neither is known yet. Later it may be a blank page or a cover,
        which many files have.
        """
        if not item.file or _tail(item) is None:
            return not is_renamed(page, item)
        mine = self._names.get((page.scope, item.file))
        owner = self._files.get((page.scope, page.source))
        if mine is None and owner is None and is_renamed(page, item):
            self._remember(page.scope, item.file, page.source)
            return False
        if owner is not None and owner != item.file:
            return True
        return not is_renamed(page, item) or (mine is not None and mine != page.source)

    def _remember(self, scope: str, file: str, name: str) -> None:
        before = self._names.get((scope, file))
        if before is not None and before != name:
            self._let_go(scope, file, before)
        self._names[scope, file] = name
        self._names.move_to_end((scope, file))
        self._files.setdefault((scope, name), file)
        if len(self._names) > _MAX_FILES:
            (old_scope, old_file), old = self._names.popitem(last=False)
            self._let_go(old_scope, old_file, old)

    def _let_go(self, scope: str, file: str, name: str) -> None:
        """A file gives a name up, if it is its own."""
        if self._files.get((scope, name)) == file:
            del self._files[scope, name]


def numbered(name: str) -> Iterator[str]:
    """A file's name, and those that it has where it is not the only one: "report (2).pdf"."""
    path = PurePath(name)
    yield name
    for n in itertools.count(2):
        yield f"{path.stem} ({n}){path.suffix}"


def _tail(page: Page | PageImage) -> str | None:
    """What follows the file's name in a label; None in one that was given by hand."""
    tail = page.label.removeprefix(page.source)
    return tail if page.label.startswith(page.source) and _TAIL.fullmatch(tail) else None


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
