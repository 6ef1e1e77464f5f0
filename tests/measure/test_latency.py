"""What a latency report says of how it was measured. Timings themselves are not tested."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mrr import MiniReranker
from mrr.errors import InputRejected
from mrr.measure.latency import LatencyReport, measure_latency, scaled_call
from mrr.measure.spread import spread
from mrr.types import SYSTEMS
from tests.tiny import DEVICE, picture

N_PAGES, REPEATS = 4, 3


@contextmanager
def opened(
    pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MiniReranker]:
    """An engine with one page more than is measured."""
    built = MiniReranker.from_pretrained(
        pair[0], embedder=pair[1], store=tmp_path_factory.mktemp("s"), device="cpu",
        self_check=False,
    )  # fmt: skip
    built.add([picture(i) for i in range(N_PAGES + 1)])
    yield built
    built.close()


def measured_pages(engine: MiniReranker) -> list[str]:
    return [page.page_id for page in engine.store.pages(["public"])][:N_PAGES]


@pytest.fixture(scope="module")
def engine(
    pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MiniReranker]:
    with opened(pair, tmp_path_factory) as engine:
        yield engine


@pytest.fixture(scope="module")
def page_ids(engine: MiniReranker) -> list[str]:
    return measured_pages(engine)


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def report(steps: list, pair: tuple[Path, Path], tmp_path_factory) -> LatencyReport:
    """Of an engine of its own: no other test has had it encode pages for the dense system."""
    with opened(pair, tmp_path_factory) as engine:
        return measure_latency(
            engine,
            "blue page",
            measured_pages(engine),
            repeats=REPEATS,
            progress=lambda *step: steps.append(step),
        )


def test_every_system_is_measured_on_the_same_pages(report: LatencyReport) -> None:
    assert [each.system for each in report.systems] == list(SYSTEMS)
    assert report.n_candidates == N_PAGES
    assert [each.n_measured for each in report.systems] == [N_PAGES, N_PAGES, 2]
    assert [each.scaled for each in report.systems] == [False, False, True]
    assert "original was measured on 2 pages and scaled per page." in report.notes


def test_a_measurement_that_is_stopped_reports_the_repeats_it_made(
    engine: MiniReranker, page_ids: list[str]
) -> None:
    asked = iter([False, True])
    found = measure_latency(engine, "blue page", page_ids, repeats=5, stop=lambda: next(asked))
    assert found.repeats == 2 and all(len(each.calls) == 2 for each in found.systems)
    assert "Stopped after 2 of 5 repeats." in found.notes


def test_a_query_does_not_wait_for_a_measurement_to_end(
    engine: MiniReranker, page_ids: list[str]
) -> None:
    in_time: list[bool] = []

    def ask(what: str, done: int, total: int) -> None:
        if done == 2:  # in the midst of it
            answered = threading.Event()
            threading.Thread(
                target=lambda: (engine.rank("blue page"), answered.set()), daemon=True
            ).start()
            in_time.append(answered.wait(60))

    measure_latency(engine, "blue page", page_ids, repeats=3, progress=ask)
    assert in_time == [True]


def test_warm_calls_are_counted_and_the_first_is_kept_apart(report: LatencyReport) -> None:
    # On a GPU the second call of a shape is the one that is captured.
    assert (report.state, report.repeats) == ("warm", REPEATS)
    assert report.warmup == (2 if DEVICE.startswith("cuda") else 1)
    for each in report.systems:
        assert len(each.calls) == each.total.n == REPEATS
        assert all(stage.ms.n == REPEATS for stage in each.stages)
    dense = report["dense-reuse"]
    assert "encode" in dense.first_call  # its pages were not cached before
    assert not any("encode" in call for each in report.systems for call in each.calls)


def test_stages_come_in_the_order_they_ran(report: LatencyReport) -> None:
    cached = ["retrieve", "query", "load", "band", "head"]
    assert [cost.stage for cost in report["mini"].stages] == cached
    assert [cost.stage for cost in report["dense-reuse"].stages] == cached
    assert {cost.stage for cost in report["original"].stages} == {
        "retrieve", "decode", "preprocess", "vision", "layers", "head",
    }  # fmt: skip


def test_totals_are_those_of_the_calls(report: LatencyReport) -> None:
    for each in report.systems:
        totals = [sum(scaled_call(c, N_PAGES / each.n_measured).values()) for c in each.calls]
        assert each.total == spread(totals)
        for cost in each.stages:
            assert cost.ms.q1 <= cost.ms.median <= cost.ms.q3
            assert cost.ms_per_page == pytest.approx(cost.ms.median / N_PAGES)


def test_only_what_runs_once_a_page_is_scaled() -> None:
    call = {"retrieve": 1.0, "query": 2.0, "vision": 3.0, "layers": 4.0}
    assert scaled_call(call, 5.0) == {"retrieve": 1.0, "query": 2.0, "vision": 15.0, "layers": 20.0}


def test_caching_is_encoded_again_and_weighed(
    engine: MiniReranker, page_ids: list[str], report: LatencyReport
) -> None:
    assert [each.system for each in report.caching] == ["mini", "dense-reuse"]
    for each in report.caching:
        assert [cost.stage for cost in each.stages] == ["preprocess", "vision", "embed", "prefix"]
        assert each.n_pages == len(each.calls) == 2
    mini, dense = report.caching
    stored = engine.cache.kv.get(engine.cache.key(engine.store.page(page_ids[0])))
    tensors = stored.tensors
    assert mini.nbytes == sum(v.nbytes for name, v in tensors.items() if name != "kept")
    assert dense.nbytes > 4 * mini.nbytes  # all layers, all tokens, and no int8


def test_ratios_are_paired_by_repeat(report: LatencyReport) -> None:
    assert set(report.times_mini) == {"dense-reuse", "original"}
    pairs = zip(report["dense-reuse"].calls, report["mini"].calls, strict=True)
    ratios = [sum(dense.values()) / sum(mini.values()) for dense, mini in pairs]
    assert report.times_mini["dense-reuse"] == spread(ratios)


def test_progress_is_told_between_rounds(
    report: LatencyReport, steps: list[tuple[str, int, int]]
) -> None:
    assert steps == [("measure", i, REPEATS + 1) for i in range(REPEATS + 2)]


def test_systems_take_turns_in_being_first(
    engine: MiniReranker, page_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    rank = engine.rank

    def watched(query: str, **how):
        order.append(how["system"])
        return rank(query, **how)

    monkeypatch.setattr(engine, "rank", watched)
    measure_latency(engine, "x", page_ids[:1], repeats=2, warmup=1)
    assert order[::3] == list(SYSTEMS)
    assert [sorted(order[i : i + 3]) for i in (0, 3, 6)] == [sorted(SYSTEMS)] * 3


def test_the_report_names_its_machine_and_goes_into_json(report: LatencyReport) -> None:
    assert report.machine.device == "cpu" and report.machine.dtype == "float32"
    assert report.machine.device_name and report.machine.n_threads >= 1
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["n_candidates"] == N_PAGES


def test_a_prompt_with_the_page_last_has_no_reuse_to_measure(
    engine: MiniReranker, page_ids: list[str]
) -> None:
    twin = engine.with_config(replace(engine.config, order="query-first"))
    found = measure_latency(twin, "x", page_ids, repeats=1)
    assert [each.system for each in found.systems] == ["mini", "original"]
    assert found.caching == () and [each.scaled for each in found.systems] == [True, True]
    assert any("needs the page first" in note for note in found.notes)
    with pytest.raises(InputRejected, match="needs the page first"):
        measure_latency(twin, "x", page_ids, systems=["dense-reuse"])


def test_what_cannot_be_measured_is_refused(engine: MiniReranker, page_ids: list[str]) -> None:
    with pytest.raises(InputRejected, match="needs a cached page"):
        measure_latency(engine, "x", ["no such page"])
    with pytest.raises(InputRejected, match="needs a cached page"):
        measure_latency(engine, "x", page_ids, scopes=["somebody else"])
    with pytest.raises(InputRejected, match="one repeat"):
        measure_latency(engine, "x", page_ids, repeats=0)
    with pytest.raises(InputRejected):
        measure_latency(engine, " ", page_ids)


def test_a_spread_is_noisy_when_its_middle_half_is_wide() -> None:
    assert not spread([1.0, 1.0, 1.05, 1.1, 9.0]).noisy  # one outlier does not matter
    assert spread([1.0, 1.0, 2.0, 2.0]).noisy
    quartiles = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (quartiles.q1, quartiles.median, quartiles.q3, quartiles.n) == (2.0, 3.0, 4.0, 5)
