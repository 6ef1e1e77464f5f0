"""The query pass: alone before the band, against many pages' K/V within it, alone after it.

Before the band a query does not depend on the page, so it runs once whatever the number of
candidates. Inside, candidates of different sizes share one batch: [instruction | page | pad |
query], with K/V of one layer at a time expanded into a buffer that every layer reuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mrr.config import RerankConfig
from mrr.model.kv import KVPage, PageStack, places
from mrr.model.layers import (
    NEG_INF,
    CosSin,
    Observer,
    Recorder,
    causal_mask,
    project_kv,
    run_layers,
)
from mrr.model.load import LoadedModel
from mrr.model.prefix import InstructionKV


class BandKV:
    """Stands in for a cache: N candidates' K/V, right-padded, with room for the query's own.

    hidden_cells: (N, S) bool over the page columns hides cells from the query (occlusion).
    """

    def __init__(
        self,
        instruction: InstructionKV,
        pages: Sequence[KVPage] | PageStack,
        first_layer: int,
        n_suffix: int,
        like: Tensor,
        hidden_cells: Tensor | None = None,
    ) -> None:
        if like.is_cuda and not isinstance(pages, PageStack):
            pages = PageStack.of(pages, like.device)
        self._instruction = instruction
        self._pages = pages
        self._first = first_layer
        self._n_head = instruction.n_tokens
        if isinstance(pages, PageStack):
            self.n_tokens, self.next_position = pages.n_tokens, pages.next_position
            longest = pages.k.values.shape[3]
        else:
            self.n_tokens, self.next_position = places(pages).to(like.device)
            longest = max(page.n_tokens for page in pages)
        self.n_prefix = self._n_head + longest
        _, heads, _, d = instruction.k.shape
        shape = (len(pages), heads, self.n_prefix + n_suffix, d)
        self._k = torch.empty(shape, dtype=like.dtype, device=like.device)
        self._v = torch.empty(shape, dtype=like.dtype, device=like.device)
        if not isinstance(pages, PageStack):
            for i, page in enumerate(pages):
                # A padded column has weight 0, but 0 x NaN from fresh memory would still be NaN.
                padding = slice(self._n_head + page.n_tokens, self.n_prefix)
                self._k[i, :, padding] = 0
                self._v[i, :, padding] = 0
        self._loaded = -1
        self.mask = self._mask(n_suffix, like, hidden_cells)

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *args: Any) -> tuple[Tensor, Tensor]:
        """Put this layer's page K/V in the buffer, then the query's at its end."""
        self.load(layer_idx)
        n = self._k.shape[2] - self.n_prefix
        if k.shape[2] == n:  # else the query's rows were written by `write_suffix`
            self.write_suffix(k, v)
        return self._k, self._v

    def load(self, layer_idx: int) -> None:
        """Expand one layer's instruction and page K/V into the buffer, unless it is there."""
        if layer_idx == self._loaded:
            return
        layer, head = layer_idx - self._first, self._n_head
        self._k[:, :, :head] = self._instruction.k[layer]
        self._v[:, :, :head] = self._instruction.v[layer]
        if isinstance(self._pages, PageStack):
            self._pages.k.write(layer, self._k[:, :, head : self.n_prefix])
            self._pages.v.write(layer, self._v[:, :, head : self.n_prefix])
        else:  # copying the stored K/V together first would only take memory
            for i, page in enumerate(self._pages):
                page.k.write(layer, self._k[i, :, head : head + page.n_tokens])
                page.v.write(layer, self._v[i, :, head : head + page.n_tokens])
        self._loaded = layer_idx

    def write_suffix(self, k: Tensor, v: Tensor) -> None:
        """Put the query's own K/V (N, H, n, D) after the pages."""
        self._k[:, :, self.n_prefix :] = k
        self._v[:, :, self.n_prefix :] = v

    def _mask(self, n_suffix: int, like: Tensor, hidden_cells: Tensor | None) -> Tensor:
        """(N, 1, n, S) additive: everything real in the prefix, causal among the query."""
        columns = torch.arange(self.n_prefix, device=like.device)
        hidden = columns[None] >= (self._n_head + self.n_tokens)[:, None]
        if hidden_cells is not None:
            own = hidden[:, self._n_head : self._n_head + hidden_cells.shape[1]]
            own |= hidden_cells.to(like.device)
        shape = (len(self._pages), 1, n_suffix, self.n_prefix + n_suffix)
        mask = torch.zeros(shape, dtype=like.dtype, device=like.device)
        mask[..., : self.n_prefix].masked_fill_(hidden[:, None, None], NEG_INF)
        mask[..., self.n_prefix :] = causal_mask(n_suffix, like)
        return mask


@dataclass(frozen=True, slots=True)
class Suffix:
    """Second segments on their way through the layers, right-padded to one length.

    hidden: (B, n, d); B is 1 for one query against many pages. last: (B,) index of the last real
    token. Padding follows it, so a causal mask already keeps it from being seen.
    """

    hidden: Tensor
    last: Tensor

    def select(self, rows: Sequence[int]) -> Suffix:
        """Some of the segments."""
        return Suffix(self.hidden[list(rows)], self.last[list(rows)])


@torch.inference_mode()
def run_before_band(
    loaded: LoadedModel,
    config: RerankConfig,
    suffixes: Sequence[list[int]],
    *,
    observe: Observer | None = None,
    recorder: Recorder | None = None,
) -> Suffix:
    """Second segments, given as ids, alone through layers [0, band start).

    They sit at offset 0, always: rotary attention is relative, but in bf16 another offset rounds
    differently.
    """
    ids = pad_sequence([torch.tensor(s) for s in suffixes], batch_first=True).to(loaded.device)
    hidden = before_band(loaded, config, ids, observe=observe, recorder=recorder)
    last = torch.tensor([len(s) - 1 for s in suffixes], device=loaded.device)
    return Suffix(hidden, last)


@torch.inference_mode()
def before_band(
    loaded: LoadedModel,
    config: RerankConfig,
    ids: Tensor,
    *,
    observe: Observer | None = None,
    recorder: Recorder | None = None,
) -> Tensor:
    """The same for ids (B, n) on the device: (B, n, d). A GPU needs no host for it."""
    assert config.band is not None
    hidden = loaded.lm.embed_tokens(ids)
    return run_layers(
        loaded.lm,
        hidden,
        _cos_sin(loaded, hidden),
        range(config.band[0]),
        observe=observe,
        recorder=recorder,
    )


@torch.inference_mode()
def run_band(
    loaded: LoadedModel,
    config: RerankConfig,
    suffix: Suffix,
    instruction: InstructionKV,
    pages: Sequence[KVPage] | PageStack,
    *,
    hidden_cells: Tensor | None = None,
    observe: Observer | None = None,
    recorder: Recorder | None = None,
) -> Tensor:
    """Second segments (1 or N of them) through the band and on to the exit, against N pages.

    Returns the last token's hidden state at the exit layer, (N, d), not normed. Without observe
    and recorder the exit layer computes the last token only. With a PageStack a GPU needs no host
    for it.
    """
    assert config.band is not None and config.exit_layer is not None
    start, end = config.band
    hidden = suffix.hidden.expand(len(pages), -1, -1)
    last = suffix.last.expand(len(pages))
    kv = BandKV(instruction, pages, start, hidden.shape[1], hidden, hidden_cells)
    cos_sin = _cos_sin(loaded, hidden, kv.next_position)
    traced = observe is not None or recorder is not None
    trim = end - 1 if end == config.exit_layer and not traced else end
    hidden = run_layers(
        loaded.lm,
        hidden,
        cos_sin,
        range(start, trim),
        mask=kv.mask,
        kv=kv,
        observe=observe,
        recorder=recorder,
    )
    if trim < end:
        return _last_token_layer(loaded.lm, hidden, cos_sin, trim, kv, last)
    hidden = run_layers(
        loaded.lm,
        hidden,
        _cos_sin(loaded, hidden),
        range(end, config.exit_layer),
        observe=observe,
        recorder=recorder,
    )
    return hidden[torch.arange(len(pages), device=hidden.device), last]


def _last_token_layer(
    lm: Any, hidden: Tensor, cos_sin: CosSin, layer: int, kv: BandKV, last: Tensor
) -> Tensor:
    """One layer for the last token alone; the others contribute their K/V and nothing else."""
    kv.write_suffix(*project_kv(lm.layers[layer], hidden, cos_sin))
    each = torch.arange(hidden.shape[0], device=hidden.device)
    cos, sin = (t.expand(hidden.shape[0], -1, -1)[each, last][:, None] for t in cos_sin)
    out = run_layers(
        lm,
        hidden[each, last][:, None],
        (cos, sin),
        range(layer, layer + 1),
        mask=kv.mask[each, :, last][:, :, None],
        kv=kv,
    )
    return out[:, 0]


def _cos_sin(loaded: LoadedModel, hidden: Tensor, starts: Tensor | None = None) -> CosSin:
    """Rotary tables of n text tokens that begin at each of starts (B,), or at 0: (B, n, D)."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    if starts is not None:
        positions = starts[:, None] + positions
    cos, sin = loaded.lm.rotary_emb(hidden, positions[None].expand(3, -1, -1))
    return cos, sin
