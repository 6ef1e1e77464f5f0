"""The rerankers that settings name: the one that the app began with, and another beside it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mrr.config import RerankConfig
from mrr.errors import InputRejected, MRRError
from ui.opening import Opening
from ui.session import Settings

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

LoadModel = Callable[[str, str], "MiniReranker"]
log = logging.getLogger("ui")


class Engines:
    """Loads what is asked for, one at a time.

    load_model: (model, embedder) -> reranker over the same store, "" for the one that the app was
    started with; or None where visitors may not load models.
    """

    def __init__(self, opening: Opening, load_model: LoadModel | None) -> None:
        self.opening, self.load_model = opening, load_model
        # One beside the first, because models are large: what it was asked by, and itself.
        self._other: tuple[tuple[str, str], MiniReranker] | None = None
        self._engine = lru_cache(maxsize=16)(self._configured)
        self._loading = threading.Lock()

    def of(self, settings: Settings) -> MiniReranker:
        """The reranker of these settings; loads another model where they name one."""
        with self._loading:
            return self._engine(settings.model, settings.embedder, settings.config)

    def unchanged(self, settings: Settings) -> MiniReranker:
        """The model of these settings as it came, whatever the switches say."""
        with self._loading:
            return self._engine(settings.model, settings.embedder, None)

    def _configured(self, model: str, embedder: str, config: RerankConfig | None) -> MiniReranker:
        first = self.opening()
        engine = self._load(model, embedder) if model or embedder else first
        return engine if config is None else engine.with_config(config)

    def _load(self, model: str, embedder: str) -> MiniReranker:
        if self.load_model is None:
            raise InputRejected("Models cannot be changed here; run the app yourself to do so.")
        if self._other is None or self._other[0] != (model, embedder):
            if all(map(_may_exist, filter(None, (model, embedder)))):
                # The one before goes first: two large models need not fit side by side.
                self._other = None
                self._engine.cache_clear()
            try:
                loaded = self.load_model(model, embedder)
            except MRRError:
                raise
            except Exception as error:  # as many kinds as there are ways to damage a checkpoint
                log.exception("A model could not be loaded")
                raise InputRejected(
                    f"{Path(model or embedder).name} could not be loaded: its files are damaged or "
                    "incomplete, or it does not fit into memory. Nothing was changed."
                ) from error
            self._other = (model, embedder), loaded
        return self._other[1]

    def close(self) -> None:
        """Close what was loaded, but not the store, which all of them were lent."""
        if self.opening.done:
            self.opening().close()
        if self._other is not None:
            self._other[1].close()

    def remove_pages(self, page_ids: list[str]) -> int:
        """Remove pages, and what every model has cached of them."""
        if not page_ids:
            return 0
        n_removed = self.opening().remove_pages(page_ids)
        if self._other is not None:
            self._other[1].remove_pages(page_ids)  # its dense K/V
        return n_removed


def _may_exist(name: str) -> bool:
    """Whether a model of this name can be there: hub ids are not asked for."""
    return not name.startswith(("/", ".", "~")) or Path(name).expanduser().is_dir()
