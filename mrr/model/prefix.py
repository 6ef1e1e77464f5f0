"""The page pass: instruction + kept visual tokens through the layers up to the band's end.

Only the band layers' K/V is kept, and at the last of them nothing but K and V is computed.
The instruction's K/V is the same for every page, so it is computed and held once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrr.config import RerankConfig
from mrr.errors import NotFinite
from mrr.model.kv import KVPage, quantize_page
from mrr.model.layers import run_layers
from mrr.model.load import LoadedModel
from mrr.model.prompt import Prompt, PromptEncoder
from mrr.model.vision import Pixels, VisualTokens, rope_positions


class _KVRecorder:
    """Stands in for a cache that only takes notes."""

    def __init__(self, layers: range) -> None:
        self._layers = layers
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *args: Any) -> tuple[Tensor, Tensor]:
        if layer_idx in self._layers:
            self.k.append(k[0])
            self.v.append(v[0])
        return k, v


@dataclass(frozen=True, slots=True)
class InstructionKV:
    """K/V of the prompt's shared head in the band layers: `both` as in a KVPage."""

    both: Tensor

    @property
    def k(self) -> Tensor:
        """(L, H, T, D)."""
        return self.both[: len(self.both) // 2]

    @property
    def v(self) -> Tensor:
        """(L, H, T, D)."""
        return self.both[len(self.both) // 2 :]

    @property
    def n_tokens(self) -> int:
        return self.both.shape[2]


@torch.inference_mode()
def encode_page(
    loaded: LoadedModel,
    encoder: PromptEncoder,
    config: RerankConfig,
    prompt: Prompt,
    pixels: Pixels,
    visual: VisualTokens,
    kept: np.ndarray,
) -> KVPage:
    """K/V of one page, for the prompt's first segment, in the band layers of a resolved config.

    kept: ascending indices of the visual tokens to keep; they keep their original positions.
    """
    positions = rope_positions(loaded, prompt.ids, pixels, encoder.image_id)
    rows, visual_rows = kept_rows(prompt.prefix, encoder.image_id, kept)
    hidden = embed_rows(loaded, prompt.ids, rows, visual_rows, visual, kept)
    k, v = _band_kv(loaded, config, hidden, positions[:, :, rows], visual, visual_rows, kept)
    own = slice(prompt.n_instruction, None)
    page = quantize_page(
        k[:, :, own],
        v[:, :, own],
        config.kv_dtype,
        next_position=int(positions[:, 0, : prompt.cut].max()) + 1,
        grid=pixels.grid,
        kept=kept,
    )
    # What is stored too: a finite value of over 65,504 is an infinity in fp16.
    finite = page.k.is_finite and page.v.is_finite
    if not (finite and torch.isfinite(k).all() and torch.isfinite(v).all()):
        raise NotFinite(
            "The model's keys and values of this page are not finite; it was not cached. Try "
            "another precision or kv_dtype (bf16 instead of fp16), or check the weights."
        )
    return page


@torch.inference_mode()
def encode_instruction(loaded: LoadedModel, config: RerankConfig, prompt: Prompt) -> InstructionKV:
    """K/V of the ids before the first image token; being text, they sit at positions 0, 1, ..."""
    ids = torch.tensor([prompt.ids[: prompt.n_instruction]], device=loaded.device)
    positions = torch.arange(ids.shape[1], device=loaded.device).expand(3, 1, -1)
    k, v = _band_kv(loaded, config, loaded.lm.embed_tokens(ids), positions)
    return InstructionKV(torch.cat([k, v]))


def kept_rows(ids: list[int], image_id: int, kept: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows of `ids` that survive pruning, and where among them the visual ones lie."""
    is_image = np.asarray(ids) == image_id
    keep = ~is_image
    keep[np.flatnonzero(is_image)[kept]] = True
    rows = np.flatnonzero(keep)
    return torch.from_numpy(rows), torch.from_numpy(np.flatnonzero(is_image[rows]))


def embed_rows(
    loaded: LoadedModel,
    ids: list[int],
    rows: Tensor,
    visual_rows: Tensor,
    visual: VisualTokens,
    kept: np.ndarray,
) -> Tensor:
    """(1, n, d) input of the first layer: token embeddings, with the kept visual ones in place."""
    tokens = torch.tensor(ids)[rows].to(loaded.device)
    hidden = loaded.lm.embed_tokens(tokens).clone()
    hidden[visual_rows.to(loaded.device)] = visual.embeds[kept].to(hidden.dtype)
    return hidden[None]


def _band_kv(
    loaded: LoadedModel,
    config: RerankConfig,
    hidden: Tensor,
    positions: Tensor,
    visual: VisualTokens | None = None,
    visual_rows: Tensor | None = None,
    kept: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """K and V (L, H, n, D) of hidden (1, n, d) in the band layers."""
    assert config.band is not None
    start, end = config.band
    cos_sin = loaded.lm.rotary_emb(hidden, positions)
    notes = _KVRecorder(range(start, end))
    hidden = run_layers(
        loaded.lm,
        hidden,
        cos_sin,
        range(end - 1),
        kv=notes,
        deepstack=() if visual is None else tuple(f[kept] for f in visual.deepstack),
        visual_rows=None if visual_rows is None else visual_rows.to(loaded.device),
    )
    last = loaded.lm.layers[end - 1]
    k, v = last.self_attn.project_kv(last.input_layernorm(hidden), cos_sin)
    return torch.stack([*notes.k, k[0]]), torch.stack([*notes.v, v[0]])
