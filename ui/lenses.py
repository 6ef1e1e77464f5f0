"""The relevance of all candidates layer by layer: values, ranks, and when the order settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from mrr.types import Lens

Mode = Literal["logit", "probability", "rank"]
Curves = dict[str, np.ndarray]  # page id -> one value a layer


def ran(lenses: Mapping[str, Lens], mode: Mode) -> Curves:
    """The layers of the fast path, (E,) each; a rank is NaN where all candidates are equal."""
    return _shown({page_id: lens.mini for page_id, lens in lenses.items()}, mode)


def full(lenses: Mapping[str, Lens], mode: Mode) -> Curves:
    """The layers of the separate full pass, (L,) each, of the pages for which it was run.

    Ranks only once it was run for all of them: among some they would be other ranks.
    """
    if mode == "rank" and any(lens.dense is None for lens in lenses.values()):
        return {}
    dense = {page_id: lens.dense for page_id, lens in lenses.items() if lens.dense is not None}
    return _shown(dense, mode)


def settled_from(lenses: Mapping[str, Lens]) -> int:
    """First layer from which on the candidates' order equals the order at the exit.

    It is the exit's own layer (E - 1) at the latest; equal logits keep the candidates' order.
    """
    logits = np.stack([lens.mini for lens in lenses.values()])  # (N, E)
    order = np.argsort(-logits, axis=0, kind="stable")
    differs = np.flatnonzero((order != order[:, -1:]).any(axis=0))
    return int(differs[-1]) + 1 if differs.size else 0


def settled_sentence(lenses: Mapping[str, Lens], mode: Mode = "logit") -> str:
    """How early the final order stood, and what a full pass would have changed.

    mode: how the layers are drawn, as some passes are not enough to draw ranks.
    """
    first = next(iter(lenses.values()))
    if len(lenses) < 2:
        return "One candidate has no order; trace all of them to see when theirs settled."
    layer = max(settled_from(lenses), first.band[0])
    n_later = first.exit_layer - 1 - layer
    start = f"The order of the {len(lenses)} candidates"
    if n_later == 0:
        settled = f"{start} changed until the last layer that ran, {layer}."
    else:
        layers = "layer" if n_later == 1 else "layers"
        settled = f"{start} was final from layer {layer} on, {n_later} {layers} before the exit."
    return f"{settled} {_full_pass_sentence(lenses, mode)}".strip()


def _full_pass_sentence(lenses: Mapping[str, Lens], mode: Mode) -> str:
    dense = [lens.dense for lens in lenses.values() if lens.dense is not None]
    if len(dense) < len(lenses):
        partly = f"The full pass was run for {len(dense)} of them, not for the rest."
        if mode == "rank":
            partly += " Its ranks are drawn once it was run for all."
        return partly if dense else ""
    here = _ranks(np.stack([lens.mini for lens in lenses.values()]))[:, -1]
    there = _ranks(np.stack(dense))[:, -1]
    n_moved = int((here != there).sum())
    if n_moved == 0:
        return "A full pass over every layer and token ends with the same order."
    return f"A full pass over every layer and token ends with {n_moved} of them at another rank."


def _shown(curves: Curves, mode: Mode) -> Curves:
    if not curves or mode == "logit":
        return curves
    stack = np.stack(list(curves.values()))
    if mode == "probability":
        shown = 1.0 / (1.0 + np.exp(-stack))
    else:
        shown = np.where(np.ptp(stack, axis=0) > 0, _ranks(stack), np.nan)
    return dict(zip(curves, shown, strict=True))


def _ranks(logits: np.ndarray) -> np.ndarray:
    """(N, layers) -> rank of each candidate at each layer, 1 is the highest logit."""
    order = np.argsort(-logits, axis=0, kind="stable")
    return np.argsort(order, axis=0, kind="stable") + 1
