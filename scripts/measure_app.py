"""How long the app takes to start and to answer, in a browser: `python scripts/measure_app.py`.

Starts `python app.py` over the usual store ($MRR_CACHE_DIR), opens it in Chromium, and clicks the
sample queries: the first one at once, while the model may still be loading, and then each of them
twice. Then it switches between the views of a ranking. Every time is one of the browser's driver,
which takes a few tens of ms itself. The examples should be cached already, as `make run` leaves
them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE_S = 180.0
_WINDOW: ViewportSize = {"width": 1280, "height": 900}
_MAP = ".pi-stage canvas"
_VIEWS = {"Page": _MAP, "Layers": ".mrr-figure .js-plotly-plot", "Bands": ".bands-row"}
_LAYERS = ".pi [aria-label='Band layer'] button"


@contextmanager
def started() -> Iterator[tuple[str, float]]:
    """(url, moment of the start) of an app that has answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.perf_counter()
    app = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env={**os.environ, "GRADIO_SERVER_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _answers(port):
            if app.poll() is not None or time.perf_counter() - begin > _PATIENCE_S:
                sys.exit("The app did not start; run python app.py to see why.")
            time.sleep(0.05)
        _say("the page answers", begin)
        yield f"http://127.0.0.1:{port}/", begin
    finally:
        app.terminate()
        app.wait()


def _answers(port: int) -> bool:
    """Whether the page comes; asked with next to no work of our own."""
    try:
        with closing(HTTPConnection("127.0.0.1", port)) as asked:
            asked.request("GET", "/")
            return asked.getresponse().status == 200
    except (OSError, HTTPException):
        return False


def click_samples(page: Page, begin: float) -> None:
    """Click every sample and print the time to its ranking."""
    page.wait_for_selector("#samples .mrr-chip")
    _say("the sample queries are there", begin)
    chips = page.locator("#samples .mrr-chip")
    _ranking(page, 0)
    _say("a sample that was clicked at once is ranked", begin)
    page.wait_for_timeout(15_000)  # the examples are looked through, and dense costs measured
    for what in ("first time", "again"):
        took = []
        for n in range(chips.count()):
            took.append(_ranking(page, n))
            page.wait_for_timeout(2_000)  # the selected page is traced
        _tell(f"click to ranking, {what}", took)


def _ranking(page: Page, n: int) -> float:
    page.evaluate("document.querySelector('#took')?.remove()")  # of the ranking before
    took = _until(page, page.locator("#samples .mrr-chip").nth(n).click, "#took")
    page.wait_for_selector("[data-event=pick]")  # at least one page is ranked
    return took


def first_chart(browser: Browser, url: str) -> None:
    """Open Layers as new visitors and print the time to the chart."""
    took = []
    for n in range(3):
        page = browser.new_page(viewport=_WINDOW)
        page.goto(url)
        page.wait_for_selector("#samples .mrr-chip")
        _ranking(page, n)
        page.wait_for_selector(_MAP)
        page.wait_for_timeout(5_000)  # somebody looks at the map
        took.append(_until(page, _tab(page, "Layers").click, _VIEWS["Layers"]))
        page.close()
    _tell("Layers opened for the first time", took)


def switch(page: Page) -> None:
    """Click through the views of a ranking and print the time to each one's content."""
    for name, content in _VIEWS.items():
        took = []
        for other in 2 * [other for other in _VIEWS if other != name]:
            _tab(page, other).click()
            page.wait_for_timeout(500)
            took.append(_until(page, _tab(page, name).click, content))
        _tell(f"tab {name}", took)
    _tab(page, "Page").click()
    others = page.locator(f"{_LAYERS}[aria-checked=false]")
    took = []
    for layer in others.evaluate_all("buttons => buttons.map(button => button.dataset.value)"):
        button = f"{_LAYERS}[data-value='{layer}']"
        took.append(_until(page, page.locator(button).click, f"{button}[aria-checked=true]"))
    _tell("another layer of the map", took)
    titles = page.locator("#hits li .title").all_inner_texts()[1:6]
    for what in ("first time, with its trace", "again"):
        took = []
        for n, title in enumerate(titles, 1):
            pick = page.locator("#hits [data-event=pick]").nth(n)
            took.append(
                _until(
                    page, pick.click, f"{_MAP}[aria-label*={json.dumps(title, ensure_ascii=False)}]"
                )
            )
            page.wait_for_timeout(1_000)
        _tell(f"another page, {what}", took)


def _tab(page: Page, name: str) -> Locator:
    return page.get_by_role("tab", name=name, exact=True)


def _until(page: Page, act: Callable[[], None], content: str) -> float:
    """Seconds from before act to when content can be seen."""
    begin = time.perf_counter()
    act()
    page.wait_for_selector(content, timeout=_PATIENCE_S * 1e3)
    return time.perf_counter() - begin


def _tell(what: str, took: list[float]) -> None:
    median, most = statistics.median(took), max(took)
    print(f"{what}: {median:.2f} s in the median, {most:.2f} s at most, of {len(took)}", flush=True)


def _say(what: str, begin: float) -> None:
    print(f"{what}: {time.perf_counter() - begin:.2f} s after the start", flush=True)


def main() -> None:
    """The browser is started first: it is not what is measured."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=_WINDOW)
        with started() as (url, begin):
            page.goto(url)
            click_samples(page, begin)
            switch(page)
            first_chart(browser, url)
        browser.close()


if __name__ == "__main__":
    main()
