import numpy as np
import pytest
from PIL import Image
from store_samples import files_of, finish, make_page, make_picture, only_file, start

from cache_db import PageStore
from cache_db.catalogue import _MAX_MATRICES
from mrr.errors import BudgetExceeded


def add(store: PageStore, *numbers: int, scope: str = "public") -> None:
    for n in numbers:
        store.add_page(make_page(n, scope), make_picture(n))


def embed(store: PageStore, n: int, fingerprint: str = "f", scope: str = "public") -> None:
    vector, importance = np.full(4, n, np.float32), np.full((2, 3), n, np.float32)
    store.put_embedding(make_page(n, scope).page_id, fingerprint, vector, importance)


def test_pages_come_back_in_order_of_first_adding_scope_by_scope(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 3, 1, scope="mine")
        add(store, 2)
        add(store, 3, scope="mine")
        mine = [make_page(3, "mine"), make_page(1, "mine")]
        assert store.pages(["mine"]) == mine
        assert store.pages({"mine", "public"}) == [*mine, make_page(2)]
        assert store.pages(["other"]) == store.pages([]) == []
        assert store.page(make_page(2).page_id) == make_page(2)
        assert store.page("unknown") is None


def test_a_picture_comes_back_bit_for_bit_also_after_a_restart(tmp_path):
    for _ in range(2):
        with PageStore(tmp_path) as store:
            add(store, 1)
            image = store.image(make_page(1).page_id)
            assert image.mode == "RGB"
            assert image.tobytes() == make_picture(1).tobytes()
            assert store.image("unknown") is None
    assert len(files_of(tmp_path)) == 1


def test_a_picture_that_was_kept_is_read_whatever_size_pillow_would_refuse(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with PageStore(tmp_path) as store:
        add(store, 1)
        assert store.image(make_page(1).page_id).tobytes() == make_picture(1).tobytes()
        assert store.verify().bad == ()


@pytest.mark.parametrize(
    "wrong", [make_picture(1).convert("L"), make_picture(1).rotate(90, expand=True)]
)
def test_a_picture_that_is_not_the_pages_is_refused(tmp_path, wrong):
    with PageStore(tmp_path) as store, pytest.raises(ValueError, match="12×8"):
        store.add_page(make_page(1), wrong)


def test_a_damaged_picture_is_none_and_adding_the_page_again_brings_it_back(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 1)
        path = only_file(tmp_path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert store.image(make_page(1).page_id) is None
        assert store.stats().corrupt == 1
        assert store.pages(["public"]) == [make_page(1)]
        add(store, 1)
        assert store.image(make_page(1).page_id).tobytes() == make_picture(1).tobytes()
        assert store.stats().picture_bytes == only_file(tmp_path).stat().st_size


def test_a_deleted_picture_is_noticed_when_its_page_is_added_again(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 1)
        only_file(tmp_path).unlink()
        add(store, 1)
        assert store.image(make_page(1).page_id).tobytes() == make_picture(1).tobytes()


def test_a_cut_picture_is_replaced_when_its_page_is_added_again_and_its_file_goes(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 1)
        cut = only_file(tmp_path)
        cut.write_bytes(cut.read_bytes()[:-1])
        add(store, 1)
        assert only_file(tmp_path) != cut
        assert store.image(make_page(1).page_id).tobytes() == make_picture(1).tobytes()


def test_a_picture_over_the_budget_is_refused_with_the_numbers(tmp_path):
    with PageStore(tmp_path, budget_bytes=100) as store:
        with pytest.raises(BudgetExceeded, match=r"0\.0 MB do not fit"):
            add(store, 1)
        assert store.pages(["public"]) == []
        assert files_of(tmp_path) == []


def test_an_embedding_belongs_to_its_page_and_fingerprint(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 1)
        embed(store, 1)
        found = store.embedding(make_page(1).page_id, "f")
        assert found.vector.tolist() == [1] * 4
        assert found.importance.tolist() == [[1] * 3] * 2
        assert (found.vector.dtype, found.importance.dtype) == (np.float32, np.float32)
        assert store.embedding(make_page(1).page_id, "g") is None
        embed(store, 2)  # a page that is not in the store, or not any more
        assert store.embedding(make_page(2).page_id, "f") is None


def test_vectors_are_those_of_the_scopes_and_the_fingerprint_in_page_order(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 3, 1)
        add(store, 2, scope="mine")
        for n in (1, 3):
            embed(store, n)
        embed(store, 2, scope="mine")
        embed(store, 3, fingerprint="g")
        page_ids, matrix = store.vectors("f", ["public"])
        assert page_ids == [make_page(3).page_id, make_page(1).page_id]
        assert matrix.tolist() == [[3] * 4, [1] * 4]
        assert store.vectors("f", ["public", "mine"])[1][:, 0].tolist() == [3, 1, 2]
        assert store.vectors("f", ["other"])[1].shape == (0, 0)


def test_vectors_are_kept_in_memory_until_a_page_or_vector_changes(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 1, 2)
        embed(store, 1)
        first = store.vectors("f", ["public"])[1]
        with store.pinned(["a key"]):
            store.put("a key", "", {"k": np.ones(3)}, {})
        assert store.vectors("f", ["public"])[1] is first
        embed(store, 2)
        assert len(store.vectors("f", ["public"])[0]) == 2
        store.remove_pages([make_page(1).page_id])
        assert store.vectors("f", ["public"])[0] == [make_page(2).page_id]


def _embed_in(root, n):
    with PageStore(root) as store:
        embed(store, n)


def test_vectors_follow_what_another_process_adds(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 1, 2)
        embed(store, 1)
        assert len(store.vectors("f", ["public"])[0]) == 1
        finish(start(_embed_in, tmp_path, 2))
        assert len(store.vectors("f", ["public"])[0]) == 2


def test_the_vectors_of_many_scopes_are_kept_and_those_not_asked_for_longest_go(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 1)
        embed(store, 1)
        first, second = store.vectors("f", ["public", "0"])[1], store.vectors("f", ["public"])[1]
        for n in range(1, _MAX_MATRICES):
            assert store.vectors("f", ["public", "0"])[1] is first
            store.vectors("f", ["public", str(n)])
        assert store.vectors("f", ["public", "0"])[1] is first
        assert store.vectors("f", ["public"])[1] is not second


def test_vectors_that_change_while_they_are_read_are_read_again(tmp_path, monkeypatch):
    with PageStore(tmp_path) as store, PageStore(tmp_path) as other:
        add(store, 1, 2)
        embed(store, 1)
        read = store._catalogue._read_vectors

        def read_before_the_other_writes(*wanted):
            found = read(*wanted)
            embed(other, 2)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(store._catalogue, "_read_vectors", read_before_the_other_writes)
            store.vectors("f", ["public"])
        assert len(store.vectors("f", ["public"])[0]) == 2


def test_vectors_cannot_be_changed_by_their_readers(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 1)
        embed(store, 1)
        with pytest.raises(ValueError, match="read-only"):
            store.vectors("f", ["public"])[1][...] = 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("vector", "zeroblob(32)"),
        ("vector", "'text'"),
        ("vector", "7"),
        ("vector", "NULL"),
        ("importance", "zeroblob(32)"),
        ("importance", "'text'"),
        ("importance", "7"),
        ("n_rows", "3"),
        ("n_rows", "-1"),
        ("n_rows", "-2, n_cols = -3"),
        ("n_rows", "'two'"),
        ("n_cols", "NULL"),
        ("n_cols", "x'02'"),
    ],
)
@pytest.mark.parametrize("verified", [False, True], ids=["looked at", "verified"])
def test_a_damaged_vector_is_dropped_and_the_others_stay(tmp_path, column, value, verified):
    with PageStore(tmp_path) as store:
        add(store, 1, 2)
        embed(store, 1)
        embed(store, 2)
        with store._database.write() as db:
            db.execute(f"UPDATE embeddings SET {column} = {value} WHERE rowid = 1")
        if verified:
            report = store.verify()
            assert report.bad == (make_page(1).page_id,) and report.database_ok
        elif column == "vector":
            assert store.vectors("f", ["public"])[0] == [make_page(2).page_id]
        assert store.embedding(make_page(1).page_id, "f") is None
        assert store.vectors("f", ["public"])[0] == [make_page(2).page_id]
        assert store.stats().corrupt == 1


@pytest.mark.parametrize("verified", [False, True], ids=["looked at", "verified"])
def test_a_vector_of_another_length_than_the_others_is_dropped(tmp_path, verified):
    with PageStore(tmp_path) as store:
        add(store, 1, 2, 3)
        for n in (2, 3):
            embed(store, n)
        longer = np.ones(5, np.float32), np.ones((2, 3), np.float32)
        store.put_embedding(make_page(1).page_id, "f", *longer)
        store.put_embedding(make_page(1).page_id, "g", *longer)
        if verified:
            assert store.verify(repair=False).bad == (make_page(1).page_id,)
            assert store.verify().bad == (make_page(1).page_id,)
            assert store.embedding(make_page(1).page_id, "f") is None
            assert store.verify().ok
        page_ids, matrix = store.vectors("f", ["public"])
        assert page_ids == [make_page(2).page_id, make_page(3).page_id]
        assert matrix.tolist() == [[2] * 4, [3] * 4]
        assert store.embedding(make_page(1).page_id, "f") is None
        assert store.vectors("g", ["public"])[1].tolist() == [[1] * 5]
        assert store.stats().corrupt == 1


def test_removing_a_scope_removes_its_pages_only(tmp_path):
    with PageStore(tmp_path) as store:
        add(store, 1, 2, scope="mine")
        add(store, 1)
        assert store.remove_scope("mine") == 2
        assert store.remove_scope("mine") == 0
        assert store.pages(["mine", "public"]) == [make_page(1)]
        assert len(files_of(tmp_path)) == 1
