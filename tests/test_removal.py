"""What removing pages takes along: the K/V of every system, and nothing of other pages."""

from __future__ import annotations

from mrr import MiniReranker
from mrr.config import RerankConfig
from tests.tiny import picture

MINE = "session-mine"
SCOPES = ("public", MINE)


def filled(reranker: MiniReranker) -> tuple[str, str]:
    """Ids of a public page and of one in MINE, both with dense K/V."""
    (public,) = reranker.add(picture(0)).pages
    (mine,) = reranker.add(picture(1), scope=MINE).pages
    ranked = reranker.rank("blue page", system="dense-reuse", scopes=SCOPES)
    assert ranked.usage.missed_pages == 2
    return public.page.page_id, mine.page.page_id


def dense_keys(reranker: MiniReranker, *page_ids: str) -> set[str]:
    """Those of the pages whose full-depth K/V is kept."""
    cache = reranker.dense_cache
    keys = {page_id: cache.key(reranker.store.page(page_id)) for page_id in page_ids}
    return {page_id for page_id, key in keys.items() if cache.kv.contains([key])}


def test_a_removed_scope_takes_its_dense_kv_along_and_no_other(reranker: MiniReranker) -> None:
    public, mine = filled(reranker)
    key = reranker.dense_cache.key(reranker.store.page(mine))
    assert dense_keys(reranker, public, mine) == {public, mine}
    assert reranker.remove_scope(MINE) == 1
    assert not reranker.dense_cache.kv.contains([key])
    assert reranker.dense_cache.kv.stats().n_entries == 1
    assert reranker.rank("blue page", system="dense-reuse").usage.missed_pages == 0
    assert reranker.remove_scope(MINE) == 0


def test_dense_kv_of_every_configuration_goes_with_its_page(reranker: MiniReranker) -> None:
    public, mine = filled(reranker)
    short = RerankConfig(max_pixels=16 * 32 * 32)
    reranker.with_config(short).rank("blue page", system="dense-reuse", scopes=SCOPES)
    assert reranker.dense_cache.kv.stats().n_entries == 4
    assert reranker.remove_pages([mine]) == 1
    assert reranker.dense_cache.kv.stats().n_entries == 2
    assert dense_keys(reranker, public) == {public}
