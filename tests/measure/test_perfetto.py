"""Traces: complete events that nest perfectly, since Perfetto draws no others."""

from __future__ import annotations

import json
from typing import Any

from mrr import MiniReranker
from mrr.measure.perfetto import ranked_to_perfetto, to_perfetto
from mrr.types import SYSTEMS
from tests.measure.helpers import latency_report
from tests.tiny import picture


def tracks(trace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Complete events by the name of their thread."""
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            found[names[event["tid"]]].append(event)
    return found


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Any two events of a thread are disjoint, or one contains the other."""
    for i, a in enumerate(events):
        for b in events[i + 1 :]:
            first, second = sorted((a, b), key=lambda e: (e["ts"], -e["dur"]))
            ends = first["ts"] + first["dur"]
            assert second["ts"] >= ends or second["ts"] + second["dur"] <= ends, (a, b)


def test_a_call_contains_exactly_its_stages() -> None:
    trace = to_perfetto(latency_report())
    events = tracks(trace)["mini: query over 10 pages"]
    call, *stages = events[:5]
    assert (call["name"], call["ts"], call["dur"]) == ("call 1", 0, 13_000)
    assert [(e["name"], e["ts"], e["dur"]) for e in stages] == [
        ("retrieve", 0, 1000), ("query", 1000, 2000), ("load", 3000, 1000), ("band", 4000, 9000),
    ]  # fmt: skip
    assert events[5]["name"] == "call 2" and events[5]["ts"] > 13_000


def test_every_system_and_its_caching_has_a_track_and_all_events_nest() -> None:
    trace = json.loads(json.dumps(to_perfetto(latency_report())))
    found = tracks(trace)
    assert list(found) == [
        "mini: query over 10 pages", "dense-reuse: query over 10 pages",
        "original: query over 2 pages",
        "mini: caching, a page a call", "dense-reuse: caching, a page a call",
    ]  # fmt: skip
    for events in found.values():
        assert events
        check_nesting(events)
    assert trace["otherData"]["machine"]["device_name"] == "a processor"


def test_rankings_become_a_trace_of_what_they_took(reranker: MiniReranker) -> None:
    reranker.add([picture(0), picture(1)])
    ranked = [reranker.rank(q, system=s) for q in ("one", "two") for s in SYSTEMS]
    found = tracks(ranked_to_perfetto(ranked))
    assert list(found) == list(SYSTEMS)
    for system, events in found.items():
        check_nesting(events)
        calls = [e for e in events if e["name"].endswith("(2 pages)")]
        assert [e["name"] for e in calls] == ["one (2 pages)", "two (2 pages)"]
        lists = [each for each in ranked if each.system == system]
        for call, each in zip(calls, lists, strict=True):
            assert abs(call["dur"] - 1000 * each.usage.total_ms) <= len(each.usage.ms)
