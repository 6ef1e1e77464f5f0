"""Held-out pages as a folder that `mrr eval` reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mrr.errors import InputRejected
from mrr.measure.dataset import read_dataset
from mrr.train import fonts, held_out
from mrr.train.cli import train
from mrr.train.data import PageSource
from mrr.train.match_train import PAGE, page_sources
from mrr.train.queries import answers, page_text
from mrr.train.stages import Workshop


def _bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_folder_is_a_dataset_whose_labels_are_the_words_on_its_pages(
    source: PageSource, tmp_path: Path
) -> None:
    n_queries = held_out.write(source, tmp_path / "pages", 4, 3, seed=7)
    dataset = read_dataset(tmp_path / "pages")
    assert len(dataset.pages) == 4 and len(dataset.queries) == n_queries <= 12
    assert {query.kind for query in dataset.queries} <= {"keyword", "phrase", "title"}
    assert dataset.texts is not None
    for query in dataset.queries:
        assert len(dataset.qrels[query.query_id]) == 1, "a quarter of the pages at most"
        words = query.text.split()
        for page_id, text in dataset.texts.items():
            right = answers(page_text(tuple(text.split()), ()), tuple(words))
            assert right == (page_id in dataset.qrels[query.query_id])


def test_the_pictures_are_the_drawn_pages(source: PageSource, tmp_path: Path) -> None:
    held_out.write(source, tmp_path / "pages", 2, 1, seed=7)
    drawn = source.page("held-out/7/page-002").pixels
    with Image.open(tmp_path / "pages/pages/page-002.png") as picture:
        assert np.array_equal(np.asarray(picture), drawn)


def test_the_same_seed_gives_the_same_folder_and_another_one_does_not(
    source: PageSource, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        held_out.write(source, tmp_path / name, 2, 2, seed=seed)
    first, again, other = (_bytes(tmp_path / name) for name in "abc")
    assert first == again
    assert first["queries.jsonl"] != other["queries.jsonl"]
    assert first["pages/page-001.png"] != other["pages/page-001.png"]


def test_nothing_is_written_over(source: PageSource, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(InputRejected, match="not empty"):
        held_out.write(source, tmp_path, 2, 2, seed=0)
    assert _bytes(tmp_path) == {"notes.txt": b"mine"}


def test_the_command_draws_held_out_text_at_full_size(shop: Workshop, tmp_path: Path) -> None:
    asked = ["--run", str(shop.root), "held-out", str(tmp_path / "dir"), "--pages", "2"]
    done = CliRunner().invoke(train, asked)
    assert done.exit_code == 0, done.output
    dataset = read_dataset(tmp_path / "dir")
    assert json.loads(done.output) == {"pages": 2, "queries": len(dataset.queries)}
    sources = page_sources(shop.corpus_dir, shop.tokenizer, (PAGE,), 1, "validation")
    with Image.open(dataset.pages[0].file) as picture:
        assert picture.size == PAGE
        drawn = sources[0][1].page(f"held-out/{shop.scale.seed}/page-001").pixels
        assert np.array_equal(np.asarray(picture), drawn)


def test_a_run_without_text_and_a_machine_without_the_faces_say_so(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputRejected, match="run the stage corpus first"):
        Workshop(tmp_path / "new", shop.scale).draw_held_out(tmp_path / "a", 2, 1, False)
    monkeypatch.setattr(fonts, "HELD_OUT", ("no such face",))
    with pytest.raises(InputRejected, match="no such face"):
        shop.draw_held_out(tmp_path / "b", 2, 1, True)
    assert not (tmp_path / "b").exists()


def test_function_words_count_only_where_nothing_else_is_asked() -> None:
    page = page_text(("The", "tram", "leaves."), ())
    assert answers(page, ("what", "tram", "leaves"))
    assert not answers(page, ("the", "bus"))
    assert answers(page, ("the",)) and not answers(page, ("the", "of"))
