"""The field's conventions: rerank, predict and rank_texts."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cache_db.store import PageStore
from mrr import MiniReranker
from mrr.documents import Recognized
from mrr.errors import InputRejected
from mrr.model.scorer import Scorer
from mrr.pairs import sigmoid, with_instruction
from mrr.ranking import rank
from tests.engines import png
from tests.test_turn import waiting
from tests.tiny import picture

DOCUMENTS = [picture(i, (128 + 32 * i, 128)) for i in range(4)]
TEXTS = ["a", "some longer candidate text", "blue page"]


def test_rerank_gives_input_positions_in_descending_relevance(reranker: MiniReranker) -> None:
    results = reranker.rerank("blue page", DOCUMENTS)
    assert sorted(r.index for r in results) == [0, 1, 2, 3]
    scores = [r.relevance_score for r in results]
    assert scores == sorted(scores, reverse=True)
    assert all(r.document is None for r in results)


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
    with pytest.raises(InputRejected, match=r"Document 0, .*, cannot be read any more"):
        reranker.rerank("blue page", [added])


def test_top_n_and_documents_are_returned_on_request(reranker: MiniReranker) -> None:
    everything = reranker.rerank("blue page", DOCUMENTS)
    some = reranker.rerank("blue page", DOCUMENTS, top_n=2, return_documents=True)
    assert [r.index for r in some] == [r.index for r in everything[:2]]
    assert all(r.document is DOCUMENTS[r.index] for r in some)


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
    with pytest.raises(InputRejected, match=r"Document 1, image, is not in the store\. Add it"):
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


def test_pages_of_other_scopes_than_those_named_are_as_unknown_as_any(
    reranker: MiniReranker,
) -> None:
    mine = reranker.add(DOCUMENTS[0], scope="mine").pages[0]
    theirs = reranker.add(DOCUMENTS[1], scope="theirs").pages[0]
    (score,) = reranker.predict([("blue", mine.page.page_id)])
    assert reranker.predict(("blue", mine.page.page_id), scopes=["mine"]) == score
    (own,) = reranker.rerank("blue", [mine], scopes="mine")
    assert own.relevance_score == score
    assert len(reranker.rerank("blue", [mine, theirs, DOCUMENTS[2]])) == 3, "by id, everybody's"
    assert len(reranker.rerank("blue", [mine, DOCUMENTS[2]], scopes=["mine"])) == 2
    unknown = "there is no file .*, nor a page of this id"
    for page, reason in ((theirs, "is not in the store"), (theirs.page.page_id, unknown)):
        with pytest.raises(InputRejected, match=f"Document 1.* {reason}"):
            reranker.rerank("blue", [mine, page], scopes=["mine"])
        with pytest.raises(InputRejected, match=f"Pair 1.* {reason}"):
            reranker.predict([("blue", mine), ("blue", page)], scopes=["mine"])
        with pytest.raises(InputRejected, match=f"The query picture.* {reason}"):
            reranker.rank_texts(page, ["blue"], scopes="mine")
    assert reranker.rank_texts(mine, ["blue"], scopes="mine") == reranker.rank_texts(mine, ["blue"])
    as_text = reranker.predict((theirs.page.page_id, mine), scopes=["mine"])
    reranker.remove_pages(theirs)
    assert reranker.predict((theirs.page.page_id, mine), scopes=["mine"]) == as_text


def test_one_that_is_not_in_a_list_is_refused_with_the_list_to_pass(
    reranker: MiniReranker, tmp_path
) -> None:
    for one in ("a.png", tmp_path / "a.png", DOCUMENTS[0], png(DOCUMENTS[0])):
        with pytest.raises(InputRejected, match=r"Pass a list: \[document\]"):
            reranker.rerank("blue", one)
    with pytest.raises(InputRejected, match=r"Pass a list: \[text\]"):
        reranker.rank_texts(DOCUMENTS[0], "abc")


def test_what_can_be_gone_through_only_once_is_ranked_as_a_list(reranker: MiniReranker) -> None:
    expected = reranker.rerank("blue", DOCUMENTS, return_documents=True)
    assert reranker.rerank("blue", (d for d in DOCUMENTS), return_documents=True) == expected
    ranked = reranker.rank_texts(DOCUMENTS[0], TEXTS)
    assert reranker.rank_texts(DOCUMENTS[0], iter(TEXTS)) == ranked
    assert reranker.rank_texts(DOCUMENTS[0], np.array(TEXTS)) == ranked
    pairs = [("blue", document) for document in DOCUMENTS]
    assert np.array_equal(reranker.predict(iter(pairs)), reranker.predict(pairs))


def test_however_many_documents_tie_they_keep_the_input_order(reranker: MiniReranker) -> None:
    two = [DOCUMENTS[0], DOCUMENTS[1]] * 64  # a sort that is not stable shows beyond 16
    order = [r.index for r in reranker.rerank("blue", two)]
    halves = order[:64], order[64:]
    assert sorted(halves) == [list(range(0, 128, 2)), list(range(1, 128, 2))]


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


def test_an_instruction_that_comes_again_finds_what_was_computed_for_it(
    reranker: MiniReranker,
) -> None:
    def engine(instruction: str) -> MiniReranker:
        return with_instruction(reranker, instruction)

    assert engine("Find the map.") is engine("Find the map.") is not engine("Find a map.")
    often = engine("Find the map.")
    for i in range(20):
        engine(f"Find page {i}.")
        assert engine("Find the map.") is often, "what is in use was dropped"
    assert engine("Find page 19.").config.instruction == "Find page 19."
    assert len(reranker._twins) <= 8


def test_another_instruction_changes_the_logits(reranker: MiniReranker) -> None:
    one = reranker.rerank("blue", DOCUMENTS)
    two = reranker.rerank("blue", DOCUMENTS, instruction="Find the map.")
    assert {r.index: r.logit for r in one} != {r.index: r.logit for r in two}


def test_predict_equals_rerank_whatever_the_grouping(reranker: MiniReranker) -> None:
    queries = ["blue page", "red"]
    pairs = [(q, d) for d in DOCUMENTS for q in queries]
    scores = reranker.predict(pairs)
    for q in queries:
        expected = {r.index: r.relevance_score for r in reranker.rerank(q, DOCUMENTS)}
        got = [s for s, (query, _) in zip(scores, pairs, strict=True) if query == q]
        assert np.allclose(got, [expected[i] for i in range(4)], atol=1e-6)


def test_pairs_that_are_made_when_they_are_asked_for_are_scored_as_any(
    reranker: MiniReranker,
) -> None:
    class Lazy(Sequence):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i):
            if i >= 4:
                raise IndexError
            return picture(i, (128 + 32 * i, 128)), "blue page"

    expected = [reranker.rank_texts(d, ["blue page"])[0].relevance_score for d in DOCUMENTS]
    assert np.allclose(reranker.predict(Lazy()), expected, atol=1e-6)


def test_one_pair_gets_a_number(reranker: MiniReranker) -> None:
    for pair in (("blue page", DOCUMENTS[0]), (DOCUMENTS[0], "blue page")):
        score = reranker.predict(pair)
        assert isinstance(score, float) and score == reranker.predict([pair])[0]
    two = ("blue page", DOCUMENTS[0]), ("red", DOCUMENTS[1])
    assert np.array_equal(reranker.predict(two), reranker.predict(list(two)))


def test_a_stored_page_may_be_the_query_picture(reranker: MiniReranker) -> None:
    (added,) = reranker.add(DOCUMENTS[0]).pages
    (hit,) = reranker.rank("blue")
    url = f"data:image/png;base64,{base64.b64encode(png(DOCUMENTS[0])).decode()}"
    expected = reranker.rank_texts(DOCUMENTS[0], TEXTS)
    for image in (added, added.page, hit, added.page.page_id, url):
        assert reranker.rank_texts(image, TEXTS) == expected
        scores = reranker.predict([(image, text) for text in TEXTS])
        assert [scores[r.index] for r in expected] == [
            pytest.approx(r.relevance_score) for r in expected
        ]
        with pytest.raises(InputRejected, match="Both sides"):
            reranker.predict([(DOCUMENTS[0], image)])
    reranker.remove_pages([added.page.page_id])
    with pytest.raises(InputRejected, match="The query picture, image, is not in the store"):
        reranker.rank_texts(hit, TEXTS)


def test_a_query_that_begins_as_a_data_url_does_is_a_query(reranker: MiniReranker) -> None:
    query = "data: revenue, by region"
    expected = reranker.rerank(query, DOCUMENTS[:1])[0].relevance_score
    assert reranker.predict((query, DOCUMENTS[0])) == pytest.approx(expected)


def test_equal_texts_tie_and_keep_the_input_order(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Scorer.score

    def rounded(self, texts, pages, stages):  # otherwise from row to row, as a batch does it
        return score(self, texts, pages, stages) + 1e-5 * np.arange(len(texts))

    monkeypatch.setattr(Scorer, "score", rounded)
    texts = TEXTS * 3
    results = reranker.rank_texts(DOCUMENTS[0], texts)
    for i, text in enumerate(TEXTS):
        equal = [r for r in results if texts[r.index] == text]
        assert [r.index for r in equal] == [i, i + 3, i + 6]
        (logit,) = {r.logit for r in equal}
        (alone,) = reranker.rank_texts(DOCUMENTS[0], [text])
        assert logit == pytest.approx(alone.logit, abs=1e-4)


def test_a_document_whose_picture_is_lost_is_refused_by_its_position(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = reranker.add(DOCUMENTS[0]).pages[0].page
    monkeypatch.setattr(reranker.store, "image", lambda page_id: None)
    with pytest.raises(InputRejected, match="Document 0"):
        reranker.rerank("blue", [page.page_id], instruction="Find the map.")


def test_a_score_at_the_end_of_the_scale_is_no_warning() -> None:
    with np.errstate(all="raise"):
        assert (sigmoid(-800.0), sigmoid(800.0)) == (0.0, 1.0)
    assert sigmoid(1.5) == pytest.approx(0.8175744761936437)


def test_rank_texts_runs_the_picture_as_the_query(reranker: MiniReranker) -> None:
    results = reranker.rank_texts(DOCUMENTS[0], TEXTS)
    assert sorted(r.index for r in results) == [0, 1, 2]
    alone = {i: reranker.rank_texts(DOCUMENTS[0], [t])[0].logit for i, t in enumerate(TEXTS)}
    for result in results:
        assert result.logit == pytest.approx(alone[result.index], abs=1e-4)
    scores = reranker.predict([(DOCUMENTS[0], t) for t in TEXTS])
    assert np.allclose(scores[[r.index for r in results]], [r.relevance_score for r in results])


def test_a_candidate_text_is_refused_rather_than_cut(reranker: MiniReranker) -> None:
    with pytest.raises(InputRejected, match="Text 1 has"):
        reranker.rank_texts(DOCUMENTS[0], ["a", "word " * 5000])
    with pytest.raises(InputRejected, match="Text 1 is None; every candidate is a text"):
        reranker.rank_texts(picture(0), ["a", None])
    with pytest.raises(InputRejected, match="Text 1 is empty"):
        reranker.rank_texts(DOCUMENTS[0], ["a", " "])
    long = ["word " * 600 + end for end in ("red", "blue")]
    one, two = reranker.rank_texts(DOCUMENTS[0], long)
    assert one.logit != two.logit


def test_a_path_on_the_first_side_is_text_and_the_refusal_says_so(
    reranker: MiniReranker, tmp_path
) -> None:
    path = tmp_path / "slide.png"
    path.write_bytes(png(DOCUMENTS[0]))
    with pytest.raises(InputRejected, match=r'Pair 0 .* text: "slide\.png" is not opened\. Open'):
        reranker.predict([(str(path), "wind energy")])
    opened = reranker.predict([(DOCUMENTS[0], "wind energy")])
    assert reranker.predict([(path, "wind energy")]) == pytest.approx(opened, abs=1e-6)
    assert reranker.predict((str(path), str(path))) == pytest.approx(  # a query of that name
        reranker.predict((str(path), DOCUMENTS[0])), abs=1e-6
    )
    with pytest.raises(InputRejected, match="there is no file"):
        reranker.predict([("a query", "wind energy")])


def test_two_pictures_are_not_a_pair(reranker: MiniReranker) -> None:
    with pytest.raises(InputRejected, match="Both sides"):
        reranker.predict([(DOCUMENTS[0], DOCUMENTS[1])])


def test_nothing_in_nothing_out(reranker: MiniReranker) -> None:
    assert reranker.rerank("x", []) == []
    assert reranker.rank_texts(DOCUMENTS[0], []) == []
    assert reranker.predict([]).shape == (0,)


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


def test_a_cut_query_is_logged_since_results_carry_no_notes(reranker: MiniReranker, caplog) -> None:
    reranker.predict([("blue " * 1000, DOCUMENTS[0]), ("x", DOCUMENTS[1])])
    assert "Pair 0: The query has" in caplog.text and "Pair 1" not in caplog.text


def test_a_pair_is_refused_by_its_own_position(reranker: MiniReranker) -> None:
    """Whatever group of equal queries it belongs to."""
    good = [("q", DOCUMENTS[0]), ("other", DOCUMENTS[0]), (DOCUMENTS[1], "text")]
    for bad, reason in (
        (("q", "missing.png"), 'Pair 3: there is no file "missing.png"'),
        (("  ", DOCUMENTS[0]), "Pair 3: Type a query first"),
        ((None, DOCUMENTS[0]), "Pair 3 has a side that is None"),
        (("q", 5), "Pair 3 has a side that is 5"),
        (("q", DOCUMENTS[0], 1), "Pair 3 is .* a pair has two sides"),
        ((DOCUMENTS[1], ""), "Pair 3 is empty"),
        ((DOCUMENTS[1], DOCUMENTS[2]), "Both sides of pair 3 are pictures"),
    ):
        with pytest.raises(InputRejected, match=reason):
            reranker.predict([*good, bad])


def test_a_pair_is_whatever_has_two_sides_in_an_order(reranker: MiniReranker) -> None:
    expected = reranker.predict([("blue", DOCUMENTS[0])])
    assert reranker.predict([iter(("blue", DOCUMENTS[0]))]) == expected
    for wrong in ({"q": "blue", "d": DOCUMENTS[0]}, {"blue", "a.png"}, frozenset(("a", "b"))):
        with pytest.raises(InputRejected, match=r"^Pair 0 is .*, without an order; pass a tuple"):
            reranker.predict([wrong])


def test_rows_of_an_array_are_pairs(reranker: MiniReranker) -> None:
    ids = [a.page.page_id for a in reranker.add([DOCUMENTS[0], DOCUMENTS[1]])]
    rows = [("red page", ids[0]), ("blue page", ids[1])]
    np.testing.assert_array_equal(reranker.predict(np.array(rows)), reranker.predict(rows))


def test_predict_takes_what_callers_of_a_cross_encoder_pass(reranker: MiniReranker) -> None:
    made = [("blue page", document) for document in DOCUMENTS]
    scores = reranker.predict(made, batch_size=2, show_progress_bar=False)
    logits = reranker.predict(made, activation_fn=torch.nn.Identity())
    assert scores == pytest.approx([sigmoid(logit) for logit in logits])
    assert np.ptp(logits) > 1e-2
    one = reranker.predict(made[0], activation_fn=torch.nn.Identity())
    assert one == pytest.approx(float(logits[0]), abs=1e-5)


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


def test_what_add_returned_is_a_list_of_documents(reranker: MiniReranker) -> None:
    added = reranker.add(DOCUMENTS)
    assert len(added) == 4 and [page.page for page in added] == [p.page for p in added.pages]
    assert len(reranker.rerank("blue page", added)) == 4
    assert len(reranker.rank("blue page", pages=added).hits) == 4
    (lens,) = reranker.lenses("blue page", added.pages[0]).values()
    assert reranker.lenses("blue page", added)[added.pages[0].page.page_id] is not None
    assert np.isfinite(lens.mini).all()
    assert reranker.remove_pages(added) == 4
