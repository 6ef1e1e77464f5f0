"""Many pages laid out as a GPU attends to them, so that nothing is moved inside the layers.

A GPU waits for its orders longer than it takes to obey them: page by page and layer by layer the
orders alone would cost more than all arithmetic. So the pages are put side by side once a query,
with what their layers have in common: the mask, and where on the axis of positions the query is.
That is done while the GPU runs the query's own layers, which is no longer than ten or twenty
orders take; so each of them counts here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrr.model.graphs import put, round_up
from mrr.model.kv import KVPage
from mrr.model.layers import MASKED, causal_mask
from mrr.model.load import LoadedModel
from mrr.model.prefix import InstructionKV
from mrr.model.rotary import CosSin, text_turns

# Columns are a multiple of this: attention kernels read aligned rows of K/V and mask.
COLUMN_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class PageStack:
    """N pages and a query of n tokens: [instruction | page | zeros | query], S columns.

    k, v: (L, N, H, S, D) in the compute type; the query's own columns, the last ones, are
    overwritten layer by layer. mask: (N, 1, m * n, S), see `page_mask`. turns: (N, n, 2, D), cos
    and sin of the query's tokens after each page.
    """

    k: Tensor
    v: Tensor
    mask: Tensor
    turns: Tensor

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def cos_sin(self) -> CosSin:
        """(N, n, D) each."""
        cos, sin = self.turns.unbind(2)
        return cos, sin

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of their names above."""
        return self.k, self.v, self.mask, self.turns

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
        n_columns, n_pages = cls.width(instruction, pages, n_suffix), len(pages)
        like, n_head = instruction.k, instruction.n_tokens
        kv = stack(instruction, pages, n_columns, None if into is None else (into.k, into.v))
        # All that the GPU has to be told, in one go: columns that are seen, and positions.
        seen = np.array([n_head + page.n_tokens for page in pages])
        starts = np.array([page.next_position for page in pages])
        numbers = np.concatenate([seen, np.add.outer(starts, np.arange(n_suffix)).ravel()])
        there = put(torch.from_numpy(numbers), like.device, None)
        n_seen, positions = there[:n_pages], there[n_pages:]
        mask = page_mask(
            n_head,
            n_seen,
            n_columns,
            n_suffix,
            loaded.n_sharing,
            like,
            hidden_cells,
            None if into is None else into.mask,
        )
        table = text_turns(loaded.lm, like, int(starts.max()) + n_suffix)
        shape = n_pages, n_suffix, 2, table.shape[2]
        out = None if into is None else into.turns.view(-1, 2, table.shape[2])
        turns = torch.index_select(table, 0, positions, out=out).view(shape)
        return cls(*kv, mask, turns)


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
    n_layers, heads, n_head, d = instruction.k.shape
    per_token = n_layers * heads * d
    missing = {n_columns - n_head - page.n_tokens for page in ready}
    zeros = instruction.k.new_zeros(per_token * max(missing))
    fills = {n: zeros[: per_token * n].view(n_layers, heads, n, d) for n in missing}
    k, v = into or (None, None)
    return (
        _side_by_side(instruction.k, [page.k.values for page in ready], fills, n_columns, k),
        _side_by_side(instruction.v, [page.v.values for page in ready], fills, n_columns, v),
    )


def _side_by_side(
    head: Tensor, parts: Sequence[Tensor], fills: dict[int, Tensor], n: int, into: Tensor | None
) -> Tensor:
    """head and one part after another, (L, H, T, D) each, filled up to n columns.

    The view (L, N, H, n, D) of what lies as (L, H, N x n, D): tensors of up to four axes are
    joined in one launch.
    """
    n_layers, heads, n_head, d = head.shape
    filled = []
    for part in parts:
        filled += [head, part, fills[n - n_head - part.shape[2]]]
    shape = (n_layers, heads, len(parts) * n, d)
    joined = torch.cat(filled, 2, out=None if into is None else into.transpose(1, 2).view(shape))
    return joined.view(n_layers, heads, len(parts), n, d).transpose(1, 2)


def page_mask(
    n_head: int,
    n_seen: Tensor,
    n_columns: int,
    n_suffix: int,
    n_sharing: int,
    like: Tensor,
    hidden_cells: Tensor | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """(N, 1, n_sharing * n_suffix, n_columns) additive: what a query sees of pages and of itself.

    Everything real before the query is visible, the first n_seen (N,) columns: the instruction's
    n_head and the page's own. The query itself, the last columns, is causal. Query heads that
    share a head of K/V, n_sharing, see the same. hidden_cells: (N, S) bool over the pages'
    columns. into: an earlier mask of this shape, overwritten.
    """
    n_pages, n_prefix = len(n_seen), n_columns - n_suffix
    hidden = torch.arange(n_prefix, device=like.device) >= n_seen[:, None]
    if hidden_cells is not None:
        cells = hidden_cells[:, : n_prefix - n_head].to(like.device)
        hidden[:, n_head : n_head + cells.shape[1]] |= cells
    mask = into
    if mask is None:
        mask = like.new_empty(n_pages, 1, n_sharing * n_suffix, n_columns)
        mask[..., n_prefix:] = causal_mask(n_suffix, like).repeat(1, 1, n_sharing, 1)
    before = mask[..., :n_prefix]
    torch.mul(hidden[:, None, None].expand_as(before), MASKED, out=before)
    return mask
