"""Stored K/V: what int8 loses, what packing does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrr.config import KVDtype
from mrr.model.kv import lossless, pack, quantize, quantize_page, unpack

CPU = torch.device("cpu")


def page(kv_dtype: str, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(3, 2, 7, 16, generator=generator) for _ in "kv")
    stored = quantize_page(
        k, v, kv_dtype, next_position=19, grid=(2, 5), kept=np.array([0, 2, 3, 4, 6, 9])
    )
    return k, v, stored


def read(stored, like: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(like)
    for layer in range(like.shape[0]):
        stored.write(layer, out[layer])
    return out


@pytest.mark.parametrize("kv_dtype", ["int8", "bf16", "fp16", "fp32"])
def test_packing_and_unpacking_keeps_every_bit(kv_dtype: str) -> None:
    _, _, stored = page(kv_dtype)
    again = unpack(*pack(stored), CPU)
    assert torch.equal(again.k.values, stored.k.values)
    assert torch.equal(again.v.values, stored.v.values)
    assert (again.next_position, again.grid) == (19, (2, 5))
    assert again.kept.tolist() == [0, 2, 3, 4, 6, 9]
    assert again.nbytes == stored.nbytes


@pytest.mark.parametrize(("kv_dtype", "bound"), [("fp32", 0), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_float_storage_rounds_to_its_own_precision(kv_dtype: str, bound: float) -> None:
    k, v, stored = page(kv_dtype)
    assert (read(stored.k, k) - k).abs().max() <= bound
    assert (read(stored.v, v) - v).abs().max() <= bound


def test_int8_error_is_at_most_half_a_step_of_its_own_scale() -> None:
    k, v, stored = page("int8")
    assert stored.k.scale.shape == (3, 2, 1, 16)  # per channel
    assert stored.v.scale.shape == (3, 2, 7, 1)  # per token
    for original, kept in ((k, stored.k), (v, stored.v)):
        assert ((read(kept, original) - original).abs() <= kept.scale * 0.501).all()


def test_a_large_channel_does_not_cost_the_others_precision() -> None:
    """Why K is quantised per channel: a few channels are large for every token."""
    k, _, _ = page("fp32")
    k[..., 3] *= 1000
    error = (read(quantize(k, "int8", axis=2), k) - k).abs()
    assert error[..., :3].max() < 0.02


def test_int8_takes_about_a_quarter_of_fp32() -> None:
    k = torch.randn(8, 8, 546, 128)
    exact = quantize(k, "fp32", axis=2)
    assert quantize(k, "int8", axis=2).nbytes < exact.nbytes * 0.26


@pytest.mark.parametrize("kv_dtype", ["int8", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen_in_every_storage(kv_dtype: KVDtype, broken: float) -> None:
    k = torch.ones(1, 2, 4, 8)
    assert quantize(k, kv_dtype, axis=2).is_finite
    k[0, 1, 2, 3] = broken
    assert not quantize(k, kv_dtype, axis=2).is_finite


def test_all_zero_tokens_survive_int8() -> None:
    k = torch.zeros(1, 1, 4, 8)
    assert torch.equal(read(quantize(k, "int8", axis=2), k), k)


def test_lossless_storage_is_the_models_own_type() -> None:
    assert lossless(torch.bfloat16) == "bf16"
    assert lossless(torch.float32) == "fp32"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_dtype", ["int8", "bf16", "fp32"])
def test_a_whole_page_expands_as_it_does_layer_by_layer(
    kv_dtype: KVDtype, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    for axis in (2, 3):
        stored = quantize(torch.randn(2, 3, 5, 4), kv_dtype, axis=axis)
        before = stored.values.clone()
        ready = stored.expanded(dtype)
        assert ready.dtype == dtype
        for layer in range(2):
            out = torch.empty(3, 5, 4, dtype=dtype)
            stored.write(layer, out)
            assert torch.equal(ready[layer], out)
        assert torch.equal(stored.values, before)


@pytest.mark.parametrize("kv_dtype", ["int8", "fp32"])
def test_an_expanded_page_has_k_and_v_in_one_piece_of_its_own(kv_dtype: KVDtype) -> None:
    _, _, stored = page(kv_dtype)
    ready = stored.expanded(torch.float32)
    k, v = (x.expanded(torch.float32) for x in (stored.k, stored.v))
    assert ready.both is not None and torch.equal(ready.both, torch.cat([k, v]))
    assert torch.equal(ready.k.values, k) and torch.equal(ready.v.values, v)
    ready.both[0], ready.both[-1] = 5.0, 6.0
    assert (ready.k.values[0] == 5).all() and (ready.v.values[-1] == 6).all()
    assert torch.equal(stored.k.expanded(torch.float32), k), "the stored page was changed"
    assert ready.expanded(torch.float32) is ready
    assert ready.expanded(torch.bfloat16).both.dtype == torch.bfloat16
