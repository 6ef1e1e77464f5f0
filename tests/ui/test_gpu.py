"""ZeroGPU: the model runs in a forked process, and everything that matters comes back."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest

from cache_db import PageStore
from mrr import MiniReranker, errors
from mrr.config import RerankConfig
from mrr.errors import InputRejected, PageLost
from tests.ui.conftest import png
from ui import explaining
from ui.caching import upload
from ui.examples import Examples
from ui.gpu import SECONDS, Gpu, zero_gpu
from ui.opening import Opening
from ui.session import Settings
from ui.workbench import Workbench


class Spaces(ModuleType):
    """The package's contract: a process forked a call, pickles across, errors by name only."""

    def __init__(self) -> None:
        super().__init__("spaces")
        self.calls: list[tuple[str, int]] = []
        self.durations: list[int] = []

    def GPU(self, task: Any = None, duration: int = 60) -> Any:  # noqa: N802
        if task is None:
            self.durations.append(duration)
            return lambda task: self.GPU(task, duration)

        def call(*args: Any, **kwargs: Any) -> Any:
            context = multiprocessing.get_context("fork")
            ours, theirs = context.Pipe()
            sent = pickle.dumps((args, kwargs))

            def run() -> bytes:
                try:
                    given, named = pickle.loads(sent)
                    return pickle.dumps((os.getpid(), task(*given, **named)))
                except Exception as error:
                    return pickle.dumps((os.getpid(), RuntimeError(type(error).__name__)))

            def child() -> None:
                with ThreadPoolExecutor() as pool:
                    theirs.send_bytes(pool.submit(run).result())

            process = context.Process(target=child, daemon=True)
            process.start()
            assert ours.poll(60), "the forked process hangs"
            pid, value = pickle.loads(ours.recv_bytes())
            process.join()
            self.calls.append((args[0].__name__, pid))
            if isinstance(value, RuntimeError):
                raise value
            return value

        return call


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch) -> Spaces:
    fake = Spaces()
    monkeypatch.setitem(sys.modules, "spaces", fake)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    return fake


@pytest.fixture
def bench(reranker: MiniReranker, spaces: Spaces) -> Workbench:
    opening = Opening(lambda: reranker)
    gpu = Gpu(opening, reranker.store, zero_gpu(), device="cpu")
    return Workbench(opening, reranker.store, Examples(finished=True), run=gpu)


def test_elsewhere_everything_runs_as_it_is(
    spaces: Spaces, reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert zero_gpu() == spaces.GPU
    monkeypatch.delenv("SPACES_ZERO_GPU")
    assert zero_gpu() is None
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert zero_gpu() is None
    here = Gpu(Opening(lambda: reranker), reranker.store)
    assert here(type(reranker).rank, reranker, "blue page").hits == ()
    assert not spaces.calls


def test_pages_are_added_ranked_and_explained_in_forks_with_the_scores_of_no_fork(
    bench: Workbench, spaces: Spaces
) -> None:
    session = bench.session()
    *_, done = upload(bench, session, [(f"{n}.png", png(n)) for n in range(3)], None)
    assert [line.state for line in done.lines] == ["cached"] * 3
    run = bench.rank(session, "blue page")
    assert run.mini.usage.missed_pages == 0, "what a child computed is not in the store"
    explanation = explaining.trace(bench, session)
    lenses = explaining.lenses(bench, session)
    (first, *_) = bench.dense(session, run, "original")
    names = [name for name, _ in spaces.calls]
    assert names == ["add_page"] * 3 + ["rank", "explain", "lenses"] + ["rank"] * 3
    pids = {pid for _, pid in spaces.calls}
    assert os.getpid() not in pids and len(pids) == len(spaces.calls)
    assert spaces.durations == [SECONDS]

    here = bench.base.rank("blue page", scopes=bench.scopes(session))
    assert [(h.page.page_id, h.logit) for h in here] == [
        (h.page.page_id, h.logit) for h in run.mini
    ]
    assert here.usage.missed_pages == 0
    assert explanation.logit == pytest.approx(run.mini[0].logit, abs=1e-4)
    assert session.run is run and explaining.known(session) is explanation
    assert len(lenses) == 3 and first.page.page_id == run.mini[0].page.page_id


def test_other_settings_reach_the_child(bench: Workbench) -> None:
    session = bench.session()
    list(upload(bench, session, [("0.png", png(0))], None))
    config = RerankConfig(keep_ratio=0.2, pruner="uniform")
    session.settings = Settings(config)
    kept = bench.rank(session, "blue page").mini[0]
    assert kept.n_kept_tokens == round(0.2 * kept.n_visual_tokens)


def test_an_error_comes_back_as_itself_and_a_crash_as_a_failure(bench: Workbench) -> None:
    session = bench.session()
    with pytest.raises(InputRejected, match="Type a query"):
        bench.rank(session, "  ")
    with pytest.raises(RuntimeError, match="TypeError"):
        bench.run(type(bench.base).rank, bench.base)  # without a query
    list(upload(bench, session, [("0.png", png(0))], None))
    assert len(bench.rank(session, "blue page").mini) == 1


def test_every_error_survives_pickling() -> None:
    lost = pickle.loads(pickle.dumps(PageLost("abc", "It is gone.")))
    assert (lost.page_id, str(lost)) == ("abc", "It is gone.")
    for kind in (errors.InputRejected, errors.BudgetExceeded, errors.NotFinite):
        assert str(pickle.loads(pickle.dumps(kind("Too much.")))) == "Too much."


def test_forks_amid_the_examples_being_cached_do_not_hang(bench: Workbench) -> None:
    stop = threading.Event()

    def busy() -> None:
        n = 100
        while not stop.is_set():
            bench.base.add((f"{n}.png", png(n)))
            bench.base.rank("blue page", top_k=2)
            n += 1

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        session = bench.session()
        files = [(f"{n}.png", png(n)) for n in range(4)]
        *_, done = upload(bench, session, files, None)
        for _ in range(3):
            assert len(bench.rank(session, "blue page").mini) >= 4
    finally:
        stop.set()
        thread.join()
    assert [line.state for line in done.lines] == ["cached"] * 4
    assert bench.base.store.verify(repair=False).ok


def test_a_store_in_memory_is_served_by_this_process(
    pair: Any, spaces: Spaces, caplog: pytest.LogCaptureFixture
) -> None:
    with PageStore(None) as store:
        engine = MiniReranker.from_pretrained(pair[0], store=store, self_check=False)
        run = Gpu(Opening(lambda: engine), store, zero_gpu())
        assert run(type(engine).add, engine, ("0.png", png(0))).pages
        assert not spaces.calls and "CPU does the work" in caplog.text
        engine.close()
