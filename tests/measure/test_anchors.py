"""BM25 over page text: which text, and in which order it puts the pages."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
import pytest

from mrr.measure.anchors import bm25_run, page_texts, restrict, words
from mrr.measure.dataset import CorpusPage, Dataset, Query, read_dataset
from mrr.measure.tasks import Task
from tests.measure.helpers import write_dataset

TEXTS = {
    "a": "The lighthouse keeper counts ships.",
    "b": "Ships, ships and more ships.",
    "c": "Été à Zürich",
    "d": "nothing of the kind",
}


def task(text: str, candidates: str = "abcd") -> Task:
    return Task(Query("q", text, "keyword"), tuple(candidates), {"a": 1})


def test_bm25_puts_the_page_with_the_rare_word_first() -> None:
    pytest.importorskip("bm25s")
    assert bm25_run(TEXTS, [task("lighthouse ships")])["q"][:2] == ("a", "b")
    assert bm25_run(TEXTS, [task("SHIPS")])["q"][0] == "b"
    assert bm25_run(TEXTS, [task("zürich")])["q"][0] == "c"


def test_bm25_keeps_the_corpus_order_for_words_that_no_page_has() -> None:
    pytest.importorskip("bm25s")
    assert bm25_run(TEXTS, [task("submarine")])["q"] == tuple("abcd")


def test_words_are_runs_of_letters_and_digits_of_any_alphabet() -> None:
    assert words("Qwen3-VL: 한국어, snake_case") == ["qwen3", "vl", "한국어", "snake", "case"]


def test_a_full_ranking_is_cut_to_the_candidates_of_each_task() -> None:
    assert restrict({"q": tuple("dcba")}, [task("x", "bd")])["q"] == ("d", "b")


def write_pdf(path: Path, *texts: str) -> Path:
    document = pdfium.PdfDocument.new()
    for text in texts:
        page = document.new_page(300, 100)
        letters = pdfium_c.FPDFPageObj_NewTextObj(document, b"Helvetica", 12.0)
        utf16 = ctypes.create_string_buffer((text + "\0").encode("utf-16-le"))
        pdfium_c.FPDFText_SetText(letters, ctypes.cast(utf16, pdfium_c.FPDF_WIDESTRING))
        pdfium_c.FPDFPageObj_Transform(letters, 1, 0, 0, 1, 10, 50)
        pdfium_c.FPDFPage_InsertObject(page, letters)
        page.gen_content()
    document.save(path)
    return path


def test_the_text_layer_of_the_named_pages_is_read(tmp_path: Path) -> None:
    file = write_pdf(tmp_path / "t.pdf", "first page", "second page", "third page")
    pages = (CorpusPage("x", file, 3), CorpusPage("y", file, 1))
    texts = page_texts(Dataset("d", pages, (), {}, None))
    assert texts is not None
    assert {name: text.strip() for name, text in texts.items()} == {
        "x": "third page",
        "y": "first page",
    }


def test_one_page_without_text_leaves_no_anchor(tmp_path: Path) -> None:
    file = write_pdf(tmp_path / "t.pdf", "first page", " ")
    pages = (CorpusPage("x", file, 1), CorpusPage("y", file, 2))
    assert page_texts(Dataset("d", pages, (), {}, None)) is None


def test_pictures_have_text_only_if_the_folder_brings_it(tmp_path: Path) -> None:
    dataset = read_dataset(write_dataset(tmp_path / "set"))
    assert page_texts(dataset) is None
    assert page_texts(replace(dataset, texts=TEXTS)) is TEXTS
