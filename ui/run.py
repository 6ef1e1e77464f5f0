"""One query of a session: mini's ranking, and the dense one as far as it has come."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mrr.types import Hit, RankedList, System

if TYPE_CHECKING:
    from ui.session import Settings


@dataclass(slots=True, eq=False)
class Run:
    """One query of this session: mini's ranking, and the dense one as far as it has come.

    dense_system: the dense system that is shown. scored: system -> page id -> hit, whose rank is
    still 1, because each page is scored alone. took_ms: system -> page id -> what that took,
    without caching_ms, which encoding pages for the first time took. n_removed: pages that were
    ranked and are gone since. unread: (read, of) the pages of an upload that was going on.
    """

    query: str
    settings: Settings
    described: str
    instruction: str
    embedder: str
    mini: RankedList
    started: str
    dense_system: System = "original"
    scored: dict[System, dict[str, Hit]] = field(default_factory=dict)
    took_ms: dict[System, dict[str, float]] = field(default_factory=dict)
    caching_ms: dict[System, float] = field(default_factory=dict)
    n_removed: int = 0
    unread: tuple[int, int] | None = None

    def forget(self, page_ids: Collection[str]) -> None:
        """Leave out pages that are gone; the others move up, in every system alike."""
        left = [hit for hit in self.mini.hits if hit.page.page_id not in page_ids]
        self.n_removed += len(self.mini) - len(left)
        moved_up = (replace(hit, rank=rank) for rank, hit in enumerate(left, start=1))
        self.mini = replace(self.mini, hits=tuple(moved_up))
        for page_id in page_ids:
            for scored in self.scored.values():
                scored.pop(page_id, None)
            for took in self.took_ms.values():
                took.pop(page_id, None)

    def same_pages(self, other: Run) -> bool:
        """Whether another run asked the same of the same pages, under the same settings."""
        mine, theirs = (
            (run.query, run.settings, {hit.page.page_id for hit in run.mini.hits})
            for run in (self, other)
        )
        return mine == theirs

    @property
    def dense(self) -> dict[str, Hit]:
        """page id -> hit, of the dense system that is shown, as far as it has come."""
        return self.scored.get(self.dense_system, {})

    @property
    def dense_ms(self) -> float:
        """What that took."""
        return sum(self.dense_took_ms.values())

    @property
    def dense_took_ms(self) -> dict[str, float]:
        """page id -> what the dense system that is shown took for it."""
        return self.took_ms.get(self.dense_system, {})

    @property
    def mini_ms(self) -> float:
        """What mini took, without encoding pages that it had not read."""
        return self.mini.usage.total_ms - self.mini.usage.ms.get("encode", 0.0)

    @property
    def mini_page_ms(self) -> float:
        """A page's even share of that: mini takes all of them through the band together."""
        return self.mini_ms / max(1, len(self.mini) + self.n_removed)

    @property
    def dense_done(self) -> bool:
        """Whether every candidate has its dense score."""
        return bool(self.mini.hits) and len(self.dense) == len(self.mini.hits)

    @property
    def dense_ranks(self) -> dict[str, int]:
        """page id -> rank of the dense system, once it has scored every candidate; else empty."""
        if not self.dense_done:
            return {}
        order = sorted(self.mini.hits, key=lambda hit: -self.dense[hit.page.page_id].logit)
        return {hit.page.page_id: rank for rank, hit in enumerate(order, start=1)}

    @property
    def dense_list(self) -> RankedList | None:
        """The finished dense ranking as the engine would have given it; None before."""
        ranks = self.dense_ranks
        if not ranks:
            return None
        hits = tuple(replace(self.dense[page_id], rank=rank) for page_id, rank in ranks.items())
        return replace(self.mini, system=self.dense_system, hits=hits)
