"""The three systems timed in one run: the same weights, page and query.

`original` is the stock forward pass per pair, `dense + reuse` keeps full-depth page K/V. Times are
medians of repeats. The two cached systems take turns, so that a slow minute hits both; `original`,
which takes minutes a page on a CPU, is timed once before them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cache_db.store import PageStore
from mrr.build import Parts, trained_config
from mrr.config import Pruner, RerankConfig
from mrr.measure.bare import bare_band
from mrr.measure.bench_report import BenchReport, SystemResult
from mrr.measure.cost import Costs, Workload, embedding
from mrr.measure.machine import describe
from mrr.measure.spread import Spread, spread
from mrr.model.embedder import Embedder
from mrr.model.graphs import graphs_for
from mrr.model.kv import KVPage, lossless, pack, unpack
from mrr.model.load import LoadedModel
from mrr.model.prompt import PromptEncoder
from mrr.model.scorer import Scorer
from mrr.model.vision import Sight
from mrr.prune import kept_tokens
from mrr.resident import resident_for
from mrr.systems import original_batch
from mrr.timing import Stages

# 36 x 28 tokens of 32 x 32 pixels: about the 1,000 visual tokens of a page.
PAGE_SIZE = (896, 1152)
_QUERY_TOKENS = 25
# A shape runs once as it is, is captured when it comes again, and only replayed from then on.
_CALLS_TO_A_REPLAY = 3

Task = Callable[[Stages], object]


@dataclass(frozen=True, slots=True)
class _Contest:
    """Both cached systems with two pages each, and what was timed before they take turns."""

    mini: Scorer
    dense: Scorer
    embedder: Embedder | None
    query: str
    mini_pages: list[KVPage]
    dense_pages: list[KVPage]
    caching: list[float]
    original: list[float]

    @property
    def loaded(self) -> LoadedModel:
        return self.mini.loaded


def run_bench(
    parts: Parts,
    top_ks: list[int],
    repeats: int,
    original_repeats: int,
    folder: Path | None = None,
    *,
    graphs: bool = True,
) -> list[BenchReport]:
    """One report for each number of candidates; pages are encoded once for all.

    folder: where a temporary store for `mini` goes; None keeps its K/V in memory. graphs: CUDA
    graphs where the engine would use them.
    """
    progress = tqdm(file=sys.stderr, unit="step", disable=None)
    contest = _prepare(parts, original_repeats, graphs, progress)
    reports = []
    for k in top_ks:
        times, replayed = _take_turns(contest, k, repeats, folder, progress)
        reports.append(_report(contest, k, times, replayed))
    return reports


def _prepare(parts: Parts, original_repeats: int, graphs: bool, progress: tqdm) -> _Contest:
    """Encode two pages for each of the cached systems, and time `original` on one of them."""
    loaded = parts.loaded
    encoder = PromptEncoder(loaded.tokenizer, parts.template)
    pruner: Pruner = "uniform" if parts.embedder is None else "embedder"
    config = trained_config(loaded, RerankConfig(pruner=pruner)).resolve(loaded.n_layers)
    held = graphs_for(loaded) if graphs else None
    full = config.dense(loaded.n_layers, lossless(loaded.dtype))
    mini, dense = (Scorer(loaded, encoder, each, graphs=held) for each in (config, full))
    query, n = _query(mini), original_batch(loaded.device)
    noise = np.random.default_rng(0)
    pictures = [
        Image.fromarray(noise.integers(0, 256, (*PAGE_SIZE[::-1], 3), dtype=np.uint8)) for _ in "ab"
    ]

    def score_original(stages: Stages) -> None:
        dense.score_original([query] * n, [dense.preprocess(pictures[0])] * n, stages)

    if loaded.device.type == "cuda":  # the first page of a process also loads kernels
        first = mini.sight(pictures[0], Stages(loaded.device))
        for each in (mini, dense):
            each.encode(first, np.arange(first.pixels.n_tokens), Stages(loaded.device))
        score_original(Stages(loaded.device))
    mini_pages, dense_pages, caching = [], [], []
    for picture in pictures:
        stages = Stages(loaded.device)
        sight = mini.sight(picture, stages)
        importance = None if parts.embedder is None else _importance(parts.embedder, sight, stages)
        kept = kept_tokens(pruner, config.keep_ratio, sight.pixels.grid, importance=importance)
        mini_pages.append(mini.encode(sight, kept, stages))
        caching.append(sum(stages.ms.values()))
        progress.update()
        everything = np.arange(sight.pixels.n_tokens)
        dense_pages.append(dense.encode(sight, everything, Stages(loaded.device)))
        progress.update()
    original = []
    for _ in range(original_repeats):
        original.append(_milliseconds(score_original, loaded) / n)
        progress.update()
    return _Contest(mini, dense, parts.embedder, query, mini_pages, dense_pages, caching, original)


def _importance(embedder: Embedder, sight: Sight, stages: Stages) -> np.ndarray:
    own = sight.by(embedder.loaded)
    with stages("embed"):
        return embedder.embed_page(own.pixels, own.visual)[1]


def _take_turns(
    contest: _Contest, k: int, repeats: int, folder: Path | None, progress: tqdm
) -> tuple[dict[str, list[float]], bool]:
    """Milliseconds of mini, dense and bare over k candidates; whether all were CUDA graphs."""
    loaded, mini, dense, query = contest.loaded, contest.mini, contest.dense, contest.query
    pages = [contest.mini_pages[i % 2] for i in range(k)]
    dense_pages = [contest.dense_pages[i % 2] for i in range(k)]
    if loaded.device.type == "cuda":  # else its caches would hold what many pages do not share
        dense_pages = [page.expanded(loaded.dtype) for page in dense_pages]
    with _temporary_store(folder) as store:
        load = _loader(store, pages, loaded)

        def whole(stages: Stages) -> None:
            reading = mini.read([query], stages)
            with stages("load"):
                there = load()
            mini.score_read(reading, there, stages)

        tasks: dict[str, Task] = {
            "mini": whole,
            "dense": lambda stages: dense.score([query], dense_pages, stages),
            "bare": bare_band(mini, query, pages),
        }
        for task in tasks.values():  # warm up
            for _ in range(1 if mini.graphs is None else _CALLS_TO_A_REPLAY):
                task(Stages(loaded.device))
        times: dict[str, list[float]] = {name: [] for name in tasks}
        before = 0 if mini.graphs is None else mini.graphs.n_replays
        for _ in range(repeats):
            for name, task in tasks.items():
                times[name].append(_milliseconds(task, loaded))
                progress.update()
    # Each of both systems is at least two graphs a query.
    replayed = mini.graphs is not None and mini.graphs.n_replays - before >= 4 * repeats
    return times, replayed


def _loader(
    store: PageStore, pages: list[KVPage], loaded: LoadedModel
) -> Callable[[], list[KVPage]]:
    """Put pages into a store; what reads them as the engine does.

    That is from the accelerator, or else from the store.
    """
    keys = [f"{i}" for i in range(len(pages))]
    for key, page in zip(keys, pages, strict=True):
        store.put(key, "", *pack(page))
    resident = resident_for(loaded.device)

    def load() -> list[KVPage]:
        held = {} if resident is None else resident.get_many(keys)
        if len(held) < len(keys):
            missing = [key for key in keys if key not in held]
            for key, entry in store.get_many(missing).items():
                held[key] = unpack(entry.tensors, entry.meta, loaded.device)
                if resident is not None:
                    held[key] = held[key].expanded(loaded.dtype)
                    resident.put(key, "", held[key])
            if resident is not None:
                torch.cuda.current_stream(loaded.device).synchronize()
        return [held[key] for key in keys]

    return load


@contextmanager
def _temporary_store(folder: Path | None) -> Iterator[PageStore]:
    """In memory; or in a folder within `folder`, and then always read from its files."""
    if folder is None:
        with PageStore(None, memory_bytes=8 * 2**30) as store:
            yield store
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder) as inside,
        PageStore(Path(inside), memory_bytes=0) as store,
    ):
        yield store


def _report(
    contest: _Contest, k: int, times: dict[str, list[float]], replayed: bool
) -> BenchReport:
    """What was timed, with what it costs by arithmetic."""
    loaded, mini, page = contest.loaded, contest.mini, contest.mini_pages[0]
    prompt, n_visual = mini.prompt(contest.query, 1), page.grid[0] * page.grid[1]
    work = Workload(
        n_patches=n_visual * loaded.image_processor.merge_size**2,
        n_visual=n_visual,
        n_kept=len(page.kept),
        n_text=len(prompt.prefix) - 1,
        n_suffix=len(prompt.suffix),
    )
    costs, machine = Costs(loaded, mini.config), describe(loaded)
    original, dense, fast, bare, caching = (
        spread(ms)
        for ms in (contest.original, times["dense"], times["mini"], times["bare"], contest.caching)
    )
    turns = zip(times["mini"], times["bare"], strict=True)
    dense_bytes = contest.dense_pages[0].nbytes
    assert mini.config.band is not None and mini.config.exit_layer is not None
    return BenchReport(
        model=loaded.name,
        device=machine.device_name,
        dtype=machine.dtype,
        threads=machine.n_threads,
        n_visual_tokens=work.n_visual,
        n_kept_tokens=work.n_kept,
        n_suffix_tokens=work.n_suffix,
        band=mini.config.band,
        exit_layer=mini.config.exit_layer,
        systems=[
            _result("original", 1, original, costs.original(work), 0),
            _result("dense + reuse", k, dense, costs.dense_reuse(work, k), dense_bytes),
            _result("mini", k, fast, costs.mini(work, k), page.nbytes),
        ],
        caching_ms=caching,
        caching_flops=costs.caching(work) + embedding(contest.embedder, loaded, work),
        bare_ms=bare,
        engine_overhead=spread([a / b - 1 for a, b in turns]),
        graphs=replayed,
    )


def _result(system: str, k: int, timing: Spread, flops: float, nbytes: int) -> SystemResult:
    return SystemResult(system, k, timing, timing.median / k, flops, nbytes)


def _milliseconds(task: Task, loaded: LoadedModel) -> float:
    """Of one whole call."""
    clock = Stages(loaded.device)
    with clock("all"):
        task(Stages(loaded.device))
    return clock.ms["all"]


def _query(scorer: Scorer) -> str:
    """A query whose whole second segment has 25 tokens, or as few more as the template needs."""
    query = "a"
    while len(scorer.prompt(query, 1).suffix) < _QUERY_TOKENS:
        query += " a"
    return query
