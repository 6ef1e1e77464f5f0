"""The query's attention to many pages: over [instruction | page | pad | query] for each of them.

Stored K/V of one layer is expanded into a buffer, for a group of pages at a time. On a CPU a group
is what the caches hold: K/V that goes out to memory and back takes three times as long. A GPU
takes all pages in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrr.model.kv import KVPage, PageStack, places
from mrr.model.layers import NEG_INF, Recorder, causal_mask, folded_attention
from mrr.model.prefix import InstructionKV

# Expanded K/V of one group on a CPU, for each thread: its share of the last cache, more or less.
_GROUP_BYTES_PER_THREAD = 3 << 20


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the pages, next to each other, padded to their longest.

    mask: (g, 1, n, S) additive over the group's columns; n_prefix of these come before the query.
    """

    pages: slice
    n_prefix: int
    mask: Tensor


class PageAttention:
    """Attention of one batch of n_suffix query tokens to N pages in the band's layers.

    first_layer: the band's, whose K/V is the first that instruction and pages hold. like: whose
    type and device K/V is expanded to. hidden_cells: (N, S) bool over the page columns hides cells
    from the query (occlusion). at_once: one group, whatever the device.
    """

    def __init__(
        self,
        instruction: InstructionKV,
        pages: Sequence[KVPage] | PageStack,
        first_layer: int,
        n_suffix: int,
        like: Tensor,
        hidden_cells: Tensor | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        if like.is_cuda and not isinstance(pages, PageStack):
            pages = PageStack.of(pages, like.device)
        self._instruction = instruction
        self._pages = pages
        self._first = first_layer
        self._n_head, self._n_suffix = instruction.n_tokens, n_suffix
        if isinstance(pages, PageStack):
            self._n_tokens, self.next_position = pages.n_tokens, pages.next_position
            lengths = [pages.k.values.shape[3]] * len(pages)
            at_once = True
        else:
            self._n_tokens, self.next_position = places(pages).to(like.device)
            lengths = [page.n_tokens for page in pages]
        _, heads, _, d = instruction.k.shape
        n_columns = self._n_head + max(lengths) + n_suffix
        page_bytes = 2 * heads * n_columns * d * like.element_size()
        in_cache = max(1, _GROUP_BYTES_PER_THREAD * torch.get_num_threads() // page_bytes)
        size = len(lengths) if at_once else min(in_cache, len(lengths))
        self._k = like.new_empty(size, heads, n_columns, d)
        self._v = like.new_empty(size, heads, n_columns, d)
        if not isinstance(pages, PageStack):  # a stack is filled up already
            # A padded column has weight 0, but 0 x NaN from fresh memory would still be NaN.
            self._k.zero_()
            self._v.zero_()
        self._own: tuple[Tensor, Tensor, Tensor] | None = None
        self.groups = [
            self._group(slice(i, min(i + size, len(lengths))), lengths, like, hidden_cells)
            for i in range(0, len(lengths), size)
        ]

    def _group(
        self, some: slice, lengths: list[int], like: Tensor, hidden_cells: Tensor | None
    ) -> Group:
        """Everything real before the query is visible; the query itself is causal."""
        n_prefix, n = self._n_head + max(lengths[some]), self._n_suffix
        columns = torch.arange(n_prefix, device=like.device)
        hidden = columns[None] >= (self._n_head + self._n_tokens[some])[:, None]
        if hidden_cells is not None:
            cells = hidden_cells[some, : n_prefix - self._n_head].to(like.device)
            hidden[:, self._n_head : self._n_head + cells.shape[1]] |= cells
        mask = like.new_zeros(hidden.shape[0], 1, n, n_prefix + n)
        mask[..., :n_prefix].masked_fill_(hidden[:, None, None], NEG_INF)
        mask[..., n_prefix:] = causal_mask(n, like)
        return Group(some, n_prefix, mask)

    def hold(self, k: Tensor, v: Tensor, last: Tensor) -> None:
        """The query's K/V (N, H, n, D) of the next layer, which asks for token `last` (N,) only."""
        self._own = k, v, last

    def attend(
        self,
        layer: int,
        query: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float,
        recorder: Recorder | None = None,
    ) -> Tensor:
        """query (N, heads, n, D) with its own k, v (N, H, n, D): (N, n, heads, D).

        After `hold` query is (N, heads, 1, D), and what was held takes the place of k and v. A
        recorder wants all pages at once.
        """
        last = None
        if self._own is not None:
            (k, v, last), self._own = self._own, None
        seen = []
        for group in self.groups:
            keys, values = self.expand(layer, group)
            keys[:, :, group.n_prefix :] = k[group.pages]
            values[:, :, group.n_prefix :] = v[group.pages]
            asking, mask = query[group.pages], group.mask
            if last is not None:
                each = torch.arange(mask.shape[0], device=mask.device)
                mask = mask[each, :, last[group.pages]][:, :, None]
            if recorder is not None:
                recorder.record(layer, asking, keys, mask, scaling)
            seen.append(folded_attention(asking, keys, values, mask, scaling).transpose(1, 2))
        return torch.cat(seen)

    def expand(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        """K and V (g, H, S, D) of one group, the query's own columns not yet written.

        They are the buffer: the next call overwrites them.
        """
        i, head, end = layer - self._first, self._n_head, group.n_prefix
        n_pages = group.mask.shape[0]
        keys = self._k[:n_pages, :, : end + self._n_suffix]
        values = self._v[:n_pages, :, : end + self._n_suffix]
        keys[:, :, :head] = self._instruction.k[i]
        values[:, :, :head] = self._instruction.v[i]
        if isinstance(self._pages, PageStack):
            self._pages.k.write(i, keys[:, :, head:end])
            self._pages.v.write(i, values[:, :, head:end])
        else:  # copying the stored K/V together first would only take memory
            for row, page in enumerate(self._pages[group.pages]):
                own = slice(head, head + page.n_tokens)
                page.k.write(i, keys[row, :, own])
                page.v.write(i, values[row, :, own])
        return keys, values
