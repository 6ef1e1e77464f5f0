"""How long the app takes to start and to answer, in a browser: `python scripts/measure_app.py`.

Starts `python app.py` over the usual store ($MRR_CACHE_DIR), opens it in Chromium, and clicks the
sample queries: the first one at once, while the model may still be loading, and then each of them
twice. The examples should be cached already, as `make run` leaves them.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE_S = 180.0


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
        print(f"click to ranking, {what}: {statistics.median(took):.2f} s in the median,", end=" ")
        print(f"{max(took):.2f} s at most, of {len(took)} samples")


def _ranking(page: Page, n: int) -> float:
    page.evaluate("document.querySelector('#took')?.remove()")  # of the ranking before
    begin = time.perf_counter()
    page.locator("#samples .mrr-chip").nth(n).click()
    page.wait_for_selector("#took", timeout=_PATIENCE_S * 1e3)
    took = time.perf_counter() - begin
    page.wait_for_selector("[data-event=pick]")  # at least one page is ranked
    return took


def _say(what: str, begin: float) -> None:
    print(f"{what}: {time.perf_counter() - begin:.2f} s after the start", flush=True)


def main() -> None:
    """The browser is started first: it is not what is measured."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        with started() as (url, begin):
            page.goto(url)
            click_samples(page, begin)
        browser.close()


if __name__ == "__main__":
    main()
