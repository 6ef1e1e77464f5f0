"""TIFF files, in the decoding child: each picture of one is a page, as scanners write them."""

from __future__ import annotations

import io
import struct

from PIL import Image, TiffImagePlugin  # noqa: F401  the plugin is registered by being imported

from mrr.pages.canonical import canonical, check_pixels
from mrr.pages.refusal import Refused

_MAX_DIRECTORIES = 2**16  # or a chain could lead through every byte of a file
_SUBFILE_TYPE = 254
_NO_PAGE = 0b101  # bits of it: a smaller copy of another picture, the mask of another picture
_SHORT = 3  # type of a field of two bytes
# Fields are in the order of their tags, and few tags are smaller.
_FIELDS_LOOKED_AT = 8


class TiffFile:
    """A TIFF; each page is decoded by itself, so a damaged one costs no other."""

    still = ""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        self._data = data
        self._max_pixels = max_pixels
        self._heads = _heads(data)
        self.n_pages = len(self._heads)
        self.has_pages = self.n_pages > 1
        if self.n_pages < 1:
            raise Refused("damaged")

    def page(self, index: int) -> tuple[Image.Image, str]:
        """Decode the file as one that begins with this page."""
        file = io.BytesIO(self._data)
        file.write(self._heads[index])
        file.seek(0)
        with Image.open(file, formats=["TIFF"]) as image:
            check_pixels(image.width, image.height, self._max_pixels)
            return canonical(image), ""

    def close(self) -> None:
        """Nothing is held but bytes."""


def _heads(data: bytes) -> list[bytes]:
    """For each page the first bytes of the file, pointing at its directory instead of the first.

    Directories are a chain of offsets, which ends where one comes again. One outside the file ends
    it too, and counts: the page that it was is refused by its number. But for the second: pictures
    that are alone in their file come with anything there. Source: TIFF 6.0, section 2.
    """
    order = "<" if data[:2] == b"II" else ">"
    # BigTIFF, as Pillow tells it: there the count and the offsets have 64 bits.
    layout, start = (("Q", "HHQ8s", "Q"), 8) if data[2] == 43 else (("H", "HHI4s", "I"), 4)
    count, field, link = (struct.Struct(order + form) for form in layout)
    kinds: dict[int, int] = {}  # NewSubfileType by offset
    at = start
    try:
        while len(kinds) < _MAX_DIRECTORIES:
            (offset,) = link.unpack_from(data, at)
            if offset == 0 or offset in kinds:
                break
            kinds[offset] = 0
            (n_fields,) = count.unpack_from(data, offset)
            fields, at = offset + count.size, offset + count.size + n_fields * field.size
            looked_at = min(at, fields + _FIELDS_LOOKED_AT * field.size)
            for tag, kind, _, value in field.iter_unpack(data[fields:looked_at]):
                if tag == _SUBFILE_TYPE:
                    form = "H" if kind == _SHORT else "I"
                    (kinds[offset],) = struct.unpack_from(order + form, value)
                    break
    except (struct.error, OverflowError):
        if len(kinds) == 2:
            kinds.popitem()
    pages = [offset for offset, kind in kinds.items() if not kind & _NO_PAGE]
    return [data[:start] + link.pack(offset) for offset in pages or [*kinds][:1]]
