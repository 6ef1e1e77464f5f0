"""`mrr eval`: JSON on stdout, everything else on stderr, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mrr.errors import InputRejected, MRRError
from mrr.measure.cli import eval_command
from mrr.measure.dataset import read_dataset
from tests.measure.helpers import CORPUS, QUERIES, write_dataset, write_small_dataset
from tests.tiny import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set")


def run(pair: tuple[Path, Path], folder: Path, *options: str) -> Result:
    models = ["--model", str(pair[0]), "--embedder", str(pair[1]), "--device", "cpu"]
    return CliRunner().invoke(eval_command, [str(folder), *models, *options])


def test_json_is_alone_on_stdout_and_the_table_on_stderr(
    pair: tuple[Path, Path], folder: Path
) -> None:
    result = run(pair, folder, "--systems", "mini, original", "--mode", "candidates",
                 "--negatives", "3", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [each["name"] for each in found["systems"]] == ["mini", "original"]
    assert found["n_candidates"] == 4 and found["ablation"] == []
    assert "ndcg@5" in result.stderr and "cache" in result.stderr
    ids = {row["page_id"] for row in CORPUS}
    for system in found["systems"]:
        assert set(system["ranking"]) == {row["query_id"] for row in QUERIES}
        assert all(len(set(ranking) & ids) == 4 for ranking in system["ranking"].values())


def test_the_table_is_on_stdout_and_pages_are_kept_where_asked(
    pair: tuple[Path, Path], folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "kept"
    first = run(pair, folder, "--kinds", "keyword", "--store", str(store))
    assert (
        "2 of 3 queries, 8 candidates each" in first.stdout
        and "cached 8 of 8 pages" in first.stdout
    )
    again = run(pair, folder, "--limit", "1", "--store", str(store))
    assert "set: 1 of 3 queries, 8" in again.stdout and "cached 0 of 8 pages" in again.stdout


def test_the_ablation_is_added_on_request(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path / "small")
    result = run(pair, folder, "--ablation", "--json")
    rows = json.loads(result.stdout)["ablation"]
    assert rows[0]["name"] == "dense" and len(rows) == 16
    assert "mini, keep 25% (random)" in result.stderr


def test_a_checkpoint_is_loaded_as_the_options_say(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path / "small")
    machine = json.loads(run(pair, folder, "--dtype", "bfloat16", "--json").stdout)["machine"]
    assert machine["dtype"] == "bfloat16"
    for option in ("--revision", "--template"):
        result = run(pair, folder, option, "none-such")
        assert isinstance(result.exception, MRRError), option


def test_a_wrong_call_names_what_is_wrong(pair: tuple[Path, Path], folder: Path) -> None:
    result = run(pair, folder, "--systems", "maxi")
    assert result.exit_code == 2 and "maxi is none of mini, dense-reuse, original" in result.stderr
    for nothing in ("", " , "):
        result = run(pair, folder, "--systems", nothing)
        assert result.exit_code == 2 and "name at least one of mini" in result.stderr
        result = run(pair, folder, "--kinds", nothing)
        assert result.exit_code == 2 and "name at least one." in result.stderr
    # Before models are loaded, which here would be refused as well.
    refused = run(pair, folder, "--kinds", "verse", "--model", "./none").exception
    assert isinstance(refused, InputRejected) and "kind verse" in str(refused)
    assert isinstance(run(pair, folder / "none").exception, InputRejected)


def test_the_example_in_the_help_is_a_folder_that_can_be_evaluated(tmp_path: Path) -> None:
    words = CliRunner().invoke(eval_command, ["--help"]).stdout
    name = ""
    for line in words.split("Options:")[0].splitlines():
        head, _, example = line.strip().partition("  ")
        if head.startswith("{"):  # another line of the same file
            example = head
        elif head.endswith((".jsonl", ".tsv")):
            name = head
        else:
            continue
        with (tmp_path / name).open("a") as file:
            file.write(example.strip() + "\n")
    for folder, file in (("pdf", "report.pdf"), ("photos", "bus.png")):
        (tmp_path / folder).mkdir()
        picture(0).save(tmp_path / folder / file)
    with (tmp_path / "text.jsonl").open("a") as file:
        file.write('{"page_id": "bus", "text": "a bus"}\n')
    dataset = read_dataset(tmp_path)
    assert [page.page_num for page in dataset.pages] == [3, 1] and dataset.texts
    assert dataset.qrels == {"q1": {"bus": 2}} and dataset.queries[0].kind == "keyword"


def test_the_help_says_where_kept_pages_are_not_seen() -> None:
    words = " ".join(CliRunner().invoke(eval_command, ["--help"]).stdout.split())
    assert "eval:<name of DIR>" in words and "`mrr rank` does not see them" in words
