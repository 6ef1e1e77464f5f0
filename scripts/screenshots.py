"""Take the README's pictures from the running app: `make screenshots`.

Starts app.py's own build() with whatever $MRR_MODEL names, by default the bundled pair, uses it as
a visitor would in headless Chromium, and writes PNG files to docs/pictures.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
WAIT_MS = 120_000


def ask(page: Page, sample: int) -> None:
    """Click a sample query and wait for its ranking and its first map."""
    page.locator("#samples .mrr-chip").nth(sample).click()
    page.wait_for_selector("#hits li")
    page.wait_for_selector(".pi-stage canvas")


def open_tab(page: Page, name: str) -> None:
    """Open a tab by its name."""
    page.get_by_role("tab", name=name, exact=True).click()


def start(page: Page) -> None:
    """The first screen."""


def ranking(page: Page) -> None:
    """A ranking with the map of its first page."""
    ask(page, 0)


def dense(page: Page) -> None:
    """mini and the original side by side."""
    ask(page, 1)
    page.click("#compare")
    page.get_by_text("original took").wait_for()


def layers(page: Page) -> None:
    """Relevance layer by layer, with what mini never runs."""
    ask(page, 2)
    open_tab(page, "Layers")
    page.click("#trace-layers")
    page.wait_for_timeout(500)
    page.wait_for_selector(".js-plotly-plot .trace")
    page.get_by_text("never run by mini").wait_for()


def bands(page: Page) -> None:
    """Where attention may go, layer by layer."""
    ask(page, 2)
    open_tab(page, "Bands")
    page.get_by_text("0 by construction").first.wait_for()


def latency(page: Page) -> None:
    """The three systems on one axis."""
    ask(page, 0)
    open_tab(page, "Latency")
    page.click("#measure")
    page.wait_for_selector(".js-plotly-plot .barlayer .trace")


SHOTS: tuple[tuple[str, Callable[[Page], None], str, int], ...] = (
    ("start", start, "light", 1280),
    ("ranking", ranking, "light", 1280),
    ("ranking-dark", ranking, "dark", 1280),
    ("ranking-narrow", ranking, "light", 390),
    ("dense", dense, "light", 1280),
    ("layers", layers, "light", 1280),
    ("bands", bands, "light", 1280),
    ("latency", latency, "light", 1280),
)


def take(url: str) -> None:
    """Every shot, each by a new visitor."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, act, theme, width in SHOTS:
            page = browser.new_page(viewport={"width": width, "height": 860})
            page.set_default_timeout(WAIT_MS)
            page.goto(f"{url}/?__theme={theme}")
            page.wait_for_selector("#gallery .mrr-page")
            page.wait_for_selector("#apply:enabled", state="attached")
            act(page)
            page.wait_for_timeout(800)  # charts fade in
            shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            # 256 colours are a third of the bytes, and no different to the eye.
            shot.quantize(256, dither=Image.Dither.NONE).save(
                PICTURES / f"{name}.png", optimize=True
            )
            print(name)
            page.close()
        browser.close()


def main() -> None:
    """Serve the app over a store of its own, and look at it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MRR_CACHE_DIR"] = f"{folder}/store"
        sys.path.insert(0, str(ROOT))
        import app
        from ui.warming import cache_examples

        demo, bench = app.build()
        app.load(bench)
        cache_examples(bench)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        demo.launch(
            **app.launch_flags(bench), server_port=port, prevent_thread_lock=True, quiet=True
        )
        take(f"http://127.0.0.1:{port}")
        demo.close()
        bench.close()


if __name__ == "__main__":
    main()
