"""`mrr bench`: the three systems on one machine in one run, at real dimensions.

What is compared: `original` (stock forward pass per pair), `dense + reuse` (full-depth page K/V
kept), `mini`. Times are medians of repeats. The two cached systems take turns, so that a slow
minute hits both; `original`, which takes minutes a page on a CPU, is timed once before them.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.core import ParameterSource
from PIL import Image
from tqdm import tqdm

from cache_db.store import PageStore
from mrr.build import Parts, load_parts, trained_config
from mrr.cli import engine_options
from mrr.config import Pruner, RerankConfig, layer_range
from mrr.measure.bare import bare_band
from mrr.measure.cost import Costs, Workload
from mrr.measure.memory import PeakMemory, peak_memory
from mrr.measure.random_model import DIMENSIONS, random_model
from mrr.measure.spread import spread
from mrr.model.embedder import Embedder
from mrr.model.graphs import graphs_for
from mrr.model.kv import KVPage, lossless, pack, unpack
from mrr.model.load import LoadedModel, pick_device
from mrr.model.prompt import PromptEncoder, template_for
from mrr.model.scorer import Scorer
from mrr.model.vision import Sight
from mrr.prune import kept_tokens
from mrr.resident import resident_for
from mrr.systems import original_batch
from mrr.timing import Stages

# 36 x 28 tokens of 32 x 32 pixels: about the 1,000 visual tokens of a page.
_PAGE = (896, 1152)
_QUERY_TOKENS = 25
# A shape runs once as it is, is captured when it comes again, and only replayed from then on.
_CALLS_TO_A_REPLAY = 3
_COUNT = click.IntRange(1)


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one query over all candidates: median and quartiles of n repeats."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    n: int


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system. per_page: share of one candidate. flops: of one candidate, by arithmetic."""

    system: str
    candidates: int
    timing: Timing
    per_page_ms: float
    flops_per_page: float
    bytes_per_page: int


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything that was measured, and on what. graphs: the cached systems were CUDA graphs."""

    model: str
    device: str
    dtype: str
    threads: int
    n_visual_tokens: int
    n_kept_tokens: int
    n_suffix_tokens: int
    band: tuple[int, int]
    exit_layer: int
    systems: list[SystemResult]
    caching_ms: Timing
    caching_flops: float
    bare_ms: Timing
    engine_overhead: float
    graphs: bool


def _numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    """A click callback: "10,20" to [10, 20]."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{text} is not a list of numbers such as 10,20,100.")
    return numbers


_STORE_HELP = (
    "Read K/V from files in a temporary store in this folder (default: from memory). On a GPU only "
    "the first query reads any."
)
_OF_CHECKPOINTS = ("model", "revision", "embedder", "embedder_revision")


@click.command()
@click.option("--dims", type=click.Choice(sorted(DIMENSIONS)), help="Random weights of this size.")
@partial(engine_options, store_help=_STORE_HELP)
@click.option(
    "--top-k", default="20", show_default=True, callback=_numbers,
    help="Candidates; several as 10,20,100.",
)  # fmt: skip
@click.option(
    "--repeats", type=_COUNT, default=5, show_default=True, help="Of `mini` and `dense + reuse`."
)
@click.option(
    "--original-repeats", type=_COUNT, default=2, show_default=True, help="Of `original`."
)
@click.option(
    "--add-pages", type=_COUNT, help="Instead: peak memory while so many random pages are added."
)
@click.option("--no-graphs", is_flag=True, help="On a GPU: launch every operation by itself.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of tables.")
@click.pass_context
def bench(
    ctx: click.Context,
    dims: str | None,
    model: str,
    embedder: str | None,
    store: Path | None,
    device: str | None,
    dtype: str | None,
    top_k: list[int],
    repeats: int,
    original_repeats: int,
    add_pages: int | None,
    no_graphs: bool,
    as_json: bool,
    **names: Any,
) -> None:
    """Time original, dense + reuse and mini side by side, with --dims or a checkpoint.

    With an embedder, caching includes its pass and it chooses the tokens. Without --store `mini`
    reads K/V from the store's tier in memory; with it, from files in a temporary store within
    that folder, which is also where --add-pages puts its pages.
    """
    kind = None if dtype is None else getattr(torch, dtype)
    if dims is not None:
        _refuse_checkpoints(ctx)
        where = pick_device(device)
        default = torch.bfloat16 if where.type == "cuda" else torch.float32
        loaded = random_model(dims, where, kind or default)
        parts = Parts(loaded, template_for(loaded.name, names["template"]), None)
    else:
        parts = load_parts(model, embedder, device=device, dtype=kind, self_check=True, **names)
    reports: list[BenchReport] | list[PeakMemory]
    if add_pages:
        reports = peak_memory(parts, add_pages, _PAGE, store)
        text = "\n".join(f"{r.n_pages:6} pages  peak {r.peak_mib:7.0f} MiB" for r in reports)
    else:
        reports = run_bench(parts, top_k, repeats, original_repeats, store, graphs=not no_graphs)
        text = "\n\n".join(map(table, reports))
    click.echo(json.dumps([asdict(r) for r in reports]) if as_json else text)


def _refuse_checkpoints(ctx: click.Context) -> None:
    """--dims is random weights; a checkpoint beside it would be timed by nobody."""
    for name in _OF_CHECKPOINTS:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--dims and --{name.replace('_', '-')} exclude each other.")


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
    loaded = parts.loaded
    encoder = PromptEncoder(loaded.tokenizer, parts.template)
    pruner: Pruner = "uniform" if parts.embedder is None else "embedder"
    config = trained_config(loaded, RerankConfig(pruner=pruner)).resolve(loaded.n_layers)
    held = graphs_for(loaded) if graphs else None
    full = config.dense(loaded.n_layers, lossless(loaded.dtype))
    mini, dense = (Scorer(loaded, encoder, each, graphs=held) for each in (config, full))
    query = _query(mini)
    noise = np.random.default_rng(0)
    pictures = [
        Image.fromarray(noise.integers(0, 256, (*_PAGE[::-1], 3), dtype=np.uint8)) for _ in "ab"
    ]
    progress = tqdm(file=sys.stderr, unit="step", disable=None)
    cached: dict[str, list[KVPage]] = {"mini": [], "dense": []}
    caching: list[float] = []
    if loaded.device.type == "cuda":  # the first page of a process also loads kernels
        _warm_up(mini, dense, query, pictures[0])
    for picture in pictures:
        stages = Stages(loaded.device)
        sight = mini.sight(picture, stages)
        importance = None if parts.embedder is None else _importance(parts.embedder, sight, stages)
        kept = kept_tokens(pruner, config.keep_ratio, sight.pixels.grid, importance=importance)
        cached["mini"].append(mini.encode(sight, kept, stages))
        caching.append(sum(stages.ms.values()))
        progress.update()
        everything = np.arange(sight.pixels.n_tokens)
        cached["dense"].append(dense.encode(sight, everything, Stages(loaded.device)))
        progress.update()

    n = original_batch(loaded.device)
    original = _repeat(
        lambda s: dense.score_original([query] * n, [dense.preprocess(pictures[0])] * n, s),
        original_repeats,
        loaded,
        progress,
    )
    original = [ms / n for ms in original]
    return [
        _compare(mini, dense, query, cached, k, repeats, original, caching, folder, progress)
        for k in top_ks
    ]


def _importance(embedder: Embedder, sight: Sight, stages: Stages) -> np.ndarray:
    own = sight.by(embedder.loaded)
    with stages("embed"):
        return embedder.embed_page(own.pixels, own.visual)[1]


def _warm_up(mini: Scorer, dense: Scorer, query: str, picture: Image.Image) -> None:
    n, stages = original_batch(mini.loaded.device), Stages(mini.loaded.device)
    sight = mini.sight(picture, stages)
    everything = np.arange(sight.pixels.n_tokens)
    mini.encode(sight, everything, stages)
    dense.encode(sight, everything, stages)
    dense.score_original([query] * n, [sight.pixels] * n, stages)


def _compare(
    mini: Scorer,
    dense: Scorer,
    query: str,
    cached: dict[str, list[KVPage]],
    k: int,
    repeats: int,
    original: list[float],
    caching: list[float],
    folder: Path | None,
    progress: tqdm,
) -> BenchReport:
    loaded = mini.loaded
    pages = {name: [two[i % 2] for i in range(k)] for name, two in cached.items()}
    if loaded.device.type == "cuda":  # else its caches would hold what many pages do not share
        pages["dense"] = [page.copied() for page in pages["dense"]]
    with _temporary_store(folder) as store:
        for i in range(k):
            store.put(f"{i}", "", *pack(pages["mini"][i]))
        keys = [f"{i}" for i in range(k)]
        resident = resident_for(loaded.device)

        def load() -> list[KVPage]:
            """As the engine does: from the accelerator, or else from the store's memory tier."""
            held = {} if resident is None else resident.get_many(keys)
            for key, entry in store.get_many([key for key in keys if key not in held]).items():
                held[key] = unpack(entry.tensors, entry.meta, loaded.device)
                if resident is not None:
                    held[key] = held[key].expanded(loaded.dtype)
                    resident.put(key, "", held[key])
            return [held[key] for key in keys]

        def whole(stages: Stages) -> None:
            with stages("load"):
                read = load()
            mini.score([query], read, stages)

        runs: dict[str, list[float]] = {"mini": [], "dense": [], "bare": []}
        bare = bare_band(mini, query, pages["mini"])
        tasks: dict[str, Callable[[Stages], object]] = {
            "mini": whole,
            "dense": lambda s: dense.score([query], pages["dense"], s),
            "bare": bare,
        }
        for task in tasks.values():  # warm up
            for _ in range(1 if mini.graphs is None else _CALLS_TO_A_REPLAY):
                task(Stages(loaded.device))
        replays = 0 if mini.graphs is None else mini.graphs.n_replays
        for _ in range(repeats):
            for name, task in tasks.items():
                runs[name] += _repeat(task, 1, loaded, progress)
    prompt = mini.prompt(query, 1)
    page = cached["mini"][0]
    work = Workload(
        n_patches=page.grid[0] * page.grid[1] * loaded.image_processor.merge_size**2,
        n_visual=page.grid[0] * page.grid[1],
        n_kept=len(page.kept),
        n_text=len(prompt.prefix) - 1,
        n_suffix=len(prompt.suffix),
    )
    costs = Costs(loaded, mini.config)
    times = {name: _timing(ms) for name, ms in (*runs.items(), ("original", original))}
    assert mini.config.band is not None and mini.config.exit_layer is not None
    return BenchReport(
        model=loaded.name,
        device=_device_name(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        n_visual_tokens=work.n_visual,
        n_kept_tokens=work.n_kept,
        n_suffix_tokens=work.n_suffix,
        band=mini.config.band,
        exit_layer=mini.config.exit_layer,
        systems=[
            SystemResult("original", 1, times["original"], times["original"].median_ms,
                         costs.original(work), 0),
            SystemResult("dense + reuse", k, times["dense"], times["dense"].median_ms / k,
                         costs.dense_reuse(work, k), cached["dense"][0].nbytes),
            SystemResult("mini", k, times["mini"], times["mini"].median_ms / k,
                         costs.mini(work, k), page.nbytes),
        ],
        caching_ms=_timing(caching),
        caching_flops=costs.caching(work),
        bare_ms=times["bare"],
        engine_overhead=times["mini"].median_ms / times["bare"].median_ms - 1.0,
        # Each of both systems is at least two graphs a query.
        graphs=mini.graphs is not None and mini.graphs.n_replays - replays >= 4 * repeats,
    )  # fmt: skip


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


def table(report: BenchReport) -> str:
    """The report as text, ratios included."""
    original, dense = report.systems[0].per_page_ms, report.systems[1].per_page_ms
    lines = [
        f"{report.model}, {report.dtype} on {report.device}, {report.threads} threads; "
        f"page of {report.n_visual_tokens} visual tokens, {report.n_kept_tokens} kept, query of "
        f"{report.n_suffix_tokens}; band layers {layer_range(report.band)}, exit after layer "
        f"{report.exit_layer - 1}; {report.systems[-1].candidates} candidates, warm"
        f"{', CUDA graphs' if report.graphs else ''}",
        f"{'system':14}{'ms/query':>12}{'(quartiles)':>22}{'ms/page':>11}{'vs original':>13}"
        f"{'vs dense':>10}{'GFLOP/page':>12}{'MB/page':>9}",
    ]
    for s in report.systems:
        spread = f"({s.timing.q1_ms:.1f} - {s.timing.q3_ms:.1f}, n={s.timing.n})"
        lines.append(
            f"{s.system:14}{s.timing.median_ms:12.1f}{spread:>22}{s.per_page_ms:11.2f}"
            f"{original / s.per_page_ms:12.1f}x{dense / s.per_page_ms:9.2f}x"
            f"{s.flops_per_page / 1e9:12.1f}{s.bytes_per_page / 1e6:9.2f}"
        )
    lines.append(
        f"caching a page once: {report.caching_ms.median_ms:.0f} ms, "
        f"{report.caching_flops / 1e12:.2f} TFLOP; engine over bare tensor operations: "
        f"{report.engine_overhead:+.1%}"
    )
    return "\n".join(lines)


def _repeat(
    task: Callable[[Stages], object], repeats: int, loaded: LoadedModel, progress: tqdm
) -> list[float]:
    """Milliseconds of whole calls."""
    times = []
    for _ in range(repeats):
        clock = Stages(loaded.device)
        with clock("all"):
            task(Stages(loaded.device))
        times.append(clock.ms["all"])
        progress.update()
    return times


def _timing(ms: list[float]) -> Timing:
    of = spread(ms)
    return Timing(of.median, of.q1, of.q3, of.n)


def _query(scorer: Scorer) -> str:
    """A query whose whole second segment has 25 tokens, or as few more as the template needs."""
    query = "a"
    while len(scorer.prompt(query, 1).suffix) < _QUERY_TOKENS:
        query += " a"
    return query


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU"
