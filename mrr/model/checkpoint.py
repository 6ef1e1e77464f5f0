"""A checkpoint's folder: where it is, what it says of itself, and its identity.

What the layer loop cannot run is refused here, by name, before any weight is read.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import xxhash
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig

from mrr.config import RerankConfig
from mrr.errors import InputRejected, InvalidConfig, UnsupportedModel
from mrr.model.prompt import TEMPLATES

logger = logging.getLogger(__name__)

CLASSES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
# What a checkpoint needs; never pickles, never code.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
# Beside an adapter: the band, exit, prompt template and these, as it was trained with, as JSON.
TRAINED = "mini_reranker.json"
TRAINED_IN = ("keep_ratio", "pruner", "instruction", "min_pixels", "max_pixels")
# All that decides what a checkpoint computes: its weights, and how text and pixels reach them.
_IDENTITY = ("*.safetensors", "config.json", "preprocessor_config.json", "processor_config.json",
             "tokenizer.json", "adapter_config.json", TRAINED)  # fmt: skip


def local_folder(name: str | Path, revision: str | None) -> Path:
    """The folder of a name: itself, or what the hub has under it, fetched where it is not yet."""
    if name == "":  # as of an unset variable; as a path it would be the current folder
        raise InputRejected("The name of the checkpoint is empty. Give a folder or a hub id.")
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(path, f"The folder {path.name}")
    if path.is_absolute() or str(name).startswith("."):
        raise InputRejected(f"There is no checkpoint folder {path.name}; check the path.")
    hub_id, _, commit = str(name).partition("@")
    revision = revision or commit or None
    try:
        fetched = Path(snapshot_download(hub_id, revision=revision, allow_patterns=_FILES))
    except (HFValidationError, OSError):  # the hub's other errors are OSErrors
        raise InputRejected(
            f"{name} is neither a folder here nor a checkpoint that could be fetched from the "
            "hub. Check the name, the revision and the network."
        ) from None
    if not _COMMIT.fullmatch(revision or ""):  # a branch or tag moves
        logger.warning("%s is not pinned to a commit; name it %s@<commit>.", name, hub_id)
    return _checked(fetched, f"{name} on the hub")


def _checked(path: Path, said: str) -> Path:
    if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
        raise InputRejected(
            f"{said} holds no config.json: not a checkpoint in transformers' format."
        )
    return path


def check_files(base: Path, tokens: Path, pixels: Path) -> None:
    """Refuse a checkpoint that lacks a file, before transformers does in words of its own."""
    if not any(base.glob("*.safetensors")):
        raise InputRejected(
            f"The folder {base.name} has no .safetensors file; pickled weights are refused."
        )
    for folder, file in ((tokens, "tokenizer.json"), (pixels, "preprocessor_config.json")):
        if not (folder / file).exists():
            raise InputRejected(f"The folder {folder.name} has no {file}: not a whole checkpoint.")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; InputRejected for anything else."""
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        raise InputRejected(
            f"{file.name} in the folder {file.parent.name} is not JSON as a checkpoint has it; "
            "fetch the checkpoint again."
        )
    return described


def read_config(folder: Path) -> Any:
    """transformers' config of a folder; UnsupportedModel where it knows no such architecture."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError):
        kind = read_json(folder / "config.json").get("model_type", "(unnamed)")
        raise UnsupportedModel(
            f"The architecture {kind} is not one that this transformers release knows; use one of "
            f"{', '.join(sorted(CLASSES))}."
        ) from None


def check_supported(config: Any) -> None:
    """Raise UnsupportedModel, naming why, unless the layer loop can run this architecture."""
    architecture = (getattr(config, "architectures", None) or ["(unnamed)"])[0]
    if config.model_type not in CLASSES:
        raise UnsupportedModel(
            f"{architecture} ({config.model_type}) is not supported; "
            f"use one of {', '.join(sorted(CLASSES))}."
        )
    if not architecture.startswith("Qwen") or "Classification" in architecture:
        raise UnsupportedModel(
            f"{architecture} scores with a head of its own instead of the yes/no rows of the "
            "language model head; layers cannot be read through it."
        )
    text = config.get_text_config()
    quantised = getattr(config, "quantization_config", None) or getattr(
        text, "quantization_config", None
    )
    if quantised:
        method = dict(quantised).get("quant_method", "a method without a name")
        raise UnsupportedModel(
            f"{architecture} has weights quantised by {method}, which the layer loop cannot run; "
            "use the checkpoint that it was made from."
        )
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if getattr(text, "use_sliding_window", False) or kinds:
        raise UnsupportedModel(
            f"{architecture} uses {', '.join(sorted(kinds)) or 'sliding_attention'} layers; "
            "only full attention keeps K/V that can be cached per page."
        )


def check_patches(config: Any, processor: Any, folder: Path) -> None:
    """Refuse an image processor that cuts pages into other patches than the tower reads."""
    vision = config.vision_config
    wanted = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    cut = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    if cut != wanted:
        raise InputRejected(
            f"preprocessor_config.json in the folder {folder.name} has patch, merge and temporal "
            f"patch sizes {cut}, but its model reads {wanted}; fetch the checkpoint again."
        )


def read_trained(folder: Path, config: Any) -> dict[str, Any]:
    """What the checkpoint was trained for; an adapter says it in a file of its own."""
    if (folder / TRAINED).exists():
        section, file = read_json(folder / TRAINED), TRAINED
    else:
        section, file = getattr(config, "mini_reranker", None) or {}, "config.json"
    wrong = _wrong_in(section, config.get_text_config().num_hidden_layers)
    if wrong:
        raise InputRejected(
            f"What {file} in the folder {folder.name} says of the training of mini_reranker "
            f"cannot be used: {wrong}. Correct it or take it out."
        )
    return dict(section)


def _wrong_in(section: Any, n_layers: int) -> str | None:
    """What makes a `mini_reranker` section unusable for a model of n_layers, in words, or None."""
    if not isinstance(section, dict):
        return "it is no JSON object"
    if ("band" in section) != ("exit_layer" in section):
        given, missing = ("band", "exit_layer") if "band" in section else ("exit_layer", "band")
        return f"it has {given} but no {missing}"
    if "band" in section:
        band, end = section["band"], section["exit_layer"]
        if not isinstance(band, list) or len(band) != 2 or not all(map(_whole, (*band, end))):
            return f"band {band!r} and exit_layer {end!r} are not [start, end] and a whole number"
        if not 0 <= band[0] < band[1] <= end:
            return f"band {band} does not lie within the {end} layers that run"
        if end > n_layers:
            return f"exit_layer is {end}, but the model has {n_layers} layers"
    if "template" in section and section["template"] not in tuple(TEMPLATES):
        return f"template {section['template']!r} is none of {', '.join(TEMPLATES)}"
    try:
        RerankConfig(**{name: section[name] for name in TRAINED_IN if name in section})
    except InvalidConfig as error:
        return str(error).rstrip(".")
    return None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def identity(folders: list[Path]) -> str:
    """XXH3-128 over the identity files of each folder, each framed by its name and length."""
    state = xxhash.xxh3_128()
    for role, folder in enumerate(folders):
        files = sorted({f for pattern in _IDENTITY for f in folder.glob(pattern)})
        for file in files:
            state.update(f"{role}/{file.name}/{file.stat().st_size}\n".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 24):
                    state.update(block)
    return state.hexdigest()
