"""A page and a query as the parity tests need them, at the level of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from mrr.config import RerankConfig
from mrr.model.embedder import Embedder
from mrr.model.graphs import graphs_for
from mrr.model.kv import KVPage
from mrr.model.load import LoadedModel
from mrr.model.prompt import QWEN_RERANKER, Prompt, PromptEncoder
from mrr.model.scorer import Scorer
from mrr.model.vision import Pixels, Sight, encode_vision
from mrr.prune import kept_tokens
from mrr.timing import Stages
from tests.tiny import DEVICE, picture

QUERY = "blue page"
SIZES = ((192, 128), (128, 256), (96, 96), (256, 192))
STAGES = Stages(torch.device(DEVICE))

DENSE = RerankConfig(
    exit_layer=6, band=(0, 6), pruner="none", kv_dtype="fp32", instruction="Find the page."
)
SPARSE = replace(DENSE, band=(2, 4), exit_layer=5)
PRUNED = replace(DENSE, pruner="random", keep_ratio=0.5)


@dataclass
class Case:
    """One page prepared for one scorer."""

    sight: Sight
    kept: np.ndarray
    prompt: Prompt
    page: KVPage | None

    @property
    def pixels(self) -> Pixels:
        return self.sight.pixels


def scorer(loaded: LoadedModel, config: RerankConfig) -> Scorer:
    encoder = PromptEncoder(loaded.tokenizer, QWEN_RERANKER)
    return Scorer(loaded, encoder, config, graphs=graphs_for(loaded))


def case(s: Scorer, image: Image.Image, query: str = QUERY) -> Case:
    sight = s.sight(image, STAGES)
    pixels = sight.pixels
    kept = kept_tokens(s.config.pruner, s.config.keep_ratio, pixels.grid, seed=(7,))
    page = s.encode(sight, kept, STAGES) if s.image_first else None
    return Case(sight, kept, s.prompt(query, pixels.n_tokens), page)


def embed(embedder: Embedder, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Vector and importance of a picture at the checkpoint's own size."""
    loaded = embedder.loaded
    sight = Sight(loaded, image, loaded.min_pixels, loaded.max_pixels, STAGES)
    return embedder.embed_page(sight.pixels, sight.visual)


def cases(s: Scorer) -> list[Case]:
    """Pages of four different sizes."""
    return [case(s, picture(i, size)) for i, size in enumerate(SIZES)]


def stock_logit(loaded: LoadedModel, s: Scorer, c: Case, masks: dict[int, torch.Tensor]) -> float:
    """transformers' own forward with its whole head, and an additive 4D mask for some layers.

    masks: {layer: (1, 1, n, n)}; the other layers are causal. The logit is read at the exit layer.
    """
    assert s.config.exit_layer is not None
    ids = torch.tensor([c.prompt.ids], device=loaded.device)
    kinds = (ids == s.encoder.image_id).int()
    positions, _ = loaded.model.model.get_rope_index(
        ids, mm_token_type_ids=kinds, image_grid_thw=c.pixels.grid_thw.to(loaded.device)
    )
    n = len(c.prompt.ids)
    causal = torch.full((1, 1, n, n), float("-inf")).triu(1)
    masks = {i: masks.get(i, causal).to(loaded.device) for i in range(loaded.n_layers)}
    seen: dict[int, torch.Tensor] = {}

    def use_mask(layer: int):
        def hook(module, args, kwargs):
            return args, {**kwargs, "attention_mask": masks[layer]}

        return hook

    def note(layer: int):
        def hook(module, args, output):
            seen[layer] = output

        return hook

    handles = []
    for i, layer in enumerate(loaded.lm.layers):
        handles.append(layer.register_forward_pre_hook(use_mask(i), with_kwargs=True))
        handles.append(layer.register_forward_hook(note(i)))
    try:
        with torch.inference_mode():
            out = loaded.model(
                input_ids=ids,
                position_ids=positions,
                pixel_values=c.pixels.values.to(loaded.device),
                image_grid_thw=c.pixels.grid_thw.to(loaded.device),
                mm_token_type_ids=kinds,
            )
            if s.config.exit_layer == loaded.n_layers:
                logits = out.logits[0, -1]
            else:  # the stock head, on the stock hidden state of the exit layer
                hidden = seen[s.config.exit_layer - 1][0, -1]
                logits = loaded.model.lm_head(loaded.lm.norm(hidden))
    finally:
        for handle in handles:
            handle.remove()
    return float(logits[s.encoder.positive_id] - logits[s.encoder.negative_id])


def visual(loaded: LoadedModel, c: Case):
    return encode_vision(loaded, c.pixels)


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU would have to be told of: not views, but their copies."""

    SILENT = frozenset(
        "lift_fresh new_empty chunk expand expand_as flatten permute reshape select slice split "
        "split_with_sizes squeeze transpose unbind unflatten unsqueeze view".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __len__(self) -> int:
        return len(self.seen)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, out = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        is_silent = name in self.SILENT
        if name in ("flatten", "reshape"):
            is_silent = out.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr()
        self.seen += [name] * (not is_silent)
        return out
