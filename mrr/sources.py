"""What a file is called in the store: two files of one name are two documents.

A page knows the name of its file, and what is removed together, or listed under one heading, goes
by it. So a file whose name another has already becomes "report (2).pdf", as in a folder.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath

from cache_db.store import PageStore
from mrr.types import Page, PageImage

_MAX_FILES = 4096


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

        file: a digest of the file that it came from, empty where there was none. A label that does
        not begin with the file's name was given by hand, and stays.
        """
        if not page.label.startswith(page.source):
            return page
        numbers = store.page_numbers(page.scope, PurePath(page.source).stem)
        names: Iterator[str] = numbered(page.source)
        if (mine := self._names.get((page.scope, file))) is not None:
            names = itertools.chain([mine], names)
        for name in names:
            if name not in numbers:
                self._files.pop((page.scope, name), None)  # whose pages are gone
                break
            is_ours = file and self._files.get((page.scope, name), file) == file
            if is_ours and page.page_num not in numbers[name]:
                break
        self._remember(page.scope, file, name)
        return replace(page, source=name, label=name + page.label.removeprefix(page.source))

    def met(self, page: Page, source: str, file: str) -> None:
        """A file has a page that the store knows, and its name, if that is one that it may have."""
        if is_numbered(page.source, source):
            self._remember(page.scope, file, page.source)

    def _remember(self, scope: str, file: str, name: str) -> None:
        if not file:
            return
        self._names[scope, file] = name
        self._names.move_to_end((scope, file))
        self._files.setdefault((scope, name), file)
        if len(self._names) > _MAX_FILES:
            (old_scope, _), old = self._names.popitem(last=False)
            self._files.pop((old_scope, old), None)


def numbered(name: str) -> Iterator[str]:
    """A file's name, and those that it has where it is not the only one: "report (2).pdf"."""
    path = PurePath(name)
    yield name
    for n in itertools.count(2):
        yield f"{path.stem} ({n}){path.suffix}"


def is_renamed(page: Page, item: PageImage) -> bool:
    """Whether a stored page is this page of a file of this name, which got a number then."""
    tail = item.label.removeprefix(item.source)
    return is_numbered(page.source, item.source) and page.label == page.source + tail


def is_numbered(name: str, of: str) -> bool:
    """Whether a name is one of those that another may have been given."""
    path = PurePath(of)
    middle = name.removeprefix(path.stem).removesuffix(path.suffix)
    return name == of or (
        name == f"{path.stem}{middle}{path.suffix}"
        and middle.startswith(" (")
        and middle.endswith(")")
        and middle[2:-1].isdecimal()
    )
