"""How the language model starts: the first band layer finds words before anything is trained.

Query and page meet there for the first time. Its first head begins as a search over what the tower
wrote, at the log probability that a cell holds the word, with a place to rest for words that no
cell holds; the layers before it begin as identity, but for one head. That head writes beside each
word the word before it, and the second head of the first band layer searches for both together.
Measured in docs/LOG.md.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mrr.model.lexical import SHARPNESS, confidence_axis, split_confidence
from mrr.train.confidence import UNIT

STRENGTH = 25.0  # of the search: a score is this times the cosine
# Share of it that a word has, and the word before, where both are searched for: with it a pair in a
# row scores as a word alone does in the first head, so both rest and doubt alike.
_EACH = 0.7
_BESIDE = 0.6  # how loud the word before is written, next to a word
_SELF_PENALTY = 14.0
# What a column and a half, or a row, takes off the score of a displacement: about 6 and 4.
_COLUMN_SHARPNESS, _ROW_SHARPNESS = 11.6, 11.3


def aim_at_words(lm: Any, layer: int, table: Tensor, rest: Tensor) -> None:
    """Start one layer's first head as a search: queries and keys are the same reading of a token.

    The rows are the principal directions of the word table. rest: (D,) embedding of the token that
    is attended to where the page does not show the word.
    """
    rows = slow_rows(lm, layer)
    values, vectors = _principal(table)
    captured = float(values[: len(rows)].sum() / values.sum())
    read = vectors[:, : len(rows)].T * math.sqrt(STRENGTH / captured)
    _aim_search(lm, layer, 0, rows, read, table, rest)


def aim_at_neighbours(lm: Any, layer: int, table: Tensor, rest: Tensor) -> None:
    """Start one layer's second head as a search for a word and the word before it.

    A head of the layer before adds to each token what the cells before it in its row show, or the
    token before it in a text, in directions that the word table hardly uses.
    """
    rows = slow_rows(lm, layer)
    half = len(rows) // 2
    values, vectors = _principal(table)
    # The very last direction is the axis of confidence.
    own, beside = vectors[:, :half].T, vectors[:, -half - 1 : -1].T
    captured = float(values[:half].sum() / values.sum())
    _write_previous(lm, layer - 1, own, beside)
    read = torch.cat([own, beside / _BESIDE]) * math.sqrt(_EACH * STRENGTH / captured)
    _aim_search(lm, layer, 1, rows, read, table, rest)


def slow_rows(lm: Any, layer: int) -> Tensor:
    """Rows of a head, on rotary pairs that turn so slowly that a page's width does not matter."""
    half = lm.layers[layer].self_attn.head_dim // 2
    slow = [i for i in range(half) if lm.rotary_emb.inv_freq[i] * 64 < 0.6]
    return torch.tensor([*slow, *(i + half for i in slow)])


def _principal(table: Tensor) -> tuple[Tensor, Tensor]:
    """Variances, descending, and directions (D, D), one a column, of the word table (V, D)."""
    values, vectors = torch.linalg.eigh(torch.cov(table.T))
    return values.flip(0), vectors.flip(1)


def _aim_search(
    lm: Any,
    layer: int,
    head: int,
    rows: Tensor,
    read: Tensor,
    table: Tensor,
    rest: Tensor,
) -> None:
    """Make a head's score of two tokens of length 1 the dot product of what `read` (n, D) makes of
    them; rows: where in the head, n or more.

    A bias on one faster pair keeps a query token from finding itself: it favours keys about a page
    away over keys at no distance.
    """
    attn = lm.layers[layer].self_attn
    first = head * attn.head_dim
    here = slice(first, first + attn.head_dim)
    turning = int((lm.rotary_emb.inv_freq * 45 - math.pi).abs().argmin())
    at = first + rows[: len(read)]
    # A token of length 1 is sqrt(D) after the norm.
    read = read / math.sqrt(table.shape[1] * attn.scaling)
    with torch.no_grad():
        for projection, sign in ((attn.q_proj, -1.0), (attn.k_proj, 1.0)):
            projection.weight[here] = 0
            projection.bias[here] = 0
            projection.weight[at] = read
            projection.bias[first + turning] = sign * math.sqrt(_SELF_PENALTY / attn.scaling)
    aim_at_confidence(lm, layer, table, first + int(rows[-1]))
    aim_at_rest(lm, layer, split_confidence(rest, confidence_axis(table))[0], first + int(rows[-2]))


def _write_previous(lm: Any, layer: int, own: Tensor, beside: Tensor) -> None:
    """Let a layer's last head copy what the one or two cells to the left show.

    Rotary scores of two constant vectors depend on the displacement alone. On the pairs that turn
    fastest with columns they are highest a column and a half to the left, on those that turn
    fastest with rows in the same row. own, beside: (n, D) directions read, and those written to.
    """
    attn = lm.layers[layer].self_attn
    dim, half = attn.head_dim, attn.head_dim // 2
    first = attn.q_proj.out_features - dim
    here = slice(first, first + dim)
    inv_freq = lm.rotary_emb.inv_freq
    ends = list(itertools.accumulate(lm.rotary_emb.mrope_section))
    fastest = (
        (range(ends[1], ends[2]), -1.5, _COLUMN_SHARPNESS),
        (range(ends[0], ends[1]), 0.0, _ROW_SHARPNESS),
    )
    with torch.no_grad():
        for projection in (attn.q_proj, attn.k_proj, attn.v_proj):
            projection.weight[here] = 0
            projection.bias[here] = 0
        for pairs, offset, sharpness in fastest:
            for i in pairs:
                each = math.sqrt(sharpness / attn.scaling)
                angle = float(inv_freq[i]) * offset
                attn.q_proj.bias[first + i] = each * math.cos(angle)
                attn.q_proj.bias[first + half + i] = each * math.sin(angle)
                attn.k_proj.bias[first + i] = each
        n = len(own)
        attn.v_proj.weight[first : first + n] = own
        attn.o_proj.weight[:, here] = 0
        # Values are of a token of length sqrt(D) after the norm.
        attn.o_proj.weight[:, first : first + n] = beside.T * (_BESIDE / math.sqrt(own.shape[1]))


def quiet_before(lm: Any, layer: int) -> None:
    """Let the layers before one start as identity; `aim_at_neighbours` then gives one a task.

    A token has length 1 and an untrained layer adds about as much noise: after four of them the
    search no longer finds what the tower wrote.
    """
    with torch.no_grad():
        for before in lm.layers[:layer]:
            before.self_attn.o_proj.weight.zero_()
            before.mlp.down_proj.weight.zero_()


def aim_at_rest(lm: Any, layer: int, token: Tensor, row: int, logit: float = 11.0) -> None:
    """Give one row of a layer's keys to one token (D,) of the prompt, where the head rests.

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

    A search's scores become STRENGTH * cosine less the same share of the log partition that
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
