"""The page inspector in a real browser: what it draws, what it says, and what it sends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, expect

from tests.ui.views import generated
from tests.ui.views.conftest import HOSTILE, WIDE_LIGHT, Screen, Watched, opened

pytestmark = pytest.mark.browser

WHOLE = generated.explanation()
KEPT = WHOLE.keep.kept
PLAIN = KEPT & ~WHOLE.attention.sinks
ALL = [(row, column) for row in range(generated.ROWS) for column in range(generated.COLUMNS)]


WORDS = ([2, 3], [4], [5, 6])  # rows of "revenue", "by" and "region?"
CHOSEN = "[aria-checked=true]"


@pytest.fixture(scope="module")
def tabs() -> Iterator[dict[Screen, Watched]]:
    """One tab a screen for all tests: what is tried here is in the views, which begin anew.

    A test that changes what is the browser's puts it back.
    """
    tabs: dict[Screen, Watched] = {}
    yield tabs
    for tab in tabs.values():
        tab.page.close()


def begun(
    address: str, contexts: dict[int, BrowserContext], screen: Screen, tabs: dict[Screen, Watched]
) -> Iterator[Watched]:
    """The tab of this screen; one whose console was not silent is used no more."""
    tab = tabs.pop(screen, None)
    if tab is None:
        tab = opened(address, contexts, screen)
    else:
        tab.begin_anew()
    yield tab
    assert tab.said == []
    tabs[screen] = tab


@pytest.fixture
def both(
    screen: Screen, address: str, contexts: dict[int, BrowserContext], tabs: dict[Screen, Watched]
) -> Iterator[Watched]:
    """The app on a wide light screen and on a dark phone; its console must stay silent."""
    yield from begun(address, contexts, screen, tabs)


@pytest.fixture
def app(
    address: str, contexts: dict[int, BrowserContext], tabs: dict[Screen, Watched]
) -> Iterator[Watched]:
    """The app on a wide light screen; its console must stay silent."""
    yield from begun(address, contexts, WIDE_LIGHT, tabs)


def raw(layer: int, word: int) -> np.ndarray:
    return WHOLE.attention.page_maps[layer][WORDS[word]].mean(axis=0)


def luminance(pixel) -> float:
    return float(np.dot(pixel, (0.2126, 0.7152, 0.0722)))


def show_means(app: Watched) -> None:
    """The palest map: the mean over words and layers."""
    app.choose("Band layer", "mean")
    app.choose("Query word", "mean")


def show_raw_map(app: Watched, layer: int, word: int) -> None:
    """Attention alone on the canvas: no page, nothing taken off."""
    app.choose("Layout", "map")
    app.choose("Band layer", layer)
    app.choose("Query word", word)
    app.page.uncheck("[data-key=contrast]")


def test_the_map_has_the_true_grid_and_brighter_cells_are_larger_values(both: Watched):
    show_raw_map(both, 4, 1)
    cells = [cell for cell in ALL if PLAIN[cell]]
    offsets = [(-0.3, -0.3), (0.3, 0.3), (0.3, -0.3)]
    points = [
        ((column + 0.5 + dx) / generated.COLUMNS, (row + 0.5 + dy) / generated.ROWS)
        for row, column in cells
        for dx, dy in [(0, 0), *offsets]
    ]
    pixels = np.array(both.pixels(points)).reshape(len(cells), 4, 3)
    assert (np.ptp(pixels, axis=1) == 0).all(), "a cell must be one block of one colour"
    values = np.array([raw(4, 1)[cell] for cell in cells])
    brightness = np.array([luminance(pixel) for pixel in pixels[:, 0]])
    order = np.argsort(values)
    assert (np.diff(brightness[order]) >= -1.5).all()
    assert len(np.unique(brightness)) > 10


def test_the_largest_value_of_all_layers_and_words_has_the_brightest_colour(app: Watched):
    top = max(
        ((layer, word, cell) for layer in range(*generated.BAND)
         for word in range(len(WORDS)) for cell in ALL if PLAIN[cell]),
        key=lambda place: raw(place[0], place[1])[place[2]],
    )  # fmt: skip
    show_raw_map(app, top[0], top[1])
    assert app.pixels([app.center(*top[2])]) == [[253, 231, 37]]


def test_layer_word_head_mode_and_sliders_redraw_without_any_request(app: Watched):
    centers = [app.center(*cell) for cell in ALL if PLAIN[cell]]
    show_raw_map(app, 4, 1)
    app.page.wait_for_load_state("networkidle")
    app.requests.clear()
    seen = [app.pixels(centers)]

    def step(act) -> None:
        act()
        seen.append(app.pixels(centers))
        assert seen[-1] != seen[-2]

    step(lambda: app.choose("Band layer", 5))
    step(lambda: app.choose("Query word", 2))
    step(lambda: app.choose("Query word", "max"))
    step(lambda: app.choose("Head", 2))
    step(lambda: app.choose("Head", 3))
    step(lambda: app.page.check("[data-key=contrast]"))
    app.page.click(".pi-side summary")
    step(lambda: app.page.fill("[data-key=gamma]", "4"))
    step(lambda: app.page.fill("[data-key=share]", "0.1"))
    step(lambda: app.choose("Layout", "overlay"))
    app.page.fill("[data-key=share]", "1")
    step(lambda: app.page.fill("[data-key=opacity]", "0.2"))
    step(lambda: app.choose("Map", "occlusion"))
    step(lambda: app.choose("Map", "pruned"))
    step(lambda: app.page.check("[data-key=colour]"))
    assert app.requests == []


def test_kept_cells_keep_the_pages_colours_and_pruned_ones_lose_them(app: Watched):
    app.choose("Map", "pruned")
    pruned = [cell for cell in ALL if not KEPT[cell]]
    red, *rest = app.pixels([app.center(0, 0), *(app.center(*cell) for cell in pruned)])
    assert KEPT[0, 0] and red[0] > 200 and red[1] < 60
    assert all(max(pixel) - min(pixel) < 30 for pixel in rest)


def test_controls_stand_beside_the_choice_at_the_same_budget(both: Watched):
    both.choose("Map", "pruned")
    captions = both.page.locator(".pi-stage figcaption")
    expect(captions).to_contain_text(
        [f"{KEPT.sum()} of {KEPT.size} kept", "uniform", "random"], use_inner_text=False
    )
    both.page.uncheck("[data-key=controls]")
    expect(both.page.locator(".pi-stage canvas")).to_have_count(1)


def test_hovering_tells_row_column_raw_value_percentile_and_state(app: Watched):
    cell = (5, 2) if PLAIN[5, 2] else next(cell for cell in ALL if PLAIN[cell] and cell[0] > 4)
    show_raw_map(app, 4, 1)
    app.point(*cell)
    said = app.tip(f"row {cell[0] + 1}, column {cell[1] + 1}").inner_text()
    value = raw(4, 1)[cell]
    share = (raw(4, 1)[PLAIN] <= value).mean()
    assert float(re.search(r"attention ([\d.e−]+)", said)[1].replace("−", "-")) == pytest.approx(
        value, rel=0.01
    )
    assert float(re.search(r"percentile ([\d.]+)", said)[1]) == pytest.approx(100 * share, abs=1)
    assert said.splitlines()[-1] == "kept"


def test_a_pruned_cell_and_a_sink_say_so_and_give_no_value(app: Watched):
    pruned = next(cell for cell in ALL if not KEPT[cell])
    app.point(*pruned)
    app.tip("pruned: not read")
    app.point(*generated.SINK)
    assert "percentile" not in app.tip("kept, a sink").inner_text()


def test_neutral_queries_are_taken_off_by_default_and_raw_is_one_click_away(app: Watched):
    trace = WHOLE.attention
    show_means(app)
    words = slice(*generated.QUERY_SPAN)
    contrast = np.mean([trace.page_maps[i][words].mean(0) - trace.neutral_maps[i][words].mean(0)
                        for i in trace.page_maps], axis=0)  # fmt: skip
    cell = np.unravel_index(np.argmax(np.where(PLAIN, contrast, -1)), contrast.shape)
    app.point(*map(int, cell))
    tip = app.tip(f"row {cell[0] + 1}, column {cell[1] + 1}")
    said = re.search(r"neutral ([+−][\d.e−]+)", tip.inner_text())[1]
    assert float(said.replace("−", "-")) == pytest.approx(contrast[cell], rel=0.02)
    app.page.uncheck("[data-key=contrast]")
    expect(app.page.locator(".pi-range")).not_to_contain_text("neutral")


def test_a_click_and_the_keyboard_lock_a_cell(app: Watched):
    locked = app.page.locator(".pi-tip[data-locked=true]")
    app.point(3, 4, click=True)
    expect(locked).to_have_text(re.compile("^row 4, column 5"))
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        app.page.keyboard.press(key)
    expect(locked).to_have_text(re.compile("^row 5, column 6"))
    expect(app.page.locator(".pi-live")).to_contain_text("row 5, column 6")


def test_query_chips_are_the_words_that_were_typed(both: Watched):
    typed = ["any word", "whole query", "revenue", "by", "region?", "answer ▸"]
    assert both.page.locator(".pi [aria-label='Query word'] button").all_inner_texts() == typed
    typed.remove("any word")
    assert both.page.locator(".bands [aria-label='Query word'] button").all_inner_texts() == typed


def test_heads_are_small_pictures_on_one_scale_and_a_click_puts_one_on_the_page(both: Watched):
    heads = both.page.locator(".pi [aria-label='Head'] button")
    show_means(both)
    expect(heads).to_have_count(0)
    expect(both.page.locator(".pi-side")).to_contain_text(
        "Choose one layer of the band to see its 4 heads"
    )
    both.choose("Layout", "map")
    both.choose("Band layer", 4)
    both.page.uncheck("[data-key=contrast]")
    mass = WHOLE.attention.mass[4, :, slice(*generated.QUERY_SPAN), 1].mean(axis=1)
    expect(heads).to_have_text(
        ["mean of all heads", *(f"{head} · {100 * share:.0f}%" for head, share in enumerate(mass))]
    )
    expect(both.page.locator(f".pi [aria-label='Head'] {CHOSEN}")).to_have_text("mean of all heads")
    top = WHOLE.attention.head_maps[4][:, PLAIN].max()
    ends = re.search(
        r"One scale for the heads of this layer: 0 to ([\d.]+)", both.page.inner_text(".pi-side")
    )
    assert float(ends[1].rstrip(".")) == pytest.approx(top, rel=0.01)

    both.choose("Head", 2)
    expect(both.page.locator(".pi-stage figcaption")).to_contain_text("head 2 of layer 4")
    assert float(both.page.locator(".pi-scale span").last.inner_text()) == pytest.approx(
        top, rel=0.01
    )
    cells = [cell for cell in ALL if PLAIN[cell]]
    shown = [luminance(p) for p in both.pixels([both.center(*cell) for cell in cells])]
    values = [WHOLE.attention.head_maps[4][2][cell] for cell in cells]
    assert (np.diff(np.array(shown)[np.argsort(values)]) >= -1.5).all()
    # The small picture has the very colours of the large one.
    small = both.page.evaluate(
        """(cells) => {
            const tile = document.querySelectorAll(".pi-heads canvas")[2];
            const copy = new OffscreenCanvas(tile.width, tile.height);
            const context = copy.getContext("2d", { willReadFrequently: true });
            context.drawImage(tile, 0, 0);
            return cells.map(([row, column]) =>
                [...context.getImageData(column, row, 1, 1).data].slice(0, 3));
        }""",
        cells,
    )
    assert [luminance(p) for p in small] == pytest.approx(shown, abs=1)
    assert both.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_head_is_of_the_whole_query_and_stays_when_the_layer_changes(app: Watched):
    chosen_head = app.page.locator(f".pi [aria-label='Head'] {CHOSEN}")
    chosen_word = app.page.locator(f".pi [aria-label='Query word'] {CHOSEN}")
    caption = app.page.locator(".pi-stage figcaption")
    app.choose("Band layer", 4)
    app.choose("Query word", 2)
    app.choose("Head", 1)
    expect(chosen_word).to_have_text("whole query")
    app.choose("Band layer", 5)
    expect(chosen_head).to_have_text(re.compile("^1 ·"))
    expect(caption).to_contain_text("head 1 of layer 5")
    app.choose("Query word", 0)
    expect(chosen_head).to_have_text("mean of all heads")
    app.choose("Head", 3)
    app.choose("Band layer", "mean")
    expect(caption).to_contain_text("mean of the band")


def test_the_keyboard_keeps_its_place_among_the_controls(app: Watched):
    app.choose("Band layer", "mean")
    app.page.focus("[aria-label='Band layer'] [aria-checked=true]")
    app.page.keyboard.press("ArrowRight")
    app.page.keyboard.press("ArrowRight")
    chosen = app.page.locator("[aria-label='Band layer'] [aria-checked=true]")
    expect(chosen).to_have_text("4")
    expect(chosen).to_be_focused()
    app.page.focus("[data-key=contrast]")
    app.page.keyboard.press("Space")
    expect(app.page.locator("[data-key=contrast]")).not_to_be_checked()
    expect(app.page.locator("[data-key=contrast]")).to_be_focused()


def test_zooming_in_shows_fewer_cells_and_hits_the_right_one(app: Watched):
    app.page.click("[aria-label='Zoom in']")
    app.page.click("[aria-label='Zoom in']")
    box = app.page.locator(".pi-stage canvas").first.bounding_box()
    # 1.5 x 1.5 around the centre: the upper left corner is now at (1 - 1 / 2.25) / 2 of the page.
    corner = (1 - 1 / 2.25) / 2
    app.page.mouse.move(box["x"] + 3, box["y"] + 3)
    row, column = int(corner * generated.ROWS) + 1, int(corner * generated.COLUMNS) + 1
    app.tip(f"row {row}, column {column}")
    app.page.click("[aria-label='Fit the page']")
    app.point(0, 0)
    app.tip("row 1, column 1")


def test_the_scale_is_shared_until_it_is_stretched_with_a_badge(app: Watched):
    app.page.click(".pi-side summary")
    scale, badges = app.page.locator(".pi-scale span"), app.page.locator(".pi-badge")
    ends = scale.all_inner_texts()
    show_means(app)
    expect(scale).to_have_text(ends)
    expect(badges).to_have_count(0)
    app.page.check("[data-key=stretch]")
    expect(scale).not_to_have_text(ends)
    expect(badges).to_contain_text("do not compare")
    app.page.check("[data-key=smooth]")
    expect(badges).to_have_count(2)


def show(app: Watched, button: str) -> None:
    """The server sends a page."""
    app.page.evaluate("document.querySelector('.pi-stage').id = 'old'")
    app.page.click(f"button:text('{button}')")
    app.page.wait_for_selector("#old", state="detached")


def test_another_page_keeps_the_mode_the_layer_and_the_word(app: Watched):
    mode = app.page.locator(f".pi [aria-label='Map'] {CHOSEN}")
    layer = app.page.locator(f".pi [aria-label='Band layer'] {CHOSEN}")
    app.choose("Band layer", 5)
    app.choose("Query word", 1)
    app.choose("Map", "pruned")
    show(app, "unmeasured")
    expect(mode).to_have_text("Kept tokens")
    app.choose("Map", "attention")
    expect(layer).to_have_text("5")
    expect(app.page.locator(f".pi [aria-label='Query word'] {CHOSEN}")).to_have_text("by")


def test_a_mode_that_a_page_lacks_comes_back_with_a_page_that_has_it(app: Watched):
    mode = app.page.locator(f".pi [aria-label='Map'] {CHOSEN}")
    app.choose("Map", "occlusion")
    show(app, "unmeasured")
    expect(mode).to_have_text("Attention")
    show(app, "first")
    expect(mode).to_have_text("Occlusion")


def test_the_same_page_again_leaves_the_user_where_they_are(app: Watched):
    app.choose("Map", "occlusion")
    app.choose("Layout", "beside")
    expect(app.page.locator(".pi-stage canvas")).to_have_count(2)
    before = app.page.locator(".pi-facts").inner_text()
    show(app, "again")
    expect(app.page.locator(".pi-stage canvas")).to_have_count(2)
    expect(app.page.locator(".pi-facts")).to_have_text(before, use_inner_text=True)


def test_occlusion_states_its_control(app: Watched):
    app.choose("Map", "occlusion")
    expect(app.page.locator(".pi-facts")).to_contain_text(
        "by −1.60; hiding as many random cells, 20 times"
    )
    expect(app.page.locator(".pi-scale span")).to_have_text(["+1.5", "−1.5"])
    expect(app.page.locator(".pi-ends span").last).to_have_text(re.compile("^hiding it lowers"))
    rows = app.page.locator(".pi-control tbody tr")
    with app.page.expect_download() as waiting:
        app.page.click("button:text('Save this table')")
    saved = waiting.value.path().read_text("utf-8").splitlines()
    assert len(saved) == 1 + 4 + 20 and saved[0] == "hidden cells,logit change"
    assert rows.count() == 5 and rows.last.inner_text().startswith("random cells, n = 20")
    assert rows.first.locator(".pi-draw").count() == 20
    top, draws = (
        [mark.bounding_box()["x"] for mark in rows.first.locator(kind).all()]
        for kind in (".pi-top", ".pi-draw")
    )
    assert top[0] < min(draws), "the larger drop lies left of every random draw"


def beside_the_means(app: Watched) -> tuple[float, float]:
    """(share of the canvas that the page takes, width of the canvas)."""
    box = app.page.locator(".pi-stage canvas").first.bounding_box()
    width, height = box["width"] - 2, box["height"] - 2  # its border
    return 1 - 26 / min(width, height), width


def test_row_and_column_means_are_drawn_along_the_edges(app: Watched):
    app.choose("Map", "pruned")
    app.page.check("[data-key=margins]")
    share, width = beside_the_means(app)
    # The strip is 26 pixels wide; a row that was kept whole fills 22 of them from its left + 2.
    x = share + (2 + 0.45 * 22) / width
    rows = range(generated.ROWS)
    seen = app.pixels([(x, share * (row + 0.5) / generated.ROWS) for row in rows])
    assert [luminance(pixel) < 120 for pixel in seen] == [KEPT[row].mean() > 0.45 for row in rows]


def test_row_and_column_means_cover_nothing_of_the_map_that_they_are_of(app: Watched):
    show_raw_map(app, 4, 1)
    coloured = [app.center(*cell) for cell in ALL if PLAIN[cell]]
    whole = app.pixels(coloured)
    app.page.check("[data-key=margins]")
    share, _ = beside_the_means(app)
    assert app.pixels([(share * x, share * y) for x, y in coloured]) == whole
    box = app.page.locator(".pi-stage canvas").first.bounding_box()
    last = (generated.ROWS - 1, generated.COLUMNS - 1)
    x, y = (share * part for part in app.center(*last))
    app.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    app.tip(f"row {generated.ROWS}, column {generated.COLUMNS}")
    app.page.mouse.move(box["x"] + box["width"] - 4, box["y"] + y * box["height"])
    expect(app.page.locator(".pi-tip")).to_be_hidden()


def test_the_table_twin_lists_the_largest_cells(app: Watched):
    show_raw_map(app, 4, 1)
    app.page.click("summary:text('Cells as a table')")
    app.page.wait_for_selector(".pi table")
    first = app.page.locator(".pi table tbody tr").first.locator("td").all_inner_texts()
    row, column = np.unravel_index(np.argmax(np.where(PLAIN, raw(4, 1), -1)), KEPT.shape)
    assert first[1:3] == [str(row + 1), str(column + 1)]
    expect(app.page.locator(".pi table tbody tr")).to_have_count(20)


def test_saved_csv_holds_every_cell(app: Watched):
    with app.page.expect_download() as download:
        app.page.click("button:text('Save CSV')")
    lines = download.value.path().read_text().splitlines()
    assert len(lines) == 1 + KEPT.size
    with app.page.expect_download() as picture:
        app.page.click("button:text('Save PNG')")
    assert picture.value.path().read_bytes().startswith(b"\x89PNG")


def test_labels_and_tokens_are_text_and_never_markup(app: Watched):
    app.page.click("button:text('hostile')")
    app.page.wait_for_function(
        "document.querySelector('.pi canvas')?.getAttribute('aria-label').includes('onerror')"
    )
    assert HOSTILE in app.page.locator(".pi-chips button").nth(2).inner_text()
    assert app.page.locator(".pi img, .bands img").count() == 0
    assert app.page.evaluate("window.hacked") is None


def test_a_misfit_is_refused_with_both_counts(app: Watched):
    app.page.click("button:text('misfit')")
    alert = app.page.wait_for_selector(".pi [role=alert]").inner_text()
    assert "12 × 8 = 96 cells" in alert and "6 × 5 = 30 cells" in alert
    assert app.page.locator(".pi canvas").count() == 0


def test_the_first_map_is_the_layer_in_which_a_word_stands_out_most(app: Watched):
    trace = WHOLE.attention
    start = generated.QUERY_SPAN[0]
    stands_out = {
        layer: max(
            (trace.page_maps[layer][rows].mean(axis=0) - trace.neutral_maps[layer][start])[
                PLAIN
            ].max()
            for rows in WORDS
        )
        for layer in trace.page_maps
    }
    chosen = app.page.locator(f".pi [aria-label='Band layer'] {CHOSEN}")
    assert chosen.inner_text() == str(max(stands_out, key=stands_out.get))
    assert app.page.locator(f".pi [aria-label='Query word'] {CHOSEN}").inner_text() == "any word"


# Contrast by WCAG of the text of the pressed buttons on what they are filled with.
_CONTRASTS = """() => {
    const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255)
            .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const pressed = document.querySelectorAll(':is(.pi, .bands) [aria-checked=true]');
    return [...pressed].map((button) => {
        const { color, backgroundColor } = getComputedStyle(button);
        const [low, high] = [light(color), light(backgroundColor)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    });
}"""


def test_a_pressed_button_is_readable_in_both_themes(both: Watched):
    contrasts = both.page.evaluate(_CONTRASTS)
    assert len(contrasts) >= 5  # map, word, layer, head, layout; the word of the bands
    assert min(contrasts) > 4.5, contrasts


def test_a_page_is_shown_where_its_maps_will_stand_while_it_is_traced(both: Watched):
    before = both.page.locator(".pi-stage canvas").first.bounding_box()
    both.page.click("button:text-is('untraced')")
    both.page.wait_for_selector(".pi-stage img")
    expect(both.page.locator(".pi-waiting")).to_have_text("Tracing…")
    during = both.page.locator(".pi-stage img").bounding_box()
    assert during["width"] == pytest.approx(before["width"], abs=1)
    assert during["height"] == pytest.approx(before["height"], abs=1)
    both.page.click("button:text-is('again')")
    both.page.wait_for_selector(".pi-stage canvas")
    expect(both.page.locator(".pi-waiting")).to_have_count(0)


def test_a_trace_that_lasts_says_that_it_still_waits(app: Watched):
    app.page.evaluate("""() => {
        const real = window.realTimeout = setTimeout;
        window.setTimeout = (then, ms, ...rest) => real(then, ms > 4000 ? 0 : ms, ...rest);
    }""")
    app.page.click("button:text-is('untraced')")
    expect(app.page.locator(".pi-waiting")).to_have_text("Tracing… Still waiting.")
    app.page.evaluate("() => { window.setTimeout = realTimeout; }")


def _saved_picture(watched: Watched) -> tuple[Image.Image, list[list]]:
    """The file, and [text, x, width, alignment] of all that was written on it, in CSS pixels."""
    watched.page.evaluate("""() => {
        const fillText = window.realFillText = CanvasRenderingContext2D.prototype.fillText;
        window.written = [];
        CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
            if (rest.length) throw new Error("squeezed");
            written.push([text, x, this.measureText(text).width, this.textAlign]);
            return fillText.call(this, text, x, y);
        };
    }""")
    with watched.page.expect_download() as waiting:
        watched.page.click("button:text-is('Save PNG')")
    watched.page.evaluate("() => { CanvasRenderingContext2D.prototype.fillText = realFillText; }")
    written = watched.page.evaluate("window.written")
    return Image.open(waiting.value.path()), written


def test_a_saved_picture_explains_itself_at_one_size_on_every_screen(both: Watched):
    picture, written = _saved_picture(both)
    assert picture.width == 2 * 832
    words = [text for text, *_ in written]
    assert any(text.startswith("Query: “" + WHOLE.query) for text in words)
    at = next(i for i, (*_, aligned) in enumerate(written) if aligned == "right")
    left, right = written[at - 1 : at + 1]
    assert left[0].startswith("−") and left[0].endswith("less than neutral queries")
    assert right[0].startswith("more than neutral queries") and "+" in right[0]
    assert left[1] == 16 and right[1] == 816  # at the two ends of the bar
    assert max(width for _, _, width, _ in written) <= 800


def test_beside_the_page_it_is_the_map_that_is_saved(app: Watched):
    app.choose("Layout", "beside")
    picture, _ = _saved_picture(app)
    colours = picture.convert("RGB").crop((32, 32, 1632, 1600)).getcolors(1 << 24)
    # Orange stands for more than neutral queries; the page itself is grey.
    assert any(r > g + 60 > b + 90 for _, (r, g, b) in colours)


def test_full_screen_is_drawn_and_not_a_letter_that_a_font_may_lack(app: Watched):
    assert app.page.locator("button[aria-label='Full screen'] svg path").count() == 1


def test_the_sinks_share_is_told_of_this_query_and_layer(app: Watched):
    expect(app.page.locator(".pi-facts")).to_contain_text(
        "of the page’s share for this query in layer"
    )


def test_the_page_share_is_said_of_what_it_is_the_share_of(app: Watched):
    facts = app.page.locator(".pi-facts")
    expect(facts).to_contain_text(re.compile("Of the whole query’s attention, [0-9]+% went to the"))
    expect(facts).not_to_contain_text("this attention")
    for label, value in (("Query word", 2), ("Query word", "mean"), ("Head", 1)):
        app.choose(label, value)
        expect(facts).to_contain_text(re.compile("^[0-9]+% of this attention went to the page"))


def test_the_dots_of_the_control_stand_over_numbers(app: Watched):
    app.choose("Map", "occlusion")
    ends = app.page.locator(".pi-axis b").all_inner_texts()
    occlusion = WHOLE.occlusion
    tried = [0.0, *occlusion.random_deltas.tolist(), *occlusion.top_deltas.values()]
    said = [float(text.replace("−", "-")) for text in (ends[0], ends[-1])]
    assert said == pytest.approx([min(tried), max(tried)], rel=0.01)


def test_the_numbers_of_the_control_stand_apart_on_a_phone_too(both: Watched):
    both.choose("Map", "occlusion")
    boxes = [number.bounding_box() for number in both.page.locator(".pi-axis b").all()]
    for left, right in pairwise(boxes):
        assert left["x"] + left["width"] < right["x"]


def test_the_ends_of_the_scale_stand_left_and_right_on_a_phone_too(both: Watched):
    left, right = (span.bounding_box() for span in both.page.locator(".pi-ends span").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"] + 1
