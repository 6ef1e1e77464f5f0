"""F12: names are labels only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrr.pages.ingest import read_pages
from mrr.pages.naming import as_range, display_name, page_label, page_numbers
from mrr.pages.sandbox import Decoder
from mrr.types import FailedFile, PageImage
from tests.pages.files import encoded, photo

NAMES = [
    ("report.pdf", "report.pdf"),
    ("../../etc/passwd", "passwd"),
    ("/abs/olute.png", "olute.png"),
    ("C:\\Users\\me\\scan.png", "scan.png"),
    ("C:\\x", "x"),
    ("a\0b.png", "ab.png"),
    (".env", ".env"),
    ("CON", "CON"),
    ("..", ".."),
    ("", "unnamed file"),
    ("folder/", "unnamed file"),
    (" \t\n ", "unnamed file"),
    ("invoice\u202egnp.exe", "invoicegnp.exe"),
    ("\u2066a\u2069\u200f.png", "a.png"),
    ("line\r\nbreak.png", "line break.png"),
    ("\x1b[31mred.png", "[31mred.png"),
    ("<img src=x onerror=alert(1)>.png", "<img src=x onerror=alert(1)>.png"),
    ("😀 été.png", "😀 été.png"),
    ("e\u0301.png", "é.png"),
    ("\ud800.png", ".png"),
    ("a" * 300 + ".png", "a" * 67 + "…" + "a" * 8 + ".png"),
    ("{0}%s$HOME.png", "{0}%s$HOME.png"),
]


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_a_name_is_shown_as_one_short_visible_line(name: str, shown: str) -> None:
    assert display_name(name) == shown


@settings(max_examples=300)
@given(st.text(st.characters(), max_size=200))
def test_no_name_is_empty_long_or_hides_a_control(name: str) -> None:
    shown = display_name(name)
    assert 0 < len(shown) <= 80
    assert not any(
        ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 or "\u202a" <= c <= "\u202e" for c in shown
    )
    assert "/" not in shown
    assert "\\" not in shown
    assert display_name(shown) == shown


def test_hostile_names_touch_no_file_and_come_back_in_every_answer(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "witness").write_text("unchanged")
    good, bad = encoded(photo(), "PNG"), b"no image"
    for name, shown in NAMES:
        page, failed = read_pages(decoder, [(name, good), (name, bad)])
        assert isinstance(page, PageImage)
        assert isinstance(failed, FailedFile)
        assert (page.label, page.source, failed.file) == (shown, shown, shown)
        assert failed.reason.startswith(f"{shown} is not a PNG, JPEG, WebP, GIF, TIFF or PDF file.")
    assert [path.name for path in tmp_path.iterdir()] == ["witness"]
    assert (tmp_path / "witness").read_text() == "unchanged"


def test_a_page_is_called_by_its_own_label_only_where_that_differs() -> None:
    assert page_label("x.pdf", 4, "") == "x.pdf p. 4"
    assert page_label("x.pdf", 4, "4") == "x.pdf p. 4"
    assert page_label("x.pdf", 4, "iv") == "x.pdf p. iv (4)"
    assert page_label("x.pdf", 4, "\u202e\0") == "x.pdf p. 4"


@given(st.sets(st.integers(1, 40), min_size=1))
def test_page_numbers_are_written_as_they_are_read(numbers: set[int]) -> None:
    written = as_range(sorted(numbers))
    assert page_numbers(written, "x.pdf", 40) == sorted(numbers)


def test_runs_of_pages_are_written_short() -> None:
    assert as_range([2, 3, 4, 7, 9, 10]) == "2-4,7,9-10"
