"""What one call costs: milliseconds per stage, and what had to be computed and read.

An accelerator works behind the host, so there a stage is timed by marks in its own queue: they
cost next to nothing, while to wait for it at every stage would leave it idle in between. A stage
then is the time from the end of what was queued before it to the end of its own work, and what is
queued between two stages belongs to neither.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


class Stages:
    """Collects the time of named stages in the order they first ended; a stage may run again.

    missed: ids of the pages whose K/V was not there. bytes_read: of K/V, from the disk.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ms: dict[str, float] = {}
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []  # not read yet
        self.missed: set[str] = set()
        self.bytes_read = 0

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds by stage; waits for an accelerator that is still at work on one."""
        for name, begin, end in self._marks:
            end.synchronize()
            self._ms[name] += begin.elapsed_time(end)
        self._marks.clear()
        return self._ms

    @contextmanager
    def __call__(self, name: str) -> Iterator[torch.cuda.Event | None]:
        """Time what is inside. Yields an accelerator's mark from before it, None on a CPU."""
        begin, mark = time.perf_counter(), self._mark()
        try:
            yield mark
        finally:
            end = self._mark()
            self._ms.setdefault(name, 0.0)
            if mark is None or end is None:
                self._ms[name] += (time.perf_counter() - begin) * 1e3
            else:
                self._marks.append((name, mark, end))

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

    def _mark(self) -> torch.cuda.Event | None:
        if self._device.type != "cuda":
            return None
        mark = torch.cuda.Event(enable_timing=True)
        mark.record(torch.cuda.current_stream(self._device))
        return mark
