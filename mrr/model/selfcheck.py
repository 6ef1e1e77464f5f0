"""At start-up: does the cached path still equal the stock forward pass on this checkpoint?

A new transformers release, an attention backend or a cast can break it silently, so every loaded
model is asked once, on a picture of a few tokens.
"""

from __future__ import annotations

import logging
import time

import numpy as np
import torch
from PIL import Image

from mrr.config import RerankConfig
from mrr.errors import ParityError
from mrr.model.graphs import graphs_for
from mrr.model.kv import lossless
from mrr.model.load import LoadedModel
from mrr.model.prompt import PromptEncoder, PromptTemplate
from mrr.model.scorer import Scorer
from mrr.timing import Stages

logger = logging.getLogger(__name__)

# Allowed difference relative to the logit's scale: about 840, 13 and 20 machine epsilons.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


def check_parity(loaded: LoadedModel, template: PromptTemplate) -> float:
    """Largest logit difference relative to its scale; raises ParityError over tolerance.

    The scale is the largest of 1, the logit, and what a hidden state without direction would give:
    rounding does not shrink where yes and no happen to balance.
    """
    begin = time.perf_counter()
    config = RerankConfig().dense(loaded.n_layers, lossless(loaded.dtype))
    graphs = graphs_for(loaded)
    scorer = Scorer(loaded, PromptEncoder(loaded.tokenizer, template), config, graphs=graphs)
    stages = Stages(loaded.device)
    noise = np.random.default_rng(0)
    side = 3 * loaded.cell
    pictures = [
        Image.fromarray(noise.integers(0, 256, (side, width, 3), dtype=np.uint8))
        for width in (side, 2 * side)
    ]
    query = "self check"
    sights = [scorer.sight(picture, stages) for picture in pictures]
    pages = [scorer.encode(s, np.arange(s.pixels.n_tokens), stages) for s in sights]
    for _ in range(1 if graphs is None else 3):  # the third time is a replay, as most queries are
        engine = scorer.score([query], pages, stages)
    stock = np.array([scorer.score_original([query], [s.pixels], stages)[0] for s in sights])
    scale = np.maximum(max(1.0, scorer.head.spread()), np.abs(stock))
    error = float(np.max(np.abs(engine - stock) / scale))
    if error > _TOLERANCE[loaded.dtype]:
        raise ParityError(
            f"{loaded.name}: the cached path differs from the stock forward pass by {error:.2g} "
            f"(allowed {_TOLERANCE[loaded.dtype]:.0e}). Its scores cannot be trusted; check the "
            "transformers version against requirements.txt."
        )
    elapsed_ms = (time.perf_counter() - begin) * 1e3
    logger.info("Parity self-check: relative error %.1e in %.0f ms.", error, elapsed_ms)
    return error
