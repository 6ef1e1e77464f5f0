"""The tier in front of the disk: entries in memory, least recently used out first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from cache_db.records import Entry


class MemoryTier:
    """Entries by key, at most capacity_bytes of them. Safe to share between threads."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[str, tuple[str, Entry]] = OrderedDict()  # key -> page_id, entry
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """Those of the keys that are here, now the most recently used."""
        with self._lock:
            found = {}
            for key in keys:
                if held := self._entries.get(key):
                    self._entries.move_to_end(key)
                    found[key] = held[1]
            return found

    def peek(self, key: str) -> Entry | None:
        """The entry of a key; does not count as use."""
        with self._lock:
            held = self._entries.get(key)
            return held[1] if held else None

    def add(self, key: str, page_id: str, entry: Entry) -> None:
        """Keep an entry, unless it alone is larger than the tier."""
        with self._lock:
            self._drop(key)
            if entry.nbytes > self._capacity_bytes:
                return
            self._entries[key] = page_id, replace(entry, source="memory")
            self.nbytes += entry.nbytes
            while self.nbytes > self._capacity_bytes:
                self._drop(next(iter(self._entries)))

    def discard(self, keys: Iterable[str]) -> None:
        """Forget keys."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def discard_pages(self, page_ids: Collection[str]) -> None:
        """Forget everything that belongs to these pages."""
        self._discard_if(lambda page_id: page_id in page_ids)

    def clear(self) -> None:
        """Forget everything."""
        self._discard_if(lambda page_id: True)

    def contains(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that are here; does not count as use."""
        with self._lock:
            return {key for key in keys if key in self._entries}

    def _discard_if(self, unwanted: Callable[[str], bool]) -> None:
        with self._lock:
            for key in [key for key, (page_id, _) in self._entries.items() if unwanted(page_id)]:
                self._drop(key)

    def _drop(self, key: str) -> None:
        if held := self._entries.pop(key, None):
            self.nbytes -= held[1].nbytes
