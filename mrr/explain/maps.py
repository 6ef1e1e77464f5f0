"""What a front end draws from an AttentionTrace: plain arrays in, plain arrays out, no torch."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from mrr.types import AttentionTrace

# A convention, not a finding: ten times the typical cell, whatever the query.
SINK_FACTOR = 10.0
# Words as people see them; scripts that put no space between words are cut into characters.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORDS = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the query and its tokens: rows indexes AttentionTrace.tokens and its maps."""

    text: str
    rows: range


def words(trace: AttentionTrace, query: str) -> list[Word]:
    """The query (Explanation.query) word by word as it was typed; a word's map is the mean over
    its rows.

    The mean, because each row is a distribution: a word cut into many pieces gets no more than a
    short one, and the map stays a share that can be held against that of the whole query. A piece
    belongs to the word that its first letter is in; a word that has none joins the one before.
    """
    typed = _WORDS.findall(query)
    start, end = trace.query_span
    pieces = trace.tokens[start:end]
    if not typed or not pieces:
        return []
    letters, spelt = [_letters(piece) for piece in pieces], [_letters(word) for word in typed]
    # What the first piece holds of the template before the query.
    lead = max(0, "".join(letters).find("".join(spelt)))
    begins = np.cumsum([0, *map(len, letters)])[:-1] - lead
    ends = np.cumsum([len(word) for word in spelt])
    owner = np.searchsorted(ends, begins, side="right").clip(max=len(typed) - 1)
    for i, piece in enumerate(pieces[1:], start=1):
        if not piece:  # the rest of the character before it
            owner[i] = owner[i - 1]
    found: list[Word] = []
    for n, text in enumerate(typed):
        rows = np.flatnonzero(owner == n)
        if rows.size:
            found.append(Word(text, range(start + int(rows[0]), start + int(rows[-1]) + 1)))
        elif found:
            found[-1] = Word(found[-1].text + text, found[-1].rows)
    return found


def _letters(text: str) -> str:
    """Letters that can be counted on both sides of a tokenizer, which may have lowered and
    composed them anew (NFKC, as the bundled one: `oﬃce` comes back as `office`).

    Decomposed, since that goes character by character, wherever pieces are cut.
    """
    return "".join(unicodedata.normalize("NFKD", text).casefold().split())


def page_map(trace: AttentionTrace, *, contrast: bool = False) -> np.ndarray:
    """(R, C) attention of the user's words to the page, averaged over them and the band's layers.

    contrast: less what neutral queries pay to the same cells; signed, and about 0 at sinks.
    """
    span = slice(*trace.query_span)
    maps = [
        rows[span] - (trace.neutral_maps[layer][span] if contrast else 0.0)
        for layer, rows in trace.page_maps.items()
    ]
    return np.concatenate(maps).mean(axis=0)


def sink_cells(maps: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(R, C) bool: kept cells to which every map gives over SINK_FACTOR times the median cell.

    maps: (M, R, C), one for each of several content-free queries, 0 at pruned tokens. kept: (R, C)
    bool; the median is over these. What one query alone attends to is never a sink.
    """
    typical = np.median(maps[:, kept], axis=1)[:, None, None]
    return (maps > SINK_FACTOR * typical).all(axis=0)
