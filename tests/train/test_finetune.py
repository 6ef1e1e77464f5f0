import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrr import MiniReranker
from mrr.config import RerankConfig
from mrr.measure.dataset import read_dataset
from mrr.train.finetune import FinetunePlan, Tuner, finetune, tasks

FAMILIES = ("qwen3_vl", "qwen2_5_vl")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, three queries, one right page each."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    pages = [{"page_id": f"p{i}", "file": f"{i}.png", "page_num": 1} for i in range(3)]
    queries = [{"query_id": f"q{i}", "query": f"word {i}", "kind": "keyword"} for i in range(3)]
    (root / "corpus.jsonl").write_text("\n".join(map(json.dumps, pages)))
    (root / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (root / "qrels.tsv").write_text("\n".join(f"q{i}\t0\tp{i}\t1" for i in range(3)))
    return root


def _plan(model: Path, data: Path, folder: Path, **options: object) -> FinetunePlan:
    config = RerankConfig(keep_ratio=0.5, pruner="uniform", kv_dtype="fp32")
    settings = {"steps": 3, "n_queries": 3, "rank": 2, "lr": 1e-2, "eval_every": 100}
    return FinetunePlan(str(model), data, folder, config=config, **{**settings, **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_training_scores_are_the_engine_s_scores(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path, family: str
) -> None:
    plan = _plan(checkpoints[family], data, tmp_path / "run")
    task = next(tasks(read_dataset(data), 3, "s"))
    tuner = Tuner(plan)
    kinds = {type(module).__name__ for module in tuner.loaded.model.modules()}
    assert "RMSNorm" not in kinds, "autocast would take it to float32"
    with torch.no_grad():
        ours = tuner.scores(task, dense=False)
        dense = tuner.scores(task, dense=True)
    engine = MiniReranker.from_pretrained(
        checkpoints[family], config=plan.config, store=tmp_path / "store"
    )
    file = tmp_path / "page.png"
    task.image.save(file)
    engine.add([file])
    theirs = [engine.rank(query)[0].logit for query in task.queries]
    rounding = 1e-3 if tuner.loaded.dtype == torch.float32 else 0.1
    assert ours.tolist() == pytest.approx(theirs, abs=rounding)
    assert (ours - dense).abs().max() > 1e-3  # the switches do something


@pytest.mark.parametrize("dense_teacher", [False, True])
def test_fine_tuning_moves_scores_towards_its_targets_and_the_engine_loads_it(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path, dense_teacher: bool
) -> None:
    plan = _plan(checkpoints["qwen3_vl"], data, tmp_path, dense_teacher=dense_teacher, steps=25)
    task = next(tasks(read_dataset(data), 3, "s"))
    tuner = Tuner(plan)
    task = task.to(tuner.loaded.device)
    with torch.no_grad():
        before, _ = tuner.loss(task)
    adapter = finetune(plan)
    tuned = FinetunePlan(str(adapter), data, tmp_path, config=plan.config)
    goal = Tuner(plan).teach(task) if dense_teacher else task
    with torch.no_grad():
        after = torch.nn.functional.binary_cross_entropy_with_logits(
            Tuner(tuned).scores(task, dense=False), goal.target.float()
        )
    assert after < before


def test_a_fine_tuning_that_was_stopped_goes_on(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    finetune(_plan(checkpoints["qwen2_5_vl"], data, tmp_path, steps=2))
    finetune(_plan(checkpoints["qwen2_5_vl"], data, tmp_path, steps=4))
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()]
    assert steps == [2, 4]
