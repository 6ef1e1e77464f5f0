"""Stages add up to the time of the whole, whoever does the work."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from mrr.timing import Stages
from tests.tiny import DEVICE

CPU = torch.device("cpu")
on_gpu = pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="needs MRR_TEST_DEVICE=cuda")


def test_stages_are_listed_in_their_order_and_add_up() -> None:
    stages = Stages(CPU)
    for name in ("read", "score", "read"):
        with stages(name):
            time.sleep(0.002)
    assert list(stages.ms) == ["read", "score"]
    assert stages.ms["read"] >= 4 and stages.ms["score"] >= 2


def test_a_stage_that_fails_is_counted() -> None:
    stages = Stages(CPU)
    with pytest.raises(KeyError), stages("read"):
        raise KeyError
    assert "read" in stages.ms


def test_a_submodule_is_timed_inside_somebody_elses_forward() -> None:
    model, stages = nn.Sequential(nn.Linear(2, 2), nn.Flatten()), Stages(CPU)
    with stages.module("inner", model[0]):
        model(torch.zeros(1, 2))
    model(torch.zeros(1, 2))
    assert list(stages.ms) == ["inner"]


class Mark:
    """A mark in the queue of an accelerator that works for 5 ms between any two of them."""

    clock = 0.0
    waited: list[Mark]

    def __init__(self) -> None:
        type(self).clock += 5.0
        self.at = self.clock

    def synchronize(self) -> None:
        self.waited.append(self)

    def elapsed_time(self, end: Mark) -> float:
        return end.at - self.at


def test_an_accelerator_is_waited_for_when_the_times_are_read_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Mark.waited = []
    monkeypatch.setattr(Stages, "_mark", lambda self: Mark())
    stages = Stages(torch.device("cuda"))
    for name in ("read", "score", "read"):
        with stages(name):
            pass
    assert Mark.waited == []
    assert stages.ms == {"read": 10.0, "score": 5.0} and len(Mark.waited) == 3
    assert stages.ms == {"read": 10.0, "score": 5.0}, "read twice, counted once"


@on_gpu
def test_work_that_is_still_queued_belongs_to_the_stage_that_queued_it() -> None:
    device = torch.device(DEVICE)
    x = torch.randn(4096, 4096, device=device)
    stages = Stages(device)
    (x @ x).sum().item()
    begin = time.perf_counter()
    with stages("work"):
        for _ in range(20):
            y = x @ x
    with stages("nothing"):
        pass
    y.sum().item()
    wall_ms = (time.perf_counter() - begin) * 1e3
    assert stages.ms["nothing"] < 0.2 * stages.ms["work"]
    assert 0.5 * wall_ms < stages.ms["work"] < 1.1 * wall_ms
