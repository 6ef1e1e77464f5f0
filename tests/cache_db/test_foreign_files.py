"""A folder that somebody else keeps files in too: the store deletes what it wrote, and no more."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from store_samples import files_of, is_right, leave_stray, make_key, make_page, make_picture, put

from cache_db import PageStore

OURS = "0123456789abcdef" * 2
FOREIGN = (
    "files/report.pdf",
    "files/photos/summer.png",
    "files/notes.kv",
    "files/notes.kv.tmp",
    f"files/{OURS}.txt",
    f"files/{OURS.upper()}.kv",
    f"files/{OURS}.kv/in a folder of such a name.txt",
    f"files/{OURS}.png.tmp/in another.txt",
    "sessions/login.json",
    f"sessions/{OURS[:16]}",
    f"sessions/{OURS[16:]}s/token",
    f"sessions/{'ab' * 8}/in a folder of such a name.txt",
    "notes.txt",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with files of others at every place where the store keeps its own."""
    for name in FOREIGN:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")
    (tmp_path / "files" / f"{'9' * 32}.kv").symlink_to(tmp_path / "notes.txt")
    (tmp_path / "files" / f"{'8' * 32}.png").symlink_to(tmp_path / "files" / "photos")
    return tmp_path


def assert_untouched(root: Path) -> None:
    left = {name for name in FOREIGN if (root / name).is_file()}
    assert left == set(FOREIGN)
    assert all((root / name).read_text() == f"mine: {name}" for name in FOREIGN)
    assert sum(path.is_symlink() for path in files_of(root)) == 2


def test_opening_a_store_beside_the_files_of_others_leaves_them_alone(root: Path) -> None:
    with PageStore(root) as store:
        assert store.stats().persistent and store.stats().note == ""
        assert_untouched(root)
    assert_untouched(root)


def test_whatever_a_store_removes_it_removes_nothing_of_others(root: Path) -> None:
    n_foreign = len(files_of(root))
    with PageStore(root, budget_bytes=10_000, memory_bytes=0) as store:
        store.add_page(make_page(1), make_picture(1))
        for n in range(5):  # the last ones evict the first
            put(store, n, page_id=make_page(1).page_id)
        assert store.stats().evicted > 0
        assert store.verify().ok  # what others keep is not in disorder
        leave_stray(root)
        assert store.verify().n_orphans == 1
        assert store.remove_pages([make_page(1).page_id]) == 1
        put(store, 1)
        store.clear()
        assert len(files_of(root)) == n_foreign
        put(store, 2)
    (root / "store.db").unlink()
    with PageStore(root, memory_bytes=0) as store:  # all that the lost database named goes
        assert len(files_of(root)) == n_foreign
        assert put(store, 3) and is_right(store.get(make_key(3)), 3)
    assert_untouched(root)


@pytest.mark.parametrize("name", ["report.pdf", "../notes.txt", "photos"])
def test_a_row_that_names_a_file_of_others_does_not_delete_it(root: Path, name: str) -> None:
    with PageStore(root, memory_bytes=0) as store:
        for action in (
            lambda: store.get(make_key(1)),
            store.verify,
            store.clear,
            lambda: put(store, 1),
        ):
            put(store, 1)
            with store._database.write() as db:
                db.execute("UPDATE entries SET file = ?", (name,))
            action()
    assert_untouched(root)


def _make_text(path: Path) -> None:
    path.write_text("a database, but of another kind\n" * 200)


def _make_tables(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipes (name)")
        db.execute("INSERT INTO recipes VALUES ('soup')")


@pytest.mark.parametrize("make", [_make_text, _make_tables])
def test_a_store_db_of_something_else_is_neither_written_nor_replaced(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "store.db"
    make(path)
    before = path.read_bytes()
    for _ in range(2):  # the first try leaves nothing that makes the second trust it
        with PageStore(tmp_path) as store:
            assert not store.stats().persistent
            assert "not written by a store. Move it, or choose another" in store.stats().note
            assert put(store, 1) and is_right(store.get(make_key(1)), 1)
            store.verify()
            store.clear()
    assert path.read_bytes() == before
