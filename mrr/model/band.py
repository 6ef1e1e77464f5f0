"""The query pass: alone before the band, against many pages' K/V within it, alone after it.

Before the band a query does not depend on the page, so it runs once whatever the number of
candidates. Inside, candidates of different sizes share one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mrr.config import RerankConfig
from mrr.model.kv import KVPage
from mrr.model.layers import Observer, Recorder, after_attention, run_layers
from mrr.model.load import LoadedModel
from mrr.model.page_attention import PageAttention
from mrr.model.page_stack import PageStack
from mrr.model.prefix import InstructionKV
from mrr.model.rotary import CosSin, text_tables


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
    last = torch.tensor([len(s) - 1 for s in suffixes], device=loaded.device)
    hidden = before_band(loaded, config, ids, observe=observe, recorder=recorder)
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
        text_tables(loaded.lm, hidden, ids.shape[1]),
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
    and recorder the exit layer computes the last token only. With a PageStack, whose mask says by
    itself what is hidden, a GPU needs no host for it.
    """
    assert config.band is not None and config.exit_layer is not None
    start, end = config.band
    hidden, last = suffix.hidden, suffix.last.expand(len(pages))
    n = hidden.shape[1]
    if hidden.is_cuda and not isinstance(pages, PageStack):
        pages = PageStack.of(loaded, instruction, pages, n, hidden_cells)
    attention = PageAttention(
        instruction,
        pages,
        start,
        n,
        loaded.n_sharing,
        hidden,
        hidden_cells,
        at_once=recorder is not None,
    )
    if isinstance(pages, PageStack):
        cos_sin = pages.cos_sin
    else:
        cos_sin = text_tables(loaded.lm, hidden, n, [page.next_position for page in pages])
    traced = observe is not None or recorder is not None
    for layer in range(start, end):
        is_exit = layer + 1 == config.exit_layer and not traced
        asks = last if is_exit else None
        hidden = band_layer(loaded.lm, layer, hidden, cos_sin, attention, asks, recorder)
        if is_exit:
            return hidden[:, 0]
        if observe is not None:
            observe(layer, hidden)
    hidden = run_layers(
        loaded.lm,
        hidden,
        text_tables(loaded.lm, hidden, n),
        range(end, config.exit_layer),
        observe=observe,
        recorder=recorder,
    )
    return hidden[torch.arange(len(pages), device=hidden.device), last]


def band_layer(
    lm: Any,
    layer: int,
    hidden: Tensor,
    cos_sin: CosSin,
    attention: PageAttention,
    last: Tensor | None = None,
    recorder: Recorder | None = None,
) -> Tensor:
    """One layer against N pages: hidden (B, n, d), where B is 1 or N, to (N, n, d).

    One text is the same for every page when it enters the band, so it is projected once. last:
    (N,), the only token of each that is asked for: (N, 1, d); the others contribute their K/V.
    """
    module = lm.layers[layer]
    own = module.self_attn
    normed = module.input_layernorm(hidden)
    if last is None:
        query, k, v = own.project(normed, cos_sin, by_head=True)
    else:
        each = torch.arange(len(last), device=last.device)

        def asking(x: Tensor) -> Tensor:
            return x.expand(len(last), -1, -1)[each, last][:, None]

        k, v = own.project_kv(normed, cos_sin)
        query = own.project_q(asking(normed), (asking(cos_sin[0]), asking(cos_sin[1])))
        hidden = asking(hidden)
    attended = attention.attend(layer, query, k, v, own.scaling, last=last, recorder=recorder)
    return after_attention(module, hidden, attended)
