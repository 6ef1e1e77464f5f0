"""Logits of documents for a query, by way of the store.

Pictures given here are cached like any page, in a scope of their own, so the second query over
the same documents pays for the query, and for reading the files, which are decoded once. Nobody
asked to keep them: the store evicts them as it does K/V, and one that it has no room for is scored
without it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from PIL import Image

from cache_db.evict import DOCUMENTS
from mrr.documents import Document, Encoded, known, opened, read_page
from mrr.errors import BudgetExceeded, PageLost
from mrr.page_cache import page_of
from mrr.ranking import rank
from mrr.timing import Stages
from mrr.types import AddedPage, Candidate, Hit, Page

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

# Pictures that were passed to rerank() and predict(): the newest stay, or a service that is asked
# about ever new ones would list them without end. What they take of the disk, the budget bounds.
_MAX_DOCUMENTS = 1000


def score_documents(
    engine: MiniReranker,
    text: str,
    documents: Sequence[Document],
    names: Sequence[str],
    scopes: Collection[str] | None,
) -> list[float]:
    """Logits of documents for a cleaned query. names: what a refusal calls each of them.

    Others may use the engine while one is read, and between two that are encoded.
    """
    with ExitStack() as held:
        placed = [
            _place(engine, text, document, name, scopes, held)
            for document, name in zip(documents, names, strict=True)
        ]
        pages = {page.page_id: page for page in placed if isinstance(page, Page)}
        _encode(engine, list(pages.values()))
        with engine.lock:
            _forget_old(engine, set(pages))
            seen = {page.scope for page in pages.values()}
            ranked = rank(engine, text, None, "mini", set(pages), seen)
            scores = {hit.page.page_id: hit.logit for hit in ranked}
            return [
                _logit(engine, text, scores, *each)
                for each in zip(placed, documents, names, strict=True)
            ]


def _encode(engine: MiniReranker, pages: list[Page]) -> None:
    """K/V of pages that have none under this configuration; others go in between."""
    if not engine.cache.scorer.image_first:
        return
    for page in engine.cache.missing(pages):
        with engine.lock, suppress(PageLost):  # `_logit` looks for a lost one
            engine.cache.load([page], Stages(engine.device))


def _place(
    engine: MiniReranker,
    text: str,
    document: Document,
    name: str,
    scopes: Collection[str] | None,
    held: ExitStack,
) -> Page | float:
    """The page of a document, pinned as long as `held` is; or its logit, where it has no room."""
    found = _found(engine, document, name, scopes)
    if isinstance(found, Page):
        held.enter_context(engine.store.pinned([found.page_id]))
        return found
    item = read_page(engine, found, name)
    page = page_of(item, DOCUMENTS)
    held.enter_context(engine.store.pinned([page.page_id]))  # or the next ones could push it out
    with engine.lock:
        try:
            page = engine.cache.add(item, DOCUMENTS, page).page
        except BudgetExceeded:
            return _score_unstored(engine, text, page, item.image)
    engine.recognized.remember(found, page.page_id)
    return page


def _found(
    engine: MiniReranker, document: Document, name: str, scopes: Collection[str] | None
) -> Page | Image.Image | Encoded:
    """The stored page that a document names, or was when it was decoded; or what to read."""
    there = known(engine, document, name, scopes)
    if isinstance(there, Page):
        return there
    given = opened(engine, there, name)
    page_id = engine.recognized.page_id(given)
    page = None if page_id is None else engine.store.page(page_id)
    return given if page is None else page


def _score_unstored(engine: MiniReranker, text: str, page: Page, image: Image.Image) -> float:
    """The logit of a picture for a cleaned query, as its page would have it."""
    cache, stages = engine.cache, Stages(engine.device)
    sight = cache.scorer.sight(image, stages)
    kept = cache.kept(page, sight, stages)
    if not cache.scorer.image_first:
        return cache.scorer.score_joint(text, sight, kept, stages)
    kv = cache.scorer.encode(sight, kept, stages)
    return float(cache.scorer.score([text], [kv], stages)[0])


def _logit(
    engine: MiniReranker,
    text: str,
    scores: dict[str, float],
    placed: Page | float,
    document: Document,
    name: str,
) -> float:
    """The score of a document; one that left the store meanwhile is read again, if it can be."""
    if not isinstance(placed, Page):
        return placed
    if placed.page_id in scores:
        return scores[placed.page_id]
    if isinstance(document, Page | AddedPage | Hit | Candidate) or document == placed.page_id:
        raise PageLost(
            placed.page_id,
            f"{name.capitalize()}, {placed.label}, cannot be read any more. Add it again.",
        )
    engine.recognized.forget()  # to have what was lost decoded, and stored again, the next time
    item = read_page(engine, opened(engine, document, name), name)
    return _score_unstored(engine, text, placed, item.image)


def _forget_old(engine: MiniReranker, in_hand: set[str]) -> None:
    """Remove the oldest documents beyond _MAX_DOCUMENTS, never those that are being ranked."""
    known = [page.page_id for page in engine.store.pages([DOCUMENTS])]
    spare = [page_id for page_id in known if page_id not in in_hand]
    n_over = len(known) - _MAX_DOCUMENTS
    if n_over > 0:
        engine.remove_pages(spare[:n_over])
