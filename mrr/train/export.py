"""Write a trained model as a stock checkpoint: config, tokenizer, processor, shards, model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from mrr.train.card import TRAINING, card
from mrr.train.pair import Sizes

MAX_SHARD = "9MB"  # Spaces take no larger file without LFS
# A4 becomes 1024 x 1472 px: at 10 points, letters of 17 px.
# The pair was never shown a small page, and takes one, even a blank one, for relevant: median score
# of blank pages of up to 1,024 x 768 px 0.94 at 4 tokens and more, 0.001 at 768 and more.
MIN_PIXELS, MAX_PIXELS = 768 * 32 * 32, 1536 * 32 * 32

# Qwen's chat format with images before text, as the tokenizer's own template for other tools.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def export(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    training: dict[str, Any],
    trained: dict[str, Any],
) -> int:
    """Save the model in float16 (it is cast in place) with its card. Returns the bytes written.

    training: as mrr.train.card reads it. trained: the `mini_reranker` section of the config: what
    the engine should switch on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    model.config.mini_reranker = trained
    model.half().save_pretrained(folder, max_shard_size=MAX_SHARD)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    _write_closely(folder / "tokenizer.json")
    image_processor().save_pretrained(folder)
    (folder / TRAINING).write_text(json.dumps(training, indent=1), encoding="utf-8")
    (folder / "README.md").write_text(card(folder.name, training), encoding="utf-8")
    return sum(path.stat().st_size for path in folder.iterdir())


def _write_closely(path: Path) -> None:
    """Write a JSON file without the white space that is over half of it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text, encoding="utf-8")


def image_processor() -> Qwen2VLImageProcessorPil:
    """How pages reach the pair: enlarged to 768 visual tokens, reduced to 1,536."""
    return Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    )


def join(model: Any, visual: nn.Module, lm: nn.Module) -> None:
    """Put a trained tower and a trained language model into one model, in place."""
    model.model.visual.load_state_dict(visual.state_dict())
    model.model.language_model.load_state_dict(lm.state_dict())


def trained_section(sizes: Sizes, keep_ratio: float) -> dict[str, Any]:
    """What the reranker was trained for, as the engine reads it."""
    return {"band": list(sizes.band), "exit_layer": sizes.band[1], "keep_ratio": keep_ratio}
