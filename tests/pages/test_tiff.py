"""A TIFF is a document: every picture of it is a page, but for what only accompanies one."""

from __future__ import annotations

import struct
import time

import pytest
from PIL import Image

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.pages.sandbox import Decoder
from mrr.types import FailedFile, PageImage
from tests.pages.files import encoded, make_tiff, photo
from tests.pages.test_refusals import child_memory_mb

SHADES = (10, 90, 170, 250)
PAGES = [Image.new("L", (40 + i, 60), shade) for i, shade in enumerate(SHADES)]


def shades(decoder: Decoder, data: bytes) -> list[object]:
    """The shade of each page, or why it is refused."""
    return [
        item.image.getpixel((0, 0))[0] if isinstance(item, PageImage) else item.reason  # type: ignore[index]
        for item in decoder.pages("scan.tif", data)
    ]


def test_every_page_of_a_tiff_is_a_page_with_its_number(decoder: Decoder) -> None:
    data = make_tiff(PAGES)
    assert decoder.count_pages("in/scan.tif", data) == 4
    pages = list(decoder.pages("in/scan.tif", data))
    assert [page.label for page in pages] == [f"scan.tif p. {i}" for i in (1, 2, 3, 4)]
    assert [page.page_num for page in pages] == [1, 2, 3, 4]
    assert {page.source for page in pages} == {"scan.tif"}
    assert [page.image.tobytes() for page in pages] == [p.convert("RGB").tobytes() for p in PAGES]


@pytest.mark.parametrize(
    ("compression", "mode"),
    [("raw", "RGB"), ("tiff_lzw", "RGB"), ("jpeg", "RGB"), ("group4", "1"), ("tiff_deflate", "L")],
)
def test_pages_are_read_however_a_scanner_packed_them(
    decoder: Decoder, compression: str, mode: str
) -> None:
    pictures = [photo(96, 64).convert(mode), photo(60, 80).convert(mode), photo().convert(mode)]
    data = encoded(
        pictures[0], "TIFF", save_all=True, append_images=pictures[1:], compression=compression
    )
    pages = list(decoder.pages("x", data))
    for page, picture in zip(pages, pictures, strict=True):
        alone = encoded(picture, "TIFF", compression=compression)
        (expected,) = decoder.pages("x", alone)
        assert isinstance(page, PageImage) and isinstance(expected, PageImage)
        assert page.image.tobytes() == expected.image.tobytes()


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_both_byte_orders_and_64_bit_offsets_are_read(
    decoder: Decoder, order: str, big: bool
) -> None:
    data = make_tiff(PAGES, [0, 1, 0, 0], order=order, big=big)
    assert shades(decoder, data) == [10, 170, 250]


def test_a_page_range_chooses_among_the_pages_of_a_tiff(decoder: Decoder) -> None:
    data = make_tiff(PAGES)
    assert [p.page_num for p in decoder.pages("x.tif", data, "2,4-9")] == [2, 4]
    assert decoder.count_pages("x.tif", data, "2-3") == 2
    with pytest.raises(InputRejected, match=r"x\.tif has 4 pages; page 5 was asked for"):
        list(decoder.pages("x.tif", data, "5"))
    (one,) = decoder.pages("x.tif", make_tiff(PAGES[:1]), "5")
    assert (one.label, one.page_num) == ("x.tif", 1), "an image is always taken"


def test_of_too_many_pages_the_first_are_read_and_the_rest_is_told() -> None:
    with Decoder(Limits(max_pdf_pages=2)) as decoder:
        assert decoder.count_pages("x.tif", make_tiff(PAGES)) == 2
        pages = decoder.pages("x.tif", make_tiff(PAGES))
        assert [next(pages).page_num for _ in range(2)] == [1, 2]
        with pytest.raises(InputRejected, match=r"4 pages were asked for; the limit is 2 a file"):
            next(pages)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([1, 0, 1, 0], [90, 250]),  # a thumbnail before each
        ([0, 1, 1, 1], [10]),  # a pyramid
        ([2, 4, 2, 6], [10, 170]),  # pages, and what masks them
        ([1, 1, 1, 1], [10]),  # the first, where there is nothing else
    ],
)
def test_smaller_copies_and_masks_are_no_pages(
    decoder: Decoder, kinds: list[int], expected: list[int]
) -> None:
    data = make_tiff(PAGES, kinds)
    assert shades(decoder, data) == expected
    assert decoder.count_pages("x.tif", data) == len(expected)
    label = next(iter(decoder.pages("x.tif", data))).label
    assert label == ("x.tif" if len(expected) == 1 else "x.tif p. 1")


def test_a_damaged_or_too_large_page_is_refused_in_its_place() -> None:
    large = Image.new("L", (200, 200))
    data = bytearray(make_tiff([PAGES[0], PAGES[1], large, PAGES[3]]))
    width = data.index(struct.pack("<HHII", 256, 4, 1, PAGES[1].width))
    data[width : width + 2] = struct.pack("<H", 255)  # a picture without a width
    with Decoder(Limits(max_image_pixels=10_000)) as decoder:
        first, damaged, refused, last = decoder.pages("scan.tif", bytes(data))
        assert isinstance(first, PageImage) and isinstance(last, PageImage) and last.page_num == 4
        assert isinstance(damaged, FailedFile) and damaged.file == "scan.tif"
        assert damaged.reason.startswith("Page 2 of scan.tif is damaged or incomplete.")
        assert isinstance(refused, FailedFile)
        assert refused.reason.startswith("Page 3 of scan.tif is 200×200 (0.04 MP); the limit is")


def test_a_damaged_first_page_costs_no_other(decoder: Decoder) -> None:
    data = make_tiff(PAGES).replace(
        struct.pack("<HHII", 262, 4, 1, 1), struct.pack("<HHII", 262, 4, 1, 99), 1
    )
    reason, *others = shades(decoder, data)
    assert str(reason).startswith("Page 1 of scan.tif is damaged") and others == [90, 170, 250]


def test_of_a_tiff_that_is_cut_off_the_page_that_is_lost_is_named(decoder: Decoder) -> None:
    whole = make_tiff(PAGES[:2])
    *pages, lost = shades(decoder, make_tiff(PAGES)[: len(whole)])
    assert pages == [10, 90] and str(lost).startswith("Page 3 of scan.tif is damaged")
    *pages, half, lost = shades(decoder, make_tiff(PAGES)[: len(whole) - 40])
    assert pages == [10] and str(half).startswith("Page 2 of scan.tif is damaged")
    assert str(lost).startswith("Page 3 of scan.tif is damaged")


@pytest.mark.parametrize("last", [8, 9, 2**31, 2**32 - 1])
def test_a_chain_that_goes_round_or_out_of_the_file_ends(decoder: Decoder, last: int) -> None:
    first, second, *rest = shades(decoder, make_tiff(PAGES[:2], last=last))
    assert (first, second) == (10, 90)
    assert len(rest) == (last != 8) and all("Page 3 of scan.tif is damaged" in r for r in rest)


def test_a_directory_that_points_at_itself_is_one_page(decoder: Decoder) -> None:
    assert shades(decoder, make_tiff(PAGES[:1], last=8)) == [10]


def test_a_chain_through_all_of_a_file_ends_in_the_limit_of_pages() -> None:
    n = 3_000_000  # directories of no fields, each pointing at the one behind it
    links = b"".join(struct.pack("<HI", 0, 8 + 6 * (i + 1)) for i in range(n))
    with Decoder() as decoder:
        began = time.monotonic()
        assert decoder.count_pages("x.tif", b"II*\x00\x08\0\0\0" + links) == 200
        assert time.monotonic() - began < decoder.limits.page_timeout_s


def test_opening_a_tiff_decodes_none_of_its_pages() -> None:
    large = Image.new("1", (6000, 6000))
    data = encoded(large, "TIFF", save_all=True, append_images=[large] * 9, compression="group4")
    with Decoder() as decoder:
        assert decoder.count_pages("x.tif", data) == 10
        assert child_memory_mb(decoder) < 64


def test_a_picture_alone_in_its_file_may_have_anything_behind_it(decoder: Decoder) -> None:
    (page,) = decoder.pages("scan.tif", make_tiff(PAGES[:1], last=0xDEAD_BEEF))
    assert isinstance(page, PageImage) and page.label == "scan.tif"


def test_directories_that_lie_over_each_other_hold_nobody_up(decoder: Decoder) -> None:
    """4,000 of 60,000 fields each, in less than a megabyte: to look at all takes minutes."""
    n, n_fields, step = 4000, 60_000, 14
    data = bytearray(8 + n * step + 12 * n_fields + 64)
    data[:8] = struct.pack("<2sHI", b"II", 42, 8)
    for at in range(8, 8 + n * step, step):
        struct.pack_into("<H", data, at, n_fields)
    for at in range(8, 8 + (n - 1) * step, step):
        struct.pack_into("<I", data, at + 2 + 12 * n_fields, at + step)
    assert decoder.count_pages("scan.tif", bytes(data)) == 200  # and not the limit of time


def test_a_tiff_without_pages_is_refused(decoder: Decoder) -> None:
    with pytest.raises(InputRejected, match=r"scan\.tif is damaged or incomplete"):
        shades(decoder, b"II*\x00" + bytes(100))
