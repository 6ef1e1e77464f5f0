"""Colours of the charts: readable on the light and on the dark surface, told apart by everybody.

The systems keep one colour everywhere; the style sheets hold their twins for text and borders.
"""

from __future__ import annotations

MINI = "#2b8ad6"
DENSE = "#808997"
ORIGINAL = "#b08a4a"
GRID = "rgba(128,134,148,0.28)"
TEXT = "#7a828e"  # the fallback: in the app, figures.css gives text the theme's own colour
BAND = "rgba(43,138,214,0.12)"

SYSTEM_COLOURS = {"mini": MINI, "dense-reuse": DENSE, "original": ORIGINAL}

# Okabe and Ito's set, in the order the stages run.
STAGE_COLOURS = {
    "decode": "#b7b1a3",
    "preprocess": "#d9b44a",
    "vision": "#d55e00",
    "embed": "#a9761f",
    "encode": "#7a4f01",
    "prefix": "#cc79a7",
    "layers": "#8d5aa6",
    "retrieve": "#c9c22e",
    "load": "#e69f00",
    "query": "#56b4e9",
    "band": "#1d6fb0",
    "head": "#009e73",
}
OTHER_STAGE = "#808997"
