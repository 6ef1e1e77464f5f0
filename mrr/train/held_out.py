"""Rendered pages of held-out text as a labelled folder, so that `mrr eval` can rank them."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mrr.errors import InputRejected
from mrr.train.data import PageSource
from mrr.train.queries import PageText, QueryMaker, answers, page_text


def write(source: PageSource, folder: Path, n_pages: int, n_queries: int, seed: int) -> int:
    """Draw n_pages with n_queries about each into folder, which must be empty or not exist.

    Every page that answers a query is relevant to it. The same seed gives the same folder; a query
    that comes twice is asked once, and one that no page answers, as of a blank page, or more than
    a quarter of them, not at all. Returns how many queries there are. Raises InputRejected for a
    folder with something in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputRejected(f"{folder.name} is not empty. Name a new folder.")
    (folder / "pages").mkdir(parents=True)
    names = [f"page-{n + 1:03}" for n in range(n_pages)]
    printed = {}
    for name in names:
        page = source.page(f"held-out/{seed}/{name}")
        Image.fromarray(page.pixels).save(folder / "pages" / f"{name}.png", optimize=True)
        printed[name] = page_text(page.words, page.title)
    maker = QueryMaker(source.corpus, random.Random(f"held-out/{seed}/queries"))
    asked: dict[str, tuple[tuple[str, ...], str]] = {}
    for text in printed.values():
        for _ in range(n_queries):
            query = maker.positive(text)
            if 1 <= sum(answers(page, query) for page in printed.values()) <= max(1, n_pages // 4):
                asked.setdefault(" ".join(query), (query, _kind(query, text)))
    numbered = [(f"q{n + 1:03}", words, *rest) for n, (words, rest) in enumerate(asked.items())]
    _lines(
        folder / "corpus.jsonl",
        ({"page_id": name, "file": f"pages/{name}.png", "page_num": 1} for name in names),
    )
    _lines(
        folder / "text.jsonl",
        ({"page_id": name, "text": " ".join(text.words)} for name, text in printed.items()),
    )
    _lines(
        folder / "queries.jsonl",
        ({"query_id": key, "query": words, "kind": kind} for key, words, _, kind in numbered),
    )
    with (folder / "qrels.tsv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        for key, _, query, _ in numbered:
            rows.writerows((key, 0, name, 1) for name in names if answers(printed[name], query))
    return len(numbered)


def _kind(query: tuple[str, ...], page: PageText) -> str:
    """What `mrr eval` groups by: titles, running words, or words from anywhere."""
    if query == page.title:
        return "title"
    return "phrase" if page.holds_in_a_row(query) else "keyword"


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
