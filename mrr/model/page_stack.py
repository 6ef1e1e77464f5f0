"""Many pages laid out as a GPU attends to them, so that nothing is moved inside the layers.

A GPU waits for its orders longer than it takes to obey them: page by page and layer by layer the
orders alone would cost more than all arithmetic. So the pages are put side by side once a query,
with what their layers have in common: the mask, and where on the axis of positions the query is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrr.model.graphs import round_up
from mrr.model.kv import KVPage
from mrr.model.layers import MASKED, causal_mask, text_tables
from mrr.model.load import LoadedModel
from mrr.model.prefix import InstructionKV

# Columns are a multiple of this: attention kernels read aligned rows of K/V and mask.
COLUMN_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class PageStack:
    """N pages and a query of n tokens: [instruction | page | zeros | query], S columns.

    k, v: (L, N, H, S, D) in the compute type; the query's own columns, the last ones, are
    overwritten layer by layer. mask: (N, 1, m * n, S), see `page_mask`. cos, sin: (N, n, D).
    """

    k: Tensor
    v: Tensor
    mask: Tensor
    cos: Tensor
    sin: Tensor

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of their names above."""
        return self.k, self.v, self.mask, self.cos, self.sin

    @staticmethod
    def width(instruction: InstructionKV, pages: Sequence[KVPage], n_suffix: int) -> int:
        """Columns that these pages need."""
        longest = max(page.n_tokens for page in pages)
        return round_up(instruction.n_tokens + longest + n_suffix, COLUMN_MULTIPLE)

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        instruction: InstructionKV,
        pages: Sequence[KVPage],
        n_suffix: int,
        hidden_cells: Tensor | None = None,
        into: PageStack | None = None,
    ) -> PageStack:
        """Pages for a query of n_suffix tokens.

        hidden_cells: see `page_mask`. into: an earlier one of these shapes, overwritten.
        """
        n_columns = cls.width(instruction, pages, n_suffix)
        kv = stack(instruction, pages, n_columns, None if into is None else (into.k, into.v))
        like = instruction.k
        n_tokens, starts = places(pages).to(like.device, non_blocking=True)
        n_head, n_sharing = instruction.n_tokens, loaded.n_sharing
        mask = page_mask(n_head, n_tokens, n_columns, n_suffix, n_sharing, like, hidden_cells)
        rest = mask, *text_tables(loaded.lm, like, n_suffix, starts)
        if into is None:
            return cls(*kv, *rest)
        for there, new in zip(into.tensors[2:], rest, strict=True):
            there.copy_(new)
        return into


def stack(
    instruction: InstructionKV,
    pages: Sequence[KVPage],
    n_columns: int,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """K and V of pages side by side, in so many columns each; into: earlier ones, overwritten.

    Pages that are stored in another type than the instruction's are expanded first.
    """
    once = {id(page): page.expanded(instruction.k.dtype) for page in pages}  # one may come often
    ready = [once[id(page)] for page in pages]
    k, v = into or (None, None)
    return (
        _side_by_side(instruction.k, [page.k.values for page in ready], n_columns, k),
        _side_by_side(instruction.v, [page.v.values for page in ready], n_columns, v),
    )


def _side_by_side(head: Tensor, parts: Sequence[Tensor], n: int, into: Tensor | None) -> Tensor:
    """head and one part after another, (L, H, T, D) each, with zeros up to n columns.

    The view (L, N, H, n, D) of what lies as (L, H, N x n, D): tensors of up to four axes are
    joined in one launch.
    """
    n_layers, heads, n_head, d = head.shape
    per_token = n_layers * heads * d
    zeros = head.new_zeros(per_token * (n - n_head - min(part.shape[2] for part in parts)))
    filled = []
    for part in parts:
        missing = n - n_head - part.shape[2]
        filled += [head, part, zeros[: per_token * missing].view(n_layers, heads, missing, d)]
    shape = (n_layers, heads, len(parts) * n, d)
    joined = torch.cat(filled, 2, out=None if into is None else into.transpose(1, 2).view(shape))
    return joined.view(n_layers, heads, len(parts), n, d).transpose(1, 2)


def page_mask(
    n_head: int,
    n_tokens: Tensor,
    n_columns: int,
    n_suffix: int,
    n_sharing: int,
    like: Tensor,
    hidden_cells: Tensor | None = None,
) -> Tensor:
    """(N, 1, n_sharing * n_suffix, n_columns) additive: what a query sees of pages and of itself.

    Everything real before the query is visible, the instruction's n_head columns and n_tokens (N,)
    of each page; the query itself, the last columns, is causal. Query heads that share a head of
    K/V, n_sharing, see the same. hidden_cells: (N, S) bool over the pages' columns.
    """
    n_prefix = n_columns - n_suffix
    columns = torch.arange(n_prefix, device=like.device)
    hidden = columns[None] >= (n_head + n_tokens)[:, None]
    if hidden_cells is not None:
        cells = hidden_cells[:, : n_prefix - n_head].to(like.device)
        hidden[:, n_head : n_head + cells.shape[1]] |= cells
    mask = like.new_zeros(len(n_tokens), 1, n_suffix, n_columns)
    mask[..., :n_prefix].masked_fill_(hidden[:, None, None], MASKED)
    mask[..., n_prefix:] = causal_mask(n_suffix, like)
    return mask.repeat(1, 1, n_sharing, 1)


def places(pages: Sequence[KVPage]) -> Tensor:
    """(2, N) int64: tokens of each page, and the position after it."""
    return torch.tensor([[page.n_tokens for page in pages], [page.next_position for page in pages]])
