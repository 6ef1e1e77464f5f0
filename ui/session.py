"""What one visitor's tab holds, on the server: its secret scope, its settings, its results."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cache_db import PageStore
from mrr.config import RerankConfig
from mrr.types import AddedPage, Explanation, Lens, System
from ui.lenses import Mode
from ui.run import Run

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
    return sum(map(store.remove_scope, _owned(store, lambda owner: not store.alive(owner))))


def remove_visitors(store: PageStore) -> int:
    """Remove the pages of this process's own tabs, as it ends; returns how many."""
    return sum(map(store.remove_scope, own_scopes(store)))


def own_scopes(store: PageStore) -> list[str]:
    """The scopes of this process's own tabs that have pages."""
    return _owned(store, lambda owner: owner == store.owner)


def _owned(store: PageStore, by: Callable[[str], bool]) -> list[str]:
    scopes = [(scope, [*scope.split("-"), ""]) for scope in store.scopes()]
    return [scope for scope, (kind, owner, *_) in scopes if kind == "session" and by(owner)]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the sidebar holds. model, embedder: "" is the one that the app was started with."""

    config: RerankConfig | None = None
    top_k: int = DEFAULT_TOP_K
    model: str = ""
    embedder: str = ""
    auto_trace: bool = True


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
    hash of what shows what is stored, by its element's id. read: paths of the last upload.
    n_lost: pages that went with a connection, of which the tab was not told yet. new: made for whom
    no page was drawn yet.
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
    n_lost: int = 0
    new: bool = False

    def wants(self, asked: int) -> bool:
        """Whether this ranking is still the last one asked for, and was not stopped."""
        return self.asked == asked != self.stopped

    def remember(self, key: tuple[object, ...], explanation: Explanation) -> None:
        """Keep the newest explanations; each is a few megabytes at most."""
        self.explanations[key] = explanation
        self.explanations.move_to_end(key)
        while len(self.explanations) > _KEPT_EXPLANATIONS:
            self.explanations.popitem(last=False)

    def lost(self) -> str:
        """Says, once, that pages went with a connection; empty where none did."""
        n_lost, self.n_lost = self.n_lost, 0
        if not n_lost:
            return ""
        pages = (
            "a page that you added went" if n_lost == 1 else f"{n_lost} pages that you added went"
        )
        return f"The connection was lost for a while, and {pages} with it."

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
