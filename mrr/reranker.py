"""MiniReranker: add pages once, rank them for any query. The main path of the project.

add:  file -> PageImage -> embedding + importance -> kept tokens -> K/V of the band -> store
rank: query -> candidates -> K/V from the store -> band -> logits -> RankedList
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cache_db.store import PageStore
from mrr.config import Limits, RerankConfig
from mrr.errors import InputRejected
from mrr.model.embedder import Embedder
from mrr.model.kv import KVPage, lossless, pack, unpack
from mrr.model.load import LoadedModel
from mrr.model.prompt import PromptTemplate
from mrr.model.scorer import Scorer
from mrr.pages.ingest import from_pil, read_pages
from mrr.pages.keys import entry_key, page_id
from mrr.pages.sandbox import Decoder
from mrr.prune import kept_tokens
from mrr.query import clean_query
from mrr.timing import Stages
from mrr.types import (
    AddedPage,
    AddReport,
    FailedFile,
    Hit,
    Page,
    PageImage,
    RankedList,
    System,
    Usage,
)

PUBLIC = "public"
File = str | Path | tuple[str, bytes] | Image.Image


@dataclass(frozen=True, slots=True)
class _Scored:
    """Logits of the candidates and what it took to get them; every list is in their order."""

    logits: Sequence[float]
    n_visual: Sequence[int]
    n_kept: Sequence[int]
    n_missed: int
    bytes_read: int


class MiniReranker:
    """A reranker over a store of pages. Safe to call from several threads, one call at a time.

    Build it with `from_pretrained`. `config` may be swapped with `with_config`, which shares
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
        limits: Limits | None = None,
    ) -> None:
        self.loaded = loaded
        self.template = template
        self.embedder = embedder
        self.store = store
        self.limits = limits or Limits()
        self.decoder = Decoder(self.limits)
        self._lock = threading.RLock()
        # Full-depth K/V is an order of magnitude larger; it must not push pages off the disk.
        self._dense_store = PageStore(None)
        self._configure(config)

    @classmethod
    def from_pretrained(cls, model: str | Path = "tiny", **options: Any) -> MiniReranker:
        """Load the bundled pair ("tiny"), a local checkpoint folder or a hub id.

        Options: embedder (folder or hub id, None for no first stage), store (folder or
        PageStore), config, revision, embedder_revision, device, dtype, template, limits,
        self_check. See mrr.build.build.
        """
        from mrr.build import build

        return build(cls, model, **options)

    def with_config(self, config: RerankConfig) -> MiniReranker:
        """The same models, pages and caches under another configuration."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._configure(config)
        return twin

    def _configure(self, config: RerankConfig) -> None:
        self.notes: tuple[str, ...] = ()
        if self.embedder is None and config.pruner == "embedder" and config.keep_ratio < 1:
            config = replace(config, pruner="uniform")
            self.notes = (
                "No embedder is loaded: every page is a candidate, and tokens are kept evenly "
                "over the page instead of by the embedder's attention.",
            )
        self.scorer = Scorer(self.loaded, self.template, config)
        self.config = self.scorer.config
        dense = self.config.dense(self.loaded.n_layers, lossless(self.loaded.dtype))
        self.dense_scorer = Scorer(self.loaded, self.template, dense)
        self._embedding_fingerprint = self.embedder and self.embedder.fingerprint(
            self.scorer.min_pixels, self.scorer.max_pixels
        )
        guide = self._embedding_fingerprint if self.config.pruner == "embedder" else None
        self._fingerprints = {
            id(s): s.fingerprint(pruner_guide=guide) for s in (self.scorer, self.dense_scorer)
        }

    # ------------------------------------------------------------------ add

    def add(
        self, files: Iterable[File] | File, *, page_range: str | None = None, scope: str = PUBLIC
    ) -> AddReport:
        """Cache every page of images, PDFs and folders; a second run is all hits."""
        done = list(self.add_iter(files, page_range=page_range, scope=scope))
        return AddReport(
            pages=tuple(x for x in done if isinstance(x, AddedPage)),
            failed=tuple(x for x in done if isinstance(x, FailedFile)),
            notes=self.notes,
        )

    def add_iter(
        self, files: Iterable[File] | File, *, page_range: str | None = None, scope: str = PUBLIC
    ) -> Iterator[AddedPage | FailedFile]:
        """The same, page by page as each is done; stop iterating to cancel. Nothing is lost."""
        if isinstance(files, (str, Path, tuple, Image.Image)):
            files = [files]
        for item in self._decode(files, page_range):
            if isinstance(item, FailedFile):
                yield item
                continue
            try:
                yield self.add_page(item, scope)
            except InputRejected as error:
                yield FailedFile(item.label, str(error))

    def add_page(self, item: PageImage, scope: str = PUBLIC) -> AddedPage:
        """Cache one decoded page."""
        begin = time.perf_counter()
        page = Page(
            page_id=page_id(item.image, scope),
            label=item.label,
            source=item.source,
            page_num=item.page_num,
            width=item.image.width,
            height=item.image.height,
            scope=scope,
        )
        with self._lock:
            self.store.add_page(page, item.image)
            key = entry_key(page.page_id, self._fingerprints[id(self.scorer)])
            entry = self.store.get(key)
            if entry is None or not self._has_embedding(page):
                kv = self._encode(self.scorer, self.store, page, item.image, Stages(self.device))
            else:
                kv = unpack(entry.tensors, entry.meta, torch.device("cpu"))
        return AddedPage(
            page=page,
            outcome="hit" if entry is not None else "encoded",
            grid=kv.grid,
            n_kept_tokens=len(kv.kept),
            nbytes=kv.nbytes,
            elapsed_ms=(time.perf_counter() - begin) * 1e3,
        )

    def _decode(
        self, files: Iterable[File], page_range: str | None
    ) -> Iterator[PageImage | FailedFile]:
        for file in files:
            if isinstance(file, Image.Image):
                yield from_pil(file, "image")
                continue
            named = file if isinstance(file, tuple) else (Path(file).name, Path(file))
            yield from read_pages(self.decoder, [named], page_range)

    def _encode(
        self, scorer: Scorer, store: PageStore, page: Page, image: Image.Image, stages: Stages
    ) -> KVPage:
        """Compute and store one page's K/V, and its embedding where it has none."""
        with stages("preprocess"):
            pixels = scorer.preprocess(image)
        kept = self.kept(scorer, page, image, pixels.grid, stages)
        kv = scorer.encode(pixels, kept, stages)
        with stages("store"):
            key = entry_key(page.page_id, self._fingerprints[id(scorer)])
            store.put(key, page.page_id, *pack(kv))
        return kv

    def kept(
        self,
        scorer: Scorer,
        page: Page,
        image: Image.Image,
        grid: tuple[int, int],
        stages: Stages,
    ) -> np.ndarray:
        """Ascending indices of the visual tokens that this configuration keeps of a page."""
        importance = self.importance(page, image, stages) if self.embedder else None
        return kept_tokens(
            scorer.config.pruner,
            scorer.config.keep_ratio,
            grid,
            importance=importance,
            seed=(scorer.config.seed, int(page.page_id[:16], 16)),
        )

    def importance(self, page: Page, image: Image.Image, stages: Stages) -> np.ndarray:
        """(R, C) attention of the embedder's last token, from the store where it is known."""
        assert self.embedder is not None and self._embedding_fingerprint is not None
        known = self.store.embedding(page.page_id, self._embedding_fingerprint)
        if known is not None:
            return known.importance
        with stages("embed"):
            vector, importance = self.embedder.embed_page(
                image, self.scorer.min_pixels, self.scorer.max_pixels
            )
        self.store.put_embedding(page.page_id, self._embedding_fingerprint, vector, importance)
        return importance

    def _has_embedding(self, page: Page) -> bool:
        fingerprint = self._embedding_fingerprint
        return fingerprint is None or self.store.embedding(page.page_id, fingerprint) is not None

    # ----------------------------------------------------------------- rank

    def rank(
        self,
        query: str,
        *,
        top_k: int | None = None,
        system: System = "mini",
        pages: Collection[str] | None = None,
        scopes: Collection[str] = (PUBLIC,),
    ) -> RankedList:
        """Pages in descending relevance.

        top_k: candidates that the first stage passes on (None: all). pages: restrict to these
        page ids. scopes: whose pages may be seen. Raises InputRejected for an empty query, and
        for a system that the prompt order cannot serve.
        """
        stages = Stages(self.device)
        text, notes = self.clean(query)
        with self._lock:
            candidates = self._retrieve(text, pages, scopes, top_k, stages)
            if not candidates:
                scored = _Scored([], [], [], 0, 0)
            elif system == "original":
                scored = self._score_original(text, [page for page, _ in candidates], stages)
            elif system == "mini" and not self.scorer.image_first:
                scored = self._score_joint(text, [page for page, _ in candidates], stages)
            else:
                scored = self._score_cached(text, [p for p, _ in candidates], system, stages)
        return _ranked(text, system, candidates, scored, stages, self.notes + notes)

    def clean(self, query: str) -> tuple[str, tuple[str, ...]]:
        """The query as the model will read it, and what was changed, in sentences."""
        text, notes = clean_query(query, self.limits)
        short = self.scorer.encoder.truncate(text, self.limits.max_query_tokens)
        if short != text:
            notes += (f"The query was cut to its first {self.limits.max_query_tokens} tokens.",)
        return short, notes

    def _retrieve(
        self,
        text: str,
        only: Collection[str] | None,
        scopes: Collection[str],
        top_k: int | None,
        stages: Stages,
    ) -> list[tuple[Page, float | None]]:
        """First stage: (page, cosine) in descending cosine; without an embedder, all, unscored."""
        with stages("retrieve"):
            pages = [p for p in self.store.pages(scopes) if only is None or p.page_id in only]
            if self.embedder is None or not pages:
                return [(page, None) for page in pages]
            assert self._embedding_fingerprint is not None
            for page in pages:  # pages that another model added
                if not self._has_embedding(page):
                    self.importance(page, self.picture(page), stages)
            ids, vectors = self.store.vectors(self._embedding_fingerprint, scopes)
            scores = dict(zip(ids, vectors @ self.embedder.embed_query(text), strict=True))
            ranked = sorted(pages, key=lambda page: -scores[page.page_id])
            return [(page, float(scores[page.page_id])) for page in ranked[:top_k]]

    def _score_cached(
        self, text: str, pages: list[Page], system: System, stages: Stages
    ) -> _Scored:
        """`mini` and `dense + reuse`: the query against stored K/V, encoding what is missing."""
        mini = system == "mini"
        scorer = self.scorer if mini else self.dense_scorer
        store = self.store if mini else self._dense_store
        if not scorer.image_first:
            raise InputRejected("dense + reuse needs the page first; set the order vision-first.")
        keys = [entry_key(page.page_id, self._fingerprints[id(scorer)]) for page in pages]
        with store.pinned(keys):
            with stages("load"):
                entries = store.get_many(keys)
                cached = {
                    key: unpack(entry.tensors, entry.meta, self.device)
                    for key, entry in entries.items()
                }
            missing = [(k, p) for k, p in zip(keys, pages, strict=True) if k not in cached]
            for key, page in missing:
                with stages("encode"):
                    inner = Stages(self.device)
                    cached[key] = self._encode(scorer, store, page, self.picture(page), inner)
            kv = [cached[key] for key in keys]
            logits = scorer.score([text], kv, stages)
        return _Scored(
            logits=logits.tolist(),
            n_visual=[page.grid[0] * page.grid[1] for page in kv],
            n_kept=[len(page.kept) for page in kv],
            n_missed=len(missing),
            bytes_read=sum(entry.nbytes for entry in entries.values() if entry.source == "disk"),
        )

    def _score_joint(self, text: str, pages: list[Page], stages: Stages) -> _Scored:
        """`mini` in an order that puts the query first: nothing can be reused."""
        logits, n_visual, n_kept = [], [], []
        for page in pages:
            with stages("decode"):
                image = self.picture(page)
            with stages("preprocess"):
                pixels = self.scorer.preprocess(image)
            kept = self.kept(self.scorer, page, image, pixels.grid, stages)
            logits.append(self.scorer.score_joint(text, pixels, kept, stages))
            n_visual.append(pixels.n_tokens)
            n_kept.append(len(kept))
        return _Scored(logits, n_visual, n_kept, len(pages), 0)

    def _score_original(self, text: str, pages: list[Page], stages: Stages) -> _Scored:
        """The stock model on every pair from scratch, one page a batch."""
        logits, n_visual = [], []
        for page in pages:
            with stages("decode"):
                image = self.picture(page)
            with stages("preprocess"):
                pixels = self.scorer.preprocess(image)
            logits += self.scorer.score_original([text], [pixels], stages).tolist()
            n_visual.append(pixels.n_tokens)
        return _Scored(logits, n_visual, n_visual, len(pages), 0)

    # --------------------------------------------------------------- shared

    @property
    def device(self) -> torch.device:
        return self.loaded.device

    def picture(self, page: Page) -> Image.Image:
        """The canonical picture of a page; InputRejected where the store has lost it."""
        image = self.store.image(page.page_id)
        if image is None:
            raise InputRejected(
                f"The stored picture of {page.label} is missing or damaged. Add the page again."
            )
        return image

    def close(self) -> None:
        """Stop the decoding process and close the stores."""
        self.decoder.close()
        self.store.close()
        self._dense_store.close()


def _ranked(
    query: str,
    system: System,
    candidates: list[tuple[Page, float | None]],
    scored: _Scored,
    stages: Stages,
    notes: tuple[str, ...],
) -> RankedList:
    """Sort by logit, ties in candidate order."""
    logits = np.asarray(scored.logits, dtype=np.float32)
    hits = tuple(
        Hit(
            rank=rank,
            page=candidates[i][0],
            score=float(1.0 / (1.0 + np.exp(-np.float64(logits[i])))),
            logit=float(logits[i]),
            retrieval_score=candidates[i][1],
            n_visual_tokens=scored.n_visual[i],
            n_kept_tokens=scored.n_kept[i],
        )
        for rank, i in enumerate(np.argsort(-logits, kind="stable"), start=1)
    )
    usage = Usage(
        cached_pages=len(candidates) - scored.n_missed,
        missed_pages=scored.n_missed,
        bytes_read=scored.bytes_read,
        ms=dict(stages.ms),
    )
    return RankedList(query, system, hits, usage, notes)
