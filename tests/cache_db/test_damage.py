import contextlib
import os
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from store_samples import (
    files_of,
    is_right,
    leave_stray,
    make_key,
    make_page,
    make_picture,
    only_file,
    put,
)

from cache_db import PageStore, health
from cache_db.schema import MIGRATIONS
from mrr.errors import CorruptEntry

pytestmark = pytest.mark.fault


@pytest.fixture
def store(tmp_path):
    with PageStore(tmp_path, memory_bytes=0) as store:
        yield store


def assert_detected(store: PageStore, path, content: bytes) -> None:
    """The file with this content is refused, without the memory of an earlier refusal."""
    path.write_bytes(content)
    (row,) = store._entries.rows([make_key(1)])
    with pytest.raises(CorruptEntry):
        store._entries.load(row)


def test_every_truncation_and_extension_is_detected(store, tmp_path):
    put(store, 1)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    n_header = 8 + int.from_bytes(whole[:8], "little")
    lengths = {0, 1, 7, 8, n_header - 1, n_header, len(whole) - 1}
    lengths |= {int(n) for n in np.random.default_rng(0).integers(0, len(whole), 200)}
    for length in lengths:
        assert_detected(store, path, whole[:length])
    assert_detected(store, path, whole + b"\0")
    path.write_bytes(whole)
    assert is_right(store.get(make_key(1)), 1)


def test_every_flipped_bit_is_detected(store, tmp_path):
    put(store, 1)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    n_header_bits = 8 * (8 + int.from_bytes(whole[:8], "little"))
    random_bits = np.random.default_rng(0).integers(n_header_bits, 8 * len(whole), 1000)
    (row,) = store._entries.rows([make_key(1)])
    with path.open("r+b", buffering=0) as file:
        for bit in [*range(n_header_bits), *random_bits.tolist()]:
            byte = whole[bit // 8]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
            with pytest.raises(CorruptEntry):
                store._entries.load(row)
            os.pwrite(file.fileno(), bytes([byte]), bit // 8)
    assert is_right(store.get(make_key(1)), 1)


def _swap(path):
    other = next(p for p in files_of(path.parent.parent) if p != path)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _replace_by_directory(path):
    path.unlink()
    path.mkdir()
    (path / "something").write_text("else")


def _replace_by_link(path):
    copy = path.parent.parent / "copy"
    path.rename(copy)
    path.symlink_to(copy)


def _replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = [
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(bytes(path.stat().st_size)),
    lambda path: path.unlink(),
    _swap,
    _replace_by_directory,
    _replace_by_link,
    _replace_by_pipe,
]
NAMES = ["truncated", "zeroed", "deleted", "swapped", "directory", "link", "pipe"]


@pytest.mark.parametrize("damage", DAMAGES, ids=NAMES)
def test_a_damaged_entry_is_a_counted_miss_once_and_the_next_put_is_right(store, tmp_path, damage):
    put(store, 1)
    path = only_file(tmp_path)
    put(store, 2)
    damage(path)
    assert store.get(make_key(1)) is None
    assert store.stats().corrupt == 1
    assert store.contains([make_key(1)]) == set()
    for n in range(5):  # nothing of the rejected bytes reaches what follows
        put(store, 1)
        put(store, 10 + n)
        assert is_right(store.get(make_key(1)), 1)
        assert is_right(store.get(make_key(10 + n)), 10 + n)
    assert store.get(make_key(2)) is None or is_right(store.get(make_key(2)), 2)


@pytest.mark.parametrize("damage", DAMAGES, ids=NAMES)
def test_verify_finds_the_damage_repairs_it_and_is_then_content(store, tmp_path, damage):
    store.add_page(make_page(1), make_picture(1))
    put(store, 1)
    put(store, 2)
    sound = store.verify()
    assert sound.ok and not sound.repaired, "there was nothing to repair"
    entry = next(path for path in files_of(tmp_path) if path.suffix == ".kv")
    damage(entry)
    leave_stray(tmp_path)
    found = store.verify(repair=False)
    assert not found.ok and found.bad and found.n_orphans == 1 and not found.repaired
    assert store.verify(repair=False) == found
    assert store.verify() == replace(found, repaired=True)
    store.add_page(make_page(1), make_picture(1))  # no repair brings back a picture
    assert store.verify().ok


def test_verify_finds_damaged_pictures_and_vectors(store, tmp_path):
    store.add_page(make_page(1), make_picture(1))
    store.put_embedding(make_page(1).page_id, "f", np.ones(4, np.float32), np.ones((2, 2)))
    with store._database.write() as db:
        db.execute("UPDATE embeddings SET vector = zeroblob(32)")
    only_file(tmp_path).write_bytes(b"x")
    assert store.verify().bad == (make_page(1).page_id,) * 2


def test_verify_lets_go_what_the_dead_held_when_it_repairs(store, tmp_path):
    stray = leave_stray(tmp_path)
    with store._database.write() as db:
        db.execute("INSERT INTO pins VALUES ('a pin', 'the dead', ?)", (make_key(1),))
        db.execute("INSERT INTO reservations VALUES (?, 'the dead', 1)", (stray.name,))
    for repair, n_left in ((False, 1), (True, 0)):
        assert store.verify(repair).ok
        assert len(files_of(tmp_path)) == n_left
        with store._database.read() as db:
            for table in ("pins", "reservations"):
                assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (n_left,)


def test_a_page_is_bad_until_its_lost_picture_is_added_again(store, tmp_path):
    store.add_page(make_page(1), make_picture(1))
    only_file(tmp_path).unlink()
    store.add_page(make_page(2), make_picture(2))
    for _ in range(2):  # the first removes what is left of the picture
        assert store.verify().bad == (make_page(1).page_id,)
    store.add_page(make_page(1), make_picture(1))
    assert store.verify().ok


def test_a_page_without_its_picture_is_bad_until_it_is_removed(store, tmp_path):
    store.add_page(make_page(1), make_picture(1))
    only_file(tmp_path).unlink()
    assert store.image(make_page(1).page_id) is None
    assert store.verify().bad == (make_page(1).page_id,)
    store.remove_pages([make_page(1).page_id])
    assert store.verify().ok


def test_a_wrong_row_is_a_miss(store):
    put(store, 1)
    with store._database.write() as db:
        db.execute("UPDATE entries SET digest = zeroblob(16)")
    assert store.get(make_key(1)) is None


@pytest.mark.parametrize("wreck", ["delete", "truncate", "cut", "junk", "header"])
@pytest.mark.parametrize("while_open", [False, True], ids=["closed", "open"])
def test_a_lost_or_damaged_database_is_started_anew(tmp_path, wreck, while_open):
    path = tmp_path / "store.db"
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(PageStore(tmp_path, memory_bytes=0))
        for n in range(3):
            put(store, n)
        if not while_open:
            stack.close()
        match wreck:
            case "delete":
                path.unlink()
            case "truncate":
                os.truncate(path, 0)
            case "cut":
                os.truncate(path, path.stat().st_size // 3)
            case "junk":
                path.write_bytes(os.urandom(20000))
            case "header":
                with path.open("r+b") as file:
                    file.write(b"not a database, not at all")
        if not while_open:
            store = stack.enter_context(PageStore(tmp_path, memory_bytes=0))
        for n in range(3):
            entry = store.get(make_key(n))
            assert entry is None or is_right(entry, n)
        put(store, 7)
        put(store, 7)
        assert is_right(store.get(make_key(7)), 7)
        assert store.stats().persistent
        assert len(files_of(tmp_path)) == store.stats().n_entries  # none of the lost rows' files
    with PageStore(tmp_path, memory_bytes=0) as store:
        assert is_right(store.get(make_key(7)), 7)
        assert store.verify(repair=False).ok


def test_a_newer_schema_is_left_alone(tmp_path, caplog):
    with PageStore(tmp_path) as store:
        put(store, 1)
        with store._database.write() as db:
            MIGRATIONS._record_applied(db, "m999_from_the_future")
    with PageStore(tmp_path) as store:
        assert not store.stats().persistent
        assert "m999_from_the_future" in store.stats().note
        assert store.stats().note.endswith("Update this program, or choose another folder.")
        put(store, 2)
        assert is_right(store.get(make_key(2)), 2)
    assert len(files_of(tmp_path)) == 1


def test_a_failing_read_is_a_miss_with_one_warning(store, monkeypatch, caplog):
    for n in range(3):
        put(store, n)

    def fail(fd, buffers):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("cache_db.files.os.readv", fail)
    assert store.get_many([make_key(n) for n in range(3)]) == {}
    assert [record.message for record in caplog.records if record.name == "cache_db"] == [
        "Cannot read an entry's file: Input/output error. Going on without until it works again."
    ]
    assert "Input/output error" in store.stats().note


def test_running_out_of_file_handles_loses_no_entry(store, monkeypatch):
    put(store, 1)
    with monkeypatch.context() as patch:
        real_open = os.open

        def fail(path, *arguments):
            if str(path).endswith(".kv"):
                raise OSError(24, "Too many open files")
            return real_open(path, *arguments)

        patch.setattr("cache_db.files.os.open", fail)
        assert store.get(make_key(1)) is None
    assert is_right(store.get(make_key(1)), 1)


@pytest.mark.parametrize("suffix", [".kv", ".png"])
def test_verify_without_file_handles_drops_nothing_and_does_not_call_the_store_sound(
    store, monkeypatch, suffix
):
    store.add_page(make_page(1), make_picture(1))
    put(store, 1)
    with monkeypatch.context() as patch:
        real_open = os.open

        def fail(path, *arguments):
            if str(path).endswith(suffix):
                raise OSError(24, "Too many open files")
            return real_open(path, *arguments)

        patch.setattr("cache_db.files.os.open", fail)
        report = store.verify()
    assert not report.ok and report.bad == ()
    assert "Too many open files" in store.stats().note
    assert store.stats().corrupt == 0
    assert store.verify().ok
    assert is_right(store.get(make_key(1)), 1)
    assert store.image(make_page(1).page_id) is not None


def test_an_unreadable_file_is_a_miss(store, tmp_path, monkeypatch):
    put(store, 1)
    real_open = os.open

    def refuse(path, *arguments):  # chmod does not stop root
        if str(path).endswith(".kv"):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("cache_db.files.os.open", refuse)
        assert store.get(make_key(1)) is None
    put(store, 1)
    assert is_right(store.get(make_key(1)), 1)


def test_an_entry_that_names_the_file_of_another_takes_nothing_with_it(store):
    store.add_page(make_page(1), make_picture(1))
    for n in (1, 2):
        put(store, n)
    (other,) = store._entries.rows([make_key(2)])
    (picture,) = store._catalogue.pictures([make_page(1).page_id])
    for file in (other.file, picture.file):
        put(store, 1)
        with store._database.write() as db:
            db.execute("UPDATE entries SET file = ? WHERE key = ?", (file, make_key(1)))
        assert store.get(make_key(1)) is None
    assert is_right(store.get(make_key(2)), 2)
    assert store.image(make_page(1).page_id) is not None


def _put_again(store, monkeypatch):
    assert put(store, 1, page_id=make_page(1).page_id) > 0
    assert is_right(store.get(make_key(1)), 1)


def _evict(store, monkeypatch):
    store._space.budget_bytes = store.stats().picture_bytes + store.stats().kv_bytes
    assert put(store, 2) > 0
    assert store.stored([make_key(1)]) == set()


def _remove(store, monkeypatch):
    assert store.remove_pages([make_page(1).page_id]) == 1
    assert store.page(make_page(1).page_id) is None and store.get(make_key(1)) is None


def _remove_from_a_full_disk(store, monkeypatch):
    delete_rows = health._delete_rows

    def fail_once(*arguments):
        monkeypatch.setattr(health, "_delete_rows", delete_rows)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(health, "_delete_rows", fail_once)
    _remove(store, monkeypatch)


@pytest.mark.parametrize("action", [_put_again, _evict, _remove, _remove_from_a_full_disk])
def test_a_picture_does_not_go_with_an_entry_of_another_page_that_names_it(
    store, monkeypatch, action
):
    for n in (1, 2):
        store.add_page(make_page(n), make_picture(n))
    put(store, 1, page_id=make_page(1).page_id)
    (picture,) = store._catalogue.pictures([make_page(2).page_id])
    with store._database.write() as db:
        db.execute("UPDATE entries SET file = ?", (picture.file,))
    action(store, monkeypatch)
    image = store.image(make_page(2).page_id)
    assert image is not None and image.tobytes() == make_picture(2).tobytes()


def test_a_page_that_names_the_picture_of_another_is_added_again_and_the_other_keeps_it(store):
    for n in (1, 2):
        store.add_page(make_page(n), make_picture(n))
    (picture,) = store._catalogue.pictures([make_page(2).page_id])
    with store._database.write() as db:
        sql = "UPDATE pages SET file = ?, nbytes = 7 WHERE page_id = ?"
        db.execute(sql, (picture.file, make_page(1).page_id))
    store.add_page(make_page(1), make_picture(1))
    for n in (1, 2):
        assert store.image(make_page(n).page_id).tobytes() == make_picture(n).tobytes()


@pytest.mark.parametrize("value", ["NULL", "x'ff'"])
@pytest.mark.parametrize("action", [_put_again, _evict, _remove, _remove_from_a_full_disk])
def test_an_entry_that_names_no_file_is_replaced_evicted_and_removed_as_any(
    store, monkeypatch, action, value
):
    store.add_page(make_page(1), make_picture(1))
    put(store, 1, page_id=make_page(1).page_id)
    with store._database.write() as db:
        db.execute(f"UPDATE entries SET file = {value}")
    action(store, monkeypatch)
    store.verify()
    assert store.verify().ok
