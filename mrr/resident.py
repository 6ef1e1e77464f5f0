"""Page K/V that stays on the accelerator between queries, so that only new pages cross the bus.

It stays there in the compute type (in bfloat16 twice the memory of int8), so that a query need not
expand it.
On a CPU the store's memory tier is this already: its arrays are used where they lie.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

import torch

from mrr.model.kv import KVPage


class Resident:
    """K/V by store key; the least recently used goes first. Used under the engine's lock."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[str, tuple[str, KVPage]] = OrderedDict()  # key -> page id, K/V
        self._nbytes = 0

    def get(self, key: str) -> KVPage | None:
        """The K/V of a key, if it is still here."""
        held = self._held.get(key)
        if held is None:
            return None
        self._held.move_to_end(key)
        return held[1]

    def get_many(self, keys: Sequence[str]) -> dict[str, KVPage]:
        """The K/V of those keys that are here."""
        return {key: kv for key in keys if (kv := self.get(key)) is not None}

    def put(self, key: str, page_id: str, kv: KVPage) -> None:
        """Keep K/V that lies on the device; what is larger than all the room is not kept."""
        self._drop(key)
        if kv.nbytes > self.max_bytes:
            return
        self._held[key] = page_id, kv
        self._nbytes += kv.nbytes
        while self._nbytes > self.max_bytes:
            self._drop(next(iter(self._held)))

    def remove_pages(self, page_ids: Collection[str]) -> None:
        """Let go of everything that was computed from these pages."""
        gone = set(page_ids)
        for key in [key for key, (page_id, _) in self._held.items() if page_id in gone]:
            self._drop(key)

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._nbytes -= held[1].nbytes


def resident_for(device: torch.device) -> Resident | None:
    """Room for a quarter of what an accelerator has free now; None on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return Resident(free // 4)
