"""Settings in words, so that the header, the history and the report say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrr.config import layer_range

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

# What layer numbers mean, wherever people read or set them.
LAYERS_ARE = "Layers are counted from 0, and a range includes both its ends."


def describe(reranker: MiniReranker) -> str:
    """`tiny-reranker, exit after layer 7 of 0–11, band 4–7, keep 50% by embedder, int8`, never a
    path."""
    config = reranker.config
    keep = (
        "keep all"
        if config.keep_ratio == 1.0
        else f"keep {config.keep_ratio:.0%} by {config.pruner}"
    )
    return (
        f"{model_name(reranker)}, exit {exit_after(reranker)}, band {band(reranker)}, {keep}, "
        f"{config.kv_dtype}"
    )


def exit_after(reranker: MiniReranker) -> str:
    """`after layer 7 of 0–11`."""
    exit_layer = reranker.config.exit_layer
    assert exit_layer is not None
    return f"after layer {exit_layer - 1} of {layer_range((0, reranker.loaded.n_layers))}"


def band(reranker: MiniReranker) -> str:
    """`4–7`."""
    assert reranker.config.band is not None
    return layer_range(reranker.config.band)


def model_name(reranker: MiniReranker) -> str:
    """Last part of a folder or hub id."""
    return _last_part(reranker.loaded.name)


def _last_part(name: object) -> str:
    return str(name).rstrip("/").rsplit("/", 1)[-1]


def embedder_name(reranker: MiniReranker) -> str:
    """The same of the first stage; empty where there is none."""
    embedder = reranker.embedder
    return "" if embedder is None else _last_part(embedder.loaded.name)


def device_name(reranker: MiniReranker) -> str:
    """`CPU`, `CUDA`."""
    return str(reranker.device).upper()
