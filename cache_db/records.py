"""What the store hands out: frozen dataclasses over plain Python and numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Source = Literal["memory", "disk"]


@dataclass(frozen=True, slots=True)
class Entry:
    """The K/V stored under one key.

    tensors: read-only arrays, views into one buffer of nbytes; bf16 travels as uint16.
    meta: whatever JSON the caller put beside them. source: where this read came from.
    """

    tensors: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    nbytes: int
    source: Source


@dataclass(frozen=True, slots=True)
class Embedding:
    """First stage of one page. vector: (D,) float32. importance: (R, C) float32."""

    vector: np.ndarray
    importance: np.ndarray


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What the store holds now, and what this process has seen since it opened it.

    kv_bytes and picture_bytes count against budget_bytes; memory_bytes is the tier in front.
    corrupt: entries and pictures that failed a check and were dropped. skipped: puts that were
    not kept, for want of room or because of the disk. note: why there is no disk, or its trouble.
    """

    persistent: bool
    note: str
    n_pages: int
    n_entries: int
    kv_bytes: int
    picture_bytes: int
    budget_bytes: int
    memory_entries: int
    memory_bytes: int
    memory_hits: int
    disk_hits: int
    misses: int
    corrupt: int
    evicted: int
    skipped: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Outcome of reading everything.

    bad: keys and page ids whose bytes are wrong or gone. A page without its picture is among them
    until it is added again or removed. repaired: whether this call removed or rebuilt anything,
    or reports what was rebuilt when the store was opened.
    """

    n_checked: int
    bad: tuple[str, ...]
    n_orphans: int
    database_ok: bool
    repaired: bool

    @property
    def ok(self) -> bool:
        """Whether nothing at all was wrong."""
        return self.database_ok and not self.bad and not self.n_orphans
