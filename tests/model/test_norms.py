"""torch's RMSNorm is transformers', and rounds less."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

from mrr.model.load import LoadedModel, load_model
from mrr.model.norms import fuse_norms
from tests.tiny import DEVICE

STOCK = (Qwen3VLTextRMSNorm, Qwen3VLMoeTextRMSNorm, Qwen2_5_VLRMSNorm, Qwen2VLRMSNorm)


def pair(
    dtype: torch.dtype, kind: type[nn.Module] = Qwen3VLTextRMSNorm
) -> tuple[nn.Module, nn.Module]:
    """transformers' norm, and the one that takes its place."""
    torch.manual_seed(0)
    stock = kind(96, eps=1e-5).to(DEVICE, dtype)
    nn.init.normal_(stock.weight)
    parent = nn.ModuleDict({"norm": stock}).eval()
    fuse_norms(parent)
    return stock, parent["norm"]


def test_no_norm_of_a_loaded_model_is_left_in_pieces(loaded: LoadedModel) -> None:
    names = [type(module).__name__ for module in loaded.model.modules()]
    assert not [name for name in names if name.endswith("RMSNorm") and name != "RMSNorm"]
    assert names.count("RMSNorm") >= 2 * loaded.n_layers + 1


def test_a_model_that_is_to_be_trained_keeps_its_own(checkpoints) -> None:
    """Autocast takes torch's to float32 and leaves transformers' alone."""
    loaded = load_model(checkpoints["qwen3_vl"], device=DEVICE, fused=False)
    names = [type(module).__name__ for module in loaded.model.modules()]
    assert "Qwen3VLTextRMSNorm" in names and "RMSNorm" not in names


def test_the_weight_keeps_its_name_and_is_not_copied() -> None:
    stock, fused = pair(torch.float32)
    assert fused.weight is stock.weight and list(fused.state_dict()) == ["weight"]
    assert not fused.training


@torch.inference_mode()
@pytest.mark.parametrize("kind", STOCK)
def test_in_float32_both_are_equal(kind: type[nn.Module]) -> None:
    stock, fused = pair(torch.float32, kind)
    x = 3 * torch.randn(4, 7, 96, device=DEVICE)
    assert (fused(x) - stock(x)).abs().max() <= (0 if DEVICE == "cpu" else 2e-6)
    assert not torch.equal(fused(x), x)
    # Small enough for epsilon to matter.
    assert torch.allclose(fused(1e-3 * x), stock(1e-3 * x), rtol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_the_closer_one(dtype: torch.dtype) -> None:
    stock, fused = pair(dtype)
    x = 3 * torch.randn(64, 96, device=DEVICE, dtype=dtype)
    wide = x.double()
    exact = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * stock.weight.double()
    far, near = ((norm(x).double() - exact).abs().mean() for norm in (stock, fused))
    assert near < 0.9 * far
