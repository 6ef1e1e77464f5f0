"""Caching pages with something to see: uploads file by file, the examples in the background."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mrr.config import Limits
from mrr.errors import BudgetExceeded, InputRejected, MRRError
from mrr.types import AddedPage, FailedFile, PageImage
from ui.session import PUBLIC, Session
from ui.workbench import Workbench

log = logging.getLogger("ui")

State = Literal["queued", "encoding", "cached", "hit", "failed"]
MAX_SESSION_BYTES = 100 * 1024 * 1024
MAX_SESSION_PAGES = 200
# Imported by what the first visitor does first: a second and a half that nobody need wait for.
_SLOW_IMPORTS = ("mrr.explain.explanation", "mrr.measure.metrics")


@dataclass(slots=True)
class Line:
    """One line of an upload: a page, or a file that is still closed or was refused."""

    label: str
    state: State
    reason: str = ""
    added: AddedPage | None = None


@dataclass(slots=True)
class Upload:
    """An upload as it goes on. n_done counts pages; elapsed_s is wall time."""

    lines: list[Line] = field(default_factory=list)
    n_done: int = 0
    elapsed_s: float = 0.0
    finished: bool = False
    cancelled: bool = False

    @property
    def pages_per_s(self) -> float:
        """Pages cached or found, per second."""
        return self.n_done / self.elapsed_s if self.elapsed_s else 0.0


def upload(
    bench: Workbench, session: Session, files: Sequence[tuple[str, bytes]], page_range: str | None
) -> Iterator[Upload]:
    """Cache files (name, bytes) into the session's scope; yields the same Upload after each step.

    Stops after the page in hand when session.busy is cleared. One bad file never stops the rest.
    Raises InputRejected, before anything is read, where the files go over the session's limits.
    """
    check_quota(session, files, bench.base.limits, bench.hosted)
    engine, scope = bench.engine(session.settings), bench.upload_scope(session)
    begin = time.perf_counter()
    work = Upload([Line(name, "queued") for name, _ in files])
    session.busy = True
    session.uploaded_bytes += sum(len(data) for _, data in files)
    yield work
    for name, data in files:
        waiting = next(line for line in work.lines if line.label == name and line.state == "queued")
        work.lines.remove(waiting)
        for item in engine.decode([(name, data)], page_range):
            if isinstance(item, FailedFile):
                work.lines.append(Line(item.file, "failed", item.reason))
                yield work
                continue
            line = Line(item.label, "encoding")
            work.lines.append(line)
            yield work
            _cache(bench, session, item, scope, line)
            work.n_done += line.added is not None
            work.elapsed_s = time.perf_counter() - begin
            yield work
            if not session.busy:
                work.cancelled = True
                break
        if work.cancelled:
            break
    work.finished, session.busy = True, False
    yield work


def _cache(bench: Workbench, session: Session, item: PageImage, scope: str, line: Line) -> None:
    try:
        engine = bench.engine(session.settings)
        line.added = bench.run(type(engine).add_page, engine, item, scope)
    except (InputRejected, BudgetExceeded) as error:
        line.state, line.reason = "failed", str(error)
        return
    page = line.added.page
    bench.thumbnails.put(page.page_id, item.image)
    session.added[page.page_id] = line.added
    line.state = "hit" if line.added.outcome == "hit" else "cached"
    if line.added.outcome == "encoded":
        bench.pace.saw("encode", line.added.elapsed_ms)


def read_uploads(paths: Sequence[str] | None) -> list[tuple[str, bytes]]:
    """(name, bytes) of what Gradio received, whose copies are deleted: the engine takes no path."""
    files = []
    for path in map(Path, paths or ()):
        files.append((path.name, path.read_bytes()))
        path.unlink()
    return files


def check_quota(
    session: Session, files: Sequence[tuple[str, bytes]], limits: Limits, hosted: bool
) -> None:
    """Refuse a whole upload that is over a limit, with the numbers."""
    if len(files) > limits.max_files:
        raise InputRejected(
            f"{len(files)} files at once; the limit is {limits.max_files}. Add them in parts."
        )
    total = session.uploaded_bytes + sum(len(data) for _, data in files)
    if hosted and total > MAX_SESSION_BYTES:
        raise InputRejected(
            f"That would make {total / 1e6:.0f} MB in this session; the limit here is "
            f"{MAX_SESSION_BYTES / 1e6:.0f} MB. Run the app yourself for more."
        )
    if hosted and len(session.added) >= MAX_SESSION_PAGES:
        raise InputRejected(
            f"This session holds {len(session.added)} pages; the limit here is "
            f"{MAX_SESSION_PAGES}. Remove some first."
        )


def start_examples(bench: Workbench) -> threading.Thread:
    """Cache the bundled pages in the background; the app is usable meanwhile."""
    thread = threading.Thread(target=cache_examples, args=(bench,), name="examples", daemon=True)
    thread.start()
    return thread


def cache_examples(bench: Workbench) -> None:
    """Bring every example page into the store, then measure one dense page for the estimates."""
    examples = bench.examples
    for module in _SLOW_IMPORTS:
        importlib.import_module(module)
    try:
        for example in examples.pages:
            data = example.file.read_bytes()
            for item in bench.base.decode([(example.file.name, data)]):
                if isinstance(item, FailedFile):
                    log.warning("Example %s: %s", example.key, item.reason)
                    continue
                added = bench.base.add_page(replace(item, label=example.title), PUBLIC)
                examples.page_ids[example.key] = added.page.page_id
                examples.added[added.page.page_id] = added
                bench.thumbnails.put(added.page.page_id, item.image)
                if added.outcome == "encoded":
                    bench.pace.saw("encode", added.elapsed_ms)
        _measure_dense(bench)
    except (MRRError, OSError) as error:
        log.warning("The examples stop here: %s", error)
    finally:
        examples.finished = True


def _measure_dense(bench: Workbench) -> None:
    """One stock pass, so that a comparison can say what it will cost before it is asked for."""
    if not bench.examples.page_ids:
        return
    one = next(iter(bench.examples.page_ids.values()))
    begin = time.perf_counter()
    bench.base.rank("warm up", system="original", pages=[one], scopes=(PUBLIC,))
    bench.pace.saw("original", (time.perf_counter() - begin) * 1e3)
