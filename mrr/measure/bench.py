"""`mrr bench`: the three systems on one machine in one run, at real dimensions."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from mrr.build import Parts, load_parts, template_of
from mrr.cli import engine_options
from mrr.measure.bench_report import BenchReport, table
from mrr.measure.memory import PeakMemory, peak_memory
from mrr.measure.random_model import DIMENSIONS, random_model
from mrr.measure.side_by_side import PAGE_SIZE, run_bench
from mrr.model.load import pick_device

_COUNT = click.IntRange(1)


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
    reads K/V from a store in memory; with it, from files in a temporary store within that folder,
    which is also where --add-pages puts its pages.
    """
    kind = None if dtype is None else getattr(torch, dtype)
    if dims is not None:
        _refuse_checkpoints(ctx)
        where = pick_device(device)
        default = torch.bfloat16 if where.type == "cuda" else torch.float32
        loaded = random_model(dims, where, kind or default)
        parts = Parts(loaded, template_of(loaded, names["template"]), None)
    else:
        parts = load_parts(model, embedder, device=device, dtype=kind, self_check=True, **names)
    reports: list[BenchReport] | list[PeakMemory]
    if add_pages:
        reports = peak_memory(parts, add_pages, PAGE_SIZE, store)
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
