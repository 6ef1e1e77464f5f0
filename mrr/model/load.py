"""Load a Qwen-VL checkpoint as transformers' own model, ready to run layer by layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mrr.errors import InputRejected, UnsupportedModel
from mrr.model.checkpoint import (
    CLASSES,
    check_files,
    check_patches,
    check_supported,
    identity,
    local_folder,
    read_config,
    read_json,
    read_trained,
)
from mrr.model.fused import fuse_checked
from mrr.model.layers import ATTENTION

MAX_VISUAL_TOKENS = 1800
# What adapters begin with that were saved before transformers put a model inside the model.
_OLD_NAMES = (
    ("base_model.model.model.layers.", "base_model.model.model.language_model.layers."),
    ("base_model.model.visual.", "base_model.model.model.visual."),
)


@dataclass(frozen=True)
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

    @cached_property  # looked up through modules it takes 4 us, some ten times a query
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

    @cached_property
    def n_sharing(self) -> int:
        """Query heads of the language model that share a head of K/V."""
        return int(self.lm.layers[0].self_attn.num_key_value_groups)

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
    dtype: torch.dtype | str | None = None,
    fused: bool = True,
    head: bool = True,
) -> LoadedModel:
    """Load a local folder or a hub id, with its LoRA adapter merged where it has one.

    device None is CUDA where there is one; dtype None is bf16 on CUDA and fp32 elsewhere. fused:
    layers in fewer operations; training keeps transformers', which adapters and autocast fit.
    head: whether the answers' head must be there; published embedders come without.
    Raises UnsupportedModel for an architecture that the layer loop cannot run and for weights
    that do not fill it, InputRejected for a folder that holds no checkpoint, or a damaged one, or
    may not be read, for a revision of a folder, and for a device that is not there.
    """
    if revision is not None and Path(name).expanduser().is_dir():
        raise InputRejected(
            f"{Path(name).name} is a folder here, which has no revision {revision}: that is a "
            "commit on the hub. Leave it out, or name the checkpoint by its hub id."
        )
    try:
        folder, where = local_folder(name, revision), pick_device(device)
        return _load(folder, str(name), where, dtype, fused, head)
    except PermissionError as error:
        file = Path(error.filename or name).name
        raise InputRejected(
            f"{file} may not be read; give this user the right to read the checkpoint."
        ) from None


def _load(
    folder: Path,
    name: str,
    device: torch.device,
    dtype: torch.dtype | str | None,
    fused: bool,
    head: bool,
) -> LoadedModel:
    if isinstance(dtype, str):  # as transformers takes it
        dtype = getattr(torch, dtype, dtype)
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise InputRejected(f"{dtype} is not served; use float32, bfloat16 or float16.")
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    adapter = folder / "adapter_config.json"
    base = folder
    if adapter.exists():
        described = read_json(adapter)
        base_name = described.get("base_model_name_or_path")
        if not (isinstance(base_name, str) and base_name):
            raise InputRejected(
                f"The adapter in {folder.name} does not say which checkpoint it is for; set "
                "base_model_name_or_path in its adapter_config.json."
            )
        base = local_folder(base_name, described.get("revision"))
    config = read_config(base)
    check_supported(config)
    tokens = folder if (folder / "tokenizer.json").exists() else base
    pixels = folder if (folder / "preprocessor_config.json").exists() else base
    check_files(base, tokens, pixels)
    trained = read_trained(folder, config)
    tokenizer = _part(PreTrainedTokenizerFast, tokens, "tokenizer.json")
    image_processor = _part(Qwen2VLImageProcessorPil, pixels, "preprocessor_config.json")
    check_patches(config, image_processor, pixels)
    model = _stock_model(base, config, dtype, head)
    if adapter.exists():
        model = merge_adapter(model, folder)
    model = ready(model.to(device))
    if fused:
        fuse_checked(model, name)
    check_rotary(model)
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        digest=identity([base] if folder == base else [base, folder]),
        trained=trained,
    )


def ready(model: Any) -> Any:
    """A stock model with what the layer loop needs of it: our attention."""
    model.set_attn_implementation({"text_config": ATTENTION, "vision_config": "sdpa"})
    return model.eval().requires_grad_(False)


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


def _stock_model(base: Path, config: Any, dtype: torch.dtype, head: bool) -> Any:
    """transformers' own model with every weight from the checkpoint; none is left at random.

    Without head the head may be, for nobody reads it.
    """
    stock = getattr(transformers, CLASSES[config.model_type])
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
    lost = {*found["missing_keys"], *map(str, found["mismatched_keys"])}
    lost -= set() if head else {"lm_head.weight"}
    if lost:
        raise UnsupportedModel(
            f"{len(lost)} tensors of {base.name} are not in its files, the first being "
            f"{min(lost)}: it would score with random weights. Fetch the checkpoint again."
        )
    return model


def share_tower(one: LoadedModel, other: LoadedModel) -> None:
    """Let two models use one vision tower, if theirs are the same: it then runs once a page."""
    ours, theirs = one.tower.state_dict(), other.tower.state_dict()
    same_pixels = one.image_processor.to_dict() == other.image_processor.to_dict()
    same_shape = one.tower.config.to_dict() == other.tower.config.to_dict()
    if same_pixels and same_shape and all(torch.equal(ours[k], theirs[k]) for k in ours):
        other.model.model.visual = one.tower


def check_rotary(model: nn.Module) -> None:
    """Refuse rotary frequencies that a cast has rounded: positions would drift silently."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and buffer.dtype != torch.float32:
            raise UnsupportedModel(f"{name} is {buffer.dtype}; load with dtype=, not .to(dtype).")


def merge_adapter(model: Any, folder: Path) -> Any:
    """The model with a LoRA adapter added to its weights.

    Adapters saved before transformers moved the language model carry its old names. Raises
    UnsupportedModel where a tensor finds no place, instead of scoring with the bare base, and for
    adapters of another kind; InputRejected for a damaged one.
    """
    from peft import set_peft_model_state_dict

    weights = {_today(name): tensor for name, tensor in _adapter_weights(folder).items()}
    adapted = _adapted(model, folder)
    result: Any = set_peft_model_state_dict(adapted, weights)
    lost = [*result.unexpected_keys, *(k for k in result.missing_keys if "lora_" in k)]
    if lost:
        raise UnsupportedModel(
            f"{len(lost)} tensors of the adapter {folder.name} do not fit its base model, the "
            f"first being {lost[0]}."
        )
    return adapted.merge_and_unload()


def _today(name: str) -> str:
    """An adapter's name of a tensor, as transformers and peft would write it now."""
    for old, new in _OLD_NAMES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _adapter_weights(folder: Path) -> dict[str, Tensor]:
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise InputRejected(f"The adapter {folder.name} has no adapter_model.safetensors.")
    try:
        return load_file(file)
    except SafetensorError:
        raise InputRejected(
            f"adapter_model.safetensors in the folder {folder.name} is damaged; fetch the adapter "
            "again."
        ) from None


def _adapted(model: Any, folder: Path) -> Any:
    """The model with the layers of an adapter beside its own, their weights not yet read."""
    from peft import LoraConfig, get_peft_model

    kind = read_json(folder / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise UnsupportedModel(
            f"The adapter {folder.name} is of the kind {kind}; only LORA can be added to weights."
        )
    try:
        return get_peft_model(model, LoraConfig.from_pretrained(str(folder)))
    except (TypeError, ValueError, re.error) as error:  # peft's own error is a ValueError
        raise InputRejected(
            f"adapter_config.json in the folder {folder.name} does not suit its base model: {error}"
        ) from None
