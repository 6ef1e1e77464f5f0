"""Metrics against values computed by hand, ties, intervals and agreement."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrr.measure.metrics import (
    MEASURES,
    agreement,
    bootstrap,
    of_ranking,
    overlap,
    per_query,
    rank_correlation,
    retention,
)

LETTERS = list("abcdefgh")


def test_a_relevant_page_in_second_place() -> None:
    values = of_ranking(["b", "a", "c", "d"], ["a"])
    assert list(values) == list(MEASURES)
    assert values["ndcg@5"] == values["ndcg@10"] == pytest.approx(1 / math.log2(3), abs=1e-6)
    assert values["mrr"] == pytest.approx(0.5)
    assert [values[f"recall@{k}"] for k in (1, 3, 5, 20)] == [0, 1, 1, 1]


def test_grades_weigh_the_gain_and_not_the_recall() -> None:
    values = per_query({"q": ["c", "a", "b"]}, {"q": {"a": 2, "c": 1}})
    gained, ideal = 1 + 2 / math.log2(3), 2 + 1 / math.log2(3)
    assert values["ndcg@5"]["q"] == pytest.approx(gained / ideal, abs=1e-6)
    assert values["recall@1"]["q"] == pytest.approx(0.5)
    assert values["mrr"]["q"] == 1


@pytest.mark.parametrize("measure", [name for name in MEASURES if "@" in name])
def test_each_measure_ends_at_the_rank_that_it_is_named_after(measure: str) -> None:
    k = int(measure.partition("@")[2])
    others = [f"p{i}" for i in range(k)]
    assert of_ranking([*others[1:], "a"], ["a"])[measure] > 0
    assert of_ranking([*others, "a"], ["a"])[measure] == 0


def test_relevant_pages_that_were_not_candidates_lower_the_recall() -> None:
    assert of_ranking(["a", "b"], ["a", "z"])["recall@20"] == pytest.approx(0.5)


@given(st.permutations(LETTERS))
def test_the_order_of_the_run_is_final_whatever_the_pages_are_called(ranking: list[str]) -> None:
    values = of_ranking(ranking, ["c"])
    assert values["mrr"] == pytest.approx(1 / (ranking.index("c") + 1))


def test_long_rankings_keep_their_order_in_trec_evals_single_precision() -> None:
    ranking = [f"p{i}" for i in range(5000)]
    assert of_ranking(ranking, ["p3"])["mrr"] == pytest.approx(1 / 4)


def test_every_query_of_the_run_has_a_value_and_no_other() -> None:
    values = per_query({"q1": ["a"], "q2": ["b", "a"]}, {q: {"a": 1} for q in ("q1", "q2", "q3")})
    assert values["mrr"] == {"q1": 1.0, "q2": 0.5}


def test_a_run_that_cannot_be_judged_is_an_error() -> None:
    with pytest.raises(ValueError, match="q9 has no relevance labels"):
        per_query({"q9": ["a"]}, {"q1": {"a": 1}})
    with pytest.raises(ValueError, match="ranks a page twice"):
        per_query({"q1": ["a", "a"]}, {"q1": {"a": 1}})


def test_the_interval_is_the_same_for_the_same_seed_only() -> None:
    values = np.random.default_rng(1).random(50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_the_interval_has_the_width_that_theory_gives() -> None:
    estimate = bootstrap([0.0, 1.0] * 200)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert estimate.value == 0.5 and estimate.n == 400
    assert estimate.low == pytest.approx(0.5 - half, abs=0.008)
    assert estimate.high == pytest.approx(0.5 + half, abs=0.008)


def test_equal_values_leave_no_doubt_and_none_are_an_error() -> None:
    estimate = bootstrap([0.25] * 10)
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="no query"):
        bootstrap([])


def test_what_is_kept_of_a_reference_is_paired_by_query() -> None:
    reference = np.random.default_rng(0).random(40)
    kept = retention(0.9 * reference, reference)
    assert (kept.value, kept.low, kept.high) == pytest.approx((0.9, 0.9, 0.9))
    unpaired = retention(0.9 * reference[::-1], reference)
    assert unpaired.value == pytest.approx(0.9) and unpaired.high - unpaired.low > 0.05


def test_a_reference_that_found_nothing_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="nothing to keep"):
        retention([1.0], [0.0])
    with pytest.raises(ValueError, match="cannot be paired"):
        retention([1.0, 1.0], [1.0])


def test_one_exchange_of_neighbours_among_three_leaves_a_third() -> None:
    assert rank_correlation("abc", "bac") == pytest.approx(1 / 3)  # two pairs agree, one does not
    assert rank_correlation(LETTERS, LETTERS[::-1]) == pytest.approx(-1)
    assert rank_correlation("ab", "ba") == pytest.approx(-1)


def test_overlap_ignores_the_order_and_shrinks_with_short_lists() -> None:
    assert overlap("abcdefgh", "edcbahgf", 5) == 1
    assert overlap("abcdefgh", "hgfedcba", 5) == pytest.approx(2 / 5)  # d and e
    assert overlap("ab", "ba", 5) == 1


def test_agreement_averages_over_queries() -> None:
    same, turned = list("abcdef"), list("fedcba")
    runs = {"q1": same, "q2": same, "q3": same}, {"q1": same, "q2": turned, "q3": same}
    found = agreement(*runs)
    assert found.kendall_tau.value == pytest.approx(1 / 3)
    assert found.top_1.value == pytest.approx(2 / 3)
    assert found.overlap_at_5.value == pytest.approx((1 + 4 / 5 + 1) / 3)


def test_agreement_needs_the_same_queries_and_candidates() -> None:
    with pytest.raises(ValueError, match="different queries"):
        agreement({"q1": ["a", "b"]}, {"q2": ["a", "b"]})
    with pytest.raises(ValueError, match="same two or more pages"):
        agreement({"q1": ["a", "b"]}, {"q1": ["a", "c"]})
    with pytest.raises(ValueError, match="same two or more pages"):
        agreement({"q1": ["a"]}, {"q1": ["a"]})
