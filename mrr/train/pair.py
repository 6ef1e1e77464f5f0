"""The bundled pair's architecture: stock Qwen2.5-VL classes, small, with windowed vision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from mrr.config import paper_band
from mrr.train import tower
from mrr.train.tokens import spelling_embeddings


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths and depths of the pair. The tower is the same in both models.

    Heads of 128: most of their rotary pairs turn slowly enough for a word to be found anywhere on
    a page. Each has keys and values of its own, for one searches words and one their neighbours.
    """

    vision_layers: int = 6
    vision_dim: int = 224
    vision_heads: int = 7
    vision_mlp: int = 448
    dim: int = 256
    heads: int = 2
    mlp: int = 320
    reranker_layers: int = 12
    embedder_layers: int = 2
    embedder_mlp: int = 256

    @property
    def band(self) -> tuple[int, int]:
        """The paper's share of the depth; the exit is the end of the band."""
        return paper_band(self.reranker_layers)


def build_config(
    tokenizer: PreTrainedTokenizerFast, sizes: Sizes, embedder: bool = False
) -> Qwen2_5_VLConfig:
    """Configuration of one model of the pair."""
    ids = tokenizer.get_vocab()
    text: dict[str, Any] = {
        "hidden_size": sizes.dim,
        "num_hidden_layers": sizes.embedder_layers if embedder else sizes.reranker_layers,
        "intermediate_size": sizes.embedder_mlp if embedder else sizes.mlp,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e5,
            "mrope_section": rotary_sections(sizes.dim // sizes.heads // 2),
        },
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision: dict[str, Any] = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_dim,
        "intermediate_size": sizes.vision_mlp,
        "num_heads": sizes.vision_heads,
        "patch_size": tower.PATCH_PX,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,  # two equal frames, as a still picture has, would say nothing
        "window_size": tower.WINDOW_PX,
        "fullatt_block_indexes": [],
        "out_hidden_size": sizes.dim,
    }
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def rotary_sections(pairs: int) -> list[int]:
    """How many rotary pairs turn with time, rows, columns, and again; the fastest come first.

    Fast pairs for rows and columns tell what stands beside what, slow ones let a word be found
    anywhere. With three sections (one each) columns would turn by half a degree over a page.
    """
    fast, time = [pairs // 32, pairs // 32, 3 * pairs // 32], 6 * pairs // 32
    rows = (pairs - sum(fast) - time) // 2
    return [*fast, time, rows, pairs - sum(fast) - time - rows]


def build(
    tokenizer: PreTrainedTokenizerFast, sizes: Sizes, embedder: bool = False, seed: int = 0
) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh model: spelling embeddings, vision heads aimed at their neighbours, grey patches."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer, sizes, embedder))
    with torch.no_grad():
        table = model.model.language_model.embed_tokens.weight
        table.copy_(spelling_embeddings(tokenizer, sizes.dim, seed))
        kernel = model.model.visual.patch_embed.proj.weight
        kernel.copy_(kernel.mean((1, 2), keepdim=True).expand_as(kernel))
    tower.aim_heads(model.model.visual)
    return model


def count_parameters(model: nn.Module) -> int:
    """Numbers in the model, those that are tied counted once."""
    return sum(p.numel() for p in model.parameters())
