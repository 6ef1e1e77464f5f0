"""MiniReranker: add pages once, rank them for any query. The main path of the project.

add:  file -> PageImage -> PageCache (embedding, kept tokens, K/V of the band) -> store
rank: query -> candidates -> K/V from the store -> band -> logits -> RankedList
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from cache_db.evict import DOCUMENTS
from cache_db.store import PageStore
from mrr import pairs, systems
from mrr.build import dense_store, load_parts, open_store, trained_config
from mrr.config import DEFAULT_INSTRUCTION, Limits, RerankConfig
from mrr.errors import Closed, InputRejected, MRRError, PageLost
from mrr.explain import explanation
from mrr.model.embedder import Embedder
from mrr.model.graphs import graphs_for
from mrr.model.kv import lossless
from mrr.model.load import LoadedModel
from mrr.model.prompt import PromptEncoder, PromptTemplate
from mrr.model.scorer import Scorer
from mrr.page_cache import PageCache
from mrr.pages.ingest import File, contents, read_pages, several
from mrr.pages.naming import display_name
from mrr.pages.sandbox import Decoder
from mrr.query import clean_query
from mrr.resident import resident_for
from mrr.timing import Stages
from mrr.types import (
    SYSTEMS,
    AddedPage,
    AddReport,
    Explanation,
    FailedFile,
    Hit,
    Lens,
    Page,
    PageImage,
    PageLike,
    RankedList,
    RerankResult,
    System,
    Usage,
    page_ids_of,
)

logger = logging.getLogger(__name__)

PUBLIC = "public"
Candidate = tuple[Page, float | None]
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
        self.loaded = loaded
        self.embedder = embedder
        self.store, self._owns_store = store, owns_store
        self.limits = limits or Limits()
        self.decoder = Decoder(self.limits)
        self.encoder = PromptEncoder(loaded.tokenizer, template)
        self.lock = threading.RLock()  # one call at a time runs the models
        self._closed = threading.Event()  # shared by every twin
        self._twins: dict[RerankConfig, MiniReranker] = {}  # shared as well, the latest last
        self._dense_store = dense_store()
        self._resident = resident_for(loaded.device)
        self._graphs = graphs_for(loaded)
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
        config the keep ratio too) fills in what is left open. self_check compares the engine with
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
        opened = open_store(store)
        return cls(
            parts.loaded,
            parts.template,
            trained_config(parts.loaded, config),
            embedder=parts.embedder,
            store=opened,
            owns_store=opened is not store,
            limits=limits,
        )

    def with_config(self, config: RerankConfig) -> MiniReranker:
        """The same models, pages and caches under another configuration.

        A band or exit that it leaves open is the one that the checkpoint was trained for. Those
        asked for last are kept, with what was computed for them.
        """
        config = trained_config(self.loaded, config)
        twin = self._twins.pop(config, None)
        if twin is None:
            twin = object.__new__(type(self))
            twin.__dict__.update(self.__dict__)
            twin._configure(config)
        self._twins[config] = twin
        if len(self._twins) > _MAX_TWINS:
            self._twins.pop(next(iter(self._twins)), None)
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
        self.dense_cache = PageCache(dense_scorer, self.embedder, self.store, self._dense_store)

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
        self._twins.clear()  # they refer to each other, and would outlive the models' last user
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
        the parent's object must not be used beside it.
        """
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
        page_ids = page_ids_of(pages)
        with self.lock:  # what is being encoded now would be stored after its page was gone
            self._dense_store.remove_pages(page_ids)
            if self._resident is not None:
                self._resident.remove_pages(page_ids)
            return self.store.remove_pages(page_ids)

    def remove_scope(self, scope: str) -> int:
        """Remove all pages of a scope; returns how many there were."""
        return self.remove_pages(self.store.pages([scope]))

    # ------------------------------------------------------------------ add

    def add(
        self, files: Iterable[File] | File, *, page_range: str | None = None, scope: str = PUBLIC
    ) -> AddReport:
        """Cache every page of images and PDFs; a second run is all hits.

        files: one or many of paths (of files, or of folders that are searched), encoded bytes,
        files opened in binary mode, PIL images, and (name, one of these).
        """
        evicted = self.store.stats().evicted
        done = list(self.add_iter(files, page_range=page_range, scope=scope))
        evicted = self.store.stats().evicted - evicted
        notes = self.notes
        if evicted:
            notes += (
                f"The store was full: {evicted} of its entries, those used least recently, made "
                "room, and are computed again when a query asks for them. Remove pages, or open "
                "the store with a larger budget_bytes.",
            )
        return AddReport(
            pages=tuple(x for x in done if isinstance(x, AddedPage)),
            failed=tuple(x for x in done if isinstance(x, FailedFile)),
            notes=notes,
        )

    def add_iter(
        self, files: Iterable[File] | File, *, page_range: str | None = None, scope: str = PUBLIC
    ) -> Iterator[AddedPage | FailedFile]:
        """The same, page by page as each is done; stop iterating to cancel. Nothing is lost."""
        _check_scope(scope)
        for item in self.decode(several(files), page_range):
            if isinstance(item, FailedFile):
                yield item
                continue
            try:
                yield self.add_page(item, scope)
            except Closed:
                raise
            except MRRError as error:
                yield FailedFile(item.label, f"{item.label}: {error}")

    def add_page(self, item: PageImage, scope: str = PUBLIC) -> AddedPage:
        """Cache one decoded page."""
        self.check_open()
        _check_scope(scope)
        with self.lock:
            return self.cache.add(item, scope)

    def decode(
        self, files: Iterable[File], page_range: str | None = None
    ) -> Iterator[PageImage | FailedFile]:
        """Pages of files as they are decoded, with the files that are refused in their place."""
        for item in self._decode(files, page_range):
            yield item
            self.check_open()  # or a new decoding process would stay behind

    def _decode(
        self, files: Iterable[File], page_range: str | None
    ) -> Iterator[PageImage | FailedFile]:
        self.check_open()
        for file in files:
            try:
                named, failed = contents(file)
            except InputRejected as error:
                name = display_name(str(file)) if isinstance(file, str | Path) else "file"
                yield FailedFile(name, str(error))
                continue
            yield from failed
            yield from read_pages(self.decoder, named, page_range)

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
        by their ids, hits or what `add` returned. scopes: whose pages may be seen. Raises
        InputRejected for an empty query, an unknown system, or one that the prompt order cannot
        serve.
        """
        if system not in SYSTEMS:
            raise InputRejected(f"No system {system!r}; choose one of {', '.join(SYSTEMS)}.")
        _check_top_k(top_k)
        text, notes = self.clean(query)
        only = None if pages is None else page_ids_of(pages)
        lost: set[str] = set()
        stages = Stages(self.device)  # of all rounds: what an earlier one computed was not there
        with self.lock:
            while True:
                try:
                    candidates = self._retrieve(text, only, scopes, lost, top_k, stages)
                    scored = self._score(text, [page for page, _ in candidates], system, stages)
                    break
                except PageLost as error:  # one page less, instead of no ranking at all
                    lost.add(error.page_id)
                    notes += (f"{error} The ranking is without it.",)
        if not candidates:  # of a store that cannot be read, and looks empty
            notes += tuple(filter(None, (self.store.stats().note,)))
        n_unknown = 0 if only is None else len(only - lost) - len(candidates)
        if n_unknown > 0 and (top_k is None or len(candidates) < top_k):
            notes += (f"{n_unknown} of the pages that were named are not among those to be seen.",)
        return _ranked(text, system, candidates, scored, stages, self.notes + notes)

    def _score(
        self, text: str, pages: list[Page], system: System, stages: Stages
    ) -> systems.Scored:
        """Logits of the candidates by the path that the system and the prompt order call for."""
        if system == "original":
            return systems.original(self.cache, text, pages, stages)
        if system == "dense-reuse":
            at_once = systems.DENSE_PAGES_AT_ONCE
            return systems.cached(self.dense_cache, text, pages, stages, at_once)
        if self.cache.scorer.image_first:
            return systems.cached(self.cache, text, pages, stages, systems.PAGES_AT_ONCE)
        return systems.joint(self.cache, text, pages, stages)

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
        _check_top_k(top_k)
        text, _ = self.clean(query)
        only = None if pages is None else page_ids_of(pages)
        lost: set[str] = set()
        with self.lock:
            while True:
                try:
                    return self._retrieve(text, only, scopes, lost, top_k, Stages(self.device))
                except PageLost as error:
                    lost.add(error.page_id)

    def _retrieve(
        self,
        text: str,
        only: set[str] | None,
        scopes: Collection[str],
        lost: set[str],
        top_k: int | None,
        stages: Stages,
    ) -> list[Candidate]:
        """First stage: the best pages first; without an embedder all of them, unscored."""
        scopes = [scopes] if isinstance(scopes, str) else scopes  # not its letters
        self.check_open()
        with stages("retrieve"):
            pages = [
                page
                for page in self.store.pages(scopes)
                if (only is None or page.page_id in only) and page.page_id not in lost
            ]
            if self.embedder is None or not pages:
                return [(page, None) for page in pages]
        vectors = self.cache.vectors(pages, stages)
        with stages("retrieve"):
            suits = self.embedder.similarity(text, vectors)
            order = np.argsort(-suits, kind="stable")[:top_k]
            return [(pages[i], float(suits[i])) for i in order]

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
        mrr.explain.explanation.explain.
        """
        return explanation.explain(self, query, page, scopes=scopes, **options)

    def lenses(
        self,
        query: str,
        pages: Sequence[PageLike],
        *,
        scopes: Collection[str] = (PUBLIC,),
        **options: Any,
    ) -> dict[str, Lens]:
        """{page_id: relevance per layer} of many candidates.

        Options: dense, progress. See mrr.explain.explanation.lenses.
        """
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
    ) -> list[RerankResult]:
        """Documents (pictures, files or page ids) in descending relevance; see mrr.pairs."""
        return pairs.rerank(self, query, documents, top_n, instruction, return_documents)

    @overload
    def predict(self, pairs_: tuple[pairs.Document, pairs.Document]) -> float: ...
    @overload
    def predict(self, pairs_: Iterable[tuple[pairs.Document, pairs.Document]]) -> np.ndarray: ...
    def predict(
        self,
        pairs_: tuple[pairs.Document, pairs.Document]
        | Iterable[tuple[pairs.Document, pairs.Document]],
    ) -> np.ndarray | float:
        """(N,) float32 scores in [0, 1] of (query, document) pairs, one side a picture.

        One pair in no list gets a number.
        """
        return pairs.predict(self, pairs_)

    def rank_texts(
        self,
        image: pairs.Document,
        texts: Iterable[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
    ) -> list[RerankResult]:
        """Texts in descending relevance to a picture (vision-as-query); see mrr.pairs."""
        return pairs.rank_texts(self, image, texts, top_n, instruction)


def _check_scope(scope: str) -> None:
    if scope == DOCUMENTS:
        raise InputRejected(
            f"Pages in the scope {DOCUMENTS!r} are those that rerank() was given, and make room "
            "like K/V; choose another name."
        )


def _check_top_k(top_k: int | None) -> None:
    if top_k is not None and top_k < 1:
        raise InputRejected(f"top_k is {top_k}; at least one candidate is needed.")


def _ranked(
    query: str,
    system: System,
    candidates: list[Candidate],
    scored: systems.Scored,
    stages: Stages,
    notes: tuple[str, ...],
) -> RankedList:
    """Sort by logit, ties in candidate order."""
    logits = np.asarray(scored.logits, dtype=np.float32)
    hits = tuple(
        Hit(
            rank=rank,
            page=candidates[i][0],
            score=pairs.sigmoid(logits[i]),
            logit=float(logits[i]),
            retrieval_score=candidates[i][1],
            n_visual_tokens=scored.n_visual[i],
            n_kept_tokens=scored.n_kept[i],
        )
        for rank, i in enumerate(np.argsort(-logits, kind="stable"), start=1)
    )
    n_missed = sum(page.page_id in stages.missed for page, _ in candidates)
    usage = Usage(
        cached_pages=len(candidates) - n_missed,
        missed_pages=n_missed,
        bytes_read=stages.bytes_read,
        ms=dict(stages.ms),
    )
    return RankedList(query, system, hits, usage, notes)
