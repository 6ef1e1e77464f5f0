"""Pictures as they lie in files: PNG, and in each the page that it shows.

A picture that says whose it is needs no row to be found again, so a lost database loses no page.
PNG checks every part of itself by a CRC, the note about the page too.
"""

from __future__ import annotations

import io
import json
import struct
import time
from dataclasses import asdict

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from mrr.errors import CorruptEntry
from mrr.types import Page

LOST = "lost"  # scope of pictures that say nothing, after their row was lost
_NOTE = "page"
_BAD_PNG = (SyntaxError, OSError, EOFError, ValueError, TypeError, LookupError, struct.error)


def encode(page: Page, image: Image.Image) -> np.ndarray:
    """(nbytes,) uint8; lossless, and compressed only as far as it is quick."""
    note, buffer = PngInfo(), io.BytesIO()
    note.add_text(_NOTE, json.dumps({"page": asdict(page), "added_ns": time.time_ns()}))
    image.save(buffer, "PNG", compress_level=1, pnginfo=note)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def decode(data: np.ndarray) -> Image.Image:
    """The picture, without the note."""
    # Not by Image.open, which refuses large pictures, whoever has let them in.
    image = PngImageFile(io.BytesIO(data.data))
    image.load()
    image.info.clear()
    return image


def page_in(data: np.ndarray, name: str) -> tuple[Page, int]:
    """The page that a picture is of, and when it was added in nanoseconds.

    It is one of scope `LOST`, known by its file's name, if the picture says nothing.

    Raises
    ------
    CorruptEntry: if the picture is damaged.
    """
    try:
        image = PngImageFile(io.BytesIO(data.data))
        note, (width, height) = image.info.get(_NOTE), image.size
        image.verify()
        if note is not None:
            about = json.loads(note)
            return Page(**about["page"]), about["added_ns"]
    except _BAD_PNG as error:
        raise CorruptEntry("The picture is damaged.") from error
    page_id = name.removesuffix(".png")
    return Page(page_id, "recovered picture", name, 1, width, height, LOST), 0
