"""Load a Qwen-VL checkpoint, refuse what the layer loop cannot run, and describe its weights."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mrr.errors import InputRejected, UnsupportedModel
from mrr.model.layers import ATTENTION

logger = logging.getLogger(__name__)

_CLASSES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}
# What a checkpoint needs; never pickles, never code.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
_MAX_VISUAL_TOKENS = 1800


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint ready to run layer by layer.

    digest: hex XXH3-128 over the weight files, adapter included: the model's identity.
    cell: pixels along one side of a visual token (patch size x merge size).
    min_pixels, max_pixels: what the image processor resizes into, the checkpoint's own bounds.
    trained: the `mini_reranker` section of config.json, where the checkpoint carries one.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerFast
    image_processor: Qwen2VLImageProcessorPil
    digest: str
    trained: dict[str, Any]

    @property
    def lm(self) -> Any:
        """The language model: embed_tokens, layers, norm, rotary_emb."""
        return self.model.model.language_model

    @property
    def n_layers(self) -> int:
        return len(self.lm.layers)

    @property
    def device(self) -> torch.device:
        return self.lm.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm.embed_tokens.weight.dtype

    @property
    def cell(self) -> int:
        return self.image_processor.patch_size * self.image_processor.merge_size

    @property
    def min_pixels(self) -> int:
        return int(self.image_processor.size["shortest_edge"])

    @property
    def max_pixels(self) -> int:
        own = int(self.image_processor.size["longest_edge"])
        return min(own, _MAX_VISUAL_TOKENS * self.cell**2)


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LoadedModel:
    """Load a local folder or a hub id, with its LoRA adapter merged where it has one.

    device None is CUDA where there is one; dtype None is bf16 on CUDA and fp32 elsewhere.
    Raises UnsupportedModel for an architecture that the layer loop cannot run, InputRejected for
    a folder that holds no checkpoint.
    """
    folder = _local_folder(name, revision)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    adapter = folder / "adapter_config.json"
    base = folder
    if adapter.exists():
        described = json.loads(adapter.read_text())
        base = _local_folder(described["base_model_name_or_path"], described.get("revision"))
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    check_supported(config)
    # dtype at load, never model.to(dtype): that would also round the rotary frequencies.
    model = getattr(transformers, _CLASSES[config.model_type]).from_pretrained(
        base, dtype=dtype, use_safetensors=True, attn_implementation="sdpa"
    )
    if adapter.exists():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    model = model.to(device).eval().requires_grad_(False)
    model.set_attn_implementation({"text_config": ATTENTION, "vision_config": "sdpa"})
    check_rotary(model)
    tokens = folder if (folder / "tokenizer.json").exists() else base
    pixels = folder if (folder / "preprocessor_config.json").exists() else base
    return LoadedModel(
        name=str(name),
        model=model,
        tokenizer=PreTrainedTokenizerFast.from_pretrained(tokens),
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(pixels),
        digest=_digest(sorted({*base.glob("*.safetensors"), *folder.glob("*.safetensors")})),
        trained=dict(getattr(config, "mini_reranker", None) or {}),
    )


def check_supported(config: Any) -> None:
    """Raise UnsupportedModel, naming why, unless the layer loop can run this architecture."""
    architecture = (getattr(config, "architectures", None) or ["(unnamed)"])[0]
    if config.model_type not in _CLASSES:
        raise UnsupportedModel(
            f"{architecture} ({config.model_type}) is not supported; "
            f"use one of {', '.join(sorted(_CLASSES))}."
        )
    if not architecture.startswith("Qwen") or "Classification" in architecture:
        raise UnsupportedModel(
            f"{architecture} scores with a head of its own instead of the yes/no rows of the "
            "language model head; layers cannot be read through it."
        )
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if getattr(text, "use_sliding_window", False) or kinds:
        raise UnsupportedModel(
            f"{architecture} uses {', '.join(sorted(kinds)) or 'sliding_attention'} layers; "
            "only full attention keeps K/V that can be cached per page."
        )


def check_rotary(model: nn.Module) -> None:
    """Refuse rotary frequencies that a cast has rounded: positions would drift silently."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and buffer.dtype != torch.float32:
            raise UnsupportedModel(f"{name} is {buffer.dtype}; load with dtype=, not .to(dtype).")


def _local_folder(name: str | Path, revision: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / f).exists() for f in ("config.json", "adapter_config.json")):
            raise InputRejected(f"The folder {path.name} holds no config.json: not a checkpoint.")
        return path
    if path.is_absolute() or str(name).startswith("."):
        raise InputRejected(f"There is no checkpoint folder {path.name}; check the path.")
    if revision is None:
        logger.warning("%s is loaded without a pinned revision; pass revision=<commit>.", name)
    return Path(snapshot_download(str(name), revision=revision, allow_patterns=_FILES))


def _digest(files: list[Path]) -> str:
    if not files:
        raise InputRejected("The checkpoint has no .safetensors file; pickled weights are refused.")
    state = xxhash.xxh3_128()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                state.update(block)
    return state.hexdigest()
