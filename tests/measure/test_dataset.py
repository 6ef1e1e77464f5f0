"""Reading a labelled folder: both layouts, and a sentence for everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrr.errors import InputRejected
from mrr.measure.dataset import read_dataset
from tests.measure.helpers import CORPUS, QUERIES, write_dataset, write_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set")


def test_pictures_and_pages_of_pdfs_are_read_in_order(folder: Path) -> None:
    dataset = read_dataset(folder)
    assert dataset.name == "set" and dataset.texts is None
    assert [page.page_id for page in dataset.pages] == [row["page_id"] for row in CORPUS]
    assert dataset.pages[0].file == (folder / "pages" / "p0.png").resolve()
    assert dataset.pages[6].file == (folder / "pdf" / "d.pdf").resolve()
    assert [page.page_num for page in dataset.pages] == [1, 1, 1, 1, 1, 1, 3, 4]
    assert dataset.qrels["q2"] == {"d#3": 1, "p4": 2}
    assert [(q.text, q.kind) for q in dataset.queries][2] == ("which is third?", "question")


def test_texts_are_read_where_they_are(folder: Path) -> None:
    write_lines(
        folder / "text.jsonl",
        [{"page_id": row["page_id"], "text": f"text of {row['page_id']}"} for row in CORPUS[::-1]],
    )
    texts = read_dataset(folder).texts
    assert texts is not None
    assert list(texts) == [row["page_id"] for row in CORPUS] and texts["p2"] == "text of p2"


def test_line_separators_of_other_alphabets_do_not_split_a_query(folder: Path) -> None:
    row = '{"query_id": "q1", "query": "a\u2028b", "kind": "k"}\n'
    rest = (folder / "queries.jsonl").read_text(encoding="utf-8").split("\n", 1)[1]
    (folder / "queries.jsonl").write_text(row + rest, encoding="utf-8")
    assert read_dataset(folder).queries[0].text == "a\u2028b"


def corpus(*rows: object) -> list:
    return [*rows, *CORPUS[1:]]


def queries(*rows: object) -> list:
    return [*rows, *QUERIES[1:]]


@pytest.mark.parametrize(
    ("name", "rows", "sentence"),
    [
        ("corpus.jsonl", corpus({"page_id": "p0"}), "line 1 names no file"),
        ("corpus.jsonl", corpus({"page_id": "p0", "file": "no.png"}), "not a file of this folder"),
        ("corpus.jsonl", corpus({"page_id": "p0", "file": "../secret"}), "leads out of this"),
        ("corpus.jsonl", corpus(CORPUS[0] | {"page_num": 0}), "counted from 1"),
        ("corpus.jsonl", corpus(CORPUS[0] | {"page_num": True}), "counted from 1"),
        ("corpus.jsonl", corpus({"file": "pages/p0.png"}), 'line 1 has no "page_id"'),
        ("corpus.jsonl", corpus(CORPUS[1]), "corpus.jsonl has p1 twice"),
        ("corpus.jsonl", corpus(CORPUS[1] | {"page_id": "p0"}), "p1.png page 1 twice"),
        ("corpus.jsonl", CORPUS[1:], "labels page p0, which corpus.jsonl lacks"),
        ("corpus.jsonl", corpus([1]), "line 1 is not a JSON object"),
        ("corpus.jsonl", [], "corpus.jsonl is empty"),
        ("queries.jsonl", queries({"query_id": "q1", "query": " "}), 'line 1 has no "query"'),
        (
            "queries.jsonl",
            queries({"query_id": 1, "query": "x"}),
            'has 1 for its "query_id", which',
        ),
        ("queries.jsonl", QUERIES[1:], "labels query q1, which queries.jsonl lacks"),
        ("queries.jsonl", [*QUERIES, {"query_id": "q4", "query": "x"}], "q4 has no relevant page"),
        ("text.jsonl", [{"page_id": "p0", "text": "x"}], "has no text of page p1"),
    ],
)
def test_a_row_that_does_not_fit_is_named(
    folder: Path, name: str, rows: list, sentence: str
) -> None:
    (folder.parent / "secret").write_text("not ours")
    write_lines(folder / name, rows)
    with pytest.raises(InputRejected, match=sentence) as refusal:
        read_dataset(folder)
    assert str(folder) not in str(refusal.value) and str(refusal.value).endswith(".")


def test_a_mark_that_some_programs_begin_a_file_with_is_no_part_of_it(folder: Path) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert len(read_dataset(folder).queries) == len(QUERIES)


def test_only_zero_grades_are_no_relevant_page(folder: Path) -> None:
    (folder / "qrels.tsv").write_text("q1 0 p1 0\nq2 0 p1 1\nq3 0 p1 1\n")
    with pytest.raises(InputRejected, match="q1 has no relevant page"):
        read_dataset(folder)


def test_a_second_label_of_a_page_is_named(folder: Path) -> None:
    """Which of the two would count?"""
    (folder / "qrels.tsv").write_text("q1 0 p1 1\nq1 0 p1 0\n")
    with pytest.raises(InputRejected, match="line 2 labels page p1 a second time for q1"):
        read_dataset(folder)


@pytest.mark.parametrize(
    "line",
    ["q1\tp1\t1", "q1 0 p1 good", "q1 0 p1 1 extra", "q1 0 p0 --3", "q1 0 p0 ²", "q1 0 p0 99999"],
)
def test_a_label_of_another_format_is_named(folder: Path, line: str) -> None:
    (folder / "qrels.tsv").write_text(f"q1 0 p1 1\n{line}\n")
    with pytest.raises(InputRejected, match="line 2 is not a query id, 0, a page id and a whole"):
        read_dataset(folder)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_missing_or_broken_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\xfe")
    with pytest.raises(InputRejected, match=f"{name} is not UTF-8 text"):
        read_dataset(folder)
    (folder / name).unlink()
    with pytest.raises(InputRejected, match=f"no {name}"):
        read_dataset(folder)


def test_text_that_is_not_json_is_named_with_its_line(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as file:
        file.write("{oops\n")
    with pytest.raises(InputRejected, match="line 9 is not JSON"):
        read_dataset(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="nowhere is not a folder"):
        read_dataset(tmp_path / "nowhere")
