"""A folder of pages, queries and relevance labels, read and checked before anything runs.

corpus.jsonl    {"page_id", "page_num", and "pdf" (in pdf/) or "file" (any path inside)}
queries.jsonl   {"query_id", "query", "kind"}
qrels.tsv       query id, 0, page id, grade   (as trec_eval reads it)
text.jsonl      {"page_id", "text"}           (may be missing, but not one of the pages in it)

page_num and kind may be left out. For users it is described in `mrr eval --help`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrr.errors import InputRejected

_GRADE = re.compile(r"-?[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class CorpusPage:
    """One page of the corpus: page_num (1-based) of a PDF, or 1 of a picture."""

    page_id: str
    file: Path
    page_num: int


@dataclass(frozen=True, slots=True)
class Query:
    """One query; kind groups the results ("keyword", "question", ...)."""

    query_id: str
    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Pages in the order of corpus.jsonl, queries in that of queries.jsonl.

    qrels: {query id: {page id: grade}}, at least one grade above zero for every query.
    texts: {page id: text} of every page, or None where the folder has no text.jsonl.
    """

    name: str
    pages: tuple[CorpusPage, ...]
    queries: tuple[Query, ...]
    qrels: Mapping[str, Mapping[str, int]]
    texts: Mapping[str, str] | None


def read_dataset(root: Path) -> Dataset:
    """Read a folder. Raises InputRejected, naming file and line, for whatever does not fit."""
    root = Path(root)
    if not root.is_dir():
        raise InputRejected(f"{root.name} is not a folder with corpus.jsonl in it.")
    pages = tuple(_page(root, where, row) for where, row in _rows(root / "corpus.jsonl"))
    queries = tuple(
        Query(
            query_id=_text(row, "query_id", where),
            text=_text(row, "query", where),
            kind=str(row.get("kind", "query")),
        )
        for where, row in _rows(root / "queries.jsonl")
    )
    _check_unique([page.page_id for page in pages], "corpus.jsonl")
    places = [f"{p.file.relative_to(root.resolve())} page {p.page_num}" for p in pages]
    _check_unique(places, "corpus.jsonl")
    _check_unique([query.query_id for query in queries], "queries.jsonl")
    qrels = _qrels(root / "qrels.tsv", {p.page_id for p in pages}, {q.query_id for q in queries})
    for query in queries:
        if not any(grade > 0 for grade in qrels.get(query.query_id, {}).values()):
            raise InputRejected(f"Query {query.query_id} has no relevant page in qrels.tsv.")
    texts = _texts(root / "text.jsonl", pages)
    return Dataset(root.resolve().name, pages, queries, qrels, texts)


def _page(root: Path, where: str, row: Mapping[str, Any]) -> CorpusPage:
    name = row.get("file") or ("pdf" in row and f"pdf/{row['pdf']}")
    if not isinstance(name, str):
        raise InputRejected(f'{where} names no file; give it a "pdf" or a "file".')
    file = (root / name).resolve()
    if not file.is_relative_to(root.resolve()):
        raise InputRejected(f"{where} names {name}, which leads out of this folder. Copy it in.")
    if not file.is_file():
        raise InputRejected(f"{where} names {name}, which is not a file of this folder.")
    page_num = row.get("page_num", 1)
    if type(page_num) is not int or page_num < 1:  # true is an int too
        raise InputRejected(f"{where} has page_num {page_num!r}; pages are counted from 1.")
    return CorpusPage(_text(row, "page_id", where), file, page_num)


def _qrels(path: Path, page_ids: set[str], query_ids: set[str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for where, line in _lines(path):
        fields = line.split()
        if len(fields) != 4 or not _GRADE.fullmatch(fields[3]):
            raise InputRejected(
                f"{where} is not a query id, 0, a page id and a whole grade of up to 4 digits."
            )
        query_id, _, page_id, grade = fields
        if query_id not in query_ids:
            raise InputRejected(f"{where} labels query {query_id}, which queries.jsonl lacks.")
        if page_id not in page_ids:
            raise InputRejected(f"{where} labels page {page_id}, which corpus.jsonl lacks.")
        grades = qrels.setdefault(query_id, {})
        if page_id in grades:
            raise InputRejected(f"{where} labels page {page_id} a second time for {query_id}.")
        grades[page_id] = int(grade)
    return qrels


def _texts(path: Path, pages: tuple[CorpusPage, ...]) -> dict[str, str] | None:
    if not path.is_file():
        return None
    texts = {_text(row, "page_id", where): _text(row, "text", where) for where, row in _rows(path)}
    for page in pages:
        if page.page_id not in texts:
            raise InputRejected(f"{path.name} has no text of page {page.page_id}.")
    return {page.page_id: texts[page.page_id] for page in pages}


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """("corpus.jsonl line 3", its text) for every line that is not blank."""
    if not path.is_file():
        raise InputRejected(f"The folder has no {path.name}.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some programs begin with a mark
    except UnicodeDecodeError:
        raise InputRejected(f"{path.name} is not UTF-8 text.") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path.name} line {number}", line


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    n = 0
    for n, (where, line) in enumerate(_lines(path), start=1):  # noqa: B007
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputRejected(f"{where} is not JSON: {error.msg}.") from None
        if not isinstance(row, dict):
            raise InputRejected(f"{where} is not a JSON object.")
        yield where, row
    if n == 0:
        raise InputRejected(f"{path.name} is empty.")


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputRejected(f'{where} has no "{key}".')
    if not isinstance(value, str):
        raise InputRejected(f'{where} has {value!r:.40} for its "{key}", which is no text.')
    return value


def _check_unique(ids: list[str], name: str) -> None:
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise InputRejected(f"{name} has {each} twice; once is enough.")
        seen.add(each)
