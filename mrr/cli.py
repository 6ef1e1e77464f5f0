"""The command line: results on stdout, progress and messages on stderr, exit codes 0, 1 and 2.

0: all done. 1: some files were refused, or damage was found. 2: the call itself was wrong.
"""

from __future__ import annotations

import codecs
import importlib
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrr.errors import InputRejected, MRRError
from mrr.json_forms import added_json, ranked_json
from mrr.types import SYSTEMS, AddedPage, FailedFile
from mrr.waiting import spin_less

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

# Commands that live with what they run: imported when called, so that --help is instant.
_ELSEWHERE = {
    "bench": "mrr.measure.bench:bench",
    "eval": "mrr.measure.cli:eval_command",
    "store": "mrr.store_cli:store",
    "train": "mrr.train.cli:train",
}
_STORE_HELP = "Folder of the page store (default: $MRR_CACHE_DIR or the user cache folder)."
_PORT = click.IntRange(1, 65535)


class _Commands(click.Group):
    """A group that imports some of its commands on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = _ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


class Given(click.Path):
    """A path, or a name. An empty one, as of an unset variable, is not the current folder.

    Shells expand no ~ within --store=~/pages.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty.", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)


def engine_options(command: Any, store_help: str = _STORE_HELP) -> Any:
    """The options of every command that loads models: which, from where, and on what device."""
    name: dict[str, Any] = {"type": Given(), "metavar": "NAME"}
    for option in (
        click.option("--device", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)."),
        click.option("--store", type=Given(file_okay=False, path_type=Path), help=store_help),
        click.option("--template", help="Prompt template, where the name does not tell it."),
        click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"])),
        click.option("--embedder-revision", help="Commit of a hub embedder."),
        click.option("--revision", help="Commit of a hub model: pin it."),
        click.option("--embedder", **name, help="First-stage embedder: folder or hub id."),
        click.option(
            "--model", **name, default="tiny", show_default=True, help="Bundled, folder or hub id."
        ),
    ):
        command = option(command)
    return command


# Commands of which nothing is left where nobody can read what they print.
_ONLY_PRINT = ("rank", "eval", "bench")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to stderr.")
@click.pass_context
def cli(context: click.Context, verbose: bool) -> None:
    """Rerank document pages with a vision-language model whose page pass is cached."""
    if context.invoked_subcommand != "store":  # which has commands of both kinds
        need_output(context.invoked_subcommand in _ONLY_PRINT)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(message)s",
        stream=sys.stderr,
    )


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=Given(path_type=Path))
@engine_options
@click.option("--pages", "page_range", help='Pages of each PDF or TIFF, 1-based: "1-3,7".')
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def add(
    paths: tuple[Path, ...],
    page_range: str | None,
    as_json: bool,
    **engine: Any,
) -> None:
    """Cache every page of images, PDFs and folders; a second run is all hits.

    A file may have 20 MB, or as many as MRR_MAX_FILE_MB says.
    """
    from mrr.pages.ingest import expand
    from mrr.pages.naming import parse_range

    if page_range is not None:
        parse_range(page_range)  # once for all, and before anything is loaded
    files, failed = expand(paths)
    say(*(one.reason for one in failed))
    pages: list[AddedPage] = []
    # Without a file nothing is loaded, and no store is made.
    done = not files or _add_files(_load(**engine), files, page_range, pages, failed)
    if as_json:
        refused = [{"file": one.file, "reason": one.reason} for one in failed]
        print_json({"pages": [added_json(p) for p in pages], "failed": refused})
    else:
        hits = sum(p.outcome == "hit" for p in pages)
        click.echo(f"{len(pages)} pages read, {hits} of them known already.")
    if failed or not done:
        raise SystemExit(1)


def _add_files(
    reranker: MiniReranker,
    files: list[tuple[str, Path]],
    page_range: str | None,
    pages: list[AddedPage],
    failed: list[FailedFile],
) -> bool:
    """Cache files; pages and failed receive what comes of them. Whether all is done, and lasts."""
    from tqdm import tqdm

    from mrr.adding import notes

    complete, evicted = True, reranker.store.stats().evicted
    try:
        with tqdm(file=sys.stderr, unit="page", disable=None) as bar:
            for item in reranker.add_iter(files, page_range=page_range):
                if isinstance(item, FailedFile):
                    failed.append(item)
                    tqdm.write(item.reason, file=sys.stderr)
                    continue
                pages.append(item)
                if item.note:
                    tqdm.write(f"{item.page.label}: {item.note}", file=sys.stderr)
                bar.set_postfix_str(item.page.label)
                bar.update()
    except KeyboardInterrupt:
        complete = False
        say("Stopped. What is listed is in the store; the same call goes on from there.")
    lasting = reranker.store.stats().persistent
    say(*notes(reranker, pages, evicted))
    reranker.close()
    if not lasting:
        say("The store's folder cannot be written: nothing outlives this call.")
    return complete and lasting


@cli.command()
@click.argument("query")
@engine_options
@click.option("--system", type=click.Choice(SYSTEMS), default="mini", show_default=True)
@click.option("--top-k", type=click.IntRange(1), help="Candidates of the first stage (all).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def rank(query: str, system: Any, top_k: int | None, as_json: bool, **engine: Any) -> None:
    """Rank the pages in the store for QUERY.

    K/V of every layer, for dense-reuse, is not kept on disk: each call computes it anew.
    """
    from mrr.store_cli import open_existing

    with open_existing(engine.pop("store")) as opened:
        reranker = _load(store=opened, **engine)
        ranked = reranker.rank(query, system=system, top_k=top_k)
        trouble = opened.stats().note
        reranker.close()
    if not ranked.hits and trouble:  # it looks empty, and may not be
        raise InputRejected(trouble)
    say(*ranked.notes)
    if not ranked.hits:
        say("The store has no pages yet: mrr add FILE ...")
    if as_json:
        print_json(ranked_json(ranked))
        return
    if ranked.hits:
        click.echo(f"{'rank':>4}  {'score':6}  {'logit':>8}  page")
    for hit in ranked:
        click.echo(f"{hit.rank:4}  {hit.score:.4f}  {hit.logit:+8.3f}  {hit.page.label}")


@cli.command()
@click.option("--port", type=_PORT, help="Default: 7860, or the next that is free.")
def serve(port: int | None) -> None:
    """Open the app in the browser."""
    if port is not None:
        os.environ["GRADIO_SERVER_PORT"] = str(port)
    import app

    app.main()


def _load(**options: Any) -> MiniReranker:
    from transformers.utils.logging import disable_progress_bar

    from mrr.reranker import MiniReranker

    disable_progress_bar()
    return MiniReranker.from_pretrained(**options)


def need_output(only_prints: bool) -> None:
    """Go on without an output that whoever started this has closed; not where all is printed."""
    if sys.stdout is None:
        if only_prints:
            raise InputRejected("The output cannot be written: it is closed.")
        sys.stdout = open(os.devnull, "w")


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout, in escapes where its encoding lacks characters."""
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    click.echo(json.dumps(value, ensure_ascii=not unicode, allow_nan=False))


def say(*notes: str) -> None:
    """Sentences on stderr."""
    for note in notes:
        click.echo(note, err=True)


def main() -> None:
    """Entry point: this package's own errors become one line and exit code 2."""
    spin_less()
    if isinstance(sys.stdout, io.TextIOWrapper):  # or a label could end the output in a traceback
        sys.stdout.reconfigure(errors="replace")
    try:
        cli(standalone_mode=True)
    except MRRError as error:
        click.echo(str(error), err=True)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is not None:  # not stdout's, and nothing that is expected
            raise
        click.echo(f"The output cannot be written: {error.strerror or error}.", err=True)
        raise SystemExit(2) from None
