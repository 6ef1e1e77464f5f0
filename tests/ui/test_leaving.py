"""Who leaves takes everything along: pages that come late, those of programs, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

import app as the_app
from mrr.errors import InputRejected
from tests.ui.conftest import PATIENCE_S, SAMPLES, Running, pdf, png
from ui import explaining
from ui.caching import read_uploads, upload
from ui.session import Session
from ui.tabs import IDLE_S, MOST_PROGRAMS, Tabs
from ui.workbench import Workbench


@pytest.fixture
def bench(running: Running) -> Workbench:
    return running.bench


@pytest.fixture
def tabs(bench: Workbench) -> Tabs:
    return Tabs(bench.remove_scope)


def soon(reached: Callable[[], bool], otherwise: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def own_pages(bench: Workbench, session: Session) -> list[str]:
    return [page.label for page in bench.store.pages([session.scope])]


# ------------------------------------------------------------------ during an upload


def test_a_page_that_is_in_hand_when_its_tab_closes_is_removed(
    bench: Workbench, tabs: Tabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, run = bench.session(), bench.run
    tabs.opened("leaves", session)

    def leaving(*work: Any) -> Any:
        tabs.closed("leaves")
        return run(*work)

    monkeypatch.setattr(bench, "run", leaving)
    *_, done = upload(bench, session, [("two.pdf", pdf(70, 71))], None)
    assert done.n_done == 1 and done.cancelled
    assert own_pages(bench, session) == []
    (line, *_) = done.lines
    assert line.added is not None and bench.thumbnails.get(line.added.page.page_id) is None


def test_no_page_is_begun_after_its_tab_was_closed(
    bench: Workbench, tabs: Tabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = bench.session()
    tabs.opened("left", session)
    steps = upload(bench, session, [("two.pdf", pdf(72, 73))], None)
    next(steps)
    tabs.closed("left")
    monkeypatch.setattr(bench, "run", lambda *work: pytest.fail("a page was encoded"))
    *_, done = steps
    assert done.cancelled and done.n_done == 0


@pytest.mark.parametrize("known", [True, False])
def test_an_upload_that_still_queued_is_not_taken_and_not_kept(
    bench: Workbench, tabs: Tabs, tmp_path: Path, known: bool
) -> None:
    """known: whether anything of the visitor was handled before. If not, no session was there."""
    session, path = bench.session(), tmp_path / "late.png"
    if known:
        tabs.opened("queued", session)
    tabs.closed("queued")
    path.write_bytes(png(74))
    tabs.opened("queued", session)
    with pytest.raises(InputRejected, match="connection to this session was lost"):
        read_uploads(bench, session, [str(path)])
    assert not path.exists()
    with pytest.raises(InputRejected, match="Reload the page"):
        next(upload(bench, session, [("late.png", png(74))], None))
    assert own_pages(bench, session) == []


# ------------------------------------------------------------------ the net under it


class Kept(dict[str, object]):
    """Gradio's states, by session hash."""

    def drop(self, session_hash: str) -> None:
        del self[session_hash]


def an_hour_passes(tabs: Tabs) -> None:
    for session in tabs._sessions.values():
        session.used -= IDLE_S + 1
    for session_hash, (closed, scope) in tabs._closed.items():
        tabs._closed[session_hash] = closed - IDLE_S - 1, scope


@pytest.fixture
def removed() -> list[str]:
    return []


@pytest.fixture
def states() -> Kept:
    return Kept()


@pytest.fixture
def watched(removed: list[str], states: Kept) -> Tabs:
    """Tabs that only note which scopes are removed."""
    return Tabs(removed.append, states)


def open_in(tabs: Tabs, states: Kept, session_hash: str, session: Session) -> Session:
    states[session_hash] = session
    tabs.opened(session_hash, session)
    return session


def test_a_programs_pages_go_an_hour_after_its_last_call(bench: Workbench, tabs: Tabs) -> None:
    program = bench.session()
    tabs.opened("program", program)
    list(upload(bench, program, [("mine.png", png(75))], None))
    an_hour_passes(tabs)
    tabs.opened("program", program)
    tabs.sweep()
    assert own_pages(bench, program) == ["mine.png"], "it was in use a moment ago"
    an_hour_passes(tabs)
    tabs.sweep()
    assert not own_pages(bench, program)
    again = bench.session()
    tabs.opened("program", again)
    *_, done = upload(bench, again, [("again.png", png(75))], None)
    assert done.lines[0].state == "cached", "it may begin anew"
    bench.remove_own(again)


def test_nobody_has_to_call_for_an_idle_program_to_end(
    watched: Tabs, states: Kept, removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.tabs._SWEEP_S", 0.01)
    program = open_in(watched, states, "program", Session())
    an_hour_passes(watched)
    soon(lambda: removed == [program.scope] and not states, "it is still there")
    soon(lambda: not watched._watched, "with nobody left to look after, something still runs")
    again = open_in(watched, states, "again", Session())
    an_hour_passes(watched)
    soon(lambda: again.scope in removed, "nobody looks after those who come later")


def test_what_cannot_be_removed_is_tried_again_and_the_rest_goes(states: Kept) -> None:
    removed: list[str] = []

    def remove(scope: str) -> None:
        removed.append(scope)
        if removed == [first.scope]:
            raise OSError("the disk is gone for a moment")

    tabs = Tabs(remove, states)
    first, second = (open_in(tabs, states, name, Session()) for name in ("first", "second"))
    an_hour_passes(tabs)
    tabs.sweep()
    assert removed == [first.scope, second.scope]
    tabs.sweep()
    tabs.sweep()
    assert removed == [first.scope, second.scope, first.scope]


def test_of_many_programs_those_that_were_used_longest_ago_end_and_no_tab_does(
    watched: Tabs, states: Kept, removed: list[str]
) -> None:
    tab = open_in(watched, states, "tab", Session(drawn={"pages": 1}))
    first, second, *_ = [
        open_in(watched, states, f"program {n}", Session()) for n in range(MOST_PROGRAMS)
    ]
    open_in(watched, states, "program 0", first)
    open_in(watched, states, "one more", Session())
    soon(lambda: second.scope in removed, "there are too many of them")
    assert second.gone and not first.gone and not tab.gone
    assert len(states) == MOST_PROGRAMS + 1 and "tab" in states


def test_a_tab_that_was_left_open_for_hours_keeps_its_pages(
    watched: Tabs, states: Kept, removed: list[str]
) -> None:
    open_in(watched, states, "tab", Session(drawn={"pages": 1}))
    program = open_in(watched, states, "program", Session())
    an_hour_passes(watched)
    watched.sweep()
    assert removed == [program.scope] and list(states) == ["tab"]


def test_a_session_that_gradio_dropped_ends(
    watched: Tabs, states: Kept, removed: list[str]
) -> None:
    tab = open_in(watched, states, "tab", Session(drawn={"pages": 1}))
    states.drop("tab")
    watched.sweep()
    assert removed == [tab.scope] and tab.gone


def test_a_session_that_gradio_dropped_ends_when_its_tab_got_another(
    watched: Tabs, states: Kept, removed: list[str]
) -> None:
    first, second = Session(), Session()
    for session in (first, first, second):
        open_in(watched, states, "tab", session)
    assert first.gone and not second.gone
    watched.sweep()
    assert removed == [first.scope]


def test_an_upload_of_over_an_hour_is_in_use_and_its_pages_stay(
    bench: Workbench, watched: Tabs, states: Kept, removed: list[str]
) -> None:
    session = open_in(watched, states, "slow", bench.session())
    steps = upload(bench, session, [("slow.png", png(76))], None)
    next(steps)
    an_hour_passes(watched)
    watched.sweep()
    assert not removed
    list(steps)
    watched.sweep()
    assert not removed, "it has only just ended"
    an_hour_passes(watched)
    watched.sweep()
    assert removed == [session.scope]
    bench.remove_own(session)


def test_what_a_closed_tab_stored_late_is_removed_an_hour_later(
    watched: Tabs, states: Kept, removed: list[str]
) -> None:
    session = open_in(watched, states, "tab", Session(drawn={"pages": 1}))
    watched.closed("tab")
    watched.closed("tab")
    watched.sweep()
    assert removed == [session.scope]
    an_hour_passes(watched)
    watched.sweep()
    assert removed == [session.scope] * 2
    assert not watched._closed


def test_who_closes_what_was_never_open_takes_no_memory_for_it(
    watched: Tabs, removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.tabs._MOST_CLOSED", 5)
    for n in range(20):
        watched.closed(f"forged {n}")
        watched.closed(f"{n}" * 10_000)
    assert list(watched._closed) == [f"forged {n}" for n in range(15, 20)] and not removed


# ------------------------------------------------------------------ memory


def test_a_closed_tab_lets_go_of_what_it_had_computed(bench: Workbench, tabs: Tabs) -> None:
    session = bench.session()
    tabs.opened("heavy", session)
    list(upload(bench, session, [("mine.png", png(77))], None))
    bench.rank(session, SAMPLES[0])
    explaining.trace(bench, session)
    assert session.runs and session.explanations and session.added
    tabs.closed("heavy")
    assert not session.runs and not session.explanations and not session.added
    assert session.lenses is None and session.latency is None
    assert session.run is not None, "what is being drawn can be drawn to its end"


def test_gradio_keeps_the_state_of_open_tabs_only_and_of_so_many_at_most(
    running: Running, visit: Callable[..., Page]
) -> None:
    states = running.demo.state_holder.session_data
    assert running.demo.state_holder.capacity == the_app.launch_flags()["state_session_capacity"]
    before = set(states)
    stays, leaves = visit(), visit()
    both = set(states) - before
    assert len(both) == 2
    leaves.context.close()
    soon(lambda: len(both & set(states)) == 1, "the closed tab's state is kept")
    stays.locator("#samples .mrr-chip").first.click()
    stays.wait_for_selector("#took")
