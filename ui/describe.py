"""Settings in words, so that the header, the history and the report say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

SYSTEM_NAMES = {"mini": "mini", "dense-reuse": "dense + reuse", "original": "original"}


def describe(reranker: MiniReranker) -> str:
    """`tiny-reranker, exit 8 of 12, band 4-8, keep 50% by embedder, int8`, never a path."""
    config, start_end = reranker.config, reranker.config.band or (0, 0)
    keep = (
        "keep all"
        if config.keep_ratio == 1.0
        else f"keep {config.keep_ratio:.0%} by {config.pruner}"
    )
    return (
        f"{model_name(reranker)}, exit {config.exit_layer} of {reranker.loaded.n_layers}, "
        f"band {start_end[0]}–{start_end[1]}, {keep}, {config.kv_dtype}"
    )


def model_name(reranker: MiniReranker) -> str:
    """Last part of a folder or hub id."""
    return str(reranker.loaded.name).rstrip("/").rsplit("/", 1)[-1]


def device_name(reranker: MiniReranker) -> str:
    """`CPU`, `CUDA`."""
    return str(reranker.device).upper()
