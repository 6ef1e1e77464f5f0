"""What one visitor's tab holds, on the server: its secret scope, its settings, its results."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from cache_db import PageStore
from mrr.config import RerankConfig
from mrr.types import AddedPage, Explanation, Hit, Lens, RankedList, System
from ui.lenses import Mode

if TYPE_CHECKING:
    from mrr.measure.latency import LatencyReport

View = Literal["List", "Side by side", "Table"]

PUBLIC = "public"
DEFAULT_TOP_K = 10
_KEPT_EXPLANATIONS = 12


def new_scope(owner: str = "nobody") -> str:
    """A scope that nobody can guess. owner: the opening of the store that it dies with."""
    return f"session-{owner}-{secrets.token_hex(32)}"


def remove_left_over(store: PageStore) -> int:
    """Remove the pages of tabs whose process is gone, however it ended; returns how many pages.

    Several apps may share a store: the tabs of those that are still running keep theirs.
    """
    return _remove_owned(store, lambda owner: not store.alive(owner))


def remove_visitors(store: PageStore) -> int:
    """Remove the pages of this process's own tabs, as it ends; returns how many."""
    return _remove_owned(store, lambda owner: owner == store.owner)


def _remove_owned(store: PageStore, by: Callable[[str], bool]) -> int:
    n_removed = 0
    for scope in store.scopes():
        kind, owner, *_ = [*scope.split("-"), ""]
        if kind == "session" and by(owner):
            n_removed += store.remove_scope(scope)
    return n_removed


@dataclass(frozen=True, slots=True)
class Settings:
    """What the sidebar holds. model, embedder: "" is the one that the app was started with."""

    config: RerankConfig | None = None
    top_k: int = DEFAULT_TOP_K
    model: str = ""
    embedder: str = ""
    auto_trace: bool = True


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


@dataclass(slots=True)
class Session:
    """One tab. The scope is a secret made here; no browser ever sees it.

    selected: id of the page that every view follows; which layer and which token is between the
    views in the browser (ui/assets/js/common.js). picked: which of the tab's events selected it.
    ticked: query -> page ids whose label the user changed. added: what caching each page said.
    busy, comparing, occluding, completing, timing: the caching, the dense ranking, the measurement
    of occlusion, the full passes of the lens, or the measurement of latency, that runs now stops
    when these are cleared. asked: rankings asked for; one that still waits, or encodes what it
    lacks, gives way to the next. stopped: the number of the last one that was stopped.
    uploaded_bytes: since its pages were last all removed. lens_mode: how the layers are shown.
    n_examples_seen: Examples.steps that the tab drew last. dense_system: the baseline that is
    chosen. halted: the last encoding was stopped. sure: the next press of
    Remove removes everything. shown_as: the form of the ranking, and whether only pages on which
    the systems differ are shown. latency_of: what latency was measured with, in words. changed:
    Apply took other settings than there were, and nothing was ranked with them yet. reading: (read,
    of) the pages of the upload that goes on. planned: the switches that the plan of Apply, as it
    stands on the screen, is about. promised: how often the screen was told that maps follow. drawn:
    hash of what shows what is stored, by its element's id. read: paths of uploads that were read.
    gone: its tab was closed, so nothing more is stored for it. used: when it was last heard of, by
    the monotonic clock.
    """

    scope: str = field(default_factory=new_scope)
    settings: Settings = field(default_factory=Settings)
    selected: str | None = None
    picked: int = 0
    runs: list[Run] = field(default_factory=list)
    run: Run | None = None
    ticked: dict[str, set[str]] = field(default_factory=dict)
    added: dict[str, AddedPage] = field(default_factory=dict)
    uploaded_bytes: int = 0
    n_examples_seen: int = -1
    busy: bool = False
    comparing: bool = False
    occluding: bool = False
    completing: bool = False
    timing: bool = False
    halted: bool = False
    asked: int = 0
    stopped: int = 0
    shown_as: tuple[View, bool] = ("List", False)
    changed: bool = False
    reading: tuple[int, int] | None = None
    planned: tuple[object, ...] = ()
    promised: int = 0
    drawn: dict[str | None, int] = field(default_factory=dict)
    sure: bool = False
    dense_system: System = "original"
    lens_mode: Mode = "logit"
    lenses: tuple[Run, dict[str, Lens]] | None = None
    latency: LatencyReport | None = None
    latency_of: str = ""
    explanations: OrderedDict[tuple[object, ...], Explanation] = field(default_factory=OrderedDict)
    read: set[str] = field(default_factory=set)
    gone: bool = False
    used: float = field(default_factory=time.monotonic)

    def wants(self, asked: int) -> bool:
        """Whether this ranking is still the last one asked for, and was not stopped."""
        return self.asked == asked != self.stopped

    def remember(self, key: tuple[object, ...], explanation: Explanation) -> None:
        """Keep the newest explanations; each is a few megabytes at most."""
        self.explanations[key] = explanation
        self.explanations.move_to_end(key)
        while len(self.explanations) > _KEPT_EXPLANATIONS:
            self.explanations.popitem(last=False)

    def touch(self) -> None:
        """Note that it is in use."""
        self.used = time.monotonic()

    def end(self) -> None:
        """Stop its work within a page, and let go of what takes memory.

        The ranking that is shown stays, because a handler may be drawing it; what one may be
        looking through is replaced, not emptied.
        """
        self.busy = self.comparing = self.occluding = self.completing = self.timing = False
        self.stopped = self.asked
        self.runs, self.explanations, self.added = [], OrderedDict(), {}
        self.uploaded_bytes = 0  # its pages go, too
        self.lenses = self.latency = None

    @property
    def in_browser(self) -> bool:
        """Whether it was drawn: then there is a tab, whose heartbeat tells Gradio that it lives."""
        return bool(self.drawn)
