"""Caching uploads with something to see, file by file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mrr.config import Limits
from mrr.errors import InputRejected, MRRError
from mrr.pages.ingest import read_pages
from mrr.pages.keys import page_id
from mrr.pages.naming import display_name
from mrr.pages.refusal import Refused
from mrr.pages.sandbox import check_size
from mrr.types import AddedPage, FailedFile, PageImage
from ui.own_paths import is_upload
from ui.session import Session
from ui.workbench import Workbench

log = logging.getLogger("ui")

# A file's name and bytes, or why it was not even read.
Received = tuple[str, bytes] | FailedFile
State = Literal["queued", "encoding", "cached", "hit", "failed"]
MAX_SESSION_BYTES = 100 * 1024 * 1024
MAX_SESSION_PAGES = 200
FULL = (
    f"This session holds {MAX_SESSION_PAGES} pages, which is the limit here; this page and those "
    "after it were left out. Remove some pages first, or run the app yourself."
)


@dataclass(slots=True)
class Line:
    """One line of an upload: a page, or a file that is still closed or was refused."""

    label: str
    state: State
    reason: str = ""
    added: AddedPage | None = None


@dataclass(slots=True)
class Upload:
    """An upload as it goes on. n_done counts pages, n_cached those that were not cached before.

    cached_s: wall time that these have taken, with reading the file and waiting for the models.
    """

    lines: list[Line] = field(default_factory=list)
    n_done: int = 0
    n_cached: int = 0
    cached_s: float = 0.0
    finished: bool = False
    cancelled: bool = False

    @property
    def n_closed(self) -> int:
        """Lines that are done with, one way or the other."""
        return sum(line.state not in ("queued", "encoding") for line in self.lines)


def upload(
    bench: Workbench, session: Session, files: Sequence[Received], page_range: str | None
) -> Iterator[Upload]:
    """Cache files into the session's scope; yields the same Upload after each step.

    Stops after the page in hand when session.busy is cleared. One bad file never stops the rest,
    nor does one with more pages than the session may hold. Raises InputRejected while another
    upload, or an encoding, goes on in this session.
    """
    refuse_while_busy(session, list(map(_name, files)))
    session.busy = True
    try:
        for work in _upload(bench, session, files, page_range):
            session.reading = work.n_closed, len(work.lines)
            yield work
    finally:
        session.busy, session.reading = False, None


def _upload(
    bench: Workbench, session: Session, files: Sequence[Received], page_range: str | None
) -> Iterator[Upload]:
    since = time.perf_counter()
    queued = [_queued(bench, file, page_range) for file in files]
    work = Upload([line for lines in queued for line in lines])
    yield work
    place = 0
    for file, lines in zip(files, queued, strict=True):
        left = len(lines)
        for item in _items(bench, file, page_range):
            if isinstance(item, FailedFile):
                line = Line(item.file, "failed", item.reason)
            elif is_full(bench, session, item):
                line = Line(item.label, "failed", FULL)
            else:
                line = Line(item.label, "encoding")
            work.lines[place : place + min(left, 1)] = [line]
            place, left = place + 1, max(left - 1, 0)
            yield work
            if isinstance(item, FailedFile):
                since = time.perf_counter()
                continue
            if line.state == "failed":
                break
            _cache(bench, session, item, line)
            work.n_done += line.added is not None
            now = time.perf_counter()
            if line.state == "cached":
                work.n_cached, work.cached_s = work.n_cached + 1, work.cached_s + now - since
            since = now
            yield work
            if not session.busy:
                work.cancelled = True
                break
        if work.cancelled:
            break
        del work.lines[place : place + left]  # pages that a fault in the file has cost
    work.finished = True
    yield work


def _items(
    bench: Workbench, file: Received, page_range: str | None
) -> Iterable[PageImage | FailedFile]:
    """The pages of a file and its faults, as they are read."""
    if isinstance(file, FailedFile):
        return [file]
    return read_pages(bench.decoder, [file], page_range)


def _name(file: Received) -> str:
    return file.file if isinstance(file, FailedFile) else file[0]


def _queued(bench: Workbench, file: Received, page_range: str | None) -> list[Line]:
    """A line for every page of a file; one for a file that is or will be refused."""
    name = _name(file)
    if isinstance(file, FailedFile):
        return [Line(name, "queued")]
    try:
        n_pages = bench.decoder.count_pages(name, file[1], page_range)
    except InputRejected:
        n_pages = 1
    if n_pages == 1:
        return [Line(name, "queued")]
    return [Line(f"{name}, {n} of {n_pages}", "queued") for n in range(1, n_pages + 1)]


def _cache(bench: Workbench, session: Session, item: PageImage, line: Line) -> None:
    scope = bench.upload_scope(session)
    try:
        engine = bench.engine(session.settings)
        line.added = bench.run(type(engine).add_page, engine, item, scope)
    except MRRError as error:
        line.state, line.reason = "failed", str(error)
        return
    except (MemoryError, RuntimeError):  # torch's "out of memory" is a RuntimeError
        log.exception("A page could not be encoded")
        line.state = "failed"
        line.reason = "It could not be encoded: most likely the memory did not suffice for it."
        return
    page = line.added.page
    bench.thumbnails.put(page.page_id, item.image)
    line.state = "hit" if line.added.outcome == "hit" else "cached"
    if line.state == "cached" or page.page_id not in session.added:
        session.added[page.page_id] = line.added  # a hit does not know what encoding took
    if line.added.outcome == "encoded":
        bench.pace.saw(engine, "encode", line.added.elapsed_ms)


def read_uploads(bench: Workbench, session: Session, paths: Sequence[str] | None) -> list[Received]:
    """What Gradio received, whose copies are deleted: the engine takes no path.

    A file that is too large is not read. Raises InputRejected, before anything is read or counted,
    where the files together go over a limit, or others are being encoded.
    """
    given = list(map(Path, paths or ()))
    # With the files of a second drop Gradio sends those of the first again, which are read by now.
    sent = [path for path in given if str(path) not in session.read or os.path.exists(path)]
    try:
        if not all(map(is_upload, sent)):
            raise InputRejected("A file was named that was not uploaded here; upload it first.")
        refuse_while_busy(session, [path.name for path in sent])
        check_quota(bench, session, list(map(_size, sent)))
        return [_read(path, bench.limits) for path in sent]
    finally:
        session.read = set(map(str, given))
        for path in filter(is_upload, sent):
            with suppress(OSError, ValueError):  # it is gone already, or was never there
                path.unlink()
                path.parent.rmdir()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # `_read` says so
        return 0


def _read(path: Path, limits: Limits) -> Received:
    name = display_name(path.name)
    try:
        check_size(path.stat().st_size, limits)
        return path.name, path.read_bytes()
    except Refused as refused:
        return FailedFile(name, refused.sentence(name))
    except (OSError, ValueError):
        return FailedFile(name, f"{name} was not received; drop it again.")


def refuse_while_busy(session: Session, names: Sequence[str]) -> None:
    """InputRejected, with the files' names, while pages are being encoded in this session."""
    if session.busy:
        raise InputRejected(
            f"Pages are being encoded here already, so {', '.join(names)} was not taken. Add it "
            "again when they are done, or cancel them."
        )


def check_quota(bench: Workbench, session: Session, sizes: Sequence[int]) -> None:
    """Count an upload of files of these bytes, or refuse the whole of it with the numbers.

    Files that are too large are not read, so their bytes do not count.
    """
    max_files, max_bytes = bench.limits.max_files, bench.limits.max_file_bytes
    if len(sizes) > max_files:
        raise InputRejected(
            f"{len(sizes)} files at once; the limit is {max_files}. Add them in parts."
        )
    total = session.uploaded_bytes + sum(size for size in sizes if size <= max_bytes)
    if bench.hosted and total > MAX_SESSION_BYTES:
        raise InputRejected(
            f"That would make {total / 2**20:.0f} MB uploaded in this session; the limit here is "
            f"{MAX_SESSION_BYTES / 2**20:.0f} MB. Remove your pages first, or run the app yourself."
        )
    session.uploaded_bytes = total


def is_full(bench: Workbench, session: Session, item: PageImage) -> bool:
    """Whether a page is one too many for its session."""
    if not bench.hosted:
        return False
    own = {page.page_id for page in bench.store.pages([session.scope])}
    return len(own) >= MAX_SESSION_PAGES and page_id(item.image, session.scope) not in own
