"""Draw a layout as a grey page, the way real pages reach the model.

PDFs are rasterised large and antialiased, then shrunk with a bicubic filter to the model's size.
So words are drawn at 1 to 2.2 times the final scale and the whole page is shrunk: strokes get the
same softness, and every glyph lands on its own fraction of a pixel.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mrr.train import fonts
from mrr.train.layout import PageLayout, Word


@dataclass(frozen=True, slots=True)
class PrintedPage:
    """A drawn page and what is written on it, exactly.

    pixels: (height, width) uint8. words: the words in reading order. char_x: (n, 2) left and right
    edge of every character; char_y: (n, 2) top and bottom of its line box (ascender to descender);
    char_word: (n,) index of its word. Edges are in pixels of the page.
    """

    pixels: np.ndarray
    words: tuple[str, ...]
    title: tuple[str, ...]
    char_x: np.ndarray
    char_y: np.ndarray
    char_word: np.ndarray


def draw(page: PageLayout, rng: random.Random, scan_share: float = 0.0) -> PrintedPage:
    """Draw a page. scan_share: probability that it looks like a light scan."""
    scale = page.scale
    canvas = Image.new("L", (round(page.width * scale), round(page.height * scale)), page.paper)
    pen = ImageDraw.Draw(canvas)
    for box in page.boxes:
        edges = (
            box.x0 * scale,
            box.y0 * scale,
            box.x1 * scale - 1,
            max(box.y1, box.y0 + 1) * scale - 1,
        )
        pen.rectangle((*edges[:2], max(edges[0], edges[2]), max(edges[1], edges[3])), fill=box.ink)
    for word in page.words:
        _set_word(pen, word, scale)
    image = canvas.resize((page.width, page.height), Image.Resampling.BICUBIC)
    return _printed(page, scanned(np.asarray(image), rng, scan_share))


def scanned(pixels: np.ndarray, rng: random.Random, share: float) -> np.ndarray:
    """The page as it is, or, with probability `share`, as a light scan of it."""
    return np.asarray(_scan(Image.fromarray(pixels), rng)) if rng.random() < share else pixels


def _set_word(pen: ImageDraw.ImageDraw, word: Word, scale: float) -> None:
    size = fonts.drawn_size(word.size_px, scale)
    x, baseline = word.x * scale, round(word.baseline * scale)
    for char in word.text:
        mask, right, down = fonts.glyph(word.face.path, size, char)
        if mask.size[0] and mask.size[1]:
            pen.draw.draw_bitmap((round(x) + right, baseline + down), mask, word.ink)
        x += fonts.advance(word.face.path, size, char)


def blank(page: PageLayout) -> PrintedPage:
    """The page with its words where they belong but nothing drawn."""
    return _printed(page, np.full((page.height, page.width), page.paper, np.uint8))


def _printed(page: PageLayout, pixels: np.ndarray) -> PrintedPage:
    words = tuple(word.text for word in page.words)
    return PrintedPage(pixels, words, page.title, *_character_boxes(page))


def _character_boxes(page: PageLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    xs, ys, owners = [], [], []
    for index, word in enumerate(page.words):
        size = fonts.drawn_size(word.size_px, page.scale)
        right = np.cumsum(fonts.advances(word.face.path, size, word.text)) / page.scale
        left = np.concatenate([[0.0], right[:-1]])
        xs.append(np.stack([left, right], 1) + word.x)
        ys.append(
            np.array(
                [[word.baseline - 0.74 * word.size_px, word.baseline + 0.2 * word.size_px]]
            ).repeat(len(word.text), 0)
        )
        owners.append(np.full(len(word.text), index))
    if not xs:
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    return (
        np.concatenate(xs).astype(np.float32),
        np.concatenate(ys).astype(np.float32),
        np.concatenate(owners),
    )


def _scan(image: Image.Image, rng: random.Random) -> Image.Image:
    """A light scan: a little skew, blur, noise, uneven tone and JPEG."""
    paper = int(np.median(np.asarray(image)))
    if rng.random() < 0.5:
        # At most 0.4 degrees: half a line over a page, so that word boxes stay true to a cell.
        image = image.rotate(rng.uniform(-0.4, 0.4), Image.Resampling.BICUBIC, fillcolor=paper)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    grain = np.random.default_rng(rng.getrandbits(32))
    noise = grain.standard_normal(image.size[::-1], np.float32) * rng.uniform(0, 9)
    pixels = np.asarray(image, np.float32) * rng.uniform(0.75, 1.0) + rng.uniform(0, 30) + noise
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.6:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(35, 85))
        image = Image.open(buffer).convert("L")
    return image
