"""Where the model runs: here, or under HuggingFace ZeroGPU in a forked process that has the GPU.

On ZeroGPU the main process never has a GPU. The models stay in its memory on the CPU, in float32,
and a call is made in a child that moves its copy to the GPU; a child that is used again has it
there already. What crosses is pickled: settings and pages go in, results come back. K/V that a
child computes reaches everybody through the store on disk; its counts of hits do not come back.
Without a store on disk everything runs on the CPU.

Through here go ranking, adding, encoding again, explaining and lenses, each page of an upload as
a call of its own. On the CPU stay the self-check, the bundled examples, and the latency tab, which
measures the machine it names. Progress and stopping within a call do not reach a child.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from cache_db import PageStore
from mrr.errors import MRRError
from ui.opening import Opening

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger("ui")

# ZeroGPU's own default. Nothing has been timed there, so nothing less is asked for.
SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Refused:
    """An error as a value: of an exception ZeroGPU passes on the name only."""

    error: MRRError


def zero_gpu() -> Callable[..., Any] | None:
    """`spaces.GPU` where this is a ZeroGPU Space, else None. Call it before CUDA is touched."""
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):
        return None
    try:
        return importlib.import_module("spaces").GPU  # type: ignore[no-any-return]
    except ImportError:
        log.warning("This is a ZeroGPU Space without the package spaces; the CPU does the work.")
        return None


class Gpu:
    """Runs work on a reranker where the GPU is.

    store: what children and this process share. decorate: `spaces.GPU`, or None to run everything
    here. device: where a child puts the models.
    """

    def __init__(
        self,
        opening: Opening,
        store: PageStore,
        decorate: Callable[..., Any] | None = None,
        device: str = "cuda",
    ) -> None:
        self._opening, self._device = opening, device
        self._child: MiniReranker | None = None  # only ever set in a child
        self._forked: Callable[..., Any] | None = None
        if decorate is not None and store.stats().persistent:
            self._forked = decorate(duration=SECONDS)(self._in_child)
        elif decorate is not None:
            log.warning("Without a store on disk ZeroGPU cannot be used; the CPU does the work.")

    def __call__(
        self,
        work: Callable[Concatenate[MiniReranker, P], R],
        engine: MiniReranker,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """work(engine, *args, **kwargs). work must be a function that pickles by its name."""
        if self._forked is None:
            return work(engine, *args, **kwargs)
        sent = {name: value for name, value in kwargs.items() if not callable(value)}
        result = self._forked(work, engine.config, args, sent)
        if isinstance(result, _Refused):
            raise result.error
        return result  # type: ignore[no-any-return]

    def _in_child(
        self, work: Callable[..., Any], config: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._child is None:
            self._child = self._opening().reopened(self._device)
        try:
            return work(self._child.with_config(config), *args, **kwargs)
        except MRRError as error:
            return _Refused(error)
