"""Random weights at real dimensions: all that speed depends on, nothing that quality does."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mrr.model.fused import fuse
from mrr.model.load import LoadedModel, ready
from mrr.model.prompt import EMBEDDER_PROMPT, MONOQWEN, QWEN_RERANKER

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen3-VL as published: text, then vision.
DIMENSIONS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "2b": (
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
         "deepstack_visual_indexes": [5, 11, 17]},
    ),
    "4b": (
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
         "deepstack_visual_indexes": [5, 11, 17]},
    ),
    "8b": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
         "deepstack_visual_indexes": [8, 16, 24]},
    ),
}  # fmt: skip


def random_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows the templates' words and Qwen's control tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    words = [QWEN_RERANKER.query_first, MONOQWEN.query_first, EMBEDDER_PROMPT] * 4
    answers = [w for t in (QWEN_RERANKER, MONOQWEN) for w in (t.positive, t.negative)]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    backend.train_from_iterator([*words, *answers * 99], trainer)
    backend.add_tokens([AddedToken(t, normalized=False, special=True) for t in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def random_model(dims: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> LoadedModel:
    """Qwen3-VL at the dimensions of `dims` with normal weights of standard deviation 0.02."""
    text, vision = DIMENSIONS[dims]
    tokenizer = random_tokenizer()
    vocabulary = tokenizer.get_vocab()
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            **text,
        },
        vision_config={"out_hidden_size": text["hidden_size"], "patch_size": 16, **vision},
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=True,
        dtype=dtype,
    )
    with no_init_weights():
        model = Qwen3VLForConditionalGeneration._from_config(config, dtype=dtype)
    model = ready(model.to(device))
    fuse(model)
    generator = torch.Generator(device).manual_seed(seed)
    for name, weight in model.named_parameters():
        if "norm" in name and not name.endswith("bias"):
            weight.fill_(1.0)
        else:
            weight.normal_(0.0, 0.02, generator=generator)
    return LoadedModel(
        name=f"random Qwen3-VL {dims}",
        model=model,
        tokenizer=tokenizer,
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=16,
            merge_size=2,
            temporal_patch_size=2,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            size={"shortest_edge": 4 * 32 * 32, "longest_edge": 1800 * 32 * 32},
        ),
        digest=f"random-{dims}-{seed}",
        trained={},
    )
