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
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
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
MAX_VISUAL_TOKENS = 1800
# Beside an adapter: the band, exit and keep ratio that it was trained with, as JSON.
TRAINED = "mini_reranker.json"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint ready to run layer by layer.

    digest: hex XXH3-128 over weights, configs and tokenizer, adapter included: its identity.
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
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.model.visual

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
        return min(own, MAX_VISUAL_TOKENS * self.cell**2)


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LoadedModel:
    """Load a local folder or a hub id, with its LoRA adapter merged where it has one.

    device None is CUDA where there is one; dtype None is bf16 on CUDA and fp32 elsewhere.
    Raises UnsupportedModel for an architecture that the layer loop cannot run and for weights
    that do not fill it, InputRejected for a folder that holds no checkpoint, or a damaged one, or
    may not be read, and for a device that is not there.
    """
    try:
        return _load(_local_folder(name, revision), str(name), pick_device(device), dtype)
    except PermissionError as error:
        file = Path(error.filename or name).name
        raise InputRejected(
            f"{file} may not be read; give this user the right to read the checkpoint."
        ) from None


def _load(folder: Path, name: str, device: torch.device, dtype: torch.dtype | None) -> LoadedModel:
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise InputRejected(f"{dtype} is not served; use float32, bfloat16 or float16.")
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    adapter = folder / "adapter_config.json"
    base = folder
    if adapter.exists():
        described = _read_json(adapter)
        base_name = described.get("base_model_name_or_path")
        if not base_name:
            raise InputRejected(
                f"The adapter in {folder.name} does not say which checkpoint it is for; set "
                "base_model_name_or_path in its adapter_config.json."
            )
        base = _local_folder(base_name, described.get("revision"))
    config = _config(base)
    check_supported(config)
    tokens = folder if (folder / "tokenizer.json").exists() else base
    pixels = folder if (folder / "preprocessor_config.json").exists() else base
    _check_files(base, tokens, pixels)
    trained = _trained(folder, config)
    tokenizer = _part(PreTrainedTokenizerFast, tokens, "tokenizer.json")
    image_processor = _part(Qwen2VLImageProcessorPil, pixels, "preprocessor_config.json")
    _check_patches(config, image_processor, pixels)
    model = _stock_model(base, config, dtype)
    if adapter.exists():
        model = merge_adapter(model, folder)
    model = model.to(device).eval().requires_grad_(False)
    model.set_attn_implementation({"text_config": ATTENTION, "vision_config": "sdpa"})
    check_rotary(model)
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        digest=_digest([base] if folder == base else [base, folder]),
        trained=trained,
    )


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device of a name; CUDA where there is one, if none is named.

    Raises InputRejected for one that is not there.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # a word that is no device, or one that is not there
        raise InputRejected(f"There is no device {name} here; use cpu, or leave it out.") from None
    if device.type == "meta":  # torch has it everywhere, but nothing is computed there
        raise InputRejected("The device meta computes nothing; use cpu, or leave it out.")
    return device


def _check_files(base: Path, tokens: Path, pixels: Path) -> None:
    """Refuse a checkpoint that lacks a file, before transformers does in words of its own."""
    if not any(base.glob("*.safetensors")):
        raise InputRejected(
            f"The folder {base.name} has no .safetensors file; pickled weights are refused."
        )
    for folder, file in ((tokens, "tokenizer.json"), (pixels, "preprocessor_config.json")):
        if not (folder / file).exists():
            raise InputRejected(f"The folder {folder.name} has no {file}: not a whole checkpoint.")


def _part(kind: Any, folder: Path, file: str) -> Any:
    """The tokenizer or the image processor of a checkpoint; InputRejected where it is damaged."""
    try:
        part = kind.from_pretrained(folder)
        if kind is Qwen2VLImageProcessorPil:  # it takes any size, and is asked for these
            int(part.size["shortest_edge"] + part.size["longest_edge"])
            int(part.patch_size * part.merge_size)
    except PermissionError:
        raise
    except Exception as error:  # tokenizers raises nothing more exact
        raise InputRejected(
            f"{file} in the folder {folder.name} is damaged, or another one of its JSON files is; "
            "fetch the checkpoint again."
        ) from error
    return part


def _check_patches(config: Any, processor: Any, folder: Path) -> None:
    """Refuse an image processor that cuts pages into other patches than the tower reads."""
    vision = config.vision_config
    wanted = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    cut = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    if cut != wanted:
        raise InputRejected(
            f"preprocessor_config.json in the folder {folder.name} has patch, merge and temporal "
            f"patch sizes {cut}, but its model reads {wanted}; fetch the checkpoint again."
        )


def _stock_model(base: Path, config: Any, dtype: torch.dtype) -> Any:
    """transformers' own model with every weight from the checkpoint; none is left at random."""
    stock = getattr(transformers, _CLASSES[config.model_type])
    try:
        # dtype at load, never model.to(dtype): that would also round the rotary frequencies.
        model, found = stock.from_pretrained(
            base,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except (RuntimeError, OSError, SafetensorError) as error:
        raise UnsupportedModel(
            f"The weights of {base.name} cannot be read into its architecture: a file is damaged "
            "or missing, shapes differ, or the memory does not suffice."
        ) from error
    lost = sorted([*found["missing_keys"], *map(str, found["mismatched_keys"])])
    if lost:
        raise UnsupportedModel(
            f"{len(lost)} tensors of {base.name} are not in its files, the first being {lost[0]}: "
            "it would score with random weights. Fetch the checkpoint again."
        )
    return model


def _read_json(file: Path) -> dict[str, Any]:
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


def share_tower(one: LoadedModel, other: LoadedModel) -> None:
    """Let two models use one vision tower, if theirs are the same: it then runs once a page."""
    ours, theirs = one.tower.state_dict(), other.tower.state_dict()
    same_pixels = one.image_processor.to_dict() == other.image_processor.to_dict()
    same_shape = one.tower.config.to_dict() == other.tower.config.to_dict()
    if same_pixels and same_shape and all(torch.equal(ours[k], theirs[k]) for k in ours):
        other.model.model.visual = one.tower


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


def check_rotary(model: nn.Module) -> None:
    """Refuse rotary frequencies that a cast has rounded: positions would drift silently."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and buffer.dtype != torch.float32:
            raise UnsupportedModel(f"{name} is {buffer.dtype}; load with dtype=, not .to(dtype).")


def _local_folder(name: str | Path, revision: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(path, f"The folder {path.name}")
    if path.is_absolute() or str(name).startswith("."):
        raise InputRejected(f"There is no checkpoint folder {path.name}; check the path.")
    hub_id, _, commit = str(name).partition("@")
    revision = revision or commit or None
    if revision is None:
        logger.warning("%s is loaded without a pinned revision; name it %s@<commit>.", name, name)
    try:
        fetched = Path(snapshot_download(hub_id, revision=revision, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        raise InputRejected(
            f"{name} is neither a folder here nor a checkpoint that could be fetched from the "
            "hub. Check the name, the revision and the network."
        ) from None
    return _checked(fetched, f"{name} on the hub")


def _checked(path: Path, said: str) -> Path:
    if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
        raise InputRejected(
            f"{said} holds no config.json: not a checkpoint in transformers' format."
        )
    return path


# All that decides what a checkpoint computes: its weights, and how text and pixels reach them.
_IDENTITY = ("*.safetensors", "config.json", "preprocessor_config.json", "processor_config.json",
             "tokenizer.json", "adapter_config.json", TRAINED)  # fmt: skip


def _digest(folders: list[Path]) -> str:
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


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError):
        kind = _read_json(folder / "config.json").get("model_type", "(unnamed)")
        raise UnsupportedModel(
            f"The architecture {kind} is not one that this transformers release knows; use one of "
            f"{', '.join(sorted(_CLASSES))}."
        ) from None


def _trained(folder: Path, config: Any) -> dict[str, Any]:
    """What the checkpoint was trained for; an adapter says it in a file of its own."""
    if (folder / TRAINED).exists():
        section, file = _read_json(folder / TRAINED), TRAINED
    else:
        section, file = getattr(config, "mini_reranker", None) or {}, "config.json"
    wrong = _wrong_in(section)
    if wrong:
        raise InputRejected(
            f"What {file} in the folder {folder.name} says of the training of mini_reranker "
            f"cannot be used: {wrong}. Correct it or take it out."
        )
    return dict(section)


def _wrong_in(section: Any) -> str | None:
    """What makes a `mini_reranker` section unusable, in words; None for a sound one."""
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
    ratio = section.get("keep_ratio", 1.0)
    if not (_whole(ratio) or isinstance(ratio, float)) or not 0 < ratio <= 1:
        return f"keep_ratio {ratio!r} is not a number in (0, 1]"
    return None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def merge_adapter(model: Any, folder: Path) -> Any:
    """The model with a LoRA adapter added to its weights.

    Adapters saved before transformers moved the language model carry its old names. Raises
    UnsupportedModel where a tensor finds no place, instead of scoring with the bare base.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise InputRejected(f"The adapter {folder.name} has no adapter_model.safetensors.")
    adapted = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
    old_names = (
        (".model.model.layers.", ".model.model.language_model.layers."),
        (".model.visual.", ".model.model.visual."),
    )
    weights = load_file(file)
    for old, new in old_names:
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    result: Any = set_peft_model_state_dict(adapted, weights)
    lost = [*result.unexpected_keys, *(k for k in result.missing_keys if "lora_" in k)]
    if lost:
        raise UnsupportedModel(
            f"{len(lost)} tensors of the adapter {folder.name} do not fit its base model, the "
            f"first being {lost[0]}."
        )
    return adapted.merge_and_unload()
