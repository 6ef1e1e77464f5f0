"""What stays true in the browser while a visitor goes back and forth between the views."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from mrr import MiniReranker
from mrr.errors import InputRejected
from mrr.types import AddedPage, PageImage, RankedList
from tests.ui.conftest import HELD_S, N_PAGES, PATIENCE_S, SAMPLES, Running, pdf, png
from tests.ui.test_app_browser import add_files, open_tab, rank, traced
from tests.ui.test_charts_browser import CHART

pytestmark = pytest.mark.browser


def settled(tab: Page) -> None:
    """Waits until no event that may change the ranking is on its way: Gradio counts its seconds."""
    tab.wait_for_timeout(1000)  # it has begun, if it is to come
    expect(tab.locator("#hits .progress-text")).to_have_count(0)


def test_a_past_query_opens_where_it_is_shown_with_its_own_baseline(tab: Page) -> None:
    rank(tab, SAMPLES[0])
    traced(tab)
    tab.get_by_label("dense + reuse", exact=True).click()
    expect(tab.locator("#estimate")).to_contain_text("dense + reuse")
    rank(tab, SAMPLES[1])  # the choice holds for the next query
    expect(tab.locator("#estimate")).to_contain_text("dense + reuse")
    tab.get_by_label("original", exact=True).click()
    expect(tab.locator("#estimate")).to_contain_text("original")
    open_tab(tab, "History")
    tab.locator("[data-event=reopen]").nth(1).click()
    expect(tab.locator("#summary")).to_be_visible()
    expect(tab.locator("#summary")).to_contain_text(f"“{SAMPLES[0]}”")
    expect(tab.get_by_label("dense + reuse", exact=True)).to_be_checked()


def test_keys_pressed_faster_than_pages_are_drawn_end_on_the_page_that_is_marked(
    tab: Page,
) -> None:
    rank(tab)
    traced(tab)
    for _ in range(3):
        tab.keyboard.press("j")
    expect(tab.locator("#hits li").nth(3)).to_have_class("mrr-hit is-selected")
    label = tab.locator("#hits li .title").nth(3).inner_text()
    expect(tab.locator(".pi-stage canvas").first).to_have_attribute(
        "aria-label", re.compile(re.escape(label))
    )
    tab.wait_for_timeout(1000)  # nothing that was still on its way changes it again
    expect(tab.locator(".pi-stage canvas").first).to_have_attribute(
        "aria-label", re.compile(re.escape(label))
    )


def test_keys_whose_requests_overtake_each_other_end_on_the_page_that_is_marked(tab: Page) -> None:
    rank(tab)
    traced(tab)
    on_their_way: list[Route] = []

    def hold(route: Route) -> None:
        if '"nth"' in (route.request.post_data or ""):  # a pick, and nothing else that goes on
            on_their_way.append(route)
        else:
            route.continue_()

    tab.route("**/queue/join*", hold)
    for n in (1, 2):
        tab.keyboard.press("j")
        for _ in range(50 * PATIENCE_S):  # a request is seen before it can be held
            if len(on_their_way) == n:
                break
            tab.wait_for_timeout(20)
    assert len(on_their_way) == 2
    for route in reversed(on_their_way):
        with tab.expect_response("**/queue/join*"):
            route.continue_()
    label = tab.locator("#hits li.is-selected .title").inner_text()
    expect(tab.locator("#hits li").nth(2)).to_contain_text(label)
    picture = tab.locator(".pi-stage canvas").first
    expect(picture).to_have_attribute("aria-label", re.compile(re.escape(label)))
    tab.wait_for_timeout(1000)  # the one that is late changes nothing
    expect(picture).to_have_attribute("aria-label", re.compile(re.escape(label)))


def test_the_start_shows_what_was_added_and_no_longer_what_was_removed(tab: Page) -> None:
    add_files(tab, ("mine.png", png(71)))
    expect(tab.locator("#progress .mrr-state")).to_have_text(["cached"])
    open_tab(tab, "Rank")
    expect(tab.locator("#gallery figure")).to_have_count(N_PAGES + 1)
    open_tab(tab, "Pages")
    expect(tab.locator("#remove-all")).to_have_text("Remove what I added")
    tab.click("#remove-all")
    expect(tab.locator("#remove-all")).to_have_text("Really remove 1 page")
    expect(tab.get_by_role("button", name="Remove mine.png")).to_be_visible()
    tab.wait_for_timeout(500)  # as a person takes; a double click's second press is no yes
    tab.click("#remove-all")
    expect(tab.locator("#remove-all")).to_be_hidden()
    expect(tab.get_by_role("button", name="Remove mine.png")).to_have_count(0)
    open_tab(tab, "Rank")
    expect(tab.locator("#gallery figure")).to_have_count(N_PAGES)


def test_a_ranking_opens_again_without_a_page_that_was_removed(tab: Page) -> None:
    add_files(tab, ("passing.png", png(72)))
    expect(tab.locator("#progress .mrr-state")).to_have_text(["cached"])
    open_tab(tab, "Rank")
    rank(tab, SAMPLES[0])
    expect(tab.locator("#hits li")).to_have_count(N_PAGES + 1)
    traced(tab)
    rank(tab, SAMPLES[1])
    open_tab(tab, "Pages")
    tab.get_by_role("button", name="Remove passing.png").click()
    expect(tab.get_by_role("button", name="Remove passing.png")).to_have_count(0)
    open_tab(tab, "History")
    tab.locator("[data-event=reopen]").nth(1).click()
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)
    traced(tab)
    assert tab.locator(".toast-body").count() == 0


def test_a_preset_can_be_chosen_again_after_a_switch_was_moved(tab: Page) -> None:
    tab.locator(".sidebar .toggle-button").click()
    paper = tab.get_by_label("Paper default", exact=True)
    expect(paper).to_be_checked()
    number = tab.locator("#keep-ratio input[type=number]")
    before = number.input_value()
    tab.locator("#keep-ratio input[type=range]").focus()
    tab.keyboard.press("ArrowRight")
    tab.locator("#keep-ratio input[type=range]").dispatch_event("pointerup")
    expect(paper).not_to_be_checked()
    paper.click()
    expect(number).to_have_value(before)


def test_switches_on_their_way_through_what_cannot_be_are_told_quietly(tab: Page) -> None:
    tab.locator(".sidebar .toggle-button").click()
    slider = tab.locator("#exit-layer input[type=range]")
    slider.focus()
    for _ in range(5):
        tab.keyboard.press("ArrowLeft")
    slider.dispatch_event("pointerup")
    expect(tab.locator("#plan")).to_contain_text("it must lie within the layers that run")
    assert tab.locator(".toast-body").count() == 0


def test_the_plan_follows_what_is_typed_beyond_the_limits_or_left_empty(tab: Page) -> None:
    tab.locator(".sidebar .toggle-button").click()
    keep = tab.locator("#keep-ratio input[type=number]")
    keep.fill("0")
    tab.keyboard.press("Tab")
    expect(keep).to_have_value("0.05")
    expect(tab.locator("#plan")).to_contain_text(f"Apply will encode {N_PAGES} of {N_PAGES}")
    layer = tab.locator("#exit-layer input[type=number]")
    before = layer.input_value()
    layer.fill("")
    expect(tab.locator("#plan")).to_contain_text("A number is missing")
    tab.keyboard.press("Tab")
    expect(layer).to_have_value("0")
    expect(tab.locator("#plan")).to_contain_text("the layers that run, 0 to 0")
    layer.fill(before)
    tab.get_by_label("Paper default", exact=True).click()
    expect(tab.locator("#plan")).to_contain_text("Nothing has to be encoded again")
    tab.click("#apply")
    expect(tab.locator("#plan")).to_contain_text("Applied")
    settled(tab)
    expect(tab.locator("#plan")).to_contain_text("Applied")
    assert tab.locator(".toast-body").count() == 0


def test_a_sentence_that_is_told_twice_stands_there_once_under_its_title(tab: Page) -> None:
    for times in (1, 2):
        tab.click("#rank")
        expect(tab.locator(".toast-message-item")).to_have_count(times)
    expect(tab.locator(".toast-message-item:visible")).to_have_count(1)
    title = "getComputedStyle(document.querySelector('.toast-title'), '::before').content"
    assert tab.evaluate(title) == '"That did not work"'


def test_apply_without_a_change_or_with_a_refusal_leaves_everything_where_it_was(tab: Page) -> None:
    tab.locator(".sidebar .toggle-button").click()
    tab.click("#apply")
    expect(tab.locator("#plan")).to_contain_text("Applied")
    settled(tab)  # nothing that follows it empties what nobody touched
    expect(tab.locator("#samples .mrr-chip").first).to_be_visible()
    expect(tab.locator("#gallery figure")).to_have_count(N_PAGES)
    rank(tab)
    traced(tab)
    shown = tab.locator("#hits").inner_text()

    def is_whole() -> None:
        settled(tab)
        assert tab.locator("#hits").inner_text() == shown
        expect(tab.locator("#query textarea, #query input")).to_have_value(SAMPLES[0])
        expect(tab.locator("#summary")).to_contain_text(SAMPLES[0])
        expect(tab.locator("#compare")).to_have_text("Compare")
        expect(tab.locator(".pi-stage canvas").first).to_be_visible()

    tab.click("#apply")
    expect(tab.locator("#plan")).to_contain_text("Applied")
    is_whole()
    slider = tab.locator("#exit-layer input[type=range]")
    slider.focus()
    for _ in range(5):
        tab.keyboard.press("ArrowLeft")
    slider.dispatch_event("pointerup")
    tab.click("#apply")
    expect(tab.locator("#plan")).to_contain_text("Not applied. The band is set from")
    is_whole()
    assert tab.locator(".toast-body").count() == 0, "it is said once"


def test_views_that_need_a_trace_offer_it_themselves(
    visit: Callable[..., Page], running: Running
) -> None:
    tab = visit()
    tab.locator(".sidebar .toggle-button").click()
    tab.locator("#auto-trace input").uncheck()
    tab.click("#apply")
    expect(tab.locator("#plan")).to_contain_text("Applied")
    tab.locator(".sidebar .toggle-button").click()
    rank(tab)
    expect(tab.locator(".pi-stage img")).to_be_visible()  # the page itself needs no trace
    expect(tab.locator("#chosen")).to_contain_text("1 · ")
    open_tab(tab, "Layers")
    expect(tab.locator("#layers-say")).to_contain_text("Trace this page")
    expect(tab.locator("#trace-page")).to_have_count(1)
    tab.click("#trace-for-layers")
    expect(tab.locator(f"{CHART} .scatterlayer .trace path.js-line")).to_have_count(N_PAGES)
    open_tab(tab, "Bands")
    expect(tab.locator(".bands-row")).to_have_count(running.bench.base.config.exit_layer)
    open_tab(tab, "Page")
    expect(tab.locator("#trace-page")).to_have_count(0)


@pytest.fixture
def slow_caching(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, threading.Event]:
    """(set once a page is about to be encoded, what it waits for)."""
    entered, go_on = threading.Event(), threading.Event()
    engine = type(running.bench.base)
    add_page = engine.add_page

    def slow(self: MiniReranker, item: PageImage, scope: str) -> AddedPage:
        entered.set()
        assert go_on.wait(HELD_S)
        return add_page(self, item, scope)

    monkeypatch.setattr(engine, "add_page", slow)
    return entered, go_on


def test_files_dropped_while_others_are_cached_are_refused_by_name(
    tab: Page, slow_caching: tuple[threading.Event, threading.Event]
) -> None:
    entered, go_on = slow_caching
    try:
        add_files(tab, ("first.png", png(81)))
        assert entered.wait(PATIENCE_S)
        late = {"name": "late.png", "mimeType": "image/png", "buffer": png(82)}
        tab.locator("#files input[type=file]").last.set_input_files([late])
        expect(tab.locator(".toast-body").first).to_contain_text("late.png was not taken")
    finally:
        go_on.set()
    expect(tab.locator("#progress .mrr-state")).to_have_text(["cached"])


def test_pages_of_an_upload_are_in_the_store_as_soon_as_each_is_cached(
    tab: Page, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = threading.Semaphore(1)
    engine = type(running.bench.base)
    add_page = engine.add_page

    def held(self: MiniReranker, item: PageImage, scope: str) -> AddedPage:
        assert allowed.acquire(timeout=HELD_S)
        return add_page(self, item, scope)

    monkeypatch.setattr(engine, "add_page", held)
    try:
        add_files(tab, ("one.png", png(85)), ("two.png", png(86)))
        expect(tab.get_by_role("button", name="Remove one.png")).to_be_visible()
        expect(tab.locator("#progress .mrr-state")).to_have_text(["cached", "encoding"])
        expect(tab.locator("#header")).to_contain_text(f"pages {N_PAGES + 1}")
        open_tab(tab, "Rank")
        expect(tab.locator("#meanwhile")).to_contain_text("1 of 2 pages done")
        rank(tab)
        expect(tab.locator("#summary")).to_contain_text("1 of 2 pages of your upload had been read")
    finally:
        allowed.release()
    expect(tab.locator("#meanwhile")).to_be_hidden()
    open_tab(tab, "Pages")
    expect(tab.get_by_role("button", name="Remove two.png")).to_be_visible()
    expect(tab.locator("#header")).to_contain_text(f"pages {N_PAGES + 2}")


def test_what_a_ranking_lacks_is_encoded_in_sight_and_can_be_stopped(
    tab: Page, slow_caching: tuple[threading.Event, threading.Event]
) -> None:
    entered, go_on = slow_caching
    try:
        tab.locator(".sidebar .toggle-button").click()
        keep = tab.locator("#keep-ratio input[type=range]")
        keep.focus()
        for _ in range(7):
            tab.keyboard.press("ArrowRight")
        keep.dispatch_event("pointerup")
        expect(tab.locator("#plan")).to_contain_text("Apply will encode")
        tab.click("#apply")
        assert entered.wait(PATIENCE_S)
        tab.click("#stop-encoding")
        expect(tab.locator("#stop-encoding")).to_have_text("Stopping…")
        expect(tab.locator("#stop-encoding")).to_be_disabled()
        go_on.set()
        expect(tab.locator("#plan")).to_contain_text("Stopped")
        tab.locator(".sidebar .toggle-button").click()
        entered.clear()
        go_on.clear()
        tab.fill("#query textarea, #query input", SAMPLES[0])
        tab.click("#rank")
        assert entered.wait(PATIENCE_S)
        expect(tab.locator("#summary")).to_contain_text("Encoding page 1 of")
        tab.click("#halt")
        expect(tab.locator("#halt")).to_have_text("Stopping…")
        go_on.set()
        expect(tab.locator("#summary")).to_contain_text("Stopped after 1 of")
        expect(tab.locator("#summary")).not_to_contain_text("Below is still the ranking")
        expect(tab.locator("#halt")).to_be_hidden()
        expect(tab.locator("#hits li")).to_have_count(0)
        tab.locator("body > [role=status]").evaluate("""(told) => {
            window.said = [];
            const listen = () => said.push(told.textContent);
            new MutationObserver(listen).observe(told, { childList: true });
        }""")
        tab.click("#rank")
        expect(tab.locator("#hits li")).to_have_count(N_PAGES)
        tab.wait_for_function("said.at(-1)?.includes('pages ranked for')")
        encoding = [words for words in tab.evaluate("said") if "Encoding page" in words]
        assert len(encoding) == 1  # and not every number
    finally:
        go_on.set()


def test_a_query_that_has_to_wait_for_the_models_says_so(tab: Page, running: Running) -> None:
    tab.fill("#query textarea, #query input", SAMPLES[0])
    with running.bench.base.lock:
        tab.click("#rank")
        expect(tab.locator("#summary")).to_contain_text("The models are busy")
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)


def test_of_queries_asked_while_the_models_are_busy_the_last_one_is_ranked(
    tab: Page, running: Running
) -> None:
    rank(tab, SAMPLES[0])
    traced(tab)
    box, summary = tab.locator("#query textarea"), tab.locator("#summary")
    with running.bench.base.lock:
        for query in ("a first one", "a second one", SAMPLES[1]):
            box.fill(query)
            box.press("Enter")
            expect(summary).to_contain_text(f"“{query}” comes next")
        box.fill("the next one is being typed")
    for _ in ("at first", "at last"):
        expect(summary).to_contain_text(f"ranked for “{SAMPLES[1]}”")
        expect(box).to_have_value("the next one is being typed")
        settled(tab)
    open_tab(tab, "History")
    expect(tab.locator("#history [data-event=reopen]")).to_have_count(2)


def test_nothing_can_be_pressed_in_the_results_before_the_first_ranking(
    tab: Page, running: Running
) -> None:
    nothing_yet = ("#compare", "#save-csv", "#save-json", "#save-report", "#occlude")
    tab.fill("#query textarea", SAMPLES[0])
    with running.bench.base.lock:
        tab.click("#rank")
        expect(tab.locator(".pi")).to_have_text("There is no ranking yet.")
        for button in nothing_yet:
            expect(tab.locator(button)).to_be_hidden()
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)
    for button in nothing_yet:
        expect(tab.locator(button)).to_be_visible()


@pytest.fixture
def dense_pages(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """How many pages the dense system may still score; without one it waits."""
    allowed = threading.Semaphore(0)
    engine = type(running.bench.base)
    rank_all = engine.rank

    def held(self: MiniReranker, query: str, **options: Any) -> RankedList:
        if options.get("system", "mini") != "mini":
            assert allowed.acquire(timeout=HELD_S)
        return rank_all(self, query, **options)

    monkeypatch.setattr(engine, "rank", held)
    yield allowed
    allowed.release(100)


def test_a_comparison_that_fails_says_why_and_can_be_asked_for_again(
    tab: Page, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank(tab)
    engine = type(running.bench.base)
    rank_all = engine.rank

    def fails(self: MiniReranker, query: str, **options: Any) -> RankedList:
        if options.get("system", "mini") != "mini":
            raise InputRejected("The picture of that page is gone.")
        return rank_all(self, query, **options)

    monkeypatch.setattr(engine, "rank", fails)
    tab.click("#compare")
    expect(tab.locator(".toast-body").first).to_contain_text("The picture of that page is gone.")
    expect(tab.locator("#compare")).to_have_text("Compare")
    expect(tab.locator("#stop-dense")).to_be_hidden()
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)


def test_a_new_query_during_a_comparison_keeps_its_own_ranking(
    tab: Page, dense_pages: threading.Semaphore
) -> None:
    rank(tab, SAMPLES[0])
    traced(tab)
    tab.click("#compare")
    dense_pages.release()
    expect(tab.locator("#estimate")).to_contain_text("page 1 of")
    rank(tab, SAMPLES[1])
    traced(tab)
    shown = tab.locator("#hits").inner_text()
    dense_pages.release()  # the page in hand of the comparison that nobody waits for
    settled(tab)
    assert tab.locator("#hits").inner_text() == shown
    expect(tab.locator("#compare")).to_have_text("Compare")
    expect(tab.locator("#stop-dense")).to_be_hidden()


def test_the_form_of_the_ranking_can_change_during_a_comparison_which_goes_on_after_a_stop(
    tab: Page, dense_pages: threading.Semaphore
) -> None:
    rank(tab, SAMPLES[0])
    tab.click("#compare")
    dense_pages.release()
    expect(tab.locator("#estimate")).to_contain_text("page 1 of")
    tab.get_by_label("Table").click()
    expect(tab.locator("#hits tbody tr")).to_have_count(N_PAGES)
    dense_pages.release()
    expect(tab.locator("#estimate")).to_contain_text("page 2 of")
    expect(tab.locator("#hits tbody tr")).to_have_count(N_PAGES)
    tab.click("#stop-dense")
    expect(tab.locator("#stop-dense")).to_have_text("Stopping…")
    dense_pages.release()
    expect(tab.locator("#estimate")).to_contain_text("Stopped after 3 of")
    expect(tab.locator("#compare")).to_have_text("Go on")
    tab.click("#compare")
    dense_pages.release(N_PAGES - 3)  # and not one more
    expect(tab.locator("#estimate")).to_contain_text("original took")
    expect(tab.locator("#hits tbody tr")).to_have_count(N_PAGES)
    expect(tab.locator("#compare")).to_have_text("Compare again")
    rank(tab, SAMPLES[0])  # the same pages: what is known of them stays
    expect(tab.locator("#estimate")).to_contain_text("original took")
    open_tab(tab, "History")
    expect(tab.locator("#history tr", has_text="original, ")).not_to_have_count(0)


def test_a_file_of_another_kind_is_refused_by_name_and_the_others_go_on(tab: Page) -> None:
    add_files(tab, ("notes.txt", b"just words"), ("among.png", png(84)))
    expect(tab.locator("#progress .mrr-state")).to_have_text(["failed", "cached"])
    expect(tab.locator("#progress tr", has_text="notes.txt")).to_contain_text("PNG, JPEG")
    assert tab.locator(".toast-body").count() == 0


def test_a_file_that_is_too_large_fails_in_a_line_that_stays_and_the_others_go_in(
    tab: Page, running: Running, tmp_path: Path
) -> None:
    (tmp_path / "big.pdf").write_bytes(bytes(21 * 2**20))
    (tmp_path / "beside.png").write_bytes(png(97))
    open_tab(tab, "Pages")
    files = [tmp_path / "big.pdf", tmp_path / "beside.png"]
    tab.set_input_files("#files input[type=file]", files)
    expect(tab.locator("#progress .mrr-state")).to_have_text(["failed", "cached"])
    expect(tab.locator("#progress tr", has_text="big.pdf")).to_contain_text(
        "big.pdf is 21 MB; the limit is 20 MB."
    )
    expect(tab.get_by_role("button", name="Remove beside.png")).to_be_visible()
    assert tab.locator(".toast-body").count() == 0
    assert not [*running.uploads.rglob("big.pdf")]


def test_the_reasons_fade_out_where_there_is_more_and_not_over_their_end(tab: Page) -> None:
    rank(tab)
    traced(tab)
    tab.evaluate("window.scrollTo(0, 500)")
    ends = """(panel) => {
        panel.scrollTop = panel.scrollHeight;
        const fade = getComputedStyle(panel, "::after");
        const last = panel.lastElementChild.getBoundingClientRect().bottom;
        return [fade.position, fade.backgroundImage.split("(")[0], parseFloat(fade.height),
            panel.getBoundingClientRect().bottom - last, panel.scrollTop];
    }"""
    position, drawn, height, room, scrolled = tab.locator(".mrr-sticky").evaluate(ends)
    assert (position, drawn) == ("sticky", "linear-gradient") and scrolled > 0
    assert room >= height > 20


def test_a_removed_page_leaves_the_ranking_that_is_shown(tab: Page) -> None:
    add_files(tab, ("passing.png", png(83)))
    expect(tab.locator("#progress .mrr-state")).to_have_text(["cached"])
    open_tab(tab, "Rank")
    rank(tab)
    expect(tab.locator("#hits li")).to_have_count(N_PAGES + 1)
    tab.locator("#hits li", has_text="passing.png").locator("[data-event=pick]").click()
    open_tab(tab, "Pages")
    tab.get_by_role("button", name="Remove passing.png").click()
    open_tab(tab, "Rank")
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)
    selected = tab.locator("#hits li.is-selected .title")
    expect(tab.locator(".pi-stage canvas").first).to_have_attribute(
        "aria-label", re.compile(re.escape(selected.inner_text()))
    )


def test_the_reasons_name_their_page_through_picks_rankings_and_removals(tab: Page) -> None:
    add_files(tab, ("named.png", png(93)))
    expect(tab.locator("#progress .mrr-state")).to_have_text(["cached"])
    open_tab(tab, "Rank")
    rank(tab)
    mine = tab.locator("#hits li", has_text="named.png")
    place = mine.locator(".mrr-rank").inner_text()
    mine.locator(".cover").click()
    expect(tab.locator("#chosen")).to_contain_text(f"{place} · named.png · 0.")
    open_tab(tab, "Pages")
    tab.get_by_role("button", name="Remove named.png").click()
    expect(tab.locator("#chosen")).not_to_contain_text("named.png")
    open_tab(tab, "Rank")
    expect(tab.locator("#chosen")).to_contain_text("1 · ")
    rank(tab, SAMPLES[1])
    first = tab.locator("#hits .title").first.inner_text()
    expect(tab.locator("#chosen")).to_contain_text(f"1 · {first} · ")


def test_with_settings_closed_the_tab_key_passes_them_by(tab: Page) -> None:
    toggle = tab.get_by_role("button", name="Settings")
    expect(toggle).to_have_attribute("aria-expanded", "false")
    controls = ".sidebar-content :is(input, button, textarea)"
    reached = f"""() => [...document.querySelectorAll('{controls}')]
        .filter((control) => control.checkVisibility({{ visibilityProperty: true }})).length"""
    assert tab.evaluate(reached) == 0
    toggle.click()
    expect(toggle).to_have_attribute("aria-expanded", "true")
    expect(tab.locator("#apply")).to_be_visible()
    assert tab.evaluate(reached) > 10
    toggle.click()
    expect(tab.locator("#apply")).to_be_hidden()


def test_what_the_keyboard_is_at_has_a_ring_that_nothing_cuts_off(tab: Page) -> None:
    rank(tab)
    traced(tab)
    tab.get_by_role("button", name="Settings").click()
    for control, around, offset in (
        ("#query textarea", "#query", "0px"),
        ("#ranking-view input", "#ranking-view label", "-2px"),  # what is around it scrolls
        (".pi-check input", ".pi-check input", "2px"),  # Gradio takes the browser's own ring away
        ("#keep-ratio input[type=range]", "#keep-ratio input[type=range]", "2px"),
        ("#settings input[type=checkbox]", "#settings input[type=checkbox]", "2px"),
    ):
        tab.locator(control).first.focus()
        tab.keyboard.press("Shift")  # a key, so that the ring is due
        ringed = tab.locator(around).first
        expect(ringed).to_have_css("outline-style", "solid")
        expect(ringed).to_have_css("outline-width", "2px")
        expect(ringed).to_have_css("outline-offset", offset)


def test_on_a_small_phone_nothing_widens_the_page_and_what_scrolls_has_a_shade(
    visit: Callable[..., Page],
) -> None:
    tab = visit(width=320)
    rank(tab)
    traced(tab)
    for name in ("Rank", "Pages", "Latency", "History"):
        open_tab(tab, name)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320, name
    history = tab.locator("#history .mrr-scroll")
    expect(history).to_be_visible()
    assert history.evaluate("(table) => table.scrollWidth > table.clientWidth")
    drawn = history.evaluate("(table) => getComputedStyle(table).backgroundImage")
    assert drawn.count("linear-gradient") == 4


def test_a_list_that_was_unfolded_stays_so_when_a_page_is_removed_out_of_it(
    tab: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.views.upload.MOST_SHOWN", 1)
    add_files(tab, ("pages.pdf", pdf(94, 95, 96)))
    expect(tab.locator("#progress .mrr-state")).to_have_text(["cached"] * 3)
    tab.get_by_text("2 more pages, by name").click()
    tab.get_by_role("button", name="Remove pages.pdf p. 3").click()
    expect(tab.get_by_text("1 more page, by name")).to_be_visible()
    expect(tab.get_by_role("button", name="Remove pages.pdf p. 2")).to_be_visible()
    tab.get_by_role("button", name="Remove document pages.pdf").click()
    expect(tab.locator("#pages")).not_to_contain_text("pages.pdf")
