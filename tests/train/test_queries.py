import random

import numpy as np
import pytest
import torch

from mrr.train import eyes
from mrr.train.data import PageSource
from mrr.train.match_data import MatchBatches, MatchPage, SuffixEncoder, assemble, make_page
from mrr.train.queries import FUNCTION_WORDS, QueryMaker, page_text
from mrr.train.tokens import WordPieces


def test_a_positive_query_asks_only_for_words_of_the_page(source: PageSource) -> None:
    page = page_text(("The", "parser,", "reads", "a", "“message”.", "Today"), ("Reads",))
    maker = QueryMaker(source.corpus, random.Random(0))
    asked = [maker.positive(page) for _ in range(200)]
    assert all(set(query) <= page.present | set(FUNCTION_WORDS) for query in asked)
    assert {len(query) for query in asked} >= {1, 2, 3}


def test_a_near_miss_keeps_some_words_and_has_one_that_is_absent(source: PageSource) -> None:
    page = page_text(("the", "parser", "reads", "a", "message", "today"), ())
    maker = QueryMaker(source.corpus, random.Random(0))
    for _ in range(100):
        query = ("parser", "reads", "message")
        missed = maker.near_miss(query, page)
        absent = [word for word in missed if word not in page.present]
        assert len(missed) == 3 and 1 <= len(absent) <= 2
        assert not set(absent) & set(FUNCTION_WORDS), "then the page would still answer"


def test_a_batch_knows_which_words_are_where(source: PageSource) -> None:
    batch = next(iter(MatchBatches(((0, source),), 2, 3, 2, "s", pixels=False)))
    assert batch.answer.shape == (2, 2 * (3 + 2))
    for page, query, token, cell in batch.gold.tolist():
        word = int(batch.word_of[query, token])
        assert batch.present[page, query, word] == 1
        assert 0 <= cell < batch.grid[0] * batch.grid[1]
    # Every query asked first of a page is answered by it; its near misses are not.
    assert batch.answer[0, :3].all() and not batch.answer[0, 3:5].any()
    assert batch.answer[1, 5:8].all() and not batch.answer[1, 8:].any()


def test_a_page_covers_a_query_by_its_rare_words_and_more_where_they_run_on(
    source: PageSource,
) -> None:
    texts = ("the cat sat by the quay", "quay by the cat", "the and of by", "cat alone")
    pages = [
        MatchPage((8, 8), np.zeros((0, 2), int), np.zeros((0, 2), int), {},
                  page_text(tuple(text.split()), ()), None)
        for text in texts
    ]  # fmt: skip
    maker = QueryMaker(source.corpus, random.Random(0))
    asked = [("the", "quay"), ("cat", "quay"), ("of", "the")]
    batch = assemble(pages, asked, SuffixEncoder(source.tokenizer), maker.rarity)
    the_quay, cat_quay, function_words = batch.cover.T.tolist()
    assert the_quay[0] > the_quay[1] > 0.8 > 0.2 > the_quay[2] > the_quay[3] == 0
    assert cat_quay[0] == cat_quay[1] > 0.8 > cat_quay[3] > cat_quay[2] == 0
    # A function word need not be there, unless nothing else is asked.
    assert batch.answer.T.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]
    assert function_words[2] == 1.0


def test_a_near_duplicate_has_other_words_or_another_order_and_is_asked_about(
    source: PageSource,
) -> None:
    pieces = WordPieces(source.tokenizer)
    page, twin = (make_page(source, pieces, "s", 0, True, twin) for twin in (False, True))
    assert 1 <= len(twin.changed) <= 10 and not page.changed
    words = zip(page.text.words, twin.text.words, strict=True)
    assert 1 <= sum(a != b for a, b in words) <= 2 * len(twin.changed)
    assert page.windows is not None and not np.array_equal(page.windows, twin.windows)

    def told_apart(twins: float) -> int:
        """Batches whose last page has much of what is asked of the first, and not all of it."""
        stream = MatchBatches(((0, source),), 3, 4, 2, "t", pixels=False, last=40, twins=twins)
        pairs = [(batch.cover[0, :4], batch.cover[-1, :4]) for batch in stream]
        return sum(bool(last.mean() > 0.4 and (first > last).sum() >= 2) for first, last in pairs)

    assert told_apart(0.0) <= 2 < 8 <= told_apart(0.5)


def test_pages_are_asked_again_with_other_queries_and_looked_at_once(source: PageSource) -> None:
    stream = MatchBatches(((0, source),), 2, 3, 2, "s", pixels=True, last=4, reuse=2)
    first, again, other, _ = stream
    assert first.windows is not None and again.windows is not None and other.windows is not None
    assert torch.equal(first.windows, again.windows) and first.queries != again.queries
    assert not torch.equal(first.windows[:1], other.windows[:1])

    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eyes, "see", lambda visual, windows, grid: seen.append(1) or windows.float())
        look = eyes.real(None)
        for batch in (first, again, other):
            assert torch.equal(look(batch)[0], batch.windows.float())
    assert len(seen) == 2
