"""The traced pass: the mini system with every layer read, and its attention where asked for.

It takes the very steps that `Scorer.score` takes, with two differences: it looks, and the exit
layer computes all tokens instead of the last one alone. Rounding apart, its last reading is the
logit of `rank`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mrr.model.band import run_band, run_before_band
from mrr.model.head import RelevanceHead
from mrr.model.kv import KVPage
from mrr.model.layers import Recorder
from mrr.model.scorer import Scorer


class LensReader:
    """Reads relevance off the last token after every layer, as an Observer.

    last: (1,) or (B,) index of each row's last token. logits: {layer: (B,) float32}.
    """

    def __init__(self, head: RelevanceHead, last: Tensor) -> None:
        self._head = head
        self._last = last
        self.logits: dict[int, np.ndarray] = {}

    def __call__(self, layer: int, hidden: Tensor) -> None:
        """hidden (B, n, d), not normed."""
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        self.logits[layer] = self._head.logits(hidden[rows, self._last]).cpu().numpy()

    def table(self, n_rows: int) -> np.ndarray:
        """(n_rows, layers); a layer that ran once for all rows has the same value in each."""
        layers = [np.broadcast_to(self.logits[i], n_rows) for i in sorted(self.logits)]
        return np.stack(layers, axis=1)


def trace(
    scorer: Scorer,
    texts: Sequence[str],
    pages: Sequence[KVPage],
    recorder: Recorder | None = None,
) -> np.ndarray:
    """Lens (N, E) of one text against N pages, or of N texts against one page, in one batch."""
    suffixes = [scorer.prompt(text, 1).suffix for text in texts]
    last = torch.tensor([len(ids) - 1 for ids in suffixes], device=scorer.loaded.device)
    reader = LensReader(scorer.head, last)
    suffix = run_before_band(
        scorer.loaded, scorer.config, suffixes, observe=reader, recorder=recorder
    )
    if len(texts) > 1:
        pages = list(pages) * len(texts)
    run_band(
        scorer.loaded,
        scorer.config,
        suffix,
        scorer.instruction(),
        pages,
        observe=reader,
        recorder=recorder,
    )
    return reader.table(len(pages))
