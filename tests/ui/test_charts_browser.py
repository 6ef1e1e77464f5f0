"""The charts of the app in headless Chromium."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import N_PAGES, Running
from tests.ui.test_app_browser import open_tab, rank, traced

pytestmark = pytest.mark.browser

CHART = ".mrr-figure .js-plotly-plot"


def test_the_first_chart_that_is_opened_finds_plotly_loaded(tab: Page) -> None:
    rank(tab)
    traced(tab)
    unseen = tab.locator("#warm .js-plotly-plot")
    expect(unseen).to_be_attached()
    expect(unseen).to_be_hidden()
    expect(tab.locator(CHART)).to_have_count(0)
    fetched: list[str] = []
    tab.on("request", lambda asked: fetched.append(f"{asked.resource_type} {asked.url}"))
    open_tab(tab, "Layers")
    expect(tab.locator(CHART)).to_be_visible()
    assert not [what for what in fetched if what.startswith("script")]


def test_layers_draw_one_line_a_candidate_and_bands_one_row_a_layer(
    tab: Page, running: Running
) -> None:
    rank(tab)
    traced(tab)
    open_tab(tab, "Layers")
    named = tab.get_by_role("figure", name="Relevance after each layer")
    expect(named.locator(".js-plotly-plot")).to_be_visible()
    expect(tab.locator(f"{CHART} .scatterlayer .trace path.js-line")).to_have_count(N_PAGES)
    tab.click("#trace-layers")
    expect(tab.get_by_text("never run by mini").first).to_be_visible()
    open_tab(tab, "Bands")
    expect(tab.get_by_text("0 by construction").first).to_be_visible()
    config = running.bench.base.config
    expect(tab.locator(".bands-row")).to_have_count(config.exit_layer)
    expect(tab.locator(".bands-in")).to_have_count(config.band[1] - config.band[0])
    tab.locator(".bands-in").first.click()
    traced(tab)  # its map, on the page


def test_the_unit_of_the_layers_stays_when_another_page_is_picked(tab: Page) -> None:
    rank(tab)
    traced(tab)
    open_tab(tab, "Layers")
    title = tab.locator(f"{CHART} .ytitle")
    expect(title).to_contain_text("logit")
    tab.get_by_label("rank", exact=True).click()
    expect(title).to_contain_text("rank among the candidates")
    tab.locator("#hits [data-event=pick]").nth(2).click()
    strong = f"document.querySelector('{CHART}')?.data.find(t => t.line.width === 3).name"
    label = tab.locator("#hits li .title").nth(2).inner_text()
    tab.wait_for_function(f"(label) => {strong} === label", arg=label)
    expect(title).to_contain_text("rank among the candidates")
    expect(tab.get_by_label("rank", exact=True)).to_be_checked()


def test_charts_make_room_for_the_side_bar(tab: Page) -> None:
    rank(tab)
    traced(tab)
    open_tab(tab, "Layers")
    chart = tab.locator(CHART)
    expect(chart).to_be_visible()
    before = chart.bounding_box()["width"]
    tab.locator(".sidebar .toggle-button").click()
    tab.wait_for_function(
        """(before) => {
            const width = (place) => document.querySelector(place).getBoundingClientRect().width;
            const drawn = width(".mrr-figure .main-svg");
            return drawn < before && drawn <= width(".mrr-figure");
        }""",
        arg=before,
    )
