"""What helps who does not see the page, uses no pointer, or wants no motion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import SAMPLES, Running, png
from tests.ui.test_app_browser import add_files, open_tab, rank, traced

pytestmark = pytest.mark.browser


def test_every_ranking_is_told_where_nothing_is_seen(tab: Page) -> None:
    told = tab.locator("body > [role=status]")
    expect(told).to_have_text("")  # there before its words: otherwise they are not read out
    for query in SAMPLES[:2]:
        rank(tab, query)
        expect(told).to_contain_text(f"6 pages ranked for “{query}” in")
    expect(tab.locator("#summary [aria-live]")).to_have_count(0)  # nor are they told twice


def test_an_upload_tells_how_far_it_is_and_not_its_whole_table(tab: Page) -> None:
    add_files(tab, ("a.png", png(61)))
    expect(tab.locator("#progress [aria-live]")).to_have_text("1 page in")
    bar = tab.locator("#progress [role=progressbar]")
    expect(bar).to_have_accessible_name("Pages")
    expect(bar).to_have_attribute("aria-valuenow", "100")


def test_every_button_beside_an_upload_has_a_name_in_words(tab: Page, running: Running) -> None:
    with running.bench.base.lock:  # held, so that it stays under way
        add_files(tab, ("c.png", png(63)))
        buttons = tab.locator("#files button")
        expect(buttons.filter(visible=True).first).to_have_accessible_name("Add files")
        expect(buttons.filter(visible=True).last).to_have_accessible_name("Clear")
    expect(tab.locator("#progress")).to_contain_text("1 page in")


def test_the_keyboard_stays_near_what_it_was_on_where_that_goes(tab: Page) -> None:
    add_files(tab, ("gone.png", png(64)))
    tab.get_by_role("button", name="Remove gone.png").press("Enter")
    expect(tab.locator("#pages")).not_to_contain_text("gone.png")
    tab.wait_for_function("document.activeElement.closest('#pages')")
    open_tab(tab, "Rank")
    rank(tab)
    traced(tab)
    tab.locator("#occlude").press("Enter")
    expect(tab.locator(".pi-stage")).to_contain_text("Measured effect")
    tab.wait_for_function("document.activeElement.closest('#reasons button')")


def test_headings_go_down_step_by_step_and_column_heads_are_not_empty(tab: Page) -> None:
    rank(tab)
    traced(tab)
    heads = tab.get_by_role("heading")
    for view in ("List", "Side by side", "Table"):
        tab.get_by_label(view).click()
        levels = heads.evaluate_all("(all) => all.map((head) => Number(head.tagName[1]))")
        assert levels[:2] == [1, 2], view
    tab.get_by_text("Keep more or fewer tokens of this page").click()
    tab.click("#reencode")
    expect(tab.locator("tr", has_text="encoded again")).to_be_visible()
    assert "" not in tab.locator("th").all_inner_texts()


def test_what_is_pressed_in_a_card_is_large_enough_for_a_finger(tab: Page) -> None:
    rank(tab)
    traced(tab)
    for small in ("#hits .mrr-tick", ".pi-check"):
        assert tab.locator(small).first.bounding_box()["height"] >= 24


def test_who_wants_no_motion_is_back_at_the_ranking_at_once(tab: Page) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.emulate_media(reduced_motion="reduce")
    rank(tab)
    traced(tab)
    tab.locator("#hits [data-event=pick]").nth(1).click()
    tab.wait_for_function("scrollY > 600")
    moved = """() => {
        const before = scrollY;
        document.querySelector(".mrr-up").click();
        return before - scrollY;
    }"""
    assert tab.evaluate(moved) > 200


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_ends_a_scrolling_table_has_the_colour_that_is_under_it(
    visit: Callable[..., Page], theme: str
) -> None:
    tab = visit(theme=theme)
    add_files(tab, ("b.png", png(62)))
    under, surface = tab.locator("#progress .mrr-scroll").evaluate(
        """(table) => ["--mrr-under", "--mrr-surface"].map((name) =>
            getComputedStyle(table).getPropertyValue(name))"""
    )
    assert under == surface


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_foot_of_the_page_is_as_readable_as_other_small_text(
    visit: Callable[..., Page], theme: str
) -> None:
    foot = visit(theme=theme).locator("footer")
    expect(foot).to_have_css("opacity", "1")


def test_a_layer_says_that_it_can_be_pressed(tab: Page) -> None:
    rank(tab)
    traced(tab)
    open_tab(tab, "Bands")
    expect(tab.locator(".bands-detail")).to_contain_text("Press one of the band for its map")
