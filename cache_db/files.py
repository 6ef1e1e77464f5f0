"""One file a blob: written under a temporary name, synced, renamed; read whole, never mapped.

A name is random and never used twice, so a file never changes after its rename, and the row that
names it is what makes it visible. A file without a row is garbage from a killed process, unless
the row was lost with the database: see rebuild.

The folder may hold files of others: whatever is not named as this module names files, or is no
regular file, is not seen and never deleted.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from cache_db.records import Source
from mrr.errors import CorruptEntry

_TEMPORARY = ".tmp"
_NAME = re.compile(r"[0-9a-f]{32}\.(?:kv|png)")


def new_name(suffix: str) -> str:
    """A name that no file has yet. suffix: ".kv" or ".png"."""
    return secrets.token_hex(16) + suffix


class Files(Protocol):
    """Where blobs live."""

    source: Source

    def write(self, name: str, data: np.ndarray) -> None:
        """Store (nbytes,) uint8 under a new name, durably."""

    def read(self, name: str, nbytes: int) -> np.ndarray:
        """The (nbytes,) uint8 of a file; CorruptEntry if it is gone or of another size."""

    def has(self, name: str, nbytes: int) -> bool:
        """Whether there is a regular file of that name and size."""

    def delete(self, name: str) -> None:
        """Remove a file and any temporary of it; no error if there is none, or none of ours."""

    def names(self) -> set[str]:
        """Names of all files of ours; a temporary is listed under the name it was to get."""

    def sizes(self, names: Collection[str]) -> list[tuple[str, int]]:
        """Those of the files that are there, with their bytes."""


class DiskFiles:
    """Files in one flat folder."""

    source: Source = "disk"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, data: np.ndarray) -> None:
        """Temporary, fsync, rename, fsync of the folder."""
        path = self._folder / name
        temporary = self._folder / (name + _TEMPORARY)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = data.data
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
        fd = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def read(self, name: str, nbytes: int) -> np.ndarray:
        """Read whole, into memory that numpy aligns and the kernel can give in huge pages."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self._folder / name, flags)
        except FileNotFoundError:
            raise CorruptEntry("The file is gone.") from None
        try:
            _expect_regular(os.fstat(fd), nbytes)
            data = np.empty(nbytes, np.uint8)
            view = data.data
            while view:
                n_read = os.readv(fd, [view])
                if n_read == 0:
                    raise CorruptEntry(f"The file ended {len(view)} of {nbytes} bytes early.")
                view = view[n_read:]
        finally:
            os.close(fd)
        return data

    def has(self, name: str, nbytes: int) -> bool:
        try:
            _expect_regular(os.lstat(self._folder / name), nbytes)
        except (FileNotFoundError, CorruptEntry):
            return False
        return True

    def delete(self, name: str) -> None:
        if not _NAME.fullmatch(name):  # a damaged row can name anything
            return
        for path in (self._folder / (name + _TEMPORARY), self._folder / name):
            with suppress(FileNotFoundError):
                if stat.S_ISREG(os.lstat(path).st_mode):  # else it only stands in our place
                    os.unlink(path)

    def names(self) -> set[str]:
        with os.scandir(self._folder) as found:
            regular = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]
        names = {name.removesuffix(_TEMPORARY) for name in regular}
        return {name for name in names if _NAME.fullmatch(name)}

    def sizes(self, names: Collection[str]) -> list[tuple[str, int]]:
        found = []
        for name in names:
            with suppress(FileNotFoundError):
                found.append((name, os.lstat(self._folder / name).st_size))
        return found


def _expect_regular(status: os.stat_result, nbytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise CorruptEntry("The file is not a regular file.")
    if status.st_size != nbytes:
        raise CorruptEntry(f"The file has {status.st_size} bytes; {nbytes} were written.")


class MemoryFiles:
    """The same in a dict, for a store without a disk."""

    source: Source = "memory"

    def __init__(self) -> None:
        self._blobs: dict[str, np.ndarray] = {}

    def write(self, name: str, data: np.ndarray) -> None:
        self._blobs[name] = data

    def read(self, name: str, nbytes: int) -> np.ndarray:
        try:
            return self._blobs[name]
        except KeyError:
            raise CorruptEntry("The blob is gone.") from None

    def has(self, name: str, nbytes: int) -> bool:
        return name in self._blobs

    def delete(self, name: str) -> None:
        self._blobs.pop(name, None)

    def names(self) -> set[str]:
        return set(self._blobs)

    def sizes(self, names: Collection[str]) -> list[tuple[str, int]]:
        found = ((name, self._blobs.get(name)) for name in names)  # others write meanwhile
        return [(name, blob.nbytes) for name, blob in found if blob is not None]
