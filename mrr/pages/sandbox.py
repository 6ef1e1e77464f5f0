"""The decoder: files in, canonical pages out, parsed in a child process with limits.

Pillow and PDFium read untrusted files, and PDFium may never be entered by two threads: one child
with a memory limit and a clock answers both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from PIL import Image

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.pages.child import Child, Reply
from mrr.pages.naming import display_name, page_label, page_numbers
from mrr.pages.refusal import Refused
from mrr.types import PageImage

_PDFIUM_MAX_PAGES = 2**20


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a file turned out to be. still: which part of a moving image is shown, else ""."""

    n_pages: int
    is_pdf: bool
    still: str


class Decoder:
    """Decodes files in one child process, one request at a time, from any thread.

    The child starts with the first file and again after it died. Between two pages it is free
    for other callers: a caller whose document was replaced meanwhile opens it again.
    """

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008  it is frozen
        self.limits = limits
        self._lock = threading.Lock()
        self._child: Child | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child; a later call starts another."""
        with self._lock:
            if self._child is not None:
                self._child.stop()
                self._child = None

    def count_pages(self, name: str, data: bytes, page_range: str | None = None) -> int:
        """How many pages `pages` will yield, if none has a fault. Raises InputRejected."""
        shown = display_name(name)
        with self._lock:
            opened = self._open(shown, data, object())
        wanted = page_numbers(page_range if opened.is_pdf else None, shown, opened.n_pages)
        return min(len(wanted), self.limits.max_pdf_pages)

    def pages(self, name: str, data: bytes, page_range: str | None = None) -> Iterator[PageImage]:
        """Yield pages one by one, each decoded when it is asked for.

        page_range, such as "1-3,7", chooses among the pages of a PDF; an image is always one.
        Raises InputRejected, possibly after some pages: those are good, and the message says
        how many they are.
        """
        shown, caller = display_name(name), object()
        with self._lock:
            opened = self._open(shown, data, caller)
        wanted = page_numbers(page_range if opened.is_pdf else None, shown, opened.n_pages)
        for n_done, page_num in enumerate(wanted[: self.limits.max_pdf_pages]):
            try:
                with self._lock:
                    if self._running().opened is not caller:
                        self._open(shown, data, caller)
                    image, own_label = self._page(page_num - 1)
            except Refused as refused:
                subject = f"Page {page_num} of {shown}" if opened.is_pdf else shown
                raise InputRejected(f"{refused.sentence(subject)}{_kept(n_done)}") from None
            if opened.is_pdf:
                label = page_label(shown, page_num, own_label)
            else:
                label = f"{shown} ({opened.still})" if opened.still else shown
            yield PageImage(image, label, shown, page_num)
        if len(wanted) > self.limits.max_pdf_pages:
            raise InputRejected(_too_many(shown, wanted, self.limits.max_pdf_pages))

    def _open(self, shown: str, data: bytes, caller: object) -> _Opened:
        """Hand a file to the child. Raises InputRejected."""
        try:
            check_size(len(data), self.limits)
            child = self._running()
            child.opened = None
            opened = child.ask({"op": "open", "nbytes": len(data)}, data, _read_opened)
        except Refused as refused:
            raise InputRejected(refused.sentence(shown)) from None
        child.opened = caller
        return opened

    def _page(self, index: int) -> tuple[Image.Image, str]:
        """Fetch a page of the open document, and the label it has there. Raises Refused."""
        child = self._child
        assert child is not None

        def read(reply: Reply) -> tuple[Image.Image, str]:
            return child.read_pixels(reply), str(reply["own_label"])

        return child.ask({"op": "page", "index": index}, b"", read)

    def _running(self) -> Child:
        if self._child is not None and not self._child.usable:
            self._child.stop()
            self._child = None
        if self._child is None:
            self._child = Child(self.limits)
        return self._child


def check_size(nbytes: int, limits: Limits) -> None:
    """Refuse a file by its length alone. Raises Refused."""
    if nbytes == 0:
        raise Refused("empty-file")
    if nbytes > limits.max_file_bytes:
        raise Refused("file-size", megabytes=nbytes / 2**20, limit=limits.max_file_bytes / 2**20)


def _read_opened(reply: Reply) -> _Opened:
    n_pages, still = int(reply["n_pages"]), str(reply["still"])
    if not 1 <= n_pages <= _PDFIUM_MAX_PAGES or still not in ("", "first frame", "first page"):
        raise ValueError("a document that cannot be")
    return _Opened(n_pages, bool(reply["is_pdf"]), still)


def _kept(n_done: int) -> str:
    if n_done == 0:
        return ""
    return (
        f" The {n_done:,} pages before it were read."
        if n_done > 1
        else " The page before it was read."
    )


def _too_many(shown: str, wanted: Sequence[int], limit: int) -> str:
    n_next = min(2 * limit, len(wanted)) - 1
    return (
        f"{shown}: {len(wanted):,} pages were asked for; the limit is {limit:,} a file. "
        f"The first {limit:,} were read. Add others with a page range, such as "
        f"{wanted[limit]}-{wanted[n_next]}."
    )
