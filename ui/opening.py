"""The reranker that the app begins with, loaded while the page can already be used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker


class Opening:
    """Called, it gives the reranker: loaded once, by whoever asks first; the others wait.

    An error of load is raised to each who asks, and the next one tries again.
    """

    def __init__(self, load: Callable[[], MiniReranker]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._reranker: MiniReranker | None = None

    def __call__(self) -> MiniReranker:
        if self._reranker is None:  # no lock after that: a process may be forked at any time
            with self._lock:
                if self._reranker is None:
                    self._reranker = self._load()
        return self._reranker

    @property
    def done(self) -> bool:
        """Whether nobody has to wait any more."""
        return self._reranker is not None
