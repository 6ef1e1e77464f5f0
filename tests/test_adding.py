"""Adding: every page is encoded once, and whatever is refused or has no room is told."""

from __future__ import annotations

import base64
import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_db.files import DiskFiles
from cache_db.store import PageStore
from mrr import MiniReranker, errors
from mrr.errors import Closed
from mrr.model.fused import FusedAttention
from mrr.types import AddedPage
from tests.engines import N_PAGES, logits, pictures, png, reopen
from tests.pages.files import make_tiff
from tests.tiny import picture


def test_pages_are_encoded_once_and_hits_afterwards(reranker: MiniReranker) -> None:
    first = reranker.add(pictures())
    assert [p.outcome for p in first.pages] == ["encoded"] * N_PAGES and not first.failed
    again = reranker.add(pictures())
    assert [p.outcome for p in again.pages] == ["hit"] * N_PAGES
    assert [p.page for p in again.pages] == [p.page for p in first.pages]
    for page in first.pages:
        assert page.n_kept_tokens == round(page.grid[0] * page.grid[1] / 2)
        assert page.nbytes > 0


def test_the_same_page_under_another_name_keeps_its_first(
    reranker: MiniReranker, tmp_path: Path
) -> None:
    for name in ("first.png", "second.png"):
        picture(0).save(tmp_path / name)
        (added,) = reranker.add(tmp_path / name).pages
        assert added.page.label == "first.png"
    assert [hit.page.label for hit in reranker.rank("blue page")] == ["first.png"]


def is_told_not_stored(added: AddedPage | None) -> bool:
    return added is not None and added.nbytes == 0 and "not stored" in (added.note or "")


@pytest.mark.parametrize("memory_bytes", [0, 2**30], ids=["no memory tier", "memory tier"])
def test_a_page_whose_kv_has_no_room_says_so_and_is_ranked_all_the_same(
    pair, tmp_path, memory_bytes
) -> None:
    in_memory = memory_bytes > 0
    with PageStore(tmp_path / "store", budget_bytes=9000, memory_bytes=memory_bytes) as small:
        engine = reopen(pair, tmp_path, store=small)
        for outcome in ("encoded", "hit" if in_memory else "encoded"):
            (added,) = engine.add(picture(0, (256, 256))).pages
            assert added.outcome == outcome and is_told_not_stored(added)
        told = engine.cache.stored(added.page)
        assert is_told_not_stored(told) if in_memory else told is None
        ranked = engine.rank("blue page")
        assert len(ranked) == 1 and ranked.usage.missed_pages == (not in_memory)
        engine.close()
    again = reopen(pair, tmp_path)
    assert again.rank("blue page").usage.missed_pages == 1
    again.close()


def test_kv_that_only_memory_holds_is_stored_when_its_page_is_added_with_room(
    pair, tmp_path
) -> None:
    with PageStore(tmp_path / "store", budget_bytes=9000) as store:
        engine = reopen(pair, tmp_path, store=store)
        assert is_told_not_stored(engine.add(picture(0, (256, 256))).pages[0])
        store._space.budget_bytes = 2**20
        (added,) = engine.add(picture(0, (256, 256))).pages
        assert (added.outcome, added.note) == ("hit", None) and added.nbytes > 0
        before = logits(engine.rank("blue page"))
        engine.close()
    again = reopen(pair, tmp_path)
    ranked = again.rank("blue page")
    assert ranked.usage.missed_pages == 0 and logits(ranked) == before
    again.close()


def test_a_disk_that_fills_between_picture_and_kv_is_told(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = DiskFiles.write

    def fill(self: DiskFiles, name: str, data: np.ndarray) -> None:
        if name.endswith(".kv"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(DiskFiles, "write", fill)
    assert is_told_not_stored(reranker.add(picture(0)).pages[0])
    assert is_told_not_stored(reranker.add(picture(0)).pages[0])
    monkeypatch.undo()
    assert reranker.add(picture(0)).pages[0].note is None


def test_a_page_that_another_process_removes_meanwhile_is_told_from_one_without_room(
    reranker: MiniReranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = reranker.cache.scorer.encode

    def removed_meanwhile(*arguments):
        with PageStore(tmp_path / "store") as other:
            other.clear()
        return encode(*arguments)

    monkeypatch.setattr(reranker.cache.scorer, "encode", removed_meanwhile)
    (added,) = reranker.add(picture(0)).pages
    assert added.nbytes == 0 and "removed from the store" in (added.note or "")
    assert "room" not in (added.note or "")


def test_closing_while_pages_are_added_ends_the_adding_and_leaves_no_child(
    pair, tmp_path: Path
) -> None:
    engine = reopen(pair, tmp_path)
    adding = engine.add_iter([png(picture(0)), png(picture(1))])
    next(adding)
    engine.close()
    with pytest.raises(Closed, match="from_pretrained"):
        next(adding)
    assert engine.decoder._child is None


@pytest.mark.parametrize("which", [0, 1])
def test_a_page_whose_k_or_v_is_not_finite_is_refused_and_not_stored(
    reranker: MiniReranker, monkeypatch, which: int
) -> None:
    project = FusedAttention.project_kv

    def broken(*args):
        kv = list(project(*args))
        kv[which] = kv[which] * float("nan")
        return tuple(kv)

    monkeypatch.setattr(FusedAttention, "project_kv", broken)
    report = reranker.add(pictures()[:1])
    (failed,) = report.failed
    assert not report.pages and failed.reason.startswith(f"{failed.file}: ")
    assert "not finite" in failed.reason
    assert reranker.store.pages(["public"]) == [], (
        "a page that cannot be scored is not one of the store's"
    )


def test_kv_that_fits_the_model_but_not_its_storage_is_refused_and_not_stored(
    reranker: MiniReranker, monkeypatch
) -> None:
    project = FusedAttention.project_kv

    def outlying(*args):
        k, v = project(*args)
        k[..., -1, 0] = 70_000.0  # the largest of fp16 is 65,504
        return k, v

    monkeypatch.setattr(FusedAttention, "project_kv", outlying)
    halves = reranker.with_config(replace(reranker.config, kv_dtype="fp16"))
    (failed,) = halves.add(pictures()[:1]).failed
    assert "not finite" in failed.reason and "kv_dtype" in failed.reason
    assert reranker.store.pages(["public"]) == []
    for wide in ("bf16", "int8"):
        other = reranker.with_config(replace(reranker.config, kv_dtype=wide))
        assert not other.add(pictures()[:1]).failed


def test_an_embedder_that_gives_no_finite_vector_stores_nothing(
    reranker: MiniReranker, monkeypatch
) -> None:
    embed = reranker.embedder.embed_page

    def broken(*args):
        vector, importance = embed(*args)
        return vector * float("nan"), importance

    monkeypatch.setattr(reranker.embedder, "embed_page", broken)
    report = reranker.add(pictures()[:1])
    assert "embedder" in report.failed[0].reason
    assert reranker.store.pages(["public"]) == []


def test_a_folder_is_added_as_the_files_in_it_and_a_picture_may_bring_its_name(
    reranker: MiniReranker, tmp_path: Path
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in (1, 0):
        picture(i).save(folder / f"{i}.png")
    report = reranker.add([folder, ("cat.jpg", picture(2)), tmp_path / "gone.png"])
    assert [p.page.label for p in report.pages] == ["0.png", "1.png", "cat.jpg"]
    assert [(f.file, f.reason) for f in report.failed] == [
        ("gone.png", "gone.png does not exist. Check its name.")
    ]
    (again,) = reranker.add(("cat.jpg", picture(2))).pages
    assert again.outcome == "hit"


def test_a_bad_file_among_good_ones_loses_nothing(reranker: MiniReranker, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png(picture(0)))
    (tmp_path / "bad.png").write_bytes(b"this is no picture")
    report = reranker.add([tmp_path / "bad.png", tmp_path / "good.png", ("more.png", b"")])
    assert [p.page.label for p in report.pages] == ["good.png"]
    assert [f.file for f in report.failed] == ["bad.png", "more.png"]
    assert all(str(tmp_path) not in f.reason for f in report.failed)


def test_a_page_that_two_documents_share_is_told_when_the_second_comes(
    reranker: MiniReranker,
) -> None:
    cover, inside = pictures()[:2]
    first = reranker.add([("report-2023.png", cover)])
    second = reranker.add([("report-2024.png", cover), ("inside.png", inside)])
    assert first.notes == () and first.pages[0].added_as is None
    assert [page.added_as for page in second] == ["report-2024.png", None]
    (note,) = second.notes
    assert "report-2024.png shows the same as report-2023.png" in note and "together" in note


def test_a_data_url_is_added_as_the_picture_in_it_and_never_printed(reranker: MiniReranker) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png(picture(0))).decode()}"
    (added,) = reranker.add(url).pages
    assert added.page.page_id == reranker.add(picture(0)).pages[0].page.page_id
    (failed,) = reranker.add(f"{url}?").failed
    assert failed.file == "file" and "is a data URL that is not base64" in failed.reason
    assert url[30:40] not in repr(failed)
    (named,) = reranker.add([("cat.png", f"{url}?")]).failed
    assert named.file == "cat.png" and named.reason.startswith("cat.png is a data URL")


def test_two_data_urls_are_two_pictures_and_no_name_with_one(reranker: MiniReranker) -> None:
    one, other = (
        f"data:image/png;base64,{base64.b64encode(png(picture(n))).decode()}" for n in (0, 1)
    )
    assert len(reranker.add((one, other))) == 2
    assert {page.label for page in reranker.store.pages(["public"])} == {"file", "file (2)"}


def test_a_page_that_was_added_as_the_first_of_its_file_is_known(reranker: MiniReranker) -> None:
    """As it was when no other page of a TIFF was read."""
    first, second = (image.convert("L") for image in pictures()[:2])
    tiff = make_tiff([first, second])
    item = next(iter(reranker.decode([("scan.tif", tiff)])))
    alone = reranker.add_page(replace(item, label="scan.tif (first page)", file_digest=""))
    again = reranker.add([("scan.tif", tiff)])
    assert [page.outcome for page in again] == ["hit", "encoded"]
    assert [page.page.label for page in again] == [alone.page.label, "scan.tif p. 2"]
    assert [page.added_as for page in again] == [None, None] and again.notes == ()


def test_a_refusal_names_its_error_so_that_a_service_can_tell_whose_fault_it_was(
    pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone.png"
    with PageStore(tmp_path / "store", budget_bytes=100) as full:
        engine = reopen(pair, tmp_path, store=full)
        failed = engine.add([gone, None, ("bad.png", b"x"), ("big.png", picture(0))]).failed
        engine.close()
    assert [(f.file, f.error) for f in failed] == [
        ("gone.png", "InputRejected"),
        ("file", "InputRejected"),
        ("bad.png", "InputRejected"),
        ("big.png", "BudgetExceeded"),
    ]
    assert {f.error for f in failed} <= set(vars(errors))


def test_a_store_in_memory_stores_kv_like_any_other(pair, tmp_path) -> None:
    with PageStore(None) as store:
        engine = reopen(pair, tmp_path, store=store)
        for outcome in ("encoded", "hit"):
            (added,) = engine.add(picture(0)).pages
            assert (added.outcome, added.note) == (outcome, None) and added.nbytes > 0
        told = engine.cache.stored(added.page)
        assert told is not None and (told.nbytes, told.note) == (added.nbytes, None)
        engine.close()
    with PageStore(None, memory_bytes=9000) as small:
        engine = reopen(pair, tmp_path, store=small)
        assert is_told_not_stored(engine.add(picture(0, (256, 256))).pages[0])
        engine.close()
