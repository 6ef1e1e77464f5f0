"""The real app in headless Chromium: what a visitor sees and can do."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from mrr import MiniReranker
from mrr.turn import FairLock
from mrr.types import RankedList
from tests.ui.conftest import HELD_S, N_PAGES, PATIENCE_S, SAMPLES, Running, pdf, png

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.hacked=1'>"
TABS = ("Rank", "Pages", "Latency", "History")


def rank(tab: Page, query: str = SAMPLES[0]) -> None:
    tab.fill("#query textarea, #query input", query)
    tab.keyboard.press("Enter")
    expect(tab.locator("#summary")).to_contain_text(f"“{query}”")
    # The address follows when the event is over: Gradio sends what it shows once more at its end.
    tab.wait_for_function(
        "q => new URLSearchParams(location.hash.slice(1)).get('q') === q", arg=query
    )


def traced(tab: Page) -> None:
    expect(tab.locator(".pi-stage canvas").first).to_be_visible()


def open_tab(tab: Page, name: str) -> None:
    tab.get_by_role("tab", name=name, exact=True).click()


def add_files(tab: Page, *files: tuple[str, bytes]) -> None:
    open_tab(tab, "Pages")
    payload = [{"name": n, "mimeType": "application/octet-stream", "buffer": b} for n, b in files]
    tab.set_input_files("#files input[type=file]", payload)


def saved(tab: Page, button: str) -> str:
    with tab.expect_download() as waiting:
        tab.click(button)
    return Path(waiting.value.path()).read_text("utf-8")


def test_a_click_on_a_sample_gives_a_full_ranking_with_reasons(tab: Page) -> None:
    expect(tab.locator("#header h1")).to_have_text("miniReranker")
    expect(tab.locator("#gallery figure")).to_have_count(N_PAGES)
    tab.get_by_role("button", name=SAMPLES[0]).click()
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)
    ranks = tab.locator("#hits .mrr-rank").all_inner_texts()
    assert ranks == [str(n) for n in range(1, N_PAGES + 1)]
    logits = [float(text.split()[-1]) for text in tab.locator("#hits .value").all_inner_texts()]
    assert logits == sorted(logits, reverse=True)
    traced(tab)
    expect(tab.locator("#gallery")).to_be_hidden()


def test_a_reload_the_way_back_and_a_link_ask_the_query_again(tab: Page) -> None:
    first, second = "harbour & tram #1", SAMPLES[1]
    for query, address in ((first, "#q=harbour+%26+tram+%231"), (second, "#q=tram+timetable")):
        rank(tab, query)
        expect(tab).to_have_url(re.compile(re.escape(address) + "$"))
    tab.go_back()
    expect(tab.locator("#summary")).to_contain_text(first)
    expect(tab.locator("#query textarea")).to_have_value(first)
    tab.go_forward()
    expect(tab.locator("#summary")).to_contain_text(second)
    tab.fill("#query textarea", " ")  # refused: the address goes on naming what is shown
    tab.keyboard.press("Enter")
    expect(tab.locator(".toast-wrap")).to_contain_text("Type a query first")
    expect(tab).to_have_url(re.compile(r"#q=tram\+timetable$"))
    link = tab.context.new_page()  # in which nobody minds that a reload breaks Gradio's stream off
    link.goto(tab.url)
    for _ in range(2):
        expect(link.locator("#summary")).to_contain_text(second)
        expect(link.locator("#hits li")).to_have_count(N_PAGES)
        link.reload()


def test_the_selection_follows_keys_and_drives_every_view(tab: Page) -> None:
    rank(tab)
    traced(tab)
    tab.keyboard.press("j")
    expect(tab.locator("#hits li").nth(1)).to_have_class("mrr-hit is-selected")
    label = tab.locator("#hits li .title").nth(1).inner_text()
    expect(tab.locator(".pi-stage canvas").first).to_have_attribute(
        "aria-label", re.compile(re.escape(label))
    )
    tab.keyboard.press("k")
    expect(tab.locator("#hits li").first).to_have_class("mrr-hit is-selected")
    label = tab.locator("#hits li .title").first.inner_text()
    expect(tab.locator(".pi-stage canvas").first).to_have_attribute(
        "aria-label", re.compile(re.escape(label))
    )
    tab.wait_for_timeout(500)  # what was known already comes without another trace
    assert tab.locator(".error, .toast-body").count() == 0


class Gate:
    """Holds long work after a number of passes, until the test has done what it does meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n_passes: int) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._left = n_passes
        leave = FairLock.__exit__

        def left(lock: FairLock, *exc: object) -> None:
            leave(lock, *exc)
            self._left -= lock._owner != threading.get_ident()
            if self._left == 0 and not self.reached.is_set():
                self.reached.set()
                assert self.opened.wait(HELD_S)

        monkeypatch.setattr(FairLock, "__exit__", left)
        monkeypatch.setattr("mrr.explain.occlusion.MAX_BATCH_COLUMNS", 1)

    def stop(self, tab: Page, button: str) -> None:
        """Press it and go on, once the server has said that it is going to stop."""
        assert self.reached.wait(PATIENCE_S)
        tab.click(button)
        expect(tab.locator(button)).to_have_text("Stopping…")
        self.opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Gate]]:
    made: list[Gate] = []

    def after(n_passes: int) -> Gate:
        made.append(Gate(monkeypatch, n_passes))
        return made[-1]

    yield after
    for each in made:
        each.opened.set()


def test_occlusion_stops_after_the_pass_in_hand_and_keeps_what_is_known(
    tab: Page, gate: Callable[[int], Gate]
) -> None:
    rank(tab)
    traced(tab)
    held = gate(30)  # past the control, in the midst of the blocks
    tab.click("#occlude")
    expect(tab.locator("#stop-occlusion")).to_be_visible()
    expect(tab.locator("#occlude")).to_be_hidden()
    held.stop(tab, "#stop-occlusion")
    expect(tab.locator(".pi-facts")).to_contain_text("Stopped after")
    expect(tab.locator(".pi-facts")).to_contain_text("random cells, 20 times")
    expect(tab.locator("#occlude")).to_be_visible()
    expect(tab.locator("#stop-occlusion")).to_be_hidden()
    tab.click("#occlude")
    expect(tab.locator(".pi-facts")).not_to_contain_text("Stopped")
    expect(tab.locator(".pi-facts")).to_contain_text("this occlusion map itself")


def test_another_query_is_answered_while_occlusion_runs_and_does_not_get_its_map(
    tab: Page, gate: Callable[[int], Gate]
) -> None:
    rank(tab)
    traced(tab)
    held = gate(5)
    tab.click("#occlude")
    assert held.reached.wait(PATIENCE_S)
    rank(tab, SAMPLES[1])
    traced(tab)
    expect(tab.locator("#stop-occlusion")).to_be_visible()
    held.opened.set()
    expect(tab.locator("#occlude")).to_be_visible()
    expect(tab.locator(".pi [data-value=occlusion]")).to_have_text("Measure occlusion")


def test_the_full_pass_stops_after_a_page_and_goes_on_from_there(
    tab: Page, gate: Callable[[int], Gate]
) -> None:
    rank(tab)
    traced(tab)
    open_tab(tab, "Layers")
    held = gate(4)  # a page is two turns: its band pass and its full pass
    tab.click("#trace-layers")
    held.stop(tab, "#stop-layers")
    expect(tab.get_by_text("was run for 2 of them, not for the rest")).to_be_visible()
    expect(tab.locator("#stop-layers")).to_be_hidden()
    tab.click("#trace-layers")
    expect(tab.get_by_text("A full pass over every layer and token ends")).to_be_visible()


def test_image_pdf_and_a_broken_file_each_tell_how_they_went(tab: Page, running: Running) -> None:
    add_files(tab, ("a.png", png(11)), ("bad.pdf", b"%PDF-1.4 junk"), ("two.pdf", pdf(12, 13)))
    states = tab.locator("#progress .mrr-state")
    expect(states).to_have_text(["cached", "failed", "cached", "cached"])
    expect(tab.locator("#progress")).to_contain_text("3 pages in, 1 failed")
    expect(tab.locator("#progress tbody tr").first.locator("td").nth(2)).to_have_text("7 × 5")
    expect(tab.locator("#pages")).to_contain_text("Added by you, 3 pages")
    left = [path for path in running.uploads.rglob("*") if path.suffix in (".png", ".pdf")]
    assert not left, "uploads stay in the folder that Gradio serves"

    add_files(tab, ("again.png", png(11)))
    expect(tab.locator("#progress .mrr-state")).to_have_text(["already cached"])
    expect(tab.locator("#progress tbody tr").first).to_contain_text("as a.png")

    open_tab(tab, "Rank")
    rank(tab)
    expect(tab.locator("#hits li")).to_have_count(N_PAGES + 3)

    open_tab(tab, "Pages")
    tab.get_by_role("button", name="Remove a.png").click()
    expect(tab.locator("#pages")).to_contain_text("Added by you, 2 pages")


def test_two_visitors_do_not_see_each_others_pages(
    visit: Callable[..., Page],
) -> None:
    tab, other = visit(), visit()
    add_files(tab, ("canary-7391.png", png(21)))
    expect(tab.locator("#pages")).to_contain_text("canary-7391.png")
    rank(other)
    open_tab(other, "Pages")
    expect(other.locator("#pages")).to_contain_text(f"Examples, {N_PAGES} pages")
    assert "canary" not in other.content()
    add_files(other, ("mine.png", png(21)))
    expect(other.locator("#progress .mrr-state")).to_have_text(["cached"])


@pytest.mark.parametrize("leave", [Page.close, Page.reload])
def test_a_tab_that_is_closed_or_reloaded_takes_its_pages_along(
    visit: Callable[..., Page], running: Running, leave: Callable[[Page], object]
) -> None:
    page, store = visit().context.new_page(), running.bench.base.store
    page.goto(running.url)  # in a tab in which nobody minds that a stream is broken off, as above
    page.wait_for_selector("#apply:enabled", state="attached")
    others = set(store.scopes())  # those that close their tabs just now take only their own along
    add_files(page, ("leaving.png", png(31)))
    expect(page.locator("#pages")).to_contain_text("leaving.png")
    (mine,) = set(store.scopes()) - others
    assert [added.label for added in store.pages([mine])] == ["leaving.png"]
    leave(page)
    deadline = time.monotonic() + PATIENCE_S
    while store.pages([mine]):
        assert time.monotonic() < deadline, "the pages of a closed tab are still there"
        time.sleep(0.2)


def test_dense_runs_on_demand_with_its_cost_said_first(tab: Page) -> None:
    rank(tab)
    expect(tab.locator("#estimate")).to_contain_text(f"for {N_PAGES} pages, judging by")
    tab.click("#compare")
    expect(tab.locator("#estimate")).to_contain_text("original took")
    changes = tab.locator("#hits .mrr-same")
    expect(changes).to_have_count(N_PAGES)
    differ = tab.locator("#hits .mrr-same b")
    expect(differ).not_to_have_count(0)  # two random models that rank alike prove nothing here
    moved = differ.count()
    tab.get_by_label("Only where they differ").check()
    expect(tab.locator("#hits li")).to_have_count(moved)
    tab.get_by_label("Only where they differ").uncheck()
    tab.get_by_label("Side by side").click()
    expect(tab.locator("#hits .mrr-rank.dense")).to_have_count(N_PAGES)
    expect(tab.locator("#hits .mrr-rank:not(.dense)")).to_have_count(N_PAGES)
    tab.get_by_label("Table").click()
    expect(tab.locator("#hits tbody tr")).to_have_count(N_PAGES)


def test_settings_say_what_they_encode_again_before_they_do(tab: Page) -> None:
    rank(tab)
    tab.locator(".sidebar .toggle-button").click()
    tab.get_by_label("Dense", exact=True).click()
    expect(tab.locator("#plan")).to_contain_text(f"Apply will encode {N_PAGES} of {N_PAGES} pages")
    tab.click("#apply")
    expect(tab.locator("#header")).to_contain_text("all visual tokens")
    expect(tab.locator("#plan")).to_contain_text("Applied")
    expect(tab.locator("#hits .mrr-facts").first).to_contain_text("kept 100% of 35 tokens")


def test_a_page_encodes_again_with_fewer_tokens_and_says_what_that_did(tab: Page) -> None:
    rank(tab)
    traced(tab)
    tab.get_by_text("Keep more or fewer tokens of this page").click()
    ratio = tab.locator("#page-keep-ratio input[type=number]")
    ratio.clear()
    ratio.press_sequentially("0.25")
    tab.keyboard.press("Tab")
    expect(tab.locator("#page-keep-ratio input[type=range]")).to_have_value("0.25")
    tab.click("#reencode")
    row = tab.locator("tr", has_text="encoded again")
    expect(row).to_contain_text("embedder")
    kept, whole = map(int, re.search(r"(\d+) of (\d+) \(2\d%\)", row.inner_text()).groups())
    assert kept == round(whole / 4)
    tab.click("#controls")
    expect(row).to_have_count(3)
    assert sum("random" in text for text in row.all_inner_texts()) == 1
    expect(tab.locator("tr", has_text="as ranked")).to_have_count(1)
    tab.locator(".pi [role=radio]", has_text="Attention").click()
    expect(tab.locator(".pi")).to_contain_text("Encoded again at 25%, not as it was ranked")
    tab.click("#as-ranked")
    expect(tab.locator(".pi")).to_contain_text("Used for this score")
    tab.locator(".pi [role=radio]", has_text="Attention").click()
    expect(tab.locator(".pi")).not_to_contain_text("Encoded again")


def test_an_error_is_a_sentence_that_stays_and_blanks_nothing(tab: Page) -> None:
    rank(tab)
    tab.fill("#query textarea, #query input", "   ")
    tab.click("#rank")
    message = tab.locator(".toast-body, .toast-wrap")
    expect(message.first).to_contain_text("Type a query first")
    assert "Traceback" not in tab.content()
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)


def test_hostile_text_is_shown_as_text(tab: Page) -> None:
    add_files(tab, (f"{HOSTILE}.png", png(41)))
    expect(tab.locator("#progress .mrr-state")).to_have_text(["cached"])
    open_tab(tab, "Rank")
    rank(tab, HOSTILE)
    expect(tab.locator("#summary")).to_contain_text(HOSTILE)
    traced(tab)
    open_tab(tab, "History")
    expect(tab.locator("#history")).to_contain_text(HOSTILE)
    assert tab.evaluate("window.hacked") is None


def test_ticks_and_bundled_labels_give_metrics(tab: Page) -> None:
    rank(tab)
    open_tab(tab, "History")
    expect(tab.locator("#scores tbody tr").first).to_contain_text("mini")
    expect(tab.locator("#scores")).to_contain_text("labels that come with the examples")
    open_tab(tab, "Rank")
    rank(tab, "a query of my own")
    tab.locator("#hits .mrr-tick").first.click()
    expect(tab.locator("#hits .mrr-tick").first).to_have_text("☑ relevant")
    open_tab(tab, "History")
    row = tab.locator("#scores tbody tr", has_text="a query of my own").first
    expect(row.locator("td").last).to_have_text("1.000")
    tab.get_by_role("button", name=SAMPLES[0]).click()
    open_tab(tab, "Rank")
    expect(tab.locator("#summary")).to_contain_text(SAMPLES[0])


def test_tables_traces_and_the_report_are_saved_without_a_file_on_the_server(
    tab: Page, running: Running
) -> None:
    rank(tab)
    traced(tab)
    rows = list(csv.DictReader(io.StringIO(saved(tab, "#save-csv"))))
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, N_PAGES + 1)]
    assert len(json.loads(saved(tab, "#save-json"))["candidates"]) == N_PAGES
    report = saved(tab, "#save-report")
    assert SAMPLES[0] in report and report.count("<polyline") == N_PAGES
    assert "http:" not in report and "https:" not in report and "<script" not in report
    open_tab(tab, "Latency")
    assert json.loads(saved(tab, "#save-trace"))["traceEvents"]
    assert not [path for path in running.uploads.rglob("*.*") if path.suffix in (".csv", ".html")]


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is clear, a measurement of latency waits before its next ranking."""
    go_on = threading.Event()
    rank_all = MiniReranker.rank

    def held(self: MiniReranker, query: str, **options: Any) -> RankedList:
        if "system" in options:
            assert go_on.wait(HELD_S)
        return rank_all(self, query, **options)

    monkeypatch.setattr(MiniReranker, "rank", held)
    yield go_on
    go_on.set()


def test_latency_is_measured_here_at_the_press_of_a_button(
    tab: Page, rounds: threading.Event
) -> None:
    rank(tab)
    open_tab(tab, "Latency")
    stop = tab.locator("#stop-measuring")
    tab.click("#measure")
    expect(stop).to_be_visible()
    rounds.set()
    panel = tab.get_by_role("tabpanel").filter(has=tab.locator("#measure"))
    stages = panel.get_by_role("figure", name="Time of each stage")
    expect(stages.locator(".js-plotly-plot .barlayer .trace").first).to_be_visible()
    expect(panel.locator(".mrr-table").first).to_contain_text("dense + reuse")
    expect(stop).to_be_hidden()
    expect(panel).not_to_contain_text("Stopped after")
    rounds.clear()
    tab.click("#measure")
    stop.click()
    expect(stop).to_have_text("Stopping…")
    rounds.set()
    expect(panel).to_contain_text("Stopped after 1 of")
    expect(stop).to_be_hidden()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_a_telephone_and_every_picture_has_words(
    visit: Callable[..., Page], theme: str
) -> None:
    tab = visit(width=390, theme=theme)
    rank(tab)
    traced(tab)
    expect(tab.locator("#warm .js-plotly-plot")).to_be_attached()
    drawn = {"Side by side": ".mrr-pair", "Table": "table", "List": "[aria-label='Ranked pages']"}
    for label, place in drawn.items():
        tab.get_by_label(label).click()
        expect(tab.locator(f"#hits {place}")).to_be_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, label
    assert tab.evaluate("[...document.images].every(image => image.hasAttribute('alt'))")
    buttons = "[...document.querySelectorAll('.mrr button')]"
    assert tab.evaluate(f"{buttons}.every(b => b.innerText.trim() || b.ariaLabel)")


def test_on_a_wide_screen_the_reasons_stay_beside_the_page_that_was_picked(tab: Page) -> None:
    tab.set_viewport_size({"width": 1280, "height": 420})
    rank(tab)
    traced(tab)
    last = tab.locator("#hits li").last
    last.scroll_into_view_if_needed()
    last.locator("[data-event=pick]").click()
    expect(last).to_have_class("mrr-hit is-selected")
    expect(tab.locator("#reasons")).to_be_in_viewport()
    top = tab.evaluate("document.getElementById('reasons').getBoundingClientRect().top")
    assert top < 420 / 2, "it has scrolled along"


def test_on_a_phone_all_tabs_are_in_sight_and_there_is_a_way_back_to_the_ranking(tab: Page) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    for name in ("Rank", "Pages", "Latency", "History"):
        expect(tab.get_by_role("tab", name=name, exact=True)).to_be_visible()
    rank(tab)
    traced(tab)
    second = tab.locator("#hits li").nth(1)
    second.locator("[data-event=pick]").click()
    top = "document.getElementById('reasons').getBoundingClientRect().top"
    tab.wait_for_function(f"Math.abs({top}) < 2")
    expect(tab.locator(".pi-stage canvas").first).to_be_in_viewport()
    expect(tab.locator(".sidebar .toggle-button")).to_be_hidden()  # it would cover the text
    tab.locator(".mrr-up").click()
    expect(second).to_be_in_viewport()


def test_a_pointer_that_rests_on_a_number_of_a_card_is_told_what_it_is(tab: Page) -> None:
    rank(tab)
    cover = tab.locator("#hits .cover").first
    for number, word in (("b", "probability of yes"), (".value .name", "minus its no")):
        box = tab.locator(f"#hits li:first-child {number}").first.bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(cover).to_have_attribute("title", re.compile(word))
    box = tab.locator("#hits li:first-child .title").bounding_box()
    tab.mouse.move(box["x"] + 5, box["y"] + 5)
    expect(cover).to_have_attribute("title", "")
