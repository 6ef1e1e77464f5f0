"""Queries for a printed page, with the words they ask for: keywords, phrases and titles.

A page answers a query when every word of it is printed there. Hard negatives change one word, to
one that is not on the page but looks like it, or borrow words of another page.
"""

from __future__ import annotations

import difflib
import random
import re
from dataclasses import dataclass

from mrr.train.text import Corpus

_STRIP = re.compile(r"^\W+|\W+$")


@dataclass(frozen=True, slots=True)
class PageText:
    """Words of a page in reading order, as they are matched: lower case, bare of punctuation."""

    words: tuple[str, ...]
    title: tuple[str, ...]
    present: frozenset[str]


def bare(word: str) -> str:
    """Lower case without punctuation at either end."""
    return _STRIP.sub("", word).lower()


def page_text(words: tuple[str, ...], title: tuple[str, ...]) -> PageText:
    """What can be asked of a page."""
    clean = tuple(bare(word) for word in words)
    return PageText(clean, tuple(filter(None, map(bare, title))), frozenset(filter(None, clean)))


class QueryMaker:
    """Draws queries about pages. Common words are drawn less often: nobody searches for "the"."""

    def __init__(self, corpus: Corpus, rng: random.Random):
        self.rng = rng
        self.words = corpus.words
        self.rank = {word: i for i, word in enumerate(corpus.words)}

    def positive(self, page: PageText) -> tuple[str, ...]:
        """A keyword, phrase or title query of 1 to 8 words, all of them on the page."""
        roll = self.rng.random()
        if roll < 0.1 and 1 <= len(page.title) <= 8:
            return page.title
        if roll < 0.55:
            return self.phrase(page)
        n = self.rng.choice((1, 1, 2, 2, 3, 3, 4, 5))
        return tuple(self.keyword(page) for _ in range(n))

    def phrase(self, page: PageText) -> tuple[str, ...]:
        """Two to six running words."""
        n = self.rng.randint(2, 6)
        for _ in range(8):
            start = self.rng.randrange(max(1, len(page.words) - n))
            words = tuple(filter(None, page.words[start : start + n]))
            if any(self.rank.get(word, 10**6) > 60 for word in words):
                return words
        return (self.keyword(page),)

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
                if word not in page.present:
                    return word
        while True:
            n = len(self.words)
            word = self.words[
                int(n ** self.rng.random()) - 1
                if self.rng.random() < 0.5
                else self.rng.randrange(n)
            ]
            if word not in page.present:
                return word
