"""Tiny random checkpoints of every supported family, saved as ordinary transformers folders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mrr.measure.random_model import CONTROL, random_tokenizer

# Where the engine under test runs: MRR_TEST_DEVICE=cuda repeats every proof on a GPU.
DEVICE = os.environ.get("MRR_TEST_DEVICE", "cpu")
FAMILIES = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl")
N_LAYERS = 6

# Qwen's added tokens that are not marked special: the ones that encode_special_tokens misses.
PLAIN_ADDED = ("<think>", "</think>", "<tool_call>")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = random_tokenizer()
    added = [AddedToken(t, normalized=False, special=False) for t in PLAIN_ADDED]
    tokenizer.backend_tokenizer.add_tokens(added)
    return tokenizer


def tiny_config(family: str, tokenizer: PreTrainedTokenizerFast) -> transformers.PretrainedConfig:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
    }
    mrope = [4, 2, 2]
    if family.startswith("qwen3"):
        text["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": mrope,
            "mrope_interleaved": True,
        }
    else:
        text["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": mrope,
        }
        text["use_sliding_window"] = False
    if family == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    if family.startswith("qwen3"):
        vision = {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
            "initializer_range": 0.15,
        }
    elif family == "qwen2_5_vl":
        vision = {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1, 3],
            "initializer_range": 0.15,
        }
    else:
        vision = {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.15,
        }
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in CONTROL}
    classes = {
        "qwen3_vl": transformers.Qwen3VLConfig,
        "qwen3_vl_moe": transformers.Qwen3VLMoeConfig,
        "qwen2_5_vl": transformers.Qwen2_5_VLConfig,
        "qwen2_vl": transformers.Qwen2VLConfig,
    }
    return classes[family](
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def save_checkpoint(
    folder: Path, family: str = "qwen3_vl", seed: int = 0, **trained: object
) -> Path:
    """A random checkpoint with logits of a scale of about 5; `trained` goes into config.json."""
    from mrr.model.checkpoint import CLASSES

    tokenizer = tiny_tokenizer()
    config = tiny_config(family, tokenizer)
    if trained:
        config.mini_reranker = trained
    torch.manual_seed(seed)
    model = getattr(transformers, CLASSES[family])(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    old = not family.startswith("qwen3")
    Qwen2VLImageProcessorPil(
        patch_size=14 if old else 16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 32 * 32},
    ).save_pretrained(folder)
    return folder


def picture(seed: int, size: tuple[int, int] = (192, 128)) -> Image.Image:
    """A page-like picture that differs everywhere from those of other seeds."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)
    ImageDraw.Draw(image).text((8, 8), f"page {seed}", fill=(0, 0, 0))
    return image
