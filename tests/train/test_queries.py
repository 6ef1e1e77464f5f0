import random

from mrr.train.data import PageSource
from mrr.train.match_data import MatchBatches
from mrr.train.queries import QueryMaker, page_text


def test_a_positive_query_asks_only_for_words_of_the_page(source: PageSource) -> None:
    page = page_text(("The", "parser,", "reads", "a", "“message”.", "Today"), ("Reads",))
    maker = QueryMaker(source.corpus, random.Random(0))
    asked = [maker.positive(page) for _ in range(200)]
    assert all(set(query) <= page.present for query in asked)
    assert {len(query) for query in asked} >= {1, 2, 3}


def test_a_near_miss_keeps_some_words_and_has_one_that_is_absent(source: PageSource) -> None:
    page = page_text(("the", "parser", "reads", "a", "message", "today"), ())
    maker = QueryMaker(source.corpus, random.Random(0))
    for _ in range(100):
        query = ("parser", "reads", "message")
        missed = maker.near_miss(query, page)
        absent = [word for word in missed if word not in page.present]
        assert len(missed) == 3 and 1 <= len(absent) <= 2


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
