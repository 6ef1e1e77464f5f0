"""Reading the file of a row while others write: what they have replaced or removed is no damage."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from mrr.errors import CorruptEntry

R = TypeVar("R")
T = TypeVar("T")
# The process is out of something; the file may be as good as ever.
_NOT_THE_FILE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def load_latest(
    row: R,
    load: Callable[[R], T],
    latest: Callable[[R], R | None],
    on_damage: Callable[[R, CorruptEntry | OSError], object],
) -> T | None:
    """What the row names, or the row that came in its place; None if it is removed or damaged.

    load: reads the file of a row, CorruptEntry or OSError if anything is wrong. latest: the row
    that stands now. on_damage: told of a row that still stands, with what load raised.

    Raises
    ------
    OSError: if the process is out of memory or of file handles.
    """
    try:
        return load(row)
    except (CorruptEntry, OSError) as error:
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILE:
            raise
        now = latest(row)
        if now == row:
            on_damage(row, error)
            return None
    return load_latest(now, load, latest, on_damage) if now is not None else None
