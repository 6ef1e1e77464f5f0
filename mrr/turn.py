"""One pass at a time: long work lets others at the models between its passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Progress = Callable[[int, int], None]  # (passes done, of)
Stop = Callable[[], bool]  # asked after each pass
NO_LOCK = nullcontext()
# A thread that takes a lock again at once is faster than the one that waits for it.
_GAP_S = 0.001


@contextmanager
def turn(lock: AbstractContextManager[object]) -> Iterator[None]:
    """Hold the lock for one pass, and leave a gap after it."""
    with lock:
        yield
    time.sleep(_GAP_S)


def never() -> bool:
    """The Stop of work that runs to its end."""
    return False
