"""PageStore: what the engine sees. Pages, their vectors and their K/V, with or without a disk."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cache_db import claims, health
from cache_db.catalogue import Catalogue
from cache_db.database import Database, retried
from cache_db.directory import default_budget, prepare
from cache_db.entries import Entries
from cache_db.evict import Space
from cache_db.files import DiskFiles, Files, MemoryFiles
from cache_db.memory import MemoryTier
from cache_db.records import Embedding, Entry, StoreStats, VerifyReport
from cache_db.removal import release
from cache_db.schema import UnknownDatabase
from cache_db.session import Session
from cache_db.trouble import Tally, Trouble, reason
from mrr.errors import InputRejected, InvalidConfig
from mrr.types import Page

log = logging.getLogger("cache_db")


class PageStore:
    """A persistent store of pages, safe to share between threads and between processes.

    Reading never raises because of the disk: what is damaged or unreachable is a miss. Where the
    directory cannot be used the same store runs in memory, says so once, and forgets everything
    when it is closed.
    """

    def __init__(
        self,
        root: Path | None,
        *,
        budget_bytes: int | None = None,
        memory_bytes: int = 2**30,
        holds_pages: bool = True,
        on_disk_only: bool = False,
    ) -> None:
        """Open, or make, the store in root.

        root: a folder on a local disk; None to run in memory. budget_bytes: of pictures and K/V on
        disk; rows and vectors come on top, with the bundled pair about 40 KB a page. None is
        $MRR_BUDGET_GIB, or 10 GiB. memory_bytes: of K/V kept in memory in front of the disk, or of
        everything where there is no disk.
        holds_pages: entries name pages of this store; False where another store knows the pages
        and this one has their K/V only.
        on_disk_only: raise InputRejected where the folder cannot be used, instead of going on in
        memory: whoever looks after a store must not be shown an empty one in its place.
        Raises InvalidConfig for a negative size.
        """
        budget_bytes = default_budget() if budget_bytes is None else budget_bytes
        if min(budget_bytes, memory_bytes) < 0:
            raise InvalidConfig(
                f"budget_bytes is {budget_bytes} and memory_bytes {memory_bytes}; both are sizes."
            )
        self._root, self._sizes = root, (budget_bytes, memory_bytes)
        self._note = "No folder was given; nothing outlives this process." if root is None else ""
        self._files: Files
        self._closed = False
        try:
            self._open(root)
        except (OSError, sqlite3.DatabaseError, UnknownDatabase) as error:
            why = reason(error).rstrip(".")
            if on_disk_only:
                raise InputRejected(f"The store cannot be opened: {why}.") from error
            self._note = f"The store runs in memory only: {why}."
            log.warning("%s Folder: %s", self._note, root)
            self._open(None)
        self._persistent = isinstance(self._files, DiskFiles)
        self._trouble, self._tally = Trouble(), Tally()
        self._memory = MemoryTier(memory_bytes if self._persistent else 0)
        self._space = Space(
            self._database,
            self._files,
            self._session,
            budget_bytes if self._persistent else memory_bytes,
            self._trouble,
            self._tally,
        )
        self._catalogue = Catalogue(
            self._database, self._files, self._space, self._trouble, self._tally
        )
        self._entries = Entries(
            self._database,
            self._files,
            self._space,
            self._memory,
            self._trouble,
            self._tally,
            holds_pages,
        )
        with self._trouble.guard("sweep"):
            retried(self._sweep)

    # Pages

    def add_page(self, page: Page, image: Image.Image, *, alone: bool = False) -> None:
        """Keep a page and its canonical picture; no effect if they are there already.

        alone: only if no page of another file of its scope has its source for a name.

        Raises
        ------
        NameTaken: with `alone`, if one has.
        BudgetExceeded: if the picture does not fit, or the disk does not take it.
        ValueError: if image is not the RGB picture of that size.
        """
        self._catalogue.add_page(page, image, alone=alone)

    def note_file(self, page: Page, digest: str) -> Page:
        """Say which file a page came from that was stored without its digest; the page then."""
        return self._catalogue.note_file(page, digest)

    def page(self, page_id: str) -> Page | None:
        """A page by its id."""
        return self._catalogue.page(page_id)

    def pages(self, scopes: Collection[str]) -> list[Page]:
        """The pages of some scopes, in order of first adding."""
        return self._catalogue.pages(scopes)

    def sources(self, scope: str, beginning: str) -> dict[str, set[str]]:
        """{name of a file: digests of the files that have it} of a scope, of names that begin so.

        A digest is empty where a page came from no file.
        """
        return self._catalogue.sources(scope, beginning)

    def image(self, page_id: str) -> Image.Image | None:
        """The picture, bit for bit as it was added; None if it is gone or damaged."""
        return self._catalogue.image(page_id)

    def remove_pages(self, page_ids: Collection[str]) -> int:
        """Remove pages with their pictures, vectors and K/V, pinned or not; returns how many."""
        with self._trouble.guard("remove pages"):
            self._memory.discard_pages(set(page_ids))
            n_removed = retried(lambda: health.remove(self._space, page_ids))
            self._memory.discard_pages(set(page_ids))  # what was read meanwhile
            return n_removed
        return 0

    def remove_scope(self, scope: str) -> int:
        """Remove all pages of a scope; returns how many."""
        return self.remove_pages([page.page_id for page in self.pages([scope])])

    def scopes(self) -> list[str]:
        """Every scope that has pages."""
        return self._catalogue.scopes()

    @property
    def owner(self) -> str:
        """Name of this opening of the store, for `alive`."""
        return self._session.name

    def alive(self, owner: str) -> bool:
        """Whether the store of that owner is still open, here or in another process.

        Told by a lock that the kernel drops with the process, however it ended.
        """
        return self._session.alive(owner)

    # First stage

    def put_embedding(
        self, page_id: str, fingerprint: str, vector: np.ndarray, importance: np.ndarray
    ) -> None:
        """Keep the first stage of a page. vector: (D,) float32. importance: (R, C) float32."""
        self._catalogue.put_embedding(page_id, fingerprint, vector, importance)

    def embedding(self, page_id: str, fingerprint: str) -> Embedding | None:
        """The first stage of a page under one embedder; None if it is not there or damaged."""
        return self._catalogue.embedding(page_id, fingerprint)

    def vectors(self, fingerprint: str, scopes: Collection[str]) -> tuple[list[str], np.ndarray]:
        """Page ids and (N, D) float32 vectors of some scopes, in order of first adding."""
        return self._catalogue.vectors(fingerprint, scopes)

    # K/V

    def get(self, key: str) -> Entry | None:
        """The entry of a key, checked; None is a miss, whatever the reason."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries that are there, in the order of the keys, with one query for all rows."""
        return self._entries.get_many(keys)

    def peek(self, key: str) -> Entry | None:
        """The entry of a key, checked, for a look: no hit, no miss, no use of it."""
        return self._entries.peek(key)

    def put(
        self, key: str, page_id: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> int:
        """Store tensors under a key, replacing what was there.

        page_id: a page of this store, or "" for an entry that belongs to none (any page where
        the pages are held elsewhere). meta: JSON.
        Returns the bytes kept, or 0 if there was no room, no disk or no such page.
        """
        return self._entries.put(key, page_id, tensors, meta)

    def touch(self, keys: Collection[str]) -> None:
        """Note that entries were used which their user held elsewhere: they are evicted later."""
        self._entries.touch(keys)

    def contains(self, keys: Collection[str]) -> set[str]:
        """Those of the keys that are there, without reading them."""
        return self._entries.contains(keys)

    def stored(self, keys: Collection[str]) -> set[str]:
        """Those of the keys that are kept, and not only in the memory in front of the disk."""
        return self._entries.stored(keys)

    @contextmanager
    def pinned(self, keys: Collection[str]) -> Iterator[None]:
        """Keep entries, present or future, from being evicted by anyone inside the block.

        The id of a page among the keys keeps the page, if it is one that is evicted at all.
        The pins of a process that dies are released by whoever next needs the room.
        """
        with self._pinned(keys):
            yield

    @contextmanager
    def claimed(self, page_id: str) -> Iterator[None]:
        """Tell other processes that inside the block all is computed that a page lacks.

        The page need not be there yet. A claim that cannot be written is done without.
        """
        with self._pinned([page_id], claims.mark()):
            yield

    def claimed_by_others(self) -> set[str]:
        """Ids of the pages of which other processes, alive now, compute what they lack."""
        with self._trouble.guard("read claims"):
            return retried(lambda: claims.of_others(self._database, self._session))
        return set()

    @contextmanager
    def _pinned(self, keys: Collection[str], mark: str = "") -> Iterator[None]:
        pin = None
        with self._trouble.guard("pin entries"):
            pin = self._space.pin(keys, mark)
        try:
            yield
        finally:
            if pin is not None:
                with self._trouble.guard("unpin entries"):
                    self._space.unpin(pin)

    # The whole

    def stats(self) -> StoreStats:
        """What the store holds, and what this process has seen."""
        n_pages = n_entries = kv_bytes = picture_bytes = 0
        with self._trouble.guard("read the totals"):
            n_pages, picture_bytes = retried(lambda: self._total("pages"))
            n_entries, kv_bytes = retried(lambda: self._total("entries"))
        tally = self._tally
        return StoreStats(
            persistent=self._persistent,
            note=" ".join(filter(None, (self._note, self._database.damage, self._trouble.note))),
            n_pages=n_pages,
            n_entries=n_entries,
            kv_bytes=kv_bytes,
            picture_bytes=picture_bytes,
            budget_bytes=self._space.budget_bytes,
            memory_entries=len(self._memory),
            memory_bytes=self._memory.nbytes,
            memory_hits=tally["memory_hits"],
            disk_hits=tally["disk_hits"],
            misses=tally["misses"],
            corrupt=tally["corrupt"],
            evicted=tally["evicted"],
            skipped=tally["skipped"],
        )

    def verify(self, repair: bool = True) -> VerifyReport:
        """Read and check everything; with repair, remove what is bad."""
        with self._trouble.guard("verify the store"):
            return retried(lambda: health.verify(self._catalogue, self._entries, repair))
        return VerifyReport(0, (), 0, database_ok=False, repaired=False)

    def clear(self) -> int:
        """Remove everything; returns how many pages there were."""
        n_removed = 0
        with self._trouble.guard("clear the store"):
            self._memory.clear()
            n_removed = retried(lambda: health.remove(self._space, None))
            self._memory.clear()  # what was read meanwhile
            self._sweep()
            self._database.forget_damage()
        return n_removed

    def reopened(self) -> PageStore:
        """The same folder opened anew, for a process forked from this one: this object is of no
        use there."""
        budget_bytes, memory_bytes = self._sizes
        return PageStore(
            self._root,
            budget_bytes=budget_bytes,
            memory_bytes=memory_bytes,
            holds_pages=self._entries.holds_pages,
        )

    def close(self) -> None:
        """Write down what was used and let go of everything. The store cannot be used after.

        A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        with self._trouble.guard("note what was used"):
            retried(self._release)
        with self._trouble.guard("close the store"):
            self._database.close()
            self._session.close()
        self._memory.clear()

    def __enter__(self) -> PageStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, root: Path | None) -> None:
        if root is None:
            self._files, self._session = MemoryFiles(), Session(None)
            self._database = Database(None)
            return
        directory = prepare(root)
        self._files, self._session = DiskFiles(directory.files), Session(directory.sessions)
        try:
            self._database = Database(directory.database, self._files)
        except BaseException:
            self._session.close()
            raise
        self._database.on_rebuilt = self._sweep  # K/V that no row names any more

    def _sweep(self) -> None:
        health.sweep(self._catalogue)

    def _release(self) -> None:
        """Note what was used, and drop this session's pins and reservations, with their files."""
        with self._space.touches.flush(self._database) as db:
            release(db, self._files, [self._session.name], self._session.name)

    def _total(self, table: str) -> tuple[int, int]:
        """Number of rows, and the bytes of their files."""
        with self._database.read() as db:
            sql = f"SELECT count(*), coalesce(sum(nbytes), 0) FROM {table}"  # noqa: S608 - ours
            n_rows, nbytes = db.execute(sql).fetchone()
            return n_rows, nbytes
