"""The JSON forms of a ranking and of an added page, the same from the command line and the app."""

from __future__ import annotations

from typing import Any

from mrr.types import AddedPage, RankedList


def ranked_json(ranked: RankedList) -> dict[str, Any]:
    """A ranking: what was asked, the results best first, what it cost (ms a stage), and notes."""
    return {
        "query": ranked.query,
        "system": ranked.system,
        "results": [
            {
                "rank": hit.rank,
                "page_id": hit.page.page_id,
                "label": hit.page.label,
                "page_num": hit.page.page_num,
                "relevance_score": hit.score,
                "logit": hit.logit,
                "retrieval_score": hit.retrieval_score,
                "n_visual_tokens": hit.n_visual_tokens,
                "n_kept_tokens": hit.n_kept_tokens,
            }
            for hit in ranked
        ],
        "usage": {
            "cached_pages": ranked.usage.cached_pages,
            "missed_pages": ranked.usage.missed_pages,
            "bytes_read": ranked.usage.bytes_read,
            "ms": {stage: round(ms, 3) for stage, ms in ranked.usage.ms.items()},
        },
        "notes": list(ranked.notes),
    }


def added_json(item: AddedPage) -> dict[str, Any]:
    """A page that was added. grid: rows and columns of its visual tokens; nbytes: its K/V."""
    return {
        "page_id": item.page.page_id,
        "label": item.page.label,
        "page_num": item.page.page_num,
        "outcome": item.outcome,
        "grid": list(item.grid),
        "n_visual_tokens": item.grid[0] * item.grid[1],
        "n_kept_tokens": item.n_kept_tokens,
        "nbytes": item.nbytes,
        "ms": round(item.elapsed_ms, 3),
        "added_as": item.added_as,
    }
