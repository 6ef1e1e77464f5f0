"""Configuration: the paper's values by depth, and refusals that name the number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrr.config import Limits, RerankConfig, default_limits, digest, layer_range, paper_band
from mrr.errors import InvalidConfig, MRRError


def test_bands_of_the_paper() -> None:
    assert paper_band(28) == (8, 16)
    assert paper_band(36) == (8, 21)


@pytest.mark.parametrize("n_layers", range(1, 80))
def test_every_depth_gets_a_band_that_fits(n_layers: int) -> None:
    config = RerankConfig().resolve(n_layers)
    assert 0 <= config.band[0] < config.band[1] == config.exit_layer <= n_layers


def test_an_early_exit_alone_pulls_the_band_in() -> None:
    assert RerankConfig(exit_layer=4).resolve(28).band == (3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_layer": 40}, "28 layers"),
        ({"exit_layer": 10, "band": (8, 16)}, r"\[8, 16\)"),
        ({"band": (5, 5)}, r"\[5, 5\)"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_its_numbers(changes, message) -> None:
    with pytest.raises(InvalidConfig, match=message):
        RerankConfig(**changes).resolve(28)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.5])
def test_keep_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(InvalidConfig, match="keep_ratio"):
        RerankConfig(keep_ratio=ratio)


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
@pytest.mark.parametrize("pixels", [0, -5])
def test_a_page_of_no_pixels_is_refused(name: str, pixels: int) -> None:
    with pytest.raises(InvalidConfig, match=f"{name} is {pixels}"):
        RerankConfig(**{name: pixels})


def test_a_seed_that_no_generator_takes_is_refused_at_once() -> None:
    with pytest.raises(InvalidConfig, match="seed is -1"):
        RerankConfig(seed=-1)


def test_numbers_are_taken_as_json_and_numpy_give_them() -> None:
    given = RerankConfig(band=[3, np.int64(5)], exit_layer=np.int64(6), keep_ratio=np.float32(0.5))
    assert given == RerankConfig(band=(3, 5), exit_layer=6, keep_ratio=0.5)
    assert hash(given) and digest(band=given.band, ratio=given.keep_ratio, end=given.exit_layer)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exit_layer", 5.0),
        ("band", (1, 2, 3)),
        ("band", 7),
        ("keep_ratio", "half"),
        ("keep_ratio", None),
        ("seed", None),
        ("instruction", None),
        ("instruction", "a\ud800b"),
    ],
)
def test_what_is_no_value_of_a_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidConfig, match=f"^{name} is .*; it must be "):
        RerankConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("max_query_chars", -1, "is -1; it must be above 0"),
        ("max_pdf_pages", 0, "is 0; it must be above 0"),
        ("max_file_bytes", "x", "is 'x'; it must be a whole number"),
        ("max_files", 2.5, "is 2.5; it must be a whole number"),
        ("max_text_tokens", None, "is None; it must be a whole number"),
        ("page_timeout_s", "long", "is 'long'; it must be a number"),
        ("page_timeout_s", float("nan"), "is nan; it must be above 0"),
        ("page_timeout_s", float("inf"), "is inf; it must be above 0, and finite"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_by_name(name: str, value: object, reason: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{name} {reason}"):
        Limits(**{name: value})


def test_limits_are_taken_as_numpy_gives_them() -> None:
    given = Limits(max_files=np.int64(3), page_timeout_s=np.float32(0.5))
    assert given == Limits(max_files=3, page_timeout_s=0.5) and type(given.max_files) is int


def test_a_refused_setting_is_a_value_error_and_one_of_the_packages_own() -> None:
    assert issubclass(InvalidConfig, ValueError) and issubclass(InvalidConfig, MRRError)


@pytest.mark.parametrize(
    "changes", [{"order": "vision_first"}, {"pruner": "fastest"}, {"kv_dtype": "int4"}]
)
def test_a_misspelt_choice_is_refused_with_the_choices(changes) -> None:
    with pytest.raises(InvalidConfig, match="choose one of"):
        RerankConfig(**changes)


def test_no_pruning_has_one_spelling() -> None:
    one = RerankConfig(pruner="none", keep_ratio=0.5).resolve(28)
    two = RerankConfig(pruner="embedder", keep_ratio=1.0).resolve(28)
    assert one == two


def test_dense_switches_every_part_but_the_reuse_off() -> None:
    dense = RerankConfig(keep_ratio=0.25).dense(28)
    assert (dense.band, dense.exit_layer, dense.pruner) == ((0, 28), 28, "none")
    assert dense.order == RerankConfig().order


def test_the_digest_depends_on_every_field_and_not_on_their_order() -> None:
    assert digest(a=1, b=2) == digest(b=2, a=1)
    assert digest(a=1, b=2) != digest(a=2, b=1)
    assert replace(RerankConfig(), seed=1) != RerankConfig()


def test_people_read_layers_from_0_with_both_ends_included() -> None:
    assert layer_range((3, 7)) == "3–6"
    assert layer_range((0, 12)) == "0–11"
    assert layer_range((5, 6)) == "5"


def test_an_instruction_that_every_page_would_have_to_be_read_with_has_a_limit() -> None:
    assert RerankConfig(instruction="w" * 2000)
    with pytest.raises(InvalidConfig, match="has 2,001 characters; the limit is 2,000"):
        RerankConfig(instruction="w" * 2001)


def test_the_environment_says_how_large_a_file_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MRR_MAX_FILE_MB", raising=False)
    assert default_limits() == Limits()
    for named, nbytes in (("100", 100 * 2**20), (" 0.5 ", 2**19), ("", 20 * 2**20)):
        monkeypatch.setenv("MRR_MAX_FILE_MB", named)
        assert default_limits() == Limits(max_file_bytes=nbytes)


@pytest.mark.parametrize("named", ["large", "0", "-1", "nan", "inf", "1e-9"])
def test_a_size_of_files_that_is_none_is_refused_by_name(named: str, monkeypatch) -> None:
    monkeypatch.setenv("MRR_MAX_FILE_MB", named)
    with pytest.raises(InvalidConfig, match=f"MRR_MAX_FILE_MB is '{named}'"):
        default_limits()
