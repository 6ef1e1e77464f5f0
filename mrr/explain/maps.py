"""What a front end draws from an AttentionTrace: plain arrays in, plain arrays out, no torch."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from mrr.types import AttentionTrace

# A convention, not a finding: ten times the typical cell, whatever the query.
SINK_FACTOR = 10.0


def page_map(
    trace: AttentionTrace,
    *,
    layers: Collection[int] | None = None,
    rows: range | None = None,
    contrast: bool = False,
) -> np.ndarray:
    """(R, C) attention to the page, averaged over layers and rows.

    layers: None is the whole band. rows: tokens after the page, None is the user's words.
    contrast: less what neutral queries pay to the same cells; signed, and about 0 at sinks.
    """
    chosen = sorted(trace.page_maps) if layers is None else sorted(layers)
    index = np.arange(*trace.query_span) if rows is None else np.array(rows)
    maps = [
        trace.page_maps[i][index] - (trace.neutral_maps[i][index] if contrast else 0.0)
        for i in chosen
    ]
    return np.concatenate(maps).mean(axis=0)


def sink_cells(maps: np.ndarray, kept: np.ndarray, factor: float = SINK_FACTOR) -> np.ndarray:
    """(R, C) bool: kept cells to which every map gives more than `factor` times the median cell.

    maps: (M, R, C), one for each of several content-free queries, 0 at pruned tokens. kept: (R, C)
    bool; the median is over these. What one query alone attends to is never a sink.
    """
    typical = np.median(maps[:, kept], axis=1)[:, None, None]
    return (maps > factor * typical).all(axis=0)
