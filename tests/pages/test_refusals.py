"""F1, F2, F3, F7, F8: what is refused, from what, and that the next file works."""

from __future__ import annotations

import random
import re
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.pages.sandbox import Decoder
from mrr.types import FailedFile
from tests.pages.files import encoded, fill, make_pdf, make_tiff, photo, png_chunk, png_of_size

LEAKS = re.compile(r"0x[0-9a-f]+|/tmp|/usr|/home|Traceback|BytesIO|PIL|Pillow|pdfium|Error", re.I)


def reason(decoder: Decoder, data: bytes, name: str = "x.png") -> str:
    with pytest.raises(InputRejected) as caught:
        list(decoder.pages(name, data))
    message = str(caught.value)
    assert name in message
    assert not LEAKS.search(message), message
    assert message.endswith(".")
    return message


def child_memory_mb(decoder: Decoder) -> float:
    """High-water mark of the child's resident memory."""
    assert decoder._child is not None
    status = Path(f"/proc/{decoder._child._process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize(
    ("width", "height", "megapixels"),
    [(8200, 5000, "41"), (10000, 10000, "100"), (17000, 10000, "170"), (20000, 10000, "200")],
)
def test_a_png_bomb_is_refused_by_its_header(width: int, height: int, megapixels: str) -> None:
    with Decoder() as decoder:
        message = reason(decoder, png_of_size(width, height))
        assert f"{width}×{height} ({megapixels} MP); the limit is 40 MP. Resize it" in message
        assert child_memory_mb(decoder) < 64  # nothing of the picture was allocated


def test_other_bombs_are_refused_by_their_headers_too() -> None:
    gif = bytearray(encoded(photo(), "GIF"))
    gif[6:10] = struct.pack("<HH", 10000, 10000)
    webp = bytearray(encoded(photo(), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 16382 | 16382 << 14)  # the largest there is: 2 GB of canvas
    with Decoder() as decoder:
        assert "10000×10000 (100 MP); the limit is 40 MP" in reason(decoder, bytes(gif))
        assert "16383×16383 (268.4 MP); the limit is 40 MP" in reason(decoder, bytes(webp))
        assert child_memory_mb(decoder) < 64


@pytest.mark.parametrize("image_format", ["lossy", "lossless", "alpha"])
def test_each_kind_of_webp_header_is_measured(image_format: str) -> None:
    image = Image.new("RGBA" if image_format == "alpha" else "RGB", (300, 200), (9, 9, 9))
    if image_format == "alpha":
        image.putalpha(100)
    data = encoded(image, "WEBP", lossless=image_format == "lossless")
    with Decoder(Limits(max_image_pixels=59_999)) as decoder:
        assert "300×200" in reason(decoder, data)
    with Decoder(Limits(max_image_pixels=60_000)) as decoder:
        (page,) = decoder.pages("x", data)
        assert page.image.size == (300, 200)


def test_a_text_chunk_that_unpacks_to_80_mb_is_not_unpacked() -> None:
    plain = encoded(photo(), "PNG")
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9))
    with Decoder() as decoder:
        reason(decoder, plain[:33] + bomb + plain[33:])
        assert child_memory_mb(decoder) < 64


def test_an_image_that_outgrows_the_memory_limit_is_refused_and_the_child_lives_on() -> None:
    large = encoded(Image.new("L", (6000, 6000)), "PNG", compress_level=1)
    with Decoder(Limits(decoder_memory_bytes=100 * 2**20)) as decoder:
        small = encoded(photo(), "PNG")
        assert len(list(decoder.pages("a.png", small))) == 1
        child = decoder._child
        message = reason(decoder, large)
        if "needs more than 100 MB of memory" not in message:  # pragma: no cover
            pytest.fail(message)
        assert len(list(decoder.pages("a.png", small))) == 1
        assert decoder._child is child


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_cut_off_image_is_refused_and_never_half_decoded(
    decoder: Decoder, image_format: str
) -> None:
    data = encoded(photo(), image_format)
    for tenth in range(10):
        cut = data[: max(1, len(data) * tenth // 10)]
        message = reason(decoder, cut)
        assert "is damaged or incomplete" in message or "is not a PNG, JPEG" in message
    assert len(list(decoder.pages("x", data))) == 1


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (40, 40), (99 * i % 256, 0, 255)) for i in range(count)]


@pytest.mark.parametrize(
    ("image_format", "label"),
    [
        ("GIF", "x (first frame)"),
        ("PNG", "x (first frame)"),
        ("WEBP", "x (first frame)"),
        ("MPO", "x"),
    ],
)
@pytest.mark.parametrize("count", [2, 300])
def test_of_several_frames_the_first_is_shown_and_the_label_says_so(
    decoder: Decoder, image_format: str, label: str, count: int
) -> None:
    first, *others = frames(min(count, 20) if image_format == "MPO" else count)
    data = encoded(first, image_format, save_all=True, append_images=others)
    (page,) = decoder.pages("x", data)
    assert page.label == label
    red, green, blue = page.image.getpixel((20, 20))  # type: ignore[misc]
    assert (red < 8, green < 8, blue > 247) == (True, True, True)


def test_one_frame_needs_no_remark(decoder: Decoder) -> None:
    for image_format in ("GIF", "PNG", "WEBP", "TIFF"):
        (page,) = decoder.pages("x", encoded(photo(), image_format))
        assert page.label == "x"


NOT_ALLOWED = {
    "page.html": b"<!doctype html><img src=x onerror=alert(1)>",
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
    "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50),
    "plot.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "layers.psd": b"8BPS\0\1" + bytes(50),
    "program.png": b"\x7fELF\2\1\1" + bytes(50),
    "picture.bmp": encoded(Image.new("RGB", (40, 40)), "BMP"),
    "picture.ppm": encoded(Image.new("RGB", (40, 40)), "PPM"),
    "archive.pdf": b"PK\x03\x04" + bytes(50),
    "notes.jpg": b"just text",
    "sound.webp": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
    "zero.png": b"\0",
}


@pytest.mark.parametrize("name", NOT_ALLOWED)
def test_formats_off_the_list_are_refused_with_the_list(decoder: Decoder, name: str) -> None:
    message = reason(decoder, NOT_ALLOWED[name], name)
    assert message == (
        f"{name} is not a PNG, JPEG, WebP, GIF, TIFF or PDF file. "
        "Convert it to one of these and add it again."
    )


def test_content_decides_and_not_the_extension(decoder: Decoder) -> None:
    (page,) = decoder.pages("letter.pdf", encoded(photo(), "PNG"))
    assert page.image.tobytes() == photo().tobytes()
    (page,) = decoder.pages("photo.png", make_pdf([fill(1, 0, 0)]))
    assert page.label == "photo.png p. 1"


def test_a_png_with_an_archive_behind_it_is_its_picture_only(decoder: Decoder) -> None:
    (page,) = decoder.pages("x", encoded(photo(), "PNG") + b"PK\x03\x04" + bytes(100))
    assert page.image.tobytes() == photo().tobytes()


def test_size_limits_name_both_numbers() -> None:
    with Decoder(Limits(max_file_bytes=1024**2)) as decoder:
        message = reason(decoder, bytes(3 * 1024**2))
        assert message.startswith("x.png is 3 MB; the limit is 1 MB.")
        assert "is empty (0 bytes)" in reason(decoder, b"")
        assert decoder._child is None  # neither needed one


@pytest.mark.fault
def test_random_and_mutated_files_never_harm_the_next_one(decoder: Decoder) -> None:
    chance = random.Random(7)
    image, pdf = photo(), make_pdf([fill(1, 0, 0)] * 2)
    seeds = [encoded(image, name) for name in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")] + [pdf] * 2
    seeds.append(make_tiff([image.convert("L")] * 3))
    known = encoded(image, "PNG")
    outcomes = {"pages": 0, "refused": 0}
    for round_number in range(300):
        mutant = bytearray(chance.choice(seeds))
        for _ in range(chance.choice([1, 4, 30])):
            start = chance.randrange(len(mutant))
            mutant[start : start + chance.randrange(1, 8)] = chance.randbytes(chance.randrange(8))
        try:
            for page in decoder.pages("x.png", bytes(mutant)):
                if isinstance(page, FailedFile):
                    raise InputRejected(page.reason)
                assert page.image.mode == "RGB"
            outcomes["pages"] += 1
        except InputRejected as error:
            assert not LEAKS.search(str(error)), error
            outcomes["refused"] += 1
        if round_number % 10 == 0:
            (page,) = decoder.pages("known.png", known)
            assert page.image.tobytes() == image.tobytes()
    assert min(outcomes.values()) > 30, outcomes  # the mutations were neither harmless nor total


def test_random_bytes_behind_each_signature_are_refused(decoder: Decoder) -> None:
    chance = random.Random(3)
    signatures = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\x00", b"MM\x00*")
    for signature in (*signatures, b"RIFF\x24\0\0\0WEBPVP8 ", b"%PDF-1.7\n"):
        for _ in range(5):
            reason(decoder, signature + chance.randbytes(500))
