"""The pages: who they are, what they look like, and their first-stage vectors."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import sqlite_utils
from PIL import Image

from cache_db import codec, pictures
from cache_db.database import Database, retried
from cache_db.evict import Space
from cache_db.files import Files
from cache_db.latest import load_latest
from cache_db.records import Embedding
from cache_db.removal import delete_all_unnamed
from cache_db.schema import PAGE_COLUMNS, texts, typed
from cache_db.trouble import Tally, Trouble, is_full, reason
from mrr.errors import BudgetExceeded, CorruptEntry, NameTaken
from mrr.types import Page

_IN = "IN (SELECT value FROM json_each(?))"
_VECTORS = f"""
    SELECT page_id, vector FROM pages JOIN embeddings USING (page_id)
    WHERE +scope {_IN} AND fingerprint = ? ORDER BY pages.id
"""  # noqa: S608 - constants only
_GIVE = "UPDATE pages SET file = ?, nbytes = ?, digest = ? WHERE page_id = ?"
_OTHERS = "SELECT 1 FROM pages WHERE +scope = ? AND source = ? AND file_digest NOT IN (?, '')"
_MAX_MATRICES = 8  # scopes of as many visitors as are likely to be busy at a time
Vectors = tuple[list[str], np.ndarray]


@dataclass(frozen=True, slots=True)
class Picture:
    """The commit of a page's picture."""

    page_id: str
    file: str
    nbytes: int
    digest: bytes


@dataclass
class Catalogue:
    """The page part of a store."""

    database: Database
    files: Files
    space: Space
    trouble: Trouble
    tally: Tally
    _matrices: OrderedDict[tuple[str, frozenset[str]], tuple[int, Vectors]] = field(
        default_factory=OrderedDict
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_page(self, page: Page, image: Image.Image, *, alone: bool = False) -> None:
        """See PageStore.add_page.

        Raises
        ------
        NameTaken: with `alone`, if a page of another file has this name by now.
        BudgetExceeded: if the picture does not fit, or the disk does not take it.
        ValueError: if image is not the RGB picture of that size.
        """
        if (image.mode, image.size) != ("RGB", (page.width, page.height)):
            raise ValueError(
                f"The picture is {image.mode} {image.size}; the page says RGB "
                f"{page.width}×{page.height}."
            )
        try:
            if not retried(lambda: self._has_picture(page.page_id)):
                data = pictures.encode(page, image)
                retried(lambda: self._write(page, data, alone))
        except (OSError, sqlite3.OperationalError) as error:
            self.trouble.report("store pages", error)
            todo = "Free some space" if is_full(error) else "Look after the store's folder"
            raise BudgetExceeded(
                f"{page.label} ({page.width}×{page.height}) could not be kept: the store cannot "
                f"write ({reason(error)}). {todo} and add it again."
            ) from error
        self.trouble.recovered("store pages")

    def note_file(self, page: Page, digest: str) -> Page:
        """See PageStore.note_file."""
        sql = "UPDATE pages SET file_digest = ? WHERE page_id = ? AND file_digest = ''"
        with self.trouble.guard("store pages"), self.database.write() as db:
            db.execute(sql, (digest, page.page_id))
        return self.page(page.page_id) or page

    def page(self, page_id: str) -> Page | None:
        """A page by its id."""
        pages = self._pages("page_id = ?", page_id)
        return pages[0] if pages else None

    def pages(self, scopes: Collection[str]) -> list[Page]:
        """The pages of some scopes, in order of first adding."""
        # +: not by the index, which lists too few if it is damaged, and says nothing.
        return self._pages(f"+scope {_IN} ORDER BY id", json.dumps(list(scopes)))

    def sources(self, scope: str, beginning: str) -> dict[str, set[str]]:
        """{name of a file: digests of the files that have it}, of names that begin so."""
        found: dict[str, set[str]] = {}
        with self.trouble.guard("read pages"):
            for source, digest in retried(lambda: self._sources(scope, beginning)):
                found.setdefault(source, set()).add(digest)
        return found

    def _sources(self, scope: str, beginning: str) -> list[Sequence[Any]]:
        sql = """SELECT DISTINCT source, file_digest FROM pages
                 WHERE +scope = ? AND substr(source, 1, ?) = ?"""
        with self.database.read() as db:
            rows = db.execute(sql, (scope, len(beginning), beginning))
            return [typed(row, str, str) for row in rows]

    def scopes(self) -> list[str]:
        """Every scope that has pages."""
        with self.trouble.guard("read pages"), self.database.read() as db:
            return [row[0] for row in db.execute("SELECT DISTINCT scope FROM pages ORDER BY scope")]
        return []

    def image(self, page_id: str) -> Image.Image | None:
        """The picture, bit for bit as it was added; None if it is gone or damaged."""
        with self.trouble.guard("read pictures"):
            for picture in self.pictures([page_id]):
                return load_latest(picture, self.load, self.latest, self._on_damage)
        return None

    def _on_damage(self, picture: Picture, error: CorruptEntry | OSError) -> None:
        if isinstance(error, OSError):  # the disk's trouble; the picture may be whole
            raise error
        self.drop_picture(picture)

    def pictures(self, page_ids: Collection[str]) -> list[Picture]:
        """The pictures that rows of these pages name."""
        with self.database.read() as db:
            return _select_pictures(db, page_ids)

    def latest(self, picture: Picture) -> Picture | None:
        """The picture of the same page as it stands now."""
        return next(iter(self.pictures([picture.page_id])), None)

    def load(self, picture: Picture) -> Image.Image:
        """Read and check one picture; CorruptEntry or OSError if anything is wrong with it."""
        data = self.files.read(picture.file, picture.nbytes)
        codec.check(data, picture.digest)
        return pictures.decode(data)

    def drop_picture(self, picture: Picture) -> None:
        """Forget a damaged picture; adding the page again brings it back.

        If it is the row that is wrong and not the picture, the page keeps it.
        """
        self.tally.add("corrupt")
        with self.database.write() as db:
            db.execute(
                "UPDATE pages SET file = NULL, nbytes = 0 WHERE page_id = ? AND file = ?",
                (picture.page_id, picture.file),
            )
        self.delete_orphans([picture.file])

    def delete_orphans(self, names: Collection[str]) -> None:
        """Delete files that no row names, unless they can be given back.

        Asked again at the end: another process may have given one back meanwhile.
        """
        self.give_back(names)
        delete_all_unnamed(self.database, self.files, names)

    def give_back(self, names: Collection[str]) -> None:
        """Those of the files that are the whole pictures of pages without one become theirs.

        A damaged row can have named the wrong file, and no picture may go for that.
        """
        for name, nbytes in self.files.sizes([name for name in names if name.endswith(".png")]):
            try:
                data = self.files.read(name, nbytes)
                page, _ = pictures.page_in(data, name)
            except CorruptEntry:
                continue
            row = (name, nbytes, codec.digest(data.data), page.page_id)
            with self.database.write() as db:
                # By now another process may have deleted it, or added the page again.
                if self.files.has(name, nbytes) and not self._is_pictured(db, page.page_id):
                    db.execute(_GIVE, row)

    def put_embedding(
        self, page_id: str, fingerprint: str, vector: np.ndarray, importance: np.ndarray
    ) -> None:
        """Keep the first stage of a page. vector: (D,). importance: (R, C). Both float32."""
        n_rows, n_cols = importance.shape
        row = (page_id, fingerprint, n_rows, n_cols, codec.seal(vector), codec.seal(importance))
        with self.trouble.guard("store vectors"), self.database.write() as db:
            if db.execute("SELECT 1 FROM pages WHERE page_id = ?", (page_id,)).fetchone():
                db.execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?, ?)", row)

    def embedding(self, page_id: str, fingerprint: str) -> Embedding | None:
        """The first stage of a page under one embedder; None if it is not there or damaged."""
        sql = """SELECT vector, importance, n_rows, n_cols FROM embeddings
                 WHERE page_id = ? AND fingerprint = ?"""
        with self.trouble.guard("read vectors"):
            with self.database.read() as db:
                row = db.execute(sql, (page_id, fingerprint)).fetchone()
            if row:
                try:
                    return embedding_in(row)
                except CorruptEntry:
                    self.drop_embeddings([(page_id, fingerprint)])
        return None

    def vectors(self, fingerprint: str, scopes: Collection[str]) -> Vectors:
        """Page ids and (N, D) float32 vectors of some scopes, in order of first adding.

        Read once and kept until pages or vectors change, here or in another process; the array
        is read-only. Without any vector it is (0, 0).
        """
        wanted = fingerprint, frozenset(scopes)
        with self.trouble.guard("read vectors"):
            with self.database.read() as db:
                row = db.execute("SELECT version FROM catalogue_version").fetchone()
                (version,) = typed(row, int)
            with self._lock:
                known = self._matrices.get(wanted)
                if known and known[0] == version:
                    self._matrices.move_to_end(wanted)
                    return known[1]
            vectors = self._read_vectors(*wanted)
            with self._lock:
                self._matrices[wanted] = version, vectors
                self._matrices.move_to_end(wanted)
                while len(self._matrices) > _MAX_MATRICES:
                    self._matrices.popitem(last=False)
            return vectors
        return [], np.empty((0, 0), np.float32)

    def drop_embeddings(self, keys: list[tuple[str, str]]) -> None:
        """Remove damaged vectors. keys: (page_id, fingerprint) each."""
        if not keys:
            return
        self.tally.add("corrupt", len(keys))
        with self.database.write() as db:
            db.conn.executemany(
                "DELETE FROM embeddings WHERE page_id = ? AND fingerprint = ?", keys
            )

    def _pages(self, condition: str, parameter: str) -> list[Page]:
        with self.trouble.guard("read pages"):
            return retried(lambda: self._select(condition, parameter))
        return []

    def _select(self, condition: str, parameter: str) -> list[Page]:
        sql = f"SELECT {PAGE_COLUMNS} FROM pages WHERE {condition}"  # noqa: S608 - ours, above
        with self.database.read() as db:
            rows = db.execute(sql, (parameter,))
            return [Page(*typed(row, str, str, str, int, int, int, str, str)) for row in rows]

    def _has_picture(self, page_id: str) -> bool:
        with self.database.read() as db:
            return self._is_pictured(db, page_id)

    def _is_pictured(self, db: sqlite_utils.Database, page_id: str) -> bool:
        return any(self.files.has(p.file, p.nbytes) for p in _select_pictures(db, [page_id]))

    def _write(self, page: Page, data: np.ndarray, alone: bool) -> None:
        with self.space.reserve(data.nbytes, ".png") as room:
            self.files.write(room.name, data)
            with self.database.write() as db:
                mine = page.scope, page.source, page.file_digest
                if alone and db.execute(_OTHERS, mine).fetchone():
                    raise NameTaken(f"Another file is called {page.source}.")
                find = "SELECT file FROM pages WHERE page_id = ? AND file IS NOT NULL"
                old = texts(db.execute(find, (page.page_id,)))
                picture = (room.name, data.nbytes, codec.digest(data.data))
                db.execute(
                    f"""INSERT INTO pages ({PAGE_COLUMNS}, file, nbytes, digest)
                        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (page_id) DO UPDATE
                        SET file = excluded.file, nbytes = excluded.nbytes,
                            digest = excluded.digest""",  # noqa: S608 - constants only
                    (*astuple(page), *picture),
                )
                room.keep(db)
                self.space.abandon(db, old)

    def _read_vectors(self, fingerprint: str, scopes: frozenset[str]) -> Vectors:
        with self.database.read() as db:
            rows = db.execute(_VECTORS, (json.dumps(list(scopes)), fingerprint)).fetchall()
        found: dict[str, np.ndarray] = {}
        for page_id, blob in rows:
            with suppress(CorruptEntry):
                found[page_id] = codec.unseal(blob)
        n_dims = usual_length(map(len, found.values()))
        whole = {page_id: vector for page_id, vector in found.items() if len(vector) == n_dims}
        damaged = [page_id for page_id, _ in rows if page_id not in whole]
        self.drop_embeddings([(page_id, fingerprint) for page_id in damaged])
        matrix = np.array(list(whole.values()), np.float32).reshape(len(whole), n_dims)
        matrix.flags.writeable = False
        return list(whole), matrix


def embedding_in(row: Sequence[Any]) -> Embedding:
    """The embedding in a row of vector, importance, n_rows, n_cols; CorruptEntry if damaged."""
    vector, importance = codec.unseal(row[0]), codec.unseal(row[1])
    shape = tuple(row[2:])
    if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) != importance.size:
        raise CorruptEntry(f"{importance.size} values of importance are not {shape}.")
    return Embedding(vector, importance.reshape(shape))


def usual_length(lengths: Iterable[int]) -> int:
    """That of most vectors of an embedder: one of another is damaged. 0 where there are none."""
    counts = Counter(lengths).most_common(1)
    return counts[0][0] if counts else 0


def _select_pictures(db: sqlite_utils.Database, page_ids: Collection[str]) -> list[Picture]:
    sql = f"SELECT page_id, file, nbytes, digest FROM pages WHERE page_id {_IN}"  # noqa: S608
    rows = db.execute(sql + " AND file IS NOT NULL", (json.dumps(list(page_ids)),))
    return [Picture(*typed(row, str, str, int, bytes)) for row in rows]
