"""The reranker that the app begins with, loaded while the page can already be used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker


class Opening:
    """Called, it gives the reranker: loaded once, by whoever asks first; the others wait.

    What load raises is raised to everybody who asks.
    """

    def __init__(self, load: Callable[[], MiniReranker]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._reranker: MiniReranker | None = None
        self._error: Exception | None = None

    def __call__(self) -> MiniReranker:
        if self._reranker is None:  # no lock after that: a process may be forked at any time
            with self._lock:
                self._load_once()
        assert self._reranker is not None
        return self._reranker

    def _load_once(self) -> None:
        if self._error is not None:
            raise self._error
        if self._reranker is None:
            try:
                self._reranker = self._load()
            except Exception as error:
                self._error = error
                raise

    @property
    def done(self) -> bool:
        """Whether nobody has to wait any more."""
        return self._reranker is not None
