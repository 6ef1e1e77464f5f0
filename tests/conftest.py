"""Shared fixtures: tiny checkpoints are built once per test process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from cache_db import PageStore
from mrr import MiniReranker
from mrr.build import Parts, load_parts, trained_config
from mrr.model.load import LoadedModel, load_model
from tests.tiny import DEVICE, FAMILIES, save_checkpoint

torch.set_num_threads(1)

# How long an example took says how busy the machine is, and nothing of the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per family."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: save_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> LoadedModel:
    """Each family in turn, as the engine loads it."""
    return load_model(checkpoints[request.param], device=DEVICE, dtype=torch.float32)


@pytest.fixture(scope="session")
def qwen3(checkpoints: dict[str, Path]) -> LoadedModel:
    return load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.float32)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny reranker, trained band [2, 4) and exit 4, and of a tiny embedder."""
    root = tmp_path_factory.mktemp("pair")
    trained = {"band": [2, 4], "exit_layer": 4, "keep_ratio": 0.5}
    return (
        save_checkpoint(root / "reranker", seed=1, **trained),
        save_checkpoint(root / "embedder", seed=2),
    )


@pytest.fixture(scope="session")
def parts(pair: tuple[Path, Path]) -> Parts:
    """The pair as `from_pretrained` loads it."""
    return load_parts(
        *pair,
        revision=None,
        embedder_revision=None,
        device=DEVICE,
        dtype=torch.float32,
        template=None,
        self_check=False,
    )


@pytest.fixture
def reranker(parts: Parts, tmp_path: Path) -> Iterator[MiniReranker]:
    """The whole engine on a fresh store in tmp_path / "store"; only the models have served."""
    with MiniReranker(
        parts.loaded,
        parts.template,
        trained_config(parts.loaded, None),
        embedder=parts.embedder,
        store=PageStore(tmp_path / "store"),
        owns_store=True,
    ) as engine:
        yield engine
