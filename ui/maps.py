"""What the page inspector draws, as plain JSON: masks, maps, and scales shared by all of them.

Every range is taken over all layers and tokens of one explanation, so that two maps can be
compared by eye; the browser never rescales one map unless the user asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrr.config import Pruner
from mrr.explain.maps import Word, words
from mrr.explain.verdict import occlusion_verdict
from mrr.prune import kept_mask, kept_tokens
from mrr.types import AttentionTrace, Explanation, KeepMap, Occlusion
from ui.heads import heads_payload
from ui.packing import Json, pack_mask, pack_values

# How each ranking of Occlusion.top_deltas is called; the last is chosen on the measure itself and
# so proves nothing.
RANKINGS = {
    "contrast": "attention minus neutral queries",
    "attention": "attention",
    "importance": "the pruner's importance",
    "occlusion": "this occlusion map itself",
}
# What one page's attention maps may weigh before base64; later words are left out.
MAX_MAP_BYTES = 1_500_000
SCORE = -1  # stands for the scoring position where words are counted from 0
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


def attention_payload(trace: AttentionTrace, query: str, kept: np.ndarray) -> Json | None:
    """Maps of every band layer for the query, its words and its heads; None where none was traced.

    maps: (layers, 2 + tokens, R, C), the first two over the whole query: mean over its rows, then
    maximum over its words. A token is a word, or the scoring position.
    focus: the layer where a word of the query stands out most over neutral queries.
    neutral: (layers, 2, R, C), what content-free queries gave a word, then the scoring position.
    """
    layers = sorted(trace.page_maps)
    if not layers:
        return None
    typed = words(trace, query)
    shown = shown_words(typed, len(layers) * kept.size)
    whole = range(*trace.query_span)
    rows = [word.rows for word in shown] + [range(len(trace.tokens) - 1, len(trace.tokens))]
    stack = _stack(trace, typed, rows)
    mass = trace.mass[layers].mean(axis=1)[:, :, PAGE]  # (layers, n)
    plain = _plain(trace, kept)
    return {
        "layers": layers,
        "focus": layers[_focus(_contrast(trace, layers, stack), plain)],
        "tokens": [
            *({"index": i, "text": word.text, "role": "query"} for i, word in enumerate(shown)),
            {"index": SCORE, "text": "", "role": "score"},
        ],
        "left_out": len(typed) - len(shown),
        "maps": pack_values(stack),
        "mass": np.stack([mass[:, own].mean(axis=1) for own in (whole, whole, *rows)], axis=1)
        .round(5)
        .tolist(),
        # Attention is a share, so its scale begins at 0.
        "limit": float(stack[:, :, kept].max()),
        "limit_without_sinks": float(stack[:, :, plain].max()),
        "sinks": pack_mask(trace.sinks & kept),
        "n_sinks": int((trace.sinks & kept).sum()),
        "heads": heads_payload(trace, kept, plain),
        **_neutral_payload(trace, layers, stack, kept),
    }


@dataclass(frozen=True, slots=True)
class FirstMap:
    """The map that the inspector opens with: any word of the query, less what neutral queries pay.

    layer: where a word stands out most. values: (R, C). shown: (R, C) bool, neither pruned nor a
    sink. limit: end of the scale that all layers and words share.
    """

    layer: int
    values: np.ndarray
    shown: np.ndarray
    limit: float


def first_map(trace: AttentionTrace, query: str, kept: np.ndarray) -> FirstMap | None:
    """That map; None where none was traced."""
    layers = sorted(trace.page_maps)
    if not layers:
        return None
    typed, plain = words(trace, query), _plain(trace, kept)
    contrast = _contrast(trace, layers, _stack(trace, typed, [word.rows for word in typed]))
    at = _focus(contrast, plain)
    return FirstMap(layers[at], contrast[at, 1], plain, float(np.abs(contrast[..., plain]).max()))


def _stack(trace: AttentionTrace, typed: list[Word], rows: list[range]) -> np.ndarray:
    """(layers, 2 + rows, R, C): the query's mean, the maximum over its words, and each of rows."""
    whole = range(*trace.query_span)

    def of(layer: int) -> np.ndarray:
        maps = trace.page_maps[layer]
        most = np.max([maps[word.rows].mean(axis=0) for word in typed], axis=0)
        return np.stack([maps[whole].mean(axis=0), most, *(maps[own].mean(axis=0) for own in rows)])

    return np.stack([of(layer) for layer in sorted(trace.page_maps)])


def _focus(contrast: np.ndarray, plain: np.ndarray) -> int:
    """Index of the layer where a word of the query stands out most over neutral queries."""
    return int(np.argmax(contrast[:, 1][:, plain].max(axis=1)))


def occlusion_payload(occlusion: Occlusion, kept: np.ndarray) -> Json:
    """The measured change of the logit per block, on a scale symmetric around zero."""
    return {
        "delta": pack_values(occlusion.delta),
        "measured": pack_mask(occlusion.measured),
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
        "stopped": stopped_sentence(occlusion, kept),
    }


def stopped_sentence(occlusion: Occlusion, kept: np.ndarray) -> str:
    """How far a measurement came that was stopped; empty for a whole one."""
    if occlusion.measured.all():
        return ""
    n = int((occlusion.measured & kept).sum())
    return (
        f"Stopped after {n} of {kept.sum()} cells; the others have no colour. "
        "Measure occlusion again for all of them."
    )


def shown_words(typed: list[Word], cells_a_word: int) -> list[Word]:
    """The words that get a map of their own: as many, from the first, as may be sent."""
    return typed[: max(1, MAX_MAP_BYTES // (2 * cells_a_word) - 5)]


def _neutral_payload(
    trace: AttentionTrace, layers: list[int], stack: np.ndarray, kept: np.ndarray
) -> Json:
    """What content-free queries gave the same cells, and the scale of the difference."""
    contrast = np.abs(_contrast(trace, layers, stack))
    return {
        "neutral": pack_values(_neutral(trace, layers)),
        "neutral_queries": list(trace.neutral_queries),
        "contrast_limit": float(contrast[:, :, kept].max()),
        "contrast_limit_without_sinks": float(contrast[:, :, _plain(trace, kept)].max()),
    }


def _neutral(trace: AttentionTrace, layers: list[int]) -> np.ndarray:
    """(layers, 2, R, C): what content-free queries gave a word, and the scoring position."""
    start, _ = trace.query_span
    return np.stack([trace.neutral_maps[layer][[start, -1]] for layer in layers])


def _contrast(trace: AttentionTrace, layers: list[int], stack: np.ndarray) -> np.ndarray:
    """The maps of attention_payload less what neutral queries gave the same cells."""
    rows = [0] * (stack.shape[1] - 1) + [1]
    return stack - _neutral(trace, layers)[:, rows]


def _plain(trace: AttentionTrace, kept: np.ndarray) -> np.ndarray:
    """Kept cells that are no sinks; all kept cells where every one of them is a sink."""
    plain = kept & ~trace.sinks
    return plain if plain.any() else kept


def _named_grids(explanation: Explanation) -> list[tuple[str, np.ndarray]]:
    trace = explanation.attention
    named = [
        (f"{name} of layer {layer}", maps)
        for name, of_layers in (
            ("the attention", trace.page_maps),
            ("the heads", trace.head_maps),
            ("the neutral map", trace.neutral_maps),
            ("the neutral heads", trace.neutral_head_maps),
        )
        for layer, maps in of_layers.items()
    ]
    named.append(("the sink mask", trace.sinks))
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
