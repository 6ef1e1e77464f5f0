"""What may be given as a document: pictures, files, data URLs, stored pages."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mrr.errors import InputRejected, PageLost
from mrr.pages.ingest import Content, contents, from_pil, is_data_url, of_data_url, read_bytes
from mrr.pages.naming import NOT_FETCHED, display_name, is_url
from mrr.types import AddedPage, Candidate, FailedFile, Hit, Page, PageImage, PageLike

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

Picture = Content
Document = Picture | PageLike
Encoded = tuple[str, bytes]  # a file's name, and what is in it
_MAX_FILES = 10_000  # that are recognized


class Recognized:
    """Which pages files were, so that whoever ranks them again need not have them decoded.

    A file is known by all of its bytes. For use from several threads.
    """

    def __init__(self) -> None:
        self._page_ids: dict[bytes, str] = {}  # by digest, the oldest first
        self._lock = threading.Lock()

    def page_id(self, given: Image.Image | Encoded) -> str | None:
        """The page that a file was, if that is remembered."""
        return None if isinstance(given, Image.Image) else self._page_ids.get(_digest(given))

    def remember(self, given: Image.Image | Encoded, page_id: str) -> None:
        """What page a file is; of a picture in memory nothing."""
        if isinstance(given, Image.Image):
            return
        with self._lock:
            self._page_ids[_digest(given)] = page_id
            if len(self._page_ids) > _MAX_FILES:
                self._page_ids.pop(next(iter(self._page_ids)))

    def forget(self) -> None:
        """Every file."""
        with self._lock:
            self._page_ids.clear()


def _digest(file: Encoded) -> bytes:
    return hashlib.sha256(file[1]).digest()


def is_picture(engine: MiniReranker, side: Document, scopes: Collection[str] | None) -> bool:
    """Whether a side of a pair is a picture; a string is one as a data URL or a page's id."""
    if not isinstance(side, str):
        return True
    return is_data_url(side) or _stored(engine, side, scopes) is not None


def _stored(engine: MiniReranker, page_id: str, scopes: Collection[str] | None) -> Page | None:
    """A page by its id, if it is in one of the scopes; None: in any."""
    page = engine.store.page(page_id)
    return page if page is None or scopes is None or page.scope in scopes else None


def known(
    engine: MiniReranker, document: Document, name: str, scopes: Collection[str] | None
) -> Page | Picture | str:
    """The stored page that a document names, or else the picture or file that it is."""
    named = document.page if isinstance(document, Hit | AddedPage | Candidate) else document
    page_id = named.page_id if isinstance(named, Page) else named
    stored = _stored(engine, page_id, scopes) if isinstance(page_id, str) else None
    if stored is not None:
        return stored
    if isinstance(named, Page):
        raise PageLost(
            named.page_id,
            f"{name.capitalize()}, {named.label}, is not in the store. Add it first.",
        )
    return named


def read_picture(
    engine: MiniReranker, document: Document, name: str, scopes: Collection[str] | None
) -> Image.Image:
    """The canonical picture of a document, from the store where it is a page of it."""
    found = known(engine, document, name, scopes)
    if isinstance(found, Page):
        return engine.cache.picture(found)
    return read_page(engine, opened(engine, found, name), name).image


def opened(engine: MiniReranker, document: Picture | str, name: str) -> Image.Image | Encoded:
    """A picture in memory as it is, and of anything else what is in the file; or InputRejected."""
    if isinstance(document, Image.Image):
        return document
    if is_data_url(document):
        return name, of_data_url(document, name.capitalize())
    if isinstance(document, str):
        _check_there(document, name)
    try:
        if isinstance(document, str | Path):  # named, so that a folder is refused, not searched
            path = Path(document)
            return path.name, read_bytes(path, path.name, engine.limits)
        given = (name, document) if isinstance(document, Content) else document
        ((shown, content),), _ = contents(given)
        if isinstance(content, Image.Image):
            return content
        return shown, read_bytes(content, shown, engine.limits)
    except InputRejected as error:
        raise InputRejected(_said_of(name, str(error))) from None


def _said_of(name: str, reason: str) -> str:
    """Why a document is refused, with its name once: a file without one goes by it already."""
    itself = reason.startswith(f"{name} ")
    return reason[0].upper() + reason[1:] if itself else f"{name.capitalize()}: {reason}"


def read_page(engine: MiniReranker, given: Image.Image | Encoded, name: str) -> PageImage:
    """Exactly one decoded page, or InputRejected."""
    if isinstance(given, Image.Image):
        return from_pil(given, name, engine.limits)
    items = list(engine.decode([given]))
    for item in items:
        if isinstance(item, FailedFile):
            raise InputRejected(_said_of(name, item.reason))
    pages = [item for item in items if isinstance(item, PageImage)]
    if len(pages) != 1:
        raise InputRejected(
            f"{name.capitalize()} has {len(pages)} pages; a document is one page. Add the file "
            "with add() and use rank(), or pass its page ids."
        )
    return pages[0]


def _check_there(path: str, name: str) -> None:
    """Raise InputRejected for a string that is no path, saying what else it may have meant."""
    if not path:  # pathlib would make the current folder of it
        raise InputRejected(f"{name.capitalize()} is an empty path. Give that of a file.")
    if os.path.exists(path):
        return
    if is_url(path):
        raise InputRejected(f"{name.capitalize()} is {NOT_FETCHED}")
    raise InputRejected(
        f'{name.capitalize()}: there is no file "{display_name(path)}", nor a page of this id. '
        "A document is a picture, a file or a page id; texts are ranked by rank_texts."
    )
