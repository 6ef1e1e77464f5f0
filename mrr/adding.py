"""The way of a page into the store: files are decoded, each page is cached as it comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from cache_db.evict import DOCUMENTS
from mrr.errors import Closed, InputRejected, MRRError
from mrr.pages.ingest import File, contents, is_data_url, read_pages, several
from mrr.pages.naming import display_name
from mrr.types import AddedPage, AddReport, FailedFile, PageImage

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker


def add(
    engine: MiniReranker, files: Iterable[File] | File, page_range: str | None, scope: str
) -> AddReport:
    """See MiniReranker.add."""
    engine.check_open()
    evicted = engine.store.stats().evicted
    done = list(add_iter(engine, files, page_range, scope))
    pages = tuple(x for x in done if isinstance(x, AddedPage))
    return AddReport(
        pages=pages,
        failed=tuple(x for x in done if isinstance(x, FailedFile)),
        notes=notes(engine, pages, evicted),
    )


def notes(engine: MiniReranker, pages: Iterable[AddedPage], evicted: int) -> tuple[str, ...]:
    """What to say of pages that were added. evicted: as the store's stats had it before."""
    said = engine.notes
    evicted = engine.store.stats().evicted - evicted
    if evicted:
        said += (
            f"The store was full: {evicted} of its entries, those used least recently, made room, "
            "and are computed again when a query asks for them. Remove pages, or raise "
            "budget_bytes or MRR_BUDGET_GIB.",
        )
    return said + tuple(
        f"{_named(page)} shows the same as {page.page.label}, which is in the store: they are one "
        "page under that name, and removed together."
        for page in pages
        if page.added_as is not None
    )


def _named(page: AddedPage) -> str:
    is_namesake = page.added_as == page.page.label
    return f"{page.added_as} of another file" if is_namesake else str(page.added_as)


def add_iter(
    engine: MiniReranker, files: Iterable[File] | File, page_range: str | None, scope: str
) -> Iterator[AddedPage | FailedFile]:
    """See MiniReranker.add_iter."""
    _check_scope(scope)
    for item in engine.decode(several(files), page_range):
        if isinstance(item, FailedFile):
            yield item
            continue
        try:
            yield engine.add_page(item, scope)
        except Closed:
            raise
        except MRRError as error:
            yield FailedFile(item.label, f"{item.label}: {error}", type(error).__name__)


def add_page(engine: MiniReranker, item: PageImage, scope: str) -> AddedPage:
    """See MiniReranker.add_page."""
    engine.check_open()
    _check_scope(scope)
    with engine.lock:  # or queries would wait for all the pages that follow
        return engine.cache.add(item, scope)


def decode(
    engine: MiniReranker, files: Iterable[File], page_range: str | None
) -> Iterator[PageImage | FailedFile]:
    """See MiniReranker.decode."""
    engine.check_open()
    for file in files:
        try:
            named, failed = contents(file)
        except InputRejected as error:
            named, failed = [], [FailedFile(_shown(file), str(error))]
        for item in chain(failed, read_pages(engine.decoder, named, page_range)):
            yield item
            engine.check_open()  # or a new decoding process would stay behind


def _shown(file: File) -> str:
    """What a file is called that was refused as it was given; a data URL is no name to show."""
    given = file[0] if isinstance(file, tuple) and len(file) == 2 else file
    is_name = isinstance(given, str | Path) and str(given) and not is_data_url(given)
    return display_name(str(given)) if is_name else "file"


def _check_scope(scope: str) -> None:
    try:
        scope.encode()
    except (AttributeError, UnicodeEncodeError):  # None, or a lone surrogate
        raise InputRejected(f"The scope is {scope!r:.80}; it is a name, as 'public'.") from None
    if scope == DOCUMENTS:
        raise InputRejected(
            f"Pages in the scope {DOCUMENTS!r} are those that rerank() was given, and make room "
            "like K/V; choose another name."
        )
