"""Rotary embedding: where on the axis of positions a token is, as a turn of its Q and K.

Text has one position on all three axes of M-RoPE, so its turns are rows of one table, made once
for a model. To compute them for every query is twenty small operations, as many as a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

CosSin = tuple[Tensor, Tensor]

_LEAST_ROWS = 1024
# A table lives as long as its model, longer ones beside it: a CUDA graph may read it by address.
_tables: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Tensor]] = WeakKeyDictionary()


def rotate(x: Tensor, cos_sin: CosSin, *, by_head: bool = False) -> Tensor:
    """Rotary embedding of x (B, heads, n, D); cos and sin are (B, n, D), their halves equal.

    It lies in memory as x does, or head by head.
    """
    cos, sin = (t.unsqueeze(1) for t in cos_sin)
    half = x.shape[-1] // 2
    first, second, sin = x[..., :half], x[..., half:], sin[..., :half]
    shape = torch.broadcast_shapes(x.shape, cos.shape)
    turned = torch.mul(x, cos, out=x.new_empty(shape) if by_head else None)
    turned[..., :half].addcmul_(second, sin, value=-1)
    turned[..., half:].addcmul_(first, sin)
    return turned


def text_turns(lm: Any, like: Tensor, n_positions: int) -> Tensor:
    """(P, 2, D): cos and sin of text at positions 0, 1, ..., P - 1, at least n_positions of them.

    In the type and on the device of `like`.
    """
    n_rows = max(_LEAST_ROWS, 1 << (n_positions - 1).bit_length())
    held = _tables.setdefault(lm.rotary_emb, {})
    key = n_rows, like.dtype, like.device
    if key not in held:
        positions = torch.arange(n_rows, device=like.device)
        cos, sin = lm.rotary_emb(like, positions.expand(3, 1, -1))
        held[key] = torch.stack([cos[0], sin[0]], 1)
    return held[key]


def text_tables(lm: Any, like: Tensor, n: int, starts: Sequence[int] | None = None) -> CosSin:
    """cos and sin of n text tokens that begin at each of N starts, or at 0: (N, n, D) each."""
    if starts is None:
        turns = text_turns(lm, like, n)[None, :n]
    else:
        table = text_turns(lm, like, max(starts) + n)
        turns = table[(torch.tensor(starts)[:, None] + torch.arange(n)).to(like.device)]
    cos, sin = turns.unbind(2)
    return cos, sin
