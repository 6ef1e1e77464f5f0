"""What an engine is made of: the configuration it was trained for, the memory it may take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mrr.build import dense_store, trained_config
from mrr.config import RerankConfig
from mrr.errors import InvalidConfig
from mrr.model.load import LoadedModel
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
