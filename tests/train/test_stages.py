import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from mrr import MiniReranker
from mrr.errors import InputRejected
from mrr.train import begin, cli, shards
from mrr.train.cli import train
from mrr.train.muon import Muon, orthogonalize, set_progress
from mrr.train.run import read_state
from mrr.train.stages import Workshop


def test_every_stage_runs_and_the_pair_that_comes_out_ranks_pages(
    shop: Workshop, tmp_path: Path
) -> None:
    for stage in (shop.read, shop.match, shop.join, shop.embed, shop.see, shop.prune):
        stage()
    for name in ("reading", "matching", "joined", "embedding", "seeing", "pruned"):
        lines = (shop.root / name / "log.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] >= 1
        assert (shop.root / f"{name}.pid").exists()
    sizes = shop.export(tmp_path)
    assert set(sizes) == {"tiny-reranker", "tiny-embedder"}
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "tiny-reranker")
    assert stock.config.mini_reranker["keep_ratio"] == 0.5
    reranker = MiniReranker.from_pretrained(
        tmp_path / "tiny-reranker", embedder=tmp_path / "tiny-embedder", store=tmp_path / "store"
    )
    reported = json.loads((tmp_path / "tiny-reranker" / "training.json").read_text())
    assert reported["runs"][-1]["stages"]["reading"]["steps"] == shop.scale.read_steps
    assert set(reported["rendered"]) == {"common faces", "faces never trained on"}
    for measured in reported["rendered"].values():
        assert measured["draws"] == 2 and measured["reranker"]["mini_ndcg5"] >= 0
        told = measured["near-duplicates told apart"]
        assert sum(each["queries"] for each in told.values()) > 0
    assert reported["reading"]["common"]["cell_recall"] >= 0
    picture = tmp_path / "page.png"
    page = torch.full((300, 280), 255, dtype=torch.uint8).numpy()
    from PIL import Image

    Image.fromarray(page).save(picture)
    report = reranker.add([picture])
    assert not report.failed
    assert len(reranker.rank("parser error")) == 1
    _another_run_begins_where_the_pair_ended(shop, tmp_path)


def _another_run_begins_where_the_pair_ended(shop: Workshop, pair: Path) -> None:
    following = Workshop(pair / "following", shop.scale)
    following.begin_from(pair, read_step=3)
    assert [run["seed"] for run in begin.begun(following.root).runs] == [shop.scale.seed]
    assert following.tokenizer.get_vocab() == shop.tokenizer.get_vocab()
    for stage, before in (("reading", "reading"), ("joined", "pruned"), ("seeing", "seeing")):
        state = read_state(following.root / stage)
        assert state["step"] == (3 if stage == "reading" else 0)
        trained = read_state(shop.root / before)["model"]
        for name, weight in state["model"].items():
            if name.startswith(("visual.", "lm.")):  # heads that do not ship start afresh
                assert torch.allclose(weight, trained[name], atol=2e-3), name
    with pytest.raises(InputRejected, match="holds a run already"):
        following.begin_from(pair, read_step=3)


def test_a_run_without_its_corpus_is_refused_and_the_hub_is_not_asked(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("transformers was asked for a tokenizer that is not there")

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", ask)
    new = Workshop(tmp_path / "new", shop.scale)
    for work in (new.read, new.match, new.embed, lambda: new.export(tmp_path / "pair")):
        with pytest.raises(InputRejected, match="new holds no tokenizer yet; run the stage corpus"):
            work()
    with pytest.raises(InputRejected, match=r"holds no tiny-reranker/training\.json; name the"):
        new.begin_from(tmp_path, read_step=3)
    assert not new.root.exists()


def test_a_run_with_a_tokenizer_alone_is_told_to_collect_its_text(
    shop: Workshop, tmp_path: Path
) -> None:
    """As one is that was begun from a pair."""
    begun = Workshop(tmp_path / "begun", shop.scale)
    shutil.copytree(shop.root / "tokenizer", begun.root / "tokenizer")
    with pytest.raises(InputRejected, match="begun holds no text yet; run the stage corpus first"):
        begun.read()


def test_the_minutes_of_a_whole_run_are_divided_among_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, float] = {}

    def note(shop: Workshop, name: str) -> None:
        given[name] = shop.scale.minutes

    monkeypatch.setattr(cli, "run_stage", note)
    run = ["--run", str(tmp_path), "--minutes", "50", "all"]
    assert CliRunner().invoke(train, run).exit_code == 0
    assert list(given) == ["corpus", "read", "match", "join", "embed", "see", "prune"]
    assert sum(given.values()) == pytest.approx(50)
    assert given["corpus"] == 0 and given["read"] > 25


def test_a_stage_that_was_stopped_goes_on_where_it_was(shop: Workshop) -> None:
    shop.read()
    path = shop.root / "reading" / "checkpoint.pt"
    before = torch.load(path, weights_only=True)
    shop.read()  # nothing is left to do
    after = torch.load(path, weights_only=True)
    assert before["step"] == after["step"] == shop.scale.read_steps
    same = [torch.equal(before["model"][k], after["model"][k]) for k in before["model"]]
    assert all(same)


def test_a_run_goes_on_from_its_shards_on_another_machine(shop: Workshop, tmp_path: Path) -> None:
    shop.read()
    files = shards.pack(shop.root, tmp_path)
    assert files and all(path.stat().st_size < 10_000_000 for path in files)
    moved = Workshop(tmp_path, replace(shop.scale, read_steps=shop.scale.read_steps + 1))
    shutil.copytree(shop.corpus_dir, moved.corpus_dir)
    moved.read()
    state = torch.load(tmp_path / "reading" / "checkpoint.pt", weights_only=True)
    before = torch.load(shop.root / "reading" / "checkpoint.pt", weights_only=True)
    assert state["step"] == before["step"] + 1
    moved_by = max(
        float((state["model"][k] - before["model"][k]).abs().max()) for k in before["model"]
    )
    assert 0 < moved_by < 0.1


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 40, 20), (20, 50)):
        update = orthogonalize(torch.randn(shape, generator=generator))
        values = torch.linalg.svdvals(update)
        assert 0.6 < values.min() and values.max() < 1.3


def test_a_matrix_moves_alike_alone_and_among_others_of_its_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(6, 4, generator=generator) for _ in range(2)]
    pull = [torch.randn(6, 4, generator=generator) for _ in range(2)]

    def moved(which: list[int]) -> list[Tensor]:
        params = [torch.nn.Parameter(start[i].clone()) for i in which]
        muon = Muon([{"params": params, "splits": 3}], lr=0.1)
        for _ in range(2):
            for param, i in zip(params, which, strict=True):
                param.grad = pull[i].clone()
            muon.step()
        return [param.detach() for param in params]

    together = moved([0, 1])
    for i in (0, 1):
        # The products of a stack are rounded to bfloat16 in another order.
        assert torch.allclose(together[i], moved([i])[0], atol=2e-3)
        assert not torch.allclose(together[i], start[i], atol=2e-2)


class Clock:
    """Moves on by a second whenever it is looked at, and not by itself."""

    def __init__(self, most: int) -> None:
        self.seconds, self.most = 0, most

    def perf_counter(self) -> float:
        self.seconds += 1
        assert self.seconds < self.most, "the run goes on after its minutes"
        return float(self.seconds)


def test_a_run_by_the_clock_ends_with_its_minutes_and_its_rate_has_fallen(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = Workshop(tmp_path, replace(shop.scale, minutes=1, read_reuse=9))
    for name in ("corpus", "tokenizer"):
        shutil.copytree(shop.root / name, tmp_path / name)
    behind: list[float] = []

    def note(optimizers: list[torch.optim.Optimizer], step: int, done: float) -> float:
        behind.append(done)
        return set_progress(optimizers, step, done)

    monkeypatch.setattr("mrr.train.fit.time", Clock(most=80))
    monkeypatch.setattr("mrr.train.fit.set_progress", note)
    hurried.read()
    state = read_state(tmp_path / "reading")
    assert state is not None and state["step"] == len(behind) > 10
    assert behind == sorted(behind) and behind[0] < 0.1 and behind[-1] > 0.9
    hurried.read()  # it is finished, and stays so
    again = read_state(tmp_path / "reading")
    assert again is not None and again["step"] == state["step"]


def test_a_run_by_the_clock_is_refused_where_its_plan_is_behind_already(
    shop: Workshop, tmp_path: Path
) -> None:
    shop.read()
    shards.pack(shop.root, tmp_path)
    progress = tmp_path / "reading" / "progress.json"
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "done": None}))
    shutil.copytree(shop.corpus_dir, tmp_path / "corpus")
    with pytest.raises(InputRejected, match="give the stage more steps"):
        Workshop(tmp_path, replace(shop.scale, minutes=1.0)).read()


def test_the_learning_rate_rises_stays_and_falls_to_a_twentieth() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.param_groups[0]["base_lr"] = 1.0
    rates = [set_progress([optimizer], step, step / 1000) for step in (0, 99, 500, 800, 999)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 0.5, 0.05])


def test_every_command_has_help() -> None:
    for name, command in train.commands.items():
        result = CliRunner().invoke(train, [name, "--help"])
        assert result.exit_code == 0 and command.help, name
