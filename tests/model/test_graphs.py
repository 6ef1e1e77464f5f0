"""CUDA graphs: pages are padded to no effect, and a replay is what it was captured from.

Without a GPU a stand-in that calls its function takes the graph's place, so that shapes, padding
and inputs that are overwritten are proven everywhere; MRR_TEST_DEVICE=cuda proves the rest.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrr.measure.bare import bare_band
from mrr.model import graphs
from mrr.model.graphs import Graph, Graphs, beside, graphs_for
from mrr.model.load import LoadedModel, load_model
from mrr.model.page_stack import PageStack
from tests.model.helpers import DENSE, SIZES, SPARSE, STAGES, Launches, case, scorer
from tests.tiny import DEVICE, picture

CUDA = DEVICE.startswith("cuda")
on_gpu = pytest.mark.skipif(not CUDA, reason="needs MRR_TEST_DEVICE=cuda")
QUERIES = ("blue page", "a", "a much longer query of many words than the others are")
EXIT = replace(DENSE, band=(2, 5), exit_layer=5)


class StandIn:
    """A graph without a GPU: it reads the inputs that it was made with."""

    made: list[StandIn]
    works_in = 0

    def __init__(self, function, inputs, device) -> None:
        self.function, self.inputs, self.device = function, inputs, device
        self.own_bytes = self.works_in
        type(self).made.append(self)

    def replay(self) -> torch.Tensor:
        return self.function(*self.inputs).clone()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    StandIn.made = []
    monkeypatch.setattr(graphs, "Graph", StandIn)
    return StandIn


def held(max_bytes: int = 2**30) -> Graphs:
    return Graphs(torch.device("cpu"), max_bytes)


def pages_of(s, order=(0, 1, 2, 3)):
    return [case(s, picture(i, SIZES[i])).page for i in order]


def plain(s, query: str, pages) -> np.ndarray:
    """Logits without graphs: unpadded, launched one by one."""
    kept, s.graphs = s.graphs, None
    try:
        return s.score([query], pages, STAGES)
    finally:
        s.graphs = kept


def add(graphs_: Graphs, key: object, value: float, n: int = 1) -> float:
    """One run of a function that adds one to its only input."""
    fresh = torch.full((n,), float(value), device=DEVICE)
    out = graphs_.run(
        key, lambda x: x + 1, lambda into: (fresh if into is None else into[0].copy_(fresh),)
    )
    return out[0].item()


@pytest.mark.parametrize("kv_dtype", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("config", [DENSE, SPARSE, EXIT])
def test_padded_pages_score_as_they_do_unpadded(
    qwen3: LoadedModel, stand_in, config, kv_dtype
) -> None:
    s = scorer(qwen3, replace(config, kv_dtype=kv_dtype))
    s.graphs = held()
    some, others = pages_of(s), pages_of(s, (3, 0, 2, 2))
    for query in QUERIES:
        for pages in (some, others, some[:2], others, some, some):
            expected = plain(s, query, pages)
            assert np.abs(s.score([query], pages, STAGES) - expected).max() < 1e-4
    assert len(stand_in.made) >= 2 * 2, "nothing was captured"
    assert np.ptp(expected) > 1e-2, "the pages do not differ"


@pytest.mark.parametrize("config", [SPARSE, EXIT])
def test_queries_of_one_length_share_graphs_and_nothing_else(
    qwen3: LoadedModel, stand_in, config
) -> None:
    s = scorer(qwen3, config)
    s.graphs = held()
    by_length: dict[int, list[str]] = {}
    for word in ("a", "b", "ab", "ba", "abc", "bca", "red", "x", "blue", "page"):
        by_length.setdefault(len(s.prompt(word, 1).suffix), []).append(word)
    queries = max(by_length.values(), key=len)
    pages, seen = pages_of(s), set()
    for _ in range(3):
        for query in queries:
            logits = s.score([query], pages, STAGES)
            assert np.abs(logits - plain(s, query, pages)).max() < 1e-4
            seen.add(round(float(logits[0]), 3))
    assert len(seen) > 2 and len(stand_in.made) == 2


def test_queries_of_every_length_read_pages_in_the_same_memory(
    qwen3: LoadedModel, stand_in
) -> None:
    s = scorer(qwen3, SPARSE)
    s.graphs = held()
    some, others = pages_of(s), pages_of(s, (3, 0, 2, 2))
    for pages in (some, others, some, others):
        for query in ("a", "blue page", "a blue page"):
            logits = s.score([query], pages, STAGES)
            assert np.abs(logits - plain(s, query, pages)).max() < 1e-4
    bands = [graph for graph in stand_in.made if len(graph.inputs) > 1]
    assert len(bands) == 3 and len({graph.inputs[1].data_ptr() for graph in bands}) == 1
    one = sum(t.nbytes for t in bands[0].inputs)
    assert s.graphs._nbytes(()) < 2 * one, "what graphs share is counted for each of them"


def test_memory_that_graphs_share_goes_with_the_last_of_them(qwen3: LoadedModel, stand_in) -> None:
    s = scorer(qwen3, SPARSE)
    s.graphs = held()
    for _ in range(2):
        s.score(["a"], pages_of(s), STAGES)
    assert len(s._stacks) == 1
    stand_in.made.clear()
    s.graphs = held()
    assert not s._stacks


@pytest.mark.parametrize("limit", ["_MAX_BATCH_COLUMNS", "_MAX_NUMBERS"])
def test_candidates_of_several_batches_each_find_their_pages(
    qwen3: LoadedModel, stand_in, monkeypatch, limit: str
) -> None:
    s = scorer(qwen3, EXIT)
    s.graphs = held()
    some = pages_of(s) * 2
    expected = plain(s, QUERIES[0], some)
    n = 300 * (s.instruction().both[:, :, 0].numel() if limit == "_MAX_NUMBERS" else 1)
    monkeypatch.setattr(f"mrr.model.scorer.{limit}", n)
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [3, 1, 0, 2, 7, 5, 4, 6]) * 2:
        logits = s.score([QUERIES[0]], [some[i] for i in order], STAGES)
        assert np.abs(logits - expected[order]).max() < 1e-4
    bands = [graph for graph in stand_in.made if len(graph.inputs) > 1]
    assert bands and all(len(graph.inputs[2]) < 8 for graph in bands)


def test_pages_of_another_width_have_a_graph_of_their_own(qwen3: LoadedModel, stand_in) -> None:
    s = scorer(qwen3, SPARSE)
    s.graphs = held()
    small = [case(s, picture(0, (64, 64))).page] * 2
    large = [case(s, picture(1, (512, 128))).page] * 2
    for _ in range(3):
        for pages in (small, large):
            logits = s.score(["a"], pages, STAGES)
            assert np.abs(logits - plain(s, "a", pages)).max() < 1e-4


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize("config", [SPARSE, EXIT])
def test_what_is_captured_takes_nothing_from_the_host(checkpoints, family, config) -> None:
    """On the meta device, which has no values to ask for and no part in sums with the host's."""
    there = load_model(checkpoints[family], device="cpu", dtype=torch.bfloat16)
    before = scorer(there, config)
    n = 12
    stacked = PageStack.of(there, before.instruction(), pages_of(before), n)
    s = scorer(replace(there, model=there.model.to("meta")), config)
    s.instruction()
    hidden = s.query_pass(torch.empty(1, n, dtype=torch.int64, device="meta"))
    logits = s.band_pass(hidden, *(t.to("meta") for t in stacked.tensors))
    assert logits.shape == (len(stacked),) and logits.is_meta


def test_few_orders_are_given_between_the_graphs_of_a_query(qwen3: LoadedModel, stand_in) -> None:
    """The GPU runs the query's own layers meanwhile, which takes as long as some twenty orders."""
    s = scorer(qwen3, replace(SPARSE, kv_dtype="fp32"))
    s.graphs = held()
    pages = [page.expanded(torch.float32) for page in pages_of(s)] * 5
    for _ in range(2):
        s.score([QUERIES[0]], pages, STAGES)
    query, band = stand_in.made
    logits, hidden = band.replay(), query.replay()
    outside: list[int] = []

    def silently(out: torch.Tensor) -> Callable[[], torch.Tensor]:
        def replay() -> torch.Tensor:
            outside.append(len(launches))
            return out

        return replay

    query.replay, band.replay = silently(hidden), silently(logits)
    with Launches() as launches:
        s.score([QUERIES[0]], pages, STAGES)
    before, both = outside
    assert before == 1 and both - before <= 8, launches.seen


def test_a_shape_is_captured_when_it_comes_again(stand_in) -> None:
    graphs_ = held()
    assert [add(graphs_, "a", i) for i in range(3)] == [1, 2, 3]
    assert len(stand_in.made) == 1 and len(graphs_) == 1
    add(graphs_, "b", 0)
    assert len(stand_in.made) == 1


def test_the_least_recently_used_shape_goes_first_and_must_come_oftener(
    stand_in, monkeypatch
) -> None:
    monkeypatch.setattr(graphs, "_MAX_GRAPHS", 2)
    graphs_ = held()
    for key in "aabb":
        add(graphs_, key, 0)
    add(graphs_, "a", 0)
    for _ in "cc":
        add(graphs_, "c", 0)
    assert len(graphs_) == 2 and len(stand_in.made) == 3
    add(graphs_, "a", 0)  # still there
    assert len(stand_in.made) == 3
    for n_made in (3, 3, 4):
        assert add(graphs_, "b", 5) == 6
        assert len(stand_in.made) == n_made


def test_graphs_keep_within_their_memory(stand_in) -> None:
    graphs_ = held(max_bytes=100)
    for _ in range(3):
        assert add(graphs_, "large", 1, n=26) == 2
    assert not stand_in.made
    for key in "aabb":
        add(graphs_, key, 1, n=20)
    assert len(stand_in.made) == 2 and len(graphs_) == 1


def test_a_graph_that_works_in_more_memory_than_there_is_room_for_is_not_kept(
    stand_in, monkeypatch
) -> None:
    graphs_ = held(max_bytes=100)
    for key in "aab":
        add(graphs_, key, 1)
    monkeypatch.setattr(stand_in, "works_in", 100)
    assert [add(graphs_, "b", i) for i in range(3)] == [1, 2, 3]
    assert len(stand_in.made) == 2 and len(graphs_) == 1


@pytest.mark.parametrize("work", [(0, 94), (94, 0), (47, 47)])
def test_room_is_made_for_what_graphs_themselves_work_in(
    stand_in, monkeypatch, work: tuple[int, int]
) -> None:
    graphs_ = held(max_bytes=100)
    for key, works_in in zip("ab", work, strict=True):
        monkeypatch.setattr(stand_in, "works_in", works_in)
        for _ in range(2):
            add(graphs_, key, 1)
    assert len(stand_in.made) == 2 and len(graphs_) == 1
    for key, n_replays in (("a", 0), ("b", 1)):
        assert add(graphs_, key, 4) == 5
        assert graphs_.n_replays == n_replays


def test_where_memory_is_short_graphs_give_theirs_back_and_may_come_again(
    stand_in, monkeypatch
) -> None:
    def short(*args):
        raise torch.OutOfMemoryError("short")

    graphs_ = held()
    for key in "aab":
        add(graphs_, key, 1)
    with monkeypatch.context() as patched:
        patched.setattr(graphs, "Graph", short)
        assert add(graphs_, "b", 4) == 5 and len(graphs_) == 0
    for n_held in (0, 1):  # the next time is the first again
        assert add(graphs_, "b", 4) == 5
        assert len(graphs_) == n_held


def test_shapes_of_long_ago_are_forgotten_and_those_in_use_are_not(stand_in, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "_MAX_SHAPES", 3)
    graphs_ = held()
    for _ in "aa":
        add(graphs_, "a", 0)
    for key in "bcdefg":
        add(graphs_, key, 0)
        add(graphs_, "a", 0)
    assert len(graphs_._shapes) == 3 and graphs_._shapes["a"].captures == 1
    add(graphs_, "b", 0)
    assert len(stand_in.made) == 1, "it comes for the first time again"


def test_garbage_is_collected_after_a_capture_only_where_it_was_before() -> None:
    for was_on in (True, False):
        (gc.enable if was_on else gc.disable)()
        try:
            with graphs._no_collection():
                assert not gc.isenabled()
            assert gc.isenabled() == was_on
        finally:
            gc.enable()


def test_several_texts_are_no_shape_of_a_graph(qwen3: LoadedModel, stand_in) -> None:
    s = scorer(qwen3, SPARSE)
    s.graphs = held()
    (page, *_) = pages_of(s)
    for _ in range(3):
        s.score(list(QUERIES), [page], STAGES)
    assert not stand_in.made


def test_two_configurations_share_graphs_and_never_each_others(
    qwen3: LoadedModel, stand_in
) -> None:
    one, other = scorer(qwen3, DENSE), scorer(qwen3, EXIT)
    one.graphs = other.graphs = held()
    both = [(s, pages_of(s)) for s in (one, other)]
    expected = [plain(s, QUERIES[0], pages) for s, pages in both]
    for _ in range(3):
        for (s, pages), known in zip(both, expected, strict=True):
            assert np.abs(s.score([QUERIES[0]], pages, STAGES) - known).max() < 1e-4
    assert len(one.graphs) == 4
    assert np.abs(expected[0] - expected[1]).max() > 1e-2


def test_a_shape_that_cannot_be_captured_runs_without_and_is_logged_once(
    monkeypatch, caplog
) -> None:
    def fail(*args):
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(graphs, "Graph", fail)
    graphs_ = held()
    assert [add(graphs_, "a", i) for i in range(5)] == [1, 2, 3, 4, 5]
    assert len(caplog.records) == 1 and "no such luck" in caplog.text


def test_a_cpu_and_experts_do_without(loaded: LoadedModel) -> None:
    expected = CUDA and loaded.model.config.model_type != "qwen3_vl_moe"
    assert (graphs_for(loaded) is not None) == expected


@on_gpu
@pytest.mark.parametrize("kv_dtype", ["int8", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_give_the_logits_of_launched_passes(checkpoints, dtype, kv_dtype) -> None:
    loaded = load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=dtype)
    for config in (DENSE, SPARSE, EXIT):
        s = scorer(loaded, replace(config, kv_dtype=kv_dtype))
        some, others = pages_of(s), pages_of(s, (3, 0, 2, 2))
        for query in QUERIES:
            for pages in (some, others, some[:2], some, others, some):
                expected = plain(s, query, pages)
                bound = 1e-4 if dtype == torch.float32 else 0.1 * max(1, np.abs(expected).max())
                assert np.abs(s.score([query], pages, STAGES) - expected).max() < bound
        assert s.graphs is not None and len(s.graphs) >= 2


@on_gpu
def test_launched_captured_and_replayed_runs_are_equal_to_the_last_bit(qwen3: LoadedModel) -> None:
    s = scorer(qwen3, replace(SPARSE, kv_dtype="int8"))
    pages = pages_of(s)
    first, *rest = (s.score([QUERIES[0]], pages, STAGES) for _ in range(4))
    assert all(np.array_equal(first, each) for each in rest)


_FAILING = """
import torch
from mrr.model import graphs

held = graphs.Graphs(torch.device("cuda"))

def asks(x):
    return x + x.sum().item()

for value in (1.0, 2.0, 3.0):
    x = torch.full((2,), value, device="cuda")
    assert held.run("asks", asks, lambda into: (x,))[0].item() == 3 * value
assert len(held) == 0 and len(graphs._broken) == 1
assert torch.cuda.current_stream() == torch.cuda.default_stream()
torch.randn(3, device="cuda")
big = [torch.empty(2**20, device="cuda") for _ in range(99)]
torch.cuda.synchronize()
"""


@on_gpu
def test_a_failed_capture_leaves_the_gpu_usable() -> None:
    """In a process of its own, since none captures after it."""
    done = subprocess.run([sys.executable, "-c", _FAILING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("without a CUDA graph") == 1


@on_gpu
def test_a_graph_that_is_garbage_is_not_destroyed_within_another_ones_capture() -> None:
    device, x = torch.device(DEVICE), torch.zeros(3, device=DEVICE)
    spare = [Graph(lambda x: x * 2, (x,), device)]
    calls: list[list[object]] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        calls.append([])
        if len(calls) == 3:  # after two runs to warm up, this one is captured
            ring: list[object] = [spare.pop()]
            ring.append(ring)
            del ring
            calls.extend([] for _ in range(5000))  # a collection is due
        return x + 1

    assert Graph(function, (x,), device).replay().tolist() == [1, 1, 1]
    assert not spare and not graphs._broken


@on_gpu
def test_pages_that_are_put_in_place_beside_the_query_are_never_those_of_another(
    qwen3: LoadedModel,
) -> None:
    s = scorer(qwen3, EXIT)
    every = [case(s, picture(i, SIZES[i % 4])).page for i in range(8)]
    orders = [[(i * step + at) % 8 for i in range(6)] for step in (1, 3, 5) for at in range(8)]
    known = plain(s, QUERIES[0], every)
    for order in orders * 5:
        got = s.score([QUERIES[0]], [every[i] for i in order], STAGES)
        assert np.abs(got - known[order]).max() < 1e-4
    assert s.graphs is not None and s.graphs.n_replays > len(orders)


@on_gpu
def test_what_is_done_beside_a_queue_waits_for_what_came_before_it_and_is_waited_for() -> None:
    device = torch.device(DEVICE)
    large = torch.randn(4096, 4096, device=device)
    for _ in range(20):
        source = (large @ large)[0] * 0 + 1  # takes a while
        into = torch.zeros(4096, device=device)
        mark = torch.cuda.Event()
        mark.record()
        meanwhile = large @ large
        with beside(mark):
            into.copy_(source)
        assert into.sum().item() == 4096 and meanwhile.isfinite().all()


@on_gpu
def test_what_a_replay_returns_is_the_callers() -> None:
    x = torch.zeros(3, device=DEVICE)
    graph = Graph(lambda x: x + 1, (x,), torch.device(DEVICE))
    first = graph.replay()
    with torch.inference_mode():
        x.fill_(5)
    assert graph.replay().tolist() == [6, 6, 6] and first.tolist() == [1, 1, 1]


@on_gpu
def test_the_bare_loop_replays_the_engines_logits(qwen3: LoadedModel) -> None:
    s = scorer(qwen3, EXIT)
    pages = pages_of(s)
    bare = bare_band(s, QUERIES[0], pages)
    for _ in range(3):
        got = bare(STAGES).cpu().numpy()
        assert np.abs(got - s.score([QUERIES[0]], pages, STAGES)).max() < 1e-4
