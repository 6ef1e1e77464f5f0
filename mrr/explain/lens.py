"""Relevance per layer: the cheap reading of the fast path, and the full pass beside it.

The raw logit lens: the model's own final norm and yes/no rows, applied to layers that were not
all trained to be read so. Only the exit layer of a checkpoint trained for it is calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mrr.explain.trace import LensReader, trace
from mrr.model.joint import run_joint
from mrr.model.kv import KVPage
from mrr.model.scorer import Scorer, batches
from mrr.model.vision import Pixels, encode_vision

# Prefix columns in one traced batch: bounds the expanded K/V, of a layer or on a GPU of the band.
MAX_BATCH_COLUMNS = 16_384


def mini_lens(scorer: Scorer, text: str, pages: Sequence[KVPage]) -> np.ndarray:
    """(N, E) logits after each layer that the fast path runs, from batched band passes."""
    assert scorer.config.exit_layer is not None
    table = np.empty((len(pages), scorer.config.exit_layer), dtype=np.float32)
    for batch in batches([page.n_tokens for page in pages], MAX_BATCH_COLUMNS):
        table[batch] = trace(scorer, [text], [pages[i] for i in batch])
    return table


def dense_lens(scorer: Scorer, text: str, pixels: Pixels) -> np.ndarray:
    """(L,) logits after every layer of a pass over every token, in the scorer's prompt order.

    The fast path never runs this: no band, no exit, no pruning, no reuse. The last value is the
    logit of the `original` system.
    """
    loaded = scorer.loaded
    prompt = scorer.prompt(text, pixels.n_tokens)
    reader = LensReader(scorer.head, torch.tensor([-1], device=loaded.device))
    run_joint(
        loaded,
        scorer.encoder,
        scorer.config.dense(loaded.n_layers),
        prompt,
        pixels,
        encode_vision(loaded, pixels),
        np.arange(pixels.n_tokens),
        observe=reader,
    )
    return reader.table(1)[0]
