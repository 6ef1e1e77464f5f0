"""Which of torch's attention kernels a GPU runs, as far as a machine without one can tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mrr.model.band import run_before_band
from mrr.model.layers import attention_forward, folded_attention
from mrr.model.load import load_model
from tests.model.helpers import SPARSE
from tests.tiny import DEVICE

on_gpu = pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="needs MRR_TEST_DEVICE=cuda")


class OnGPU(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bool]]:
    """Which kernels torch might have chosen, at each call of its attention."""
    calls: list[dict[str, bool]] = []
    torchs = F.scaled_dot_product_attention

    def noted(*tensors: Any, **options: Any) -> torch.Tensor:
        cuda = torch.backends.cuda
        calls.append(
            {
                "cudnn": cuda.cudnn_sdp_enabled(),
                "flash": cuda.flash_sdp_enabled(),
                "efficient": cuda.mem_efficient_sdp_enabled(),
                "math": cuda.math_sdp_enabled(),
            }
        )
        return torchs(*tensors, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return calls


def heads(n: int) -> torch.Tensor:
    """(1, 2, n, 8)."""
    return torch.ones(1, 2, n, 8).as_subclass(OnGPU)


@pytest.mark.parametrize(("n", "cudnn"), [(2, False), (128, False), (129, True), (1000, True)])
def test_a_short_text_is_never_attended_to_by_cudnn_and_a_page_may_be(
    allowed: list[dict[str, bool]], n: int, cudnn: bool
) -> None:
    attention_forward(SimpleNamespace(), heads(n), heads(n), heads(n), None, scaling=1.0)
    assert allowed == [{"cudnn": cudnn, "flash": True, "efficient": True, "math": True}]
    assert torch.backends.cuda.cudnn_sdp_enabled(), "it was for that call alone"


def test_pages_are_never_attended_to_by_cudnn(allowed: list[dict[str, bool]]) -> None:
    mask = torch.zeros(1, 1, 3, 1000)
    folded_attention(heads(3), heads(1000), heads(1000), mask, 1.0)
    assert [call["cudnn"] for call in allowed] == [False]
    assert torch.backends.cuda.cudnn_sdp_enabled()


@on_gpu
def test_a_query_runs_through_its_layers_without_cudnn(checkpoints: dict[str, Path]) -> None:
    loaded = load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.bfloat16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run_before_band(loaded, SPARSE.resolve(loaded.n_layers), [list(range(20))])
        torch.cuda.synchronize()
    kernels = [event.key.lower() for event in profile.key_averages()]
    assert kernels and not any("cudnn" in name for name in kernels)
