"""The decoder: files in, canonical pages out, parsed in a child process with limits.

Pillow and PDFium read untrusted files, and PDFium may never be entered by two threads: one child
with a memory limit and a clock answers both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash
from PIL import Image

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.pages.child import Child, Reply
from mrr.pages.naming import as_range, display_name, page_label, page_numbers
from mrr.pages.refusal import Refused
from mrr.types import FailedFile, PageImage

_PDFIUM_MAX_PAGES = 2**20
# Refusals that cost the child: a document with many such pages would keep everyone waiting.
_FATAL = ("timeout", "crashed")


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a file turned out to be. still: which part of a moving image is shown, else "".

    has_pages: whether its pages go by numbers, as those of a PDF and of a TIFF with several do.
    """

    n_pages: int
    has_pages: bool
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

    def __exit__(self, *exc: object) -> None:
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
        wanted = page_numbers(page_range if opened.has_pages else None, shown, opened.n_pages)
        return min(len(wanted), self.limits.max_pdf_pages)

    def pages(
        self, name: str, data: bytes, page_range: str | None = None
    ) -> Iterator[PageImage | FailedFile]:
        """Yield pages one by one, each decoded when it is asked for.

        page_range, such as "1-3,7", chooses among the pages of a PDF or of a TIFF that has several;
        any other image is always one. Of several, a page that is refused is a FailedFile in its
        place, and those after it go on.
        Raises InputRejected for the file as a whole, possibly after some pages: those are good,
        and the message says how many they are and where to go on.
        """
        shown, caller = display_name(name), object()
        with self._lock:
            opened = self._open(shown, data, caller)
        wanted = page_numbers(page_range if opened.has_pages else None, shown, opened.n_pages)
        digest, n_read = xxhash.xxh3_128_hexdigest(data), 0
        for place, page_num in enumerate(wanted[: self.limits.max_pdf_pages]):
            try:
                with self._lock:
                    if self._running().opened is not caller:
                        self._open(shown, data, caller)
                    image, own_label = self._page(page_num - 1)
            except Refused as refused:
                if not opened.has_pages:
                    raise InputRejected(refused.sentence(shown)) from None
                reason = refused.sentence(f"Page {page_num} of {shown}")
                if refused.code in _FATAL:
                    raise InputRejected(reason + _rest(n_read, wanted[place + 1 :])) from None
                yield FailedFile(shown, reason)
                continue
            if opened.has_pages:
                label = page_label(shown, page_num, own_label)
            else:
                label = f"{shown} ({opened.still})" if opened.still else shown
            n_read += 1
            yield PageImage(image, label, shown, page_num, digest)
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
    if not 1 <= n_pages <= _PDFIUM_MAX_PAGES or still not in ("", "first frame"):
        raise ValueError("a document that cannot be")
    return _Opened(n_pages, bool(reply["has_pages"]), still)


def _rest(n_read: int, left: Sequence[int]) -> str:
    """What a file that stops at a page has given, and how to get at the pages after it."""
    before = f" Before it, {n_read:,} page{'s were' if n_read > 1 else ' was'} read."
    after = f" Add those after it with the page range {as_range(left)}."
    return (before if n_read else "") + (after if left else "")


def _too_many(shown: str, wanted: Sequence[int], limit: int) -> str:
    n_next = min(2 * limit, len(wanted)) - 1
    return (
        f"{shown}: {len(wanted):,} pages were asked for; the limit is {limit:,} a file. "
        f"The first {limit:,} were read. Add others with a page range, such as "
        f"{wanted[limit]}-{wanted[n_next]}."
    )
