"""The vision tower on windows: the stock weights of Qwen2.5-VL, run as one dense batch.

With `fullatt_block_indexes=[]` no attention crosses a 256 x 256 px window, so a page is a batch of
windows and a crop of one window is the same problem as a page. The stock forward loops over the
windows in Python; here they are one batch. tests/train/test_tower.py holds the two equal.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH_PX = 16
CELL_PX = 32
WINDOW_PX = 256
CELLS = WINDOW_PX // CELL_PX  # along a side of a window
PATCHES = WINDOW_PX // PATCH_PX


def to_patches(windows: Tensor) -> Tensor:
    """Grey windows to patches in merge-block order, scaled as the image processor does.

    windows: (n, 256, 256) uint8. Returns (n, 256, 256) float in [-1, 1]: the four patches of a
    cell follow each other, cells row-major, as the stock tower orders them inside a window.
    """
    n = windows.shape[0]
    grid = windows.view(n, CELLS, 2, PATCH_PX, CELLS, 2, PATCH_PX).permute(0, 1, 4, 2, 5, 3, 6)
    return grid.reshape(n, PATCHES * PATCHES, PATCH_PX * PATCH_PX).float() / 127.5 - 1.0


def patch_positions() -> Tensor:
    """(256, 2) row and column of each patch of a window, in merge-block order."""
    row, col = torch.meshgrid(torch.arange(PATCHES), torch.arange(PATCHES), indexing="ij")
    grid = torch.stack([row, col], -1).view(CELLS, 2, CELLS, 2, 2)
    return grid.permute(0, 2, 1, 3, 4).reshape(-1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def _norm(x: Tensor, norm: Any) -> Tensor:
    """RMSNorm in float32, like the stock module, leaving in the dtype that matmuls want."""
    return F.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.variance_epsilon)


def rope_tables(visual: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, (256, head_dim), of the patches of one window."""
    # A window's own coordinates stand for the page's: rotary scores depend on differences only.
    positions = patch_positions().to(device)
    x = visual.patch_embed.proj.weight
    cos, sin = visual.rotary_pos_emb(x, positions)
    return cos, sin


def block(layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One transformer block over x: (n, 256, C); attention stays within each window."""
    n, t, c = x.shape
    attn = layer.attn
    qkv = attn.qkv(_norm(x, layer.norm1)).view(n, t, 3, attn.num_heads, attn.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    cos, sin = cos.to(v.dtype), sin.to(v.dtype)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if x.is_cuda:
        out = F.scaled_dot_product_attention(q, k, v, scale=attn.scaling)
    else:  # in bfloat16 on a CPU this takes half the time of the fused kernel
        out = ((q * attn.scaling) @ k.mT).softmax(-1).to(v.dtype) @ v
    x = x + attn.proj(out.transpose(1, 2).reshape(n, t, c))
    mlp = layer.mlp
    y = _norm(x, layer.norm2)
    return x + mlp.down_proj(F.silu(mlp.gate_proj(y)) * mlp.up_proj(y))


def merge(merger: Any, x: Tensor) -> Tensor:
    """(n, 256, C) patches to (n, 64, D) cells."""
    n = x.shape[0]
    flat = _norm(x, merger.ln_q).reshape(n, CELLS * CELLS, merger.hidden_size)
    return merger.mlp(flat)


def encode(visual: Any, windows: Tensor, tap: int) -> tuple[Tensor, Tensor]:
    """Run grey windows through the tower.

    windows: (n, 256, 256) uint8. Returns (cells, taps): cells (n, 64, D) row-major, and taps
    (n, 256, C), the patches after block `tap`, in merge-block order, for the character head.
    """
    # A grey page has three equal channels, so the kernel may be summed (over the frames too).
    kernel = visual.patch_embed.proj.weight.sum((1, 2)).flatten(1)  # (C, 256)
    x = F.linear(to_patches(windows), kernel).float()
    cos, sin = rope_tables(visual, windows.device)
    taps = x
    for index, layer in enumerate(visual.blocks):
        x = block(layer, x, cos, sin)
        if index == tap:
            taps = x
    return merge(visual.merger, x).float(), taps


def aim_heads(
    visual: Any, sharpness: float = 6.0, generator: torch.Generator | None = None
) -> None:
    """Start each attention head as a soft convolution tap: it looks at one neighbouring patch.

    Rotary scores of two constant vectors depend on the displacement alone, so a bias on q and k
    makes a head attend to a chosen offset before anything is learned. Reading is local; without
    this the tower first has to discover that.
    """
    offsets = [(0, -1), (0, 1), (-1, 0), (1, 0), (0, -2), (0, 2), None]
    inv_freq = visual.rotary_pos_emb.inv_freq
    n_freq = inv_freq.numel()
    for layer in visual.blocks:
        attn = layer.attn
        heads, dim, c = attn.num_heads, attn.head_dim, attn.dim
        with torch.no_grad():
            weight = attn.qkv.weight.view(3, heads, dim, c)
            weight[:2].normal_(0, 0.3 / math.sqrt(c), generator=generator)
            weight[2].normal_(0, 1 / math.sqrt(c), generator=generator)
            bias = attn.qkv.bias.view(3, heads, dim)
            bias.zero_()
            for head in range(heads):
                offset = offsets[head % len(offsets)]
                if offset is None:
                    continue
                # Query at p, key at p + offset: rotating the query's constant by the offset
                # makes the two line up exactly there.
                amplitude = torch.zeros(2, n_freq)
                amplitude[:, : max(1, n_freq // 3)] = math.sqrt(sharpness * math.sqrt(dim))
                angle = torch.stack([inv_freq * offset[0], inv_freq * offset[1]])
                real, imag = (
                    (amplitude * angle.cos()).flatten(),
                    (amplitude * angle.sin()).flatten(),
                )
                bias[0, head] = torch.cat([real, imag])
                bias[1, head] = torch.cat([amplitude.flatten(), torch.zeros(2 * n_freq)])


def whiten_patches(visual: Any, pages: Tensor) -> None:
    """Start the patch embedding as a PCA whitening of real patches; a random start learns slowly.

    pages: (n, H, W) uint8, whole windows.
    """
    n, height, width = pages.shape
    windows = pages.view(n, height // WINDOW_PX, WINDOW_PX, width // WINDOW_PX, WINDOW_PX)
    patches = to_patches(windows.transpose(2, 3).reshape(-1, WINDOW_PX, WINDOW_PX)).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    n_kept = min(visual.patch_embed.embed_dim, len(values))
    values, vectors = values.flip(0)[:n_kept], vectors.flip(1)[:, :n_kept]
    # The floor keeps faint directions (noise) from being blown up to the size of strokes.
    scale = (values + 1e-3 * values[0]).rsqrt()
    kernel = torch.zeros(visual.patch_embed.embed_dim, patches.shape[1])
    kernel[:n_kept] = (vectors * scale).T
    weight = visual.patch_embed.proj.weight
    with torch.no_grad():
        shared = kernel.view(-1, 1, 1, PATCH_PX, PATCH_PX) / (weight.shape[1] * weight.shape[2])
        weight.copy_(shared.expand_as(weight))
