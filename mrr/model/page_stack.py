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

from mrr.model.graphs import put
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

    kv: see `stack`; the query's own columns, the last ones, are overwritten layer by layer.
    mask: (N, 1, m * n, S), see `page_mask`. turns: (N, n, 2, D), cos and sin of the query's tokens
    after each page.
    """

    kv: Tensor
    mask: Tensor
    turns: Tensor

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def k(self) -> Tensor:
        """(L, N, H, S, D)."""
        return self.kv[0]

    @property
    def v(self) -> Tensor:
        """(L, N, H, S, D)."""
        return self.kv[1]

    @property
    def cos_sin(self) -> CosSin:
        """(N, n, D) each."""
        cos, sin = self.turns.unbind(2)
        return cos, sin

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of their names above."""
        return self.kv, self.mask, self.turns

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        instruction: InstructionKV,
        pages: Sequence[KVPage],
        n_suffix: int,
        hidden_cells: Tensor | None = None,
        memory: Tensor | None = None,
        into: PageStack | None = None,
    ) -> PageStack:
        """Pages for a query of n_suffix tokens.

        hidden_cells: see `page_mask`. memory: a `kv` of this shape to overwrite. into: an earlier
        one of these shapes, overwritten as a whole.
        """
        n_head, n_pages = instruction.n_tokens, len(pages)
        lengths = [page.n_tokens for page in pages]
        n_columns = width(n_head + max(lengths) + n_suffix)
        kv = stack(instruction, pages, n_columns, memory if into is None else into.kv)
        # All that the GPU has to be told, in one go: columns that are seen, and positions.
        starts = np.array([page.next_position for page in pages])
        positions = np.add.outer(starts, np.arange(n_suffix)).ravel()
        numbers = np.concatenate([n_head + np.array(lengths), positions])
        there = put(torch.from_numpy(numbers), kv.device, None)
        mask = page_mask(
            n_head,
            there[:n_pages],
            n_columns,
            n_suffix,
            loaded.n_sharing,
            kv,
            hidden_cells,
            None if into is None else into.mask,
        )
        table = text_turns(loaded.lm, kv, int(starts.max()) + n_suffix)
        shape = n_pages, n_suffix, 2, table.shape[2]
        out = None if into is None else into.turns.view(-1, 2, table.shape[2])
        turns = torch.index_select(table, 0, there[n_pages:], out=out).view(shape)
        return cls(kv, mask, turns)


def width(n_columns: int) -> int:
    """Columns that so many are filled up to."""
    return -(-n_columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def stack(
    instruction: InstructionKV,
    pages: Sequence[KVPage],
    n_columns: int,
    into: Tensor | None = None,
) -> Tensor:
    """K and V of pages side by side, in so many columns each: (2, L, N, H, S, D).

    Each page is the instruction, its own tokens and zeros. Pages that are stored in another type
    than the instruction's are expanded first. into: an earlier one, overwritten and returned.

    It is a view of what lies as (2L, H, N x S, D): tensors of up to four axes are joined in one
    launch.
    """
    head = instruction.both
    n_both, heads, n_head, d = head.shape
    missing = [n_columns - n_head - page.n_tokens for page in pages]
    zeros = head.new_zeros(n_both * heads * d * max(missing))
    ends = {n: zeros[: n_both * heads * d * n].view(n_both, heads, n, d) for n in set(missing)}
    made: dict[int, Tensor] = {}  # one page may come often
    parts = []
    for page, n in zip(pages, missing, strict=True):
        own = page.both
        if own is None or own.dtype != head.dtype:
            own = made[id(page)] if id(page) in made else page.joined(head.dtype)
            made[id(page)] = own
        parts += [head, own, ends[n]]
    if into is not None:
        out = into.transpose(2, 3).view(n_both, heads, len(pages) * n_columns, d)
        torch.cat(parts, 2, out=out)
        return into
    joined = torch.cat(parts, 2).view(2, n_both // 2, heads, len(pages), n_columns, d)
    return joined.transpose(2, 3)


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
