"""miniReranker: rerank document pages with a vision-language model whose page pass is cached.

    from mrr import MiniReranker

The heavy imports happen on first use, so that the decoding child process (mrr.pages.sandbox)
can import this package without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrr.config import RerankConfig
    from mrr.reranker import MiniReranker

__all__ = ["MiniReranker", "RerankConfig"]


def __getattr__(name: str) -> Any:
    if name == "MiniReranker":
        from mrr.reranker import MiniReranker

        return MiniReranker
    if name == "RerankConfig":
        from mrr.config import RerankConfig

        return RerankConfig
    raise AttributeError(f"module 'mrr' has no attribute {name!r}")
