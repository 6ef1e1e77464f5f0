"""Documents by way of the store: what may be one, what is kept of them, and for how long."""

from __future__ import annotations

import base64
import io
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cache_db.store import PageStore
from mrr import MiniReranker
from mrr.documents import Recognized
from mrr.errors import InputRejected, PageLost
from mrr.pairs import sigmoid, with_instruction
from mrr.ranking import rank
from tests.engines import png
from tests.test_turn import waiting
from tests.tiny import picture

DOCUMENTS = [picture(i, (128 + 32 * i, 128)) for i in range(4)]


def test_a_store_that_is_cleared_meanwhile_costs_no_document_in_hand(
    reranker: MiniReranker, monkeypatch
) -> None:
    expected = reranker.rerank("blue page", DOCUMENTS)
    added = reranker.add([DOCUMENTS[0]]).pages[0].page

    def cleared(*given):  # as by another process
        reranker.store.clear()
        return rank(*given)

    monkeypatch.setattr("mrr.document_scores.rank", cleared)
    results = reranker.rerank("blue page", DOCUMENTS)
    assert [r.index for r in results] == [r.index for r in expected]
    logits = [r.logit for r in expected]
    assert [r.logit for r in results] == pytest.approx(logits, abs=1e-4)
    reranker.add([DOCUMENTS[0]])
    with pytest.raises(PageLost, match=r"Document 0, .*, cannot be read any more"):
        reranker.rerank("blue page", [added])


def test_documents_may_be_pictures_bytes_paths_or_page_ids(
    reranker: MiniReranker, tmp_path
) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(png(DOCUMENTS[0]))
    (added,) = reranker.add(DOCUMENTS[0]).pages
    page = added.page
    (hit,) = reranker.rank("blue")
    url = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    data = path.read_bytes()
    loud = url.replace("data:image/png;base64", "DATA:IMAGE/PNG;BASE64")
    of_bytes = [data, bytearray(data), memoryview(data), io.BytesIO(data)]
    read = reranker.rerank("blue", [DOCUMENTS[0], *of_bytes, path, str(path), url, loud])
    assert len({r.logit for r in read}) == 1
    assert [r.index for r in read] == list(range(9))  # ties keep the input order
    named = reranker.rerank("blue", [page.page_id, page, hit, added])
    assert len({r.logit for r in named}) == 1
    assert [r.index for r in named] == list(range(4))
    assert named[0].logit == pytest.approx(read[0].logit, abs=1e-5)


def test_a_folder_is_no_document_and_is_not_searched(reranker: MiniReranker, tmp_path) -> None:
    (tmp_path / "page.png").write_bytes(png(DOCUMENTS[0]))
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(InputRejected, match=r"Document 0: .* is a folder; one file is wanted"):
            reranker.rerank("blue", [folder])


def test_what_is_no_document_is_refused_by_its_position(reranker: MiniReranker) -> None:
    gone = reranker.add(DOCUMENTS[1]).pages[0].page
    reranker.remove_pages([gone.page_id])
    with pytest.raises(PageLost, match=r"Document 1, image, is not in the store\. Add it"):
        reranker.rerank("blue", [DOCUMENTS[0], gone])
    for url in ("data:image/png,raw", "data:image/png;base64,?"):
        with pytest.raises(InputRejected, match="Document 0 is a data URL that is not base64"):
            reranker.rerank("blue", [url])
    with pytest.raises(InputRejected, match="Document 0: A page cannot be read from ndarray"):
        reranker.rerank("blue", [np.zeros((64, 64, 3))])
    with pytest.raises(InputRejected, match="Document 0 does not give bytes"):
        reranker.rerank("blue", [io.StringIO("a text")])


def test_a_string_that_is_no_document_is_told_what_it_may_have_meant(
    reranker: MiniReranker,
) -> None:
    with pytest.raises(InputRejected, match=r"Document 1 is a URL, and none is fetched\. Download"):
        reranker.rerank("blue", [DOCUMENTS[0], "https://example.com/a.png"])
    with pytest.raises(InputRejected, match=r'Document 0: there is no file "a\.png", nor a page'):
        reranker.rerank("blue", ["in/a.png"])
    for text in ("A text about the bus.", "data: no URL, but a text"):
        with pytest.raises(InputRejected, match="texts are ranked by rank_texts"):
            reranker.rerank("blue", [text])


def test_what_has_no_name_but_its_position_is_named_once(reranker: MiniReranker) -> None:
    for wrong, reason in (
        (b"", r"^Document 0 is empty \(0 bytes\)"),
        (io.BytesIO(), r"^Document 0 is empty \(0 bytes\)"),
        (b"broken", "^Document 0 is not a PNG"),
        (("a.png", b"broken"), r"^Document 0: a\.png is not a PNG"),
        ("", "^Document 0 is an empty path"),
    ):
        with pytest.raises(InputRejected, match=reason):
            reranker.rerank("blue", [wrong])


def test_reranked_documents_are_cached_but_never_listed_among_the_pages(
    reranker: MiniReranker,
) -> None:
    reranker.rerank("blue page", DOCUMENTS)
    assert len(reranker.rank("blue page")) == 0


def test_an_unreadable_document_is_an_error_that_names_its_position(
    reranker: MiniReranker,
) -> None:
    with pytest.raises(InputRejected, match="Document 1"):
        reranker.rerank("blue", [DOCUMENTS[0], b"broken"])


def test_a_picture_that_turns_out_to_be_cut_short_is_refused_as_any_damaged_file(
    reranker: MiniReranker,
) -> None:
    def cut_short() -> Image.Image:  # opened, but not yet read
        return Image.open(io.BytesIO(png(picture(0))[:-300]))

    with pytest.raises(InputRejected, match="document 1 is damaged or incomplete"):
        reranker.rerank("blue", [DOCUMENTS[0], cut_short()])
    report = reranker.add([cut_short(), picture(1)])
    assert len(report.pages) == 1 and "is damaged or incomplete" in report.failed[0].reason


def test_a_document_whose_picture_is_lost_is_refused_by_its_position(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = reranker.add(DOCUMENTS[0]).pages[0].page
    monkeypatch.setattr(reranker.store, "image", lambda page_id: None)
    with pytest.raises(InputRejected, match="Document 0"):
        reranker.rerank("blue", [page.page_id], instruction="Find the map.")


def test_only_the_newest_documents_stay_and_never_at_the_cost_of_those_in_hand(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrr.document_scores._MAX_DOCUMENTS", 2)
    first = reranker.rerank("blue page", DOCUMENTS[:2])
    assert len(reranker.rerank("blue page", DOCUMENTS)) == len(DOCUMENTS) > 2
    reranker.rerank("blue page", DOCUMENTS[:1])
    assert len(reranker.store.pages(["documents"])) == 2
    again = reranker.rerank("blue page", DOCUMENTS[:2])
    assert [r.logit for r in again] == pytest.approx([r.logit for r in first], abs=1e-5)


def with_room(reranker: MiniReranker, nbytes: int) -> PageStore:
    reranker.store._space.budget_bytes = nbytes
    return reranker.store


def scan(seed: int) -> Image.Image:
    """A picture that PNG cannot make smaller: 200 KB."""
    noise = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def decoded(reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    names: list[str] = []
    pages = reranker.decoder.pages

    def noted(name: str, *given):
        names.append(name)
        return pages(name, *given)

    monkeypatch.setattr(reranker.decoder, "pages", noted)
    return names


def test_a_file_that_was_ranked_before_is_not_decoded_again_whatever_it_is_called(
    reranker: MiniReranker, decoded: list[str], tmp_path
) -> None:
    data, other = png(DOCUMENTS[0]), png(DOCUMENTS[1])
    path = tmp_path / "page.png"
    path.write_bytes(data)
    first = reranker.rerank("blue page", [data, other])
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    same = [path, str(path), data, bytearray(data), io.BytesIO(data), url]
    again = reranker.rerank("blue page", [*same, other])
    red = reranker.rerank("red", [data])
    assert decoded == ["document 0", "document 1"]
    logit = {result.index: result.logit for result in first}
    assert {r.index: r.logit for r in again} == dict.fromkeys(range(6), logit[0]) | {6: logit[1]}
    assert red[0].logit != logit[0]
    path.write_bytes(other)  # a file is what is in it
    assert reranker.rerank("blue page", [path])[0].logit == pytest.approx(logit[1], abs=1e-4)
    assert logit[0] != pytest.approx(logit[1], abs=1e-3)


def test_a_file_is_decoded_again_where_its_page_has_left_the_store(
    reranker: MiniReranker, decoded: list[str]
) -> None:
    data = png(DOCUMENTS[0])
    (first,) = reranker.rerank("blue page", [data])
    reranker.store.clear()
    (again,) = reranker.rerank("blue page", [data])
    assert again.logit == pytest.approx(first.logit, abs=1e-4) and len(decoded) == 2


def test_a_recognized_file_whose_stored_picture_is_lost_is_read_and_stored_again(
    reranker: MiniReranker, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png(DOCUMENTS[0])
    (first,) = reranker.rerank("blue page", [data])
    monkeypatch.setattr(type(reranker.store), "image", lambda *_: None)
    (other,) = reranker.rerank("blue page", [data], instruction="Another task.")  # no K/V for it
    monkeypatch.undo()
    assert other.logit == pytest.approx(
        reranker.rerank("blue page", [DOCUMENTS[0]], instruction="Another task.")[0].logit, abs=1e-4
    )
    assert reranker.rerank("blue page", [data])[0].logit == pytest.approx(first.logit, abs=1e-4)
    reranker.rerank("red", [data])
    assert len(decoded) == 2, "the third time it was stored again, the fourth time recognized"


def test_others_go_in_between_pages_that_are_encoded_for_another_instruction(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [png(document) for document in DOCUMENTS]
    reranker.rerank("blue page", files)
    twin = with_instruction(reranker, "Another task.")
    encode, order, others = twin.cache.encode, [], []

    def noted(*given):
        order.append("encoded")
        others.append(waiting(reranker.lock, lambda: order.append("another")))
        return encode(*given)

    monkeypatch.setattr(twin.cache, "encode", noted)
    reranker.rerank("blue page", files, instruction="Another task.")
    for other in others:
        other.join(60)
    assert order == ["encoded", "another"] * 4


def test_a_picture_with_a_name_is_a_picture(reranker: MiniReranker) -> None:
    (named,) = reranker.rerank("blue page", [("map.png", DOCUMENTS[0])])
    (plain,) = reranker.rerank("blue page", DOCUMENTS[:1])
    assert named.logit == plain.logit


def test_only_so_many_files_are_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrr.documents._MAX_FILES", 2)
    recognized = Recognized()
    for file in (b"a", b"b", b"c"):
        recognized.remember(("name", file), file.hex())
    known = [recognized.page_id(("another name", file)) for file in (b"a", b"b", b"c")]
    assert known == [None, "62", "63"]


def test_ever_new_documents_fill_no_store_and_keep_no_page_out(reranker: MiniReranker) -> None:
    store = with_room(reranker, 700_000)
    for i in range(8):
        assert len(reranker.rerank("blue page", [scan(i)])) == 1
    assert 0 < len(store.pages(["documents"])) <= 3
    report = reranker.add([scan(100 + i) for i in range(3)])
    assert not report.failed and all(page.nbytes > 0 for page in report.pages)
    assert len(reranker.rerank("blue page", [scan(0)])) == 1


def test_documents_in_hand_do_not_push_each_other_out(reranker: MiniReranker) -> None:
    expected = [r.logit for r in reranker.rerank("blue page", DOCUMENTS)]
    reranker.remove_scope("documents")
    room = 3 * max(len(png(document)) for document in DOCUMENTS)
    store = with_room(reranker, room)
    for _ in range(2):
        got = [r.logit for r in reranker.rerank("blue page", DOCUMENTS)]
        assert got == pytest.approx(expected, abs=1e-5)
    assert store.stats().picture_bytes <= room


@pytest.mark.parametrize("order", ["vision-first", "query-first"])
def test_documents_that_no_store_has_room_for_get_the_same_scores(
    reranker: MiniReranker, order
) -> None:
    engine = reranker.with_config(replace(reranker.config, order=order))
    expected = {r.index: r.logit for r in engine.rerank("blue page", DOCUMENTS)}
    engine.remove_scope("documents")
    store = with_room(reranker, 100)
    got = {r.index: r.logit for r in engine.rerank("blue page", DOCUMENTS)}
    assert got == pytest.approx(expected, abs=1e-5)
    assert not store.pages(["documents"])
    scores = engine.predict([("blue page", document) for document in DOCUMENTS])
    assert scores == pytest.approx([sigmoid(expected[i]) for i in range(4)], abs=1e-5)


def test_others_may_rank_while_a_document_is_read(reranker: MiniReranker) -> None:
    reranker.add([DOCUMENTS[0]])
    ranked = threading.Event()

    class Slow(io.BytesIO):
        """A file that comes over a slow line."""

        def read(self, *size: int) -> bytes:
            other = threading.Thread(target=lambda: (reranker.rank("x"), ranked.set()))
            other.start()
            other.join(60)
            return super().read(*size)

    reranker.rerank("blue page", [Slow(png(DOCUMENTS[1]))])
    assert ranked.is_set(), "the engine was held while a file was read"
