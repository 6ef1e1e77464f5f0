"""Which K/V and vectors of a page are reused, and which never are."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mrr import MiniReranker
from mrr.errors import NotFinite
from mrr.timing import Stages
from tests.engines import N_PAGES, logits, pictures, reopen
from tests.tiny import DEVICE, picture


def test_a_restart_finds_every_page_and_gives_the_very_same_logits(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    reranker.add(pictures())
    before = reranker.rank("blue page")
    reranker.close()
    again = reopen(pair, tmp_path)
    after = again.rank("blue page")
    assert after.usage.missed_pages == 0 and after.usage.bytes_read > 0
    assert logits(after) == logits(before)
    assert again.rank("blue page").usage.bytes_read == 0  # the memory tier
    again.close()


def test_cached_equals_uncached(reranker: MiniReranker, pair, tmp_path: Path) -> None:
    reranker.add(pictures())
    warm = logits(reranker.rank("blue page"))
    fresh = reopen(pair, tmp_path, store=tmp_path / "other")
    fresh.add(pictures())
    assert logits(fresh.rank("blue page")) == warm
    fresh.close()


def test_a_damaged_entry_costs_time_and_nothing_else(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    reranker.add(pictures())
    before = reranker.rank("blue page")
    reranker.close()
    damaged = 0
    for file in (tmp_path / "store" / "files").iterdir():
        data = bytearray(file.read_bytes())
        if not data.startswith(b"\x89PNG"):
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
            damaged += 1
    assert damaged == N_PAGES
    again = reopen(pair, tmp_path)
    ranked = again.rank("blue page")
    assert ranked.usage.missed_pages == N_PAGES
    assert logits(ranked) == logits(before)
    again.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"exit_layer": 5, "band": (2, 5)},
        {"band": (1, 4)},
        {"keep_ratio": 0.25},
        {"pruner": "uniform"},
        {"pruner": "random"},
        {"kv_dtype": "fp32"},
        {"instruction": "Find the picture."},
        {"max_pixels": 16 * 1024},
    ],
)
def test_changing_anything_that_changes_page_kv_never_reuses_an_entry(
    reranker: MiniReranker, changes
) -> None:
    reranker.add(pictures()[:2])
    twin = reranker.with_config(replace(reranker.config, **changes))
    assert twin.rank("blue page").usage.missed_pages == 2
    assert twin.rank("blue page").usage.missed_pages == 0


@pytest.mark.parametrize("changes", [{"order": "document-first"}, {"seed": 5}, {"exit_layer": 5}])
def test_changing_what_does_not_touch_page_kv_keeps_every_entry(
    reranker: MiniReranker, changes
) -> None:
    reranker.add(pictures()[:2])
    twin = reranker.with_config(replace(reranker.config, **changes))
    assert twin.rank("blue page").usage.missed_pages == 0


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}),
        ("config.json", {"mini_reranker": {"band": [2, 4], "exit_layer": 4, "keep_ratio": 0.25}}),
    ],
)
def test_a_checkpoint_changed_outside_its_weights_never_reuses_an_entry(
    reranker: MiniReranker, pair, tmp_path: Path, file: str, change
) -> None:
    reranker.add(pictures()[:2])
    reranker.close()
    shutil.copytree(pair[0], tmp_path / "changed")
    described = json.loads((tmp_path / "changed" / file).read_text())
    (tmp_path / "changed" / file).write_text(json.dumps(described | change))
    engine = MiniReranker.from_pretrained(
        tmp_path / "changed", embedder=pair[1], store=tmp_path / "store", device=DEVICE,
        self_check=False,
    )  # fmt: skip
    assert engine.rank("blue page").usage.missed_pages == 2
    engine.close()


def test_a_page_that_is_known_stays_where_another_configuration_cannot_encode_it(
    reranker: MiniReranker, monkeypatch
) -> None:
    reranker.add(pictures()[:1])
    other = reranker.with_config(replace(reranker.config, keep_ratio=0.75))

    def broken(*given):
        raise NotFinite("not finite")

    monkeypatch.setattr(other.cache.scorer, "encode", broken)
    assert other.add(pictures()[:1]).failed
    assert len(reranker.store.pages(["public"])) == 1 and len(reranker.rank("x")) == 1


def test_random_pruning_keeps_other_tokens_of_another_page(reranker: MiniReranker) -> None:
    drawn = reranker.with_config(replace(reranker.config, pruner="random"))
    one, two = drawn.add([picture(1, (192, 128)), picture(2, (192, 128))]).pages
    kept = [drawn.explain("x", page).keep.kept for page in (one, two)]
    assert kept[0].shape == kept[1].shape and (kept[0] != kept[1]).any()


def test_random_pruning_keeps_the_same_tokens_of_a_page_wherever_it_is_encoded(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    fresh = reopen(pair, tmp_path, store=tmp_path / "other")
    kept = []
    for engine, before in ((reranker, []), (fresh, pictures()[2:4])):
        drawn = engine.with_config(replace(engine.config, pruner="random"))
        drawn.add(before)
        pages = [done.page for done in drawn.add(pictures()[:2]).pages]
        kept.append([kv.kept.tolist() for kv in drawn.cache.load(pages, Stages(drawn.device))])
    assert kept[0] == kept[1]
    fresh.close()


def test_another_checkpoint_never_reuses_an_entry(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    from tests.tiny import save_checkpoint

    reranker.add(pictures()[:2])
    reranker.close()
    trained = {"band": [2, 4], "exit_layer": 4, "keep_ratio": 0.5}
    other = save_checkpoint(tmp_path / "other", seed=9, **trained)
    engine = MiniReranker.from_pretrained(
        other,
        embedder=pair[1],
        store=tmp_path / "store",
        device=DEVICE,
        dtype=torch.float32,
        self_check=False,
    )
    assert engine.rank("blue page").usage.missed_pages == 2
    engine.close()


def test_embedding_pages_that_another_model_added_is_a_stage_of_its_own(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    from tests.tiny import save_checkpoint

    reranker.add(pictures()[:2])
    reranker.close()
    other = save_checkpoint(tmp_path / "other", seed=9)
    engine = reopen(pair, tmp_path, embedder=other)
    assert list(engine.rank("blue page").usage.ms)[:2] == ["retrieve", "embed"]
    assert "embed" not in engine.rank("blue page").usage.ms
    engine.close()
