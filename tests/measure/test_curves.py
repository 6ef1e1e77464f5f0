"""Cost curves and break-even points, computed by hand from round numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mrr.measure.curves import against_queries, against_top_k, break_even
from tests.measure.helpers import latency_report


def test_a_query_costs_a_fixed_part_and_a_share_for_each_candidate() -> None:
    mini, dense, original = against_top_k(latency_report(), [1, 10, 100])
    assert mini.system == "mini" and mini.x == (1, 10, 100)
    assert mini.ms == pytest.approx((3 + 1, 3 + 10, 3 + 100))
    assert dense.ms == pytest.approx((3 + 4, 3 + 40, 3 + 400))
    assert original.ms == pytest.approx((50, 500, 5000))


def test_the_total_begins_with_caching_every_page() -> None:
    mini, dense, original = against_queries(latency_report(), [0, 1, 10])
    assert mini.ms == pytest.approx((2000, 2013, 2130))
    assert dense.ms == pytest.approx((1000, 1043, 1430))
    assert original.ms == pytest.approx((0, 500, 5000))


def test_break_even_is_the_first_query_at_which_the_total_is_lower() -> None:
    report = latency_report()
    assert break_even(report, "mini") == 5  # 2000 + 5 x 13 < 5 x 500, and 2000 + 4 x 13 > 4 x 500
    assert break_even(report, "dense-reuse") == 3  # 1000 + 3 x 43 < 1500
    assert break_even(report, "mini", "dense-reuse") == 34  # 1000 / 30 = 33.3


def test_break_even_agrees_with_the_curve() -> None:
    report = latency_report()
    n = break_even(report, "mini", "dense-reuse")
    assert n is not None
    mini, dense, _ = against_queries(report, [n - 1, n])
    assert mini.ms[0] >= dense.ms[0] and mini.ms[1] < dense.ms[1]


def test_what_costs_more_both_ways_never_breaks_even() -> None:
    report = latency_report()
    assert break_even(report, "original", "mini") == 1  # nothing to cache: ahead from the start
    slow = replace(report, systems=tuple(replace(s, system=n) for s, n in zip(
        report.systems, ("dense-reuse", "mini", "original"), strict=True)))  # fmt: skip
    assert break_even(slow, "mini", "dense-reuse") is None


def test_a_system_that_was_not_measured_is_an_error() -> None:
    report = latency_report()
    partial = replace(report, systems=report.systems[:2])
    with pytest.raises(ValueError, match="original was not measured"):
        break_even(partial, "mini")
