"""The three systems over the candidates of one query: `original`, `dense + reuse`, `mini`.

`dense + reuse` is the cached path with every layer and token on. Source: miniReranker section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mrr.errors import InputRejected
from mrr.page_cache import PageCache
from mrr.timing import Stages
from mrr.turn import Rest
from mrr.types import Page

# Page K/V held at once, whatever the number of candidates: about 1 GB of int8 at 2B dimensions, and
# with every layer and token, which are many times as large, 2.3 GB in bfloat16: of 20 pages of
# 1,000 tokens, as many as there are candidates usually (on a GPU 20 of 1,800 are two batches). A
# GPU holds it in the compute type (2 GB each) and once more side by side (PageStack), which its
# graphs keep.
PAGES_AT_ONCE, DENSE_PAGES_AT_ONCE = 128, 20
_ORIGINAL_BATCH_ON_GPU = 8


def original_batch(device: torch.device) -> int:
    """Pairs that `original` runs at once; a CPU is busy with one, more would only cost memory."""
    return _ORIGINAL_BATCH_ON_GPU if device.type == "cuda" else 1


@dataclass(frozen=True, slots=True)
class Scored:
    """Logits of the candidates and what was read of them; every list is in their order."""

    logits: Sequence[float]
    n_visual: Sequence[int]
    n_kept: Sequence[int]


def cached(
    cache: PageCache, text: str, pages: list[Page], stages: Stages, at_once: int, rest: Rest
) -> Scored:
    """`mini` and `dense + reuse`: the query against stored K/V.

    rest: between two passes that take long, here and below, others may have the models.
    """
    if not cache.scorer.image_first:
        raise InputRejected("dense + reuse needs the page first; set the order vision-first.")
    if not pages:
        return Scored([], [], [])
    logits, n_visual, n_kept = [], [], []
    rested = False

    def resting() -> None:
        nonlocal rested
        rested = True
        rest()

    reading = cache.scorer.read([text], stages)  # an accelerator is at it while pages are loaded
    for some in _chunks(pages, at_once):
        rested = False
        kv = cache.load(some, stages, resting)
        if rested:  # meanwhile others may have run, over what a graph gave
            reading = cache.scorer.read([text], stages)
        logits += cache.scorer.score_read(reading, kv, stages).tolist()
        n_visual += [page.grid[0] * page.grid[1] for page in kv]
        n_kept += [len(page.kept) for page in kv]
    return Scored(logits, n_visual, n_kept)


def joint(cache: PageCache, text: str, pages: list[Page], stages: Stages, rest: Rest) -> Scored:
    """`mini` in an order that puts the query first: nothing can be reused."""
    scorer = cache.scorer
    stages.missed.update(page.page_id for page in pages)
    logits, n_visual, n_kept = [], [], []
    for page in pages:
        rest()
        with stages("decode"):
            image = cache.picture(page)
        sight = scorer.sight(image, stages)
        kept = cache.kept(page, sight, stages)
        logits.append(scorer.score_joint(text, sight, kept, stages))
        n_visual.append(sight.pixels.n_tokens)
        n_kept.append(len(kept))
    return Scored(logits, n_visual, n_kept)


def original(cache: PageCache, text: str, pages: list[Page], stages: Stages, rest: Rest) -> Scored:
    """The stock model on every pair from scratch."""
    scorer = cache.scorer
    stages.missed.update(page.page_id for page in pages)
    logits, n_visual = [], []
    for some in _chunks(pages, original_batch(scorer.loaded.device)):
        rest()
        with stages("decode"):
            images = [cache.picture(page) for page in some]
        with stages("preprocess"):
            pixels = [scorer.preprocess(image) for image in images]
        logits += scorer.score_original([text] * len(some), pixels, stages).tolist()
        n_visual += [p.n_tokens for p in pixels]
    return Scored(logits, n_visual, n_visual)


def _chunks(pages: list[Page], size: int) -> Iterator[list[Page]]:
    for start in range(0, len(pages), size):
        yield pages[start : start + size]
