"""What a page and its stored K/V are called: full-width SHA-256 over framed fields.

Each field goes in as (tag, length, bytes), so that no two different lists of fields can give
the same stream: sizes, modes and neighbouring strings cannot be traded for one another.
"""

from __future__ import annotations

import hashlib
import struct

from PIL import Image

from mrr.pages.canonical import strips

# Part of every key: raise it when the way to canonical pixels changes.
_PAGE_FORMAT = b"mrr-page-1"
_ENTRY_FORMAT = b"mrr-entry-1"
_FRAME = struct.Struct(">4sQ")


def page_id(image: Image.Image, scope: str) -> str:
    """64 hex digits over the canonical pixels and who may see them.

    Raises ValueError for an image that is not canonical RGB: other modes keep part of what they
    show outside their pixels.
    """
    if image.mode != "RGB":
        raise ValueError(f"A page is RGB; this image is {image.mode}. Use from_pil first.")
    digest = _start(_PAGE_FORMAT)
    _add(digest, b"MODE", image.mode.encode())
    _add(digest, b"SIZE", struct.pack(">QQ", *image.size))
    digest.update(_FRAME.pack(b"PIXL", 3 * image.width * image.height))
    for rows in strips(image):
        digest.update(rows)
    _add(digest, b"SCOP", scope.encode())
    return digest.hexdigest()


def entry_key(page_id: str, fingerprint: str) -> str:
    """64 hex digits for one page's K/V under one configuration of the engine."""
    digest = _start(_ENTRY_FORMAT)
    _add(digest, b"PAGE", page_id.encode())
    _add(digest, b"FING", fingerprint.encode())
    return digest.hexdigest()


def _start(key_format: bytes) -> hashlib._Hash:
    digest = hashlib.sha256()
    _add(digest, b"FORM", key_format)
    return digest


def _add(digest: hashlib._Hash, tag: bytes, field: bytes) -> None:
    digest.update(_FRAME.pack(tag, len(field)))
    digest.update(field)
