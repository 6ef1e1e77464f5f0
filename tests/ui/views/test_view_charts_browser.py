"""Bands, layers and latency in a real browser: real content, right counts, readable, silent."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.ui.views import generated
from tests.ui.views.conftest import HOSTILE, Watched

pytestmark = pytest.mark.browser

START, END = generated.BAND


def open_tab(app: Watched, name: str) -> None:
    app.page.click(f"[role=tab][data-tab-id={name}]")


def test_bands_show_every_layer_and_say_what_is_zero_by_construction(both: Watched):
    rows = both.page.locator(".bands-row")
    assert rows.count() == generated.EXIT
    zeros = both.page.locator(".bands-out .bands-zero").all_text_contents()
    assert len(zeros) == START and all("0 by construction" in text for text in zeros)
    assert both.page.locator(".bands-in .bands-part").count() == 3 * (END - START)


def test_a_bands_bar_is_as_long_as_its_share_of_attention(app: Watched):
    mass = generated.explanation().attention.mass[4, :, slice(*generated.QUERY_SPAN)]
    shares = mass.mean(axis=(0, 1))
    row = app.page.locator("[data-layer='4']")
    whole = row.locator(".bands-bar").bounding_box()["width"]
    widths = [part.bounding_box()["width"] / whole for part in row.locator(".bands-part").all()]
    assert widths == pytest.approx(shares, abs=0.01)
    row.hover()
    heads = mass[..., 1].mean(axis=1)
    expect(app.page.locator(".bands-detail")).to_contain_text(
        f"heads {100 * heads.min():.0f}% to {100 * heads.max():.0f}%"
    )


def test_clicking_a_layer_tells_the_server_and_turns_the_inspector_to_it(app: Watched):
    app.choose("Map", "occlusion")
    app.page.click("[data-layer='5']")
    app.page.wait_for_function("document.querySelector('#seen textarea').value === 'layer 5'")
    expect(app.page.locator(".pi [aria-label='Map'] [aria-checked=true]")).to_have_text("Attention")
    expect(app.page.locator(".pi [aria-label='Band layer'] [aria-checked=true]")).to_have_text("5")
    app.page.keyboard.press("ArrowDown")
    app.page.keyboard.press("Enter")
    app.page.wait_for_function("document.querySelector('#seen textarea').value === 'layer 6'")


def test_a_layer_outside_the_band_is_no_choice(app: Watched):
    chosen = app.page.locator(".pi [aria-label='Band layer'] [aria-checked=true]")
    before = chosen.inner_text()
    app.page.click("[data-layer='0']", force=True)
    app.page.wait_for_timeout(300)
    assert app.page.input_value("#seen textarea") == ""
    assert chosen.inner_text() == before != "0"


def test_a_word_chosen_in_one_view_is_chosen_in_the_other(app: Watched):
    app.choose("Query word", 2)
    chosen = app.page.locator(".bands [aria-label='Query word'] [aria-checked=true]")
    expect(chosen).to_have_text("region?")


def test_layers_draw_one_solid_line_a_candidate_and_dash_only_after_the_exit(both: Watched):
    open_tab(both, "layers")
    both.page.click("#trace-layers")
    expect(both.page.locator(".js-plotly-plot .scatterlayer path.js-line")).to_have_count(12)
    styles = both.page.evaluate(
        """() => [...document.querySelectorAll('.js-plotly-plot .scatterlayer path.js-line')].map(
            (path) => ({dash: path.style.strokeDasharray, box: path.getBBox().x}))"""
    )
    solid = [style for style in styles if style["dash"] in ("", "none")]
    dashed = [style for style in styles if style not in solid]
    assert len(solid) == len(dashed) == 6
    # Both ends are in plot pixels: no dashed line begins left of where the solid ones end.
    exit_x = both.page.evaluate(
        """(layer) => document.querySelector('.js-plotly-plot')._fullLayout.xaxis.l2p(layer)""",
        generated.EXIT - 1,
    )
    assert all(style["box"] > exit_x for style in dashed)
    expect(both.page.locator("p:has-text('was final from layer')")).to_be_visible()


def test_a_hostile_label_is_plain_text_in_the_chart_and_in_its_table(app: Watched):
    open_tab(app, "layers")
    app.page.click("#trace-layers")
    app.page.click("button:has-text('Layers as a table')")
    cell = app.page.wait_for_selector("td:has-text('page3')")
    assert HOSTILE in cell.inner_text()
    assert app.page.evaluate("window.hacked") is None


def test_the_rank_view_puts_rank_one_on_top(app: Watched):
    open_tab(app, "layers")
    app.page.click("#trace-layers")
    app.page.wait_for_selector(".js-plotly-plot .ytick")
    app.page.click("label:has-text('rank')")
    app.page.wait_for_function(
        "document.querySelector('.js-plotly-plot .ytitle')?.textContent.includes('rank')"
    )
    low, high = app.page.evaluate(
        "document.querySelector('.js-plotly-plot')._fullLayout.yaxis.range"
    )
    assert low > high


def test_latency_draws_every_system_and_stage_and_all_three_charts(both: Watched):
    open_tab(both, "latency")
    both.page.click("#measure")
    both.page.wait_for_function("document.querySelectorAll('.js-plotly-plot .xtick').length > 3")
    both.page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 3")
    first = both.page.locator(".js-plotly-plot").first
    expect(first.locator(".subplot.xy .barlayer .point path")).to_have_count(
        sum(len(stages) for stages in generated.STAGES.values())
    )
    magnified = len(generated.STAGES["mini"]) + len(generated.STAGES["dense-reuse"])
    expect(first.locator(".subplot.x2y2 .barlayer .point path")).to_have_count(magnified)
    expect(both.page.locator(".mrr-headline")).to_contain_text(
        "80 ms a query with mini; original takes 115 ×"
    )
    assert both.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_chart_text_has_the_themes_own_colour(both: Watched):
    open_tab(both, "layers")
    both.page.click("#trace-layers")
    both.page.wait_for_selector(".js-plotly-plot .xtick text")
    tick, ink = both.page.evaluate(
        """() => {
            const figure = document.querySelector('.mrr-figure');
            const probe = figure.appendChild(document.createElement('i'));
            probe.style.color = 'var(--mrr-ink)';
            const tick = document.querySelector('.js-plotly-plot .xtick text');
            return [getComputedStyle(tick).fill, getComputedStyle(probe).color];
        }"""
    )
    assert tick == ink


def test_attention_by_layer_is_saved_for_every_word_and_head(app: Watched):
    with app.page.expect_download() as waiting:
        app.page.click(".bands button:text('Save CSV')")
    lines = waiting.value.path().read_text("utf-8").splitlines()
    assert lines[0] == "word,layer,head,instruction,page,query"
    mass = generated.explanation().attention.mass
    words = app.page.locator(".bands [aria-label='Query word'] button").count()
    assert len(lines) == 1 + words * mass.shape[0] * mass.shape[1]
    first_in_band = next(
        line for line in lines if line.startswith(f"revenue,{generated.BAND[0]},0")
    )
    shares = [float(cell) for cell in first_in_band.split(",")[3:]]
    assert shares == pytest.approx(mass[generated.BAND[0], 0, [2, 3]].mean(0), abs=1e-3)


def test_no_dot_of_a_head_is_cut_off_by_the_end_of_its_bar(both: Watched):
    outside = both.page.evaluate("""() => {
        const bars = [...document.querySelectorAll('.bands-bar:has(.bands-dots)')];
        bars.forEach((bar) => { bar.querySelector('.bands-dots i').style.left = '100%'; });
        bars.forEach((bar) => { bar.querySelector('.bands-dots i:last-child').style.left = '0%'; });
        return bars.flatMap((bar) => [...bar.querySelectorAll('i')].filter((dot) => {
            const inner = dot.getBoundingClientRect(), outer = bar.getBoundingClientRect();
            return inner.left < outer.left || inner.right > outer.right;
        })).length;
    }""")
    assert both.page.locator(".bands-dots i").count() > 2 and outside == 0
