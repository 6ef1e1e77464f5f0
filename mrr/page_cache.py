"""The cache path: picture -> embedding and importance -> kept tokens -> K/V of the band -> store.

One PageCache serves one Scorer, that is one configuration; several may share one store.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from cache_db.evict import DOCUMENTS
from cache_db.store import PageStore
from mrr.errors import NotFinite, PageLost
from mrr.model.embedder import Embedder
from mrr.model.kv import KVPage, pack, unpack
from mrr.model.scorer import Scorer
from mrr.model.vision import Sight
from mrr.pages.keys import entry_key, page_id
from mrr.prune import kept_tokens
from mrr.resident import Resident
from mrr.sources import is_of_file, is_of_other_file, keep
from mrr.timing import Stages
from mrr.turn import Rest, no_rest
from mrr.types import AddedPage, Page, PageImage

_NOT_STORED = (
    "Its K/V is not stored, for want of room in the store's budget or on the disk: once it is no "
    "longer in memory, every query computes it again. Remove pages, or give the store more room, "
    "and add it again."
)
_REMOVED = "It was removed from the store while it was being added, so nothing of it is stored."


class PageCache:
    """Page K/V of one configuration, computed at most once.

    pages: the store that knows pages, pictures and embeddings. kv: the store of K/V entries, by
    default the same. resident: where K/V stays on an accelerator between queries.
    """

    def __init__(
        self,
        scorer: Scorer,
        embedder: Embedder | None,
        pages: PageStore,
        kv: PageStore | None = None,
        resident: Resident | None = None,
    ) -> None:
        self.scorer = scorer
        self.embedder = embedder
        self.pages = pages
        self.kv = kv or pages
        self.resident = resident
        self.embedding_fingerprint = (
            "" if embedder is None else embedder.fingerprint(scorer.min_pixels, scorer.max_pixels)
        )
        guide = self.embedding_fingerprint if scorer.config.pruner == "embedder" else ""
        self.fingerprint = scorer.fingerprint(pruner_guide=guide)

    def add(self, item: PageImage, scope: str, page: Page | None = None) -> AddedPage:
        """Make sure that a page, its embedding and its K/V are stored.

        A page that is there keeps the name under which it was added first; a new one gets a name
        that no other file has. page: what `page_of` gives, where the caller has asked for it
        already.
        """
        begin = time.perf_counter()
        page = page or page_of(item, scope)
        there = self.pages.page(page.page_id)
        if there is not None and self._is_whole(there):
            return self._added(item, scope, page, there, begin)
        # Before others can see the page, until there is nothing left for them to compute.
        with self.pages.claimed(page.page_id):
            return self._added(item, scope, page, there, begin)

    def _added(
        self, item: PageImage, scope: str, page: Page, there: Page | None, begin: float
    ) -> AddedPage:
        """See `add`. there: the page as the store has it, if it does."""
        known, is_listed = there is not None, scope != DOCUMENTS
        if there is None and is_listed:
            page = keep(page, item.image, self.pages)
        else:
            page = there or page
            self.pages.add_page(page, item.image)  # its picture may have been lost
            if known and is_listed and is_of_file(page, item):
                page = self.pages.note_file(page, item.file_digest)
        try:
            added = self._computed(page, item.image, known, begin)
            shared = known and is_listed and is_of_other_file(page, item)
            return replace(added, added_as=item.label) if shared else added
        except NotFinite:
            if not known:  # a page that cannot be scored is not one of the store's
                self.pages.remove_pages([page.page_id])
            raise

    def _computed(self, page: Page, image: Image.Image, known: bool, begin: float) -> AddedPage:
        """Embedding and K/V of a page that the store knows, computed where they are missing."""
        stages = Stages(self.scorer.loaded.device)
        sight = self.scorer.sight(image, stages)
        if self.embedder is not None:
            self.importance(page, sight, stages)
        if self.scorer.image_first:
            key = self.key(page)
            entry = self.kv.get(key)
            known = entry is not None
            if entry is None:
                kv, stored = self.encode(page, sight, stages)
            else:
                kv = unpack(entry.tensors, entry.meta, torch.device("cpu"))
                stored = bool(self.kv.stored([key]))
                if not stored:  # there was no room for what memory still holds
                    stored = self.kv.put(key, page.page_id, entry.tensors, entry.meta) > 0
            grid, n_kept = kv.grid, len(kv.kept)
            nbytes, note = self._size(page, kv, stored)
        else:  # with the query first, nothing of a page can be computed beforehand
            grid, nbytes, note = sight.pixels.grid, 0, None
            n_kept = len(self.kept(page, sight, stages))
        return AddedPage(
            page=page,
            outcome="hit" if known else "encoded",
            grid=grid,
            n_kept_tokens=n_kept,
            nbytes=nbytes,
            note=note,
            elapsed_ms=(time.perf_counter() - begin) * 1e3,
        )

    def stored(self, page: Page) -> AddedPage | None:
        """What is known of a page under this configuration; None where that is not its K/V.

        Only a look: it counts neither as a hit or miss of the store nor as use of the page.
        """
        begin = time.perf_counter()
        key = self.key(page)
        entry = self.kv.peek(key)
        if entry is None:
            return None
        kv = unpack(entry.tensors, entry.meta, torch.device("cpu"))
        ms = (time.perf_counter() - begin) * 1e3
        nbytes, note = self._size(page, kv, bool(self.kv.stored([key])))
        return AddedPage(page, "hit", kv.grid, len(kv.kept), nbytes, ms, note)

    def _size(self, page: Page, kv: KVPage, stored: bool) -> tuple[int, str | None]:
        """Bytes that are stored of a page's K/V, and what to say where there are none."""
        if stored:
            return kv.nbytes, None
        return 0, _REMOVED if self.pages.page(page.page_id) is None else _NOT_STORED

    def _is_whole(self, page: Page) -> bool:
        """Whether nothing of a stored page is left to compute."""
        if self.scorer.image_first and not self.kv.contains([self.key(page)]):
            return False
        if self.embedder is None:
            return True
        return self.pages.embedding(page.page_id, self.embedding_fingerprint) is not None

    def in_other_hands(self, pages: Sequence[Page]) -> set[str]:
        """Ids of those of the pages that lack what another process is computing now.

        The pages were listed before: one that was claimed then lacks nothing if it is no more.
        """
        claimed = self.pages.claimed_by_others()
        mine = [page for page in pages if page.page_id in claimed]
        return {page.page_id for page in self.missing(mine)} if mine else set()

    def missing(self, pages: Sequence[Page]) -> list[Page]:
        """Those of the pages that have no K/V here, or no embedding by this embedder."""
        keys = {page.page_id: self.key(page) for page in pages}
        wanted = set(keys.values())
        known = self.kv.contains(wanted) if self.scorer.image_first else wanted
        embedded = set(keys)
        if self.embedder is not None:
            scopes = {page.scope for page in pages}
            embedded = set(self.pages.vectors(self.embedding_fingerprint, scopes)[0])
        return [p for p in pages if keys[p.page_id] not in known or p.page_id not in embedded]

    def load(self, pages: Sequence[Page], stages: Stages, rest: Rest = no_rest) -> list[KVPage]:
        """K/V of pages, encoding what is missing; stages notes what that was, and what was read.

        rest: called before each page that is encoded, which takes as long as many queries.
        Where it stays on an accelerator, all of it is there when this returns, and nothing is still
        queued.
        """
        wanted = {self.key(page): page for page in pages}
        with stages("load"):
            found = self._at_hand(wanted, stages)
        missing = {key: page for key, page in wanted.items() if key not in found}
        if missing:  # to pin is to wait for writers, which who has all pages at hand need not
            with self.kv.pinned(wanted):
                found |= self._encoded(missing, stages, rest)
        return [found[self.key(page)] for page in pages]

    def _at_hand(self, wanted: dict[str, Page], stages: Stages) -> dict[str, KVPage]:
        """K/V by its keys that an earlier query left on an accelerator, or that is stored."""
        found = {} if self.resident is None else self.resident.get_many(list(wanted))
        self.kv.touch(found)
        rest = [key for key in wanted if key not in found]
        if not rest:
            return found
        entries = self.kv.get_many(rest)
        stages.bytes_read += sum(e.nbytes for e in entries.values() if e.source == "disk")
        device = self.scorer.loaded.device
        stored = {key: unpack(e.tensors, e.meta, device) for key, e in entries.items()}
        return found | self._settled(stored, wanted)

    def _encoded(self, missing: dict[str, Page], stages: Stages, rest: Rest) -> dict[str, KVPage]:
        """K/V that nobody has, computed now and stored."""
        found: dict[str, KVPage] = {}
        for key, page in missing.items():
            rest()
            stages.missed.add(page.page_id)
            with stages("encode"):
                inner = Stages(self.scorer.loaded.device)
                sight = self.scorer.sight(self.picture(page), inner)
                try:
                    found[key], _ = self.encode(page, sight, inner)
                except NotFinite as error:  # one page less, instead of no ranking at all
                    raise PageLost(page.page_id, f"{page.label}: {error}") from error
        with stages("load"):
            return self._settled(found, missing)

    def _settled(self, found: dict[str, KVPage], pages: dict[str, Page]) -> dict[str, KVPage]:
        """K/V by its keys as the scorer reads it; on an accelerator expanded, there, and kept."""
        if self.resident is None:
            return found
        dtype, device = self.scorer.loaded.dtype, self.scorer.loaded.device
        ready = {key: kv.expanded(dtype) for key, kv in found.items()}
        for key, kv in ready.items():
            self.resident.put(key, pages[key].page_id, kv)
        if device.type == "cuda":  # pages are put in place beside what is queued before them
            # Not the whole device: that would break off what another thread captures.
            torch.cuda.current_stream(device).synchronize()
        return ready

    def encode(self, page: Page, sight: Sight, stages: Stages) -> tuple[KVPage, bool]:
        """Compute and store one page's K/V; also whether the store had room for it."""
        kept = self.kept(page, sight, stages)
        kv = self.scorer.encode(sight, kept, stages)
        with stages("store"):
            stored = self.kv.put(self.key(page), page.page_id, *pack(kv)) > 0
        return kv, stored

    def kept(self, page: Page, sight: Sight, stages: Stages) -> np.ndarray:
        """Ascending indices of the visual tokens that this configuration keeps of a page."""
        config = self.scorer.config
        guided = config.pruner == "embedder"
        return kept_tokens(
            config.pruner,
            config.keep_ratio,
            sight.pixels.grid,
            importance=self.importance(page, sight, stages) if guided else None,
            seed=(config.seed, int(page.page_id[:16], 16)),
        )

    def importance(self, page: Page, sight: Sight, stages: Stages) -> np.ndarray:
        """(R, C) attention of the embedder's last token, from the store where it is known."""
        known = self.pages.embedding(page.page_id, self.embedding_fingerprint)
        if known is not None:
            return known.importance
        vector, importance = self.embed(sight, stages)
        self.pages.put_embedding(page.page_id, self.embedding_fingerprint, vector, importance)
        return importance

    def embed(self, sight: Sight, stages: Stages) -> tuple[np.ndarray, np.ndarray]:
        """Vector (d,) and importance (R, C) of a picture, computed now; needs an embedder."""
        assert self.embedder is not None
        own = sight.by(self.embedder.loaded)
        pixels, visual = own.pixels, own.visual
        with stages("embed"):
            vector, importance = self.embedder.embed_page(pixels, visual)
        if not (np.isfinite(vector).all() and np.isfinite(importance).all()):
            raise NotFinite(
                "The embedder's numbers for this page are not finite; nothing of it is stored."
            )
        return vector, importance

    def vectors(self, pages: Sequence[Page], stages: Stages) -> np.ndarray:
        """(N, d) first-stage vectors of pages, embedding those that another model added.

        Raises PageLost for one whose picture is gone or whose embedding is not finite.
        """
        with stages("retrieve"):
            scopes = {page.scope for page in pages}
            ids, vectors = self.pages.vectors(self.embedding_fingerprint, scopes)
            row = {known: i for i, known in enumerate(ids)}
        if all(page.page_id in row for page in pages):
            return vectors[[row[page.page_id] for page in pages]]
        with stages("embed"):
            return np.stack(
                [
                    vectors[row[page.page_id]] if page.page_id in row else self._embed(page)
                    for page in pages
                ]
            )

    def _embed(self, page: Page) -> np.ndarray:
        """The vector of a page that has none yet, stored where the disk allows it."""
        stages = Stages(self.scorer.loaded.device)
        try:
            vector, importance = self.embed(self.scorer.sight(self.picture(page), stages), stages)
        except NotFinite as error:
            raise PageLost(page.page_id, f"{page.label}: {error}") from error
        self.pages.put_embedding(page.page_id, self.embedding_fingerprint, vector, importance)
        return vector

    def picture(self, page: Page) -> Image.Image:
        """The canonical picture of a page; PageLost where the store has lost it."""
        image = self.pages.image(page.page_id)
        if image is None:
            raise PageLost(
                page.page_id,
                f"The stored picture of {page.label} is missing or damaged. Add the page again.",
            )
        return image

    def key(self, page: Page) -> str:
        """Where this page's K/V is stored: full-width, over the page and everything else."""
        return entry_key(page.page_id, self.fingerprint)


def page_of(item: PageImage, scope: str) -> Page:
    """What a decoded page is called in the store."""
    return Page(
        page_id=page_id(item.image, scope),
        label=item.label,
        source=item.source,
        page_num=item.page_num,
        width=item.image.width,
        height=item.image.height,
        scope=scope,
        file_digest=item.file_digest,
    )
