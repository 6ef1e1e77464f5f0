"""`mrr train` refuses what would have no effect, and hands on what it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mrr.train import finetune as module
from mrr.train.cli import train
from mrr.train.finetune import FinetunePlan


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[FinetunePlan]:
    """What would have been trained."""
    asked: list[FinetunePlan] = []

    def note(plan: FinetunePlan) -> Path:
        asked.append(plan)
        return plan.folder

    monkeypatch.setattr(module, "finetune", note)
    return asked


def finetune(data: Path, *options: str, group: tuple[str, ...] = ()) -> Result:
    call = ["--run", str(data / "run"), *group, "finetune", "model", str(data), *options]
    return CliRunner().invoke(train, call)


def test_without_an_embedder_every_token_is_kept_and_said_to_be(
    plans: list[FinetunePlan], tmp_path: Path
) -> None:
    done = finetune(tmp_path)
    assert done.exit_code == 0 and "every token is kept" in done.stderr
    assert (plans[0].config.pruner, plans[0].config.keep_ratio) == ("none", 1)
    assert finetune(tmp_path, "--keep-ratio", "1").stderr == "", "it was asked for"
    pruned = finetune(tmp_path, "--embedder", "e", "--keep-ratio", "0.25")
    assert pruned.stderr == ""
    assert (plans[2].config.pruner, plans[2].config.keep_ratio) == ("embedder", 0.25)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--keep-ratio", "0.25"], "--keep-ratio 0.25 has no embedder"),
        (["--keep-ratio", "2", "--embedder", "e"], "is not in the range 0<x<=1"),
        (["--keep-ratio", "0", "--embedder", "e"], "is not in the range 0<x<=1"),
    ],
)
def test_a_ratio_that_cannot_be_kept_is_refused(
    plans: list[FinetunePlan], tmp_path: Path, options: list[str], sentence: str
) -> None:
    refused = finetune(tmp_path, *options)
    assert refused.exit_code == 2 and sentence in refused.stderr and not plans


def test_finetune_takes_the_minutes_and_the_seed_of_the_group(
    plans: list[FinetunePlan], tmp_path: Path
) -> None:
    assert finetune(tmp_path, group=("--minutes", "2.5", "--seed", "7")).exit_code == 0
    assert (plans[0].minutes, plans[0].seed) == (2.5, 7)


@pytest.mark.parametrize("option", ["--workers", "--rate", "--read-steps"])
def test_an_option_of_stages_is_refused_by_finetune(
    plans: list[FinetunePlan], tmp_path: Path, option: str
) -> None:
    refused = finetune(tmp_path, group=(option, "3"))
    assert refused.exit_code == 2 and f"{option} is for stages" in refused.stderr and not plans


def test_the_help_says_that_large_checkpoints_are_tuned_too() -> None:
    head = CliRunner().invoke(train, ["--help"]).stdout.split("Options:")[0]
    assert "fine-tune a large checkpoint" in head
