from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from mrr import MiniReranker
from mrr.config import RerankConfig
from mrr.errors import InputRejected, UnsupportedModel
from mrr.measure.dataset import read_dataset
from mrr.model.load import load_model
from mrr.model.prompt import MONOQWEN
from mrr.train import adapter
from mrr.train.finetune import FinetunePlan, PageTask, Tuner, as_asked, finetune, tasks
from mrr.train.fit import Step, fit
from mrr.train.run import Run, read_state
from tests.pages.files import fill, make_pdf
from tests.train.test_stages import Clock

FAMILIES = ("qwen3_vl", "qwen2_5_vl")
IDENTITY = torch.nn.Identity()


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
    tuned = FinetunePlan(str(finetune(plan)), data, tmp_path, config=plan.config)
    goal = Tuner(plan).teach(task) if dense_teacher else task
    with torch.no_grad():
        after = torch.nn.functional.binary_cross_entropy_with_logits(
            Tuner(tuned).scores(task, dense=False), goal.target.float()
        )
    assert after < before


def test_a_fine_tuning_by_the_clock_ends_with_its_minutes_whatever_its_steps(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrr.train.fit.time", Clock(most=80))
    plan = _plan(checkpoints["qwen3_vl"], data, tmp_path, steps=2, minutes=1)
    finetune(plan)
    state = read_state(tmp_path)
    assert state is not None and state["step"] > 2 and state["done"] >= 1
    finetune(plan)  # it is finished, and stays so
    again = read_state(tmp_path)
    assert again is not None and again["step"] == state["step"]


def test_a_fine_tuning_that_was_stopped_goes_on(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    finetune(_plan(checkpoints["qwen2_5_vl"], data, tmp_path, steps=2))
    finetune(_plan(checkpoints["qwen2_5_vl"], data, tmp_path, steps=4))
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()]
    assert steps == [2, 4]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "qwen2_vl"}, "model"),
        ({"rank": 3}, "rank"),
        ({"dense_teacher": True}, "teacher"),
        ({"config": RerankConfig(keep_ratio=1.0, pruner="none")}, "config"),
    ],
)
def test_a_run_goes_on_with_nothing_but_what_it_was_begun_with(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path, change: dict, named: str
) -> None:
    """Or its adapter would say that it is of another model, or was trained otherwise."""
    plan = _plan(checkpoints["qwen2_5_vl"], data, tmp_path, steps=1)
    finetune(plan)
    written = _contents(tmp_path / "adapter")
    if "model" in change:
        change = {"model": str(checkpoints[change["model"]])}
    with pytest.raises(InputRejected, match=f"was begun with another {named}.*--run"):
        finetune(replace(plan, steps=2, **change))
    assert _contents(tmp_path / "adapter") == written


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_measured_meanwhile_does_not_decide_what_is_drawn_in_training(
    tmp_path: Path,
) -> None:
    drawn: list[list[float]] = []

    class Batch:
        def to(self, device: torch.device) -> Batch:
            return self

    def train(folder: Path, eval_every: int) -> None:
        module, seen = torch.nn.Linear(2, 1), list[float]()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        optimizer.param_groups[0]["base_lr"] = 1e-3
        torch.manual_seed(7)

        def take(batch: Batch) -> Step:
            noise = torch.rand(2)
            seen.append(float(noise[0]))
            return Step(module(noise).sum(), dict, 1)

        def check() -> dict[str, float]:
            torch.manual_seed(0)
            return {"noise": float(torch.rand(1))}

        fit(
            Run(folder), module, [optimizer], (Batch() for _ in range(4)),
            steps=4, take=take, evaluate=check, eval_every=eval_every,
        )  # fmt: skip
        drawn.append(seen)

    train(tmp_path / "often", 1)
    train(tmp_path / "once", 4)
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 4


def test_a_run_goes_on_at_the_rate_that_it_is_given_now(tmp_path: Path) -> None:
    def begin(rate: float) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        module = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
        optimizer.param_groups[0]["base_lr"] = rate
        return module, optimizer

    module, optimizer = begin(1e-3)
    Run(tmp_path).save(module, [optimizer])
    module, optimizer = begin(1e-5)
    assert Run(tmp_path).resume(module, [optimizer])
    assert optimizer.param_groups[0]["base_lr"] == 1e-5


def test_queries_are_read_in_training_as_they_are_served(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    tuner = Tuner(_plan(checkpoints["qwen3_vl"], data, tmp_path / "run"))
    dataset = read_dataset(data)
    typed = ["two  spaces\nand a line", "Cafe\u0301 de\u0301compose\u0301", "word " * 700]
    queries = tuple(replace(q, text=t) for q, t in zip(dataset.queries, typed, strict=True))
    found = as_asked(replace(dataset, queries=queries), tuner.encoder).queries
    asked = [query.text for query in found]
    engine = MiniReranker.from_pretrained(checkpoints["qwen3_vl"], store=tmp_path / "store")
    assert asked == [engine.clean(text)[0] for text in typed] and asked != typed
    engine.close()


def test_labelled_pages_far_into_a_long_file_are_read(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Further than `add` reads without a page range."""
    folder = tmp_path / "long"
    shutil.copytree(data, folder)
    (folder / "long.pdf").write_bytes(make_pdf([fill(0.1, n / 300, 0.5) for n in range(206)]))
    page = {"page_id": "p0", "file": "long.pdf", "page_num": 205}
    lines = (folder / "corpus.jsonl").read_text().split("\n")
    (folder / "corpus.jsonl").write_text("\n".join([json.dumps(page), *lines[1:]]))
    dataset = read_dataset(folder)
    sizes = {task.image.size for task, _ in zip(tasks(dataset, 3, "s"), range(20), strict=False)}
    assert len(sizes) == 2
    late = json.dumps(page | {"page_num": 300})
    (folder / "corpus.jsonl").write_text("\n".join([late, *lines[1:]]))
    with pytest.raises(InputRejected, match="has 206 pages; page 300 was asked for"):
        next(tasks(read_dataset(folder), 3, "s"))


def test_an_embedder_that_sees_other_tokens_is_refused_at_once(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    other = str(checkpoints["qwen2_vl"])
    with pytest.raises(UnsupportedModel, match="must see the same tokens"):
        Tuner(_plan(checkpoints["qwen3_vl"], data, tmp_path, embedder=other))


def _engine(model: Path, data: Path, folder: Path, **options: object) -> MiniReranker:
    engine = MiniReranker.from_pretrained(model, store=folder, **options)  # type: ignore[arg-type]
    engine.add([data])
    return engine


def _agree(tuner: Tuner, engine: MiniReranker, task: PageTask, file: Path) -> None:
    """Training scores and served ones, for one page and its queries."""
    with torch.no_grad():
        trained = tuner.scores(task, dense=False)
    served = engine.predict([(query, file) for query in task.queries], activation_fn=IDENTITY)
    rounding = 1e-2 if tuner.loaded.dtype == torch.float32 else 0.1  # int8 K/V
    assert served.tolist() == pytest.approx(trained.tolist(), abs=rounding)


def _file_of(task: PageTask, data: Path) -> Path:
    for file in data.glob("*.png"):
        with Image.open(file) as image:
            if image.convert("RGB").tobytes() == task.image.tobytes():
                return file
    raise AssertionError("the task's page is none of the data's")


def test_what_an_adapter_was_trained_in_is_what_it_is_served_in(
    pair: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    """Band and exit of its base's training, what else it was trained in, embedder or not."""
    config = RerankConfig(
        keep_ratio=0.25, pruner="uniform", instruction="Find it.", max_pixels=40_000
    )
    plan = _plan(pair[0], data, tmp_path / "run", steps=1, rank=4)
    plan = replace(plan, config=config)
    tuned = finetune(plan)
    engine = _engine(tuned, data, tmp_path / "store", embedder=pair[1])
    assert engine.config.band == (2, 4) and engine.config.exit_layer == 4
    assert replace(engine.config, band=None, exit_layer=None) == config
    task = next(tasks(read_dataset(data), 3, "s"))
    _agree(Tuner(replace(plan, model=str(tuned))), engine, task, _file_of(task, data))
    engine.close()


def test_the_prompt_of_a_base_is_that_of_its_adapter(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """An adapter's folder no longer has the name that tells."""
    base = tmp_path / "MonoQwen2-VL"
    shutil.copytree(checkpoints["qwen2_vl"], base)
    tuned = finetune(_plan(base, data, tmp_path / "run", steps=1))
    engine = MiniReranker.from_pretrained(tuned, store=tmp_path / "store")
    assert engine.encoder.template is MONOQWEN
    engine.close()


def test_an_adapter_that_is_tuned_further_keeps_what_it_had_learned(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    first = finetune(_plan(checkpoints["qwen3_vl"], data, tmp_path / "1", steps=10))
    plan = _plan(first, data, tmp_path / "2", steps=2)
    second = finetune(plan)
    engine = _engine(second, data, tmp_path / "store")
    task = next(tasks(read_dataset(data), 3, "s"))
    _agree(Tuner(replace(plan, model=str(second))), engine, task, _file_of(task, data))
    without = Tuner(replace(plan, model=str(checkpoints["qwen3_vl"]))).scores(task, dense=False)
    with torch.no_grad():
        merged = Tuner(replace(plan, model=str(tmp_path / "2" / "base"))).scores(task, dense=False)
        once = Tuner(replace(plan, model=str(first))).scores(task, dense=False)
    assert merged.tolist() == pytest.approx(once.tolist(), abs=1e-4)
    assert (merged - without).abs().max() > 0.05, "the first adapter taught it nothing"
    engine.close()


def test_a_run_does_not_tune_the_adapter_that_it_wrote(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """It would go on from its checkpoint, on a base that has it already."""
    plan = _plan(checkpoints["qwen3_vl"], data, tmp_path, steps=1)
    written = finetune(plan)
    weights = (written / "adapter_model.safetensors").read_bytes()
    with pytest.raises(InputRejected, match="another folder with --run"):
        finetune(replace(plan, model=str(written)))
    assert (written / "adapter_model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("given", "named", "revision"),
    [("Qwen/Base@abcdef1", "Qwen/Base", "abcdef1"), ("Qwen/Base", "Qwen/Base", None)],
)
def test_an_adapter_names_its_base_as_it_was_asked_for_and_not_where_it_lay(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    named: str,
    revision: str | None,
) -> None:
    loaded = replace(load_model(checkpoints["qwen3_vl"], fused=False), name=given)
    monkeypatch.setattr(adapter, "local_folder", lambda *_: checkpoints["qwen3_vl"])
    adapted = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=r".*q_proj"))
    config = RerankConfig().resolve(loaded.n_layers)
    folder = adapter.save_adapter(adapted, loaded, config, "qwen-reranker", tmp_path)
    described = json.loads((folder / "adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["revision"]) == (named, revision)


@pytest.mark.parametrize("order", ["query-first", "vision-first"])
def test_a_teacher_is_asked_in_the_order_of_its_own_training(
    checkpoints: dict[str, Path], pair: tuple[Path, Path], data: Path, tmp_path: Path, order: str
) -> None:
    """A stock reranker with the query first; one that was trained vision-first, so."""
    model = checkpoints["qwen3_vl"] if order == "query-first" else pair[0]
    tuner = Tuner(_plan(model, data, tmp_path / "run"))
    task = next(tasks(read_dataset(data), 3, "s"))
    engine = _engine(model, data, tmp_path / "store", config=RerankConfig(order=order))  # type: ignore[arg-type]
    page = next(p for p in engine.store.pages(["public"]) if p.label == _file_of(task, data).name)
    theirs = [engine.rank(q, system="original", pages=page)[0].logit for q in task.queries]
    rounding = 1e-3 if tuner.loaded.dtype == torch.float32 else 0.1
    assert tuner.teach(task).target.logit().tolist() == pytest.approx(theirs, abs=rounding)
    engine.close()


@pytest.mark.parametrize("model", ["stock", "tuned"])
def test_a_teacher_knows_nothing_of_the_adapter(
    checkpoints: dict[str, Path], pair: tuple[Path, Path], data: Path, tmp_path: Path, model: str
) -> None:
    tuner = Tuner(_plan(checkpoints["qwen3_vl"] if model == "stock" else pair[0], data, tmp_path))
    task = next(tasks(read_dataset(data), 3, "s"))
    before, ours = tuner.teach(task).target, tuner.scores(task, dense=False)
    for name, weight in tuner.adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.1)
    assert torch.equal(tuner.teach(task).target, before)
    assert (tuner.scores(task, dense=False) - ours).abs().max() > 1e-3


def test_under_a_steps_autocast_the_embedder_keeps_the_tokens_that_it_keeps_when_serving(
    pair: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    plan = replace(_plan(pair[0], data, tmp_path), embedder=str(pair[1]))
    plan = replace(plan, config=RerankConfig(keep_ratio=0.5))
    tuner = Tuner(plan)
    task = next(tasks(read_dataset(data), 3, "s"))
    kept = tuner._kept(tuner._sight(task))
    with torch.autocast(tuner.loaded.device.type, dtype=torch.bfloat16), torch.no_grad():
        assert np.array_equal(tuner._kept(tuner._sight(task)), kept)
        assert tuner.scores(task, dense=False).dtype == torch.float32


@pytest.mark.parametrize("change", [{"order": "query-first"}, {"pruner": "random"}])
def test_what_cannot_be_trained_in_is_refused(
    checkpoints: dict[str, Path], data: Path, tmp_path: Path, change: dict[str, str]
) -> None:
    plan = _plan(checkpoints["qwen3_vl"], data, tmp_path)
    with pytest.raises(InputRejected, match="vision-first"):
        Tuner(replace(plan, config=replace(plan.config, **change)))  # type: ignore[arg-type]
