"""The mini system's tensor operations with everything around them taken away.

K/V stands ready in the compute type and in one batch, positions and masks are made beforehand,
and no stage is timed inside. Where the engine replays CUDA graphs, so does this. What the engine
takes over this is its own overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mrr.model.band import run_before_band
from mrr.model.graphs import Graph
from mrr.model.kv import KVPage
from mrr.model.layers import Recorder, folded_attention, project_kv, run_layers
from mrr.model.page_attention import PageAttention
from mrr.model.scorer import Scorer
from mrr.timing import Stages


class _Ready:
    """All K/V of all layers, padded and expanded; only the query's own is written."""

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], mask: Tensor, first: int, n: int
    ) -> None:
        self._keys, self._values, self._mask = keys, values, mask
        self._first, self._n = first, n

    def hold(self, k: Tensor, v: Tensor, layer: int) -> None:
        self._keys[layer - self._first][:, :, -self._n :] = k
        self._values[layer - self._first][:, :, -self._n :] = v

    def attend(
        self,
        layer: int,
        query: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float,
        recorder: Recorder | None = None,
    ) -> Tensor:
        n = query.shape[2]
        if n == self._n:
            self.hold(k, v, layer)
        keys, values = self._keys[layer - self._first], self._values[layer - self._first]
        mask = self._mask[:, :, -n:]
        return folded_attention(query, keys, values, mask, scaling).transpose(1, 2)


@torch.inference_mode()
def bare_band(scorer: Scorer, query: str, pages: Sequence[KVPage]) -> Callable[[Stages], Tensor]:
    """A function that scores the pages in one batch and returns their logits (N,)."""
    loaded, config = scorer.loaded, scorer.config
    assert config.band is not None and config.exit_layer is not None
    (start, end), exit_layer = config.band, config.exit_layer
    ids = torch.tensor([scorer.prompt(query, 1).suffix], device=loaded.device)
    n = ids.shape[1]
    like = run_before_band(loaded, config, [ids[0].tolist()]).hidden.expand(len(pages), -1, -1)
    keys, values = [], []
    for layer in range(start, end):
        attention = PageAttention(scorer.instruction(), pages, start, n, like, at_once=True)
        (group,) = attention.groups
        k, v = attention.expand(layer, group)
        keys.append(k)
        values.append(v)
    lm = loaded.lm
    offsets = torch.arange(n, device=loaded.device)
    starts = torch.tensor([page.next_position for page in pages], device=loaded.device)
    alone = lm.rotary_emb(like, offsets.expand(3, 1, -1))
    there = lm.rotary_emb(like, (starts[:, None] + offsets).expand(3, -1, -1))
    ready = _Ready(keys, values, group.mask, start, n)

    @torch.inference_mode()
    def run() -> Tensor:
        hidden = run_layers(lm, lm.embed_tokens(ids), alone, range(start))
        hidden = hidden.expand(len(pages), -1, -1)
        if exit_layer > end:
            hidden = run_layers(lm, hidden, there, range(start, end), pages=ready)
            hidden = run_layers(lm, hidden, alone, range(end, exit_layer))
            return scorer.head.logits(hidden[:, -1])
        hidden = run_layers(lm, hidden, there, range(start, end - 1), pages=ready)
        ready.hold(*project_kv(lm.layers[end - 1], hidden, there), end - 1)
        hidden = run_layers(
            lm,
            hidden[:, -1:],
            (there[0][:, -1:], there[1][:, -1:]),
            range(end - 1, end),
            pages=ready,
        )
        return scorer.head.logits(hidden[:, 0])

    if scorer.graphs is None:
        return lambda stages: run()
    graph = Graph(run, (), loaded.device)
    return lambda stages: graph.replay()
