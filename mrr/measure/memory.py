"""Peak memory while pages are added: it must not grow with how many there are."""

from __future__ import annotations

import resource
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cache_db.store import PageStore
from mrr.build import Parts, trained_config
from mrr.reranker import MiniReranker

_MEMORY_TIER = 64 * 2**20
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Highest resident memory of this process so far, in MiB, after n_pages were added."""

    n_pages: int
    peak_mib: float


def peak_memory(
    parts: Parts, n_pages: int, size: tuple[int, int], within: Path | None = None
) -> list[PeakMemory]:
    """Add n_pages noise pages of size (width, height) px to a store on disk; up to five readings.

    The store's tier in memory is 64 MiB, so that it is full early and what grows is a leak; by
    default it is 1 GiB. within: the folder for the temporary store.
    """
    noise = np.random.default_rng(0)
    looks = {max(1, round(n_pages * (i + 1) / _LOOKS)) for i in range(_LOOKS)}
    seen: list[PeakMemory] = []
    if within is not None:
        within.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=within) as folder,
        PageStore(Path(folder), memory_bytes=_MEMORY_TIER) as store,
    ):
        engine = MiniReranker(
            parts.loaded,
            parts.template,
            trained_config(parts.loaded, None),
            embedder=parts.embedder,
            store=store,
        )
        for i in tqdm(range(1, n_pages + 1), file=sys.stderr, unit="page", disable=None):
            engine.add(Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)))
            if i in looks:
                seen.append(PeakMemory(i, _peak_mib()))
        engine.close()
    return seen


def _peak_mib() -> float:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**20 if sys.platform == "darwin" else 2**10)
