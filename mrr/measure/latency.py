"""What a query costs in each system, stage by stage, measured here and now.

Every system ranks the same cached candidates. The first call of each is kept apart (cold: it may
encode, or read from disk); the repeats after it are warm, and take turns in a different order.
Nothing is traced and no progress is reported inside a timing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mrr.errors import InputRejected
from mrr.measure.corpus import Progress, report
from mrr.measure.machine import Machine, describe
from mrr.measure.spread import Spread, spread
from mrr.model.scorer import Scorer
from mrr.page_cache import PageCache
from mrr.prune import kept_tokens
from mrr.reranker import PUBLIC, MiniReranker
from mrr.timing import Stages
from mrr.turn import Stop, never
from mrr.types import SYSTEM_NAMES, SYSTEMS, Page, System

Call = Mapping[str, float]  # stage -> milliseconds, in the order they first ran
# Stages that run once a query, however many the candidates; all others grow with them.
ONCE_A_QUERY = frozenset({"retrieve", "query"})


@dataclass(frozen=True, slots=True)
class StageCost:
    """ms: per query, for all the report's candidates. ms_per_page: its median over them."""

    stage: str
    ms: Spread
    ms_per_page: float


@dataclass(frozen=True, slots=True)
class SystemLatency:
    """One system's warm cost of one query.

    n_measured: candidates of a measured call. Where that is fewer than the report's candidates
    (`original`), the stages that run once a page are scaled up, and `scaled` is True.
    first_call: the cold call, as measured. calls: the warm ones, as measured, not scaled.
    bytes_read: from disk in the last warm call; 0 when everything was in memory.
    """

    system: System
    n_measured: int
    scaled: bool
    stages: tuple[StageCost, ...]
    total: Spread
    first_call: Call
    calls: tuple[Call, ...]
    bytes_read: int


@dataclass(frozen=True, slots=True)
class CachingLatency:
    """One page's way into the cache, encoded again without the store, per page of n_pages.

    nbytes: stored K/V, averaged. calls: one a page, as measured.
    """

    system: System
    n_pages: int
    stages: tuple[StageCost, ...]
    total: Spread
    nbytes: int
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """times_mini: {system: how many times longer than `mini`}, paired by repeat."""

    query: str
    n_candidates: int
    repeats: int
    warmup: int
    state: Literal["warm"]
    machine: Machine
    systems: tuple[SystemLatency, ...]
    caching: tuple[CachingLatency, ...]
    times_mini: Mapping[str, Spread]
    notes: tuple[str, ...]

    def __getitem__(self, system: str) -> SystemLatency:
        return next(each for each in self.systems if each.system == system)


def measure_latency(
    reranker: MiniReranker,
    query: str,
    page_ids: Sequence[str],
    *,
    systems: Sequence[System] = SYSTEMS,
    repeats: int = 5,
    warmup: int = 1,
    max_original_pages: int = 2,
    scopes: Collection[str] = (PUBLIC,),
    progress: Progress | None = None,
    stop: Stop = never,
) -> LatencyReport:
    """Rank the same pages with every system, warmup + repeats times, and encode a few again.

    max_original_pages: pages that are run whole, by `original`, by `mini` in a prompt order that
    allows no reuse, and by encoding again; each page costs them the same. warmup: one more where
    CUDA graphs are captured. stop: asked after each repeat; those that were done are reported.
    Raises InputRejected without a page, a repeat or a warm-up call.
    """
    pages = [page for page in reranker.store.pages(scopes) if page.page_id in set(page_ids)]
    if not pages or min(repeats, warmup, max_original_pages) < 1:
        raise InputRejected("A measurement needs a cached page, one warm-up and one repeat.")
    reranker.clean(query)  # refuses what no system could rank
    systems, notes = _possible(reranker, systems)
    if not systems:
        raise InputRejected(" ".join(("There is no system to measure.", *notes)))
    reusing = {s for s in systems if s != "original" and reranker.cache.scorer.image_first}
    few = pages[:max_original_pages]
    chosen = {s: {p.page_id for p in (pages if s in reusing else few)} for s in systems}
    calls: dict[System, list[tuple[Call, int]]] = {system: [] for system in systems}
    # A GPU captures a shape when it comes the second time: once, and not what a query costs.
    if reusing and reranker.cache.scorer.graphs is not None:
        warmup += 1
    rounds = warmup + repeats
    for i in range(rounds):
        report(progress, "measure", i, rounds)
        for system in _rotated(systems, i):
            usage = reranker.rank(query, system=system, pages=chosen[system], scopes=scopes).usage
            calls[system].append((dict(usage.ms), usage.bytes_read))
        done = i + 1 - warmup
        if done >= 1 and stop():
            break
    report(progress, "measure", rounds, rounds)
    if done < repeats:
        notes += (f"Stopped after {done} of {repeats} repeats.",)
    measured = tuple(_system(s, calls[s], warmup, len(chosen[s]), len(pages)) for s in systems)
    return LatencyReport(
        query=query,
        n_candidates=len(pages),
        repeats=done,
        warmup=warmup,
        state="warm",
        machine=describe(reranker.loaded),
        systems=measured,
        caching=tuple(_caching(reranker, s, few) for s in systems if s in reusing),
        times_mini=_times_mini(measured, len(pages)),
        notes=reranker.notes + notes + _remarks(measured),
    )


def scaled_call(call: Call, factor: float) -> dict[str, float]:
    """A call as it would be with `factor` times the candidates."""
    return {s: ms if s in ONCE_A_QUERY else ms * factor for s, ms in call.items()}


def _possible(
    reranker: MiniReranker, systems: Sequence[System]
) -> tuple[tuple[System, ...], tuple[str, ...]]:
    if reranker.cache.scorer.image_first or "dense-reuse" not in systems:
        return tuple(systems), ()
    left = tuple(system for system in systems if system != "dense-reuse")
    return left, ("dense + reuse needs the page first, and this prompt order has it last.",)


def _rotated(systems: Sequence[System], i: int) -> list[System]:
    """Another system begins each round, so that none always runs on the others' warm caches."""
    shift = i % len(systems)
    return [*systems[shift:], *systems[:shift]]


def _system(
    system: System,
    calls: Sequence[tuple[Call, int]],
    warmup: int,
    n_measured: int,
    n_candidates: int,
) -> SystemLatency:
    warm = tuple(call for call, _ in calls[warmup:])
    whole = [scaled_call(call, n_candidates / n_measured) for call in warm]
    return SystemLatency(
        system=system,
        n_measured=n_measured,
        scaled=n_measured < n_candidates,
        stages=_stages(whole, n_candidates),
        total=spread([sum(call.values()) for call in whole]),
        first_call=calls[0][0],
        calls=warm,
        bytes_read=calls[-1][1],
    )


def _stages(calls: Sequence[Call], n_pages: int) -> tuple[StageCost, ...]:
    """Cost of each stage, in the order they ran; a stage that a call skipped took it no time."""
    costs = []
    for stage in dict.fromkeys(stage for call in calls for stage in call):
        ms = spread([call.get(stage, 0.0) for call in calls])
        costs.append(StageCost(stage, ms, ms.median / n_pages))
    return tuple(costs)


def _times_mini(systems: Sequence[SystemLatency], n_candidates: int) -> dict[str, Spread]:
    totals = {
        each.system: [
            sum(scaled_call(call, n_candidates / each.n_measured).values()) for call in each.calls
        ]
        for each in systems
    }
    if "mini" not in totals:
        return {}
    return {
        system: spread([ms / mini for ms, mini in zip(values, totals["mini"], strict=True)])
        for system, values in totals.items()
        if system != "mini"
    }


def _remarks(systems: Sequence[SystemLatency]) -> tuple[str, ...]:
    notes: list[str] = []
    for each in systems:
        name = SYSTEM_NAMES[each.system]
        if each.scaled:
            notes.append(f"{name} was measured on {each.n_measured} pages and scaled per page.")
        if any("encode" in call for call in each.calls):
            notes.append(f"{name} had to encode pages again: its cache is too small.")
        if each.total.noisy:
            notes.append(f"{name} varied by over 20% between repeats; measure again.")
    return tuple(notes)


def _caching(reranker: MiniReranker, system: System, pages: Sequence[Page]) -> CachingLatency:
    """Encode pages again, the first one once more before that to warm up."""
    cache = reranker.cache if system == "mini" else reranker.dense_cache

    def again(page: Page) -> tuple[Call, int]:
        with reranker.lock:
            return encode_again(cache, page)

    again(pages[0])
    calls, nbytes = zip(*map(again, pages), strict=True)
    return CachingLatency(
        system=system,
        n_pages=len(pages),
        stages=_stages(calls, 1),
        total=spread([sum(call.values()) for call in calls]),
        nbytes=round(sum(nbytes) / len(nbytes)),
        calls=calls,
    )


def encode_again(cache: PageCache, page: Page) -> tuple[Call, int]:
    """One page through everything that caching does, but neither read from nor put in a store."""
    scorer: Scorer = cache.scorer
    stages = Stages(scorer.loaded.device)
    sight = scorer.sight(cache.picture(page), stages)
    importance = None if cache.embedder is None else cache.embed(sight, stages)[1]
    kept = kept_tokens(
        scorer.config.pruner, scorer.config.keep_ratio, sight.pixels.grid, importance=importance
    )
    nbytes = scorer.encode(sight, kept, stages).nbytes
    return dict(stages.ms), nbytes
