"""K/V of many pages laid out as a GPU attends to it, so that nothing is moved inside the layers.

A GPU waits for its orders longer than it takes to obey them: page by page and layer by layer the
orders alone would cost more than all arithmetic. So the pages are put side by side once a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrr.model.graphs import round_up
from mrr.model.kv import KVPage
from mrr.model.prefix import InstructionKV

# Columns are a multiple of this: attention kernels read aligned rows of K/V and mask.
COLUMN_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class PageStack:
    """N pages in one tensor each for K and V: [instruction | page | zeros | query].

    k, v: (L, N, H, S, D) in the compute type; the query's own columns, the last ones, are
    overwritten layer by layer. n_tokens, next_position: (N,) int64, of each page.
    """

    k: Tensor
    v: Tensor
    n_tokens: Tensor
    next_position: Tensor

    def __len__(self) -> int:
        return self.n_tokens.shape[0]

    @classmethod
    def of(cls, instruction: InstructionKV, pages: Sequence[KVPage], n_suffix: int) -> PageStack:
        """Pages for a query of n_suffix tokens, filled up to the longest."""
        longest = max(page.n_tokens for page in pages)
        n_columns = round_up(instruction.n_tokens + longest + n_suffix, COLUMN_MULTIPLE)
        k, v = stack(instruction, pages, n_columns)
        return cls(k, v, *places(pages).to(k.device, non_blocking=True))


def stack(
    instruction: InstructionKV,
    pages: Sequence[KVPage],
    n_columns: int,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """K and V of a PageStack with so many columns; into: those of an earlier one, overwritten.

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


def places(pages: Sequence[KVPage]) -> Tensor:
    """(2, N) int64: tokens of each page, and the position after it."""
    return torch.tensor([[page.n_tokens for page in pages], [page.next_position for page in pages]])
