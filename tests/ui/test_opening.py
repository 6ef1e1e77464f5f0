"""Before the model is loaded: what can be seen, what waits, and what happens where it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from playwright.sync_api import Browser, expect

import app as the_app
from mrr import MiniReranker
from mrr.errors import InputRejected
from tests.ui.conftest import N_PAGES, SAMPLES, free_port, pdf
from ui.examples import Examples, load_examples
from ui.handlers import Handlers
from ui.opening import Opening
from ui.session import Tabs
from ui.views import start
from ui.warming import cache_examples, recognise_examples, start_examples
from ui.workbench import Workbench

expect.set_options(timeout=30_000)


def test_the_model_is_loaded_once_however_many_ask_for_it() -> None:
    loads: list[object] = []

    def load() -> Any:
        time.sleep(0.05)
        loads.append(object())
        return loads[-1]

    opening = Opening(load)
    assert not opening.done
    with ThreadPoolExecutor(8) as pool:
        given = set(pool.map(lambda _: opening(), range(8)))
    assert given == set(loads) and len(loads) == 1 and opening.done


def test_a_failure_is_told_to_everybody_who_asks_after_one_attempt() -> None:
    loads: list[None] = []

    def load() -> Any:
        time.sleep(0.05)
        loads.append(None)
        raise InputRejected("No such folder.")

    opening = Opening(load)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(opening) for _ in range(8)]
    assert {str(each.exception()) for each in asked} == {"No such folder."}
    assert len(loads) == 1 and not opening.done


def test_the_app_is_built_without_torch(tmp_path: Path) -> None:
    code = "import sys, app; app.build(); sys.exit('torch' in sys.modules)"
    store = {"MRR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **store}, cwd=the_app.ROOT, check=False
    )
    assert done.returncode == 0


def test_an_app_whose_model_is_missing_says_so_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "app.py"],
        env={
            **os.environ,
            "MRR_MODEL": str(tmp_path / "gone"),
            "MRR_CACHE_DIR": str(tmp_path / "store"),
        },
        cwd=the_app.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "The app cannot start. " in done.stderr and "Traceback" not in done.stderr


def test_what_is_still_to_be_cached_is_said_until_it_is(
    reranker: MiniReranker, corpus: Examples
) -> None:
    folder, opening = corpus.pages[0].file.parents[1], Opening(lambda: reranker)
    opening()
    some, everything = load_examples(folder), load_examples(folder)
    some.pages = some.pages[:2]
    bench = Workbench(opening, reranker.store, everything)
    assert f"0 of {N_PAGES} example pages are cached" in start.still_caching(bench)
    cache_examples(Workbench(opening, reranker.store, some))
    recognise_examples(bench)
    assert f"2 of {N_PAGES} example pages are cached" in start.still_caching(bench)
    assert f"Caching the example pages: 2 of {N_PAGES}." in start.warming(bench)
    cache_examples(bench)
    assert start.still_caching(bench) == start.warming(bench) == ""


def test_when_all_examples_are_known_there_is_something_new_to_draw(
    reranker: MiniReranker, corpus: Examples
) -> None:
    opening = Opening(lambda: reranker)
    opening()
    examples = load_examples(corpus.pages[0].file.parents[1])
    bench = Workbench(opening, reranker.store, examples)
    cache_examples(bench)
    examples.finished, done = False, examples.steps
    page = reranker.store.pages(["public"])[0]
    examples.page_ids.pop(next(key for key, i in examples.page_ids.items() if i == page.page_id))
    assert not bench.removable(page) and examples.steps < done
    before = examples.steps
    examples.finished = True
    assert bench.removable(page) and examples.steps > before


def test_a_query_waits_for_the_first_example_page_where_there_is_none(
    reranker: MiniReranker, corpus: Examples
) -> None:
    opening = Opening(lambda: reranker)
    examples = load_examples(corpus.pages[0].file.parents[1])
    bench, views = Workbench(opening, reranker.store, examples), MagicMock()
    handlers = Handlers(bench, Tabs(lambda scope: None), views)
    handlers.detail = MagicMock(**{"shown.return_value": {}})
    session = bench.session()
    steps = handlers.rank(SAMPLES[0], "List", False, session)
    assert "The model is being loaded" in next(steps)[views.ranking.summary]
    assert "first example page is being read" in next(steps)[views.ranking.summary]
    thread = start_examples(bench)
    (*_, shown) = steps
    thread.join()
    assert session.run is not None and len(session.run.mini) >= 1
    assert SAMPLES[0] in shown[views.ranking.summary]


@pytest.fixture
def gate(
    pair: tuple[Path, Path], corpus: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, threading.Event, Any]]:
    """(url, event, bench) of an app started a second time, whose model comes with the event."""
    for name, value in {
        "MRR_MODEL": str(pair[0]),
        "MRR_EMBEDDER": str(pair[1]),
        "MRR_CACHE_DIR": str(tmp_path / "store"),
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
    }.items():
        monkeypatch.setenv(name, value)
    folder = corpus.pages[0].file.parents[1]
    _, earlier = the_app.build(load_examples(folder))
    cache_examples(earlier)
    earlier.close()
    come, load = threading.Event(), MiniReranker.from_pretrained

    def late(*args: Any, **kwargs: Any) -> MiniReranker:
        assert come.wait(60)
        return load(*args, **kwargs)

    monkeypatch.setattr(MiniReranker, "from_pretrained", late)
    demo, bench = the_app.build(load_examples(folder))
    port = free_port()
    demo.launch(**the_app.launch_flags(), server_port=port, prevent_thread_lock=True, quiet=True)
    recognise_examples(bench)
    yield f"http://127.0.0.1:{port}", come, bench
    come.set()
    demo.close()
    bench.close()


@pytest.mark.browser
def test_the_pages_are_there_before_the_model_and_a_query_waits_for_it(
    gate: tuple[str, threading.Event, Any], browser: Browser
) -> None:
    url, come, bench = gate
    tab = browser.new_page()
    tab.goto(url)
    expect(tab.locator("#header")).to_contain_text("is being loaded")
    expect(tab.locator("#gallery h2")).to_have_text(f"{N_PAGES} pages stored at an earlier start")
    expect(tab.locator("#gallery .mrr-page")).to_have_count(N_PAGES)
    expect(tab.locator("#apply")).to_be_disabled()
    tab.locator("#samples .mrr-chip", has_text=SAMPLES[0]).click()
    expect(tab.locator("#summary")).to_contain_text("The model is being loaded")
    assert not bench.opening.done
    come.set()
    expect(tab.locator("#took")).to_be_visible(timeout=30_000)
    expect(tab.locator("#summary")).to_contain_text(f"{N_PAGES} pages ranked for “{SAMPLES[0]}”")
    expect(tab.locator("#summary")).not_to_contain_text("so far")
    expect(tab.locator("[data-event=tick][aria-pressed=true]")).to_have_count(1)
    expect(tab.locator("#header")).to_contain_text("model reranker")
    config = bench.base.config
    tab.locator(".sidebar .toggle-button").click()
    for switch, layer in (("exit-layer", config.exit_layer), ("band-end", config.band[1])):
        slider = tab.locator(f"#{switch} input[type=range]")
        expect(slider).to_have_value(str(layer - 1))
        expect(slider).to_have_attribute("max", str(bench.base.loaded.n_layers - 1))
    expect(tab.locator("#apply")).to_be_enabled()
    tab.close()


@pytest.mark.browser
def test_an_upload_before_the_model_lists_its_pages_and_goes_on_with_it(
    gate: tuple[str, threading.Event, Any], browser: Browser
) -> None:
    url, come, _ = gate
    tab = browser.new_page()
    tab.goto(url)
    tab.get_by_role("tab", name="Pages").click()
    files = {"name": "two.pdf", "mimeType": "application/pdf", "buffer": pdf(70, 71)}
    tab.locator("#files input[type=file]").set_input_files(files)  # type: ignore[arg-type]
    expect(tab.locator("#progress")).to_contain_text("two.pdf p. 1")
    expect(tab.locator("#progress")).to_contain_text("0 pages in, 2 to go")
    come.set()
    expect(tab.locator("#progress")).to_contain_text("2 pages in", timeout=30_000)
    tab.close()
