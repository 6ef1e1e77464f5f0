"""The example corpus is complete, and its labels can be proved from its text."""

import importlib.util
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image, ImageChops

EXAMPLES = Path(__file__).parents[2] / "assets" / "examples"


def json_lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text("utf-8").splitlines()]


def plain(text: str) -> str:
    """Lower-case words between single spaces, so that substring search sees whole words."""
    return f" {re.sub(r'[^a-z0-9é]+', ' ', text.lower()).strip()} "


CORPUS = json_lines("corpus.jsonl")
QUERIES = json_lines("queries.jsonl")
PAGE_IDS = [page["page_id"] for page in CORPUS]
TITLES = {page["page_id"]: plain(page["title"]) for page in CORPUS}
TEXTS = {record["page_id"]: plain(record["text"]) for record in json_lines("text.jsonl")}


def read_qrels() -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (EXAMPLES / "qrels.tsv").read_text("utf-8").splitlines():
        query_id, _, page_id, grade = line.split("\t")
        assert page_id not in qrels[query_id], f"{query_id} judges {page_id} twice"
        qrels[query_id][page_id] = int(grade)
    return dict(qrels)


QRELS = read_qrels()


def queries_of(kind: str) -> list[dict]:
    found = [query for query in QUERIES if query["kind"] == kind]
    assert found, f"no {kind} queries"
    return found


def pages_containing(phrase: str) -> set[str]:
    return {page_id for page_id, text in TEXTS.items() if plain(phrase) in text}


@pytest.mark.parametrize("page", CORPUS, ids=PAGE_IDS)
def test_page_image_loads_and_is_as_large_as_a_page_of_a_pdf(page):
    with Image.open(EXAMPLES / page["file"]) as image:
        image.load()
        assert image.mode == "RGB"
        assert image.size in {(1152, 1632), (1632, 1152)}
        assert len(image.getcolors(maxcolors=1 << 20)) > 16, "the page is nearly empty"


def test_corpus_lists_every_image_once():
    files = [page["file"] for page in CORPUS]
    on_disk = {f"pages/{path.name}" for path in (EXAMPLES / "pages").iterdir()}
    assert len(files) == len(set(files))
    assert set(files) == on_disk
    assert len(set(PAGE_IDS)) == len(PAGE_IDS) >= 28


def test_every_page_has_a_text_of_readable_length():
    assert set(TEXTS) == set(PAGE_IDS)
    for page_id, text in TEXTS.items():
        assert 70 <= len(text.split()) <= 600, page_id


def test_no_file_is_too_large_to_ship():
    sizes = {path: path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 10_000_000
    assert sum(size for path, size in sizes.items() if path.suffix == ".png") < 8_000_000


def test_every_query_has_a_relevant_page_and_every_judgement_names_known_ids():
    query_ids = [query["query_id"] for query in QUERIES]
    assert len(query_ids) == len(set(query_ids)) >= 40
    assert set(QRELS) == set(query_ids)
    for judged in QRELS.values():
        assert set(judged) <= set(PAGE_IDS)
        assert set(judged.values()) <= {1, 2}


def test_keyword_queries_are_relevant_to_exactly_the_pages_with_all_their_words():
    for query in queries_of("keyword"):
        holders = set.intersection(*(pages_containing(word) for word in query["query"].split()))
        assert dict.fromkeys(holders, 1) == QRELS[query["query_id"]], query["query"]


def test_phrase_queries_are_relevant_to_exactly_the_pages_that_contain_them():
    for query in queries_of("phrase"):
        assert dict.fromkeys(pages_containing(query["query"]), 1) == QRELS[query["query_id"]]


def test_title_queries_grade_the_named_page_above_pages_that_mention_it():
    for query in queries_of("title"):
        title = plain(query["query"])
        expected = {p: 2 if title in TITLES[p] else 1 for p in pages_containing(query["query"])}
        assert expected == QRELS[query["query_id"]], query["query"]
        assert 2 in expected.values()


def test_questions_are_answered_by_the_text_of_exactly_their_relevant_pages():
    source = json.loads((EXAMPLES / "source" / "queries.json").read_text("utf-8"))
    answers = {entry["query_id"]: entry.get("answers", []) for entry in source}
    for query in queries_of("question"):
        said_on = set().union(*map(pages_containing, answers[query["query_id"]]))
        assert dict.fromkeys(said_on, 1) == QRELS[query["query_id"]], query["query"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("invoice-2041", "invoice-2047"), ("remote-work-2023", "remote-work-2024")],
)
def test_look_alike_pages_differ_a_little_in_words_and_in_pixels(first, second):
    words = [TEXTS[f"{name}#1"].split() for name in (first, second)]
    shared = len(set(words[0]) & set(words[1])) / len(set(words[0]) | set(words[1]))
    assert 0.6 < shared < 1
    images = [Image.open(EXAMPLES / "pages" / f"{name}-1.png") for name in (first, second)]
    histogram = ImageChops.difference(*images).convert("L").histogram()
    changed = 1 - histogram[0] / sum(histogram)
    assert 0.0005 < changed < 0.15


def test_samples_name_known_queries():
    samples = json.loads((EXAMPLES / "samples.json").read_text("utf-8"))
    known = {query["query_id"] for query in QUERIES}
    assert 6 <= len(set(samples["query_ids"])) == len(samples["query_ids"]) <= 7
    assert set(samples["query_ids"]) <= known
    assert samples["known_failure"] in {None, *samples["query_ids"]}


@pytest.mark.browser
def test_rendering_a_source_again_gives_the_text_that_the_labels_rest_on(monkeypatch):
    pytest.importorskip("playwright")
    spec = importlib.util.spec_from_file_location("examples_build", EXAMPLES / "build.py")
    build = importlib.util.module_from_spec(spec)
    # dataclasses look their own module up while the class body runs.
    monkeypatch.setitem(sys.modules, spec.name, build)
    spec.loader.exec_module(build)
    stored = {record["page_id"]: record["text"] for record in json_lines("text.jsonl")}
    for page in build.render(["invoice-2047", "museum-map"]):
        assert page.text == stored[page.page_id]
        assert page.file in {entry["file"] for entry in CORPUS}
