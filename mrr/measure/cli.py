"""`mrr eval DIR`: quality on a labelled folder, as a table or as JSON."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from mrr.cli import Given, engine_options, print_json
from mrr.measure.tasks import EVALUATED


class Bars:
    """One tqdm bar on stderr at a time, renewed when the label changes."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._label = ""

    def __call__(self, label: str, done: int, total: int) -> None:
        if self._bar is None or label != self._label:
            self.close()
            self._bar = tqdm(desc=label, total=total, file=sys.stderr, disable=None)
            self._label = label
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Finish the bar that is shown."""
        if self._bar is not None:
            self._bar.close()


def _names(known: tuple[str, ...] | None) -> Any:
    """A click callback: "a,b" to ("a", "b"), each checked where the names are known."""

    def split(_: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
        names = tuple(part.strip() for part in (value or "").split(",") if part.strip())
        for name in names:
            if known and name not in known:
                raise click.BadParameter(f"{name} is none of {', '.join(known)}.", param=param)
        if value is not None and not names:
            some = f" of {', '.join(known)}" if known else ""
            raise click.BadParameter(f"name at least one{some}.", param=param)
        return names

    return split


_STORE_HELP = (
    "Keep the cached pages here, apart from those of `mrr add` (in the scope eval:<name of DIR>), "
    "so `mrr rank` does not see them."
)


@click.command("eval")
@click.argument("folder", metavar="DIR", type=Given(path_type=Path))
@partial(engine_options, store_help=_STORE_HELP)
@click.option(
    "--systems", default="mini", show_default=True, callback=_names(EVALUATED),
    help=f"With commas between: {', '.join(EVALUATED)}, which is the prompt that Qwen published.",
)  # fmt: skip
@click.option(
    "--mode", type=click.Choice(["full", "candidates"]), default="full", show_default=True,
    help="Rank every page, or one relevant page and random others.",
)  # fmt: skip
@click.option(
    "--negatives", type=click.IntRange(1), default=19, show_default=True,
    help="Random others, in candidates.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True,
    help="Of candidates, limit and intervals.",
)  # fmt: skip
@click.option("--kinds", callback=_names(None), help="Of queries, with commas between.")
@click.option("--limit", type=click.IntRange(1), help="Draw this many queries.")
@click.option(
    "--late-interaction", is_flag=True,
    help="Add what the vision tower alone ranks, without the language model.",
)  # fmt: skip
@click.option("--ablation", "with_ablation", is_flag=True, help="Add a table of each part alone.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, the table on stderr.")
def eval_command(
    folder: Path,
    store: Path | None,
    systems: tuple[str, ...],
    mode: str,
    negatives: int,
    seed: int,
    kinds: tuple[str, ...],
    limit: int | None,
    late_interaction: bool,
    with_ablation: bool,
    as_json: bool,
    **engine: Any,
) -> None:
    """Measure ranking quality on DIR, a folder of pages and labelled queries:

    \b
    corpus.jsonl   {"page_id": "r3", "pdf": "report.pdf", "page_num": 3}
                   {"page_id": "bus", "file": "photos/bus.png"}
    queries.jsonl  {"query_id": "q1", "query": "bus fares", "kind": "keyword"}
    qrels.tsv      q1 0 bus 2
    text.jsonl     {"page_id": "r3", "text": "what stands on it"}

    A "pdf" lies in DIR/pdf, a "file" (PDF or picture) anywhere in DIR; page_num counts from 1,
    which it is if left out. "kind" groups results, and may be left out. A line of qrels.tsv is a
    query id, 0, a page id and a grade, with tabs or spaces between: a whole number, relevant from
    1 on. Ids are text without spaces; every query needs a relevant page. text.jsonl, with every
    page in it, is for BM25 alone; without it the text layers serve where all pages are of PDFs.

    Pages are cached in a folder that is thrown away afterwards, unless --store keeps it. The
    system `original` runs every pair from scratch, in either order: use --mode candidates and
    --limit with it.
    """
    # Imported here so that `mrr --help` needs no torch.
    from mrr.measure.ablation import ablation
    from mrr.measure.dataset import read_dataset
    from mrr.measure.evaluate import evaluate
    from mrr.measure.table import ablation_table, eval_table
    from mrr.measure.tasks import make_tasks
    from mrr.reranker import MiniReranker

    bars = Bars()
    chosen: dict[str, Any] = {
        "mode": mode,
        "n_negatives": negatives,
        "seed": seed,
        "kinds": kinds or None,
        "limit": limit,
    }
    task = chosen | {"progress": bars}
    with ExitStack() as stack:
        stack.callback(bars.close)
        dataset = read_dataset(folder)
        make_tasks(dataset, **chosen)  # what is refused is refused before models are loaded
        root = store or stack.enter_context(tempfile.TemporaryDirectory(prefix="mrr-eval-"))
        reranker = MiniReranker.from_pretrained(store=root, **engine)
        stack.callback(reranker.close)
        report = evaluate(
            reranker,
            dataset,
            systems=systems,
            late_interaction=late_interaction,
            **task,
        )
        rows = ablation(reranker, dataset, **task) if with_ablation else ()
    table = eval_table(report) + (f"\n\n{ablation_table(rows)}" if rows else "")
    click.echo(table, err=as_json)
    if as_json:
        print_json(asdict(report) | {"ablation": [asdict(row) for row in rows]})
