"""What every stage shares: device, checkpoints that resume, a JSON-lines log, a clock."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mrr.errors import InputRejected
from mrr.train.shards import unpack


def device_name() -> str:
    """What trains here, for the model card."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    n = torch.get_num_threads()
    return f"cpu, {n} thread{'s' if n > 1 else ''}"


@functools.cache
def product_dtype(device_type: str) -> torch.dtype:
    """bfloat16 where its matrix products are the faster, as timed here, else float32.

    CPUs without instructions for it emulate it, twenty times slower than float32.
    """
    if device_type != "cpu":
        return torch.bfloat16
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
        a @ b  # the first product also sets things up
        begun = time.perf_counter()
        for _ in range(3):
            a @ b
        took[dtype] = time.perf_counter() - begun
    return min(took, key=lambda dtype: took[dtype])


def autocast(device: torch.device) -> torch.autocast:
    """The faster type for matrix products; weights and sums stay float32."""
    dtype = product_dtype(device.type)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


class Run:
    """A stage's folder: checkpoint.pt, log.jsonl and the process id.

    Training time counts only steps, so a paused process does not distort the curve.
    """

    def __init__(self, folder: Path, save_every_s: float = 180.0):
        self.folder, self.save_every_s = folder, save_every_s
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / f"{folder.name}.pid").write_text(str(os.getpid()))
        self.step, self.train_s, self.wait_s, self.n_cells = 0, 0.0, 0.0, 0
        self.done: float | None = None  # share of the run that is behind, once it is known
        self.resumed = False
        self._saved_at = time.monotonic()

    def check_same(self, identity: dict[str, Any]) -> None:
        """Note what this run is of; raise InputRejected if its checkpoint is of something else."""
        file, now = self.folder / "plan.json", json.loads(json.dumps(identity))
        if file.exists() and read_state(self.folder) is not None:
            begun = json.loads(file.read_text(encoding="utf-8"))
            if changed := [name for name in now if now[name] != begun.get(name)]:
                raise InputRejected(
                    f"The run in {self.folder} was begun with another {' and '.join(changed)}. "
                    "Go on with the same, or choose another folder with --run."
                )
            return
        part = self.folder / "plan.part"
        part.write_text(json.dumps(now), encoding="utf-8")
        os.replace(part, file)

    def resume(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()) -> bool:
        """Load the checkpoint, or else the shards, if there are any; shards have no optimizers.

        The optimizers keep the rates that they have.
        """
        state = read_state(self.folder)
        if state is None:
            return False
        model.load_state_dict({name: tensor.float() for name, tensor in state["model"].items()})
        for optimizer, saved in zip(optimizers, state.get("optimizers", ()), strict=False):
            rates = [group["base_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["base_lr"] = rate
        self.step, self.train_s = int(state["step"]), float(state["train_s"])
        self.n_cells, self.done = int(state["n_cells"]), state.get("done")
        self.resumed = True
        return True

    def save(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Replace the checkpoint atomically."""
        state: dict[str, Any] = {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": self.step,
            "train_s": self.train_s,
            "n_cells": self.n_cells,
            "done": self.done,
            "device": device_name(),
        }
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        os.replace(part, self.folder / "checkpoint.pt")
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved_at > self.save_every_s

    def log(self, **values: Any) -> None:
        """Append one line to log.jsonl."""
        line = {
            "step": self.step,
            "train_s": round(self.train_s, 1),
            "time": round(time.time()),
            **values,
        }
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_state(folder: Path) -> dict[str, Any] | None:
    """A stage's saved state, weights on the CPU; None where nothing was saved."""
    path = folder / "checkpoint.pt"
    if path.exists():
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    return unpack(folder)


def seed_everything(seed: int) -> None:
    """Seed Python and torch."""
    random.seed(seed)
    torch.manual_seed(seed)


def current_commit() -> str:
    """The commit of the code that trains, or "unknown" outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
