"""What a reader should see in each cell of a page: word pieces, and characters on a fine grid."""

from __future__ import annotations

import string
import unicodedata
from dataclasses import dataclass

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


def label(page: PrintedPage, word_pieces: WordPieces) -> PageLabels:
    """Cut a page whose sides are whole windows into labelled windows."""
    height, width = page.pixels.shape
    rows, cols = height // WINDOW_PX, width // WINDOW_PX
    ids, x0, x1, y = piece_boxes(page, word_pieces)
    centre = cell_index((x0 + x1) / 2, y, rows, cols)
    pieces = np.stack([centre, ids], 1)[centre >= 0]
    overlaps = []
    for edge in (x0 + 1, x1 - 1):
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


def piece_boxes(page: PrintedPage, word_pieces: WordPieces) -> tuple[np.ndarray, ...]:
    """ids, left, right and middle height of every word piece on the page, in pixels."""
    starts = np.searchsorted(page.char_word, np.arange(len(page.words)))
    ids, first, last = [], [], []
    for start, word in zip(starts, page.words, strict=True):
        for piece, a, b in word_pieces(word):
            ids.append(piece)
            first.append(start + min(a, len(word) - 1))
            last.append(start + min(max(a, b - 1), len(word) - 1))
    return (
        np.array(ids, np.int64),
        page.char_x[first, 0],
        page.char_x[last, 1],
        page.char_y[first].mean(1),
    )


def cell_index(x: np.ndarray, y: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Cell of each point, counted window by window; -1 outside the page."""
    column, row = np.floor(x / CELL_PX).astype(np.int64), np.floor(y / CELL_PX).astype(np.int64)
    inside = (column >= 0) & (column < cols * CELLS) & (row >= 0) & (row < rows * CELLS)
    window = (row // CELLS) * cols + column // CELLS
    return np.where(inside, window * CELLS * CELLS + (row % CELLS) * CELLS + column % CELLS, -1)


def character_class(char: str) -> int:
    """Class of a printed character; accents and case are folded away."""
    base = unicodedata.normalize("NFD", char.lower())[:1]
    return _CLASS.get(base, N_CLASSES - 1)


def _character_grid(page: PrintedPage) -> np.ndarray:
    height, width = page.pixels.shape
    grid = np.zeros((height // GRID_H, width // GRID_W), np.uint8)
    classes = np.array([character_class(c) for word in page.words for c in word], np.uint8)
    if len(classes):
        left = np.ceil(page.char_x[:, 0] / GRID_W - 0.5).astype(int)
        right = np.ceil(page.char_x[:, 1] / GRID_W - 0.5).astype(int)
        top = np.ceil(page.char_y[:, 0] / GRID_H - 0.5).astype(int)
        bottom = np.ceil(page.char_y[:, 1] / GRID_H - 0.5).astype(int)
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
