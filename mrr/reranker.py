"""MiniReranker: add pages once, rank them for any query. The project's front door.

mrr.adding:  file -> PageImage -> PageCache (embedding, kept tokens, K/V of the band) -> store
mrr.ranking: query -> candidates -> K/V from the store -> band -> logits -> RankedList
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from cache_db.store import PageStore
from mrr import adding, pairs, ranking
from mrr.build import dense_store, load_parts, open_store, trained_config
from mrr.config import DEFAULT_INSTRUCTION, Limits, RerankConfig, default_limits
from mrr.documents import Recognized
from mrr.errors import Closed, InvalidConfig
from mrr.explain import explanation
from mrr.model.embedder import Embedder
from mrr.model.graphs import graphs_for
from mrr.model.kv import lossless
from mrr.model.load import LoadedModel
from mrr.model.prompt import PromptEncoder, PromptTemplate
from mrr.model.scorer import Scorer
from mrr.page_cache import PageCache
from mrr.pages.ingest import File
from mrr.pages.sandbox import Decoder
from mrr.query import clean_query
from mrr.resident import resident_for
from mrr.turn import FairLock
from mrr.types import (
    AddedPage,
    AddReport,
    Candidate,
    Explanation,
    FailedFile,
    Lens,
    PageImage,
    PageLike,
    RankedList,
    RerankResult,
    System,
    page_ids_of,
)

logger = logging.getLogger(__name__)

PUBLIC = "public"
# Configurations kept beside the first, as a caller that changes its instruction to and fro needs.
_MAX_TWINS = 8


class MiniReranker:
    """A reranker over a store of pages. Safe to call from several threads, one call at a time.

    Build it with `from_pretrained`; `with_config` gives another configuration that shares
    everything that is loaded.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        template: PromptTemplate,
        config: RerankConfig,
        *,
        embedder: Embedder | None,
        store: PageStore,
        owns_store: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """owns_store: whether `close` closes the store too; one that is lent stays open."""
        if not isinstance(limits, Limits | None):
            raise InvalidConfig(f"limits is of {type(limits)}; it must be a Limits.")
        self._pid = os.getpid()
        self.loaded = loaded
        self.embedder = embedder
        self.store, self._owns_store = store, owns_store
        self.limits = limits or default_limits()
        self.decoder = Decoder(self.limits)
        self.encoder = PromptEncoder(loaded.tokenizer, template)
        self.lock = FairLock()  # one call at a time runs the models
        self._closed = threading.Event()  # shared by every twin
        self._twins: dict[RerankConfig, MiniReranker] = {}  # shared as well, the latest last
        self._twins_lock = threading.Lock()
        self._dense_store = dense_store()
        # One each, or a query of `dense + reuse` would push out what `mini` reads.
        self._resident = resident_for(loaded.device)
        self._dense_resident = resident_for(loaded.device)
        self._graphs = graphs_for(loaded)
        self.recognized = Recognized()
        self._configure(config)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "tiny",
        *,
        embedder: str | Path | None = None,
        store: str | Path | PageStore | None = None,
        config: RerankConfig | None = None,
        revision: str | None = None,
        embedder_revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        template: str | None = None,
        limits: Limits | None = None,
        self_check: bool = True,
    ) -> MiniReranker:
        """Load the bundled pair ("tiny"), a local checkpoint folder or a hub id.

        embedder None is no first stage, but the bundled model brings its own. store None is the
        folder `cache_db.default_store()`; a PageStore is only lent, and `close` leaves it open.
        revision, embedder_revision: commits of hub ids, which may also be named as
        "owner/name@commit".
        device None is CUDA where there is one; dtype None is bf16 on CUDA and fp32 elsewhere
        and for the bundled pair. What a checkpoint says of its training (band and exit, without a
        config the rest too) fills in what is left open. self_check compares the engine with
        the stock forward pass on this very checkpoint.
        """
        parts = load_parts(
            model,
            embedder,
            revision=revision,
            embedder_revision=embedder_revision,
            device=device,
            dtype=dtype,
            template=template,
            self_check=self_check,
        )
        config = trained_config(parts.loaded, config)
        opened = open_store(store)
        try:
            return cls(
                parts.loaded,
                parts.template,
                config,
                embedder=parts.embedder,
                store=opened,
                owns_store=opened is not store,
                limits=limits,
            )
        except BaseException:  # a configuration that the model does not fit
            if opened is not store:
                opened.close()
            raise

    def with_config(self, config: RerankConfig) -> MiniReranker:
        """The same models, pages and caches under another configuration.

        A band or exit that it leaves open is the one that the checkpoint was trained for. Those
        asked for last are kept, with what was computed for them.
        """
        config = trained_config(self.loaded, config)
        with self._twins_lock:
            twin = self._twins.pop(config, None)
            if twin is None:
                twin = object.__new__(type(self))
                twin.__dict__.update(self.__dict__)
                twin._configure(config)
            self._twins[config] = twin
            if len(self._twins) > _MAX_TWINS:
                self._twins.pop(next(iter(self._twins)))
        return twin

    def _configure(self, config: RerankConfig) -> None:
        self.notes: tuple[str, ...] = ()
        if self.embedder is None:
            if config.pruner == "embedder":
                config = replace(config, pruner="uniform")
            kept = (
                ", and tokens are kept evenly over the page instead of by the embedder's attention"
                if config.pruner == "uniform" and config.keep_ratio < 1
                else ""
            )
            self.notes = (
                f"No embedder is loaded: every page is a candidate, whatever top_k says{kept}.",
            )
        scorer = Scorer(self.loaded, self.encoder, config, graphs=self._graphs)
        if config.instruction != DEFAULT_INSTRUCTION and not scorer.reads_instruction:
            note = (
                f"The prompt template {self.encoder.template.name} has no place for an "
                "instruction; the one that was given is not read."
            )
            logger.warning(note)  # `rerank` returns results without notes
            self.notes += (note,)
        dense = scorer.config.dense(self.loaded.n_layers, lossless(self.loaded.dtype))
        self.cache = PageCache(scorer, self.embedder, self.store, resident=self._resident)
        dense_scorer = Scorer(self.loaded, self.encoder, dense, graphs=self._graphs)
        self.dense_cache = PageCache(
            dense_scorer, self.embedder, self.store, self._dense_store, self._dense_resident
        )

    @property
    def config(self) -> RerankConfig:
        """The configuration in force, with band, exit and the rest filled in."""
        return self.cache.scorer.config

    @property
    def device(self) -> torch.device:
        return self.loaded.device

    def __enter__(self) -> MiniReranker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the decoding process and close the stores, but for one that was lent.

        A second call does nothing.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        with self._twins_lock:  # they refer to each other, and would outlive the models' last user
            self._twins.clear()
        self.decoder.close()
        if self._owns_store:
            self.store.close()
        self._dense_store.close()

    def check_open(self) -> None:
        """Raise Closed after `close`; a store that was lent would answer as if nothing were."""
        if self._closed.is_set():
            raise Closed("This reranker is closed; build it again with from_pretrained.")

    def reopened(self, device: str | torch.device) -> MiniReranker:
        """This reranker in a process that was forked from its own, with the models on device.

        The child gets the folder opened anew, locks and a decoder of its own; the fork's copy of
        the parent's object must not be used beside it. There torch runs one thread from then on.
        """
        if os.getpid() != self._pid:
            # The parent's threads are not in a fork, and OpenMP would wait for them for ever.
            torch.set_num_threads(1)
        self.loaded.model.to(device)
        if self.embedder is not None:
            self.embedder.loaded.model.to(device)
        return type(self)(
            self.loaded,
            self.encoder.template,
            self.config,
            embedder=self.embedder,
            store=self.store.reopened(),
            owns_store=True,
            limits=self.limits,
        )

    # --------------------------------------------------------------- remove

    def remove_pages(self, pages: Iterable[PageLike] | PageLike) -> int:
        """Remove pages and whatever was computed from them; returns how many there were."""
        self.check_open()
        page_ids = page_ids_of(pages)
        with self.lock:  # what is being encoded now would be stored after its page was gone
            self._dense_store.remove_pages(page_ids)
            for resident in (self._resident, self._dense_resident):
                if resident is not None:
                    resident.remove_pages(page_ids)
            return self.store.remove_pages(page_ids)

    def remove_scope(self, scope: str) -> int:
        """Remove all pages of a scope; returns how many there were.

        "documents" is that of the pictures given to `rerank` and `predict`, whoever gave them.
        """
        self.check_open()
        return self.remove_pages(self.store.pages([scope]))

    # ------------------------------------------------------------------ add

    def add(
        self, files: Iterable[File] | File, *, page_range: str | None = None, scope: str = PUBLIC
    ) -> AddReport:
        """Cache every page of images and PDFs; a second run is all hits.

        files: one or many of paths (of files, or of folders that are searched), encoded bytes, data
        URLs, files opened in binary mode, PIL images, and (name, one of these). page_range: of PDFs
        and of TIFFs with several pages, as "1-3,7". A file or page that is refused raises nothing:
        it is in the report's `failed`, with the reason.
        """
        return adding.add(self, files, page_range, scope)

    def add_iter(
        self, files: Iterable[File] | File, *, page_range: str | None = None, scope: str = PUBLIC
    ) -> Iterator[AddedPage | FailedFile]:
        """The same, page by page as each is done; stop iterating to cancel. Nothing is lost."""
        return adding.add_iter(self, files, page_range, scope)

    def add_page(self, item: PageImage, scope: str = PUBLIC) -> AddedPage:
        """Cache one decoded page."""
        return adding.add_page(self, item, scope)

    def decode(
        self, files: Iterable[File], page_range: str | None = None
    ) -> Iterator[PageImage | FailedFile]:
        """Pages of files as they are decoded, with the files that are refused in their place."""
        return adding.decode(self, files, page_range)

    # ----------------------------------------------------------------- rank

    def rank(
        self,
        query: str,
        *,
        top_k: int | None = None,
        system: System = "mini",
        pages: Iterable[PageLike] | PageLike | None = None,
        scopes: Collection[str] = (PUBLIC,),
    ) -> RankedList:
        """Pages in descending relevance.

        top_k: candidates that the first stage passes on (None: all). pages: restrict to these,
        by their ids, hits or what `add` or `retrieve` returned. scopes: whose pages may be seen;
        pictures that callers passed to `rerank` are nobody's to list. What another process is
        adding at the moment is left out, with a note, unless it is named. Raises InputRejected for
        an empty query, an unknown system, or one that the prompt order cannot serve.
        """
        return ranking.rank(self, query, top_k, system, pages, ranking.check_scopes(scopes))

    def clean(self, query: str) -> tuple[str, tuple[str, ...]]:
        """The query as the model will read it, and what was changed, in sentences."""
        text, notes = clean_query(query, self.limits)
        short = self.cache.scorer.encoder.truncate(text, self.limits.max_query_tokens)
        if short != text:
            notes += (f"The query was cut to its first {self.limits.max_query_tokens} tokens.",)
        return short, notes

    def retrieve(
        self,
        query: str,
        *,
        top_k: int | None = None,
        pages: Iterable[PageLike] | PageLike | None = None,
        scopes: Collection[str] = (PUBLIC,),
    ) -> list[Candidate]:
        """The first stage alone: the (page, similarity) that `rank` would score, best first.

        The similarity, a cosine or the share of the query that a page shows, is None without an
        embedder; then it is every page. Raises InputRejected for an empty query.
        """
        return ranking.retrieve(self, query, top_k, pages, ranking.check_scopes(scopes))

    # -------------------------------------------------------------- explain

    def explain(
        self,
        query: str,
        page: PageLike,
        *,
        scopes: Collection[str] = (PUBLIC,),
        **options: Any,
    ) -> Explanation:
        """Why the mini system scores a page (a hit, a page or its id) as it does for a query.

        Options: dense, occlusion, block, n_random, progress, stop. See
        mrr.explain.explanation.explain. What is returned, with every shape: mrr.types.Explanation,
        and KeepMap, Lens, AttentionTrace and Occlusion, which are its parts.
        """
        scopes = ranking.check_scopes(scopes)
        return explanation.explain(self, query, page, scopes=scopes, **options)

    def lenses(
        self,
        query: str,
        pages: Iterable[PageLike] | PageLike,
        *,
        scopes: Collection[str] = (PUBLIC,),
        **options: Any,
    ) -> dict[str, Lens]:
        """{page_id: relevance per layer} of one candidate or many.

        Options: dense, progress. See mrr.explain.explanation.lenses.
        """
        scopes = ranking.check_scopes(scopes)
        return explanation.lenses(self, query, pages, scopes=scopes, **options)

    # ------------------------------------------------ the field's conventions

    def rerank(
        self,
        query: str,
        documents: Iterable[pairs.Document],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        return_documents: bool = False,
        scopes: Collection[str] | str | None = None,
    ) -> list[RerankResult]:
        """Documents (pictures, files or page ids) in descending relevance; see mrr.pairs.

        A string is a page id, a data URL or a path of this machine, which is opened: a service
        must pass no strings of its clients on. scopes: whose pages may be named, any other being
        unknown; None: everybody's. Pictures and files stay in the store as a cache (1,000 of them
        at most, in no caller's scope) until `remove_scope("documents")`; `predict` does the same.
        """
        scopes = None if scopes is None else ranking.check_scopes(scopes)
        return pairs.rerank(self, query, documents, top_n, instruction, return_documents, scopes)

    @overload
    def predict(
        self,
        pairs_: tuple[pairs.Document, pairs.Document],
        *,
        activation_fn: pairs.Activation | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        scopes: Collection[str] | str | None = ...,
    ) -> float: ...
    @overload
    def predict(
        self,
        pairs_: Iterable[tuple[pairs.Document, pairs.Document]],
        *,
        activation_fn: pairs.Activation | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        scopes: Collection[str] | str | None = ...,
    ) -> np.ndarray: ...
    def predict(
        self,
        pairs_: tuple[pairs.Document, pairs.Document]
        | Iterable[tuple[pairs.Document, pairs.Document]],
        *,
        activation_fn: pairs.Activation | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        scopes: Collection[str] | str | None = None,
    ) -> np.ndarray | float:
        """(N,) float32 scores in [0, 1] of (query, document) pairs, one side a picture.

        On the first side a string is the text, also where it is a path (but not a page id or a
        data URL): for a picture there open the file, or pass a pathlib.Path. On the second side it
        may be a path of this machine, which is opened: a service must pass no strings of its
        clients on there. One pair in no list gets a number. activation_fn: of the logits, a
        float32 tensor, instead of the sigmoid; torch.nn.Identity() gives the logits. batch_size,
        show_progress_bar: for callers of a CrossEncoder; batches are as large as memory allows
        whatever they say, and there is no bar. scopes: as for `rerank`.
        """
        scopes = None if scopes is None else ranking.check_scopes(scopes)
        return pairs.predict(self, pairs_, activation_fn, scopes)

    def rank_texts(
        self,
        image: pairs.Document,
        texts: Iterable[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        scopes: Collection[str] | str | None = None,
    ) -> list[RerankResult]:
        """Texts in descending relevance to a picture (vision-as-query); see mrr.pairs.

        scopes: as for `rerank`; a string for the picture may be a path here, too.
        """
        scopes = None if scopes is None else ranking.check_scopes(scopes)
        return pairs.rank_texts(self, image, texts, top_n, instruction, scopes)
