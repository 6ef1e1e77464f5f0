"""A run's weights in small float16 files, to carry between machines; training resumes from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MAX_BYTES = 9_000_000
_META = "progress.json"
_PROGRESS = ("step", "train_s", "n_cells", "done", "device")


def pack(run_dir: Path, out_dir: Path) -> list[Path]:
    """Copy tokenizer, logs and every stage's weights, as files of at most MAX_BYTES.

    Optimizer state is left behind: it is rebuilt within some dozens of steps.
    """
    written: list[Path] = []
    shutil.copytree(run_dir / "tokenizer", out_dir / "tokenizer", dirs_exist_ok=True)
    for checkpoint in sorted(run_dir.glob("*/checkpoint.pt")):
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        target = out_dir / checkpoint.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for i, part in enumerate(_parts(state["model"])):
            written.append(target / f"weights-{i:03d}.safetensors")
            save_file(part, written[-1])
        progress = {name: state[name] for name in _PROGRESS if name in state}
        (target / _META).write_text(json.dumps(progress), encoding="utf-8")
        log = checkpoint.parent / "log.jsonl"
        if log.exists():
            shutil.copy(log, target / log.name)
    return written


def unpack(stage_dir: Path) -> dict[str, Any] | None:
    """A stage's state as its checkpoint would hold it, or None where it has no shards."""
    meta = stage_dir / _META
    if not meta.exists():
        return None
    model: dict[str, Tensor] = {}
    for path in sorted(stage_dir.glob("weights-*.safetensors")):
        model |= load_file(path)
    return {"model": model, "optimizers": [], **json.loads(meta.read_text(encoding="utf-8"))}


def _parts(model: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    room = MAX_BYTES
    for name, tensor in model.items():
        small = tensor.half().contiguous().clone()
        if small.nbytes > room and parts[-1]:
            parts.append({})
            room = MAX_BYTES
        parts[-1][name] = small
        room -= small.nbytes
    return parts
