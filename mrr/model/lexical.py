"""Lexical first stage: which word pieces a page shows, read straight off its visual tokens.

For checkpoints whose vision tower writes word pieces in the space of the token table, as the
bundled pair's does (`"pooling": "lexical"` in the `mini_reranker` section of their config). A page
is a vector over the vocabulary, as in learned sparse retrieval (SPLADE, BGE-M3): a single vector
as wide as a hidden state cannot hold the several hundred words of a page.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SHARPNESS = 30.0  # logits of a visual token over the vocabulary are this times the cosine
_FLOOR = 7.0  # nats below certainty at which a piece counts as absent
_AT_ONCE = 256  # visual tokens, so that memory stays bounded at a vocabulary of 150,000


def confidence_axis(table: Tensor) -> Tensor:
    """(d,) unit direction along which the rows of table (V, d) vary least.

    The bundled tower writes how sure it is along it (mrr/train/confidence.py).
    """
    # Training asks for it too, where products would be rounded to bfloat16.
    with torch.autocast(table.device.type, enabled=False):
        return torch.linalg.eigh(torch.cov(table.float().T)).eigenvectors[:, 0].contiguous()


def split_confidence(visual: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Visual tokens (..., d) into what was read (..., d) and the level of confidence (...)."""
    level = visual @ axis
    return visual - level[..., None] * axis, level


def page_vector(visual: Tensor, table: Tensor, control: list[int]) -> np.ndarray:
    """(V,) float32 in [0, 1]: 1 for a piece that is surely on the page, 0 for one that is not.

    visual: (T, d) of one page; table: (V, d) token embeddings; control: ids that are no words.
    Each visual token is a distribution over the vocabulary; a piece is on the page unless every
    token is something else. The scale between 0 and 1 is logarithmic.
    """
    rows = F.normalize(table.float(), dim=-1)
    read, _ = split_confidence(visual.float(), confidence_axis(rows))
    nowhere = torch.zeros(len(rows), device=rows.device)  # log probability
    for some in F.normalize(read, dim=-1).split(_AT_ONCE):
        shown = (SHARPNESS * some @ rows.T).softmax(-1)
        nowhere += (1 - shown).clamp(min=1e-6).log().sum(0)
    vector = (1 + (-nowhere.expm1()).clamp(min=1e-9).log() / _FLOOR).clamp(min=0.0)
    vector[control] = 0.0
    return vector.cpu().numpy()


def similarity(ids: list[int], vectors: np.ndarray) -> np.ndarray:
    """(N,) in [0, 1]: how much of a query each page shows, rare pieces counting more.

    ids: the query's pieces. vectors: (N, V) of the pages searched; how rare a piece is, is counted
    over these very pages (inverse document frequency).
    """
    pieces = vectors[:, sorted(set(ids))]
    weights = np.log((len(vectors) + 1) / (pieces.sum(0) + 0.5)).clip(min=0.05)
    return (pieces @ (weights / weights.sum())).astype(np.float32)
