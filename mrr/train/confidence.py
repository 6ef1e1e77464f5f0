"""How sure the tower is of what it read in a cell, written along one axis of its output.

A query's word is matched with a cell by dot product, but what counts is the probability that the
cell holds that word: the dot product less the log of the sum over every word that it might hold.
That sum depends on the cell alone, so the tower can say it; the language model takes it off in the
keys of its first band layer. Without it a blurred cell, a little like everything, outscores a
clear one.
The axis is the direction in which the word table varies least (mrr/model/lexical.py).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mrr.model.lexical import SHARPNESS

UNIT, CENTRE = 0.08, 16.0  # level = UNIT * (log partition - CENTRE)


def confidence(read: Tensor, table: Tensor) -> Tensor:
    """(n,) level of cells (n, D): the log of the sum over all pieces of exp(SHARPNESS * cosine)."""
    logits = SHARPNESS * F.normalize(read.float(), dim=-1) @ table.T
    return UNIT * (logits.logsumexp(-1) - CENTRE)


def confidence_loss(read: Tensor, level: Tensor, table: Tensor) -> Tensor:
    """Mean squared miss of the level; what was read is not pulled at."""
    with torch.no_grad():
        wanted = confidence(read, table)
    return (level.float() - wanted).pow(2).mean()
