"""What a measurement ran on, in words: a number without its machine means nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from mrr.model.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Machine:
    """device: "cpu" or "cuda:0"; device_name: as the driver calls it; n_threads: torch's own."""

    device: str
    device_name: str
    dtype: str
    n_threads: int
    n_cores: int
    system: str
    python: str
    torch: str
    transformers: str

    def __str__(self) -> str:
        threads = f", {self.n_threads} of {self.n_cores} cores" if self.device == "cpu" else ""
        return f"{self.device_name}{threads}, {self.dtype}, torch {self.torch}"


def describe(loaded: LoadedModel) -> Machine:
    """The machine as this model uses it."""
    device = loaded.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return Machine(
        device=str(device),
        device_name=name,
        dtype=str(loaded.dtype).removeprefix("torch."),
        n_threads=torch.get_num_threads(),
        n_cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=version("transformers"),
    )


def processor_name() -> str:
    """The processor's name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
