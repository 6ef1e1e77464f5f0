"""F4, F5, F6: what a viewer would show, upright, at a size the model can take."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image, ImageChops

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.pages.canonical import canonical
from mrr.pages.ingest import from_pil
from mrr.pages.keys import page_id
from mrr.pages.sandbox import Decoder
from tests.pages.files import encoded, photo

SIZE = (40, 40)


def decode(decoder: Decoder, data: bytes) -> Image.Image:
    (page,) = decoder.pages("x", data)
    assert page.image.mode == "RGB"
    return page.image


def assert_near(pixel: object, expected: tuple[int, int, int], within: int = 2) -> None:
    assert isinstance(pixel, tuple)
    worst = max(abs(a - b) for a, b in zip(pixel, expected, strict=True))
    assert worst <= within, f"{pixel} is not {expected}"


@pytest.mark.parametrize(
    ("mode", "colour", "image_format", "shown"),
    [
        ("RGB", (10, 200, 30), "PNG", (10, 200, 30)),
        ("RGBA", (255, 0, 0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), "PNG", (255, 127, 127)),
        ("RGBA", (0, 0, 255, 128), "WEBP", (127, 127, 255)),
        ("LA", (0, 64), "PNG", (191, 191, 191)),
        ("L", 77, "JPEG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("CMYK", (255, 0, 0, 0), "JPEG", (0, 255, 255)),
        ("I;16", 32768, "PNG", (128, 128, 128)),
        ("I;16", 65535, "TIFF", (255, 255, 255)),
        ("F", 0.5, "TIFF", (128, 128, 128)),
        ("F", 200.0, "TIFF", (200, 200, 200)),
        ("I", 100, "TIFF", (100, 100, 100)),
        ("I", 65535, "TIFF", (255, 255, 255)),
    ],
)
def test_every_mode_is_shown_as_a_viewer_shows_it(
    decoder: Decoder, mode: str, colour: object, image_format: str, shown: tuple[int, int, int]
) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(Image.new(mode, SIZE, colour), image_format, **options)  # type: ignore[arg-type]
    assert_near(decode(decoder, data).getpixel((20, 20)), shown)


def test_transparent_palette_and_colour_key_lie_over_white(decoder: Decoder) -> None:
    palette = Image.new("P", SIZE, 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.paste(0, (0, 0, 20, 40))
    keyed = decode(decoder, encoded(palette, "PNG", transparency=0))
    assert keyed.getpixel((5, 5)) == (255, 255, 255)
    assert keyed.getpixel((30, 5)) == (0, 0, 255)
    gif = decode(decoder, encoded(palette, "GIF", transparency=1))
    assert gif.getpixel((5, 5)) == (0, 0, 0)
    assert gif.getpixel((30, 5)) == (255, 255, 255)
    grey = Image.new("L", SIZE, 9)
    assert decode(decoder, encoded(grey, "PNG", transparency=9)).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_a_16_bit_ramp_keeps_its_levels(decoder: Decoder, image_format: str) -> None:
    ramp = Image.new("I;16", (256, 40))
    ramp.putdata([65535 * (i % 256) // 255 for i in range(256 * 40)])
    shown = decode(decoder, encoded(ramp, image_format)).convert("L")
    assert len(set(shown.tobytes())) >= 250
    assert shown.getextrema() == (0, 255)


def test_a_16_bit_colour_tiff_keeps_its_levels(decoder: Decoder) -> None:
    # Pillow writes no 16-bit RGB, so the file is put together here: little endian, one strip.
    width, height = 256, 40
    row = b"".join(struct.pack("<HHH", 257 * x, 257 * (255 - x), 32768) for x in range(width))
    fields = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(row) * height),
        (284, 3, 1, 1),
    ]  # fmt: skip
    head = b"II*\x00" + struct.pack("<IH", 8, len(fields))
    head += b"".join(struct.pack("<HHII", *field) for field in fields) + bytes(4)
    head = head.ljust(134, b"\0") + struct.pack("<HHH", 16, 16, 16)
    image = decode(decoder, head + row * height)
    assert_near(image.getpixel((200, 10)), (200, 55, 128))


def test_a_deep_image_beyond_every_type_is_stretched_over_its_own_range() -> None:
    deep = Image.new("F", SIZE, -1000.0)
    deep.paste(3000.0, (20, 0, 40, 40))
    shown = canonical(deep)
    assert shown.getpixel((0, 0)) == (0, 0, 0)
    assert shown.getpixel((39, 0)) == (255, 255, 255)


def test_pixels_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(InputRejected, match=r"x\.tif holds pixels that are not finite numbers"):
        from_pil(Image.new("F", SIZE, float("nan")), "x.tif", Limits())


@pytest.mark.parametrize(
    "mode", "1 L P RGB RGBA CMYK YCbCr LAB HSV I F LA PA RGBX RGBa La I;16 I;16L I;16B".split()
)
def test_every_mode_that_pillow_knows_becomes_rgb(mode: str) -> None:
    assert canonical(Image.new(mode, SIZE)).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation_is_applied_once_and_the_twin_has_the_same_key(
    decoder: Decoder, orientation: int, image_format: str
) -> None:
    # How a camera that was turned stores an upright scene, by the EXIF standard's own picture.
    stored_as = {
        1: (),
        2: (Image.Transpose.FLIP_LEFT_RIGHT,),
        3: (Image.Transpose.ROTATE_180,),
        4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,),
        6: (Image.Transpose.ROTATE_90,),
        7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_270,),
    }
    upright = stored = photo()
    for turn in stored_as[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    shown = decode(decoder, encoded(stored, image_format, exif=exif, **options))
    assert shown.size == upright.size
    if image_format == "JPEG":
        worst = max(high for _, high in ImageChops.difference(shown, upright).getextrema())
        assert worst < 200  # lossy; a wrong turn differs by 255 in the corners
        grey = ImageChops.difference(shown, upright).convert("L").resize((1, 1)).getpixel((0, 0))
        assert grey < 12
    else:
        assert page_id(shown, "s") == page_id(upright, "s")


def test_broken_exif_costs_the_orientation_and_not_the_page(decoder: Decoder) -> None:
    plain = encoded(photo(), "JPEG")
    exif = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + b"\xee" * 40
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    broken = decode(decoder, plain[:2] + segment + plain[2:])
    assert broken.tobytes() == decode(decoder, plain).tobytes()


def test_an_image_in_memory_loses_its_metadata_and_is_a_copy() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "where I live"
    image = Image.open(io.BytesIO(encoded(photo(), "JPEG", exif=exif, comment=b"secret")))
    page = from_pil(image, "a/b.jpg", Limits())
    assert page.image.size == (64, 96)
    assert page.image.info == {}
    assert not page.image.getexif()
    assert (page.label, page.source, page.page_num) == ("b.jpg", "b.jpg", 1)
    plain = photo()
    copy = from_pil(plain, "x", Limits()).image
    plain.putpixel((0, 0), (1, 2, 3))
    assert copy.getpixel((0, 0)) != (1, 2, 3)


@pytest.mark.parametrize(
    ("size", "padded"),
    [((1, 1), (28, 28)), ((27, 27), (28, 28)), ((1, 200), (28, 200)), ((300, 2), (300, 28))],
)
def test_small_images_are_padded_with_white(
    decoder: Decoder, size: tuple[int, int], padded: tuple[int, int]
) -> None:
    image = decode(decoder, encoded(Image.new("RGB", size, "red"), "PNG"))
    assert image.size == padded
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert image.getpixel((padded[0] - 1, padded[1] - 1)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (1, 201)])
def test_strips_over_200_to_1_are_refused_with_their_size(
    decoder: Decoder, size: tuple[int, int]
) -> None:
    image = Image.new("RGB", size)
    expected = f"x is {size[0]}×{size[1]}; the longer side may be at most 200 times"
    with pytest.raises(InputRejected, match=expected):
        decode(decoder, encoded(image, "PNG"))
    with pytest.raises(InputRejected, match=expected):
        from_pil(image, "x", Limits())
