"""Muon for matrices, AdamW for the rest. Source: Muon, K. Jordan et al., 2024."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mrr.train.run import product_dtype


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack (..., rows, cols), by Newton-Schulz."""
    a, b, c = 3.4445, -4.7750, 2.0315
    # The update needs no more than bfloat16, which is six times faster where it is native.
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.to(product_dtype(x.device.type))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised. `splits` cuts fused matrices into their parts."""

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95, splits: int = 1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "splits": splits})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for params in alike.values():
                self._move(params, group)

    def _move(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape together: one by one, a GPU would wait for its orders."""
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        pulls = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(buffers, pulls, 1 - group["momentum"])
        updates = torch._foreach_lerp(pulls, buffers, group["momentum"])
        parts = torch.stack(updates).unflatten(1, (group["splits"], -1))
        rows, cols = parts.shape[-2:]
        moved = orthogonalize(parts).reshape(len(params), *params[0].shape)
        torch._foreach_add_(
            params, list(moved.unbind()), alpha=-group["lr"] * max(1.0, rows / cols) ** 0.5
        )


def optimizers(
    named: Iterable[tuple[str, nn.Parameter]],
    matrix_lr: float,
    other_lr: float,
    slow: tuple[str, ...] = (),
    slow_lr: float = 1e-4,
    gentle: tuple[str, ...] = (),
) -> list[torch.optim.Optimizer]:
    """Muon on hidden matrices; AdamW on vectors, on heads, and at slow_lr on names in `slow`.

    gentle: names of matrices that Muon moves at a tenth of its rate.
    """
    fused: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    gently: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    slowly: list[nn.Parameter] = []
    for name, p in named:
        if not p.requires_grad:
            continue
        if any(mark in name for mark in slow):
            slowly.append(p)
        elif p.ndim == 2 and "head" not in name:
            held = any(mark in name for mark in gentle)
            (fused if "qkv" in name else gently if held else matrices).append(p)
        else:
            others.append(p)
    muon: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": fused, "splits": 3},
        {"params": gently, "lr": matrix_lr / 10},
    ]
    adam: list[dict[str, Any]] = [
        {"params": others, "lr": other_lr},
        {"params": slowly, "lr": slow_lr},
    ]
    built: list[torch.optim.Optimizer] = []
    if matrices or fused or gently:
        built.append(Muon([g for g in muon if g["params"]], lr=matrix_lr))
    if others or slowly:
        built.append(
            torch.optim.AdamW(
                [g for g in adam if g["params"]], lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0
            )
        )
    for optimizer in built:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return built


def set_progress(
    built: Iterable[torch.optim.Optimizer], step: int, done: float, warmup: int = 100
) -> float:
    """Linear warm-up, flat, then linear to 5% over the last 40%. Returns the factor used.

    done: share of the run that is behind.
    """
    factor = min(1.0, (step + 1) / warmup, max(0.05, (1 - done) / 0.4))
    for optimizer in built:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
    return factor
