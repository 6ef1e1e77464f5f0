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

    def dense_reuse(self, w: Workload, n_pages: int) -> float:
        """One of n_pages cached pages for a query: every layer, every token, the same engine."""
        n_prefix = w.n_visual + w.n_text
        return self._against_page(w, n_prefix, (0, self._n_layers), self._n_layers, n_pages)

    def mini(self, w: Workload, n_pages: int) -> float:
        """One of n_pages cached pages for a query, with its share of the layers before the band."""
        n_prefix = w.n_kept + w.n_text
        alone = self.layers(w.n_suffix, 0, self._band[0]) / n_pages
        return alone + self._against_page(w, n_prefix, self._band, self._exit, n_pages)

    def _against_page(
        self, w: Workload, n_prefix: int, band: tuple[int, int], exit_layer: int, n_pages: int
    ) -> float:
        """From the band to the exit. The first layer projects the query once for all pages; the
        last one, where it is the exit's, runs for one token, and the others give it K and V."""
        n, n_layers = w.n_suffix, band[1] - band[0]
        if band[1] < exit_layer:
            flops = self.layers(n, n_prefix, n_layers) + self.layers(n, 0, exit_layer - band[1])
            shared = self._q + 2 * self._kv
        else:
            last = self.layers(1, n_prefix + n - 1, 1) + 2 * (n - 1) * 2 * self._d * self._kv
            flops = self.layers(n, n_prefix, n_layers - 1) + last
            shared = 2 * self._kv + (self._q if n_layers > 1 else 0)
        return flops - 2 * n * self._d * shared * (1 - 1 / n_pages)

    def caching(self, w: Workload) -> float:
        """Adding one page: vision and the prefix up to K and V of the band's last layer."""
        n = w.n_kept + w.n_text
        return self.vision(w.n_patches) + self.layers(n, 0, self._band[1] - 1)


def _mlp_width(text: Any) -> int:
    """Width of the MLP that one token really goes through."""
    if getattr(text, "num_experts", 0):
        return int(text.num_experts_per_tok * text.moe_intermediate_size)
    return int(text.intermediate_size)
