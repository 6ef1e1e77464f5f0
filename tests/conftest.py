"""Shared fixtures: tiny checkpoints are built once per test process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mrr.model.load import LoadedModel, load_model
from tests.tiny import FAMILIES, save_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per family."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: save_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> LoadedModel:
    """Each family in turn, as the engine loads it."""
    return load_model(checkpoints[request.param], device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def qwen3(checkpoints: dict[str, Path]) -> LoadedModel:
    return load_model(checkpoints["qwen3_vl"], device="cpu", dtype=torch.float32)
