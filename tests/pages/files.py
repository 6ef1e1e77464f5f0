"""Files for the tests, made by hand or by Pillow: nothing here is parsed by what is tested."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

_PASSWORD_PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
_FILE_ID = b"0123456789abcdef"


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photo(width: int = 96, height: int = 64) -> Image.Image:
    """A picture without symmetry: every turn and flip of it is another picture."""
    image = Image.new("RGB", (width, height))
    for y in range(height):
        for x in range(width):
            image.putpixel((x, y), (255 * x // width, 255 * y // height, (x * y) % 256))
    return image


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG header that promises a size, with next to nothing behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def make_tiff(
    pages: Sequence[Image.Image],
    kinds: Sequence[int] | None = None,
    last: int = 0,
    order: str = "<",
    big: bool = False,
) -> bytes:
    """A TIFF of greyscale pictures, unpacked, each behind its directory.

    kinds: NewSubfileType of each. last: what the last one points at; the first directory is at 8,
    or at 16 of a big one, which has 64 bits to a count or an offset.
    """
    forms = ("HHHQ", "Q", "HHQI4x", "Q") if big else ("", "H", "HHII", "I")
    head, count, field, link = (struct.Struct(order + form) for form in forms)
    out = b"II" if order == "<" else b"MM"
    out += head.pack(43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    for page, kind in zip(pages, kinds or [0] * len(pages), strict=True):
        (width, height), n_fields = page.size, 9
        pixels = len(out) + count.size + n_fields * field.size + link.size
        end = pixels + width * height
        tags = {254: kind, 256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: pixels}
        tags |= {278: height, 279: width * height}
        out += count.pack(n_fields)
        out += b"".join(field.pack(tag, 4, 1, value) for tag, value in tags.items())
        out += link.pack(last if page is pages[-1] else end) + page.tobytes()
    return out


def fill(red: float, green: float, blue: float, size: tuple[int, int] = (100, 100)) -> bytes:
    """A page's content stream: one flat colour."""
    return f"{red} {green} {blue} rg 0 0 {size[0]} {size[1]} re f".encode()


def slow_content() -> bytes:
    """Draws for about ten seconds: 200,000 fills of a whole letter page, 8 KB when packed."""
    return b"0 0 612 792 re f " * 200_000


def make_pdf(
    contents: Sequence[bytes],
    box: str = "0 0 100 100",
    page: str = "",
    catalog: str = "",
    extra: Sequence[bytes] = (),
    trailer: str = "",
) -> bytes:
    """A PDF with one page per content stream.

    page, catalog, trailer: more entries of those dictionaries. extra: more objects, numbered
    from 3 + 2 * len(contents).
    """
    n = len(contents)
    kids = " ".join(f"{3 + i} 0 R" for i in range(n))
    objects = [
        f"<</Type/Catalog/Pages 2 0 R{catalog}>>".encode(),
        f"<</Type/Pages/Kids[{kids}]/Count {n}>>".encode(),
    ]
    for i in range(n):
        entries = f"/MediaBox[{box}]/Contents {3 + n + i} 0 R{page}"
        objects.append(f"<</Type/Page/Parent 2 0 R{entries}>>".encode())
    for content in contents:
        packed = zlib.compress(content)
        head = b"<</Length %d/Filter/FlateDecode>>stream\n" % len(packed)
        objects.append(head + packed + b"\nendstream")
    objects.extend(extra)
    return _assemble(objects, trailer)


def locked_pdf(user_password: bytes, owner_password: bytes) -> bytes:
    """One red page under the 40-bit standard handler (PDF 1.7, 7.6.3), RC4 by hand."""
    owner_key = hashlib.md5((owner_password + _PASSWORD_PAD)[:32]).digest()[:5]
    owner = _rc4(owner_key, (user_password + _PASSWORD_PAD)[:32])
    permissions = struct.pack("<i", -4)
    seed = (user_password + _PASSWORD_PAD)[:32] + owner + permissions + _FILE_ID
    key = hashlib.md5(seed).digest()[:5]
    user = _rc4(key, _PASSWORD_PAD)
    number = 4  # of the content stream, which is encrypted with a key of its own
    object_key = hashlib.md5(key + struct.pack("<I", number)[:3] + b"\0\0").digest()[:10]
    content = _rc4(object_key, fill(1, 0, 0))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Contents 4 0 R>>",
        b"<</Length %d>>stream\n" % len(content) + content + b"\nendstream",
        f"<</Filter/Standard/V 1/R 2/P -4/O<{owner.hex()}>/U<{user.hex()}>>>".encode(),
    ]
    return _assemble(objects, f"/Encrypt 5 0 R/ID[<{_FILE_ID.hex()}><{_FILE_ID.hex()}>]")


def _assemble(objects: Sequence[bytes], trailer: str) -> bytes:
    out = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(out)
    size = len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += f"trailer<</Root 1 0 R/Size {size}{trailer}>>\nstartxref\n{start}\n%%EOF".encode()
    return bytes(out)


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
