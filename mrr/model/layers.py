"""The segment loop: run some decoder layers over some tokens, with K/V read from elsewhere.

transformers' own layers do the work, with parts of ours (mrr/model/fused.py); where they would do
more than is needed, their parts do, one after another. The attention function is ours too, and
shows a traced pass what was attended to. The two silent traps here: a cached prefix without an
explicit mask attends only to its first tokens, and a boolean mask is wrong under eager attention;
so masks are always explicit and additive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mrr.model.rotary import CosSin

ATTENTION = "mrr"
# On a GPU torch may choose cuDNN, which compiles a plan for every new shape and clears memory
# first: for a short text that takes longer than the attention (docs/LOG.md, "The query on an H200,
# measured again"). The passes of whole pages are left to torch's choice.
_choosing = threading.Lock()
_SHORT = 128
_NOT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# exp(MASKED) is 0 in every type. An infinity does on a CPU, but a kernel of a GPU that begins with
# columns of which nothing is seen may subtract it from itself.
MASKED = -65_504.0

Observer = Callable[[int, Tensor], None]


class KVSource(Protocol):
    """What a decoder layer needs of its `past_key_values`."""

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *args: Any) -> tuple[Tensor, Tensor]:
        """Take the segment's K/V (B, H, n, D) and return the K/V that it attends to."""


class Recorder(Protocol):
    """Receives what attention saw, in a traced pass only."""

    def record(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float
    ) -> None:
        """query (B, heads, n, D) and key (B, H, S, D) after rotary, mask additive."""


def run_layers(
    lm: Any,
    hidden: Tensor,
    cos_sin: CosSin,
    layers: range,
    *,
    mask: Tensor | None = None,
    kv: KVSource | None = None,
    deepstack: tuple[Tensor, ...] = (),
    visual_rows: Tensor | None = None,
    observe: Observer | None = None,
    recorder: Recorder | None = None,
) -> Tensor:
    """hidden (B, n, d) through `layers`; mask None is causal over the n tokens themselves.

    deepstack: (T, d) features added at visual_rows (T,) after each of the first layers, B = 1.
    observe(i, hidden) sees every layer's output. recorder sees every layer's attention.
    """
    extra = {} if recorder is None else {"recorder": recorder}
    for i in layers:
        hidden = lm.layers[i](
            hidden,
            position_embeddings=cos_sin,
            attention_mask=mask,
            past_key_values=kv,
            **extra,
        )
        if i < len(deepstack) and visual_rows is not None:
            hidden = hidden.index_add(
                1, visual_rows, deepstack[i].to(hidden.dtype).expand(hidden.shape[0], -1, -1)
            )
        if observe is not None:
            observe(i, hidden)
    return hidden


def after_attention(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """The rest of one layer: hidden (B, n, d) and attention's output (B, n, heads, D) to hidden."""
    hidden = hidden + layer.self_attn.o_proj(attended.flatten(2))
    out: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return out


def causal_mask(n: int, like: Tensor) -> Tensor:
    """(1, 1, n, n) additive."""
    return torch.full((n, n), MASKED, dtype=like.dtype, device=like.device).triu(1)[None, None]


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    recorder: Recorder | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa, shown to a recorder where there is one."""
    if recorder is not None:
        scale = scaling or module.scaling
        recorder.record(module.layer_idx, query, key, attention_mask, scale)
    is_short = query.is_cuda and key.shape[2] <= _SHORT
    with _not_cudnn() if is_short else nullcontext():
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )


@contextmanager
def _not_cudnn() -> Iterator[None]:
    # torch keeps the choice for the whole process: of two engines, each would put back the other's.
    with _choosing, sdpa_kernel(_NOT_CUDNN):
        yield


def folded_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """A short query (B, heads, n, D) over long K/V (B, H, S, D), grouped heads: (B, n, heads, D).

    torch would copy K/V once for each query head of a group. Folding the group into the query
    axis is exact and reads K/V once: (B, H*g, n, D) becomes (B, H, g*n, D). mask: (B, 1, g*n, S),
    the same for each query head of a group.
    """
    b, heads, n, d = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(b, heads // groups, groups * n, d)
    with _not_cudnn() if query.is_cuda else nullcontext():
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.unflatten(2, (groups, n)).permute(0, 3, 1, 2, 4).reshape(b, n, heads, d)


# Both registries, or transformers builds no padding mask at all for the stock forward pass.
AttentionInterface.register(ATTENTION, attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
