"""What a person typed, cleaned before it meets the tokeniser."""

from __future__ import annotations

from mrr.config import Limits
from mrr.errors import InputRejected
from mrr.plain import nfc, one_line


def clean_query(text: str, limits: Limits) -> tuple[str, tuple[str, ...]]:
    """Return the query as one line of NFC text, and notes on what was left out.

    Raises InputRejected where nothing visible is left.
    """
    line = one_line(text)
    query = nfc(line, limits.max_query_chars)
    if not query:
        raise InputRejected("Type a query first: a few words to look for in the pages.")
    if len(line) <= limits.max_query_chars:
        return query, ()
    note = (
        f"The query has {len(line):,} characters; the limit is {limits.max_query_chars:,}. "
        "Only the beginning was used."
    )
    return query, (note,)
