"""A dataset's pages inside the engine, and the rankings of a system over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mrr.errors import InputRejected
from mrr.measure.dataset import CorpusPage, Dataset
from mrr.measure.metrics import Run
from mrr.measure.spread import Spread, spread
from mrr.measure.tasks import Task
from mrr.pages.ingest import read_bytes
from mrr.reranker import MiniReranker
from mrr.types import AddedPage, FailedFile, Page, PageImage, System

Progress = Callable[[str, int, int], None]  # what is going on, done, of how many


@dataclass(frozen=True, slots=True)
class CachingCost:
    """What it took to bring pages in.

    page_ms: of the pages that were encoded now, decoding left out; None if all were hits.
    wall_s: of everything, decoding included. nbytes_per_page: K/V, averaged over all pages.
    """

    n_pages: int
    n_encoded: int
    page_ms: Spread | None
    wall_s: float
    nbytes_per_page: float


@dataclass(frozen=True, slots=True)
class Corpus:
    """pages: {page id of the dataset: page of the store}; equal pictures share one page."""

    scope: str
    pages: Mapping[str, Page]
    cost: CachingCost


def add_corpus(
    reranker: MiniReranker, dataset: Dataset, progress: Progress | None = None
) -> Corpus:
    """Cache the dataset's pages in a scope of their own; each file is decoded once.

    Raises InputRejected for a page that cannot be read: leaving it out would change the task.
    """
    for file, wanted in _by_file(dataset):
        _check_there(reranker, file, wanted)
    scope = f"eval:{dataset.name}"
    begin = time.perf_counter()
    pages: dict[str, Page] = {}
    added: list[AddedPage] = []
    for file, wanted in _by_file(dataset):
        for page_id, result in _add_file(reranker, file, wanted, scope):
            pages[page_id] = result.page
            added.append(result)
            report(progress, "cache", len(added), len(dataset.pages))
    return Corpus(scope, pages, _cost(added, time.perf_counter() - begin))


def add_again(
    reranker: MiniReranker, corpus: Corpus, label: str, progress: Progress | None = None
) -> CachingCost:
    """Cache a corpus's pages under another configuration, from the store's own pictures."""
    begin = time.perf_counter()
    added = []
    for page in corpus.pages.values():
        item = PageImage(reranker.cache.picture(page), page.label, page.source, page.page_num)
        added.append(reranker.add_page(item, corpus.scope))
        report(progress, f"cache: {label}", len(added), len(corpus.pages))
    return _cost(added, time.perf_counter() - begin)


@dataclass(frozen=True, slots=True)
class SystemRun:
    """The rankings of one system, and what each query cost beside encoding missed pages."""

    run: Run
    query_ms: Spread


def run_tasks(
    reranker: MiniReranker,
    corpus: Corpus,
    tasks: Sequence[Task],
    system: System,
    label: str,
    progress: Progress | None = None,
) -> SystemRun:
    """Rank the candidates of every task."""
    run: dict[str, tuple[str, ...]] = {}
    query_ms = []
    for task in tasks:
        members: dict[str, list[str]] = {}  # page of the store -> pages of the dataset
        for candidate in task.candidates:
            members.setdefault(corpus.pages[candidate].page_id, []).append(candidate)
        ranked = reranker.rank(
            task.query.text, system=system, pages=set(members), scopes=(corpus.scope,)
        )
        run[task.query.query_id] = tuple(c for hit in ranked for c in members[hit.page.page_id])
        query_ms.append(ranked.usage.total_ms - ranked.usage.ms.get("encode", 0.0))
        report(progress, label, len(run), len(tasks))
    return SystemRun(run, spread(query_ms))


def report(progress: Progress | None, label: str, done: int, total: int) -> None:
    """Tell whoever listens."""
    if progress is not None:
        progress(label, done, total)


def _by_file(dataset: Dataset) -> Iterator[tuple[Path, dict[int, str]]]:
    """(file, {page number: page id}) in order of first mention."""
    order = {file: i for i, file in enumerate(dict.fromkeys(page.file for page in dataset.pages))}

    def place(page: CorpusPage) -> int:
        return order[page.file]

    for _, group in groupby(sorted(dataset.pages, key=place), key=place):
        pages = list(group)
        yield pages[0].file, {page.page_num: page.page_id for page in pages}


def _check_there(reranker: MiniReranker, file: Path, wanted: Mapping[int, str]) -> None:
    """Raise InputRejected if a file ends before the last page that is wanted of it."""
    last = max(wanted)
    if last == 1:  # every file has one, and most have no more
        return
    data = read_bytes(file, file.name, reranker.limits)
    try:  # of a picture, which is one page whatever is asked for, the second is not there
        n_found = reranker.decoder.count_pages(file.name, data, f"1,{last}")
    except InputRejected as error:
        raise InputRejected(f"Page {wanted[last]} cannot be evaluated: {error}") from None
    if n_found < min(2, reranker.limits.max_pdf_pages):
        raise InputRejected(
            f"Page {wanted[last]} cannot be evaluated: {file.name} has 1 page; page {last} was "
            "asked for. Correct its page_num in corpus.jsonl."
        )


def _add_file(
    reranker: MiniReranker, file: Path, wanted: Mapping[int, str], scope: str
) -> Iterator[tuple[str, AddedPage]]:
    only = ",".join(map(str, sorted(wanted)))  # a picture, which is always one, asks for none
    for item in reranker.decode([file], only):
        if isinstance(item, FailedFile):
            raise InputRejected(f"{item.file} cannot be evaluated: {item.reason}")
        # Not the number of the page that the store knows: that may be an equal picture's.
        yield wanted[item.page_num], reranker.add_page(item, scope)


def _cost(added: Sequence[AddedPage], wall_s: float) -> CachingCost:
    encoded = [page.elapsed_ms for page in added if page.outcome == "encoded"]
    return CachingCost(
        n_pages=len(added),
        n_encoded=len(encoded),
        page_ms=spread(encoded) if encoded else None,
        wall_s=wall_s,
        nbytes_per_page=sum(page.nbytes for page in added) / len(added),
    )
