"""Pictures of a page as the inspector draws it, in pixels: for where no script may run."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from ui.maps import FirstMap

_SIDE = 1000
_PALE = 0.75  # how much of white lies over what was not read
# The inspector's signed palette (ui/assets/js/palette.js): blue for less, orange for more.
_LESS = ("#053061", "#2166ac", "#6baed6", "#c6dbef")
_MORE = ("#fdd0a2", "#fd8d3c", "#d94801", "#7f2704")
_DIVERGING = (*_LESS, "#ffffff", *_MORE)
_GAMMA = 2.0  # attention has a long tail


def pruned(image: Image.Image, kept: np.ndarray) -> str:
    """The page with the cells pale that were not read, as a data URI. kept: (R, C) bool."""
    return _data_uri(_paled(_small(image), kept))


def attended(image: Image.Image, kept: np.ndarray, found: FirstMap) -> str:
    """The page in grey, multiplied by the map's colours; cells that were not read are pale."""
    small = _small(image)
    grey = np.asarray(small.convert("L"), dtype=np.float32)[..., None]
    share = np.clip(np.abs(found.values) / (found.limit or 1.0), 0.0, 1.0) ** (1 / _GAMMA)
    colours = _colours(np.where(found.shown, 0.5 + 0.5 * np.sign(found.values) * share, 0.5))
    cells = Image.fromarray(colours).resize(small.size, Image.Resampling.NEAREST)
    mixed = (grey * np.asarray(cells, dtype=np.float32) / 255).astype(np.uint8)
    return _data_uri(_paled(Image.fromarray(mixed), kept))


def _colours(at: np.ndarray) -> np.ndarray:
    """(R, C) positions 0..1 on the palette to (R, C, 3) uint8."""
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in _DIVERGING])
    where = np.linspace(0, 1, len(stops))
    mixed = [np.interp(at, where, stops[:, channel]) for channel in range(3)]
    return np.stack(mixed, axis=-1).round().astype(np.uint8)


def _small(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return small


def _paled(picture: Image.Image, kept: np.ndarray) -> Image.Image:
    mask = Image.fromarray((~kept * np.uint8(255 * _PALE)).astype(np.uint8))
    mask = mask.resize(picture.size, Image.Resampling.NEAREST)
    picture.paste(Image.new("RGB", picture.size, "white"), mask=mask)
    return picture


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
