"""The query's attention to many pages: over [instruction | page | pad | query] for each of them.

On a CPU stored K/V of one layer is expanded into a buffer, for a group of pages at a time: as many
as the caches hold, for K/V that goes out to memory and back takes three times as long. On a GPU
all pages are one group, which lies there ready for every layer (PageStack).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrr.model.kv import KVPage
from mrr.model.layers import Recorder, folded_attention
from mrr.model.page_stack import PageStack, page_mask
from mrr.model.prefix import InstructionKV

# Expanded K/V of one group on a CPU, for each thread: its share of the last cache, more or less.
_GROUP_BYTES_PER_THREAD = 3 << 20


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the pages, next to each other, padded to their longest.

    mask: (g, 1, m * n, S) additive over the group's columns, n_prefix of which come before the
    query: the same n rows for each of the m query heads that share a head of K/V.
    """

    pages: slice
    n_prefix: int
    mask: Tensor


class PageAttention:
    """Attention of one batch of n_suffix query tokens to N pages in the band's layers.

    first_layer: the band's, whose K/V is the first that instruction and pages hold. n_sharing:
    query heads that share a head of K/V. like: whose type and device K/V is expanded to.
    hidden_cells: (N, S) bool over the page columns hides cells from the query (occlusion).
    at_once: one group, whatever the device.
    """

    def __init__(
        self,
        instruction: InstructionKV,
        pages: Sequence[KVPage] | PageStack,
        first_layer: int,
        n_suffix: int,
        n_sharing: int,
        like: Tensor,
        hidden_cells: Tensor | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        self._instruction, self._pages, self._first = instruction, pages, first_layer
        self._n_head, self._n_suffix, self._n_sharing = instruction.n_tokens, n_suffix, n_sharing
        if isinstance(pages, PageStack):
            n_columns = pages.mask.shape[-1]
            self.groups = [Group(slice(None), n_columns - n_suffix, pages.mask)]
            return
        lengths = [page.n_tokens for page in pages]
        size = self._make_buffers(lengths, like, at_once)
        self.groups = [
            self._group(slice(i, min(i + size, len(lengths))), lengths, like, hidden_cells)
            for i in range(0, len(lengths), size)
        ]

    def _make_buffers(self, lengths: list[int], like: Tensor, at_once: bool) -> int:
        """Room for one layer's K/V of one group; how many pages that is."""
        _, heads, _, d = self._instruction.k.shape
        n_columns = self._n_head + max(lengths) + self._n_suffix
        page_bytes = 2 * heads * n_columns * d * like.element_size()
        in_cache = max(1, _GROUP_BYTES_PER_THREAD * torch.get_num_threads() // page_bytes)
        size = len(lengths) if at_once else min(in_cache, len(lengths))
        # A padded column has weight 0, but 0 x NaN from fresh memory would still be NaN.
        self._k = like.new_zeros(size, heads, n_columns, d)
        self._v = like.new_zeros(size, heads, n_columns, d)
        return size

    def _group(
        self, some: slice, lengths: list[int], like: Tensor, hidden_cells: Tensor | None
    ) -> Group:
        n_prefix = self._n_head + max(lengths[some])
        mask = page_mask(
            self._n_head,
            self._n_head + torch.tensor(lengths[some], device=like.device),
            n_prefix + self._n_suffix,
            self._n_suffix,
            self._n_sharing,
            like,
            None if hidden_cells is None else hidden_cells[some],
        )
        return Group(some, n_prefix, mask)

    def attend(
        self,
        layer: int,
        query: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float,
        *,
        last: Tensor | None = None,
        recorder: Recorder | None = None,
    ) -> Tensor:
        """query (N, heads, n, D) with its own k, v (N, H, n, D): (N, n, heads, D).

        last: (N,), the one token of each that asks; query is then (N, heads, 1, D). A recorder
        wants all pages at once.
        """
        seen = []
        for group in self.groups:
            keys, values = self.expand(layer, group)
            keys[:, :, group.n_prefix :] = k[group.pages]
            values[:, :, group.n_prefix :] = v[group.pages]
            asking, mask = query[group.pages], group.mask
            if last is not None:
                each = torch.arange(mask.shape[0], device=mask.device)
                mask = mask[each, :, last[group.pages]][:, :, None]
                mask = mask.repeat(1, 1, self._n_sharing, 1)
            if recorder is not None:
                recorder.record(layer, asking, keys, mask[:, :, : asking.shape[2]], scaling)
            seen.append(folded_attention(asking, keys, values, mask, scaling))
        return seen[0] if len(seen) == 1 else torch.cat(seen)

    def expand(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        """K and V (g, H, S, D) of one group, the query's own columns not yet written.

        On a CPU they are the buffer: the next call overwrites them.
        """
        i, head, end = layer - self._first, self._n_head, group.n_prefix
        if isinstance(self._pages, PageStack):
            return self._pages.k[i], self._pages.v[i]
        n_pages = group.mask.shape[0]
        keys = self._k[:n_pages, :, : end + self._n_suffix]
        values = self._v[:n_pages, :, : end + self._n_suffix]
        keys[:, :, :head] = self._instruction.k[i]
        values[:, :, :head] = self._instruction.v[i]
        for row, page in enumerate(self._pages[group.pages]):
            own = slice(head, head + page.n_tokens)
            page.k.write(i, keys[row, :, own])
            page.v.write(i, values[row, :, own])
        return keys, values
