"""Who leaves takes everything along: pages that come late, those of programs, and memory."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import PATIENCE_S, SAMPLES, Running, pdf, png, run
from ui import explaining, visits
from ui.caching import upload
from ui.session import Session
from ui.visits import AWAY_S, IDLE_S, Heartbeats, Visits
from ui.workbench import Workbench


@pytest.fixture
def bench(running: Running) -> Workbench:
    return running.bench


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "GRACE_S", 0.0)


def soon(reached: Callable[[], bool], otherwise: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def own_pages(bench: Workbench, scope: str) -> list[str]:
    return [page.label for page in bench.store.pages([scope])]


class House:
    """What Gradio keeps of its visitors, and the visits of a workbench to it."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.sessions: OrderedDict[str, Any] = OrderedDict()
        self.used: dict[str, datetime] = {}
        self.events: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        state = gr.State()
        demo = SimpleNamespace(
            state_holder=SimpleNamespace(session_data=self.sessions, time_last_used=self.used),
            _queue=SimpleNamespace(
                event_ids_to_events=self.events,
                pending_messages_per_session=self.answers,
                pending_event_ids_session={},
            ),
        )
        self.visits = Visits(bench)
        self.visits.of(demo, state)  # type: ignore[arg-type]
        self._state_id = state._id

    def enter(self, name: str) -> Session:
        """A call of a tab or a program, which thereby has a session."""
        session = self.bench.session()
        self.sessions[name] = SimpleNamespace(state_data={self._state_id: session})
        self.used[name] = datetime.now()
        self.answers[name] = object()
        return session

    def passes(self, seconds: float) -> None:
        for name in self.used:
            self.used[name] -= timedelta(seconds=seconds)

    async def leave(self, name: str) -> None:
        """The heartbeat of a tab ends."""
        self.visits.came(name)
        self.visits.went(name)
        await asyncio.gather(*self.visits._tasks)

    def sweep(self) -> None:
        run(self.visits.sweep())


@pytest.fixture
def house(bench: Workbench) -> Iterator[House]:
    house = House(bench)
    yield house
    house.sessions.clear()
    house.sweep()


# ------------------------------------------------------------------ during an upload


def test_a_page_that_is_in_hand_when_its_tab_closes_is_removed(
    bench: Workbench, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, encode = house.enter("leaves"), bench.run
    scope = session.scope

    def leaving(*work: Any) -> Any:
        run(house.leave("leaves"))
        return encode(*work)

    monkeypatch.setattr(bench, "run", leaving)
    *_, done = upload(bench, session, [("two.pdf", pdf(70, 71))], None)
    assert done.n_done == 1 and done.cancelled
    (line, *_) = done.lines
    assert line.added is not None and own_pages(bench, scope) == [line.label]
    house.sweep()
    assert own_pages(bench, scope) == []
    assert bench.thumbnails.get(line.added.page.page_id) is None


def test_what_could_not_be_removed_goes_with_a_later_sweep(
    bench: Workbench, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = house.enter("leaves")
    scope = session.scope
    list(upload(bench, session, [("mine.png", png(72))], None))
    with monkeypatch.context() as patch:

        def failing(scope: str) -> int:
            raise OSError("the disk is gone for a moment")

        patch.setattr(bench, "remove_scope", failing)
        run(house.leave("leaves"))
        house.sweep()
    assert own_pages(bench, scope) == ["mine.png"]
    house.sweep()
    assert own_pages(bench, scope) == []


# ------------------------------------------------------------------ who is here


def test_a_tab_that_was_left_open_for_days_keeps_its_pages(bench: Workbench, house: House) -> None:
    tab, program = house.enter("tab"), house.enter("program")
    house.visits.came("tab")
    for session in (tab, program):
        list(upload(bench, session, [("mine.png", png(73))], None))
    house.passes(100 * IDLE_S)
    house.sweep()
    assert list(house.sessions) == list(house.answers) == ["tab"]
    assert own_pages(bench, tab.scope) == ["mine.png"] and not own_pages(bench, program.scope)


def test_a_heartbeat_that_breaks_and_comes_back_costs_nothing(
    bench: Workbench, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "GRACE_S", 0.2)
    session = house.enter("tab")
    list(upload(bench, session, [("mine.png", png(74))], None))

    async def breaks() -> None:
        house.visits.came("tab")
        house.visits.went("tab")
        house.visits.came("tab")
        await asyncio.gather(*house.visits._tasks)

    run(breaks())
    assert own_pages(bench, session.scope) == ["mine.png"]


def test_a_heartbeat_that_breaks_twice_has_as_long_to_come_back_each_time(
    bench: Workbench, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "GRACE_S", 0.4)
    session = house.enter("tab")
    list(upload(bench, session, [("mine.png", png(74))], None))

    async def breaks() -> None:
        house.visits.came("tab")
        house.visits.went("tab")
        (first,) = house.visits._tasks
        await asyncio.sleep(0.3)
        house.visits.came("tab")
        house.visits.went("tab")
        await first
        await asyncio.sleep(0)
        house.visits.came("tab")
        await asyncio.gather(*house.visits._tasks)

    run(breaks())
    assert own_pages(bench, session.scope) == ["mine.png"] and not session.n_lost


def test_of_two_heartbeats_with_one_name_the_last_one_counts(
    bench: Workbench, house: House
) -> None:
    session = house.enter("tab")
    list(upload(bench, session, [("mine.png", png(74))], None))
    house.visits.came("tab")
    run(house.leave("tab"))  # somebody else's
    assert own_pages(bench, session.scope) == ["mine.png"] and house.visits._beating(session)


def test_a_tab_that_lost_its_heartbeat_goes_on_with_its_settings_for_a_while(
    bench: Workbench, house: House
) -> None:
    session = house.enter("tab")
    list(upload(bench, session, [("mine.png", png(75))], None))
    settings, scope = session.settings, session.scope
    run(house.leave("tab"))
    assert not own_pages(bench, scope)
    house.passes(100 * AWAY_S)  # it stood open for long before
    house.sweep()
    kept = house.visits._session("tab")
    assert kept is session and kept.settings is settings and kept.n_lost == 1
    *_, done = upload(bench, session, [("again.png", png(75))], None)
    assert done.lines[0].state == "cached" and own_pages(bench, session.scope) == ["again.png"]
    house.visits._left["tab"] -= AWAY_S + 1
    house.used["tab"] = datetime.now()
    house.sweep()
    assert house.sessions, "it was used a moment ago"
    house.passes(AWAY_S + 1)
    house.sweep()
    assert not house.sessions and not own_pages(bench, session.scope)


def test_a_programs_pages_go_an_hour_after_its_last_call_and_it_may_begin_anew(
    bench: Workbench, house: House
) -> None:
    program = house.enter("program")
    list(upload(bench, program, [("mine.png", png(76))], None))
    house.passes(IDLE_S - 60)
    house.sweep()
    assert own_pages(bench, program.scope) == ["mine.png"]
    house.passes(120)
    house.sweep()
    assert not own_pages(bench, program.scope) and not house.answers
    again = house.enter("program")
    *_, done = upload(bench, again, [("again.png", png(76))], None)
    assert done.lines[0].state == "cached"


def test_what_takes_over_an_hour_is_in_use(bench: Workbench, house: House) -> None:
    session = house.enter("slow")
    house.events["upload"] = SimpleNamespace(session_hash="slow")
    list(upload(bench, session, [("slow.png", png(77))], None))
    house.passes(IDLE_S + 1)
    house.sweep()
    assert own_pages(bench, session.scope) == ["slow.png"]


def test_of_many_programs_those_that_were_used_longest_ago_end_and_no_tab_does(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "MOST_PROGRAMS", 5)
    monkeypatch.setattr(visits, "MOST_AWAY", 2)
    house.enter("tab")
    house.visits.came("tab")
    for n in range(4):
        house.enter(f"left {n}")
        run(house.leave(f"left {n}"))
    for n in range(9):
        house.enter(f"program {n}")
    house.used["program 0"] = datetime.now()
    house.sweep()
    left = {"tab", "left 2", "left 3", "program 0", *(f"program {n}" for n in range(5, 9))}
    assert set(house.sessions) == left


def test_what_gradio_kept_for_calls_that_were_no_events_goes_too(house: House) -> None:
    house.sessions["called"] = SimpleNamespace(state_data={})  # as by a route of its own
    house.used["called"] = datetime.now()
    house.answers["nobody"] = object()
    house.passes(IDLE_S + 1)
    house.sweep()
    assert not house.sessions and not house.answers


def test_a_session_that_gradio_dropped_loses_its_pages(bench: Workbench, house: House) -> None:
    session = house.enter("tab")
    house.visits.came("tab")
    list(upload(bench, session, [("mine.png", png(78))], None))
    del house.sessions["tab"]
    house.sweep()
    assert not own_pages(bench, session.scope)


@pytest.mark.parametrize(
    ("most", "every_s", "left"), [(5, 60.0, ["idle"]), (0, 60.0, []), (5, 0.5, [])]
)
def test_sweeps_come_by_themselves_and_at_once_where_there_are_too_many(
    house: House, monkeypatch: pytest.MonkeyPatch, most: int, every_s: float, left: list[str]
) -> None:
    for name, value in (("MOST_PROGRAMS", most), ("MOST_AWAY", 0), ("SWEEP_S", every_s)):
        monkeypatch.setattr(visits, name, value)

    def stored(store: Any) -> list[str]:
        raise OSError("the disk is gone for a moment")

    async def calls() -> None:
        house.visits.look_after()  # somebody's
        house.enter("idle")
        house.passes(2 * IDLE_S)
        house.visits.look_after()  # and somebody's
        await asyncio.sleep(2.0)
        assert house.visits._sweeping is not None and not house.visits._sweeping.done()

    with monkeypatch.context() as patch:
        patch.setattr(visits, "own_scopes", stored)
        run(calls())
    assert list(house.sessions) == left


def test_heartbeats_of_nobody_do_not_hide_that_there_are_too_many(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MOST_PROGRAMS", 1), ("MOST_AWAY", 0)):
        monkeypatch.setattr(visits, name, value)

    async def calls() -> None:
        for n in range(9):
            house.visits.came(f"nobody {n}")
        for name in ("one", "another"):
            house.enter(name)
        house.visits.look_after()
        assert house.visits._too_many.is_set()

    run(calls())


# ------------------------------------------------------------------ heartbeats


@pytest.mark.parametrize(
    ("path", "beats"),
    [
        ("/gradio_api/heartbeat/abc", {"abc": 1}),
        ("/gradio_api/heartbeat/" + "x" * 101, {}),
        ("/gradio_api/file=http://elsewhere/gradio_api/heartbeat/abc", {}),
        ("/gradio_api/queue/join", {}),
    ],
)
def test_only_gradios_own_route_is_a_heartbeat(
    house: House, path: str, beats: dict[str, int]
) -> None:
    seen: list[dict[str, int]] = []

    async def serves(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(house.visits._beats))
        raise ConnectionError  # it breaks off

    async def request() -> None:
        scope = {"type": "http", "method": "GET", "path": path}
        with pytest.raises(ConnectionError):
            await Heartbeats(serves, house.visits)(scope, None, None)  # type: ignore[arg-type]

    run(request())
    assert seen == [beats] and not house.visits._beats


def test_a_tab_is_here_as_long_as_it_is_open(
    running: Running, bench: Workbench, visit: Callable[..., Page]
) -> None:
    states = running.demo.state_holder.session_data
    before = set(states)
    stays, leaves = visit(), visit()
    both = set(states) - before
    assert len(both) == 2
    sessions = {name: bench.visits._session(name) for name in both}
    soon(lambda: all(map(bench.visits._beating, sessions.values())), "nothing is heard of them")
    leaves.context.close()
    soon(lambda: len(both & set(bench.visits._beats)) == 1, "its heartbeat is heard still")
    (gone,) = both - set(bench.visits._beats)
    soon(lambda: gone in bench.visits._left, "it does not count as left")
    stays.locator("#samples .mrr-chip").first.click()
    stays.wait_for_selector("#took")


def test_a_tab_keeps_the_session_that_its_first_event_had(running: Running) -> None:
    (state,) = (b for b in running.demo.blocks.values() if isinstance(b, gr.State))
    assert not [fn.name for fn in running.demo.fns.values() if state in fn.outputs]


def test_a_tab_that_lost_its_pages_is_told_so_once(
    running: Running, bench: Workbench, visit: Callable[..., Page]
) -> None:
    before = set(running.demo.state_holder.session_data)
    tab = visit()
    (name,) = set(running.demo.state_holder.session_data) - before
    session = bench.visits._session(name)
    assert session is not None and not session.new
    list(upload(bench, session, [("mine.png", png(79))], None))
    beats = bench.visits._beats.pop(name)  # as if it had slept
    ended = bench.visits._left[name] = time.monotonic()
    run(bench.visits._leave(name, ended))
    bench.visits._beats[name] = beats
    tab.locator("#samples .mrr-chip").first.click()
    tab.wait_for_selector("#took")
    expect(tab.locator(".toast-body")).to_contain_text("a page that you added went with it")
    assert session.n_lost == 0 and "mine.png" not in tab.locator("#hits").inner_text()


@pytest.mark.parametrize("slept", [True, False], ids=["while it slept", "dropped by Gradio"])
def test_a_tab_whose_session_is_gone_is_told_to_reload_instead_of_ranking_otherwise(
    running: Running, bench: Workbench, visit: Callable[..., Page], slept: bool
) -> None:
    states = running.demo.state_holder.session_data
    before = set(states)
    tab = visit()
    tab.locator("#samples .mrr-chip").first.click()
    tab.wait_for_selector("#took")
    (name,) = set(states) - before
    soon(lambda: name in bench.visits._beats, "its heartbeat is not heard")
    beats = bench.visits._beats[name]
    if slept:
        del bench.visits._beats[name]
    del states[name]
    tab.locator("#samples .mrr-chip").nth(1).click()
    expect(tab.locator(".toast-body")).to_contain_text("Reload the page")
    expect(tab.locator("#summary")).to_contain_text(SAMPLES[0])
    bench.visits._beats[name] = beats


def test_what_gradio_drops_of_a_tab_is_known_as_long_as_its_heartbeat(house: House) -> None:
    session = house.enter("tab")
    session.new = True
    assert house.visits.is_another(session), "nothing is heard of it"
    house.visits.came("tab")
    assert not house.visits.is_another(session), "its page is still to be drawn"
    house.visits.drew(session)
    house.sweep()
    del house.sessions["tab"]
    house.sweep()
    again = house.enter("tab")
    again.new = True
    assert house.visits.is_another(again)
    del house.sessions["tab"], house.visits._beats["tab"]
    house.sweep()
    assert not house.visits._drawn


def test_a_heartbeat_that_comes_after_its_page_was_drawn_is_of_that_page(house: House) -> None:
    house.visits.drew(house.enter("tab"))
    house.visits.came("tab")
    del house.sessions["tab"]
    again = house.enter("tab")
    again.new = True
    assert house.visits.is_another(again)


# ------------------------------------------------------------------ memory


def test_a_tab_that_left_lets_go_of_what_it_had_computed(bench: Workbench, house: House) -> None:
    session = house.enter("heavy")
    list(upload(bench, session, [("mine.png", png(79))], None))
    bench.rank(session, SAMPLES[0])
    explaining.trace(bench, session)
    session.comparing = True
    assert session.runs and session.explanations and session.added
    run(house.leave("heavy"))
    assert not session.runs and not session.explanations and not session.added
    assert session.lenses is None and session.latency is None and not session.comparing
    assert session.run is not None, "what is being drawn can be drawn to its end"


def test_calls_of_programs_do_not_pile_up(running: Running, bench: Workbench) -> None:
    def call() -> None:
        asked = {"data": ["blue harbour", 1, "mini"]}
        url = f"{running.url}/gradio_api/call/rank"
        event = httpx.post(url, json=asked, timeout=PATIENCE_S).json()["event_id"]
        assert "complete" in httpx.get(f"{url}/{event}", timeout=PATIENCE_S).text

    holder, queue = running.demo.state_holder, running.demo._queue
    before = set(holder.session_data)
    for _ in range(5):
        call()
    programs = set(holder.session_data) - before
    for name in programs:
        holder.time_last_used[name] -= timedelta(seconds=IDLE_S + 1)
    assert len(programs) == 5

    def taken() -> bool:  # of an event that has just ended Gradio may still know
        bench.visits._take_over()
        return not set(holder.session_data) - before

    soon(taken, "their states are kept")
    assert not programs & {*queue.pending_event_ids_session, *queue.pending_messages_per_session}


def test_a_program_whose_connection_broke_is_told_so_once(
    running: Running, bench: Workbench
) -> None:
    name, api = "cut off", f"{running.url}/gradio_api"

    def rank() -> str:
        asked = {"data": ["blue harbour", 1, "mini", None], "session_hash": name}
        event = httpx.post(f"{api}/call/rank", json=asked, timeout=PATIENCE_S).json()["event_id"]
        return httpx.get(f"{api}/call/rank/{event}", timeout=PATIENCE_S).text

    with httpx.stream("GET", f"{api}/heartbeat/{name}", timeout=PATIENCE_S):
        assert "went with it" not in rank()
        session = bench.visits._session(name)
        assert session is not None
        list(upload(bench, session, [("mine.png", png(79))], None))
    soon(lambda: session.n_lost == 1, "its pages are kept")
    assert "a page that you added went with it" in rank()
    assert "went with it" not in rank()
