"""Uploads of an app that crashed go at the next start; those of an app that runs stay."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file

import app as the_app
from cache_db import PageStore
from mrr import MiniReranker
from tests.ui.conftest import HELD_S, PATIENCE_S, free_port, png
from ui.examples import Examples
from ui.session import PUBLIC, new_scope, remove_left_over
from ui.temporary import PREFIX


def _serve(pair: tuple[Path, Path], root: Path, pipe: Connection) -> None:
    """An app with one visitor, who added one page."""
    engine = MiniReranker.from_pretrained(pair[0], store=root, device="cpu", self_check=False)
    scope = new_scope(engine.store.owner)
    engine.add([("mine.png", png(1))], scope=scope)
    pipe.send(scope)
    pipe.recv()


@contextmanager
def another_app(pair: tuple[Path, Path], root: Path) -> Iterator[tuple[str, int]]:
    """(scope of its visitor, process id) of an app that runs until the block ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(pair, root, theirs))
    process.start()
    try:
        assert ours.poll(HELD_S), "the other app did not start"
        scope = ours.recv()
        assert process.pid is not None
        yield scope, process.pid
    finally:
        process.kill()
        process.join()


@pytest.mark.fault
def test_only_the_uploads_of_a_dead_process_are_removed(
    pair: tuple[Path, Path], reranker: MiniReranker, tmp_path: Path
) -> None:
    store = reranker.store
    mine = new_scope(store.owner)
    reranker.add([("example.png", png(0))])
    reranker.add([("here.png", png(2))], scope=mine)
    with another_app(pair, tmp_path / "store") as (theirs, pid):
        assert remove_left_over(store) == 0
        assert set(store.scopes()) == {PUBLIC, mine, theirs}
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while store.alive(theirs.split("-")[1]):
            assert time.monotonic() < deadline, "a dead process passes for alive"
            time.sleep(0.01)
        assert remove_left_over(store) == 1
    assert set(store.scopes()) == {PUBLIC, mine}
    assert store.verify(repair=False).ok


def test_starting_the_app_removes_them_unless_uploads_are_kept(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRR_MODEL", str(pair[0]))
    monkeypatch.setenv("MRR_CACHE_DIR", str(tmp_path))
    dead, ancient = new_scope("0" * 16), "session-" + "a" * 64
    engine = MiniReranker.from_pretrained(pair[0], store=tmp_path, self_check=False)
    for scope in (PUBLIC, "reports-2026", dead, ancient):
        engine.add([("page.png", png(3))], scope=scope)
    engine.close()
    stays = [PUBLIC, "reports-2026"]
    for keep, left in (("", [*stays, dead, ancient]), ("0", stays)):
        monkeypatch.setenv("MRR_KEEP_UPLOADS", keep)
        _, bench = the_app.build(Examples(finished=True))
        assert bench.base.store.scopes() == sorted(left)
        kept = bench.upload_scope(bench.session()) == PUBLIC
        assert kept == (keep == ""), "at home uploads stay, unless they were told not to"
        bench.close()


def test_a_store_knows_who_has_it_open(tmp_path: Path) -> None:
    with PageStore(tmp_path) as first:
        with PageStore(tmp_path) as second:
            assert first.alive(second.owner) and second.alive(first.owner)
            gone = second.owner
        assert not first.alive(gone)
        assert first.scopes() == []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_app_that_is_told_to_end_takes_its_visitors_pages_along(
    pair: tuple[Path, Path], tmp_path: Path, sign: signal.Signals
) -> None:
    port = free_port()
    told = {
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(port),
        "MRR_CACHE_DIR": str(tmp_path / "store"),
        "MRR_MODEL": str(pair[0]),
        "GRADIO_TEMP_DIR": str(tmp_path / "temporary"),
    }
    # As a shell starts it: tests may run where interrupts are ignored.
    start = "import signal; signal.signal(2, signal.default_int_handler); import app; app.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start], cwd=the_app.ROOT, env={**os.environ, **told}
    )
    try:
        file = tmp_path / "mine.png"
        file.write_bytes(png(1))
        client = connected(f"http://127.0.0.1:{port}")
        added = client.predict([handle_file(str(file))], "", api_name="/add")
        assert [page["label"] for page in added["pages"]] == ["mine.png"]
        with PageStore(tmp_path / "store") as store:
            assert any(scope.startswith("session-") for scope in store.scopes())
        process.send_signal(sign)
        assert process.wait(HELD_S) == 0
        assert not list((tmp_path / "temporary").glob(f"{PREFIX}*"))
        with PageStore(tmp_path / "store") as store:
            assert not any(scope.startswith("session-") for scope in store.scopes())
    finally:
        process.kill()
        process.wait()


def connected(address: str) -> Client:
    """A client of an app that is just starting."""
    deadline = time.monotonic() + HELD_S
    while True:
        try:
            return Client(address, verbose=False)
        except (OSError, ValueError, httpx.HTTPError):
            assert time.monotonic() < deadline, "the app did not start"
            time.sleep(0.2)
