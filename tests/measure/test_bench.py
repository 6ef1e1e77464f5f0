"""The bench: costs by arithmetic, and the bare loop computes what the engine computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from mrr.build import Parts
from mrr.cli import cli
from mrr.config import RerankConfig
from mrr.measure.bare import bare_band
from mrr.measure.bench_report import table
from mrr.measure.cost import Costs, Workload
from mrr.measure.memory import peak_memory
from mrr.measure.random_model import DIMENSIONS
from mrr.measure.side_by_side import PAGE_SIZE, run_bench
from mrr.measure.spread import Spread, spread
from mrr.model.embedder import Embedder
from mrr.model.load import LoadedModel, load_model
from mrr.model.prompt import template_for
from mrr.model.vision import Sight
from tests.model.helpers import DENSE, QUERY, STAGES, case, cases, scorer, visual
from tests.tiny import DEVICE, picture


def parts(loaded: LoadedModel) -> Parts:
    return Parts(loaded, template_for(loaded.name, None), None)


@dataclass
class Dimensions:
    """A checkpoint's sizes without its weights."""

    n_layers: int
    model: SimpleNamespace
    lm: SimpleNamespace
    tower: Qwen3VLVisionModel


def dimensions(dims: str) -> Dimensions:
    text, vision = DIMENSIONS[dims]
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**text))
    sizes = {**vision, "out_hidden_size": text["hidden_size"], "patch_size": 16}
    with torch.device("meta"):
        tower = Qwen3VLVisionModel(Qwen3VLVisionConfig(**sizes))
    attention = SimpleNamespace(head_dim=text["head_dim"])
    return Dimensions(
        n_layers=text["num_hidden_layers"],
        model=SimpleNamespace(config=config),
        lm=SimpleNamespace(layers=[SimpleNamespace(self_attn=attention)]),
        tower=tower,
    )


def counted(work: Callable[[], object], *, causal: bool = False) -> float:
    """FLOPs of the products by torch's counter. causal: of those of attention, half."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    seen = counter.get_flop_counts()["Global"].items()
    return sum(n / 2 if causal and "bmm" in str(product) else n for product, n in seen)


PAGE = Workload(n_patches=4032, n_visual=1008, n_kept=504, n_text=42, n_suffix=25)


def test_costs_at_2b_dimensions_are_those_worked_out_by_hand() -> None:
    costs = Costs(dimensions("2b"), RerankConfig())
    # 24 blocks take 4.033 TFLOP, four mergers 0.203 and the patches 0.013.
    assert costs.vision(PAGE.n_patches) == pytest.approx(4.249e12, rel=1e-3)
    assert costs.original(PAGE) - costs.vision(PAGE.n_patches) == pytest.approx(3.16e12, rel=0.01)
    # A whole band of 8 layers would be 21.0 GFLOP; the exit layer runs for one token only (18.7),
    # and at the first one the query, the same for all pages, is projected once (0.42 less).
    per_page, n = costs.mini(PAGE, 10**9), 20
    assert per_page == pytest.approx(18.3e9, rel=0.01)
    assert n * (costs.mini(PAGE, n) - per_page) == pytest.approx(20.2e9 + 0.42e9, rel=0.01)
    assert costs.mini(PAGE, 1) - per_page == pytest.approx(20.2e9 + 0.42e9, rel=0.01)


def test_caching_is_what_the_counter_counts(loaded: LoadedModel, monkeypatch) -> None:
    text = loaded.model.config.get_text_config()  # of grouped products it knows nothing
    monkeypatch.setattr(text, "_experts_implementation", "eager")
    s = scorer(loaded, replace(DENSE, band=(2, 4), exit_layer=4, pruner="random", keep_ratio=0.5))
    c = case(s, picture(1, (224, 224)))  # of whole windows
    costs, prefix = Costs(loaded, s.config), c.prompt.prefix
    n_patches, n_visual = len(c.pixels.values), c.pixels.n_tokens
    work = Workload(n_patches, n_visual, len(c.kept), len(prefix) - n_visual, 0)
    vision = counted(lambda: visual(loaded, c))
    assert costs.vision(n_patches) == vision
    assert costs.caching(work) == vision + counted(
        lambda: s.encode(c.sight, c.kept, STAGES), causal=True
    )


def test_caching_counts_the_embedder_and_its_tower_unless_it_is_shared(
    qwen3: LoadedModel, pair: tuple[Path, Path]
) -> None:
    own = Embedder(load_model(pair[1], device=DEVICE, dtype=torch.float32))
    sight = Sight(qwen3, Image.new("RGB", PAGE_SIZE), qwen3.min_pixels, qwen3.max_pixels, STAGES)
    vision = counted(lambda: sight.visual)
    reading = counted(lambda: own.embed_page(sight.pixels, sight.visual), causal=True)
    alone, shared, apart = (
        run_bench(replace(parts(qwen3), embedder=each), [1], 1, 1)[0].caching_flops
        for each in (None, Embedder(qwen3), own)
    )
    # What the last token's attention adds to find the importance is left out.
    assert shared - alone == pytest.approx(reading, rel=2e-3)
    assert apart - shared == pytest.approx(vision, rel=1e-9)


def test_mini_costs_less_than_reuse_costs_less_than_original() -> None:
    for dims in DIMENSIONS:
        costs = Costs(dimensions(dims), RerankConfig())
        mini = costs.mini(PAGE, 20)
        assert 2.8 * mini < costs.dense_reuse(PAGE, 20)
        assert 100 * mini < costs.original(PAGE)


def test_a_band_that_ends_before_the_exit_costs_more_than_one_that_does_not() -> None:
    early = Costs(dimensions("2b"), RerankConfig(band=(8, 12), exit_layer=12))
    later = Costs(dimensions("2b"), RerankConfig(band=(8, 12), exit_layer=16))
    assert early.mini(PAGE, 20) < later.mini(PAGE, 20)


def test_the_bare_loop_gives_the_engines_logits(qwen3: LoadedModel) -> None:

    for exit_layer in (5, 6):  # with the band, and after it
        s = scorer(qwen3, replace(DENSE, band=(2, 5), exit_layer=exit_layer))
        pages = [c.page for c in cases(s)]
        bare = bare_band(s, QUERY, pages)
        expected = s.score([QUERY], pages, STAGES)
        for _ in range(2):  # the second run reuses the buffers
            assert np.abs(bare(STAGES).cpu().numpy() - expected).max() < 1e-5


def test_a_report_has_the_three_systems_under_their_names(qwen3: LoadedModel) -> None:
    report = run_bench(parts(qwen3), [3], repeats=2, original_repeats=1)[0]
    assert [s.system for s in report.systems] == ["original", "dense + reuse", "mini"]
    assert report.systems[2].candidates == 3 and report.systems[2].timing.n == 2
    assert report.systems[2].bytes_per_page < report.systems[1].bytes_per_page / 4
    text = table(report)
    assert all(s.system in text for s in report.systems) and "overhead" not in text
    assert report.graphs == (qwen3.device.type == "cuda") == ("CUDA graphs" in text)
    assert "CUDA graphs" in table(replace(report, graphs=True))


def test_the_table_says_what_each_row_is_of_and_costs_keep_three_digits(
    qwen3: LoadedModel,
) -> None:
    report = run_bench(parts(qwen3), [3], repeats=3, original_repeats=1)[0]
    original, *cached = report.systems
    large = replace(original, flops_per_page=7.534e12, timing=Spread(48988, 47722, 50254, 2))
    small = [replace(each, flops_per_page=4.1234e6, bytes_per_page=1234) for each in cached]
    rows = table(replace(report, systems=[large, *small])).splitlines()[2:5]
    assert rows[0].startswith("original, one page ") and " 7534 " in rows[0]
    assert "48988.0  (47722.0 - 50254.0, n=2)" in rows[0]
    for row, each in zip(rows[1:], cached, strict=True):
        assert row.startswith(f"{each.system}  ") and " 0.00412 " in row
        assert row.endswith(" 0.00123")
    alone = run_bench(parts(qwen3), [1], repeats=1, original_repeats=1)[0]
    assert " 1 candidate, warm" in table(alone)


def test_the_overhead_is_of_turns_and_within_the_noise_where_zero_is(qwen3: LoadedModel) -> None:
    (report,) = run_bench(parts(qwen3), [2], repeats=3, original_repeats=1)
    assert report.engine_overhead.n == 3
    clear = replace(report, engine_overhead=spread([0.2, 0.3, 0.4]))
    assert table(clear).endswith("+30.0% (quartiles +25.0% to +35.0%, n=3)")
    unclear = replace(report, engine_overhead=spread([-0.2, 0.1, 0.2]))
    assert table(unclear).endswith("+10.0% (quartiles -5.0% to +15.0%, n=3), within the noise")


def test_each_turn_of_the_engine_is_set_against_its_own_bare_operations(
    qwen3: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute in which everything takes ten times as long is no overhead."""
    times = {"mini": [11.0, 120.0, 13.0], "dense": [1.0] * 3, "bare": [10.0, 100.0, 10.0]}
    monkeypatch.setattr("mrr.measure.side_by_side._take_turns", lambda *_: (times, False))
    (report,) = run_bench(parts(qwen3), [2], repeats=3, original_repeats=1)
    assert report.engine_overhead.median == pytest.approx(0.2)
    assert report.engine_overhead.q1 == pytest.approx(0.15)


def test_a_bench_without_graphs_says_so(qwen3: LoadedModel) -> None:
    (report,) = run_bench(parts(qwen3), [2], repeats=1, original_repeats=1, graphs=False)
    assert not report.graphs and "CUDA graphs" not in table(report)


def test_peak_memory_is_read_as_pages_come_in(qwen3: LoadedModel) -> None:
    seen = peak_memory(parts(qwen3), 10, (128, 128))
    assert [look.n_pages for look in seen] == [2, 4, 6, 8, 10]
    assert seen[0].peak_mib > 50  # a process with torch in it
    assert seen[-1].peak_mib < seen[0].peak_mib + 64, "it grows with the pages"


def test_the_bench_runs_the_band_that_a_checkpoint_was_trained_for(qwen3: LoadedModel) -> None:
    trained = replace(qwen3, trained={"band": [1, 3], "exit_layer": 3})
    report = run_bench(parts(trained), [2], repeats=1, original_repeats=1)[0]
    assert (report.band, report.exit_layer) == ((1, 3), 3)


def test_the_bench_takes_a_checkpoint_its_embedder_and_a_folder_to_read_from(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    call = ["bench", "--model", pair[0], "--embedder", pair[1], "--store", tmp_path / "k/v",
            "--top-k", "2", "--repeats", "1", "--original-repeats", "1", "--no-graphs",
            "--json"]  # fmt: skip
    result = CliRunner().invoke(cli, [*map(str, call)])
    assert result.exit_code == 0, result.stderr
    (report,) = json.loads(result.stdout)
    assert [s["system"] for s in report["systems"]] == ["original", "dense + reuse", "mini"]
    assert not list((tmp_path / "k/v").iterdir()), "the temporary store is gone"
    assert CliRunner().invoke(cli, ["bench", "--repeats", "0"]).exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--add-pages", "-3"], "--add-pages"),
        (["--top-k", "10,x"], "10,x is not a list of numbers"),
        (["--dims", "2b", "--model", "tiny"], "--dims and --model exclude each other"),
        (["--dims", "2b", "--embedder", "x"], "--dims and --embedder exclude each other"),
    ],
)
def test_a_wrong_call_is_refused_before_a_model_is_built(
    monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    def build(*_: object, **__: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr("mrr.measure.bench.random_model", build)
    monkeypatch.setattr("mrr.measure.bench.load_parts", build)
    result = CliRunner().invoke(cli, ["bench", *options])
    assert result.exit_code == 2 and message in result.stderr


def test_the_help_of_bench_says_that_it_stays_in_memory() -> None:
    words = " ".join(CliRunner().invoke(cli, ["bench", "--help"]).stdout.split())
    assert "MRR_CACHE_DIR" not in words and "(default: from memory)" in words
