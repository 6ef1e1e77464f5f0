"""A decoder layer in fewer operations than transformers writes it, with the same weights.

A GPU takes longer to start a small operation than to do it, and a query is little else. So Q and K
are one product, normed and turned together, as are gate and values; RMSNorm, which is eight
operations and four times in a layer, is torch's. A layer is 17 operations instead of 54.

In float32 on a CPU torch's RMSNorm gives the same bits. In bfloat16 and float16 it rounds once,
after the weight, where transformers' rounds before it as well, so it is the closer one. Q and K
round twice still: they share a norm but not its weight.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrr.errors import ParityError
from mrr.model.layers import KVSource, Recorder, attention_forward
from mrr.model.rotary import CosSin, rotate

logger = logging.getLogger(__name__)

# How far what a layer adds may be from what transformers' adds, relative to its own size.
_TOLERANCE = 1e-3
_PROBE_TOKENS, _PROBE_SIZE = 4, 0.01  # so small that the epsilon of a norm is seen


def fuse_checked(model: Any, name: str) -> None:
    """`fuse` a checkpoint, whose first layer and last norm are asked before and after.

    Where the engine is compared with the stock forward pass both have these layers. Raises
    ParityError if they compute something else than transformers' do.
    """
    lm = model.model.language_model
    expected = _probe(lm)
    fuse(model)
    found = _probe(lm)
    for part, stock in expected.items():
        if not stock.isfinite().all():
            logger.warning("%s: %s gives no finite numbers and was not compared.", name, part)
            continue
        size, error = float(stock.norm()), float((found[part] - stock).norm())
        if not error <= _TOLERANCE * size:  # NaN is no agreement
            raise ParityError(
                f"{name}: a fused layer differs from transformers' in {part} by {error:.2g} of "
                f"{size:.2g} (allowed {_TOLERANCE:.0e} of it). Its scores could not be trusted; "
                "check the transformers version against requirements.txt."
            )


@torch.inference_mode()
def _probe(lm: Any) -> dict[str, Tensor]:
    """What the first layer makes of noise, part by part, and the last norm: (1, n, d) each.

    In float32 whatever the model's type: large K turn rounding into other attention, and the
    self-check runs in the model's own. And not as a sum with the noise, beside which a trained
    layer may be as small as rounding. Experts are left as they are.
    """
    layer, like = lm.layers[0], lm.embed_tokens.weight
    noise = torch.randn(1, _PROBE_TOKENS, like.shape[1], generator=torch.Generator().manual_seed(0))
    hidden = (_PROBE_SIZE * noise).to(like.device)
    positions = torch.arange(_PROBE_TOKENS, device=like.device).expand(3, 1, -1)
    attended, _ = _in_float32(layer.self_attn)(
        _in_float32(layer.input_layernorm)(hidden),
        position_embeddings=lm.rotary_emb(hidden, positions),
        attention_mask=None,
        past_key_values=None,
    )
    normed = _in_float32(layer.post_attention_layernorm)(hidden)
    parts = {
        "its attention": attended,
        "the norm before its MLP": normed,
        "the last norm": _in_float32(lm.norm)(hidden),
    }
    if hasattr(layer.mlp, "down_proj"):
        parts["its MLP"] = _in_float32(layer.mlp)(normed)
    return parts


def _in_float32(module: nn.Module) -> nn.Module:
    is_float32 = all(p.dtype == torch.float32 for p in module.parameters())
    return module if is_float32 else copy.deepcopy(module).float()


def fuse(model: nn.Module) -> None:
    """Replace what a model's decoder layers and norms consist of; each weight is held once."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):
                setattr(parent, name, _norm(child).train(child.training))
    for layer in list(model.modules()):
        if hasattr(layer, "self_attn"):
            layer.self_attn = FusedAttention(layer.self_attn)
            if hasattr(layer.mlp, "gate_proj"):  # experts are left as they are
                layer.mlp = FusedMLP(layer.mlp)


class FusedAttention(nn.Module):
    """A layer's attention: takes its place in transformers' layer, or goes step by step.

    One row of input under N rows of rotary tables gives N.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.layer_idx, self.head_dim = stock.layer_idx, stock.head_dim
        self.scaling = stock.scaling
        self.num_key_value_groups = stock.num_key_value_groups  # transformers' sdpa asks for it
        self.n_kv_heads = stock.k_proj.out_features // self.head_dim
        self.n_heads = self.n_kv_heads * self.num_key_value_groups
        self.qk_proj = _joined([stock.q_proj, stock.k_proj])
        self.v_proj, self.o_proj = stock.v_proj, stock.o_proj
        self.qk_norm: nn.Parameter | None = None
        if hasattr(stock, "q_norm"):  # Qwen3 only
            self.epsilon = stock.q_norm.eps
            each = [
                stock.q_norm.weight.expand(self.n_heads, -1),
                stock.k_norm.weight.expand(self.n_kv_heads, -1),
            ]
            self.qk_norm = nn.Parameter(torch.cat(each), requires_grad=False)

    def project(
        self, normed: Tensor, cos_sin: CosSin, *, by_head: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K (rotary applied) and V of normed input (B, n, d): (B, heads or H, n, D).

        by_head: Q lies head by head, so that those which share a head of K can be taken for one.
        """
        qk = self._turned(normed, cos_sin, 0, self.n_heads + self.n_kv_heads, by_head=by_head)
        q, k = qk.split([self.n_heads, self.n_kv_heads], dim=1)
        return q, k, self._values(normed, k.shape[0])

    def project_q(self, normed: Tensor, cos_sin: CosSin) -> Tensor:
        """Q alone."""
        return self._turned(normed, cos_sin, 0, self.n_heads)

    def project_kv(self, normed: Tensor, cos_sin: CosSin) -> tuple[Tensor, Tensor]:
        """K and V alone."""
        k = self._turned(normed, cos_sin, self.n_heads, self.n_heads + self.n_kv_heads)
        return k, self._values(normed, k.shape[0])

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: CosSin,
        attention_mask: Tensor | None = None,
        past_key_values: KVSource | None = None,
        recorder: Recorder | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """As transformers' layer calls it: (B, n, d) to (B, n, d)."""
        q, k, v = self.project(hidden_states, position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        seen, _ = attention_forward(
            self, q, k, v, attention_mask, scaling=self.scaling, recorder=recorder
        )
        return self.o_proj(seen.flatten(2)), None

    def _turned(
        self, normed: Tensor, cos_sin: CosSin, first: int, end: int, *, by_head: bool = False
    ) -> Tensor:
        """Some of the heads of Q and K, normed where the model does so, rotary applied."""
        rows, bias = slice(first * self.head_dim, end * self.head_dim), self.qk_proj.bias
        x = F.linear(normed, self.qk_proj.weight[rows], None if bias is None else bias[rows])
        x = x.view(*normed.shape[:-1], -1, self.head_dim)
        if self.qk_norm is not None:
            x = F.rms_norm(x, (self.head_dim,), eps=self.epsilon) * self.qk_norm[first:end]
        return rotate(x.transpose(1, 2), cos_sin, by_head=by_head)

    def _values(self, normed: Tensor, n_rows: int) -> Tensor:
        v = self.v_proj(normed).view(*normed.shape[:-1], -1, self.head_dim)
        return v.transpose(1, 2).expand(n_rows, -1, -1, -1)


class FusedMLP(nn.Module):
    """The gated MLP with one product for gate and values."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.gate_up_proj = _joined([stock.gate_proj, stock.up_proj])
        self.down_proj, self.act_fn = stock.down_proj, stock.act_fn

    def forward(self, x: Tensor) -> Tensor:
        gate, values = self.gate_up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(self.act_fn(gate) * values)
        return out


def _norm(stock: Any) -> nn.RMSNorm:
    norm = nn.RMSNorm(stock.weight.shape, stock.variance_epsilon, device="meta")
    norm.weight = stock.weight
    return norm


def _joined(parts: Sequence[nn.Linear]) -> nn.Linear:
    """Linear maps of the same input as one, whose output is theirs side by side."""
    n_out = sum(part.out_features for part in parts)
    with_bias = parts[0].bias is not None
    joined = nn.Linear(parts[0].in_features, n_out, bias=with_bias, device="meta")
    joined.weight = nn.Parameter(torch.cat([p.weight.data for p in parts]), requires_grad=False)
    if with_bias:
        joined.bias = nn.Parameter(torch.cat([p.bias.data for p in parts]), requires_grad=False)
    return joined
