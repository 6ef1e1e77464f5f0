"""Measured calls as Chrome trace JSON, which Perfetto (ui.perfetto.dev) and speedscope open.

Perfetto draws only events that nest perfectly, so every call is one event with its stages laid
end to end inside it. A stage is the sum of its parts in that call: durations are measured,
positions inside a call are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mrr.measure.latency import LatencyReport
from mrr.types import RankedList

Event = dict[str, Any]
_GAP_US = 1000  # between calls, so that neighbours can be told apart


def to_perfetto(report: LatencyReport) -> dict[str, Any]:
    """One track a system for its queries, and one for caching."""
    tracks = {
        f"{each.system}: query over {each.n_measured} pages": each.calls for each in report.systems
    }
    tracks |= {f"{each.system}: caching, a page a call": each.calls for each in report.caching}
    events = []
    for i, (name, calls) in enumerate(tracks.items(), 1):
        events += _track(i, name, calls, [f"call {n}" for n in range(1, len(calls) + 1)])
    return _trace(events, query=report.query, machine=asdict(report.machine))


def ranked_to_perfetto(ranked: Sequence[RankedList]) -> dict[str, Any]:
    """One track a system, one call a query, of rankings that were made anyway."""
    events = []
    for i, system in enumerate(dict.fromkeys(each.system for each in ranked), 1):
        lists = [each for each in ranked if each.system == system]
        calls = [each.usage.ms for each in lists]
        events += _track(i, system, calls, [f"{each.query} ({len(each)} pages)" for each in lists])
    return _trace(events)


def _trace(events: list[Event], **about: Any) -> dict[str, Any]:
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _track(
    thread: int, name: str, calls: Sequence[Mapping[str, float]], labels: Sequence[str]
) -> list[Event]:
    """A thread's name, then each call followed by the stages inside it."""
    events: list[Event] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": thread, "args": {"name": name}}
    ]
    begin_us = 0
    for call, label in zip(calls, labels, strict=True):
        # Whole microseconds, so that the stages add up to exactly what contains them.
        stages = [(stage, round(ms * 1000)) for stage, ms in call.items()]
        total_us = sum(us for _, us in stages)
        events.append(_event(thread, label, begin_us, total_us))
        at_us = begin_us
        for stage, us in stages:
            events.append(_event(thread, stage, at_us, us))
            at_us += us
        begin_us += total_us + _GAP_US
    return events


def _event(thread: int, name: str, begin_us: int, duration_us: int) -> Event:
    return {
        "ph": "X", "name": name, "pid": 1, "tid": thread, "ts": begin_us, "dur": duration_us,
    }  # fmt: skip
