"""What a reader should see in each cell of a page: word pieces, and characters on a fine grid."""

from __future__ import annotations

import functools
import string
import unicodedata
from dataclasses import dataclass, replace

import numpy as np

from mrr.train.render import PrintedPage
from mrr.train.tokens import WordPieces
from mrr.train.tower import CELL_PX, CELLS, PATCH_PX, WINDOW_PX

# The character grid: 4 columns and 2 rows in each 16 px patch.
GRID_W, GRID_H = 4, 8
SLOTS = (PATCH_PX // GRID_W) * (PATCH_PX // GRID_H)
CHARACTERS = string.ascii_lowercase + string.digits + ".,;:!?'\"()[]-/%$&*+=#@_<>{}|~^"
N_CLASSES = len(CHARACTERS) + 2  # 0 is blank, the last one is any other character
_CLASS = {char: i + 1 for i, char in enumerate(CHARACTERS)}


@dataclass(frozen=True, slots=True)
class PageLabels:
    """Windows of one page with their labels.

    windows: (n, 256, 256) uint8. pieces: (k, 2) int64, rows (cell, piece id) for every piece whose
    centre lies in the cell; cells count through the windows, 64 each, row-major. overlaps: (m, 2)
    likewise, for pieces that only reach into the cell. characters: (n, 256, SLOTS) uint8 classes
    of every patch in merge-block order.
    """

    windows: np.ndarray
    pieces: np.ndarray
    overlaps: np.ndarray
    characters: np.ndarray


@dataclass(frozen=True, slots=True)
class MarkedPage:
    """A page's pixels (height, width) with what lies where on it, ready to be cut.

    pieces: (k,) ids of its word pieces; owner: (k,) the word that each belongs to; piece_x: (k, 2)
    left and right, piece_y: (k,) middle. classes: (n,) of its characters, char_x and char_y as in
    PrintedPage. Lengths in pixels.
    """

    pixels: np.ndarray
    pieces: np.ndarray
    owner: np.ndarray
    piece_x: np.ndarray
    piece_y: np.ndarray
    classes: np.ndarray
    char_x: np.ndarray
    char_y: np.ndarray

    def cut(self, left: int, top: int, width: int, height: int) -> MarkedPage:
        """A rectangle of the page; what lies outside it stays listed."""
        return replace(
            self,
            pixels=self.pixels[top : top + height, left : left + width],
            piece_x=self.piece_x - left,
            piece_y=self.piece_y - top,
            char_x=self.char_x - left,
            char_y=self.char_y - top,
        )


def mark(page: PrintedPage, word_pieces: WordPieces) -> MarkedPage:
    """Find the word pieces and the classes of the characters of a page."""
    starts = np.searchsorted(page.char_word, np.arange(len(page.words)))
    ids, owner, first, last = [], [], [], []
    for i, (start, word) in enumerate(zip(starts.tolist(), page.words, strict=True)):
        for piece, a, b in word_pieces(word):
            ids.append(piece)
            owner.append(i)
            first.append(start + min(a, len(word) - 1))
            last.append(start + min(max(a, b - 1), len(word) - 1))
    return MarkedPage(
        pixels=page.pixels,
        pieces=np.array(ids, np.int64),
        owner=np.array(owner, np.int64),
        piece_x=np.stack([page.char_x[first, 0], page.char_x[last, 1]], 1),
        piece_y=page.char_y[first].mean(1),
        classes=np.array([character_class(c) for word in page.words for c in word], np.uint8),
        char_x=page.char_x,
        char_y=page.char_y,
    )


def label(page: MarkedPage) -> PageLabels:
    """Cut a page whose sides are whole windows into labelled windows."""
    height, width = page.pixels.shape
    rows, cols = height // WINDOW_PX, width // WINDOW_PX
    ids, y = page.pieces, page.piece_y
    centre = piece_cells(page)
    pieces = np.stack([centre, ids], 1)[centre >= 0]
    overlaps = []
    for edge in (page.piece_x[:, 0] + 1, page.piece_x[:, 1] - 1):
        for shift in (-4.0, 4.0):  # lines that straddle two rows of cells belong to both, nearly
            cell = cell_index(edge, y + shift, rows, cols)
            overlaps.append(np.stack([cell, ids], 1)[(cell >= 0) & (cell != centre)])
    windows = page.pixels.reshape(rows, WINDOW_PX, cols, WINDOW_PX).swapaxes(1, 2)
    return PageLabels(
        windows=windows.reshape(-1, WINDOW_PX, WINDOW_PX),
        pieces=pieces,
        overlaps=np.unique(np.concatenate(overlaps), axis=0),
        characters=_character_grid(page),
    )


def piece_cells(page: MarkedPage) -> np.ndarray:
    """(k,) the cell that holds each piece's centre, counted window by window; -1 outside."""
    height, width = page.pixels.shape
    middle = page.piece_x.mean(1)
    return cell_index(middle, page.piece_y, height // WINDOW_PX, width // WINDOW_PX)


def cell_index(x: np.ndarray, y: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Cell of each point, counted window by window; -1 outside the page."""
    column, row = np.floor(x / CELL_PX).astype(np.int64), np.floor(y / CELL_PX).astype(np.int64)
    inside = (column >= 0) & (column < cols * CELLS) & (row >= 0) & (row < rows * CELLS)
    window = (row // CELLS) * cols + column // CELLS
    return np.where(inside, window * CELLS * CELLS + (row % CELLS) * CELLS + column % CELLS, -1)


@functools.cache
def character_class(char: str) -> int:
    """Class of a printed character; accents and case are folded away."""
    base = unicodedata.normalize("NFD", char.lower())[:1]
    return _CLASS.get(base, N_CLASSES - 1)


def _character_grid(page: MarkedPage) -> np.ndarray:
    height, width = page.pixels.shape
    grid = np.zeros((height // GRID_H, width // GRID_W), np.uint8)
    left, right = np.ceil(page.char_x.T / GRID_W - 0.5).astype(int)
    top, bottom = np.ceil(page.char_y.T / GRID_H - 0.5).astype(int)
    near = (right > 0) & (bottom > 0) & (left < grid.shape[1]) & (top < grid.shape[0])
    if near.any():
        left, right, top, bottom = left[near], right[near], top[near], bottom[near]
        classes = page.classes[near]
        for dy in range((bottom - top).max()):
            for dx in range((right - left).max()):
                y, x = top + dy, left + dx
                ok = (y < bottom) & (x < right) & (y >= 0) & (x >= 0)
                ok &= (y < grid.shape[0]) & (x < grid.shape[1])
                grid[y[ok], x[ok]] = classes[ok]
    rows, cols = height // WINDOW_PX, width // WINDOW_PX
    shape = (rows, CELLS, 2, PATCH_PX // GRID_H, cols, CELLS, 2, PATCH_PX // GRID_W)
    # (rows, cols, cell row, cell col, patch row, patch col, slot row, slot col)
    ordered = grid.reshape(shape).transpose(0, 4, 1, 5, 2, 6, 3, 7)
    return ordered.reshape(rows * cols, -1, SLOTS)
