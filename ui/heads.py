"""Each attention head's own map of the page, for the whole query, small enough to send.

Only kept cells travel, and of very many heads those that give the page most; single words have
the mean over the heads alone (ui/maps.py).
"""

from __future__ import annotations

import numpy as np

from mrr.types import AttentionTrace
from ui.packing import Json, pack_values

# What the maps of all heads of one page may weigh before base64.
MAX_HEAD_BYTES = 1_500_000


def heads_payload(trace: AttentionTrace, kept: np.ndarray, plain: np.ndarray) -> Json:
    """Maps of the heads of every band layer, on one scale a layer: layers differ by powers of ten.

    kept, plain: (R, C) bool, plain those of the kept cells that set the scale without sinks.
    shown: (layers, S) numbers of the heads that are sent. maps, neutral: (layers, S, kept cells).
    mass: (layers, S) share of a head's attention that goes to the page. limits: (layers,) each.
    """
    layers = sorted(trace.head_maps)
    # Rounded as they travel, so that no cell lies outside its scale.
    maps, neutral = (
        np.stack([of[layer][:, kept] for layer in layers]).astype(np.float16).astype(np.float32)
        for of in (trace.head_maps, trace.neutral_head_maps)
    )
    mass = trace.mass[layers][:, :, slice(*trace.query_span), 1].mean(axis=2)
    shown = shown_heads(mass, 2 * maps[:, 0].nbytes)
    contrast = np.abs(maps - neutral)
    inside = plain[kept]
    pick = shown[:, :, None]
    return {
        "shown": shown.tolist(),
        "n_heads": maps.shape[1],
        "maps": pack_values(np.take_along_axis(maps, pick, axis=1)),
        "neutral": pack_values(np.take_along_axis(neutral, pick, axis=1)),
        "mass": np.take_along_axis(mass, shown, axis=1).round(5).tolist(),
        "limit": maps.max(axis=(1, 2)).tolist(),
        "limit_without_sinks": maps[..., inside].max(axis=(1, 2)).tolist(),
        "contrast_limit": contrast.max(axis=(1, 2)).tolist(),
        "contrast_limit_without_sinks": contrast[..., inside].max(axis=(1, 2)).tolist(),
    }


def shown_heads(mass: np.ndarray, bytes_a_head: int) -> np.ndarray:
    """(layers, S) heads to send, in their order: all, or those with the most mass on the page.

    mass: (layers, heads). bytes_a_head: float32 of one head of every layer, maps and neutral; they
    travel as float16.
    """
    room = max(1, MAX_HEAD_BYTES // (bytes_a_head // 2))
    return np.sort(np.argsort(-mass, axis=1, kind="stable")[:, :room], axis=1)
