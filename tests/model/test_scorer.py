"""What identifies page K/V, and sizes of a page that no model can see."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mrr.config import RerankConfig
from mrr.errors import InvalidConfig
from mrr.model import scorer as module
from mrr.model.load import LoadedModel, load_model
from mrr.model.prompt import QWEN_RERANKER, PromptEncoder, PromptTemplate
from mrr.model.scorer import Scorer
from tests.tiny import DEVICE

CONFIG = RerankConfig(band=(2, 4), exit_layer=5, pruner="random", max_pixels=32 * 1024)
UNIFORM = replace(CONFIG, pruner="uniform")
Changed = Callable[[LoadedModel, pytest.MonkeyPatch], Scorer]


def of(
    loaded: LoadedModel, config: RerankConfig = CONFIG, template: PromptTemplate = QWEN_RERANKER
) -> Scorer:
    return Scorer(loaded, PromptEncoder(loaded.tokenizer, template), config)


def other_cell(loaded: LoadedModel, _: pytest.MonkeyPatch) -> Scorer:
    processor = copy.copy(loaded.image_processor)
    processor.merge_size *= 2
    return of(replace(loaded, image_processor=processor))


def other_format(loaded: LoadedModel, patch: pytest.MonkeyPatch) -> Scorer:
    patch.setattr(module, "FORMAT", module.FORMAT + 1)
    return of(loaded)


def other_release(package: str) -> Changed:
    def changed(loaded: LoadedModel, patch: pytest.MonkeyPatch) -> Scorer:
        real = module.version
        patch.setattr(module, "version", lambda name: "99.0" if name == package else real(name))
        return of(loaded)

    return changed


def config(**changes: object) -> Changed:
    return lambda loaded, _: of(loaded, replace(CONFIG, **changes))


def template(**changes: str) -> Changed:
    return lambda loaded, _: of(loaded, template=replace(QWEN_RERANKER, **changes))


# {what is changed: the scorer that differs from of(loaded) in nothing else}
CHANGES: dict[str, Changed] = {
    "format": other_format,
    "band": config(band=(1, 4)),
    "keep ratio": config(keep_ratio=0.25),
    "pruner": config(pruner="uniform"),
    "seed of the random pruner": config(seed=1),
    "storage": config(kv_dtype="fp32"),
    "instruction": config(instruction="Find the picture."),
    "model": lambda loaded, _: of(replace(loaded, digest="of other weights")),
    "name of the template": template(name="another"),
    "words of the template": template(document_first=QWEN_RERANKER.document_first + "!"),
    "least pixels": config(min_pixels=8 * 1024),
    "most pixels": config(max_pixels=16 * 1024),
    "side of a visual token": other_cell,
    "torch": other_release("torch"),
    "transformers": other_release("transformers"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_changes_page_kv_changes_its_identity(
    change: Changed, qwen3: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of(qwen3).fingerprint()
    assert change(qwen3, monkeypatch).fingerprint() != before


def test_the_same_weights_in_another_precision_have_page_kv_of_their_own(
    qwen3: LoadedModel, checkpoints: dict[str, Path]
) -> None:
    rounded = load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.bfloat16)
    assert rounded.digest == qwen3.digest
    assert of(rounded).fingerprint() != of(qwen3).fingerprint()


def test_who_guides_the_pruning_is_part_of_the_identity(qwen3: LoadedModel) -> None:
    assert of(qwen3).fingerprint(pruner_guide="one") != of(qwen3).fingerprint(pruner_guide="two")


def test_what_page_kv_does_not_depend_on_leaves_its_identity(qwen3: LoadedModel) -> None:
    assert of(qwen3, replace(CONFIG, exit_layer=6)).fingerprint() == of(qwen3).fingerprint()
    other_seed = of(qwen3, replace(UNIFORM, seed=1))
    assert other_seed.fingerprint() == of(qwen3, UNIFORM).fingerprint()


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"min_pixels": 10**6}, "at least 1000000 and at most 65536"),
        ({"max_pixels": 2 * 1024}, "at least 4096 and at most 2048"),
        ({"max_pixels": 1}, "1 to 1800 visual tokens, 1024 to 1843200 pixels"),
        ({"min_pixels": 1, "max_pixels": 1023}, "max_pixels is 1023"),
        ({"max_pixels": 1801 * 1024}, "max_pixels is 1844224"),
    ],
)
def test_bounds_that_do_not_fit_the_checkpoints_own_are_refused(
    qwen3: LoadedModel, bounds: dict[str, int], words: str
) -> None:
    with pytest.raises(InvalidConfig, match=words):
        of(qwen3, RerankConfig(**bounds))


def test_one_bound_alone_goes_with_the_checkpoints_other(qwen3: LoadedModel) -> None:
    one = of(qwen3, RerankConfig(min_pixels=8 * 1024))
    assert (one.min_pixels, one.max_pixels) == (8 * 1024, 64 * 1024)
    other = of(qwen3, RerankConfig(max_pixels=1800 * 1024))
    assert (other.min_pixels, other.max_pixels) == (4 * 1024, 1800 * 1024)
