"""The mini system's tensor operations with everything around them taken away.

K/V stands ready in the compute type, positions and masks are made beforehand, and no stage is timed
inside. Where the engine replays CUDA graphs, so does this. What the engine
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
from mrr.model.page_attention import Group, PageAttention
from mrr.model.scorer import Scorer
from mrr.timing import Stages


class _Ready:
    """K/V of the band's layers, expanded, in the engine's groups; only the query's is written.

    layers: [layer][group] K and V (g, H, S, D), with n columns for the query at the end.
    """

    def __init__(
        self, layers: list[list[tuple[Tensor, Tensor]]], groups: list[Group], first: int, n: int
    ) -> None:
        self._layers, self._groups, self._first, self._n = layers, groups, first, n

    def write(self, k: Tensor, v: Tensor, layer: int) -> None:
        for group, (keys, values) in zip(
            self._groups, self._layers[layer - self._first], strict=True
        ):
            keys[:, :, group.n_prefix :] = k[group.pages]
            values[:, :, group.n_prefix :] = v[group.pages]

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
        if n == self._n:  # else it is the last token alone, and all were written before
            self.write(k, v, layer)
        ready = zip(self._groups, self._layers[layer - self._first], strict=True)
        seen = [
            folded_attention(query[g.pages], keys, values, g.mask[:, :, -n:], scaling)
            for g, (keys, values) in ready
        ]
        return torch.cat(seen).transpose(1, 2)


@torch.inference_mode()
def bare_band(scorer: Scorer, query: str, pages: Sequence[KVPage]) -> Callable[[Stages], Tensor]:
    """A function that scores the pages in one batch and returns their logits (N,)."""
    loaded, config = scorer.loaded, scorer.config
    assert config.band is not None and config.exit_layer is not None
    (start, end), exit_layer = config.band, config.exit_layer
    ids = torch.tensor([scorer.prompt(query, 1).suffix], device=loaded.device)
    n = ids.shape[1]
    like = run_before_band(loaded, config, [ids[0].tolist()]).hidden.expand(len(pages), -1, -1)
    attention = PageAttention(scorer.instruction(), pages, start, n, like)
    groups = attention.groups
    layers: list[list[tuple[Tensor, Tensor]]] = []
    for layer in range(start, end):
        expanded = (attention.expand(layer, group) for group in groups)  # one at a time
        layers.append([(keys.clone(), values.clone()) for keys, values in expanded])
    lm = loaded.lm
    offsets = torch.arange(n, device=loaded.device)
    starts = torch.tensor([page.next_position for page in pages], device=loaded.device)
    alone = lm.rotary_emb(like, offsets.expand(3, 1, -1))
    there = lm.rotary_emb(like, (starts[:, None] + offsets).expand(3, -1, -1))
    ready = _Ready(layers, groups, start, n)

    @torch.inference_mode()
    def run() -> Tensor:
        hidden = run_layers(lm, lm.embed_tokens(ids), alone, range(start))
        hidden = hidden.expand(len(pages), -1, -1)
        if exit_layer > end:
            hidden = run_layers(lm, hidden, there, range(start, end), pages=ready)
            hidden = run_layers(lm, hidden, alone, range(end, exit_layer))
            return scorer.head.logits(hidden[:, -1])
        hidden = run_layers(lm, hidden, there, range(start, end - 1), pages=ready)
        ready.write(*project_kv(lm.layers[end - 1], hidden, there), end - 1)
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
