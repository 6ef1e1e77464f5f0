"""The command line as a script would use it: JSON on stdout, words on stderr, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mrr.cli import cli
from mrr.errors import InputRejected
from tests.test_reranker import png
from tests.tiny import picture


def mrr(*args: object, store: Path) -> Result:
    """One command in this process; stdout and stderr are kept apart."""
    return CliRunner().invoke(cli, [*map(str, args), "--store", str(store)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pages = tmp_path / "pages"
    pages.mkdir()
    for i in range(3):
        (pages / f"page{i}.png").write_bytes(png(picture(i)))
    (pages / "broken.png").write_bytes(b"no picture")
    return pages


def test_add_rank_and_store_from_end_to_end(folder: Path, pair, tmp_path: Path) -> None:
    models = ["--model", pair[0], "--embedder", pair[1]]
    store = tmp_path / "store"

    added = mrr("add", folder, *models, "--json", store=store)
    assert added.exit_code == 1, added.stderr  # one file was refused
    report = json.loads(added.stdout)
    assert [p["label"] for p in report["pages"]] == ["page0.png", "page1.png", "page2.png"]
    assert {*report["pages"][0]} == {
        "page_id", "label", "page_num", "outcome", "n_visual_tokens", "n_kept_tokens", "nbytes",
        "ms",
    }  # fmt: skip
    assert [f["file"] for f in report["failed"]] == ["broken.png"]
    assert "broken.png" in added.stderr

    ranked = mrr("rank", "blue page", *models, "--json", "--top-k", 2, store=store)
    assert ranked.exit_code == 0, ranked.stderr
    result = json.loads(ranked.stdout)
    assert (result["query"], result["system"]) == ("blue page", "mini")
    assert [r["rank"] for r in result["results"]] == [1, 2]
    assert result["usage"]["cached_pages"] == 2 and result["usage"]["missed_pages"] == 0
    assert result["usage"]["ms"].keys() >= {"retrieve", "load", "query", "band", "head"}

    stats = json.loads(mrr("store", "stats", store=store).stdout)
    assert stats["n_pages"] == 3 and stats["persistent"]
    assert mrr("store", "verify", store=store).exit_code == 0
    assert mrr("store", "clear", "--yes", store=store).exit_code == 0
    assert json.loads(mrr("store", "stats", store=store).stdout)["n_pages"] == 0


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mrr", "rank", "x", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "MRR_CACHE_DIR": str(tmp_path / "store")},
    )
    assert result.returncode == 2
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert "config.json" in result.stderr


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    result = mrr("add", tmp_path / "nothing.png", store=tmp_path / "store")
    assert isinstance(result.exception, InputRejected)
    assert "nothing.png" in str(result.exception) and str(tmp_path) not in str(result.exception)


def commands(group: click.Group, path: tuple[str, ...] = ()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    found = list(commands(cli))
    assert len(found) >= 8
    for path, command in found:
        assert command.help, path
        words = f"mrr {' '.join(path)}"
        if path[0] not in ("train",):
            assert words in readme, f"{words} has no line in the README"
