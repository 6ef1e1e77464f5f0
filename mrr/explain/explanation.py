"""Put an Explanation together: one page and one query, or the lenses of many candidates.

What is explained is the mini system under the reranker's configuration, from the page's stored
K/V, so the mask shown is the mask that scored. Nothing here changes what `rank` computes; a page
whose K/V is not in the store is cached first, as `rank` would do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mrr.errors import InputRejected, PageLost
from mrr.explain.attention import trace_attention
from mrr.explain.lens import dense_lens, mini_lens
from mrr.explain.maps import page_map
from mrr.explain.occlusion import check_sets, occlude
from mrr.model.kv import KVPage
from mrr.prune import kept_mask
from mrr.timing import Stages
from mrr.turn import Progress, Stop, never
from mrr.types import (
    AttentionTrace,
    Explanation,
    KeepMap,
    Lens,
    Page,
    PageLike,
    page_id_of,
)

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker


def explain(
    engine: MiniReranker,
    query: str,
    page: PageLike,
    *,
    scopes: Collection[str],
    dense: bool = True,
    occlusion: bool = False,
    block: int = 2,
    n_random: int = 20,
    progress: Progress | None = None,
    stop: Stop = never,
) -> Explanation:
    """Why the mini system scores a page as it does for a query.

    page: a hit, a page or a page id. scopes: whose pages may be seen. dense: also run the full
    pass for the lens, which costs what `original` costs. occlusion: also hide blocks of
    block x block cells in turn and the top cells against n_random random sets; progress(done,
    total) counts its passes over the page, and when stop() says so after one, what is known is
    returned. The engine is free for others between passes. Raises PageLost for a page that is not
    there, InputRejected for a prompt order in which a page is never read on its own, InvalidConfig
    for a block or n_random that is not whole, or below 1.
    """
    if occlusion:
        check_sets(block, n_random)  # before the passes that come before it
    text, notes = engine.clean(query)
    scorer = engine.cache.scorer
    with engine.lock:
        (found,), (kv,) = _load(engine, [page], scopes)
        keep = _keep_map(engine, found, kv)
        lens, attention = trace_attention(scorer, text, kv)
        logit = float(scorer.score([text], [kv], Stages(engine.device))[0])
    full = _dense(engine, text, found) if dense else None
    measured = None
    if occlusion:
        measured = occlude(
            scorer,
            text,
            kv,
            _rankings(attention, keep),
            block=block,
            n_random=n_random,
            seed=(engine.config.seed, int(found.page_id[:16], 16)),
            progress=progress,
            stop=stop,
            lock=engine.lock,
        )
    return Explanation(
        query=text,
        page=found,
        logit=logit,
        keep=keep,
        lens=_lens(engine, lens, full),
        attention=attention,
        model=engine.loaded.name,
        embedder="" if engine.embedder is None else engine.embedder.loaded.name,
        config=engine.config,
        occlusion=measured,
        notes=engine.notes + notes,
    )


def lenses(
    engine: MiniReranker,
    query: str,
    pages: Iterable[PageLike] | PageLike,
    *,
    scopes: Collection[str],
    dense: bool = False,
    progress: Progress | None = None,
) -> dict[str, Lens]:
    """{page_id: lens} of many candidates, in their order.

    The mini part is a batched band pass and cheap. dense: also one full pass over every layer
    and token for each page; progress(done, total) counts these, and the engine is free for others
    between them.
    """
    text, _ = engine.clean(query)
    with engine.lock:
        several = [pages] if isinstance(pages, PageLike) else list(pages)
        found, kv = _load(engine, several, scopes)
        table = mini_lens(engine.cache.scorer, text, kv)
    ids = [page.page_id for page in found]
    lens = {page_id: _lens(engine, row, None) for page_id, row in zip(ids, table, strict=True)}
    for done, page in enumerate(found if dense else (), start=1):
        lens[page.page_id] = replace(lens[page.page_id], dense=_dense(engine, text, page))
        if progress is not None:
            progress(done, len(found))
    return lens


def _load(
    engine: MiniReranker, pages: Sequence[PageLike], scopes: Collection[str]
) -> tuple[list[Page], list[KVPage]]:
    """The pages, where they may be seen, and their K/V as `rank` reads it."""
    engine.check_open()
    if not engine.cache.scorer.image_first:
        raise InputRejected(
            f"With the order {engine.config.order} a page is never read before the query, so "
            "there is no cached page to explain; set the order vision-first."
        )
    found = [_find(engine, page, scopes) for page in pages]
    kv = engine.cache.load(found, Stages(engine.device))
    return found, kv


def _find(engine: MiniReranker, page: PageLike, scopes: Collection[str]) -> Page:
    page_id = page_id_of(page)
    found = engine.store.page(page_id)
    if found is None or found.scope not in scopes:
        raise PageLost(
            page_id,
            f"There is no page {page_id[:12]} in the store, or it is in a scope that was not "
            "named; add it first, or name its scope.",
        )
    return found


def _keep_map(engine: MiniReranker, page: Page, kv: KVPage) -> KeepMap:
    """The mask stored with the K/V; importance is only read, never computed again."""
    known = None
    if engine.config.pruner == "embedder":
        known = engine.store.embedding(page.page_id, engine.cache.embedding_fingerprint)
    return KeepMap(
        kept=kept_mask(kv.kept, kv.grid),
        importance=None if known is None else known.importance,
        pruner=engine.config.pruner,
        keep_ratio=engine.config.keep_ratio,
    )


def _lens(engine: MiniReranker, mini: np.ndarray, dense: np.ndarray | None) -> Lens:
    config = engine.config
    assert config.exit_layer is not None and config.band is not None
    return Lens(mini=mini, dense=dense, exit_layer=config.exit_layer, band=config.band)


def _dense(engine: MiniReranker, text: str, page: Page) -> np.ndarray:
    scorer = engine.cache.scorer
    with engine.lock:
        return dense_lens(scorer, text, scorer.preprocess(engine.cache.picture(page)))


def _rankings(attention: AttentionTrace, keep: KeepMap) -> dict[str, np.ndarray]:
    """The maps that a front end shows, to be put to the test by occlusion."""
    maps = {"contrast": page_map(attention, contrast=True), "attention": page_map(attention)}
    return maps if keep.importance is None else {**maps, "importance": keep.importance}
