"""`mrr train`: make the bundled pair, or fine-tune a large checkpoint the same way."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import click
import torch
from click.core import ParameterSource

from mrr.config import Pruner, RerankConfig
from mrr.errors import InputRejected
from mrr.train import shards
from mrr.train.card import write_cards
from mrr.train.stages import Scale, Workshop

# Every stage, and its share of the minutes that `all` is given: reading is what costs.
_STAGES = {
    "corpus": 0.0,
    "read": 0.53,
    "match": 0.08,
    "join": 0.1,
    "embed": 0.02,
    "see": 0.05,
    "prune": 0.22,
}

# Fields of Scale, as options.
_SIZES = {
    "read_steps": "Steps of the reading stage.",
    "read_pages": "512 px squares in a reading batch; 256 suits a large GPU.",
    "read_reuse": "Reading batches that a drawn page is in, each cut anew; 8 suits a large GPU.",
    "match_steps": "Steps on simulated visual tokens.",
    "join_steps": "Steps on the tower's visual tokens.",
    "embed_steps": "Steps of the embedder on simulated visual tokens.",
    "see_steps": "Steps of the embedder on the tower's visual tokens.",
    "prune_steps": "Steps with half of the visual tokens.",
    "match_pages": "Pages in a matching batch.",
    "embed_pages": "Pages in an embedding batch.",
    "minutes": "Wall time of the stage, of `all` together or of `finetune`, instead of steps; the "
    "rate falls by the clock.",
    "check_pages": "Held-out pages in an evaluation.",
    "check_draws": "Evaluations at an export, each of other pages.",
    "workers": "Processes that draw pages; cores - 1 on a GPU.",
    "unit": "Batches of the curriculum's first step.",
    "rate": "Multiplies the language model's learning rates; 0.25 polishes a trained one.",
    "twins": "Share of matching draws with a near-duplicate page.",
    "seed": "Seed of pages, queries and weights.",
}
_OF_FINETUNE = ("minutes", "seed")  # those of the options above that it heeds


def _size_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option for every size, with the default that Scale has."""
    for name, words in reversed(_SIZES.items()):
        flag, default = "--" + name.replace("_", "-"), getattr(Scale(), name)
        command = click.option(
            flag, type=type(default), default=default, show_default=True, help=words
        )(command)
    return command


@click.group()
@click.option(
    "--run",
    "root",
    type=click.Path(path_type=Path),
    default=Path("train-run"),
    show_default=True,
    help="Folder of the run: corpus, checkpoints, logs.",
)
@click.option("--threads", type=int, default=0, help="Torch threads; 0 leaves torch's choice.")
@_size_options
@click.pass_context
def train(ctx: click.Context, root: Path, threads: int, **sizes: Any) -> None:
    """Train the bundled pair, or fine-tune a large checkpoint.

    Both resume from their checkpoints in the run folder. Options of `train` stand before the
    command.
    """
    logging.basicConfig(level=logging.INFO)
    if threads:
        torch.set_num_threads(threads)
    ctx.obj = Workshop(root, replace(Scale(), **sizes))


@train.command()
@click.argument("stage", type=click.Choice(list(_STAGES)))
@click.pass_obj
def stage(shop: Workshop, stage: str) -> None:
    """Run or resume one stage."""
    run_stage(shop, stage)


@train.command(name="all")
@click.pass_obj
def everything(shop: Workshop) -> None:
    """Run or resume every stage in order; --minutes is divided among them."""
    for name, share in _STAGES.items():
        scale = replace(shop.scale, minutes=share * shop.scale.minutes)
        run_stage(Workshop(shop.root, scale), name)


@train.command(name="begin-from")
@click.argument("pair", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--read-step", default=4800, show_default=True, help="Where reading goes on.")
@click.pass_obj
def begin_from(shop: Workshop, pair: Path, read_step: int) -> None:
    """Begin a new run from an exported pair (assets/models); then run the stages."""
    shop.begin_from(pair, read_step)


@train.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--stage",
    default="pruned",
    show_default=True,
    type=click.Choice(["matching", "joined", "pruned"]),
    help="Whose language model is shipped.",
)
@click.pass_obj
def export(shop: Workshop, folder: Path, stage: str) -> None:
    """Write tiny-reranker and tiny-embedder as stock checkpoints; prints their sizes as JSON."""
    click.echo(json.dumps(shop.export(folder, stage)))


@train.command(name="held-out")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--pages", type=click.IntRange(1), default=80, show_default=True)
@click.option(
    "--queries", type=click.IntRange(1), default=3, show_default=True, help="About each page."
)
@click.option("--unseen-faces", is_flag=True, help="In faces that are never trained on.")
@click.pass_obj
def held_out(shop: Workshop, folder: Path, pages: int, queries: int, unseen_faces: bool) -> None:
    """Draw pages of held-out text into FOLDER, with labelled queries, for `mrr eval`.

    At the size that the pair is trained for, in the faces of common documents unless said
    otherwise. Needs the stage corpus, or a run that was begun from a pair and has it.
    """
    n_queries = shop.draw_held_out(folder, pages, queries, unseen_faces)
    click.echo(json.dumps({"pages": pages, "queries": n_queries}))


@train.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("reports", nargs=-1, type=click.File(encoding="utf-8"))
def card(folder: Path, reports: tuple[TextIO, ...]) -> None:
    """Write the pair's model cards anew, with REPORTS of `mrr eval --json` in them."""
    try:
        read = [json.load(report) for report in reports]
    except ValueError as error:
        raise InputRejected(
            f"A report is no JSON ({error}); write it by `mrr eval --json`."
        ) from error
    write_cards(folder, read)


@train.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.pass_obj
def pack(shop: Workshop, folder: Path) -> None:
    """Write every stage's weights as small files; a run resumes from them on another machine."""
    files = shards.pack(shop.root, folder)
    click.echo(json.dumps({"files": len(files), "bytes": sum(f.stat().st_size for f in files)}))


@train.command()
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--embedder", help="Checkpoint whose attention prunes the pages.")
@click.option(
    "--keep-ratio",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of the tokens that the embedder keeps; without --embedder every token is kept.",
)
@click.option("--dense-teacher", is_flag=True, help="Learn the dense model's scores, not labels.")
@click.option("--steps", default=2000, show_default=True, help="One page with its queries a step.")
@click.option("--queries", "n_queries", default=8, show_default=True, help="Asked of each page.")
@click.option("--rank", default=32, show_default=True, help="Of the LoRA matrices.")
@click.option("--lr", default=1e-4, show_default=True)
@click.pass_context
def finetune(
    ctx: click.Context,
    model: str,
    data: Path,
    embedder: str | None,
    keep_ratio: float,
    **options: Any,
) -> None:
    """Fine-tune a Qwen-VL reranker with the band, the exit and pruning on (LoRA).

    DATA is a folder as `mrr eval --help` describes it. Prints where the adapter is; the engine
    loads it as a checkpoint. Without --embedder nothing is pruned.
    """
    _refuse_idle(ctx)
    if embedder is None and keep_ratio < 1:
        if ctx.get_parameter_source("keep_ratio") is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--keep-ratio {keep_ratio:g} has no embedder to choose the tokens. Name one with "
                "--embedder, or leave the ratio out to keep every token."
            )
        click.echo("Without --embedder every token is kept: nothing is pruned.", err=True)
    from mrr.train.finetune import FinetunePlan
    from mrr.train.finetune import finetune as run

    shop: Workshop = ctx.obj
    pruner: Pruner = "embedder" if embedder and keep_ratio < 1 else "none"
    plan = FinetunePlan(
        model,
        data,
        shop.root / "finetune",
        embedder,
        config=RerankConfig(keep_ratio=keep_ratio if embedder else 1.0, pruner=pruner),
        minutes=shop.scale.minutes,
        seed=shop.scale.seed,
        **options,
    )
    click.echo(json.dumps({"adapter": str(run(plan))}))


def _refuse_idle(ctx: click.Context) -> None:
    """Raise UsageError for an option of the group that a fine-tuning would not heed."""
    assert ctx.parent is not None
    for name in _SIZES:
        given = ctx.parent.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _OF_FINETUNE:
            flag = name.replace("_", "-")
            raise click.UsageError(f"--{flag} is for stages, and finetune has none. Leave it out.")


def run_stage(shop: Workshop, name: str) -> None:
    """One stage by name."""
    if name == "corpus":
        shop.make_corpus()
    else:
        getattr(shop, name)()
