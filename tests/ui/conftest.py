"""The real app over tiny random checkpoints and a corpus of six pages, and a browser to use it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import app as the_app
from tests.tiny import picture, save_checkpoint
from ui.examples import load_examples
from ui.warming import cache_examples
from ui.workbench import Workbench

SAMPLES = ("blue harbour", "tram timetable", "winter garden")
N_PAGES = 6
T = TypeVar("T")
# A machine may stall for seconds. Nobody waits so long where a test passes.
PATIENCE_S = 60
HELD_S = 300  # what a test holds back until it has looked, maybe at several things

expect.set_options(timeout=1000 * PATIENCE_S)


def png(seed: int) -> bytes:
    """A page of 7 x 5 tokens, different for each seed."""
    buffer = io.BytesIO()
    picture(seed, (160, 224)).save(buffer, "PNG")
    return buffer.getvalue()


def free_port() -> int:
    """A port of this machine that nobody has at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launch(demo: gr.Blocks, **flags: Any) -> str:
    """Serve it on a free port of this machine, and return its address.

    Gradio gives up where its own first request is not answered within 3 s, or where another
    process took the port meanwhile: then it is tried again, at another port.
    """
    for tries_left in (2, 1, 0):
        port = free_port()
        try:
            demo.launch(**flags, server_port=port, prevent_thread_lock=True, quiet=True)
            break
        except (OSError, ValueError):
            demo.close(verbose=False)
            if not tries_left:
                raise
    return f"http://127.0.0.1:{port}"


def patient(context: BrowserContext) -> BrowserContext:
    """A context of the browser in which nothing fails because the machine stalls."""
    context.set_default_timeout(1000 * PATIENCE_S)
    return context


def pdf(*seeds: int) -> bytes:
    """A PDF with such a page for each seed."""
    buffer = io.BytesIO()
    first, *rest = (picture(seed, (160, 224)) for seed in seeds)
    first.save(buffer, "PDF", save_all=True, append_images=rest)
    return buffer.getvalue()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Its outcome, from an event loop of its own: one of the browser may go on in this thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def uploaded(folder: Path, name: str, data: bytes | None = None) -> Path:
    """Where an upload lies that Gradio has received; without data it has gone since."""
    path = folder / secrets.token_hex(16) / name
    path.parent.mkdir(parents=True)
    if data is not None:
        path.write_bytes(data)
    return path


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gradio's folder."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return tmp_path / "gradio"


def make_corpus(folder: Path) -> Path:
    """Six pages, three queries and their labels, in the format of assets/examples."""
    (folder / "pages").mkdir(parents=True)
    rows = []
    for n in range(N_PAGES):
        picture(n, (160, 224)).save(folder / f"pages/doc-{n}.png")
        rows.append({"page_id": f"doc#{n}", "file": f"pages/doc-{n}.png", "title": f"Document {n}"})
    queries = [{"query_id": f"q{n}", "query": text} for n, text in enumerate(SAMPLES)]
    for name, lines in (("corpus", rows), ("queries", queries)):
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    (folder / "qrels.tsv").write_text("q0\t0\tdoc#1\t1\nq0\t0\tdoc#2\t0\n", "utf-8")
    chosen = {"query_ids": ["q0", "q1", "q2"], "known_failure": "q2"}
    (folder / "samples.json").write_text(json.dumps(chosen), "utf-8")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder. What is loaded from it notes how far an app has come: each loads its own."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "examples")


@dataclass(frozen=True)
class Running:
    """The app as it is served."""

    url: str
    demo: gr.Blocks
    bench: Workbench
    store: Path
    uploads: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Running]:
    """app.py's own build() and launch_flags(), on a free port of this machine."""
    root = tmp_path_factory.mktemp("app")
    settings = {
        "MRR_MODEL": str(save_checkpoint(root / "tiny-reranker", seed=0)),
        "MRR_EMBEDDER": str(save_checkpoint(root / "tiny-embedder", seed=1)),
        "MRR_CACHE_DIR": str(root / "store"),
        "MRR_KEEP_UPLOADS": "0",
        "GRADIO_TEMP_DIR": str(root / "gradio"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        # Sessions that tests make themselves are of nobody whom Gradio knows.
        patch.setattr("ui.visits.SWEEP_S", 1e6)
        demo, bench = the_app.build(load_examples(corpus))
        cache_examples(bench)
        url = launch(demo, **the_app.launch_flags(bench))
        yield Running(url, demo, bench, root / "store", root / "gradio")
        demo.close()
        bench.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or playwright.chromium.executable_path
        if not Path(chromium).exists() and not os.environ.get("CI"):
            pytest.skip("no Chromium on this machine")
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"], timeout=1000 * HELD_S
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(
    browser: Browser, running: Running, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Page]]:
    """Opens the app as a new visitor; fails where the browser or the server saw an error."""
    said: list[str] = []
    contexts: list[BrowserContext] = []

    def opened(width: int = 1280, theme: str = "light") -> Page:
        context = patient(browser.new_context(viewport={"width": width, "height": 900}))
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
        page.goto(f"{running.url}/?__theme={theme}")
        page.wait_for_selector("#gallery .mrr-page")
        page.wait_for_selector("#apply:enabled", state="attached")
        page.wait_for_function("document.querySelector('#header').innerText.includes('exit')")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not said, said
    assert "Traceback" not in (errors := capfd.readouterr().err), errors


@pytest.fixture
def tab(visit: Callable[..., Page]) -> Page:
    """One visitor with a wide screen."""
    return visit()
