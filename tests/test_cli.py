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

from mrr import MiniReranker
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
    assert {*report} == {"pages", "failed"}
    assert [p["label"] for p in report["pages"]] == ["page0.png", "page1.png", "page2.png"]
    assert {*report["pages"][0]} == {
        "page_id", "label", "page_num", "outcome", "n_visual_tokens", "n_kept_tokens", "nbytes",
        "ms",
    }  # fmt: skip
    assert {*report["failed"][0]} == {"file", "reason"}
    assert [f["file"] for f in report["failed"]] == ["broken.png"]
    assert "broken.png" in added.stderr

    ranked = mrr("rank", "blue page", *models, "--json", "--top-k", 2, store=store)
    assert ranked.exit_code == 0, ranked.stderr
    result = json.loads(ranked.stdout)
    assert {*result} == {"query", "system", "results", "usage"}
    assert {*result["results"][0]} == {
        "rank", "page_id", "label", "page_num", "relevance_score", "logit", "retrieval_score",
    }  # fmt: skip
    assert {*result["usage"]} == {"cached_pages", "missed_pages", "bytes_read", "ms"}
    assert (result["query"], result["system"]) == ("blue page", "mini")
    assert [r["rank"] for r in result["results"]] == [1, 2]
    assert result["usage"]["cached_pages"] == 2 and result["usage"]["missed_pages"] == 0
    assert result["usage"]["ms"].keys() >= {"retrieve", "load", "query", "band", "head"}

    stats = json.loads(mrr("store", "stats", store=store).stdout)
    assert stats["n_pages"] == 3 and stats["persistent"]
    assert mrr("store", "verify", store=store).exit_code == 0
    cleared = mrr("store", "clear", "--yes", store=store)
    assert json.loads(cleared.stdout) == {"removed_pages": 3}
    assert json.loads(mrr("store", "stats", store=store).stdout)["n_pages"] == 0


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    page.write_bytes(png(picture(0)))
    result = subprocess.run(
        [sys.executable, "-m", "mrr", "add", str(page), "--model", str(tmp_path)],
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


def test_a_file_that_is_missing_does_not_keep_the_others_out(folder: Path, pair, tmp_path) -> None:
    models = ["--model", pair[0], "--embedder", pair[1], "--json"]
    added = mrr("add", tmp_path / "gone.png", folder / "page0.png", *models, store=tmp_path / "s")
    assert added.exit_code == 1
    report = json.loads(added.stdout)
    assert [p["label"] for p in report["pages"]] == ["page0.png"]
    assert [f["file"] for f in report["failed"]] == ["gone.png"]


def test_a_store_that_cannot_be_written_is_said_and_is_no_success(
    folder: Path, pair, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = tmp_path / "file" / "store"
    added = mrr("add", folder / "page0.png", "--model", pair[0], "--json", store=store)
    assert added.exit_code == 1 and "nothing outlives this call" in added.stderr
    assert len(json.loads(added.stdout)["pages"]) == 1


def test_a_stopped_call_says_what_it_did(folder: Path, pair, tmp_path, monkeypatch) -> None:
    add_page = MiniReranker.add_page

    def stopped(self, item, scope="public"):
        if item.label == "page1.png":
            raise KeyboardInterrupt
        return add_page(self, item, scope)

    monkeypatch.setattr(MiniReranker, "add_page", stopped)
    files = [folder / "page0.png", folder / "page1.png"]
    added = mrr("add", *files, "--model", pair[0], "--json", store=tmp_path / "store")
    assert added.exit_code == 1 and "Stopped" in added.stderr
    assert [p["label"] for p in json.loads(added.stdout)["pages"]] == ["page0.png"]


def test_ranking_a_store_that_is_not_there_makes_none(pair, tmp_path: Path) -> None:
    result = mrr("rank", "x", "--model", pair[0], "--json", store=tmp_path / "mistyped")
    assert isinstance(result.exception, InputRejected)
    assert not (tmp_path / "mistyped").exists()


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
