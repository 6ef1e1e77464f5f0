"""A vision tower that the reranker and its embedder have in common runs once a page."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mrr import MiniReranker
from mrr.model.load import LoadedModel, load_model, share_tower
from tests.tiny import DEVICE, picture, save_checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints with one vision tower and two language models."""
    root = tmp_path_factory.mktemp("pair")
    reranker = save_checkpoint(root / "reranker", seed=0)
    embedder = save_checkpoint(root / "embedder", seed=1)
    mixed = {
        **load_file(embedder / "model.safetensors"),
        **{k: v for k, v in load_file(reranker / "model.safetensors").items() if "visual" in k},
    }
    save_file(mixed, embedder / "model.safetensors", {"format": "pt"})
    return reranker, embedder


@contextmanager
def passes(loaded: LoadedModel) -> Iterator[list[int]]:
    """One entry for every pass of a tower."""
    counted: list[int] = []
    handle = loaded.tower.register_forward_hook(lambda *_: counted.append(1))
    try:
        yield counted
    finally:
        handle.remove()


def cached(engine: MiniReranker) -> tuple[np.ndarray, np.ndarray, float]:
    page = engine.add([picture(1)]).pages[0].page
    stored = engine.store.embedding(page.page_id, engine.cache.embedding_fingerprint)
    assert stored is not None
    return stored.vector, stored.importance, engine.rank("red fox")[0].logit


def test_a_shared_tower_runs_once_a_page_and_changes_nothing(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def build(store: str) -> MiniReranker:
        return MiniReranker.from_pretrained(
            pair[0],
            embedder=pair[1],
            store=tmp_path / store,
            device=DEVICE,
            dtype=torch.float32,
            self_check=False,
        )

    with closing(build("shared")) as engine:
        assert engine.embedder is not None
        assert engine.embedder.loaded.tower is engine.loaded.tower
        with passes(engine.loaded) as counted:
            together = cached(engine)
        assert len(counted) == 1
    with closing(build("apart")) as engine:
        assert engine.embedder is not None
        own = copy.deepcopy(engine.loaded.tower)
        engine.embedder.loaded.model.model.visual = own
        apart = cached(engine)
    for one, other in zip(together, apart, strict=True):
        assert np.array_equal(one, other)


def test_towers_that_differ_stay_apart(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other", seed=2)
    built = MiniReranker.from_pretrained(
        pair[0],
        embedder=other,
        store=tmp_path / "store",
        device=DEVICE,
        dtype=torch.float32,
        self_check=False,
    )
    with closing(built) as engine:
        assert engine.embedder is not None
        assert engine.embedder.loaded.tower is not engine.loaded.tower
        with passes(engine.loaded) as counted:
            engine.add([picture(1)])
        assert len(counted) == 1


@pytest.mark.parametrize("mean", [[0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])
def test_equal_towers_that_see_other_pixels_of_a_page_stay_apart(
    pair: tuple[Path, Path], tmp_path: Path, mean: list[float]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(pair[1], folder)
    file = folder / "preprocessor_config.json"
    described = json.loads(file.read_text())
    is_same = described["image_mean"] == mean
    file.write_text(json.dumps(described | {"image_mean": mean}))
    one, other = (load_model(path, device=DEVICE) for path in (pair[0], folder))
    share_tower(one, other)
    assert (other.tower is one.tower) is is_same
