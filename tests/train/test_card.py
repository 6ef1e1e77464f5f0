"""Model cards say what was measured, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mrr.errors import InputRejected
from mrr.train.card import TRAINING, card, write_cards
from mrr.train.cli import train

FACTS = {
    "runs": [
        {"stages": {"reading": {"steps": 1320, "minutes": 75.0, "device": "cpu"}},
         "seed": 0, "commit": "abc"},
        {"stages": {"reading": {"steps": 900, "minutes": 81.4, "device": "NVIDIA H200"}},
         "seed": 7, "commit": "def"},
    ],
    "parameters": {"tiny-reranker": 11_821_088, "tiny-embedder": 7_518_752},
    "reading": {"common": {"cell_recall": 0.7541}, "unseen_faces": {"cell_recall": 0.7719}},
    "rendered": {"reranker": {"mini_ndcg5": 0.6262}},
}  # fmt: skip
REPORT = {
    "dataset": "examples", "n_queries": 49, "n_candidates": 32,
    "systems": [{"name": "mini", "metrics": {
        "ndcg@5": {"value": 0.6154, "low": 0.5044, "high": 0.7211}, "recall@20": {"value": 0.9}}}],
    "anchors": [],
}  # fmt: skip


def test_a_card_has_the_fields_that_the_hub_reads_and_every_run_of_training() -> None:
    text = card("tiny-reranker", FACTS, [REPORT])
    _, head, body = text.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["license"] == "apache-2.0" and fields["library_name"] == "transformers"
    assert "| 1 | reading | 1,320 | 75 | cpu |" in body
    assert "| 2 | reading | 900 | 81.4 | NVIDIA H200 |" in body
    assert "Seed 7, commit def." in body
    assert "| examples | 49 queries, 32 candidates | mini | 0.615 [0.504, 0.721] | 0.900 |" in body
    assert "held-out text: 0.754 (common), 0.772 (unseen faces)." in body
    assert '"mini_ndcg5": 0.6262' in body and "11.8M parameters" in body


def test_cards_are_written_anew_with_reports_from_the_command_line(tmp_path: Path) -> None:
    for name in FACTS["parameters"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / TRAINING).write_text(json.dumps(FACTS))
    report = tmp_path / "report.json"
    report.write_text(json.dumps(REPORT))
    run = ["--run", str(tmp_path / "run"), "card", str(tmp_path), str(report)]
    assert CliRunner().invoke(train, run).exit_code == 0
    assert "0.615" in (tmp_path / "tiny-embedder" / "README.md").read_text()


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", "null", '{"n_queries": 1, "n_candidates": 2, "systems": 3}']
)
def test_a_report_of_something_else_is_refused_and_the_cards_stay(
    tmp_path: Path, text: str
) -> None:
    for name in FACTS["parameters"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / TRAINING).write_text(json.dumps(FACTS))
        (tmp_path / name / "README.md").write_text("the card")
    report = tmp_path / "report.json"
    report.write_text(text)
    run = ["--run", str(tmp_path / "run"), "card", str(tmp_path), str(report)]
    result = CliRunner().invoke(train, run)
    assert isinstance(result.exception, InputRejected) and "mrr eval --json" in str(
        result.exception
    )
    assert (tmp_path / "tiny-reranker" / "README.md").read_text() == "the card"


def test_a_folder_that_holds_no_pair_is_refused_and_nothing_in_it_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "tiny-reranker").mkdir()
    (tmp_path / "tiny-reranker" / TRAINING).write_text(json.dumps(FACTS))
    with pytest.raises(InputRejected, match=r"holds no tiny-embedder/training\.json; name the"):
        write_cards(tmp_path, [])
    assert not (tmp_path / "tiny-reranker" / "README.md").exists()
