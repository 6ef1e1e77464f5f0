"""The table of parts: what each configuration switches, and what it costs."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from mrr import MiniReranker
from mrr.config import RerankConfig
from mrr.measure.ablation import ablation, configurations
from mrr.measure.dataset import read_dataset
from mrr.measure.table import ablation_table
from tests.measure.helpers import write_small_dataset

CONFIG = RerankConfig(exit_layer=4, band=(2, 4)).resolve(6)
DENSE = CONFIG.dense(6)


def differences(first: RerankConfig, second: RerankConfig) -> set[str]:
    names = first.__dataclass_fields__
    return {name for name in names if getattr(first, name) != getattr(second, name)}


def test_each_part_alone_differs_from_dense_by_that_part_only() -> None:
    table = configurations(CONFIG, 6, DENSE, with_embedder=True)
    changed = {name: differences(c, DENSE) for name, c in table.items() if name.endswith("alone")}
    assert list(changed.values()) == [
        {"exit_layer", "band"},  # the band cannot be longer than the layers that run
        {"band"},
        {"keep_ratio", "pruner"},
        {"kv_dtype"},
    ]
    assert table["exit after layer 3 of 0–5 alone"].band == (0, 4)
    assert table["dense"] == DENSE and table["mini"] == CONFIG


def test_each_pruner_is_tried_at_each_budget_with_the_rest_as_it_is() -> None:
    table = configurations(CONFIG, 6, DENSE, with_embedder=True)
    pruned = [c for name, c in table.items() if name.startswith("mini, keep")]
    budgets = product(("embedder", "uniform", "random"), (0.75, 0.5, 0.25))
    assert {(c.pruner, c.keep_ratio) for c in pruned} == set(budgets)
    for config in pruned:
        assert differences(config, CONFIG) <= {"pruner", "keep_ratio"}


def test_without_an_embedder_only_the_controls_are_left() -> None:
    table = configurations(CONFIG, 6, DENSE, with_embedder=False)
    assert not any("keep 75% (embedder)" in name for name in table)
    assert sum(name.startswith("mini, keep") for name in table) == 6


def test_a_part_that_is_off_has_no_row() -> None:
    table = configurations(DENSE, 6, DENSE, with_embedder=True)
    assert not any(name.endswith("alone") for name in table)


def test_every_row_ranks_and_smaller_budgets_store_less(
    reranker: MiniReranker, tmp_path: Path
) -> None:
    dataset = read_dataset(write_small_dataset(tmp_path / "set"))
    rows = ablation(reranker, dataset, n_negatives=2)
    assert rows[0].name == "dense" and rows[0].against_dense is None
    assert all(row.against_dense.agreement.kendall_tau.n == 1 for row in rows[1:])
    nbytes = {row.name: row.nbytes_per_page for row in rows}
    assert nbytes["mini"] == nbytes["mini, keep 50% (embedder)"]
    for pruner in ("embedder", "uniform", "random"):
        sizes = [nbytes[f"mini, keep {ratio} ({pruner})"] for ratio in ("75%", "50%", "25%")]
        assert nbytes["mini, every token"] > sizes[0] > sizes[1] > sizes[2]
    assert nbytes["dense"] > max(nbytes[name] for name in nbytes if name != "dense")
    lines = ablation_table(rows).splitlines()
    assert len(lines) == len(rows) + 1 and lines[1].startswith("dense")
