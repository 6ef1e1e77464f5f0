"""Texts against a picture: vision-as-query."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from mrr import MiniReranker
from mrr.errors import InputRejected
from mrr.model.scorer import Scorer
from tests.engines import png
from tests.tiny import picture

DOCUMENTS = [picture(i, (128 + 32 * i, 128)) for i in range(4)]
TEXTS = ["a", "some longer candidate text", "blue page"]


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
