"""How the language model starts: the first band layer finds words before anything is trained.

Query and page meet there for the first time. Its first head begins as a search over what the tower
wrote, at the log probability that a cell holds the word, with a place to rest for words that no
cell holds; the layers before it begin as identity. Measured in docs/LOG.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mrr.model.lexical import SHARPNESS, confidence_axis, split_confidence
from mrr.train.confidence import UNIT

STRENGTH = 25.0  # of the search: a score is this times the cosine


def aim_at_words(
    lm: Any,
    layer: int,
    table: Tensor,
    rest: Tensor,
    strength: float = STRENGTH,
    self_penalty: float = 14.0,
) -> None:
    """Start one layer's attention as a search: queries and keys are the same reading of a token.

    The rows are the principal directions of the word table, placed on the rotary pairs that turn
    so slowly that a page's width does not matter. A bias on one faster pair keeps a query token
    from finding itself: it favours keys about a page away over keys at no distance. rest: (D,)
    embedding of the token that is attended to where the page does not show the word.
    """
    attn = lm.layers[layer].self_attn
    half = attn.head_dim // 2
    inv_freq = lm.rotary_emb.inv_freq
    slow = [i for i in range(half) if inv_freq[i] * 64 < 0.6]
    rows = torch.tensor([*slow, *(i + half for i in slow)])
    values, vectors = torch.linalg.eigh(torch.cov(table.T))
    directions = vectors.flip(1)[:, : len(rows)].T
    captured = float(values.flip(0)[: len(rows)].sum() / values.sum())
    dim = table.shape[1]
    scale = math.sqrt(strength / (captured * dim * attn.scaling))
    turning = int((inv_freq * 45 - math.pi).abs().argmin())
    with torch.no_grad():
        attn.q_proj.weight[: attn.head_dim] = 0  # the first head's
        attn.q_proj.weight[rows] = directions * scale
        attn.q_proj.bias[turning] = -math.sqrt(self_penalty / attn.scaling)
        attn.k_proj.weight.zero_()
        attn.k_proj.weight[rows] = directions * scale
        attn.k_proj.bias[turning] = math.sqrt(self_penalty / attn.scaling)
    aim_at_confidence(lm, layer, table, int(rows[-1]))
    aim_at_rest(lm, layer, split_confidence(rest, confidence_axis(table))[0], int(rows[-2]))


def quiet_before(lm: Any, layer: int) -> None:
    """Let the layers before one start as identity.

    A token has length 1 and an untrained layer adds about as much noise: after four of them the
    search no longer finds what the tower wrote.
    """
    with torch.no_grad():
        for before in lm.layers[:layer]:
            before.self_attn.o_proj.weight.zero_()
            before.mlp.down_proj.weight.zero_()


def aim_at_rest(lm: Any, layer: int, token: Tensor, row: int, logit: float = 11.0) -> None:
    """Give one row of a layer's keys to one token (D,) of the prompt, where the first head rests.

    A word that the page does not show then attends there, as it would to a cell that holds the
    word with probability exp((logit - 13) / 0.8), about a tenth.
    """
    attn = lm.layers[layer].self_attn
    wanted = math.sqrt(logit / (math.sqrt(len(token)) * attn.scaling))
    with torch.no_grad():
        attn.q_proj.weight[row] = 0
        attn.q_proj.bias[row] = wanted
        attn.k_proj.weight[row] = wanted * F.normalize(token, dim=0)
        attn.k_proj.bias[row] = 0


def aim_at_confidence(lm: Any, layer: int, table: Tensor, row: int) -> None:
    """Give one row of a layer's keys to what the tower says of its confidence, and take it off.

    The first head's scores become STRENGTH * cosine less the same share of the log partition that
    the level stands for: the log probability that a cell holds the word (mrr/train/confidence.py).
    """
    attn = lm.layers[layer].self_attn
    # A level of 1 on a token of length 1 is sqrt(dim) after the norm.
    wanted = STRENGTH / SHARPNESS / UNIT / (math.sqrt(table.shape[1]) * attn.scaling)
    with torch.no_grad():
        attn.q_proj.weight[row] = 0
        attn.q_proj.bias[row] = math.sqrt(wanted)
        attn.k_proj.weight[row] = -math.sqrt(wanted) * confidence_axis(table)
        attn.k_proj.bias[row] = 0
