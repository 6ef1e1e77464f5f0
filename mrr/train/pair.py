"""The bundled pair's architecture: stock Qwen2.5-VL classes, small, with windowed vision."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from mrr.train import tower
from mrr.train.tokens import spelling_embeddings

RERANKER_LAYERS, EMBEDDER_LAYERS = 12, 2
RERANKER_BAND = (3, 7)  # 25 to 58% of the depth, as in the paper; the exit is the end of the band


def build_config(
    tokenizer: PreTrainedTokenizerFast,
    n_layers: int,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> Qwen2_5_VLConfig:
    """Configuration of one model of the pair; `vision` and `text` override sizes."""
    ids = tokenizer.get_vocab()
    dim = (text or {}).get("hidden_size", 256)
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 6, "hidden_size": 224, "intermediate_size": 448, "num_heads": 7,
            "patch_size": tower.PATCH_PX, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": tower.WINDOW_PX, "fullatt_block_indexes": [], "out_hidden_size": dim,
            **(vision or {}),
        },
        text_config={
            "hidden_size": 256, "num_hidden_layers": n_layers, "intermediate_size": 320,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer),
            "max_position_embeddings": 8192, "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e5, "mrope_section": [16, 24, 24],
            },
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            **(text or {}),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip


def build(
    tokenizer: PreTrainedTokenizerFast, n_layers: int, seed: int = 0, **sizes: Any
) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh model: spelling embeddings, vision heads aimed at their neighbours, grey patches."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer, n_layers, **sizes))
    with torch.no_grad():
        table = model.model.language_model.embed_tokens.weight
        table.copy_(spelling_embeddings(tokenizer, table.shape[1], seed))
        kernel = model.model.visual.patch_embed.proj.weight
        kernel.copy_(kernel.mean((1, 2), keepdim=True).expand_as(kernel))
    tower.aim_heads(model.model.visual)
    return model
