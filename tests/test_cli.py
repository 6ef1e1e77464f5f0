"""The command line as a script would use it: JSON on stdout, words on stderr, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cache_db import PageStore
from cache_db.database import Database
from cache_db.schema import MIGRATIONS
from mrr import MiniReranker
from mrr.build import open_store
from mrr.cli import cli, main
from mrr.errors import InputRejected
from mrr.types import Page
from tests.engines import png
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
        "page_id", "label", "page_num", "outcome", "grid", "n_visual_tokens", "n_kept_tokens",
        "nbytes", "ms", "added_as",
    }  # fmt: skip
    assert [p["added_as"] for p in report["pages"]] == [None] * 3
    assert {*report["failed"][0]} == {"file", "reason"}
    assert [f["file"] for f in report["failed"]] == ["broken.png"]
    assert "broken.png" in added.stderr

    ranked = mrr("rank", "blue page", *models, "--json", "--top-k", 2, store=store)
    assert ranked.exit_code == 0, ranked.stderr
    result = json.loads(ranked.stdout)
    assert {*result} == {"query", "system", "results", "usage", "notes"}
    assert {*result["results"][0]} == {
        "rank", "page_id", "label", "page_num", "relevance_score", "logit", "retrieval_score",
        "n_visual_tokens", "n_kept_tokens",
    }  # fmt: skip
    assert {*result["usage"]} == {"cached_pages", "missed_pages", "bytes_read", "ms"}
    assert (result["query"], result["system"]) == ("blue page", "mini")
    assert [r["rank"] for r in result["results"]] == [1, 2]
    assert result["usage"]["cached_pages"] == 2 and result["usage"]["missed_pages"] == 0
    assert result["usage"]["ms"].keys() >= {"retrieve", "load", "query", "band", "head"}
    head, *rows = mrr("rank", "blue page", *models, "--top-k", 2, store=store).stdout.splitlines()
    assert head.split() == ["rank", "score", "logit", "page"]
    best = result["results"][0]
    assert rows[0].split() == [
        "1", f"{best['relevance_score']:.4f}", f"{best['logit']:+.3f}", best["label"],
    ]  # fmt: skip
    assert {row.index(" page") for row in rows} == {head.index(" page")}

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


def test_a_file_that_does_not_exist_is_reported_as_any_that_is_refused(tmp_path: Path) -> None:
    result = mrr("add", tmp_path / "nothing.png", "--json", store=tmp_path / "store")
    assert result.exit_code == 1
    reason = "nothing.png does not exist. Check its name."
    failed = [{"file": "nothing.png", "reason": reason}]
    assert json.loads(result.stdout) == {"pages": [], "failed": failed}
    assert result.stderr == f"{reason}\n"
    assert not (tmp_path / "store").exists(), "there was nothing to store"


def test_a_file_that_is_missing_does_not_keep_the_others_out(folder: Path, pair, tmp_path) -> None:
    models = ["--model", pair[0], "--embedder", pair[1], "--json"]
    added = mrr("add", tmp_path / "gone.png", folder / "page0.png", *models, store=tmp_path / "s")
    assert added.exit_code == 1
    report = json.loads(added.stdout)
    assert [p["label"] for p in report["pages"]] == ["page0.png"]
    assert [f["file"] for f in report["failed"]] == ["gone.png"]


def test_how_large_a_file_may_be_is_a_setting(folder: Path, pair, tmp_path, monkeypatch) -> None:
    large = folder / "large.png"
    large.write_bytes((folder / "page0.png").read_bytes() + bytes(2**18))
    for limit, n_pages in (("0.25", 0), ("0.5", 1)):
        monkeypatch.setenv("MRR_MAX_FILE_MB", limit)
        added = mrr("add", large, "--model", pair[0], "--json", store=tmp_path / "store")
        assert len(json.loads(added.stdout)["pages"]) == n_pages
        assert ("the limit is 0.25 MB" in added.stderr) == (n_pages == 0)


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


def test_a_page_that_is_there_under_another_name_is_told(folder: Path, pair, tmp_path) -> None:
    models = ["--model", pair[0], "--embedder", pair[1], "--json"]
    (folder / "twin.png").write_bytes((folder / "page0.png").read_bytes())
    files = [folder / name for name in ("page0.png", "twin.png", "page1.png")]
    added = mrr("add", *files, *models, store=tmp_path / "store")
    assert added.exit_code == 0
    pages = json.loads(added.stdout)["pages"]
    assert [p["label"] for p in pages] == ["page0.png", "page0.png", "page1.png"]
    assert [p["added_as"] for p in pages] == [None, "twin.png", None]
    assert added.stderr.count("twin.png shows the same as page0.png, which is in the store") == 1


def test_what_made_room_for_pages_is_told(folder: Path, pair, tmp_path, monkeypatch) -> None:
    models = ["--model", pair[0], "--embedder", pair[1]]
    files = [folder / f"page{i}.png" for i in range(12)]
    for i, file in enumerate(files):
        file.write_bytes(png(picture(i)))
    monkeypatch.setenv("MRR_BUDGET_GIB", str(60_000 / 2**30))
    first = mrr("add", files[0], *models, store=tmp_path / "store")
    assert first.exit_code == 0 and "made room" not in first.stderr
    others = mrr("add", *files[1:], *models, store=tmp_path / "store")
    assert others.exit_code == 0 and "The store was full: " in others.stderr


def test_ranking_a_store_that_is_not_there_makes_none(pair, tmp_path: Path) -> None:
    result = mrr("rank", "x", "--model", pair[0], "--json", store=tmp_path / "mistyped")
    assert isinstance(result.exception, InputRejected)
    assert not (tmp_path / "mistyped").exists()


LOOKS = [
    ("rank", "x"),
    ("store", "list"),
    ("store", "stats"),
    ("store", "verify"),
    ("store", "remove", "a.png"),
    ("store", "clear", "--yes"),
]


def spoiled(store: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with a page that this call cannot open. Root may write to every folder."""
    with PageStore(store) as opened:
        opened.add_page(make_page(), picture(0))
        if how == "newer":
            with opened._database.write() as db:
                MIGRATIONS._record_applied(db, "m999_from_the_future")
    if how == "foreign":
        (store / "store.db").unlink()
        with contextlib.closing(sqlite3.connect(store / "store.db")) as db:
            db.execute("CREATE TABLE notes (text)")
    if how == "read-only":
        monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)


def make_page() -> Page:
    width, height = picture(0).size
    return Page("0" * 64, "a.png", "a.png", 1, width, height, "public")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("newer", "m999_from_the_future"),
        ("foreign", "was not written by a store"),
        ("read-only", "cannot be written to"),
    ],
)
def test_a_store_that_cannot_be_opened_is_never_shown_as_an_empty_one(
    pair, tmp_path: Path, monkeypatch, how: str, why: str
) -> None:
    spoiled(tmp_path / "store", how, monkeypatch)
    for words in LOOKS:
        models = ["--model", pair[0]] if words[0] == "rank" else []
        result = mrr(*words, *models, store=tmp_path / "store")
        assert isinstance(result.exception, InputRejected), words  # which main turns into exit 2
        assert why in str(result.exception) and result.stdout == "" and result.stderr == ""


def test_a_folder_that_may_not_be_read_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    def refuse(self: Path) -> bool:  # chmod does not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    result = mrr("store", "stats", store=tmp_path)
    assert isinstance(result.exception, InputRejected)
    assert "cannot be read: Permission denied" in str(result.exception)


@pytest.mark.parametrize("page_range", ["9-3", "a", ""])
def test_a_wrong_page_range_is_refused_before_anything_is_loaded(
    folder: Path, tmp_path: Path, page_range: str
) -> None:
    result = mrr("add", folder, "--model", tmp_path, "--pages", page_range, store=tmp_path / "s")
    assert isinstance(result.exception, InputRejected)
    assert "page range" in str(result.exception) and result.stderr == ""
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("option", ["", "--model", "--embedder", "--store"])
def test_an_empty_name_is_not_the_current_folder(folder: Path, monkeypatch, option: str) -> None:
    monkeypatch.chdir(folder)
    call = ["add", ""] if not option else ["add", "page0.png", option, ""]
    result = CliRunner().invoke(cli, call)
    assert result.exit_code == 2 and "it is empty" in result.stderr
    assert not (folder / "store.db").exists()


def test_a_tilde_that_no_shell_expands_is_the_home_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with open_store("~/pages"):
        pass
    result = CliRunner().invoke(cli, ["store", "stats", "--store=~/pages"])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["n_pages"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def main_with_latin_1(monkeypatch: pytest.MonkeyPatch, *args: object) -> bytes:
    """What the program prints where the encoding of its output is Latin-1."""
    printed = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["mrr", *map(str, args)])
        patch.setattr("sys.stdout", io.TextIOWrapper(printed, "latin-1", write_through=True))
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return printed.getvalue()


def test_an_output_that_lacks_a_character_of_a_label_shows_the_others(
    pair, tmp_path, monkeypatch
) -> None:
    (tmp_path / "scans" / "2024").mkdir(parents=True)
    (tmp_path / "scans" / "2024" / "ü.png").write_bytes(png(picture(0)))
    options = ["--model", pair[0], "--store", tmp_path / "store"]
    main_with_latin_1(monkeypatch, "add", tmp_path / "scans", *options)
    ranked = main_with_latin_1(monkeypatch, "rank", "bus", *options)
    assert ranked.decode("latin-1").endswith("  2024 ? ü.png\n")
    as_json = main_with_latin_1(monkeypatch, "rank", "bus", "--json", *options)
    assert json.loads(as_json)["results"][0]["label"] == "2024 › ü.png"


def test_a_device_without_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    result = mrr("add", folder / "page0.png", "--device", "meta", store=tmp_path / "s")
    assert isinstance(result.exception, InputRejected) and "device meta" in str(result.exception)


def test_a_port_that_does_not_exist_is_refused() -> None:
    for port in ("99999999", "0", "-1"):
        assert CliRunner().invoke(cli, ["serve", "--port", port]).exit_code == 2


def test_an_empty_ranking_as_json_says_what_to_do_on_stderr(pair, tmp_path: Path) -> None:
    PageStore(tmp_path).close()
    result = mrr("rank", "x", "--model", pair[0], "--json", store=tmp_path)
    assert json.loads(result.stdout)["results"] == [] and "mrr add FILE" in result.stderr


def test_a_store_that_stops_being_readable_is_no_empty_one(
    folder: Path, pair, tmp_path: Path, monkeypatch
) -> None:
    models = ["--model", pair[0], "--embedder", pair[1]]
    store = tmp_path / "store"
    mrr("add", folder / "page0.png", *models, store=store)

    def out_of_files(self: object) -> object:
        raise OSError(24, "Too many open files")

    from_pretrained = MiniReranker.from_pretrained

    def then_fails(*given: object, **options: object) -> MiniReranker:
        engine = from_pretrained(*given, **options)  # type: ignore[arg-type]
        monkeypatch.setattr(Database, "_handle", out_of_files)
        return engine

    monkeypatch.setattr(MiniReranker, "from_pretrained", then_fails)
    ranked = mrr("rank", "blue page", *models, store=store)
    assert isinstance(ranked.exception, InputRejected)
    assert "Too many open files" in str(ranked.exception) and ranked.stdout == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    PageStore(tmp_path).close()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mrr", "store", "stats", "--store", str(tmp_path)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "The output cannot be written: No space left on device.\n"


def _in_a_shell(closed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = shlex.join([sys.executable, "-m", "mrr", *arguments])
    return subprocess.run(
        f"{command} {closed}", shell=True, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("closed", "command", "sentence"),
    [
        (">&-", ["rank", "blue"], "The output cannot be written: it is closed."),
        (">&-", ["store", "list"], "The output cannot be written: it is closed."),
        (">&-", ["store", "stats"], "The output cannot be written: it is closed."),
        ("<&-", ["store", "clear"], "There is no one to ask"),
    ],
)
def test_a_stream_that_is_closed_is_one_sentence_and_exit_code_2(
    tmp_path: Path, closed: str, command: list[str], sentence: str
) -> None:
    with PageStore(tmp_path) as opened:
        opened.add_page(make_page(), picture(0))
    done = _in_a_shell(closed, *command, "--store", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(sentence) and done.stderr.count("\n") == 1
    with PageStore(tmp_path) as opened:
        assert opened.stats().n_pages == 1


def test_what_does_more_than_print_does_it_with_a_closed_output_too(tmp_path: Path) -> None:
    with PageStore(tmp_path) as opened:
        opened.add_page(make_page(), picture(0))
    done = _in_a_shell(">&-", "store", "clear", "--yes", "--store", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    with PageStore(tmp_path) as opened:
        assert opened.stats().n_pages == 0


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
