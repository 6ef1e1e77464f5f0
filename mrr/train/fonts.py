"""Fonts for training pages: found on the machine, grouped by family, some kept for validation."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageFont

FONT_DIRS = (
    Path("/usr/share/fonts"),
    Path("/usr/share/texmf/fonts"),
    Path("/usr/local/share/fonts"),
    Path.home() / ".fonts",
)
# Families that training never sees: one sans, one serif, one slab-like, one monospaced.
HELD_OUT = ("carlito", "gentium", "notoserif-", "freemono", "roboto")
COMMON = (
    "liberationsans-",
    "liberationserif",
    "dejavusans-",
    "dejavusans.",
    "dejavuserif-",
    "dejavuserif.",
)
LATIN = (
    *COMMON, "dejavusanscondensed", "dejavuserifcondensed", "dejavusansmono", "liberationmono",
    "liberationsansnarrow", "freesans", "freeserif", "caladea", "lato-", "opensans", "ebgaramond12",
    "nimbus", "c059", "p052", "urwgothic", "urwbookman", "notosans-", "notosansdisplay-",
    "notoserifdisplay-", "notosansmono-", "lmroman10-", "lmsans10-", "linlibertine_r.",
    "inconsolata", *HELD_OUT,
)  # fmt: skip
_PROBE = "Aaegéß09,%"


@dataclass(frozen=True, slots=True)
class Face:
    """One font file. family, bold and italic are read off its name, in lower case."""

    path: str
    family: str
    bold: bool
    italic: bool


def find(names: Iterable[str] = COMMON, dirs: Iterable[Path] = FONT_DIRS) -> list[Face]:
    """Faces whose file name begins with one of the names, in a stable order, one per file name."""
    prefixes = tuple(names)
    found: dict[str, Face] = {}
    for root in dirs:
        for path in sorted(root.rglob("*.[to]tf")):
            name = path.name.lower()
            if name.startswith(prefixes) and name not in found and "light" not in name:
                style = name.rsplit("-", 1)[-1]
                bold = any(mark in style for mark in ("bold", "black", "heavy", "demi"))
                italic = any(mark in style for mark in ("italic", "oblique"))
                if not any(mark in name for mark in ("thin", "hairline", "black", "math")):
                    family = re.split(r"[-_]", path.stem.lower())[0]
                    found[name] = Face(str(path), family, bold, italic)
    return [found[name] for name in sorted(found)]


def is_held_out(face: Face) -> bool:
    """Whether the face is kept for validation."""
    return Path(face.path).name.lower().startswith(HELD_OUT)


@functools.lru_cache(maxsize=4096)
def load(path: str, size_px: float) -> ImageFont.FreeTypeFont:
    """The font at a size, cached; without kerning, so that advances add up to word widths."""
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=200_000)
def advance(path: str, size_px: float, char: str) -> float:
    """Horizontal advance of one character in pixels."""
    return float(load(path, size_px).getlength(char))


def advances(path: str, size_px: float, word: str) -> np.ndarray:
    """(len(word),) advances in pixels."""
    return np.array([advance(path, size_px, char) for char in word], dtype=np.float32)


@functools.lru_cache(maxsize=50_000)
def glyph(path: str, size_px: float, char: str) -> tuple[Any, int, int]:
    """Coverage of one character and where it goes from the pen's place on the baseline.

    Hinting a glyph costs a tenth of a millisecond, so pages are set from remembered ones.
    """
    mask, (right, down) = load(path, size_px).getmask2(char, mode="L", anchor="ls")
    return mask, right, down


def drawn_size(size_px: float, scale: float) -> float:
    """Size at which text is drawn: whole half pixels, so that few sizes keep the caches warm."""
    return max(6.0, round(size_px * scale * 2) / 2)


@functools.lru_cache(maxsize=512)
def covers_latin(path: str) -> bool:
    """Whether the font has glyphs for plain and accented Latin text and figures."""
    font = load(path, 20.0)
    missing = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
    return all((font.getmask(c).getbbox(), bytes(font.getmask(c))) != missing for c in _PROBE)
