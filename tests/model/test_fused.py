"""A layer in fewer operations is transformers' layer, and rounds no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

import mrr.model.fused as layer_parts
from mrr.assets import assets
from mrr.errors import ParityError
from mrr.model.fused import FusedAttention, FusedMLP, fuse
from mrr.model.layers import causal_mask, run_layers
from mrr.model.load import LoadedModel, load_model
from tests.model.helpers import Launches
from tests.tiny import DEVICE, FAMILIES

STOCK = (Qwen3VLTextRMSNorm, Qwen3VLMoeTextRMSNorm, Qwen2_5_VLRMSNorm, Qwen2VLRMSNorm)


def pair(
    dtype: torch.dtype, kind: type[nn.Module] = Qwen3VLTextRMSNorm
) -> tuple[nn.Module, nn.Module]:
    """transformers' norm, and the one that takes its place."""
    torch.manual_seed(0)
    stock = kind(96, eps=1e-5).to(DEVICE, dtype)
    nn.init.normal_(stock.weight)
    parent = nn.ModuleDict({"norm": stock}).eval()
    fuse(parent)
    return stock, parent["norm"]


def states(loaded: LoadedModel, kind: str) -> torch.Tensor:
    """Two texts of nine tokens through all layers, alone or under a mask that hides a token."""
    lm, generator = loaded.lm, torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (2, 9), generator=generator).to(loaded.device)
    hidden = 3 * lm.embed_tokens(ids)
    positions = torch.arange(9, device=hidden.device).expand(3, 2, -1)
    mask = None
    if kind == "masked":
        mask = causal_mask(9, hidden).clone()
        mask[..., 5:, 3] = float("-inf")
    cos_sin = lm.rotary_emb(hidden, positions)
    return run_layers(lm, hidden, cos_sin, range(loaded.n_layers), mask=mask)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["causal", "masked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_give_what_transformers_layers_give(
    checkpoints: dict[str, Path], family: str, kind: str
) -> None:
    stock = load_model(checkpoints[family], device=DEVICE, dtype=torch.float32, fused=False)
    loaded = load_model(checkpoints[family], device=DEVICE, dtype=torch.float32)
    expected = states(stock, kind)
    assert (states(loaded, kind) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.equal(states(loaded, "causal"), states(loaded, "masked"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("part", "name"),
    [(FusedAttention, "_values"), (FusedAttention, "_turned"), (FusedMLP, "forward")],
)
def test_a_layer_that_was_fused_wrongly_is_found_when_it_is_loaded(
    checkpoints: dict[str, Path], monkeypatch, part: type, name: str, dtype: torch.dtype
) -> None:
    load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=dtype)
    right = getattr(part, name)

    def wrong(self, x, *args, **kwargs):
        return right(self, x.flip(-1), *args, **kwargs)

    monkeypatch.setattr(part, name, wrong)
    with pytest.raises(ParityError, match="fused layer differs"):
        load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", ["tiny-reranker", "tiny-embedder"])
def test_a_trained_layer_that_adds_little_to_what_it_is_given_is_compared_by_what_it_adds(
    monkeypatch, model: str, dtype: torch.dtype
) -> None:
    folder = assets("models") / model
    load_model(folder, device=DEVICE, dtype=dtype)
    mlp, turned = FusedMLP.forward, FusedAttention._turned

    def even(self, normed, cos_sin, first, end, **how):
        """Q and K with which every token attends to all alike."""
        return 0 * turned(self, normed, cos_sin, first, end, **how)

    with monkeypatch.context() as broken:
        broken.setattr(FusedMLP, "forward", lambda self, x: 0 * mlp(self, x))
        with pytest.raises(ParityError, match="in its MLP"):
            load_model(folder, device=DEVICE, dtype=dtype)
    with monkeypatch.context() as broken:
        broken.setattr(FusedAttention, "_turned", even)
        with pytest.raises(ParityError, match="in its attention"):
            load_model(folder, device=DEVICE, dtype=dtype)


@pytest.mark.parametrize("weight", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_layer_that_adds_nothing_is_no_disagreement(
    checkpoints: dict[str, Path], monkeypatch, weight: str
) -> None:
    stock = load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.float32, fused=False)
    nn.init.zeros_(stock.lm.layers[0].get_submodule(weight).weight)
    layer_parts.fuse_checked(stock.model, "with an empty layer")


def test_a_norm_with_another_epsilon_is_found(monkeypatch, checkpoints: dict[str, Path]) -> None:
    right = layer_parts._norm

    def wrong(stock):
        norm = right(stock)
        norm.eps *= 2
        return norm

    monkeypatch.setattr(layer_parts, "_norm", wrong)
    with pytest.raises(ParityError, match="fused layer differs"):
        load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.float32)


def test_a_layer_that_gives_no_numbers_before_it_is_fused_is_told_and_not_judged(
    caplog, monkeypatch, checkpoints: dict[str, Path]
) -> None:
    broken = {"its MLP": torch.full((4, 8), float("nan"))}
    monkeypatch.setattr(layer_parts, "_probe", lambda lm: broken)
    load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.float32)
    assert "its MLP gives no finite numbers and was not compared" in caplog.text


def test_a_fused_layer_that_gives_no_numbers_is_found_too(
    checkpoints: dict[str, Path], monkeypatch
) -> None:
    monkeypatch.setattr(FusedMLP, "forward", lambda self, x: x * float("nan"))
    with pytest.raises(ParityError, match="fused layer differs"):
        load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_projections_one_by_one_are_those_at_once(
    checkpoints: dict[str, Path], family: str
) -> None:
    """And one text under the tables of three places is the same as three texts."""
    loaded = load_model(checkpoints[family], device=DEVICE, dtype=torch.float32)
    own, normed = loaded.lm.layers[1].self_attn, torch.randn(1, 6, loaded.lm.config.hidden_size)
    normed = normed.to(loaded.device)
    positions = torch.tensor([[0], [7], [40]], device=loaded.device) + torch.arange(
        6, device=loaded.device
    )
    cos_sin = loaded.lm.rotary_emb(normed, positions.expand(3, -1, -1))
    together = own.project(normed, cos_sin)
    each = own.project(normed.expand(3, -1, -1), cos_sin)
    alone = (own.project_q(normed, cos_sin), *own.project_kv(normed, cos_sin))
    for a, b, c in zip(together, each, alone, strict=True):
        assert a.shape[0] == 3 and torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(a, c, atol=1e-5)
    assert (together[1][0] - together[1][1]).abs().max() > 1e-2, "where a key stands is not seen"


@torch.inference_mode()
@pytest.mark.parametrize(("fused", "n"), [(False, 54), (True, 17)])
def test_a_layer_is_seventeen_operations(checkpoints: dict[str, Path], fused: bool, n: int) -> None:
    loaded = load_model(checkpoints["qwen3_vl"], device="cpu", dtype=torch.float32, fused=fused)
    hidden = torch.randn(1, 7, loaded.lm.config.hidden_size)
    cos_sin = loaded.lm.rotary_emb(hidden, torch.arange(7).expand(3, 1, -1))
    with Launches() as launches:
        run_layers(loaded.lm, hidden, cos_sin, range(1))
    assert len(launches) == n, " ".join(launches.seen)


def test_nothing_of_a_loaded_model_is_left_in_pieces(loaded: LoadedModel) -> None:
    names = [type(module).__name__ for module in loaded.model.modules()]
    assert not [name for name in names if name.endswith("RMSNorm") and name != "RMSNorm"]
    assert names.count("RMSNorm") >= 2 * loaded.n_layers + 1
    for layer in loaded.lm.layers:
        assert isinstance(layer.self_attn, FusedAttention)
        assert isinstance(layer.mlp, FusedMLP) or hasattr(layer.mlp, "experts")


def test_a_model_that_is_to_be_trained_keeps_its_own(checkpoints: dict[str, Path]) -> None:
    """Autocast takes torch's norm to float32, and adapters are fitted to transformers' names."""
    loaded = load_model(checkpoints["qwen3_vl"], device=DEVICE, fused=False)
    names = [type(module).__name__ for module in loaded.model.modules()]
    assert "Qwen3VLTextRMSNorm" in names and "RMSNorm" not in names
    assert hasattr(loaded.lm.layers[0].self_attn, "q_proj")


def test_every_weight_is_held_once(checkpoints: dict[str, Path]) -> None:
    stock = load_model(checkpoints["qwen2_vl"], device=DEVICE, fused=False).model
    fused = load_model(checkpoints["qwen2_vl"], device=DEVICE).model
    assert sum(p.numel() for p in fused.parameters()) == sum(p.numel() for p in stock.parameters())
    assert not any(p.requires_grad for p in fused.parameters())


def test_the_weight_of_a_norm_keeps_its_name_and_is_not_copied() -> None:
    stock, fused = pair(torch.float32)
    assert fused.weight is stock.weight and list(fused.state_dict()) == ["weight"]
    assert not fused.training


@torch.inference_mode()
@pytest.mark.parametrize("kind", STOCK)
def test_in_float32_both_norms_are_equal(kind: type[nn.Module]) -> None:
    stock, fused = pair(torch.float32, kind)
    x = 3 * torch.randn(4, 7, 96, device=DEVICE)
    assert (fused(x) - stock(x)).abs().max() <= (0 if DEVICE == "cpu" else 2e-6)
    assert not torch.equal(fused(x), x)
    # Small enough for epsilon to matter.
    assert torch.allclose(fused(1e-3 * x), stock(1e-3 * x), rtol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_torchs_norm_is_the_closer_one(dtype: torch.dtype) -> None:
    stock, fused = pair(dtype)
    x = 3 * torch.randn(64, 96, device=DEVICE, dtype=dtype)
    wide = x.double()
    exact = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * stock.weight.double()
    far, near = ((norm(x).double() - exact).abs().mean() for norm in (stock, fused))
    assert near < 0.9 * far
