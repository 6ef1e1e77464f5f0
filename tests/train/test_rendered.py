from collections.abc import Callable
from typing import cast

import pytest
from torch import Tensor, zeros

from mrr.train.data import PageSource
from mrr.train.match_data import MatchBatch, MatchBatches
from mrr.train.matching import Matcher
from mrr.train.rendered import told_apart


class _Scores:
    """Stands where the matcher does, and scores by a rule."""

    def __init__(self, rule: Callable[[MatchBatch, bool], Tensor]) -> None:
        self.rule = rule

    def eval(self) -> None:
        """Nothing to switch off."""

    def __call__(
        self, visual: Tensor, batch: MatchBatch, dense: bool, kept: Tensor | None
    ) -> tuple[Tensor, None]:
        return self.rule(batch, dense), None


@pytest.fixture
def alike(source: PageSource) -> list[MatchBatch]:
    return list(MatchBatches(((0, source),), 2, 6, 0, "alike", False, last=4, twins=1.0))


def _told(
    alike: list[MatchBatch], rule: Callable[[MatchBatch, bool], Tensor]
) -> dict[str, dict[str, float | int]]:
    return told_apart(alike, cast(Matcher, _Scores(rule)), lambda batch: (zeros(1), None))


def test_near_duplicates_are_told_apart_by_what_they_cover(alike: list[MatchBatch]) -> None:
    told = _told(alike, lambda batch, dense: batch.cover * (-1 if dense else 1))
    for by in ("words", "order"):
        assert told[by]["queries"] > 2
        assert (told[by]["mini"], told[by]["dense"]) == (1.0, 0.0)


def test_the_order_of_words_counts_apart_from_the_words(alike: list[MatchBatch]) -> None:
    told = _told(alike, lambda batch, dense: batch.present.sum(-1))
    assert told["words"]["mini"] == 1.0
    assert told["order"]["mini"] == 0.0


def test_a_tie_tells_nothing_apart(alike: list[MatchBatch]) -> None:
    assert _told(alike, lambda batch, dense: zeros(batch.cover.shape))["words"]["mini"] == 0.0
