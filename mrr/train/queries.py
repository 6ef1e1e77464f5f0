"""Queries for a printed page, with the words they ask for: keywords, phrases and titles.

A page answers a query when every word of it is printed there, function words aside. Hard negatives
change one word, to one that is not on the page but looks like it, or borrow words of another page.
"""

from __future__ import annotations

import difflib
import math
import random
import re
from dataclasses import dataclass

from mrr.train.text import Corpus

_STRIP = re.compile(r"^\W+|\W+$")
# Words that hold a sentence together. They are on every page and say nothing about any.
FUNCTION_WORDS = tuple(
    "a an and are as at be been but by can could did do does for from had has have how i if "
    "in into is it its many may more most much my no not of on one only or our shall should "
    "so such than that the their them then there these they this those to up was we were what "
    "when where which who whom whose why will with would you your".split()
)
_FUNCTION = frozenset(FUNCTION_WORDS)
COMMON = 0.1  # their weight, when the share of a query that a page covers is told
_RARE = 60  # rank from which a word can carry a phrase


@dataclass(frozen=True, slots=True)
class PageText:
    """Words of a page in reading order, as they are matched: lower case, bare of punctuation."""

    words: tuple[str, ...]
    title: tuple[str, ...]
    present: frozenset[str]
    running: str

    def holds_in_a_row(self, query: tuple[str, ...]) -> bool:
        """Whether two words or more stand on the page as they are asked."""
        return len(query) > 1 and f" {' '.join(query)} " in self.running


def is_function_word(word: str) -> bool:
    """Whether it holds a sentence together and says nothing."""
    return word in _FUNCTION


def answers(page: PageText, query: tuple[str, ...]) -> bool:
    """Whether every word of a query that counts is on the page.

    Function words count only where nothing else was asked.
    """
    telling = [word for word in query if not is_function_word(word)]
    return page.present.issuperset(telling or query)


def bare(word: str) -> str:
    """Lower case without punctuation at either end."""
    return _STRIP.sub("", word).lower()


def page_text(words: tuple[str, ...], title: tuple[str, ...]) -> PageText:
    """What can be asked of a page."""
    clean = tuple(bare(word) for word in words)
    printed = list(filter(None, clean))
    return PageText(
        clean,
        tuple(filter(None, map(bare, title))),
        frozenset(printed),
        f" {' '.join(printed)} ",
    )


class QueryMaker:
    """Draws queries about pages. Common words are drawn less often: nobody searches for "the"."""

    def __init__(self, corpus: Corpus, rng: random.Random):
        self.rng = rng
        self.words = corpus.words
        self.rank = {word: i for i, word in enumerate(corpus.words)}

    def positive(self, page: PageText) -> tuple[str, ...]:
        """A keyword, phrase or title query of 1 to 8 words; those that count are on the page."""
        roll = self.rng.random()
        if roll < 0.1 and 1 <= len(page.title) <= 8:
            return page.title
        if roll < 0.5:
            return self.phrase(page)
        n = self.rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6))
        words = [self.keyword(page) for _ in range(n)]
        return self.wordy(words) if n < 6 and roll > 0.85 else tuple(words)

    def wordy(self, words: list[str]) -> tuple[str, ...]:
        """The words with function words among them, as in a question."""
        out = list(words)
        for _ in range(self.rng.randint(1, 4)):
            out.insert(self.rng.randint(0, len(out)), self.rng.choice(FUNCTION_WORDS))
        return tuple(out)

    def rarity(self, word: str) -> float:
        """Weight of a word, at most 1: COMMON, or above it, by the logarithm of its rank."""
        if is_function_word(word):
            return COMMON
        n = len(self.words)
        return max(2 * COMMON, math.log(2 + self.rank.get(word, n)) / math.log(2 + n))

    def phrase(self, page: PageText) -> tuple[str, ...]:
        """Two to eight running words."""
        n = self.rng.choice((2, 2, 3, 3, 4, 4, 5, 6, 8))
        for _ in range(8):
            start = self.rng.randrange(max(1, len(page.words) - n))
            words = tuple(filter(None, page.words[start : start + n]))
            if any(self.rank.get(word, 10**6) > _RARE for word in words):
                return words
        return (self.keyword(page),)

    def around(self, page: PageText, index: int) -> tuple[str, ...]:
        """Running words about one of them; empty where none is printed there."""
        first = max(0, index - self.rng.randint(0, 1))
        return tuple(filter(None, page.words[first : index + self.rng.randint(2, 4)]))

    def keyword(self, page: PageText) -> str:
        """One word of the page; of three drawn, the rarest."""
        drawn = [word for word in self.rng.choices(page.words, k=3) if word]
        return max(drawn, key=lambda word: self.rank.get(word, len(self.words)), default="page")

    def near_miss(self, query: tuple[str, ...], page: PageText) -> tuple[str, ...]:
        """The query with one word, or two, replaced by words that are not on the page."""
        words = list(query)
        n = 2 if len(words) > 2 and self.rng.random() < 0.4 else 1
        for i in self.rng.sample(range(len(words)), n):
            words[i] = self.absent_word(page, words[i] if self.rng.random() < 0.3 else None)
        return tuple(words)

    def absent_word(self, page: PageText, like: str | None = None) -> str:
        """A word that the page does not have; one that is spelled like `like` if that is given."""
        if like is not None:
            pool = self.rng.choices(self.words, k=200)
            for word in difflib.get_close_matches(like, pool, n=3, cutoff=0.55):
                if word not in page.present and not is_function_word(word):
                    return word
        while True:
            n = len(self.words)
            word = self.words[
                int(n ** self.rng.random()) - 1
                if self.rng.random() < 0.5
                else self.rng.randrange(n)
            ]
            if word not in page.present and not is_function_word(word):
                return word
