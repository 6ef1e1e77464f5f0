"""`mrr store` as a script would use it: JSON on stdout, words on stderr, exit codes."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_db import PageStore
from cache_db.evict import DOCUMENTS
from mrr.errors import InputRejected
from mrr.types import Page
from tests.test_cli import make_page, mrr
from tests.tiny import picture


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two pages of a report, a picture, and what is not this user's to see."""
    pages = [
        page(0, "report.pdf", 1),
        page(1, "report.pdf", 2),
        page(2, "a.png", 1),
        replace(page(3, "secret.png", 1), scope="a visitor's"),
        replace(page(4, "document 0", 1), scope=DOCUMENTS),
    ]
    with PageStore(tmp_path / "store") as opened:
        for each in pages:
            opened.add_page(each, picture(0))
    return tmp_path / "store"


def page(digit: int, file: str, page_num: int) -> Page:
    label = f"{file} p. {page_num}"
    page_id = str(digit) * 64
    return replace(make_page(), page_id=page_id, label=label, source=file, page_num=page_num)


def kept(store: Path) -> list[str]:
    """First digit of each page's id."""
    with PageStore(store) as opened:
        return [each.page_id[0] for each in opened.pages(opened.scopes())]


def test_the_list_has_every_file_and_how_many_pages_there_are_of_it(store: Path) -> None:
    listed = mrr("store", "list", store=store)
    assert (listed.exit_code, listed.stderr) == (0, "")
    rows = [line.split(maxsplit=1) for line in listed.stdout.splitlines()]
    assert rows == [["pages", "file"], ["2", "report.pdf"], ["1", "a.png"]]
    pages = json.loads(mrr("store", "list", "--json", store=store).stdout)["pages"]
    assert pages[1] == {
        "page_id": "1" * 64, "label": "report.pdf p. 2", "file": "report.pdf", "page_num": 2,
    }  # fmt: skip
    assert [each["file"] for each in pages] == ["report.pdf", "report.pdf", "a.png"]


def test_the_list_of_an_empty_store_is_empty(tmp_path: Path) -> None:
    PageStore(tmp_path).close()
    assert mrr("store", "list", store=tmp_path).stdout == ""
    assert json.loads(mrr("store", "list", "--json", store=tmp_path).stdout) == {"pages": []}


def test_a_file_is_removed_with_all_its_pages(store: Path) -> None:
    removed = mrr("store", "remove", "report.pdf", store=store)
    assert removed.exit_code == 0 and json.loads(removed.stdout) == {"removed_pages": 2}
    assert kept(store) == ["2", "3", "4"]


def test_a_page_is_removed_by_its_id_beside_files(store: Path) -> None:
    removed = mrr("store", "remove", "1" * 64, "a.png", "a.png", store=store)
    assert json.loads(removed.stdout) == {"removed_pages": 2}
    assert kept(store) == ["0", "3", "4"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_file_is_known_however_its_letters_are_composed(store: Path, form: Any) -> None:
    with PageStore(store) as opened:
        opened.add_page(page(5, "café.pdf", 1), picture(0))
    removed = mrr("store", "remove", unicodedata.normalize(form, "café.pdf"), store=store)
    assert json.loads(removed.stdout) == {"removed_pages": 1}
    assert kept(store) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["remove", "a.png"]])
def test_of_a_store_that_cannot_be_read_nothing_is_said_to_be_unknown(
    store: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("cache_db.database.Database.read", fail)
    result = mrr("store", *command, store=store)
    assert isinstance(result.exception, InputRejected) and result.stdout == ""
    assert "Cannot read pages: Input/output error" in str(result.exception)


@pytest.mark.parametrize("unknown", ["report", "secret.png", "3" * 64, "document 0", "4" * 64])
def test_nothing_is_removed_where_a_name_is_unknown_or_another_sessions(
    store: Path, unknown: str
) -> None:
    removed = mrr("store", "remove", "a.png", unknown, store=store)
    assert isinstance(removed.exception, InputRejected) and unknown in str(removed.exception)
    assert removed.stdout == "" and kept(store) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("command", [["clear", "--yes"], ["remove", "a.png"]])
def test_pages_that_the_disk_keeps_are_not_said_to_be_removed(
    tmp_path: Path, monkeypatch, command: list[str]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with PageStore(tmp_path) as opened:
        opened.add_page(make_page(), picture(0))
    monkeypatch.setattr("cache_db.health.remove", fail)
    result = mrr("store", *command, store=tmp_path)
    assert result.exit_code == 1 and json.loads(result.stdout) == {"removed_pages": 0}
    assert "No space left" in result.stderr


def test_a_store_in_the_current_folder_has_a_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = mrr("store", "stats", store=Path("."))
    assert f"no store in {tmp_path.name};" in str(result.exception)


def test_verify_names_the_page_whose_picture_is_gone(tmp_path: Path) -> None:
    with PageStore(tmp_path) as opened:
        opened.add_page(make_page(), picture(0))
    for file in (tmp_path / "files").glob("*.png"):
        file.write_bytes(b"nothing")
    for _ in range(2):
        done = mrr("store", "verify", store=tmp_path)
        assert json.loads(done.stdout)["bad"] == [make_page().page_id] and done.exit_code == 1
        assert done.stderr == "The picture of a.png is damaged or gone; add it again.\n"


def test_verify_says_nothing_of_a_picture_that_is_whole(tmp_path: Path) -> None:
    with PageStore(tmp_path) as opened:
        opened.add_page(make_page(), picture(0))
        opened.put_embedding(
            make_page().page_id, "f", np.ones(4, np.float32), np.ones((2, 2), np.float32)
        )
        with opened._database.write() as db:
            db.execute("UPDATE embeddings SET vector = x'00'")
    done = mrr("store", "verify", store=tmp_path)
    assert json.loads(done.stdout)["bad"] == [make_page().page_id] and done.stderr == ""


def test_a_loop_of_links_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputRejected, match="store in a"):
        raise mrr("store", "stats", store=tmp_path / "a").exception  # type: ignore[misc]


def test_the_documents_of_rerank_can_be_removed_alone(tmp_path: Path) -> None:
    with PageStore(tmp_path) as opened:
        opened.add_page(make_page(), picture(0))
        opened.add_page(replace(make_page(), page_id="1" * 64, scope=DOCUMENTS), picture(0))
    result = mrr("store", "clear", "--documents", "--yes", store=tmp_path)
    assert json.loads(result.stdout) == {"removed_pages": 1}
    with PageStore(tmp_path) as opened:
        assert opened.scopes() == ["public"]
