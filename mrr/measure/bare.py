"""The mini system's tensor operations with everything around them taken away.

K/V stands ready in the compute type, positions and masks are made beforehand, and no stage is
timed inside. Where the engine replays CUDA graphs, so does this. What the engine takes over this
is its own overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mrr.model.band import band_layer
from mrr.model.graphs import Graph
from mrr.model.kv import KVPage
from mrr.model.layers import run_layers
from mrr.model.page_attention import Group, PageAttention
from mrr.model.page_stack import PageStack
from mrr.model.prefix import InstructionKV
from mrr.model.rotary import text_tables
from mrr.model.scorer import Scorer
from mrr.timing import Stages


class _ReadyPages(PageAttention):
    """Attention to pages whose K/V lies expanded in memory, each layer and group by itself.

    On a GPU it does so already.
    """

    def __init__(
        self,
        instruction: InstructionKV,
        pages: Sequence[KVPage] | PageStack,
        layers: range,
        n: int,
        n_sharing: int,
        like: Tensor,
    ) -> None:
        super().__init__(instruction, pages, layers.start, n, n_sharing, like)
        self._ready: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for layer in layers:
            for group in self.groups:
                keys, values = super().expand(layer, group)
                if not keys.is_cuda:  # else the next one overwrites them
                    keys, values = keys.clone(), values.clone()
                self._ready[layer, group.pages.start] = keys, values

    def expand(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        """K and V (g, H, S, D) as they were expanded beforehand."""
        return self._ready[layer, group.pages.start]


@torch.inference_mode()
def bare_band(scorer: Scorer, query: str, pages: Sequence[KVPage]) -> Callable[[Stages], Tensor]:
    """A function that scores the pages in one batch and returns their logits (N,)."""
    loaded, config = scorer.loaded, scorer.config
    assert config.band is not None and config.exit_layer is not None
    (start, end), exit_layer = config.band, config.exit_layer
    ids = torch.tensor([scorer.prompt(query, 1).suffix], device=loaded.device)
    n = ids.shape[1]
    lm, like, instruction = loaded.lm, loaded.lm.embed_tokens.weight, scorer.instruction()
    on_gpu = loaded.device.type == "cuda"
    laid = PageStack.of(loaded, instruction, pages, n) if on_gpu else pages
    ready = _ReadyPages(instruction, laid, range(start, end), n, loaded.n_sharing, like)
    last = torch.full((len(pages),), n - 1, device=loaded.device)
    alone = text_tables(lm, like, n)
    there = text_tables(lm, like, n, [page.next_position for page in pages])

    @torch.inference_mode()
    def run() -> Tensor:
        hidden = run_layers(lm, lm.embed_tokens(ids), alone, range(start))
        for layer in range(start, end):
            is_exit = layer + 1 == exit_layer
            hidden = band_layer(lm, layer, hidden, there, ready, last if is_exit else None)
        hidden = run_layers(lm, hidden, alone, range(end, exit_layer))
        return scorer.head.logits(hidden[:, -1])

    if scorer.graphs is None:
        return lambda stages: run()
    graph = Graph(run, (), loaded.device)
    return lambda stages: graph.replay()
