"""Occlusion: hide cells of a page from the query and measure what the score does.

It is the causal check beside the attention maps, and only the query's view is cut: the page's
K/V stays as it was computed, so neighbours, and <|vision_end|>, may still carry what a hidden
cell said. A block without effect may therefore still matter; a block with effect does. Positions
do not move, and what a hidden cell would have got of the attention goes to the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from mrr.explain.lens import MAX_BATCH_COLUMNS
from mrr.model.band import run_band, run_before_band
from mrr.model.kv import KVPage
from mrr.model.scorer import Scorer
from mrr.types import Occlusion

Progress = Callable[[int, int], None]

# Share of the kept cells in a top set: few enough to be a claim about where the evidence is.
TOP_SHARE = 0.1

_RANKED_BY = {
    "contrast": "get the most attention beyond what neutral queries pay",
    "attention": "get the most attention from the query's words",
    "importance": "the pruner found most important, whatever the query",
    "occlusion": "lowered the logit most block by block (chosen on the measure itself)",
}


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
) -> Occlusion:
    """Hide every block in turn, then the top cells of each ranking, then random ones.

    rankings: {name: (R, C)} maps whose top cells are put to the test; the block deltas are added
    as "occlusion". seed: of the random sets. progress(done, total) counts passes over the page;
    what it raises stops the work.
    """
    if block < 1 or n_random < 1:
        raise ValueError(f"block is {block} and n_random {n_random}; both must be at least 1.")
    blocks = block_ids(page.grid, block)
    own = blocks.reshape(-1)[page.kept]  # block of each kept cell
    present = np.unique(own)
    one_each = np.concatenate([np.zeros((1, len(own)), dtype=bool), own == present[:, None]])
    total = len(one_each) + len(rankings) + 1 + n_random
    logits = hidden_logits(scorer, text, page, one_each, _from(progress, 0, total))
    base = logits[0]
    delta = np.zeros(blocks.max() + 1, dtype=np.float32)
    delta[present] = logits[1:] - base
    delta = delta[blocks]

    n_top = max(1, round(TOP_SHARE * len(own)))
    maps = {**rankings, "occlusion": -delta}
    tops = [top_cells(own, values.reshape(-1)[page.kept], n_top) for values in maps.values()]
    rng = np.random.default_rng(seed)
    randoms = [top_cells(own, rng.random(blocks.max() + 1)[own], n_top) for _ in range(n_random)]
    together = np.stack([*tops, *randoms])
    deltas = (
        hidden_logits(scorer, text, page, together, _from(progress, len(one_each), total)) - base
    )
    return Occlusion(
        delta=delta,
        block=block,
        base_logit=float(base),
        n_top=n_top,
        top_deltas={name: float(d) for name, d in zip(maps, deltas, strict=False)},
        random_deltas=deltas[len(maps) :],
    )


@torch.inference_mode()
def hidden_logits(
    scorer: Scorer,
    text: str,
    page: KVPage,
    hidden: np.ndarray,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Logits (m,) float32 with m sets of cells hidden in the band; hidden: (m, n_kept) bool."""
    suffix = run_before_band(scorer.loaded, scorer.config, [scorer.prompt(text, 1).suffix])
    instruction = scorer.instruction()
    size = max(1, MAX_BATCH_COLUMNS // page.n_tokens)
    logits = np.empty(len(hidden), dtype=np.float32)
    for begin in range(0, len(hidden), size):
        some = torch.from_numpy(hidden[begin : begin + size])
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
    return logits


def block_ids(grid: tuple[int, int], block: int) -> np.ndarray:
    """(R, C) number of the block that each cell lies in; blocks at the far edges may be cut."""
    rows, columns = np.indices(grid) // block
    return rows * -(-grid[1] // block) + columns


def top_cells(blocks: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """(m,) bool: n of m kept cells, taken whole block by block in order of their mean value.

    Top and random sets are both drawn so, and differ in nothing but the order of the blocks: a
    compact set hides more than scattered cells, whose neighbours still tell. The last block is
    cut to make the numbers equal.
    """
    _, index = np.unique(blocks, return_inverse=True)
    means = np.bincount(index, weights=values) / np.bincount(index)
    chosen = np.zeros(len(blocks), dtype=bool)
    chosen[np.lexsort((index, -means[index]))[:n]] = True
    return chosen


def occlusion_verdict(occlusion: Occlusion, ranking: str = "contrast") -> str:
    """What the test of one ranking came to, in sentences with the numbers."""
    top, random = occlusion.top_deltas[ranking], occlusion.random_deltas
    low, high, n = float(random.min()), float(random.max()), occlusion.n_top
    cells = f"the {n} cells that" if n > 1 else "the one cell that"
    numbers = (
        f"Hiding {cells} {_RANKED_BY[ranking]} changes the logit of "
        f"{_signed(occlusion.base_logit)} by {_signed(top)}; hiding as many random cells, "
        f"{len(random)} times, changes it by {_signed(random.mean())} on average, between "
        f"{_signed(low)} and {_signed(high)}. "
    )
    if top < min(low, 0.0):
        return numbers + "They support the score more than any random set did."
    if top > max(high, 0.0):
        return numbers + "They speak against the page more than any random set did."
    if low <= top <= high:
        return numbers + "That is within chance: this map does not show what the score rests on."
    return numbers + "They matter less than any random set did."


def _signed(value: float) -> str:
    """Two decimals with a sign; what rounds to zero is +0.00, never -0.00."""
    return f"{round(float(value), 2) + 0.0:+.2f}"


def _from(progress: Progress | None, start: int, total: int) -> Callable[[int], None]:
    return lambda done: None if progress is None else progress(start + done, total)
