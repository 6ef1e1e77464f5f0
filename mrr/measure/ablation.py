"""One table over configurations: each part alone against the dense model, and the pruners."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mrr.config import Pruner, RerankConfig, layer_range
from mrr.measure.corpus import Progress, SystemRun, add_again, add_corpus, run_tasks
from mrr.measure.dataset import Dataset
from mrr.measure.evaluate import Comparison, compare, estimates
from mrr.measure.metrics import Estimate, Qrels
from mrr.measure.spread import Spread
from mrr.measure.tasks import Mode, make_tasks
from mrr.model.kv import lossless
from mrr.reranker import MiniReranker

DENSE = "dense"
MINI = "mini"
KEEP_RATIOS = (0.75, 0.5, 0.25)
PRUNERS: tuple[Pruner, ...] = ("embedder", "uniform", "random")


@dataclass(frozen=True, slots=True)
class AblationRow:
    """One configuration. against_dense: None for the dense row itself."""

    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Estimate]
    against_dense: Comparison | None
    nbytes_per_page: float
    query_ms: Spread


def configurations(
    config: RerankConfig, n_layers: int, dense: RerankConfig, *, with_embedder: bool
) -> dict[str, RerankConfig]:
    """{name: configuration}: dense, each part of config alone, then the pruners in the whole.

    config must be resolved. The pruners are compared with every other part on, because that is
    how they are used; uniform and random keep are the controls at the same budget. A part that
    config leaves off has no row.
    """
    assert config.band is not None and config.exit_layer is not None
    alone = {
        DENSE: dense,
        f"exit after layer {config.exit_layer - 1} of {layer_range((0, n_layers))} alone": replace(
            dense, exit_layer=config.exit_layer, band=(0, config.exit_layer)
        ),
        f"band {layer_range(config.band)} alone": replace(dense, band=config.band),
        f"keep {config.keep_ratio:.0%} ({config.pruner}) alone": replace(
            dense, keep_ratio=config.keep_ratio, pruner=config.pruner
        ),
        f"{config.kv_dtype} K/V alone": replace(dense, kv_dtype=config.kv_dtype),
        MINI: config,
        "mini, every token": replace(config, keep_ratio=1.0, pruner="none"),
    }
    pruned = {
        f"mini, keep {ratio:.0%} ({pruner})": replace(config, keep_ratio=ratio, pruner=pruner)
        for ratio in KEEP_RATIOS
        for pruner in PRUNERS
        if pruner != "embedder" or with_embedder
    }
    return {name: each for name, each in (alone | pruned).items() if name == DENSE or each != dense}


def ablation(
    reranker: MiniReranker,
    dataset: Dataset,
    *,
    mode: Mode = "candidates",
    n_negatives: int = 19,
    seed: int = 0,
    kinds: Collection[str] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> tuple[AblationRow, ...]:
    """Rank the same candidates under every configuration; arguments as in evaluate.

    Every configuration encodes the corpus anew, so this takes about 16 times one evaluation.
    """
    tasks = make_tasks(dataset, mode, n_negatives=n_negatives, seed=seed, kinds=kinds, limit=limit)
    corpus = add_corpus(reranker, dataset, progress)
    n_layers = reranker.loaded.n_layers
    table = configurations(
        reranker.config,
        n_layers,
        reranker.config.dense(n_layers, lossless(reranker.loaded.dtype)),
        with_embedder=reranker.embedder is not None,
    )
    qrels = {task.query.query_id: task.grades for task in tasks}
    rows: list[AblationRow] = []
    dense: SystemRun | None = None
    for name, config in table.items():
        twin = reranker.with_config(config)
        cost = add_again(twin, corpus, name, progress)
        run = run_tasks(twin, corpus, tasks, "mini", name, progress)
        rows.append(_row(name, twin.config, run, dense, qrels, cost.nbytes_per_page, seed))
        dense = dense or run  # the first row
    return tuple(rows)


def _row(
    name: str,
    config: RerankConfig,
    run: SystemRun,
    dense: SystemRun | None,
    qrels: Qrels,
    nbytes_per_page: float,
    seed: int,
) -> AblationRow:
    return AblationRow(
        name=name,
        config=asdict(config),
        metrics=estimates(run.run, qrels, seed),
        against_dense=compare(name, run.run, DENSE, dense.run, qrels, seed) if dense else None,
        nbytes_per_page=nbytes_per_page,
        query_ms=run.query_ms,
    )
