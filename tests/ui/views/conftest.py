"""A small Gradio app with the four views over generated data, and a browser to look at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

import ui
from tests.ui.conftest import launch, patient
from tests.ui.views import generated
from ui.pictures import data_uri
from ui.views import bands, inspector, latency, layers

# What is to be drawn is drawn in the next frame; what that one asks for, in the one after it.
_DRAWN = """() => new Promise((drawn) => {
    requestAnimationFrame(() => requestAnimationFrame(drawn));
})"""
HOSTILE = "<img/src=x/onerror=window.hacked=1>"  # one word
# From a copy: reading from the canvas itself would make the browser warn about it.
_READ = """([at, points]) => {
    const canvas = document.querySelectorAll('.pi-stage canvas')[at];
    const copy = new OffscreenCanvas(canvas.width, canvas.height);
    const context = copy.getContext('2d', { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    return points.map(([x, y]) => [...context.getImageData(
        Math.floor(x * copy.width), Math.floor(y * copy.height), 1, 1).data].slice(0, 3));
}"""


def _app() -> gr.Blocks:
    whole = generated.explanation()
    picture = data_uri(generated.page_picture(), 1600, 80)
    small = generated.attention(generated.keep_map(6, 5).kept)
    misfit = replace(whole, attention=small)
    tokens = ("Query", ":", HOSTILE, " a", " b", " c", " d", "<end>")
    hostile = replace(
        whole,
        query=f"{HOSTILE} a b c d",
        page=replace(whole.page, label=HOSTILE, page_id="cd" * 32),
        attention=replace(whole.attention, tokens=tokens),
    )
    unmeasured = replace(
        whole,
        page=replace(whole.page, label="no occlusion", page_id="ef" * 32),
        occlusion=None,
    )
    report = generated.latency_report()
    lenses = {f"page{i}": generated.lens(i) for i in range(6)}
    labels = {page_id: f"{page_id} {HOSTILE}" for page_id in lenses}

    with gr.Blocks() as demo:
        with gr.Row():
            again, other, bad = gr.Button("again"), gr.Button("hostile"), gr.Button("misfit")
            plain, first = gr.Button("unmeasured"), gr.Button("first")
            waiting, anew = gr.Button("untraced"), gr.Button("anew")
        seen = gr.Textbox(elem_id="seen")
        with gr.Tabs():
            with gr.Tab("Page", id="page"):
                page, strip = inspector.build(), bands.build()
            with gr.Tab("Layers", id="layers"):
                curves = layers.build()
            with gr.Tab("Latency", id="latency"):
                times = latency.build()

        def show(explanation, mode=None):
            return [*inspector.render(explanation, picture, mode=mode), *bands.render(explanation)]

        shown = [*page.outputs, *strip.outputs]
        turns = count()

        def once_more():
            # Not quite the same: an equal value would not reach the view at all.
            return show(replace(whole, keep=replace(whole.keep, keep_ratio=next(turns) / 1000)))

        def begin():
            return show(whole, mode="attention")

        demo.load(begin, None, shown)
        # Taken out of the page and put in again, the views have forgotten all that was done.
        out = anew.click(lambda: [gr.update(visible=False)] * len(shown), None, shown)
        out.then(lambda: [gr.update(visible=True, value=each) for each in begin()], None, shown)
        again.click(once_more, None, shown)
        other.click(lambda: show(hostile), None, shown)
        plain.click(lambda: show(unmeasured), None, shown)
        first.click(once_more, None, shown)
        untraced = inspector.untraced(whole.page, picture, "Tracing…", late="Still waiting.")
        waiting.click(lambda: [*untraced, *bands.blank("Tracing…")], None, shown)
        bad.click(lambda: show(misfit), None, shown)

        def layer(event: gr.EventData) -> str:
            return f"layer {bands.layer_from(event._data, generated.EXIT)}"

        strip.view.layer_click(layer, None, seen)

        def curves_of(mode):
            return layers.render(lenses, labels, "page3", mode=mode)

        curves.run.click(curves_of, curves.mode, curves.outputs)
        curves.mode.change(curves_of, curves.mode, curves.outputs)
        times.measure.click(lambda: latency.render(report, "one model"), None, times.outputs)
    return demo


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where the app listens."""
    css = "\n".join(
        p.read_text() for p in sorted((Path(ui.__file__).parent / "assets").glob("*.css"))
    )
    demo = _app()
    yield launch(demo, css=css, server_name="127.0.0.1", run_history=False)
    demo.close()


class Watched:
    """A page with what it said on the console and every request since it was opened."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def wait(self) -> None:
        """Until the views of the page are drawn."""
        self.page.wait_for_selector(".pi-stage canvas")
        self.page.wait_for_selector(".bands-row")

    def begin_anew(self) -> None:
        """The views as in a tab that was just opened, which takes two seconds more."""
        page = self.page
        page.mouse.move(0, 0)
        page.evaluate("""() => {
            delete window.mrrSelection;
            document.querySelector(".pi").dataset.old = "";
            document.querySelector(".bands").dataset.old = "";
            scrollTo(0, 0);
        }""")
        page.get_by_role("tab", name="Page").click()
        page.get_by_role("button", name="anew").click()
        expect(page.locator("[data-old]")).to_have_count(0)
        self.wait()
        self.requests.clear()

    def pixels(self, points: list[tuple[float, float]], canvas: int = 0) -> list[tuple[int, ...]]:
        """Red, green, blue at points given as shares of the canvas's width and height."""
        self.page.evaluate(_DRAWN)
        return self.page.evaluate(_READ, [canvas, points])

    def center(self, row: int, column: int) -> tuple[float, float]:
        """Of a cell, as shares of the canvas."""
        return (column + 0.5) / generated.COLUMNS, (row + 0.5) / generated.ROWS

    def point(self, row: int, column: int, *, click: bool = False) -> None:
        """Move the mouse onto a cell of the first canvas."""
        box = self.page.locator(".pi-stage canvas").first.bounding_box()
        x, y = self.center(row, column)
        at = box["x"] + x * box["width"], box["y"] + y * box["height"]
        (self.page.mouse.click if click else self.page.mouse.move)(*at)

    def tip(self, words: str) -> Locator:
        """What the cell under the mouse says, once it is of the cell that these words are of."""
        tip = self.page.locator(".pi-tip")
        expect(tip).to_contain_text(words)
        return tip

    def choose(self, label: str, value: object) -> None:
        """Press a button of a row of buttons."""
        self.page.click(f".pi [aria-label='{label}'] button[data-value='{value}']")


@pytest.fixture(scope="session")
def contexts(browser: Browser) -> dict[int, BrowserContext]:
    """By width; shared by the tests, so that the app's assets are fetched once."""
    return {
        width: patient(browser.new_context(viewport={"width": width, "height": 1000}))
        for width in (1280, 390)
    }


Screen = tuple[int, str]  # width and theme
WIDE_LIGHT, PHONE_DARK = (1280, "light"), (390, "dark")


@pytest.fixture(params=[WIDE_LIGHT, PHONE_DARK], ids=["wide-light", "phone-dark"])
def screen(request: pytest.FixtureRequest) -> Screen:
    """A wide light one, then a dark phone."""
    return request.param


@pytest.fixture
def both(screen: Screen, address: str, contexts: dict[int, BrowserContext]) -> Iterator[Watched]:
    """The app on a wide light screen and on a dark phone; its console must stay silent."""
    yield from _used_once(opened(address, contexts, screen))


@pytest.fixture
def app(address: str, contexts: dict[int, BrowserContext]) -> Iterator[Watched]:
    """The app on a wide light screen; its console must stay silent."""
    yield from _used_once(opened(address, contexts, WIDE_LIGHT))


def opened(address: str, contexts: dict[int, BrowserContext], screen: Screen) -> Watched:
    """The app in a new tab."""
    width, theme = screen
    watched = Watched(contexts[width].new_page())
    watched.page.goto(f"{address}?__theme={theme}")
    watched.wait()
    return watched


def _used_once(watched: Watched) -> Iterator[Watched]:
    yield watched
    assert watched.said == []
    watched.page.close()
