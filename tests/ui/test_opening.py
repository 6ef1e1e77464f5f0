"""Before the model is loaded: what can be seen, what waits, and what happens where it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from playwright.sync_api import Browser, Page, expect

import app as the_app
from mrr import MiniReranker
from mrr.errors import InputRejected
from tests.ui.conftest import HELD_S, N_PAGES, PATIENCE_S, SAMPLES, launch, patient, pdf
from ui.examples import load_examples
from ui.handlers import Handlers
from ui.opening import Opening
from ui.views import start
from ui.warming import cache_examples, recognise_examples, start_examples
from ui.workbench import Workbench


class CountedLock:
    """A lock that knows how many have come to it, those that wait included."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock, self._come = lock, threading.Semaphore(0)

    def __enter__(self) -> None:
        self._come.release()
        self._lock.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)

    def wait_for(self, n: int) -> None:
        """Until so many have come."""
        for _ in range(n):
            assert self._come.acquire(timeout=PATIENCE_S)


N_ASKING = 8


def opening_asked_by_all(outcome: Callable[[], Any]) -> tuple[Opening, list[None]]:
    """Its load ends when all who ask are at the lock; (it, one entry for each load)."""
    loads: list[None] = []

    def load() -> Any:
        if not loads:
            lock.wait_for(N_ASKING)
        loads.append(None)
        return outcome()

    opening = Opening(load)
    lock: Any = CountedLock(opening._lock)
    opening._lock = lock
    return opening, loads


def test_the_model_is_loaded_once_however_many_ask_for_it() -> None:
    opening, loads = opening_asked_by_all(object)
    assert not opening.done
    with ThreadPoolExecutor(N_ASKING) as pool:
        given = set(pool.map(lambda _: opening(), range(N_ASKING)))
    assert len(given) == len(loads) == 1 and opening.done


def test_a_failure_is_told_to_everybody_who_asks_after_one_attempt() -> None:
    def fails() -> None:
        raise InputRejected("No such folder.")

    opening, loads = opening_asked_by_all(fails)
    with ThreadPoolExecutor(N_ASKING) as pool:
        asked = [pool.submit(opening) for _ in range(N_ASKING)]
    assert {str(each.exception()) for each in asked} == {"No such folder."}
    assert len(loads) == 1 and not opening.done


def test_the_app_is_built_without_torch(tmp_path: Path) -> None:
    code = "import sys, app; app.build(); sys.exit('torch' in sys.modules)"
    store = {"MRR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **store}, cwd=the_app.ROOT, check=False
    )
    assert done.returncode == 0


def test_a_setting_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    own = {"MRR_CACHE_DIR": str(tmp_path), "GRADIO_TEMP_DIR": str(tmp_path)}
    wrong = {**own, "MRR_MAX_FILE_MB": "large"}
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=the_app.ROOT,
        env={**os.environ, **wrong},
        capture_output=True,
        text=True,
        timeout=HELD_S,
    )
    assert done.returncode == 1 and done.stderr.startswith(
        "MRR_MAX_FILE_MB is 'large'; it is a number"
    )
    assert done.stderr.count("\n") == 1


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
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "The app cannot start. " in done.stderr and "Traceback" not in done.stderr


def test_what_is_still_to_be_cached_is_said_until_it_is(
    reranker: MiniReranker, corpus: Path
) -> None:
    opening = Opening(lambda: reranker)
    opening()
    some, everything = load_examples(corpus), load_examples(corpus)
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
    reranker: MiniReranker, corpus: Path
) -> None:
    opening = Opening(lambda: reranker)
    opening()
    examples = load_examples(corpus)
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
    reranker: MiniReranker, corpus: Path
) -> None:
    opening = Opening(lambda: reranker)
    examples = load_examples(corpus)
    bench, views = Workbench(opening, reranker.store, examples), MagicMock()
    handlers = Handlers(bench, views)
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
    pair: tuple[Path, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, threading.Event, Any]]:
    """(url, event, bench) of an app started a second time, whose model comes with the event."""
    for name, value in {
        "MRR_MODEL": str(pair[0]),
        "MRR_EMBEDDER": str(pair[1]),
        "MRR_CACHE_DIR": str(tmp_path / "store"),
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
    }.items():
        monkeypatch.setenv(name, value)
    _, earlier = the_app.build(load_examples(corpus))
    cache_examples(earlier)
    earlier.close()
    come, load = threading.Event(), MiniReranker.from_pretrained

    def late(*args: Any, **kwargs: Any) -> MiniReranker:
        assert come.wait(HELD_S)
        return load(*args, **kwargs)

    monkeypatch.setattr(MiniReranker, "from_pretrained", late)
    demo, bench = the_app.build(load_examples(corpus))
    url = launch(demo, **the_app.launch_flags(bench))
    recognise_examples(bench)
    yield url, come, bench
    come.set()
    demo.close()
    bench.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    context = patient(browser.new_context())
    yield context.new_page()
    context.close()


@pytest.mark.browser
def test_the_pages_are_there_before_the_model_and_a_query_waits_for_it(
    gate: tuple[str, threading.Event, Any], tab: Page
) -> None:
    url, come, bench = gate
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


@pytest.mark.browser
def test_an_upload_before_the_model_lists_its_pages_and_goes_on_with_it(
    gate: tuple[str, threading.Event, Any], tab: Page
) -> None:
    url, come, _ = gate
    tab.goto(url)
    tab.get_by_role("tab", name="Pages").click()
    files = {"name": "two.pdf", "mimeType": "application/pdf", "buffer": pdf(70, 71)}
    tab.locator("#files input[type=file]").set_input_files(files)  # type: ignore[arg-type]
    expect(tab.locator("#progress")).to_contain_text("two.pdf p. 1")
    expect(tab.locator("#progress")).to_contain_text("0 pages in, 2 to go")
    come.set()
    expect(tab.locator("#progress")).to_contain_text("2 pages in")
