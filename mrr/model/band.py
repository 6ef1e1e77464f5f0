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
from mrr.model.kv import KVPage, Quantized, stack
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
        pages: Sequence[KVPage],
        first_layer: int,
        n_suffix: int,
        like: Tensor,
        hidden_cells: Tensor | None = None,
    ) -> None:
        self._instruction = instruction
        self._pages = pages
        self._first = first_layer
        self._n_head = instruction.n_tokens
        self.n_prefix = self._n_head + max(page.n_tokens for page in pages)
        _, heads, _, d = instruction.k.shape
        shape = (len(pages), heads, self.n_prefix + n_suffix, d)
        self._k = torch.empty(shape, dtype=like.dtype, device=like.device)
        self._v = torch.empty(shape, dtype=like.dtype, device=like.device)
        self._stacks: tuple[Quantized, Quantized] | None = None
        if like.is_cuda:
            self._stacks = stack([page.k for page in pages]), stack([page.v for page in pages])
        else:  # copying the stored K/V together first would only take memory
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
        if self._stacks is not None:
            for stored, out in zip(self._stacks, (self._k, self._v), strict=True):
                stored.write(layer, out[:, :, head : self.n_prefix])
        else:
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
        lengths = torch.tensor([self._n_head + p.n_tokens for p in self._pages])
        hidden = torch.arange(self.n_prefix)[None] >= lengths[:, None]
        if hidden_cells is not None:
            hidden[:, self._n_head : self._n_head + hidden_cells.shape[1]] |= hidden_cells
        n_pages = len(self._pages)
        mask = torch.zeros(
            (n_pages, 1, n_suffix, self.n_prefix + n_suffix), dtype=like.dtype, device=like.device
        )
        mask[..., : self.n_prefix].masked_fill_(hidden.to(like.device)[:, None, None], NEG_INF)
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
    assert config.band is not None
    ids = pad_sequence([torch.tensor(s) for s in suffixes], batch_first=True).to(loaded.device)
    hidden = loaded.lm.embed_tokens(ids)
    hidden = run_layers(
        loaded.lm,
        hidden,
        _cos_sin(loaded, hidden, [0]),
        range(config.band[0]),
        observe=observe,
        recorder=recorder,
    )
    last = torch.tensor([len(s) - 1 for s in suffixes], device=loaded.device)
    return Suffix(hidden, last)


@torch.inference_mode()
def run_band(
    loaded: LoadedModel,
    config: RerankConfig,
    suffix: Suffix,
    instruction: InstructionKV,
    pages: Sequence[KVPage],
    *,
    hidden_cells: Tensor | None = None,
    observe: Observer | None = None,
    recorder: Recorder | None = None,
) -> Tensor:
    """Second segments (1 or N of them) through the band and on to the exit, against N pages.

    Returns the last token's hidden state at the exit layer, (N, d), not normed. Without observe
    and recorder the exit layer computes the last token only.
    """
    assert config.band is not None and config.exit_layer is not None
    start, end = config.band
    hidden = suffix.hidden.expand(len(pages), -1, -1)
    last = suffix.last.expand(len(pages))
    kv = BandKV(instruction, pages, start, hidden.shape[1], hidden, hidden_cells)
    cos_sin = _cos_sin(loaded, hidden, [page.next_position for page in pages])
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
        _cos_sin(loaded, hidden, [0]),
        range(end, config.exit_layer),
        observe=observe,
        recorder=recorder,
    )
    return hidden[torch.arange(len(pages)), last]


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


def _cos_sin(loaded: LoadedModel, hidden: Tensor, starts: Sequence[int]) -> CosSin:
    """Rotary tables of n text tokens that begin at each of `starts`: (len(starts), n, D)."""
    offsets = torch.arange(hidden.shape[1], device=hidden.device)
    positions = torch.tensor(starts, device=hidden.device)[:, None] + offsets
    cos, sin = loaded.lm.rotary_emb(hidden, positions[None].expand(3, -1, -1))
    return cos, sin
