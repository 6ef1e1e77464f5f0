"""Where things stand on a page: headings, paragraphs, lists, tables, charts, in one or two columns.

Lengths are in pixels of the finished page; render.py draws them at a larger scale and shrinks.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

from mrr.train import fonts
from mrr.train.text import TextSampler

Colour = int  # grey level, 0 black


@dataclass(frozen=True, slots=True)
class Word:
    """One printed word. x: left edge; baseline: y of the baseline; both may be fractional."""

    text: str
    face: fonts.Face
    size_px: float
    x: float
    baseline: float
    ink: Colour


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle: rule, cell, bar or panel, drawn before the words."""

    x0: float
    y0: float
    x1: float
    y1: float
    ink: Colour


@dataclass(slots=True)
class PageLayout:
    """A page to be drawn.

    scale: how much larger it is drawn than it ends up. title: the words of its largest heading.
    """

    width: int
    height: int
    paper: Colour
    scale: float
    words: list[Word] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    title: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Style:
    """Which pages are drawn; the curriculum widens it.

    faces: fonts to choose from. body_px: range of body sizes at the finished page. furniture:
    share of pages with tables, charts, panels and two columns; the rest is running text.
    dark_share: share of pages in light ink on dark. dense: share of pages filled edge to edge with
    running text, which teach most for their size.
    """

    faces: tuple[fonts.Face, ...]
    body_px: tuple[float, float] = (13.0, 17.0)
    furniture: float = 0.5
    dark_share: float = 0.02
    scan_share: float = 0.0
    dense: float = 0.0

    def __post_init__(self) -> None:
        if not self.faces:
            raise ValueError("No fonts were found; install fonts-liberation and fonts-dejavu.")


def width_of(face: fonts.Face, size_px: float, scale: float, text: str) -> float:
    """Printed width in finished pixels; measured at the drawn size, where hinting rounds it."""
    return float(fonts.advances(face.path, fonts.drawn_size(size_px, scale), text).sum()) / scale


class _Typesetter:
    """Fills one page. y runs down a column; every method returns the y below what it set."""

    def __init__(self, page: PageLayout, style: Style, sampler: TextSampler, rng: random.Random):
        self.page, self.style, self.sampler, self.rng = page, style, sampler, rng
        self.dense = rng.random() < style.dense
        regular = [face for face in style.faces if not face.italic and not face.bold]
        self.face = rng.choice(regular or list(style.faces))
        kin = [face for face in style.faces if face.family == self.face.family]
        self.bold = next((face for face in kin if face.bold and not face.italic), self.face)
        self.italic = next((face for face in kin if face.italic and not face.bold), self.face)
        self.body_px = rng.uniform(*style.body_px)
        self.leading = rng.uniform(1.14, 1.5)
        self.ink = 255 if page.paper < 110 else rng.choice((0, 0, 0, 20, 45, 70))

    def line(
        self,
        words: list[str],
        face: fonts.Face,
        size: float,
        x: float,
        baseline: float,
        width: float,
        ink: Colour | None = None,
    ) -> list[str]:
        """Set words from x until the width is full. Returns the words that did not fit."""
        stretch = self.rng.uniform(*self.rng.choice(((1.0, 1.0), (0.85, 1.2), (0.9, 1.8))))
        space = max(2.5, width_of(face, size, self.page.scale, " ") * stretch)
        cursor = x
        for i, text in enumerate(words):
            # Now and then a word of the text stands out.
            out = face is self.face and self.rng.random() < 0.04
            set_in = self.rng.choice((self.bold, self.italic)) if out else face
            advance = width_of(set_in, size, self.page.scale, text)
            if cursor + advance > x + width:
                # A word wider than the whole line would never be set: drop it.
                return words[i + 1 :] if cursor == x else words[i:]
            self.page.words.append(
                Word(text, set_in, size, cursor, baseline, self.ink if ink is None else ink)
            )
            cursor += advance + space
        return []

    def paragraph(
        self,
        words: list[str],
        x: float,
        y: float,
        width: float,
        bottom: float,
        face: fonts.Face | None = None,
        size: float | None = None,
    ) -> float:
        size = size or self.body_px
        pitch = size * self.leading
        while words and y + pitch < bottom:
            words = self.line(words, face or self.face, size, x, y + size, width)
            y += pitch
        return y

    def heading(self, x: float, y: float, width: float, bottom: float, scale: float) -> float:
        size = self.body_px * scale
        words = self.sampler.title(self.rng.randint(1, 7))
        if not self.page.title:
            self.page.title = tuple(words)
        face = self.bold if self.rng.random() < 0.75 else self.face
        return self.paragraph(words, x, y, width, bottom, face, size) + size * 0.35

    def bullets(self, x: float, y: float, width: float, bottom: float) -> float:
        mark = self.rng.choice(("•", "-", "–", "*", "1."))
        for i in range(self.rng.randint(2, 6)):
            if y + self.body_px * self.leading > bottom:
                break
            text = f"{i + 1}." if mark == "1." else mark
            self.line([text], self.face, self.body_px, x, y + self.body_px, width)
            words = self.sampler.prose(self.rng.randint(2, 14))
            y = self.paragraph(words, x + self.body_px * 1.4, y, width - self.body_px * 1.4, bottom)
        return y

    def table(self, x: float, y: float, width: float, bottom: float) -> float:
        rng = self.rng
        n_columns, n_rows = rng.randint(2, 5), rng.randint(3, 9)
        size = self.body_px * rng.uniform(0.9, 1.0)
        pitch, cell = size * rng.uniform(1.3, 2.0), width / n_columns
        n_rows = min(n_rows, int((bottom - y) / pitch))
        ruled = rng.random() < 0.6
        rule = abs(self.page.paper - rng.randint(60, 200))
        for row in range(n_rows):
            top = y + row * pitch
            if ruled:
                self.page.boxes.append(Box(x, top, x + width, top + 1, rule))
            for column in range(n_columns):
                wordy = row == 0 or column == 0
                words = self.sampler.title(rng.randint(1, 2)) if wordy else [self.sampler.number()]
                face = self.bold if row == 0 else self.face
                self.line(words, face, size, x + column * cell + 4, top + pitch * 0.72, cell - 8)
        return y + n_rows * pitch + size

    def chart(self, x: float, y: float, width: float, bottom: float) -> float:
        rng = self.rng
        height = min(bottom - y, rng.uniform(120, 260))
        if height < 100:
            return y
        size = self.body_px * rng.uniform(0.85, 1.0)
        n_bars = rng.randint(3, 7)
        base, step = y + height - size * 2, width / n_bars
        self.line(self.sampler.title(rng.randint(2, 5)), self.bold, size, x, y + size, width)
        self.page.boxes.append(Box(x, base, x + width, base + 1, self.ink))
        for i in range(n_bars):
            tall = rng.uniform(0.1, 0.9) * (height - size * 5)
            tint = rng.randint(60, 200)
            self.page.boxes.append(
                Box(x + (i + 0.2) * step, base - tall, x + (i + 0.8) * step, base, tint)
            )
            if rng.random() < 0.6:
                self.line(
                    [self.sampler.number()],
                    self.face,
                    size,
                    x + (i + 0.2) * step,
                    base - tall - 3,
                    step,
                )
            self.line(
                [self.sampler.word()],
                self.face,
                size,
                x + (i + 0.1) * step,
                base + size * 1.2,
                step,
            )
        return y + height + size

    def column(self, x: float, y: float, width: float, bottom: float) -> None:
        """Fill a column with blocks until it is full."""
        while y + self.body_px * 2 < bottom:
            roll = self.rng.random()
            if self.dense or roll > self.style.furniture:
                y = self.paragraph(
                    self.sampler.prose(self.rng.randint(20, 110)), x, y, width, bottom
                )
            elif roll < self.style.furniture * 0.3:
                y = self.heading(x, y, width, bottom, self.rng.uniform(1.05, 1.6))
            elif roll < self.style.furniture * 0.55:
                y = self.bullets(x, y, width, bottom)
            elif roll < self.style.furniture * 0.8:
                y = self.table(x, y, width, bottom)
            else:
                y = self.chart(x, y, width, bottom)
            y += self.body_px * (0.0 if self.dense else self.rng.uniform(0.2, 1.2))


def disturbed(page: PageLayout, sampler: TextSampler) -> tuple[PageLayout, tuple[int, ...]]:
    """A near-duplicate of a page, and the indices of its words that are not as they were.

    Some words have changed places with the next one, others have given way to a shorter word.
    """
    rng, words, changed = sampler.rng, list(page.words), []
    for i in rng.sample(range(len(words)), min(len(words), rng.randint(4, 10))):
        first, second = words[i], words[min(i + 1, len(words) - 1)]
        room = width_of(first.face, first.size_px, page.scale, first.text)
        if rng.random() < 0.5 and _side_by_side(first, second):
            after = width_of(second.face, second.size_px, page.scale, second.text)
            words[i] = replace(second, x=first.x)
            words[i + 1] = replace(first, x=second.x - room + after)
        else:
            other = sampler.word()
            if other == first.text or width_of(first.face, first.size_px, page.scale, other) > room:
                continue
            words[i] = replace(first, text=other)
        changed.append(i)
    return replace(page, words=words), tuple(changed)


def _side_by_side(first: Word, second: Word) -> bool:
    """Whether the second is the next word of the same line, in the same face, and another one."""
    alike = (first.baseline, first.face, first.size_px) == (
        second.baseline,
        second.face,
        second.size_px,
    )
    return alike and second.x > first.x and first.text != second.text


def compose(width: int, height: int, style: Style, sampler: TextSampler) -> PageLayout:
    """Lay out one page of width x height pixels from the sampler's random stream."""
    rng = sampler.rng
    dark = rng.random() < style.dark_share
    paper = rng.randint(0, 70) if dark else rng.choice((255, 255, 255, 255, 245, 232))
    page = PageLayout(width, height, paper, rng.choice((1.0, 1.25, 1.5, 1.62, 1.8, 2.2)))
    setter = _Typesetter(page, style, sampler, rng)
    if setter.dense:
        setter.column(rng.uniform(0, 12), rng.uniform(-8, 8), width - 6, height + 12)
        return page
    margin = rng.uniform(0.03, 0.11) * width
    top, bottom = margin * rng.uniform(0.6, 1.2), height - margin * rng.uniform(0.5, 1.1)
    inner = width - 2 * margin
    if rng.random() < 0.5:  # running header and page number
        size = setter.body_px * 0.9
        setter.line(sampler.title(rng.randint(1, 6)), setter.italic, size, margin, top, inner)
        setter.line(
            [str(rng.randint(1, 400))], setter.face, size, width / 2, height - margin * 0.4, inner
        )
        top += size * 2
    if rng.random() < 0.7:
        top = setter.heading(margin, top, inner, bottom, rng.uniform(1.3, 2.6))
    n_columns = 2 if rng.random() < style.furniture * 0.6 else 1
    gutter = margin * 0.5 if n_columns == 2 else 0.0
    each = (inner - gutter * (n_columns - 1)) / n_columns
    for i in range(n_columns):
        fill = bottom if rng.random() < 0.8 else top + (bottom - top) * rng.uniform(0.3, 1.0)
        setter.column(margin + i * (each + gutter), top, each, math.floor(fill))
    return page
