"""A function of tensors as a CUDA graph: its kernels start in one go, not at the host's pace.

A query is some hundreds of small kernels, and giving the orders takes a GPU's host longer than
the GPU needs to obey. A graph is bound to shapes and addresses, so there is one for each shape, and
it reads its inputs from tensors that are overwritten for each call.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mrr.model.load import LoadedModel

logger = logging.getLogger(__name__)

Inputs = tuple[Tensor, ...]
# It works on the GPU alone: it waits for nothing and takes nothing from the host.
Function = Callable[..., Tensor]
# Graphs held at once: one for each length of query, and each number and size of candidates; and
# shapes whose history is known.
_MAX_GRAPHS, _MAX_SHAPES = 96, 1024
_WARM_UP_RUNS = 2
# Captures that broke off. The allocator goes on asking them what belongs to them, so they stay
# alive, and no other capture is begun beside them.
_broken: list[torch.cuda.CUDAGraph] = []
# What another thread launches on the side stream would be captured too.
_capturing = threading.Lock()


class Graph:
    """One function captured for inputs of these shapes.

    inputs: overwrite them in place, then `replay`, which may write to them too. function: kept,
    for it holds what else the graph reads. own_bytes: of the memory that the graph works in.
    Raises RuntimeError where it cannot be captured.
    """

    def __init__(self, function: Function, inputs: Inputs, device: torch.device) -> None:
        self.inputs, self._function = inputs, function
        with _capturing, torch.inference_mode():
            self._capture(function, inputs, device)

    def _capture(self, function: Function, inputs: Inputs, device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            stream = _stream(torch.cuda.current_device())
            stream.wait_stream(torch.cuda.current_stream())
            try:
                # This context gives the stream back where a failed capture would keep it.
                with torch.cuda.stream(stream):
                    for _ in range(_WARM_UP_RUNS):  # kernels are loaded outside a capture
                        function(*inputs)
                    own = self._record(function, inputs, stream)
            finally:  # what ran there may still be writing to the inputs
                torch.cuda.current_stream().wait_stream(stream)
        self.own_bytes = max(0, own)

    def _record(self, function: Function, inputs: Inputs, stream: torch.cuda.Stream) -> int:
        """Capture one run, while other threads may go on using the GPU; bytes that it reserved."""
        try:
            with (
                _no_collection(),
                torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
            ):
                before = torch.cuda.memory_reserved()
                self._output = function(*inputs)
                return torch.cuda.memory_reserved() - before
        except torch.OutOfMemoryError:  # the capture itself was ended properly
            raise
        except RuntimeError:
            _broken.append(self._graph)
            # Random numbers would go on being those of a capture, and raise for everyone.
            random = torch.cuda.default_generators[torch.cuda.current_device()]
            random.graphsafe_set_state(random.clone_state())
            raise

    @torch.inference_mode()
    def replay(self) -> Tensor:
        """The function of what the inputs hold now, in memory that the caller may keep."""
        self._graph.replay()
        return self._output.clone()


@dataclass(slots=True)
class _Shape:
    """What became of one shape: runs since it was last captured, captures, whether it cannot be."""

    runs: int = 0
    captures: int = 0
    refused: bool = False


class Graphs:
    """Graphs by shape, the least recently used dropped first. Used under the engine's lock.

    There is one for a model, whatever the configurations. max_bytes: for all graphs together, whose
    inputs may be shared; None is a quarter of what the GPU has free at the first capture. A shape
    is captured when it comes the second time, since a capture takes several times as long as a run;
    once dropped it must come twice as often as before.
    """

    def __init__(self, device: torch.device, max_bytes: int | None = None) -> None:
        self._device = device
        self._max_bytes = max_bytes
        self._held: OrderedDict[Hashable, Graph] = OrderedDict()
        self._shapes: OrderedDict[Hashable, _Shape] = OrderedDict()
        self.n_replays = 0

    def __len__(self) -> int:
        return len(self._held)

    @torch.inference_mode()
    def run(
        self, key: Hashable, function: Function, write: Callable[[Inputs | None], Inputs]
    ) -> Tensor:
        """function(*inputs), replayed where inputs of this shape were captured.

        key: everything that decides the result but the inputs' values: whose function, and its
        inputs' shapes and types.
        write: makes new inputs for None, or else overwrites those that it is given.
        """
        graph = self._held.get(key)
        if graph is not None:
            self._held.move_to_end(key)
            self._shape(key)  # or the history of a graph in use would be forgotten
            write(graph.inputs)
            self.n_replays += 1
            return graph.replay()
        inputs = write(None)
        shape = self._shape(key)
        graph = self._capture(key, shape, function, inputs) if self._is_due(shape, inputs) else None
        return function(*inputs) if graph is None else graph.replay()

    def _shape(self, key: Hashable) -> _Shape:
        shape = self._shapes.setdefault(key, _Shape())
        self._shapes.move_to_end(key)
        while len(self._shapes) > _MAX_SHAPES:
            self._shapes.popitem(last=False)
        return shape

    def _is_due(self, shape: _Shape, inputs: Inputs) -> bool:
        shape.runs += 1
        if _broken or shape.refused or shape.runs <= 2**shape.captures:
            return False
        return _size(inputs) <= self._room()

    def _capture(
        self, key: Hashable, shape: _Shape, function: Function, inputs: Inputs
    ) -> Graph | None:
        self._make_room(inputs, 0)
        try:
            graph = Graph(function, inputs, self._device)
        except torch.OutOfMemoryError:  # others need the memory more; later there may be enough
            self._drop(len(self._held))
            for other in self._shapes.values():
                other.runs = 0
            return None
        except RuntimeError as error:
            shape.refused = True
            reason = str(error).strip().partition("\n")[0]
            logger.warning(
                "Queries of shape %s, and of new shapes, run without a CUDA graph: %s",
                key,
                reason,
            )
            return None
        if _size(inputs) + graph.own_bytes > self._room():
            shape.refused = True
            return None
        shape.runs = 0
        shape.captures += 1
        self._make_room(inputs, graph.own_bytes)
        self._held[key] = graph
        return graph

    def _room(self) -> int:
        if self._max_bytes is None:
            self._max_bytes = torch.cuda.mem_get_info(self._device)[0] // 4
        return self._max_bytes

    def _make_room(self, inputs: Inputs, own_bytes: int) -> None:
        """Drop graphs until one more of such inputs fits in."""
        while self._held and (
            len(self._held) >= _MAX_GRAPHS or self._nbytes(inputs) + own_bytes > self._room()
        ):
            self._drop(1)

    def _nbytes(self, more: Inputs) -> int:
        """Of all graphs held and of more inputs, each tensor counted once."""
        inputs = [tensor for graph in self._held.values() for tensor in graph.inputs]
        return _size((*inputs, *more)) + sum(graph.own_bytes for graph in self._held.values())

    def _drop(self, n: int) -> None:
        if n and self._device.type == "cuda":  # a last replay may still be running
            torch.cuda.current_stream(self._device).synchronize()
        for _ in range(n):
            self._held.popitem(last=False)


def graphs_for(loaded: LoadedModel) -> Graphs | None:
    """Graphs on a GPU; None on a CPU, and for models whose layers ask the GPU what comes next.

    These are experts, of which the host reads which were chosen, and rotary frequencies that
    change with the longest position.
    """
    config = loaded.model.config
    rope = str(getattr(loaded.lm.rotary_emb, "rope_type", "default"))
    asks = "moe" in config.model_type or "dynamic" in rope or "longrope" in rope
    return Graphs(loaded.device) if loaded.device.type == "cuda" and not asks else None


def put(host: Tensor, device: torch.device, into: Tensor | None) -> Tensor:
    """A tensor of the host on the device, in new memory or in a graph's input.

    It is queued like everything else. The host need not wait: what is not pinned is copied from it
    before the call returns.
    """
    if into is None:
        return host.to(device, non_blocking=True)
    return into.copy_(host, non_blocking=True)


@contextmanager
def beside(mark: torch.cuda.Event | None) -> Iterator[None]:
    """Work that needs nothing from after a mark in the GPU's queue goes beside what follows it.

    It writes into memory that is there already; whatever is queued later waits for it. Without a
    mark, on a CPU, one thing comes after another.
    """
    if mark is None:
        yield
        return
    with torch.cuda.device(mark.device):
        queue, side = torch.cuda.current_stream(), _beside(torch.cuda.current_device())
        side.wait_event(mark)
        try:
            with torch.cuda.stream(side):
                yield
        finally:
            queue.wait_stream(side)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected: to destroy another graph breaks a capture off."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@lru_cache
def _stream(device_index: int) -> torch.cuda.Stream:
    """One stream a device to capture on: cuBLAS keeps a workspace for each that it ever saw.

    What is captured there goes before what is put in place beside it, block by block.
    """
    return torch.cuda.Stream(device_index, priority=-1)


@lru_cache
def _beside(device_index: int) -> torch.cuda.Stream:
    """One stream a device for copies; never that of captures, where they would be captured too."""
    return torch.cuda.Stream(device_index)


def _size(tensors: Inputs) -> int:
    """Their bytes, each tensor counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
