"""What a click changes on the screen, and what it leaves alone; without a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrr.errors import InputRejected
from tests.ui.conftest import N_PAGES, SAMPLES, Running, png, uploaded
from ui import explaining
from ui.caching import upload
from ui.detail import LATE, TRACING, UNTRACED
from ui.handlers import Handlers
from ui.housekeeping import Housekeeping
from ui.layout import build_ui
from ui.session import Session
from ui.views.start import sample_queries
from ui.workbench import Workbench

AS_LIST = ("List", False)


@pytest.fixture(scope="module")
def bench(running: Running) -> Workbench:
    return running.bench


@pytest.fixture(scope="module")
def house(bench: Workbench) -> Housekeeping:
    """The handlers of an app of their own around the same workbench."""
    made: list[Housekeeping] = []

    def noted(*parts: Any) -> Housekeeping:
        made.append(Housekeeping(*parts))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ui.layout.Housekeeping", noted)
        build_ui(bench)
    return made[0]


@pytest.fixture
def rank(house: Housekeeping) -> Handlers:
    return house.ranking


@pytest.fixture
def session(bench: Workbench) -> Iterator[Session]:
    session = bench.session()
    yield session
    bench.remove_own(session)


@pytest.fixture
def toasts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is told in a message, instead of telling it."""
    said: list[str] = []
    monkeypatch.setattr("ui.handlers.tell", said.append)
    return said


def switches(bench: Workbench, **changed: object) -> list[object]:
    """What the switches send to the server, as the model has them but for what is changed."""
    config = bench.base.config
    assert config.band is not None and config.exit_layer is not None
    values = {
        "exit_layer": config.exit_layer - 1,
        "band_start": config.band[0],
        "band_end": config.band[1] - 1,
        "keep_ratio": config.keep_ratio,
        "pruner": config.pruner,
        "kv_dtype": config.kv_dtype,
        "top_k": 10,
        "instruction": config.instruction,
        "auto_trace": True,
        "model": "",
        "embedder": "",
    }
    return list({**values, **changed}.values())


def free_at_last() -> Callable[[Session], bool]:
    """Whether the models are free: not when it is asked first."""
    answers = iter([False])
    return lambda _: next(answers, True)


def ask(rank: Handlers, session: Session, query: str = SAMPLES[0]) -> None:
    list(rank.rank(query, *AS_LIST, session))


def test_an_apply_that_changes_nothing_ranks_nothing_again(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    ask(house.ranking, session)
    list(house.apply(session, *switches(bench)))
    assert list(house.ranking.rank_changed(*AS_LIST, session)) == []
    list(house.apply(session, *switches(bench, auto_trace=False)))
    assert list(house.ranking.rank_changed(*AS_LIST, session)) == [], "no ranking depends on it"
    assert len(session.runs) == 1


def test_a_refused_apply_leaves_a_past_ranking_that_was_opened_again(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    ask(house.ranking, session)
    past = session.run
    list(house.apply(session, *switches(bench, top_k=2)))
    list(house.ranking.rank_changed(*AS_LIST, session))
    assert len(session.runs) == 2 and len(session.run.mini) == 2
    session.run = past
    session.busy = True  # an upload goes on
    with pytest.raises(InputRejected, match="being encoded"):
        list(house.apply(session, *switches(bench, top_k=3)))
    session.busy = False
    assert list(house.ranking.rank_changed(*AS_LIST, session)) == []
    assert session.run is past and len(session.runs) == 2


def test_a_ranking_of_other_settings_than_those_in_force_names_its_own(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    ask(house.ranking, session)
    past = session.run
    assert "Ranked with" not in house.ranking.summary(session)
    list(house.apply(session, *switches(bench, top_k=2, instruction="Find <b>it</b>.")))
    list(house.ranking.rank_changed(*AS_LIST, session))
    assert "Ranked with" not in house.ranking.summary(session)
    session.run = past
    said = house.ranking.summary(session)
    assert f"Ranked with: {past.described}, 10 candidates, instruction “" in said
    assert past.instruction in said and "press Rank" in said
    list(house.apply(session, *switches(bench)))
    (shown,) = house.ranking.rank_changed(*AS_LIST, session)
    assert "Ranked with" not in shown[house.ranking.views.ranking.summary]
    assert session.run is past, "it is of these settings already"


def test_an_apply_that_was_stopped_says_what_the_ranking_is_of(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    ask(house.ranking, session)
    for _ in house.apply(session, *switches(bench, keep_ratio=0.65)):
        session.busy = False
    (shown,) = house.ranking.rank_changed(*AS_LIST, session)
    assert "Ranked with: " in shown[house.ranking.views.ranking.summary]
    assert len(session.runs) == 1


def test_an_empty_query_is_refused_before_it_waits_for_the_models(
    bench: Workbench, rank: Handlers, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "is_free", lambda _: False)
    with pytest.raises(InputRejected, match="Type a query first"):
        next(rank.rank(" ", *AS_LIST, session))


def test_a_ranking_that_fails_leaves_what_was_shown_and_no_word_of_waiting(
    bench: Workbench, rank: Handlers, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise InputRejected("That cannot be ranked.")

    def shown_at_last() -> dict[Any, Any]:
        last: dict[Any, Any] = {}
        with pytest.raises(InputRejected, match="cannot be ranked"):
            for values in rank.rank(SAMPLES[1], *AS_LIST, session):
                last.update(values)
        return last

    ranking = rank.views.ranking
    with monkeypatch.context() as broken:
        broken.setattr(bench, "rank", fails)
        broken.setattr(bench, "is_free", free_at_last())
        before_any = shown_at_last()
        assert before_any[ranking.summary] == ""
        assert before_any[rank.views.gallery]["visible"]
        assert not before_any[rank.views.results]["visible"]
    ask(rank, session)
    with monkeypatch.context() as broken:
        broken.setattr(bench, "rank", fails)
        broken.setattr(bench, "is_free", free_at_last())
        after_one = shown_at_last()
        assert SAMPLES[0] in after_one[ranking.summary]
        assert "comes next" not in after_one[ranking.summary]
        assert after_one[rank.views.results]["visible"]


class Click:
    """An event of the browser, after all before it."""

    _n = 0

    def __init__(self, **data: str) -> None:
        Click._n += 1
        self._data = {"nth": str(Click._n), **data}


def test_a_query_that_waits_gives_way_to_the_next_and_to_a_past_one(
    bench: Workbench, rank: Handlers, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for later in (
        lambda: ask(rank, session, SAMPLES[1]),
        lambda: rank.reopen(*AS_LIST, session, Click(n="0")),
    ):
        monkeypatch.setattr(bench, "is_free", free_at_last())
        waiting = rank.rank(SAMPLES[0], *AS_LIST, session)
        assert f"“{SAMPLES[0]}” comes next" in next(waiting)[rank.views.ranking.summary]
        later()
        assert list(waiting) == [{}]
        assert [run.query for run in session.runs] == [session.run.query] == [SAMPLES[1]]


def test_a_query_that_is_being_ranked_gives_way_to_the_next(
    bench: Workbench, rank: Handlers, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = type(bench.base)
    ranked = engine.rank

    def slow(self: Any, query: str, **options: Any) -> Any:
        if query == SAMPLES[0]:
            ask(rank, session, SAMPLES[1])
        return ranked(self, query, **options)

    monkeypatch.setattr(engine, "rank", slow)
    assert list(rank.rank(SAMPLES[0], *AS_LIST, session)) == [{}]
    assert [run.query for run in session.runs] == [session.run.query] == [SAMPLES[1]]


def test_encoding_for_a_query_gives_way_to_the_next_without_a_word(
    bench: Workbench, rank: Handlers, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = bench.pages(session)[0]
    monkeypatch.setattr(bench, "missing", lambda _, query: [page] * (query == SAMPLES[0]))
    monkeypatch.setattr(bench, "encode", lambda *_: iter([(0, 2), (1, 2), (2, 2)]))
    encoding, halt = rank.rank(SAMPLES[0], *AS_LIST, session), rank.views.ranking.halt
    assert next(encoding)[halt]["visible"]
    (shown,) = rank.rank(SAMPLES[1], *AS_LIST, session)
    assert not shown[halt]["visible"]
    assert list(encoding) == [{}]
    assert session.run.query == SAMPLES[1]


def test_a_query_that_is_stopped_while_it_waits_leaves_what_was_shown(
    bench: Workbench, rank: Handlers, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "is_free", free_at_last())
    waiting = rank.rank(SAMPLES[0], *AS_LIST, session)
    next(waiting)
    rank.stop_encoding(session)
    (left,) = waiting
    assert left[rank.views.gallery]["visible"] and not left[rank.views.ranking.halt]["visible"]
    assert session.run is None


def test_the_box_is_written_for_a_sample_and_where_cleaning_changed_it_and_no_more(
    rank: Handlers, session: Session
) -> None:
    def written(values: Iterator[dict[Any, Any]]) -> list[str]:
        return [each[rank.views.query] for each in values if rank.views.query in each]

    assert written(rank.rank(SAMPLES[0], *AS_LIST, session)) == []
    assert written(rank.rank(f" {SAMPLES[0]}\n", *AS_LIST, session)) == [SAMPLES[0]]
    assert written(rank.rank_sample(*AS_LIST, session, Click(n="0"))) == [
        sample_queries(rank.bench)[0]
    ]


def test_maps_follow_a_promise_that_reached_the_screen_after_them(
    rank: Handlers, session: Session
) -> None:
    ask(rank, session)
    detail, chosen = rank.detail, rank.detail.views.chosen
    detail.trace_selected(session)
    first, second = (hit.page for hit in session.run.mini.hits[1:3])
    for page in (first, second):  # one key after the other, before anything was traced
        promise = rank.pick(session, Click(page=page.page_id))
        assert TRACING in str(promise)
    assert second.label in detail.trace_selected(session)[chosen]
    maps = detail.trace_selected(session)
    assert second.label in maps[chosen] and TRACING not in str(maps)
    assert detail.trace_selected(session) == {}, "nothing is owed any more"
    assert TRACING not in str(rank.pick(session, Click(page=second.page_id)))
    assert detail.trace_selected(session) == {}, "it was shown when it was picked"


def test_of_two_picks_that_arrive_in_the_wrong_order_the_later_one_stays(
    rank: Handlers, session: Session
) -> None:
    ask(rank, session)
    first, second = (hit.page.page_id for hit in session.run.mini.hits[1:3])
    early, late = Click(page=first), Click(page=second)
    assert rank.pick(session, late)
    assert rank.pick(session, early) == {}
    assert session.selected == second


def test_only_a_page_that_is_being_traced_is_said_to_wait(rank: Handlers, session: Session) -> None:
    ask(rank, session)
    shown = str(rank.detail.shown(session))
    assert TRACING in shown and LATE in shown
    session.settings = replace(session.settings, auto_trace=False)
    shown = str(rank.detail.shown(session))
    assert UNTRACED in shown and LATE not in shown


def test_a_trace_that_ends_after_another_page_was_picked_shows_nothing(
    rank: Handlers, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(rank, session)
    detail, lenses = rank.detail, explaining.lenses
    first, second = (hit.page for hit in session.run.mini.hits[:2])
    assert session.selected == first.page_id

    def pick_meanwhile(*given: Any) -> Any:
        session.selected = second.page_id
        return lenses(*given)

    with monkeypatch.context() as patch:
        patch.setattr(explaining, "lenses", pick_meanwhile)
        assert detail.trace(session) == {}
    assert second.label in detail.trace(session)[detail.views.chosen]


def test_a_page_that_another_tab_removed_leaves_the_ranking_when_it_is_picked(
    bench: Workbench, rank: Handlers, session: Session, toasts: list[str]
) -> None:
    list(upload(bench, session, [("gone.png", png(91))], None))
    ask(rank, session)
    gone = next(hit.page for hit in session.run.mini if hit.page.label == "gone.png")
    bench.store.remove_pages([gone.page_id])
    shown = rank.pick(session, Click(page=gone.page_id))
    assert toasts == ["That page is not here any more. Add it again."]
    assert "gone.png" not in shown[rank.views.ranking.hits]
    assert "1 of them removed since" in shown[rank.views.ranking.summary]
    assert session.selected == session.run.mini[0].page.page_id
    assert rank.views.ranking.hits not in rank.pick(session, Click(page=session.selected))


def test_a_comparison_goes_on_to_its_end_without_a_page_that_another_tab_removed(
    bench: Workbench, rank: Handlers, session: Session
) -> None:
    list(upload(bench, session, [("gone.png", png(92))], None))
    ask(rank, session)
    gone = next(hit.page.page_id for hit in session.run.mini if hit.page.label == "gone.png")
    session.run.scored["original"] = {
        hit.page.page_id: hit
        for hit in bench.base.rank(SAMPLES[0], system="original", scopes=bench.scopes(session))
        if hit.page.page_id != gone
    }
    session.run.took_ms["original"] = dict.fromkeys(session.run.scored["original"], 1.0)
    session.run.caching_ms["original"] = 0.0
    bench.store.remove_pages([gone])
    *_, last = rank.compare("original", *AS_LIST, session)
    assert "original took" in last[rank.views.ranking.estimate]
    assert "1 of them removed since" in last[rank.views.ranking.summary]
    assert session.run.dense_done and len(session.run.mini) == N_PAGES


def test_a_past_ranking_opens_without_a_page_that_another_tab_removed(
    bench: Workbench, rank: Handlers, session: Session
) -> None:
    list(upload(bench, session, [("gone.png", png(93))], None))
    ask(rank, session)
    bench.store.remove_pages(
        [page.page_id for page in bench.pages(session) if page.label == "gone.png"]
    )
    shown = rank.reopen(*AS_LIST, session, Click(n="0"))
    assert "gone.png" not in shown[rank.views.ranking.hits]
    assert "1 of them removed since" in shown[rank.views.ranking.summary]


def test_what_is_stored_is_drawn_again_where_it_changed_and_only_there(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    view, rank = house.views.upload, house.ranking.views
    house.stored(session)
    assert house.stored_since(session) == {}
    ask(house.ranking, session)
    assert list(house.stored_since(session)) == [view.store], "its cache hits"
    list(upload(bench, session, [("of-another-tab.png", png(94))], None))
    changed = house.stored_since(session)
    assert changed.keys() == {view.store, view.pages, rank.header, rank.gallery}
    assert f"<b>{N_PAGES + 1}</b>" in changed[rank.header]
    assert "of-another-tab.png" in changed[view.pages]


def test_drawing_the_pages_counts_neither_as_hits_nor_as_misses(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    list(upload(bench, session, [("known.png", png(95))], None))
    session.added.clear()  # as after a start of the app
    before = bench.store.stats()
    house.stored(session)
    assert session.added, "it was looked for"
    assert bench.store.stats() == before
    unread = replace(bench.base.config, keep_ratio=0.45)
    house.stored(Session(settings=replace(session.settings, config=unread)))
    assert bench.store.stats() == before


def test_the_plan_is_of_what_the_switches_hold_and_said_once(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    view = house.views.settings
    house.switches(session)
    assert house.plan(session, *switches(bench)) == {}, "the app itself has put them there"
    said = house.plan(session, *switches(bench, keep_ratio=0.85))
    assert f"Apply will encode {N_PAGES} of" in said[view.plan]
    assert house.plan(session, *switches(bench, keep_ratio=0.85)) == {}
    back = house.plan(session, *switches(bench))
    assert "Nothing has to be encoded again" in back[view.plan]
    assert back[view.preset] == "Paper default"
    beyond = house.plan(session, *switches(bench, exit_layer=99))
    assert "this model has 6 layers" in beyond[view.plan], "as while somebody types 3 after 9"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"exit_layer": None}, "A number is missing"),
        ({"keep_ratio": 0}, "keep_ratio"),
        ({"top_k": 1000}, "it must be from 1 to 100"),
    ],
)
def test_what_no_switch_may_hold_is_a_sentence_in_the_plan_and_changes_nothing(
    bench: Workbench,
    house: Housekeeping,
    session: Session,
    changed: dict[str, object],
    words: str,
) -> None:
    view, before = house.views.settings, session.settings
    assert words in house.plan(session, *switches(bench, **changed))[view.plan]
    *_, last = house.apply(session, *switches(bench, **changed))
    assert "Not applied" in last[view.plan] and words in last[view.plan]
    assert house.plan(session, *switches(bench, **changed)) == {}, "it stays where this is late"
    assert session.settings is before and not session.busy


def test_a_plan_that_comes_after_apply_is_not_said_over_it_and_its_preset_not_lost(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    said = {}
    for values in house.apply(session, *switches(bench, keep_ratio=0.9)):
        said.update(values)
    assert said[house.views.settings.preset] is None, "none of those that have a name"
    assert house.plan(session, *switches(bench, keep_ratio=0.9)) == {}


def test_switches_that_are_moved_while_apply_encodes_are_what_the_plan_is_of_after_it(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    view, last = house.views.settings, {}
    for values in house.apply(session, *switches(bench, keep_ratio=0.7)):
        house.plan(session, *switches(bench, keep_ratio=0.15))
        last.update(values)
    assert f"Apply will encode {N_PAGES} of" in last[view.plan]


def test_encoding_is_told_of_on_the_rank_tab_until_it_is_over(
    bench: Workbench, house: Housekeeping, session: Session
) -> None:
    meanwhile, said = house.ranking.views.meanwhile, []
    for values in house.apply(session, *switches(bench, keep_ratio=0.75)):
        said += [values[meanwhile]] if meanwhile in values else []
    assert f"Apply encodes the pages for the new settings: 1 of {N_PAGES} pages done" in said[1]
    assert said[-1] == ""


def test_a_ranking_during_an_upload_says_which_pages_are_not_in_it(
    bench: Workbench,
    house: Housekeeping,
    session: Session,
    uploads: Path,
) -> None:
    paths = [uploaded(uploads, f"{n}.png", png(96 + n)) for n in range(3)]
    meanwhile, said = house.ranking.views.meanwhile, []
    for values in house.add(list(map(str, paths)), "", session):
        said += [values[meanwhile]] if meanwhile in values else []
        if session.reading == (1, 3) and session.run is None:
            ask(house.ranking, session)
    assert any("Your upload is being read: 1 of 3 pages done" in line for line in said)
    assert said[-1] == ""
    assert "1 of 3 pages of your upload had been read by then" in house.ranking.summary(session)
    ask(house.ranking, session)
    assert "your upload" not in house.ranking.summary(session)
