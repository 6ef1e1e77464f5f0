"""What an engine is made of: the configuration it was trained for, the memory it may take."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mrr.build import dense_store, load_parts, open_store, trained_config
from mrr.config import RerankConfig
from mrr.errors import InputRejected, InvalidConfig, UnsupportedModel
from mrr.model.load import LoadedModel, load_model
from tests.tiny import N_LAYERS

TRAINED = {"band": (2, 4), "exit_layer": 5, "keep_ratio": 0.25}


@pytest.fixture
def trained(qwen3: LoadedModel) -> LoadedModel:
    return replace(qwen3, trained=TRAINED)


@pytest.mark.parametrize(
    ("given", "band", "exit_layer"),
    [
        ({}, (2, 4), 5),
        ({"exit_layer": 6}, (2, 4), 6),
        ({"exit_layer": 4}, (2, 4), 4),
        ({"exit_layer": 3}, (2, 3), 3),
        ({"exit_layer": 1}, (0, 1), 1),
        ({"band": (1, 3)}, (1, 3), 5),
        ({"band": (3, 6)}, (3, 6), 6),
        ({"band": (1, 2), "exit_layer": 2}, (1, 2), 2),
    ],
)
def test_what_is_left_open_is_what_the_checkpoint_was_trained_for(
    trained: LoadedModel, given, band, exit_layer
) -> None:
    config = trained_config(trained, RerankConfig(**given))
    assert (config.band, config.exit_layer) == (band, exit_layer)
    resolved = config.resolve(N_LAYERS)
    assert (resolved.band, resolved.exit_layer) == (band, exit_layer)


def test_a_trained_keep_ratio_holds_only_where_no_config_is_given(trained: LoadedModel) -> None:
    assert trained_config(trained, None).keep_ratio == 0.25
    assert trained_config(trained, RerankConfig()).keep_ratio == RerankConfig().keep_ratio


def test_a_checkpoint_that_says_nothing_of_its_training_leaves_all_open(qwen3) -> None:
    for config in (RerankConfig(), RerankConfig(exit_layer=3), RerankConfig(band=(1, 2))):
        assert trained_config(qwen3, config) == config


def test_a_band_beyond_the_model_is_refused_as_the_band(trained: LoadedModel) -> None:
    config = trained_config(trained, RerankConfig(band=(1, 9)))
    with pytest.raises(InvalidConfig, match=r"band \[1, 9\) must lie within the 6 layers"):
        config.resolve(N_LAYERS)


@pytest.mark.parametrize(("there_gib", "taken_gib"), [(1, 0.5), (2, 1), (8, 4), (12, 4), (64, 16)])
def test_dense_kv_takes_a_quarter_of_the_memory_or_4_gib_but_never_over_half(
    there_gib: int, taken_gib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrr.build._memory_bytes", lambda: there_gib * 2**30)
    with dense_store() as store:
        assert store.stats().budget_bytes == taken_gib * 2**30


def test_a_config_of_another_type_is_refused_by_its_type(qwen3: LoadedModel) -> None:
    with pytest.raises(InvalidConfig, match=r"dict.*must be a RerankConfig"):
        trained_config(qwen3, {"keep_ratio": 0.5})  # type: ignore[arg-type]


def test_an_embedder_may_come_without_a_head_and_a_reranker_may_not(pair, tmp_path: Path) -> None:
    """As Qwen3-VL-Embedding-8B is published: its embeddings are not tied to a head it lacks."""
    folder = tmp_path / "headless"
    shutil.copytree(pair[1], folder)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    options = {
        "revision": None,
        "embedder_revision": None,
        "device": "cpu",
        "dtype": "float32",
        "template": None,
        "self_check": False,
    }
    parts = load_parts(pair[0], folder, **options)
    whole = load_parts(pair[0], pair[1], **options)
    assert parts.embedder is not None and whole.embedder is not None
    assert np.array_equal(parts.embedder.embed_query("blue"), whole.embedder.embed_query("blue"))
    with pytest.raises(UnsupportedModel, match=r"lm_head\.weight"):
        load_parts(folder, None, **options)


def test_a_precision_may_be_named_as_transformers_names_it(pair) -> None:
    assert load_model(pair[0], device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(InputRejected, match="int8 is not served"):
        load_model(pair[0], device="cpu", dtype="int8")


def test_an_empty_name_of_a_store_is_refused() -> None:
    with pytest.raises(InputRejected, match="store's folder is empty"):
        open_store("")
