"""Any Pillow image to the canonical page: upright 8-bit RGB over white, no metadata.

Runs in the decoding child, and in this process for images that are already in memory; it needs
Pillow only. Embedded colour profiles are not applied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from PIL import Image

from mrr.pages.refusal import Refused

MIN_SIDE = 28  # one visual token of the smallest model grid; smaller pages are padded
PAGE_MAX_PIXELS = 4_000_000  # of a rasterised page; also bounds a padded strip, 28×5600
MAX_ASPECT = 200  # the model's processor takes no longer strip
_EXIF_ORIENTATION = 0x0112
_STRIP_BYTES = 4 * 1024 * 1024

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def canonical(image: Image.Image) -> Image.Image:
    """Return the page as a viewer would show it; may return `image` itself where nothing changes.

    Sides under 28 pixels are padded with white to the right and below.
    Raises Refused for a strip of over 200:1, and for pixels that are not numbers.
    """
    check_aspect(image.width, image.height)
    image.load()
    turn = _upright_turn(image)
    rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return _pad(rgb)


def check_aspect(width: float, height: float) -> None:
    """Refuse what has no area, or is over 200 times as long as it is wide."""
    if not 0 < min(width, height) <= max(width, height) <= MAX_ASPECT * min(width, height):
        raise Refused("aspect", width=round(width), height=round(height), limit=MAX_ASPECT)


def check_pixels(width: int, height: int, limit: int) -> None:
    """Refuse a picture of more than limit pixels, before any of them is decoded."""
    if width * height > limit:
        raise Refused(
            "pixels",
            width=width,
            height=height,
            megapixels=width * height / 1e6,
            limit=limit / 1e6,
        )


def strips(image: Image.Image) -> Iterator[bytes]:
    """Yield the RGB pixels, row-major, in bands of rows: the page is never copied whole."""
    for top, bottom in strip_rows(image.width, image.height):
        yield image.crop((0, top, image.width, bottom)).tobytes()


def strip_rows(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield [top, bottom) of each strip; both ends of the pipe cut a page the same way."""
    n_rows = max(1, _STRIP_BYTES // (3 * width))
    for top in range(0, height, n_rows):
        yield top, min(top + n_rows, height)


def _upright_turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken EXIF raises almost anything, and is no reason to lose the page
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    elif image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image  # Pillow's only way
        rgba = straight.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(rgba, mask=rgba)
        return page
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale a deep greyscale image to 8 bits: from the range of its type, else its own range."""
    lowest, highest = 0.0, 65535.0
    if not image.mode.startswith("I;16"):
        lowest, highest = _shown_range(image)
    scale = 255.0 / (highest - lowest)
    offset = 0.5 - lowest * scale  # 0.5: the conversion to L truncates
    deep = image if image.mode in ("I", "F") else image.convert("I")
    return deep.convert("F").point(lambda value: value * scale + offset).convert("L")


def _shown_range(image: Image.Image) -> tuple[float, float]:
    """Black and white point of a 32-bit image: that of the smallest type that its values fit."""
    lowest, highest = (float(value) for value in image.getextrema())  # type: ignore[arg-type]
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise Refused("not-numbers")
    for white in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
        if lowest >= 0 and highest <= white:
            return 0.0, white
    return lowest, max(highest, lowest + 1.0)


def _pad(image: Image.Image) -> Image.Image:
    size = (max(image.width, MIN_SIDE), max(image.height, MIN_SIDE))
    if size == image.size:
        return image
    page = Image.new("RGB", size, "white")
    page.paste(image, (0, 0))
    return page
