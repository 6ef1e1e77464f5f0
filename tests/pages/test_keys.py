"""S9: different pages, different keys; the same page, however it was stored, the same key."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrr.config import Limits
from mrr.pages.ingest import from_pil
from mrr.pages.keys import entry_key, page_id
from mrr.pages.sandbox import Decoder
from tests.pages.files import encoded, photo

rasters = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda size: st.tuples(
        st.just(size), st.binary(min_size=3 * size[0] * size[1], max_size=3 * size[0] * size[1])
    )
)
scopes = st.text("ab\0é", max_size=4)


@settings(max_examples=300)
@given(rasters, scopes, rasters, scopes)
def test_pages_share_an_id_exactly_if_size_pixels_and_scope_agree(
    first: tuple[tuple[int, int], bytes],
    first_scope: str,
    second: tuple[tuple[int, int], bytes],
    second_scope: str,
) -> None:
    one = page_id(Image.frombytes("RGB", *first), first_scope)
    other = page_id(Image.frombytes("RGB", *second), second_scope)
    assert (one == other) == (first == second and first_scope == second_scope)
    assert len(one) == 64
    assert set(one) <= set("0123456789abcdef")


@settings(max_examples=500)
@given(*[st.text("ab0\0", max_size=5)] * 4)
def test_entry_keys_do_not_run_their_parts_together(a: str, b: str, c: str, d: str) -> None:
    assert (entry_key(a, b) == entry_key(c, d)) == ((a, b) == (c, d))


def test_size_is_part_of_the_key() -> None:
    wide, tall = Image.new("RGB", (100, 30), "red"), Image.new("RGB", (30, 100), "red")
    assert wide.tobytes() == tall.tobytes()
    assert page_id(wide, "s") != page_id(tall, "s")


def test_one_pixel_in_the_last_strip_of_a_large_page_changes_the_key() -> None:
    page = Image.new("RGB", (2000, 2000))  # 12 MB: three strips
    before = page_id(page, "s")
    page.putpixel((1999, 1999), (0, 0, 1))
    assert page_id(page, "s") != before


def test_palettes_and_alpha_are_seen_because_only_canonical_pages_have_keys() -> None:
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    other = palette.copy()
    other.putpalette([0, 0, 0, 0, 255, 0])
    assert palette.tobytes() == other.tobytes()
    with pytest.raises(ValueError, match="this image is P"):
        page_id(palette, "s")
    keys = {page_id(from_pil(image, "x", Limits()).image, "s") for image in (palette, other)}
    assert len(keys) == 2


def test_grey_as_l_and_as_rgb_is_one_page() -> None:
    grey = Image.new("L", (40, 40), 80)
    one, other = from_pil(grey, "x", Limits()), from_pil(grey.convert("RGB"), "y", Limits())
    assert page_id(one.image, "s") == page_id(other.image, "s")


def test_lossless_formats_names_and_memory_give_one_key(decoder: Decoder) -> None:
    image = photo()
    files = {
        "a.png": encoded(image, "PNG"),
        "renamed.gif": encoded(image, "PNG", compress_level=0),
        "a.webp": encoded(image, "WEBP", lossless=True),
        "a.tif": encoded(image, "TIFF", compression="tiff_lzw"),
    }
    keys = {
        page_id(page.image, "s")
        for name, data in files.items()
        for page in decoder.pages(name, data)
    }
    assert keys == {page_id(from_pil(image, "x", Limits()).image, "s")}


def test_the_keys_are_sha_256_over_the_fields_as_documented() -> None:
    """Stores on disk depend on it: a change must be meant, and raise the format version."""

    def framed(tag: bytes, field: bytes) -> bytes:
        return tag + struct.pack(">Q", len(field)) + field

    page = Image.new("RGB", (2, 1), (1, 2, 3))
    fields = framed(b"FORM", b"mrr-page-1") + framed(b"MODE", b"RGB")
    fields += framed(b"SIZE", struct.pack(">QQ", 2, 1)) + framed(b"PIXL", bytes([1, 2, 3] * 2))
    fields += framed(b"SCOP", b"public")
    assert page_id(page, "public") == hashlib.sha256(fields).hexdigest()
    fields = framed(b"FORM", b"mrr-entry-1") + framed(b"PAGE", b"ab") + framed(b"FING", b"f")
    assert entry_key("ab", "f") == hashlib.sha256(fields).hexdigest()
