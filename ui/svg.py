"""A plotly figure of lines as plain SVG: the same chart where no script may run.

Draws what ui/views/layers.py puts into a figure: lines, a shade, upright rules, annotations at the
top, linear axes and a legend of kinds of line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from ui.markup import esc

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _LEGEND = 900, 58, 12, 22, 40, 20
_DASHES = {"dash": "6 4", "dot": "2 3"}
_N_TICKS = 5
Scale = Callable[[float], float]


def lines_svg(figure: go.Figure, label: str) -> str:
    """The figure as an <svg> element of the figure's height. label: what it shows, for readers."""
    lines = [trace for trace in figure.data if trace.x[0] is not None]
    kinds = [trace for trace in figure.data if trace.showlegend is not False]
    height = int(figure.layout.height)
    x_axis, y_axis = figure.layout.xaxis, figure.layout.yaxis
    right, floor = _WIDTH - _RIGHT, height - _BOTTOM - _LEGEND
    first, last = x_axis.range
    values = [y for trace in lines for y in trace.y if y is not None] or [0.0]
    flipped = y_axis.autorange == "reversed"
    pad = 0.05 * (max(values) - min(values)) or 0.5
    low, high = min(values) - pad, max(values) + pad

    def x(value: float) -> float:
        return _LEFT + (value - first) / (last - first) * (right - _LEFT)

    def y(value: float) -> float:
        share = (value - low) / (high - low)
        return _TOP + (share if flipped else 1 - share) * (floor - _TOP)

    drawn: list[str] = []
    for shape in figure.layout.shapes:
        if shape.type == "rect":
            drawn.append(
                f'<rect x="{x(shape.x0):.1f}" y="{_TOP}" width="{x(shape.x1) - x(shape.x0):.1f}" '
                f'height="{floor - _TOP}" fill="{shape.fillcolor}"/>'
            )
        else:
            drawn.append(_line(x(shape.x0), _TOP, x(shape.x0), floor, shape.line))
    for value in _ticks(low, high, y_axis.dtick):
        drawn.append(
            f'<line x1="{_LEFT}" y1="{y(value):.1f}" x2="{right}" y2="{y(value):.1f}" '
            f'stroke="{y_axis.gridcolor}"/>{_text(_LEFT - 8, y(value) + 4, f"{value:g}", "end")}'
        )
    for layer in range(math.ceil(first), math.floor(last) + 1, int(x_axis.dtick)):
        drawn.append(_text(x(layer), floor + 16, str(layer), "middle"))
    for trace in lines:
        drawn.append(_polylines(trace, x, y))
    for note in figure.layout.annotations:
        drawn.append(_text(x(note.x) + 2, _TOP - 6, note.text, "start"))
    drawn.append(_text((_LEFT + right) / 2, floor + 34, x_axis.title.text, "middle"))
    middle = (_TOP + floor) / 2
    title = _text(14, middle, y_axis.title.text, "middle")
    drawn.append(f'<g transform="rotate(-90 14 {middle:.1f})">{title}</g>')
    at = float(_LEFT)
    for kind in kinds:
        drawn.append(_line(at, height - 8, at + 26, height - 8, kind.line))
        drawn.append(_text(at + 32, height - 4, kind.name, "start"))
        at += 60 + 6.6 * len(kind.name)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{esc(label)}" '
        f'font-size="12" fill="currentColor">{"".join(drawn)}</svg>'
    )


def _polylines(trace: Any, x: Scale, y: Scale) -> str:
    """One element a line; a gap in its values parts it."""
    runs: list[list[str]] = [[]]
    for layer, value in zip(trace.x, trace.y, strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f"{x(layer):.1f},{y(value):.1f}")
    style = _stroke(trace.line, trace.opacity)
    title = f"<title>{trace.name}</title>"
    return "".join(
        f'<polyline points="{" ".join(run)}" fill="none" {style}>{title}</polyline>'
        for run in runs
        if run
    )


def _line(x1: float, y1: float, x2: float, y2: float, line: Any) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f"<line {ends} {_stroke(line)}/>"


def _stroke(line: Any, opacity: float | None = None) -> str:
    dash = _DASHES.get(line.dash or "")
    return (
        f'stroke="{line.color}" stroke-width="{line.width}"'
        + (f' stroke-dasharray="{dash}"' if dash else "")
        + (f' opacity="{opacity}"' if opacity is not None else "")
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _ticks(low: float, high: float, step: float | None) -> list[float]:
    """Round values from low to high, step apart, or about _N_TICKS of them."""
    if step is None:
        rough = (high - low) / _N_TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(f for f in (1, 2, 5, 10) if f * power >= rough)
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
