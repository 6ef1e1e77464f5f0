"""The field's conventions: rerank, predict and rank_texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mrr import MiniReranker
from mrr.errors import InputRejected
from mrr.pairs import sigmoid, with_instruction
from tests.engines import png
from tests.tiny import picture

DOCUMENTS = [picture(i, (128 + 32 * i, 128)) for i in range(4)]
TEXTS = ["a", "some longer candidate text", "blue page"]


def test_rerank_gives_input_positions_in_descending_relevance(reranker: MiniReranker) -> None:
    results = reranker.rerank("blue page", DOCUMENTS)
    assert sorted(r.index for r in results) == [0, 1, 2, 3]
    scores = [r.relevance_score for r in results]
    assert scores == sorted(scores, reverse=True)
    assert all(r.document is None for r in results)


def test_top_n_and_documents_are_returned_on_request(reranker: MiniReranker) -> None:
    everything = reranker.rerank("blue page", DOCUMENTS)
    some = reranker.rerank("blue page", DOCUMENTS, top_n=2, return_documents=True)
    assert [r.index for r in some] == [r.index for r in everything[:2]]
    assert all(r.document is DOCUMENTS[r.index] for r in some)


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


def test_a_query_that_begins_as_a_data_url_does_is_a_query(reranker: MiniReranker) -> None:
    query = "data: revenue, by region"
    expected = reranker.rerank(query, DOCUMENTS[:1])[0].relevance_score
    assert reranker.predict((query, DOCUMENTS[0])) == pytest.approx(expected)


def test_a_score_at_the_end_of_the_scale_is_no_warning() -> None:
    with np.errstate(all="raise"):
        assert (sigmoid(-800.0), sigmoid(800.0)) == (0.0, 1.0)
    assert sigmoid(1.5) == pytest.approx(0.8175744761936437)


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


def test_what_add_returned_is_a_list_of_documents(reranker: MiniReranker) -> None:
    added = reranker.add(DOCUMENTS)
    assert len(added) == 4 and [page.page for page in added] == [p.page for p in added.pages]
    assert len(reranker.rerank("blue page", added)) == 4
    assert len(reranker.rank("blue page", pages=added).hits) == 4
    (lens,) = reranker.lenses("blue page", added.pages[0]).values()
    assert reranker.lenses("blue page", added)[added.pages[0].page.page_id] is not None
    assert np.isfinite(lens.mini).all()
    assert reranker.remove_pages(added) == 4
