"""Many visitors at once, and for a long time: nobody is lost or mixed up, and nothing grows."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cache_db import PageStore
from mrr import MiniReranker
from tests.ui.conftest import N_PAGES, Running, png, uploaded
from ui import explaining
from ui.caching import read_uploads, upload
from ui.examples import Examples
from ui.layout import build_ui
from ui.opening import Opening
from ui.session import Session
from ui.workbench import Workbench

pytestmark = pytest.mark.slow
KB, MB = 1024, 2**20
N_SESSIONS, N_ASKED = 64, 2
N_REQUESTS, SAMPLED_EVERY, WARM_UP = 500, 25, 150
N_VISITORS, N_FILES = 40, 5
BUDGET = 4 * MB


class Visitor:
    """One session over Gradio's own protocol: a client library for each would cost more than it."""

    def __init__(self, http: httpx.AsyncClient, name: str, functions: dict[str, int]) -> None:
        self.http, self.name, self.functions = http, name, functions

    async def call(self, endpoint: str, *data: object) -> dict[str, Any]:
        """The answer of a named endpoint, through the queue; the last input is the state."""
        body = {
            "data": [*data, None],
            "fn_index": self.functions[endpoint],
            "session_hash": self.name,
        }
        joined = await self.http.post("/gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        listening = {"session_hash": self.name}
        async with self.http.stream("GET", "/gradio_api/queue/data", params=listening) as lines:
            async for line in lines.aiter_lines():
                message = json.loads(line.removeprefix("data:") or "{}")
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return dict(message["output"]["data"][0])
        raise AssertionError("the answer never came")

    async def upload(self, name: str, data: bytes) -> dict[str, object]:
        """A file as an endpoint takes it."""
        sent = await self.http.post("/gradio_api/upload", files={"files": (name, data)})
        return {
            "path": sent.json()[0],
            "orig_name": name,
            "meta": {"_type": "gradio.FileData"},
        }


async def visit(http: httpx.AsyncClient, n: int, functions: dict[str, int]) -> set[str]:
    """Names of the pages that the nth of many sessions is shown, with one page of its own."""
    visitor = Visitor(http, f"visitor{n}", functions)
    file = await visitor.upload(f"canary-{n}.png", png(1000 + n))
    added = await visitor.call("add", [file], "")
    assert [page["label"] for page in added["pages"]] == [f"canary-{n}.png"]
    seen = set()
    for asked in range(N_ASKED):
        answer = await visitor.call("rank", f"query {n} {asked}", 100, "mini")
        assert answer["query"] == f"query {n} {asked}"
        seen |= {hit["label"] for hit in answer["results"]}
    return seen


def test_64_sessions_at_once_are_all_answered_each_with_its_own_pages(running: Running) -> None:
    async def everybody() -> list[set[str]]:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=running.url, timeout=300, limits=limits) as http:
            config = (await http.get("/config")).json()
            functions = {each["api_name"]: each["id"] for each in config["dependencies"]}
            return await asyncio.gather(*(visit(http, n, functions) for n in range(N_SESSIONS)))

    # In a thread: after browser tests, Playwright's event loop is running in this one.
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(asyncio.run, everybody()).result()
    for n, seen in enumerate(answers):
        assert len(seen) == N_PAGES + 1
        assert {name for name in seen if "canary" in name} == {f"canary-{n}.png"}


def resident() -> int:
    """Bytes of this process in memory, without what it has freed and keeps for later."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_memory_does_not_grow_with_the_visitors_that_come_and_go(running: Running) -> None:
    bench = running.bench
    samples: list[tuple[int, int]] = []
    for n in range(N_REQUESTS):
        session = bench.session()
        if n % 10 == 0:
            list(upload(bench, session, [(f"{n}.png", png(2000 + n))], None))
        bench.rank(session, f"query {n}")
        if n % 10 == 0:
            explaining.trace(bench, session)
        session.end()
        bench.remove_scope(session.scope)
        if n >= WARM_UP and n % SAMPLED_EVERY == 0:
            samples.append((n, resident()))
    slope = np.polyfit(*zip(*samples, strict=True), 1)[0]
    assert slope < 20 * KB, f"{slope / KB:.0f} KB a request: {samples}"
    assert samples[-1][1] - samples[0][1] < 100 * MB


@pytest.fixture
def narrow(pair: tuple[Path, Path], tmp_path: Path) -> Iterator[Workbench]:
    """An app on a store of 4 MiB."""
    store = PageStore(tmp_path / "store", budget_bytes=BUDGET)
    engine = MiniReranker.from_pretrained(pair[0], store=store, device="cpu", self_check=False)
    bench = Workbench(Opening(lambda: engine), store, Examples(finished=True))
    yield bench
    bench.close()


def noise(seed: int) -> bytes:
    """About 100 KB that no format makes smaller."""
    pixels = np.random.default_rng(seed).integers(0, 256, (180, 190, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_disk_stays_within_the_budget_whatever_is_uploaded(
    narrow: Workbench, tmp_path: Path, uploads: Path
) -> None:
    files = tmp_path / "store/files"
    stays: list[Session] = []
    outcomes: Counter[str] = Counter()
    for visitor in range(N_VISITORS):
        session = narrow.session()
        paths = [
            uploaded(uploads, f"{n}.png", noise(visitor * N_FILES + n)) for n in range(N_FILES)
        ]
        given = read_uploads(narrow, session, list(map(str, paths)))
        for step in upload(narrow, session, given, None):
            lines = step.lines
            assert disk(files) <= BUDGET
        outcomes.update(line.state for line in lines)
        assert all(line.reason for line in lines if line.state == "failed")
        if visitor % 3:
            narrow.remove_scope(session.scope)
        else:
            stays.append(session)
        assert not list(uploads.iterdir()), "what Gradio received is still there"
    assert outcomes["cached"] > 20 and outcomes["failed"] > 20, outcomes
    assert len(narrow.rank(stays[0], "noise").mini) == N_FILES
    for session in stays:
        narrow.remove_scope(session.scope)
    assert disk(files) == 0
    assert build_ui(narrow).delete_cache == (3600, 3600), "what Gradio itself keeps goes in an hour"


def test_an_app_that_nobody_uses_looks_for_work_a_hundred_times_a_second(running: Running) -> None:
    assert running.demo._queue.sleep_when_free == 0.01
