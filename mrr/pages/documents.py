"""Bytes to pages, in the decoding child: what each allowed format is opened with."""

from __future__ import annotations

import io
import math
from typing import Protocol

import pypdfium2 as pdfium
from PIL import (
    GifImagePlugin,  # noqa: F401  the plugins are registered by being imported;
    Image,
    JpegImagePlugin,  # noqa: F401  Image.open would import every format there is
    PngImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)
from pypdfium2 import raw as pdfium_c

from mrr.pages.canonical import PAGE_MAX_PIXELS, canonical, check_aspect, check_pixels
from mrr.pages.refusal import Refused
from mrr.pages.tiff import TiffFile

PDF_SCALE = 144 / 72  # 144 dpi; a PDF unit is 1/72 inch
_PDF_HEAD_BYTES = 1024  # a PDF may begin with junk; viewers look this far

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}
_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


class Document(Protocol):
    """An open file. has_pages: whether they have numbers. still: what is shown of a moving one."""

    n_pages: int
    has_pages: bool
    still: str

    def page(self, index: int) -> tuple[Image.Image, str]:
        """Return the canonical page at a 0-based index, and the label that the file gives it."""

    def close(self) -> None:
        """Release what the file holds."""


def open_document(data: bytes, max_pixels: int) -> Document:
    """Open a file by its content, whatever it is called. Raises Refused."""
    for magic, image_format in _MAGIC.items():
        if data.startswith(magic):
            return ImageDocument(data, image_format, max_pixels)
    if data.startswith(_TIFF_MAGIC):
        return TiffFile(data, max_pixels)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        check_pixels(*_webp_size(data), max_pixels)  # Pillow allocates the canvas to open it
        return ImageDocument(data, "WEBP", max_pixels)
    if b"%PDF-" in data[:_PDF_HEAD_BYTES]:
        return PdfFile(data)
    raise Refused("format")


class ImageDocument:
    """One raster image; of several frames, the first."""

    n_pages = 1
    has_pages = False

    def __init__(self, data: bytes, image_format: str, max_pixels: int) -> None:
        self._data = data
        self._format = image_format
        with self._open() as image:
            check_pixels(image.width, image.height, max_pixels)
            check_aspect(image.width, image.height)
            self.still = _still(image)

    def page(self, index: int) -> tuple[Image.Image, str]:
        """Decode it; opened anew, so that no decoder state stays behind."""
        with self._open() as image:
            return canonical(image), ""

    def close(self) -> None:
        """Nothing is held but bytes."""

    def _open(self) -> Image.Image:
        return Image.open(io.BytesIO(self._data), formats=[self._format])


class PdfFile:
    """A PDF, rasterised by PDFium at 144 dpi with its annotations and filled forms."""

    has_pages = True
    still = ""

    def __init__(self, data: bytes) -> None:
        # PdfDocument(data) asks for the last error also where there was none, as in a PDF of no
        # pages, and then reports that of an earlier file; so the loading is done by hand.
        self._data = data  # PDFium reads from it for as long as the document is open
        loaded = pdfium_c.FPDF_LoadMemDocument64(data, len(data), None)
        if not loaded:
            raise Refused(_pdf_refusal(pdfium_c.FPDF_GetLastError()))
        self._pdf = pdfium.PdfDocument(loaded)
        self.n_pages = len(self._pdf)
        if self.n_pages < 1:
            self._pdf.close()
            raise Refused("no-pages")
        self._pdf.init_forms()

    def page(self, index: int) -> tuple[Image.Image, str]:
        """Render one page at 144 dpi, or as much less as keeps it within 4 MP."""
        page = self._pdf[index]
        try:
            check_aspect(*page.get_size())
            bitmap = page.render(
                scale=_pdf_scale(*page.get_size()),
                may_draw_forms=True,
                draw_annots=True,
                rev_byteorder=True,
            )
            return canonical(bitmap.to_pil()), self._pdf.get_page_label(index)
        finally:
            page.close()

    def close(self) -> None:
        """Free PDFium's copy."""
        self._pdf.close()


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas (width, height) of a WebP file. Source: RFC 9649, sections 2.5 to 2.7."""
    kind, chunk = data[12:16], data[20:30]
    if len(chunk) < 10:
        raise Refused("damaged")
    if kind == b"VP8X":
        return 1 + int.from_bytes(chunk[4:7], "little"), 1 + int.from_bytes(chunk[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(chunk[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = chunk[6:8], chunk[8:10]
        return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(height, "little") & 0x3FFF
    raise Refused("damaged")


def _still(image: Image.Image) -> str:
    # An MPO is a photograph with its preview or depth map behind it: the first is the picture.
    moves = image.format != "MPO" and getattr(image, "is_animated", False)
    return "first frame" if moves else ""


def _pdf_scale(width: float, height: float) -> float:
    """Pixels per PDF unit; PDFium rounds each side up, so the fit is checked as it rounds."""
    scale = min(PDF_SCALE, math.sqrt(PAGE_MAX_PIXELS / (width * height)))
    while math.ceil(width * scale) * math.ceil(height * scale) > PAGE_MAX_PIXELS:
        scale *= 0.999
    return scale


def _pdf_refusal(error_code: int) -> str:
    locked = (pdfium_c.FPDF_ERR_PASSWORD, pdfium_c.FPDF_ERR_SECURITY)
    return "locked" if error_code in locked else "damaged"
