"""Floating-point operations by arithmetic: the floor that measured times are held against.

Two operations per multiply-add; causal attention counts its half. Element-wise work is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mrr.config import RerankConfig
from mrr.model.embedder import DEFAULT_INSTRUCTION, Embedder
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
        self._tower = loaded.tower
        self._d = text.hidden_size
        self._q = text.num_attention_heads * loaded.lm.layers[0].self_attn.head_dim
        self._kv = text.num_key_value_heads * loaded.lm.layers[0].self_attn.head_dim
        self._mlp = _mlp_weights(text)

    def vision(self, n_patches: int) -> float:
        """The tower and its mergers. Windows of Qwen2.5-VL that edges cut are counted as whole."""
        tower, blocks, config = self._tower, self._tower.blocks, self._tower.config
        merged = sum(_n_weights(part) for name, part in tower.named_children() if "merger" in name)
        per_patch = _n_weights(tower.patch_embed) + _n_weights(blocks)
        linear = 2 * n_patches * (per_patch + merged / config.spatial_merge_size**2)
        n_full = len(getattr(config, "fullatt_block_indexes", blocks))
        window = (getattr(config, "window_size", 0) // config.patch_size) ** 2
        seen = n_full * n_patches + (len(blocks) - n_full) * min(window, n_patches)
        return float(linear + 4 * n_patches * seen * blocks[0].attn.dim)

    def layers(self, n: int, n_before: int, n_layers: int) -> float:
        """n tokens through n_layers, each attending to n_before tokens and half of its own."""
        linear = 2 * n * (2 * self._d * (self._q + self._kv) + self._mlp)
        attention = 4 * n * (n_before + n / 2) * self._q
        return n_layers * (linear + attention)

    def original(self, w: Workload) -> float:
        """One pair from scratch."""
        return self.whole(w.n_patches, w.n_visual + w.n_text + w.n_suffix)

    def whole(self, n_patches: int, n: int) -> float:
        """n_patches through the tower and n tokens, page and text, through every layer."""
        return self.vision(n_patches) + self.layers(n, 0, self._n_layers)

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
        last = 2 * n * 2 * self._d * self._kv
        return self.vision(w.n_patches) + self.layers(n, 0, self._band[1] - 1) + last


def embedding(embedder: Embedder | None, loaded: LoadedModel, w: Workload) -> float:
    """What an embedder adds to caching a page: the whole of it, less a tower shared with loaded."""
    if embedder is None:
        return 0.0
    n_patches = 0 if embedder.loaded.tower is loaded.tower else w.n_patches
    n = len(embedder.encoder.embed(DEFAULT_INSTRUCTION, None, w.n_visual))
    return Costs(embedder.loaded, RerankConfig()).whole(n_patches, n)


def _n_weights(module: nn.Module) -> int:
    """Weights of the matrices of a module: each is multiplied once for every row of its input."""
    return sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)


def _mlp_weights(text: Any) -> int:
    """Weights of the MLP that one token really goes through; of experts, their router's too."""
    if n_experts := getattr(text, "num_experts", 0):
        width = text.num_experts_per_tok * text.moe_intermediate_size
        return int(text.hidden_size * (3 * width + n_experts))
    return int(3 * text.hidden_size * text.intermediate_size)
