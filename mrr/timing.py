"""What one call costs: milliseconds per stage, with the accelerator's queue drained at both ends
of each, and what had to be computed and read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


class Stages:
    """Collects the time of named stages in the order they first ran; a stage may run again.

    missed: ids of the pages whose K/V was not there. bytes_read: of K/V, from the disk.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.ms: dict[str, float] = {}
        self.missed: set[str] = set()
        self.bytes_read = 0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._drain()
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._drain()
            self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - begin) * 1e3

    @contextmanager
    def module(self, name: str, module: nn.Module) -> Iterator[None]:
        """Time a submodule's own forward inside somebody else's."""
        span = ExitStack()
        handles = (
            module.register_forward_pre_hook(lambda *_: span.enter_context(self(name)) and None),
            module.register_forward_hook(lambda *_: span.close()),
        )
        try:
            yield
        finally:
            span.close()
            for handle in handles:
                handle.remove()

    def _drain(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
