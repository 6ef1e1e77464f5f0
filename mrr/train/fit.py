"""The training loop that all stages share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from mrr.errors import InputRejected
from mrr.model.load import pick_device
from mrr.train.data import ENDLESS
from mrr.train.muon import set_progress
from mrr.train.run import Run, autocast

LOG_EVERY = 25


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch gave. loss: scalar. shown: numbers for the log, only read when logged."""

    loss: Tensor
    shown: Callable[[], dict[str, float]]
    n_cells: int


def last_batch(steps: int, minutes: float) -> int:
    """Where the stream of batches ends: a run by the clock takes as many as it can."""
    return ENDLESS if minutes else steps


def loader(batches: IterableDataset[Any], workers: int) -> DataLoader[Any]:
    """Batches drawn ahead by `workers` processes (0: in this one), which take turns."""
    ahead: dict[str, Any] = {}
    if workers:
        ahead = {"prefetch_factor": 4, "multiprocessing_context": "fork"}
    pinned = torch.cuda.is_available()
    return DataLoader(batches, batch_size=None, num_workers=workers, pin_memory=pinned, **ahead)


class Schedule:
    """How much of a run is behind: by its steps, or by the clock where minutes are given.

    A run by the clock that was stopped goes on from the share that its checkpoint says.
    """

    def __init__(self, run: Run, steps: int, minutes: float):
        self._steps, self._minutes = max(1, steps), minutes
        self._first = run.step / self._steps if run.done is None else run.done
        self._begun = time.perf_counter()
        if minutes and run.done is None and self._first >= 1:
            raise InputRejected(
                f"{run.folder.name}: step {run.step} of {steps} is behind, which leaves the "
                f"{minutes:g} minutes no rate to fall from; give the stage more steps."
            )

    def done(self, step: int) -> float:
        """Share of the run that is behind after `step` steps."""
        if not self._minutes:
            return step / self._steps
        elapsed = (time.perf_counter() - self._begun) / 60 / self._minutes
        return self._first + (1 - self._first) * elapsed


def fit(
    run: Run,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batches: Iterable[Any],
    *,
    steps: int,
    minutes: float = 0.0,
    take: Callable[[Any], Step],
    evaluate: Callable[[], dict[str, Any]],
    eval_every: int,
) -> None:
    """Train until run.step reaches steps; `take` does the forward pass of one batch.

    minutes: if given, the rest of the plan is run in so much time, however many steps that are:
    the learning rate then falls by the clock. For a device that is lent; the last evaluation and
    the last checkpoint come on top.

    Logs the loss, throughput (cells/s) and the seconds spent waiting for data, so that a starved
    device shows. Saves every few minutes and at the end.
    """

    def check() -> None:
        with torch.random.fork_rng():  # its own numbers do not decide those of training
            run.log(**evaluate())

    device = pick_device()
    clock = time.perf_counter()
    schedule, first = Schedule(run, steps, minutes), run.step
    with tqdm(total=steps, initial=run.step, desc=run.folder.name, mininterval=10) as bar:
        for batch in batches:
            begun = time.perf_counter()
            run.wait_s += begun - clock
            run.done = schedule.done(run.step)
            if run.done >= 1:
                break
            factor = set_progress(optimizers, run.step, run.done)
            with autocast(device):
                step = take(batch.to(device))
            step.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            run.step += 1
            run.n_cells += step.n_cells
            logged = run.step % LOG_EVERY == 0
            loss = float(step.loss.detach()) if logged else 0.0  # waits for the device
            run.train_s += time.perf_counter() - begun
            bar.update()
            if logged:
                run.log(
                    loss=round(loss, 4),
                    **{name: round(value, 4) for name, value in step.shown().items()},
                    lr=round(factor, 3),
                    cells_per_s=round(run.n_cells / run.train_s),
                    wait_s=round(run.wait_s, 1),
                    device=device.type,
                )
            if run.step % eval_every == 0:
                check()
            if run.due():
                run.save(model, optimizers)
            clock = time.perf_counter()
    if run.step == first and run.resumed:
        return  # nothing was left to do: the checkpoint stays as it is
    if run.step % eval_every:
        check()
    run.save(model, optimizers)
