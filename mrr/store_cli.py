"""`mrr store`: what the page store holds, whether it is whole, and how to make room in it."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrr.cli import Given, need_output, print_json, say
from mrr.errors import InputRejected
from mrr.plain import one_line
from mrr.types import Page

if TYPE_CHECKING:
    from cache_db.store import PageStore

_FOLDER = click.option("--store", "folder", type=Given(file_okay=False, path_type=Path))
# All that most of these commands print is JSON, asked for or not.
_AS_JSON = click.option("--json", is_flag=True, expose_value=False, help="The default.")
_PUBLIC = ["public"]  # what is another session's, or was given to rerank(), is not this user's


@click.group()
@click.pass_context
def store(context: click.Context) -> None:
    """Look after the page store."""
    need_output(context.invoked_subcommand in ("list", "stats"))


@store.command("list")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Every page, as one JSON object.")
def list_command(folder: Path | None, as_json: bool) -> None:
    """The files in the store, and how many pages it has of each."""
    with open_existing(folder) as opened:
        pages = _pages(opened)
    if as_json:
        print_json({"pages": [_listed(page) for page in pages]})
        return
    if pages:
        click.echo(f"{'pages':>5}  file")
    for name, of_file in _by_file(pages).items():
        click.echo(f"{len(of_file):5}  {name}")


@store.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_FOLDER
@_AS_JSON
def remove(names: tuple[str, ...], folder: Path | None) -> None:
    """Remove files, named as `mrr store list` has them, or pages by their ids.

    How many pages that was, as JSON. Nothing is removed where one of the names is unknown. A page
    that several files show is in the list, and goes, with the first of them that was added. Write
    -- before a name that begins with a dash.
    """
    with open_existing(folder) as opened:
        pages = _pages(opened)
        files, ids = _by_file(pages), {page.page_id for page in pages}
        chosen = set[str]()
        # Some systems give the names of files decomposed; the store has them composed.
        for name in (unicodedata.normalize("NFC", name) for name in names):
            if name not in files and name not in ids:
                raise InputRejected(
                    f'The store has no file and no page "{one_line(name)}"; nothing was removed. '
                    "mrr store list shows what it has."
                )
            chosen.update(page.page_id for page in files.get(name, ()))
            chosen.update(ids & {name})
        _report_removal(opened, opened.remove_pages(chosen))


@store.command()
@_FOLDER
@_AS_JSON
def stats(folder: Path | None) -> None:
    """What the store holds, as JSON."""
    with open_existing(folder) as opened:
        print_json(asdict(opened.stats()))


@store.command()
@_FOLDER
@_AS_JSON
def verify(folder: Path | None) -> None:
    """Read everything, drop what is damaged, report as JSON; exit code 1 if there was damage."""
    with open_existing(folder) as opened:
        report = opened.verify()
        pages = map(opened.page, dict.fromkeys(report.bad))
        lost = [p.label for p in pages if p is not None and opened.image(p.page_id) is None]
    print_json(asdict(report))
    say(*(f"The picture of {label} is damaged or gone; add it again." for label in lost))
    if not report.ok:
        raise SystemExit(1)


@store.command()
@_FOLDER
@_AS_JSON
@click.option("--documents", is_flag=True, help="Only the pictures that rerank() was given.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(folder: Path | None, documents: bool, yes: bool) -> None:
    """Remove every page and everything cached; how many pages that was, as JSON."""
    from cache_db.evict import DOCUMENTS

    if not yes:
        if sys.stdin is None:
            raise InputRejected("There is no one to ask whether to remove anything; use --yes.")
        what = "every picture that rerank() was given" if documents else "every page"
        click.confirm(f"Remove {what} from the store?", abort=True, err=True)
    with open_existing(folder) as opened:
        n_removed = opened.remove_scope(DOCUMENTS) if documents else opened.clear()
        _report_removal(opened, n_removed)


def open_existing(folder: Path | None) -> PageStore:
    """The store that is there; InputRejected where there is none, or it cannot be opened."""
    from cache_db.store import PageStore

    return PageStore(_existing(folder), on_disk_only=True)


def _existing(folder: Path | None) -> Path:
    """The store's folder; InputRejected where there is no store in it yet."""
    from cache_db import default_store

    folder = folder or default_store()
    name = Path(os.path.abspath(folder)).name or str(folder)  # resolve() fails on a loop of links
    try:
        # Pictures alone are a store that lost its database, and has it back when it is opened.
        there = (folder / "store.db").exists() or any((folder / "files").glob("*.png"))
    except OSError as error:
        raise InputRejected(f"The store in {name} cannot be read: {error.strerror}.") from None
    if not there:
        raise InputRejected(f"There is no store in {name}; mrr add FILE ... makes one.")
    return folder


def _pages(opened: PageStore) -> list[Page]:
    """This user's; InputRejected where the store looks empty, and may not be."""
    pages = opened.pages(_PUBLIC)
    if not pages and (trouble := opened.stats().note):
        raise InputRejected(trouble)
    return pages


def _by_file(pages: Iterable[Page]) -> dict[str, list[Page]]:
    found: dict[str, list[Page]] = {}
    for page in pages:
        found.setdefault(page.source, []).append(page)
    return found


def _listed(page: Page) -> dict[str, Any]:
    return {
        "page_id": page.page_id,
        "label": page.label,
        "file": page.source,
        "page_num": page.page_num,
    }


def _report_removal(opened: PageStore, n_removed: int) -> None:
    """JSON on stdout; exit code 1 for what the disk did not do."""
    print_json({"removed_pages": n_removed})
    if trouble := opened.stats().note:
        say(trouble)
        raise SystemExit(1)
