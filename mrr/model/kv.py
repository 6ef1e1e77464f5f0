"""Page K/V: what it holds, how it is stored, and how many bytes that takes.

Int8 is per channel for K (a few channels are large for every token) and per token for V, the
layout that the K/V quantisation literature found to lose least.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrr.config import KVDtype

# The store's arrays are read-only, and nothing here ever writes to page K/V. A filter for as long
# as each takes would be the whole process's too, and two threads could leave it behind.
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)

_DTYPES: dict[KVDtype, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Quantized:
    """A stored tensor: values (L, H, T, D), and for int8 its float32 scale, broadcastable."""

    values: Tensor
    scale: Tensor | None

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    @property
    def is_finite(self) -> bool:
        """Whether no NaN or infinity is stored; int8 has them in its scale."""
        return bool(torch.isfinite(self.values if self.scale is None else self.scale).all())

    def write(self, layer: int, out: Tensor) -> None:
        """Write layer `layer`, in out's dtype, into out, shaped as that layer of the values."""
        out.copy_(self.values[layer])
        if self.scale is not None:  # one torch.mul would make a float32 copy of the values first
            out.mul_(self.scale[layer])

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """The values in a compute type, without a scale."""
        if self.scale is None:
            return self.values.to(dtype)
        return self.values.to(dtype).mul_(self.scale)


@dataclass(frozen=True, slots=True)
class KVPage:
    """K/V of one page's own tokens in the band layers: the kept visual ones, then vision_end.

    k, v: (L, H, T, D), rotary applied at the original positions. next_position: the M-RoPE
    position of the first token after the page. kept: (n_kept,) ascending indices into the grid.
    both: (2L, H, T, D), the layers of K and then of V in one piece of memory, where they are.
    """

    k: Quantized
    v: Quantized
    next_position: int
    grid: tuple[int, int]
    kept: np.ndarray
    both: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        return self.k.values.shape[2]

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def joined(self, dtype: torch.dtype) -> Tensor:
        """`both` in a compute type; made where it is not there."""
        if self.both is not None and self.both.dtype == dtype:
            return self.both
        return torch.cat([self.k.expanded(dtype), self.v.expanded(dtype)])

    def expanded(self, dtype: torch.dtype) -> KVPage:
        """The same page with `both` in a compute type; itself where it has that."""
        both = self.joined(dtype)
        if both is self.both:
            return self
        k, v = (Quantized(half, None) for half in both.chunk(2))
        return replace(self, k=k, v=v, both=both)


def lossless(dtype: torch.dtype) -> KVDtype:
    """The storage that keeps a model's own K/V exactly."""
    return next(name for name, stored in _DTYPES.items() if stored == dtype)


def quantize(x: Tensor, kv_dtype: KVDtype, *, axis: int) -> Quantized:
    """Store x (L, H, T, D); int8 takes the absolute maximum along `axis` as its scale."""
    if kv_dtype != "int8":
        return Quantized(x.to(_DTYPES[kv_dtype]).contiguous(), None)
    x = x.float()
    scale = x.abs().amax(dim=axis, keepdim=True).clamp_min(1e-8) / 127.0
    return Quantized((x / scale).round().to(torch.int8).contiguous(), scale)


def quantize_page(
    k: Tensor,
    v: Tensor,
    kv_dtype: KVDtype,
    *,
    next_position: int,
    grid: tuple[int, int],
    kept: np.ndarray,
) -> KVPage:
    """Per channel (over tokens) for K, per token (over channels) for V."""
    return KVPage(
        quantize(k, kv_dtype, axis=2), quantize(v, kv_dtype, axis=3), next_position, grid, kept
    )


def pack(page: KVPage) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and JSON for the store; bf16 travels as the uint16 that holds its bits."""
    arrays = {"kept": page.kept.astype(np.int32)}
    for name, stored in (("k", page.k), ("v", page.v)):
        values = stored.values.cpu()
        bits = values.view(torch.uint16) if values.dtype == torch.bfloat16 else values
        arrays[name] = bits.numpy()
        if stored.scale is not None:
            arrays[f"{name}_scale"] = stored.scale.cpu().numpy()
    meta = {
        "next_position": page.next_position,
        "grid": list(page.grid),
        "dtype": str(page.k.values.dtype).removeprefix("torch."),
    }
    return arrays, meta


def unpack(arrays: Any, meta: Any, device: torch.device) -> KVPage:
    """The inverse of pack; on the CPU it copies nothing."""

    def stored(name: str) -> Quantized:
        values = torch.from_numpy(arrays[name])
        if meta["dtype"] == "bfloat16":
            values = values.view(torch.bfloat16)
        scale = arrays.get(f"{name}_scale")
        return Quantized(
            values.to(device), None if scale is None else torch.from_numpy(scale).to(device)
        )

    return KVPage(
        k=stored("k"),
        v=stored("v"),
        next_position=int(meta["next_position"]),
        grid=(int(meta["grid"][0]), int(meta["grid"][1])),
        kept=np.asarray(arrays["kept"]),
    )
