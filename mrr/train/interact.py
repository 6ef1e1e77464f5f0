"""Pages and queries through the language model as in training: many queries against each page.

The same arithmetic as the engine: the page prefix alone, the query suffix alone, and joint
attention only in the layers of the band. Every query of a batch meets every page of it, so each
page is the others' negative. tests/train/test_interact.py holds it equal to the stock forward
pass under the band mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mrr.train.tower import rotate


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Pages ready for layer 0, each with as many tokens kept. hidden: (B, P, D).

    positions: (3, B, P), those of the whole page. columns: (B, P) which of the n_whole columns of
    the whole prefix each token is; None where nothing was pruned.
    """

    hidden: Tensor
    positions: Tensor
    columns: Tensor | None
    n_whole: int


@dataclass(frozen=True, slots=True)
class Suffixes:
    """Queries, left-aligned. ids: (Q, S); length: (Q,) real tokens, the last one scores."""

    ids: Tensor
    length: Tensor


@dataclass(slots=True)
class Interaction:
    """What the pass saw. Layers are 0-based; index i is the output of layer i.

    hidden: {layer: (B, Q, S, D)} from the first band layer on. page_attention:
    {layer: (B, heads, Q, S, n_whole)} of the layers asked for, 0 where a token was pruned.
    suffix_attention: (B, heads, Q, S, S).
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    page_attention: dict[int, Tensor] = field(default_factory=dict)
    suffix_attention: dict[int, Tensor] = field(default_factory=dict)


def interact(
    lm: Any,
    prefixes: Prefixes,
    suffixes: Suffixes,
    band: tuple[int, int],
    last: int,
    watch: tuple[int, ...] = (),
) -> Interaction:
    """Run layers [0, last) with joint attention in [band[0], band[1]).

    Attention weights of the layers in `watch` are kept. Dense is band (0, n_layers).
    """
    out = Interaction()
    page = prefixes.hidden
    b, p, _ = page.shape
    s = suffixes.ids.shape[1]
    page_rope = lm.rotary_emb(page, prefixes.positions)
    # One offset for all queries: they follow the page as if nothing else did.
    next_position = int(prefixes.positions.max()) + 1
    positions = (next_position + torch.arange(s, device=page.device)).expand(3, 1, s)
    query_rope = lm.rotary_emb(page, positions)
    page_mask = causal(p, page)
    own_mask = causal(s, page)
    h = lm.embed_tokens(suffixes.ids)[None]  # (1, Q, S, D) until the band begins
    for i in range(last):
        layer = lm.layers[i]
        joint = band[0] <= i < band[1]
        q, k, v = project(layer, h, query_rope)
        if joint:
            page_k, page_v = _keys(layer, page, page_rope)
            h = h.expand(b, -1, -1, -1)
            q, k, v = (t.expand(b, *t.shape[1:]) for t in (q, k, v))
            attended, (on_page, on_own) = _attend_jointly(layer, q, k, v, page_k, page_v, own_mask)
            if i in watch:
                out.page_attention[i] = _spread(on_page, prefixes)
                out.suffix_attention[i] = on_own
        else:
            attended = attend_alone(layer, q, k, v, own_mask)
        h = finish(layer, h, attended)
        if i >= band[0]:
            out.hidden[i] = h
        if i + 1 < band[1]:
            pq, pk, pv = project(layer, page[:, None], page_rope)
            page = finish(layer, page[:, None], attend_alone(layer, pq, pk, pv, page_mask))[:, 0]
    return out


def logits(lm: Any, hidden: Tensor, suffixes: Suffixes, yes_no: tuple[int, int]) -> Tensor:
    """(B, Q) z_yes - z_no of the last real token of each suffix, float32."""
    last = suffixes.length - 1
    h = hidden[:, torch.arange(len(last), device=last.device), last].float()
    h = _norm(h, lm.norm)
    table = lm.embed_tokens.weight
    return h @ (table[yes_no[0]] - table[yes_no[1]]).float()


def _norm(x: Tensor, norm: Any) -> Tensor:
    wide = x.float()
    return (
        wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
    )


def causal(n: int, like: Tensor) -> Tensor:
    return torch.full((n, n), -1e9, device=like.device).triu(1)


def _spread(on_page: Tensor, prefixes: Prefixes) -> Tensor:
    """Attention (..., P) to the tokens that were kept, in the columns of the whole page."""
    if prefixes.columns is None:
        return on_page
    whole = on_page.new_zeros(*on_page.shape[:-1], prefixes.n_whole)
    return whole.scatter(-1, prefixes.columns[:, None, None, None].expand_as(on_page), on_page)


def project(layer: Any, h: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, Q, heads, S, d), k and v (B, Q, kv heads, S, d) of h (B, Q, S, D), rotated."""
    attn = layer.self_attn
    x = _norm(h, layer.input_layernorm)

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (-1, attn.head_dim)).transpose(2, 3)

    cos, sin = (t[:, None, None] for t in rope)  # (B or 1, 1, 1, S, d)
    q = rotate(heads(attn.q_proj(x)).float(), cos, sin)
    k = rotate(heads(attn.k_proj(x)).float(), cos, sin)
    return q, k, heads(attn.v_proj(x))


def _keys(layer: Any, page: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """k, v (B, kv heads, P, d) of the page."""
    _, k, v = project(layer, page[:, None], rope)
    return k[:, 0], v[:, 0]


def _grow(t: Tensor, layer: Any) -> Tensor:
    """Repeat key/value heads for the query heads that share them; heads are dimension -3."""
    return t.repeat_interleave(layer.self_attn.num_key_value_groups, -3)


def attend_alone(layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Causal attention within each sequence of (B, Q)."""
    k, v = _grow(k, layer), _grow(v, layer)
    shape = q.shape
    q, k = q.to(v.dtype).flatten(0, 1), k.to(v.dtype).flatten(0, 1)
    out = F.scaled_dot_product_attention(
        q, k, v.flatten(0, 1), attn_mask=mask.to(v.dtype), scale=layer.self_attn.scaling
    )
    return out.unflatten(0, shape[:2])


def _attend_jointly(
    layer: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    page_k: Tensor,
    page_v: Tensor,
    own_mask: Tensor,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Attention to the page and to the query's own past, one softmax over both."""
    scale = layer.self_attn.scaling
    page_k, page_v, k, v = (_grow(t, layer) for t in (page_k, page_v, k, v))
    n_queries, s = q.shape[1], q.shape[3]
    rows = q.transpose(1, 2).flatten(2, 3)  # (B, heads, Q * S, d)
    to_page = (rows @ page_k.mT).float() * scale
    to_own = (q @ k.mT).float() * scale + own_mask  # (B, Q, heads, S, S)
    both = torch.cat([to_page.unflatten(2, (n_queries, s)), to_own.transpose(1, 2)], -1).softmax(-1)
    on_page, on_own = both.split([page_k.shape[-2], s], -1)  # (B, heads, Q, S, .)
    out = (on_page.flatten(2, 3).to(v.dtype) @ page_v).unflatten(2, (n_queries, s))
    out = out + on_own.to(v.dtype) @ v.transpose(1, 2)
    return out.transpose(1, 2), (on_page, on_own)


def finish(layer: Any, h: Tensor, attended: Tensor) -> Tensor:
    """Output projection, residual and MLP; attended is (B, Q, heads, S, d)."""
    h = h + layer.self_attn.o_proj(attended.transpose(2, 3).flatten(3))
    x = _norm(h, layer.post_attention_layernorm)
    mlp = layer.mlp
    return h + mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
