"""The three systems, and the orders of a prompt: nothing but the four parts differs from dense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mrr import MiniReranker
from mrr.config import RerankConfig
from mrr.errors import InputRejected
from tests.engines import N_PAGES, logits, pictures
from tests.tiny import DEVICE


def test_dense_reuse_equals_original_and_mini_without_its_parts_equals_both(
    reranker: MiniReranker,
) -> None:
    reranker.add(pictures())
    original = logits(reranker.rank("blue page", system="original"))
    dense = logits(reranker.rank("blue page", system="dense-reuse"))
    parts_off = RerankConfig(exit_layer=6, band=(0, 6), pruner="none", kv_dtype="fp32")
    mini = logits(reranker.with_config(parts_off).rank("blue page"))
    for page_id, logit in original.items():
        assert dense[page_id] == pytest.approx(logit, abs=1e-4)
        assert mini[page_id] == pytest.approx(logit, abs=1e-4)


def test_monoqwens_own_prompt_runs_image_first_on_qwen2_vl(checkpoints, tmp_path: Path) -> None:
    engine = MiniReranker.from_pretrained(
        checkpoints["qwen2_vl"], store=tmp_path / "store", template="monoqwen", device=DEVICE,
        dtype=torch.float32,
    )  # fmt: skip
    engine.add(pictures()[:3])
    original = logits(engine.rank("blue page", system="original"))
    dense = logits(engine.rank("blue page", system="dense-reuse"))
    assert dense == pytest.approx(original, abs=1e-4)
    assert len(engine.rank("blue page")) == 3
    engine.close()


def test_an_instruction_that_the_template_has_no_place_for_costs_nothing_and_is_told(
    checkpoints, tmp_path: Path, caplog
) -> None:
    engine = MiniReranker.from_pretrained(
        checkpoints["qwen2_vl"], store=tmp_path / "store", template="monoqwen", device=DEVICE,
        self_check=False,
    )  # fmt: skip
    engine.add(pictures()[:2])
    plain = engine.rank("blue page")
    assert not any("instruction" in note for note in plain.notes)
    twin = engine.with_config(replace(engine.config, instruction="Find the map."))
    told = twin.rank("blue page")
    assert told.usage.missed_pages == 0 and logits(told) == logits(plain)
    assert any("monoqwen has no place for an instruction" in note for note in told.notes)
    caplog.clear()
    engine.rerank("blue page", pictures()[:1], instruction="Find the chart.")
    assert "no place for an instruction" in caplog.text
    engine.close()


def test_query_first_is_served_without_reuse(reranker: MiniReranker) -> None:
    reranker.add(pictures())
    twin = reranker.with_config(replace(reranker.config, order="query-first"))
    ranked = twin.rank("blue page")
    assert ranked.usage.missed_pages == N_PAGES and "layers" in ranked.usage.ms
    with pytest.raises(InputRejected, match="vision-first"):
        twin.rank("blue page", system="dense-reuse")


def test_query_first_adds_pages_without_kv(reranker: MiniReranker) -> None:
    twin = reranker.with_config(replace(reranker.config, order="query-first"))
    report = twin.add(pictures()[:2])
    assert [(p.outcome, p.nbytes) for p in report.pages] == [("encoded", 0)] * 2
    assert [p.outcome for p in twin.add(pictures()[:2]).pages] == ["hit"] * 2
    assert len(twin.rank("blue page")) == 2


def test_the_stages_of_original_come_in_the_order_they_run(reranker: MiniReranker) -> None:
    reranker.add(pictures())
    stages = list(reranker.rank("blue page", system="original").usage.ms)
    assert stages == ["retrieve", "decode", "preprocess", "vision", "layers", "head"]


def test_original_says_that_it_reads_every_token_whatever_the_keep_ratio(
    reranker: MiniReranker,
) -> None:
    added = {p.page.page_id: p for p in reranker.add(pictures()).pages}
    for system, share in (("mini", 0.5), ("original", 1.0), ("dense-reuse", 1.0)):
        for hit in reranker.rank("blue page", system=system):
            rows, columns = added[hit.page.page_id].grid
            assert hit.n_visual_tokens == rows * columns
            assert hit.n_kept_tokens == round(share * rows * columns)
