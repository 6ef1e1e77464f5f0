"""Begin a run from an exported pair: its tokenizer, and its weights for every stage.

What is not exported starts afresh (the optimizers, the character head, the probes) and is back
within some hundred steps.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from mrr.train.card import read_training

_BEGUN = "begun.json"


@dataclass(frozen=True, slots=True)
class Begun:
    """Where a run began. runs: those that made the pair it began from. read_step: of reading."""

    runs: tuple[dict[str, Any], ...] = ()
    read_step: int = 0


def begun(root: Path) -> Begun:
    """How the run in root began; from nothing, if nothing says otherwise."""
    path = root / _BEGUN
    return Begun(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Begun()


def remember(pair: Path, root: Path, read_step: int) -> None:
    """Write down that the run in root begins from a pair. Raises InputRejected for no pair."""
    training = read_training(pair, "tiny-reranker")
    root.mkdir(parents=True, exist_ok=True)
    start = Begun(tuple(training["runs"]), read_step)
    (root / _BEGUN).write_text(json.dumps(asdict(start)), encoding="utf-8")


def load_pair(folder: Path) -> tuple[Any, Any]:
    """(reranker, embedder) of an exported pair, float32. Raises OSError where one is missing."""
    reranker, embedder = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / name, dtype=torch.float32, local_files_only=True
        )
        for name in ("tiny-reranker", "tiny-embedder")
    )
    return reranker.model, embedder.model


def save_start(
    module: nn.Module, part: str, trained: nn.Module, stage_dir: Path, step: int
) -> None:
    """Put the trained weights in place of `module.part` and save it as a stage's checkpoint."""
    getattr(module, part).load_state_dict(trained.state_dict())
    stage_dir.mkdir(parents=True, exist_ok=True)
    state = {
        "model": module.state_dict(),
        "optimizers": [],
        "step": step,
        "train_s": 0.0,
        "n_cells": 0,
    }
    torch.save(state, stage_dir / "checkpoint.pt")
