"""What a person typed, cleaned before it meets the tokeniser."""

from __future__ import annotations

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.plain import nfc, one_line

_JOINERS = " \u200c\u200d"  # part of words, and nothing by themselves
_DECOMPOSED = 4  # characters that may make one when composed: a Korean syllable is up to three


def clean_query(text: str, limits: Limits) -> tuple[str, tuple[str, ...]]:
    """Return the query as one line of NFC text, and notes on what was left out.

    Raises InputRejected for what is no text, and where nothing visible is left.
    """
    if not isinstance(text, str):
        raise InputRejected(f"The query is {text!r:.80}; it must be a text, such as 'bus fares'.")
    limit = limits.max_query_chars
    line = one_line(text)
    composed = nfc(line, _DECOMPOSED * limit)
    if not composed.strip(_JOINERS):
        raise InputRejected("Type a query first: a few words to look for in the pages.")
    if len(composed) <= limit and len(line) <= _DECOMPOSED * limit:
        return composed, ()
    note = (
        f"The query has {max(len(line), len(composed)):,} characters; the limit is {limit:,}. "
        "Only the beginning was used."
    )
    return composed[:limit].rstrip(), (note,)
