"""The bundled example pages: which they are, what may be asked of them, and what is relevant."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

from cache_db import PageStore
from mrr.assets import assets
from mrr.types import AddedPage, Page

EXAMPLES = assets("examples")


@dataclass(frozen=True, slots=True)
class ExamplePage:
    """One page of the corpus. key: its name in the labels. file: an image."""

    key: str
    title: str
    file: Path


@dataclass(slots=True)
class Examples:
    """The corpus as it lies on disk, and how far it has come into the store.

    relevant: query -> keys of the pages that answer it. page_ids: key -> page id, once stored.
    added: page id -> what caching it said. known_failure: a query that mini gets wrong.
    """

    pages: tuple[ExamplePage, ...] = ()
    samples: tuple[str, ...] = ()
    known_failure: str | None = None
    relevant: dict[str, set[str]] = field(default_factory=dict)
    page_ids: dict[str, str] = field(default_factory=dict)
    added: dict[str, AddedPage] = field(default_factory=dict)
    finished: bool = False

    @property
    def steps(self) -> int:
        """Grows with every page that comes in, and once more when all are: only then is it known
        which of the other public pages somebody added."""
        return len(self.page_ids) + self.finished

    def stored(self, store: PageStore) -> list[Page]:
        """Those that are known to be in the store, though maybe not under the model in use."""
        found = map(store.page, list(self.page_ids.values()))
        return [page for page in found if page is not None]

    def labels(self, query: str) -> set[str]:
        """Page ids that the bundled labels call relevant to a query; empty for other queries."""
        return {self.page_ids[key] for key in self.relevant.get(query, ()) if key in self.page_ids}


def load_examples(folder: Path = EXAMPLES) -> Examples:
    """Read corpus, labels and sample queries; an installation without them has no examples."""
    if not (folder / "corpus.jsonl").is_file():
        return Examples(finished=True)
    pages = tuple(
        ExamplePage(row["page_id"], row["title"], folder / row["file"])
        for row in _lines(folder / "corpus.jsonl")
    )
    queries = {row["query_id"]: row["query"] for row in _lines(folder / "queries.jsonl")}
    chosen = json.loads((folder / "samples.json").read_text("utf-8"))
    return Examples(
        pages=pages,
        samples=tuple(queries[query_id] for query_id in chosen["query_ids"]),
        known_failure=queries.get(chosen["known_failure"]),
        relevant=_relevant(folder / "qrels.tsv", queries),
    )


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _relevant(path: Path, queries: dict[str, str]) -> dict[str, set[str]]:
    """TREC qrels: query id, 0, page key, grade."""
    relevant: dict[str, set[str]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for query_id, _, key, grade in csv.reader(lines, delimiter="\t"):
            if int(grade) > 0 and query_id in queries:
                relevant.setdefault(queries[query_id], set()).add(key)
    return relevant
