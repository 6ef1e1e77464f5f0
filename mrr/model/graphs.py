"""A function of tensors as a CUDA graph: its kernels start in one go, not at the host's pace.

A query is over a thousand small kernels, and giving the orders takes a GPU's host longer than the
GPU needs to obey. A graph is bound to shapes and addresses, so there is one for each shape, and it
reads its inputs from tensors that are overwritten for each call.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from mrr.model.load import LoadedModel

logger = logging.getLogger(__name__)

Inputs = tuple[Tensor, ...]
# It works on the GPU alone: it waits for nothing and takes nothing from the host.
Function = Callable[..., Tensor]
# Shapes held at once: one for each length of query, and each number and size of candidates.
_MAX_GRAPHS = 48
_WARM_UP_RUNS = 2
# Captures that broke off. The allocator goes on asking them what belongs to them, so they stay
# alive, and no other capture is begun beside them.
_broken: list[torch.cuda.CUDAGraph] = []
# What another thread launches on the side stream would be captured too.
_capturing = threading.Lock()


class Graph:
    """One function captured for inputs of these shapes.

    inputs: overwrite them in place, then `replay`, which may write to them too. function: kept,
    for it holds what else the graph reads. nbytes: of the inputs, and of the memory that the graph
    works in. Raises RuntimeError where it cannot be captured.
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
        self.nbytes = _nbytes(inputs) + max(0, own)

    def _record(self, function: Function, inputs: Inputs, stream: torch.cuda.Stream) -> int:
        """Capture one run, while other threads may go on using the GPU; bytes that it reserved."""
        try:
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                before = torch.cuda.memory_reserved()
                self._output = function(*inputs)
                return torch.cuda.memory_reserved() - before
        except torch.OutOfMemoryError:  # the capture itself was ended properly
            raise
        except RuntimeError:
            _broken.append(self._graph)
            raise

    @torch.inference_mode()
    def replay(self) -> Tensor:
        """The function of what the inputs hold now, in memory that the caller may keep."""
        self._graph.replay()
        return self._output.clone()


class Graphs:
    """Graphs by shape, the least recently used dropped first. Used under the engine's lock.

    There is one for a model, whatever the configurations. max_bytes: for all graphs together; None
    is a quarter of what the GPU has free at the first capture. A shape is captured when it comes
    the second time, since a capture takes several times as long as a run; once dropped it must come
    twice as often as before.
    """

    def __init__(self, device: torch.device, max_bytes: int | None = None) -> None:
        self._device = device
        self._max_bytes = max_bytes
        self._held: OrderedDict[Hashable, Graph] = OrderedDict()
        self._runs: Counter[Hashable] = Counter()  # since the last capture
        self._captures: Counter[Hashable] = Counter()
        self._refused: set[Hashable] = set()
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
            write(graph.inputs)
            self.n_replays += 1
            return graph.replay()
        inputs = write(None)
        graph = self._capture(key, function, inputs) if self._is_due(key, inputs) else None
        return function(*inputs) if graph is None else graph.replay()

    def _is_due(self, key: Hashable, inputs: Inputs) -> bool:
        self._runs[key] += 1
        if _broken or key in self._refused or self._runs[key] <= 2 ** self._captures[key]:
            return False
        return _nbytes(inputs) <= self._room()

    def _capture(self, key: Hashable, function: Function, inputs: Inputs) -> Graph | None:
        self._make_room(_nbytes(inputs), _MAX_GRAPHS - 1)
        try:
            graph = Graph(function, inputs, self._device)
        except torch.OutOfMemoryError:  # others need the memory more; later there may be enough
            self._make_room(0, 0)
            self._runs.clear()
            return None
        except RuntimeError as error:
            self._refused.add(key)
            reason = str(error).strip().partition("\n")[0]
            logger.warning(
                "Queries of shape %s, and of new shapes, run without a CUDA graph: %s",
                key,
                reason,
            )
            return None
        if graph.nbytes > self._room():
            self._refused.add(key)
            return None
        self._runs[key] = 0
        self._captures[key] += 1
        self._make_room(graph.nbytes, _MAX_GRAPHS - 1)
        self._held[key] = graph
        return graph

    def _room(self) -> int:
        if self._max_bytes is None:
            self._max_bytes = torch.cuda.mem_get_info(self._device)[0] // 4
        return self._max_bytes

    def _make_room(self, nbytes: int, n_graphs: int) -> None:
        """Drop graphs until so many are left, and so many bytes free for another one."""
        held = sum(graph.nbytes for graph in self._held.values())
        while self._held and (len(self._held) > n_graphs or held + nbytes > self._room()):
            if self._device.type == "cuda":  # its last replay may still be running
                torch.cuda.synchronize(self._device)
            held -= self._held.popitem(last=False)[1].nbytes


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


def round_up(n: int, multiple: int) -> int:
    """The next multiple, or n itself where it is one."""
    return -(-n // multiple) * multiple


class Fork:
    """A point in a GPU's queue: what needs nothing from after it may go beside what follows.

    On a CPU one thing comes after another.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mark = None
        if device.type == "cuda":
            self._mark = torch.cuda.Event()
            self._mark.record(torch.cuda.current_stream(device))

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work into memory that is there already; whatever is queued later waits for it."""
        if self._mark is None:
            yield
            return
        with torch.cuda.device(self._device):
            queue, side = torch.cuda.current_stream(), _beside(torch.cuda.current_device())
            side.wait_event(self._mark)
            try:
                with torch.cuda.stream(side):
                    yield
            finally:
                queue.wait_stream(side)


@lru_cache
def _stream(device_index: int) -> torch.cuda.Stream:
    """One stream a device to capture on: cuBLAS keeps a workspace for each that it ever saw."""
    return torch.cuda.Stream(device_index)


@lru_cache
def _beside(device_index: int) -> torch.cuda.Stream:
    """One stream a device for copies; never that of captures, where they would be captured too."""
    return torch.cuda.Stream(device_index)


def _nbytes(tensors: Inputs) -> int:
    return sum(tensor.nbytes for tensor in tensors)
