"""What may be given as a document: pictures, files, data URLs, stored pages."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mrr.errors import InputRejected
from mrr.pages.ingest import Content, File, from_pil
from mrr.pages.naming import NOT_FETCHED, display_name, is_url
from mrr.types import AddedPage, FailedFile, Hit, Page, PageImage, PageLike

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

Picture = Content
Document = Picture | PageLike
_DATA_URL = re.compile(r"data:[^\s,]*,", re.IGNORECASE)  # "data: by region, 2024" is a query


def is_picture(engine: MiniReranker, side: Document) -> bool:
    """Whether a side of a pair is a picture; a string is one as a data URL or a page's id."""
    if not isinstance(side, str):
        return True
    return _DATA_URL.match(side) is not None or engine.store.page(side) is not None


def known(engine: MiniReranker, document: Document, name: str) -> Page | Picture | str:
    """The stored page that a document names, or else the picture or file that it is."""
    named = document.page if isinstance(document, Hit | AddedPage) else document
    page_id = named.page_id if isinstance(named, Page) else named
    stored = engine.store.page(page_id) if isinstance(page_id, str) else None
    if stored is not None:
        return stored
    if isinstance(named, Page):
        raise InputRejected(
            f"{name.capitalize()}, {named.label}, is not in the store. Add it first."
        )
    return named


def read_picture(engine: MiniReranker, document: Document, name: str) -> Image.Image:
    """The canonical picture of a document, from the store where it is a page of it."""
    found = known(engine, document, name)
    if isinstance(found, Page):
        return engine.cache.picture(found)
    return read_page(engine, found, name).image


def read_page(engine: MiniReranker, document: Picture | str, name: str) -> PageImage:
    """Exactly one decoded page, or InputRejected."""
    if isinstance(document, Image.Image):
        return from_pil(document, name, engine.limits)
    items = list(engine.decode([_file(document, name)]))
    for item in items:
        if isinstance(item, FailedFile):
            raise InputRejected(f"{name.capitalize()}: {item.reason}")
    pages = [item for item in items if isinstance(item, PageImage)]
    if len(pages) != 1:
        raise InputRejected(
            f"{name.capitalize()} has {len(pages)} pages; a document is one page. Add the file "
            "with add() and use rank(), or pass its page ids."
        )
    return pages[0]


def _file(document: Picture | str, name: str) -> File:
    """What to read a document from, called by its own name if it is a path, else by `name`."""
    if isinstance(document, str):
        if _DATA_URL.match(document):
            return name, _of_data_url(document, name)
        _check_there(document, name)
    if isinstance(document, str | Path):  # named, so that a folder is refused and not searched
        return Path(document).name, Path(document)
    return (name, document) if isinstance(document, Content) else document


def _check_there(path: str, name: str) -> None:
    """Raise InputRejected for a string that is no path, saying what else it may have meant."""
    if os.path.exists(path):
        return
    if is_url(path):
        raise InputRejected(f"{name.capitalize()} is {NOT_FETCHED}")
    raise InputRejected(
        f'{name.capitalize()}: there is no file "{display_name(path)}", nor a page of this id. '
        "A document is a picture, a file or a page id; texts are ranked by rank_texts."
    )


def _of_data_url(url: str, name: str) -> bytes:
    """The file in a data URL, which is how a picture travels in JSON."""
    head, _, body = url.partition(",")
    try:
        if head.casefold().endswith(";base64"):
            return base64.b64decode(body, validate=True)
    except ValueError:
        pass
    raise InputRejected(
        f"{name.capitalize()} is a data URL that is not base64; write data:image/png;base64,..."
    )
