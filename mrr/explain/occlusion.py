"""Occlusion: hide cells of a page from the query and measure what the score does.

It is the causal check beside the attention maps, and only the query's view is cut: the page's
K/V stays as it was computed, so neighbours, and <|vision_end|>, may still carry what a hidden
cell said. A block without effect may therefore still matter; a block with effect does. Positions
do not move, and what a hidden cell would have got of the attention goes to the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle, islice

import numpy as np
import torch

from mrr.errors import InvalidConfig
from mrr.explain.lens import MAX_BATCH_COLUMNS
from mrr.model.band import run_band, run_before_band
from mrr.model.kv import KVPage
from mrr.model.scorer import Scorer
from mrr.turn import NO_LOCK, Progress, Stop, never
from mrr.types import Occlusion

# Share of the kept cells in a top set: few enough to be a claim about where the evidence is.
TOP_SHARE = 0.1


def occlude(
    scorer: Scorer,
    text: str,
    page: KVPage,
    rankings: Mapping[str, np.ndarray],
    *,
    block: int = 2,
    n_random: int = 20,
    seed: Sequence[int] = (0,),
    progress: Progress | None = None,
    stop: Stop = never,
    lock: AbstractContextManager[object] = NO_LOCK,
) -> Occlusion:
    """Hide the top cells of each ranking, then random ones, then every block in turn.

    rankings: {name: (R, C)} maps whose top cells are put to the test; the block deltas are added
    as "occlusion". The control comes first, so that a map that was stopped has it too.
    n_random: sets in all; each is drawn to be like the top set of one ranking, in turn. There are
    none where the page has too few blocks for any set but the top ones.
    seed: of the random sets. progress(done, total) counts passes over the page. stop is asked
    after every batch of them; what was measured until then is returned. lock is held for one
    batch at a time.
    """
    block, n_random = check_sets(block, n_random)
    blocks = block_ids(page.grid, block)
    own = blocks.reshape(-1)[page.kept]  # block of each kept cell
    present = np.unique(own)
    n_top = max(1, round(TOP_SHARE * len(own)))
    rng = np.random.default_rng(seed)
    maps = [values.reshape(-1)[page.kept] for values in rankings.values()]
    best = [top_cells(own, values, n_top) for values in maps]
    by_turns = islice(cycle(maps or [rng.random(len(own))]), n_random)
    control = [top_cells(own, shuffled(own, values, rng), n_top) for values in by_turns]
    if best and not any(_can_differ(own, chosen) for chosen in best):
        control = []
    none = np.zeros(len(own), dtype=bool)
    sets = np.stack([none, *best, *control, *(own == present[:, None])])
    total = len(sets) + 1

    def hide(some: np.ndarray, done: int) -> np.ndarray:
        report = _from(progress, done, total)
        return hidden_logits(scorer, text, page, some, report, stop, lock)

    logits = hide(sets, 0)
    base = logits[0]
    tops, randoms, singles = np.split(logits[1:] - base, [len(best), len(best) + len(control)])
    known = ~np.isnan(singles)
    delta = np.zeros(blocks.max() + 1, dtype=np.float32)
    delta[present[known]] = singles[known]
    measured = ~np.isin(blocks, present[~known])
    top_deltas = {
        name: float(change)
        for name, change in zip(rankings, tops, strict=True)
        if not np.isnan(change)
    }
    if known.all():
        (last,) = hide(top_cells(own, -delta[own], n_top)[None], len(sets))
        top_deltas["occlusion"] = float(last - base)
    return Occlusion(
        delta=delta[blocks],
        measured=measured,
        block=block,
        base_logit=float(base),
        n_top=n_top,
        top_deltas=top_deltas,
        random_deltas=randoms[~np.isnan(randoms)],
    )


def check_sets(block: int, n_random: int) -> tuple[int, int]:
    """The two as Python's numbers, or InvalidConfig for sets of cells that cannot be."""
    for name, given in (("block", block), ("n_random", n_random)):
        is_whole = isinstance(given, int | np.integer) and not isinstance(given, bool)
        if not is_whole or given < 1:
            raise InvalidConfig(
                f"{name} is {given!r:.80}; it must be a whole number, and at least 1."
            )
    return int(block), int(n_random)


@torch.inference_mode()
def hidden_logits(
    scorer: Scorer,
    text: str,
    page: KVPage,
    hidden: np.ndarray,
    progress: Callable[[int], None] = lambda done: None,
    stop: Stop = never,
    lock: AbstractContextManager[object] = NO_LOCK,
) -> np.ndarray:
    """Logits (m,) float32 with m sets of cells hidden in the band; hidden: (m, n_kept) bool.

    NaN from where stop ended it, which is asked after every batch; the first always runs.
    """
    with lock:
        suffix = run_before_band(scorer.loaded, scorer.config, [scorer.prompt(text, 1).suffix])
        instruction = scorer.instruction()
    size = max(1, MAX_BATCH_COLUMNS // page.n_tokens)
    logits = np.full(len(hidden), np.nan, dtype=np.float32)
    for begin in range(0, len(hidden), size):
        some = torch.from_numpy(hidden[begin : begin + size])
        with lock:
            state = run_band(
                scorer.loaded,
                scorer.config,
                suffix,
                instruction,
                [page] * len(some),
                hidden_cells=some,
            )
            logits[begin : begin + len(some)] = scorer.head.logits(state).cpu().numpy()
        progress(begin + len(some))
        if stop():
            break
    return logits


def block_ids(grid: tuple[int, int], block: int) -> np.ndarray:
    """(R, C) number of the block that each cell lies in; blocks at the far edges may be cut."""
    rows, columns = np.indices(grid) // block
    return rows * -(-grid[1] // block) + columns


def top_cells(blocks: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """(m,) bool: n of m kept cells, taken whole block by block in order of their mean value.

    Whole, because a compact set hides more than scattered cells, whose neighbours still tell. The
    last block is cut to make the numbers equal.
    """
    _, index = np.unique(blocks, return_inverse=True)
    means = np.bincount(index, weights=values) / np.bincount(index)
    chosen = np.zeros(len(blocks), dtype=bool)
    chosen[np.lexsort((index, -means[index]))[:n]] = True
    return chosen


def shuffled(blocks: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(m,) values of a control: blocks with equally many kept cells exchange places in the order.

    Its top cells then touch as many blocks as those of `values`, with as many cells in each. Means
    over few cells are the extreme ones, so that blocks of any size would make too compact a set.
    """
    _, index, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=values) / sizes
    order = np.argsort(-means, kind="stable")
    places = np.argsort(order)
    for size in np.unique(sizes):
        places[sizes == size] = rng.permutation(places[sizes == size])
    return -places[index]


def _can_differ(blocks: np.ndarray, chosen: np.ndarray) -> bool:
    """Whether blocks that `shuffled` exchanges have unlike numbers of chosen cells, (m,) bool."""
    _, index, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    hidden = np.bincount(index, weights=chosen)
    return any(len(np.unique(hidden[sizes == size])) > 1 for size in np.unique(sizes))


def _from(progress: Progress | None, start: int, total: int) -> Callable[[int], None]:
    return lambda done: None if progress is None else progress(start + done, total)
