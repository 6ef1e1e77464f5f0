"""Floating-point operations by arithmetic: the floor that measured times are held against.

Two operations per multiply-add; causal attention counts its half. Element-wise work is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mrr.config import RerankConfig
from mrr.model.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Workload:
    """One page and one query: n_patches before merging, n_visual after, n_text in the prefix
    besides, n_kept visual tokens after pruning, n_suffix query tokens."""

    n_patches: int
    n_visual: int
    n_kept: int
    n_text: int
    n_suffix: int


class Costs:
    """FLOPs of each system for one checkpoint's dimensions."""

    def __init__(self, loaded: LoadedModel, config: RerankConfig) -> None:
        config = config.resolve(loaded.n_layers)
        assert config.band is not None and config.exit_layer is not None
        self._band, self._exit = config.band, config.exit_layer
        self._n_layers = loaded.n_layers
        text = loaded.model.config.get_text_config()
        self._vision = loaded.model.config.vision_config
        self._d = text.hidden_size
        self._q = text.num_attention_heads * loaded.lm.layers[0].self_attn.head_dim
        self._kv = text.num_key_value_heads * loaded.lm.layers[0].self_attn.head_dim
        self._mlp = _mlp_width(text)

    def vision(self, n_patches: int) -> float:
        """The tower with full attention; its merger is left out (under 2%)."""
        d = getattr(self._vision, "embed_dim", None) or self._vision.hidden_size
        wide = getattr(self._vision, "intermediate_size", None) or int(d * self._vision.mlp_ratio)
        linear = 2 * n_patches * (4 * d * d + 2 * d * wide)
        return float(self._vision.depth * (linear + 4 * n_patches * n_patches * d))

    def layers(self, n: int, n_before: int, n_layers: int) -> float:
        """n tokens through n_layers, each attending to n_before tokens and half of its own."""
        linear = 2 * n * (2 * self._d * self._q + 2 * self._d * self._kv + 3 * self._d * self._mlp)
        attention = 4 * n * (n_before + n / 2) * self._q
        return n_layers * (linear + attention)

    def original(self, w: Workload) -> float:
        """One pair from scratch."""
        n = w.n_visual + w.n_text + w.n_suffix
        return self.vision(w.n_patches) + self.layers(n, 0, self._n_layers)

    def dense_reuse(self, w: Workload) -> float:
        """One query against one cached page: every layer, every token, the same engine."""
        return self._against_page(w, w.n_visual + w.n_text, self._n_layers)

    def mini_per_query(self, w: Workload) -> float:
        """Before the band: once per query, whatever the number of pages."""
        return self.layers(w.n_suffix, 0, self._band[0])

    def mini_per_page(self, w: Workload) -> float:
        """The band and what follows; the exit layer runs for the last token only."""
        start, end = self._band
        n_prefix = w.n_kept + w.n_text
        if end < self._exit:
            after = self.layers(w.n_suffix, 0, self._exit - end)
            return self.layers(w.n_suffix, n_prefix, end - start) + after
        return self._against_page(w, n_prefix, end - start)

    def _against_page(self, w: Workload, n_prefix: int, n_layers: int) -> float:
        """Layers over page K/V; the last one runs for one token, the others give it K and V."""
        keys_values = 2 * (w.n_suffix - 1) * 2 * self._d * self._kv
        last = self.layers(1, n_prefix + w.n_suffix - 1, 1) + keys_values
        return self.layers(w.n_suffix, n_prefix, n_layers - 1) + last

    def caching(self, w: Workload) -> float:
        """Adding one page: vision and the prefix up to K and V of the band's last layer."""
        n = w.n_kept + w.n_text
        return self.vision(w.n_patches) + self.layers(n, 0, self._band[1] - 1)


def _mlp_width(text: Any) -> int:
    """Width of the MLP that one token really goes through."""
    if getattr(text, "num_experts", 0):
        return int(text.num_experts_per_tok * text.moe_intermediate_size)
    return int(text.intermediate_size)
