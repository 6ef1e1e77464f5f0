"""What the page inspector draws, as plain JSON: masks, maps, and scales shared by all of them.

Every range is taken over all layers and tokens of one explanation, so that two maps can be
compared by eye; the browser never rescales one map unless the user asks for it.
"""

from __future__ import annotations

import numpy as np

from mrr.config import Pruner
from mrr.prune import kept_mask, kept_tokens
from mrr.types import AttentionTrace, Explanation, KeepMap, Occlusion
from ui.packing import pack_mask, pack_values

Json = dict[str, object]

# How each ranking of Occlusion.top_deltas is called, in the order the verdict prefers them; the
# last is chosen on the measure itself and so proves nothing.
RANKINGS = {
    "contrast": "attention minus neutral queries",
    "attention": "attention",
    "importance": "the pruner's importance",
    "occlusion": "this occlusion map itself",
}
# What one page's attention maps may weigh before base64; later query tokens are left out.
MAX_MAP_BYTES = 1_500_000
PAGE = 1  # position of the page in the last axis of AttentionTrace.mass


def grid_disagreement(explanation: Explanation) -> str | None:
    """A sentence with both counts where a map does not fit the page's grid, else None."""
    grid = explanation.keep.kept.shape
    for name, array in _named_grids(explanation):
        if array.shape[-2:] != grid:
            return (
                f"Nothing is drawn: the page has {_cells(grid)} and {name} has "
                f"{_cells(array.shape[-2:])}. They must agree; trace the page again."
            )
    return None


def keep_payload(keep: KeepMap) -> Json:
    """The mask of this very forward pass, its importance, and controls at the same budget."""
    importance = keep.importance
    return {
        "pruner": keep.pruner,
        "ratio": keep.keep_ratio,
        "mask": pack_mask(keep.kept),
        "n_kept": int(keep.kept.sum()),
        "importance": None if importance is None else pack_values(importance),
        "range": None if importance is None else _span(importance),
        "controls": [
            {"name": name, "mask": pack_mask(mask)} for name, mask in control_masks(keep).items()
        ],
    }


def control_masks(keep: KeepMap) -> dict[Pruner, np.ndarray]:
    """(R, C) bool masks that keep as many cells as keep does, one per pruner that it is not."""
    n_kept, grid = int(keep.kept.sum()), keep.kept.shape
    if n_kept == keep.kept.size:
        return {}
    pruners: list[Pruner] = ["uniform", "random"]
    if keep.importance is not None:
        pruners.insert(0, "embedder")
    return {
        pruner: kept_mask(
            kept_tokens(pruner, n_kept / keep.kept.size, grid, importance=keep.importance), grid
        )
        for pruner in pruners
        if pruner != keep.pruner
    }


def attention_payload(trace: AttentionTrace, kept: np.ndarray) -> Json | None:
    """Maps of every band layer for the whole query and its tokens; None where none was traced.

    maps: (layers, 2 + tokens, R, C), the first two over the whole query: mean, then maximum.
    neutral: (layers, 2, R, C), what content-free queries gave a word, then the scoring token.
    """
    layers = sorted(trace.page_maps)
    if not layers:
        return None
    shown = shown_tokens(trace, len(layers) * kept.size)
    start, end = trace.query_span
    stack = np.stack([_whole_and_tokens(trace, layer, shown) for layer in layers])
    mass = trace.mass[layers].mean(axis=1)[:, :, PAGE]  # (layers, n)
    whole = mass[:, start:end].mean(axis=1, keepdims=True)
    return {
        "layers": layers,
        "tokens": _token_labels(trace, shown),
        "left_out": end - start - sum(start <= index < end for index in shown),
        "maps": pack_values(stack),
        "mass": np.concatenate([whole, whole, mass[:, shown]], axis=1).round(5).tolist(),
        # Attention is a share, so its scale begins at 0.
        "range": [0.0, float(stack[:, :, kept].max())],
        "range_without_sinks": [0.0, float(stack[:, :, _plain(trace, kept)].max())],
        "sinks": pack_mask(trace.sinks & kept),
        "n_sinks": int((trace.sinks & kept).sum()),
        **_neutral_payload(trace, layers, stack, shown, kept),
    }


def occlusion_payload(occlusion: Occlusion) -> Json:
    """The measured change of the logit per block, on a scale symmetric around zero."""
    return {
        "delta": pack_values(occlusion.delta),
        "limit": float(np.abs(occlusion.delta).max()),
        "block": occlusion.block,
        "base_logit": occlusion.base_logit,
        "n_top": occlusion.n_top,
        "top": {
            said: float(occlusion.top_deltas[name])
            for name, said in RANKINGS.items()
            if name in occlusion.top_deltas
        },
        "random": [float(delta) for delta in occlusion.random_deltas],
        "verdict": occlusion_verdict(occlusion),
    }


def occlusion_verdict(occlusion: Occlusion) -> str:
    """Whether hiding the cells that attention ranks first did more than hiding random ones."""
    random, n = occlusion.random_deltas, len(occlusion.random_deltas)
    name = next((k for k in RANKINGS if k in occlusion.top_deltas and k != "occlusion"), None)
    if name is None or n == 0:
        return "No control was run: read the map as a measurement of this one page, no more."
    delta = occlusion.top_deltas[name]
    spread = f" ± {random.std(ddof=1):.2f}" if n > 1 else ""
    facts = (
        f"Hiding the {occlusion.n_top} cells ranked first by {RANKINGS[name]}: {signed(delta)} "
        f"logit; as many random cells: {signed(float(random.mean()))}{spread} (n = {n})."
    )
    as_low = int((random <= delta).sum())
    if as_low == 0:
        return f"{facts} A larger drop than every random draw."
    return (
        f"{facts} {as_low} of {n} random draws lowered it at least as much, so that ranking is "
        "no explanation here."
    )


def shown_tokens(trace: AttentionTrace, cells_per_token: int) -> list[int]:
    """Positions to send: the query's words, as far as they fit, and the last, which scores."""
    start, end = trace.query_span
    room = max(1, MAX_MAP_BYTES // (2 * cells_per_token) - 5)
    last = len(trace.tokens) - 1
    shown = list(range(start, min(end, start + room)))
    return shown if last in shown else [*shown, last]


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, with a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _whole_and_tokens(trace: AttentionTrace, layer: int, shown: list[int]) -> np.ndarray:
    maps = trace.page_maps[layer]
    query = maps[slice(*trace.query_span)]
    return np.concatenate([query.mean(0, keepdims=True), query.max(0, keepdims=True), maps[shown]])


def _token_labels(trace: AttentionTrace, indices: list[int]) -> list[Json]:
    start, end = trace.query_span
    return [
        {"index": i, "text": trace.tokens[i], "role": "query" if start <= i < end else "score"}
        for i in indices
    ]


def _neutral_payload(
    trace: AttentionTrace, layers: list[int], stack: np.ndarray, shown: list[int], kept: np.ndarray
) -> Json:
    """What content-free queries gave the same cells, and the scale of the difference."""
    if not all(layer in trace.neutral_maps for layer in layers):
        return {"neutral": None}
    start, end = trace.query_span
    neutral = np.stack([trace.neutral_maps[layer][[start, -1]] for layer in layers])
    rows = [0, 0, *(0 if start <= index < end else 1 for index in shown)]
    contrast = np.abs(stack - neutral[:, rows])
    return {
        "neutral": pack_values(neutral),
        "neutral_queries": list(trace.neutral_queries),
        "contrast_limit": float(contrast[:, :, kept].max()),
        "contrast_limit_without_sinks": float(contrast[:, :, _plain(trace, kept)].max()),
    }


def _plain(trace: AttentionTrace, kept: np.ndarray) -> np.ndarray:
    """Kept cells that are no sinks; all kept cells where every one of them is a sink."""
    plain = kept & ~trace.sinks
    return plain if plain.any() else kept


def _named_grids(explanation: Explanation) -> list[tuple[str, np.ndarray]]:
    named = [
        *((f"the attention of layer {i}", m) for i, m in explanation.attention.page_maps.items()),
        *(
            (f"the neutral map of layer {i}", m)
            for i, m in explanation.attention.neutral_maps.items()
        ),
    ]
    named.append(("the sink mask", explanation.attention.sinks))
    if explanation.keep.importance is not None:
        named.append(("the importance", explanation.keep.importance))
    if explanation.occlusion is not None:
        named.append(("the occlusion map", explanation.occlusion.delta))
    return named


def _cells(shape: tuple[int, ...]) -> str:
    rows, columns = shape
    return f"{rows} × {columns} = {rows * columns} cells"


def _span(values: np.ndarray) -> list[float]:
    return [float(values.min()), float(values.max())]
