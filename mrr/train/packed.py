"""A page and several queries in one differentiable pass, through any checkpoint the engine runs.

The page's prefix is computed once; queries follow it side by side, blind to each other. Outside
the band they are blind to the page too. The same positions, masks and pruning as the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrr.model.layers import MASKED, run_layers
from mrr.model.load import LoadedModel
from mrr.model.prefix import embed_rows, kept_rows
from mrr.model.prompt import PromptEncoder
from mrr.model.vision import Pixels, VisualTokens, encode_vision, rope_positions


@dataclass(frozen=True, slots=True)
class Pack:
    """One page with its queries, ready for layer 0.

    hidden: (1, N, d). positions: (3, 1, N). segment: (N,) 0 for the page's prefix, i for query i
    (from 1). last: (Q,) row of each query's last token. visual_rows: (T,) rows of the page's kept
    tokens; deepstack: features for those rows.
    """

    hidden: Tensor
    positions: Tensor
    segment: Tensor
    last: Tensor
    visual_rows: Tensor
    deepstack: tuple[Tensor, ...]


def look(loaded: LoadedModel, pixels: Pixels) -> VisualTokens:
    """Visual tokens that gradients may pass by; the tower itself is not trained."""
    seen = encode_vision(loaded, pixels)
    return VisualTokens(seen.embeds.clone(), tuple(features.clone() for features in seen.deepstack))


def pack(
    loaded: LoadedModel,
    encoder: PromptEncoder,
    instruction: str,
    queries: list[str],
    pixels: Pixels,
    visual: VisualTokens,
    kept: np.ndarray,
) -> Pack:
    """Lay a page and its queries out in one row; kept: ascending indices of visual tokens."""
    prompts = [
        encoder.pair(
            "document-first",
            instruction=instruction,
            query=query,
            document=None,
            n_visual_tokens=pixels.n_tokens,
        )
        for query in queries
    ]
    first = prompts[0]
    rows, visual_rows = kept_rows(first.prefix, encoder.image_id, kept)
    page = embed_rows(loaded, first.ids, rows, visual_rows, visual, kept)
    at = rope_positions(loaded, first.ids, pixels, encoder.image_id)[:, :, : first.cut]
    following = int(at.max()) + 1
    device = page.device
    hidden, positions, segment, last = [page], [at[:, :, rows]], [torch.zeros(len(rows))], []
    n = len(rows)
    for i, prompt in enumerate(prompts, start=1):
        ids = torch.tensor([prompt.suffix], device=device)
        hidden.append(loaded.lm.embed_tokens(ids))
        steps = torch.arange(ids.shape[1], device=device)
        positions.append((following + steps).expand(3, 1, -1))
        segment.append(torch.full((ids.shape[1],), float(i)))
        n += ids.shape[1]
        last.append(n - 1)
    return Pack(
        hidden=torch.cat(hidden, 1),
        positions=torch.cat(positions, 2),
        segment=torch.cat(segment).to(device),
        last=torch.tensor(last, device=device),
        visual_rows=visual_rows.to(device),
        deepstack=tuple(features[kept] for features in visual.deepstack),
    )


def score(
    loaded: LoadedModel, packed: Pack, direction: Tensor, band: tuple[int, int], exit_layer: int
) -> Tensor:
    """(Q,) z_yes - z_no at the exit. direction: the two LM-head rows' difference, float32."""
    cos_sin = loaded.lm.rotary_emb(packed.hidden, packed.positions)
    together, apart = _masks(packed)
    hidden = packed.hidden
    for layers, mask in (
        (range(band[0]), apart),
        (range(*band), together),
        (range(band[1], exit_layer), apart),
    ):
        hidden = run_layers(
            loaded.lm,
            hidden,
            cos_sin,
            layers,
            mask=mask,
            deepstack=packed.deepstack,
            visual_rows=packed.visual_rows,
        )
    with in_full(hidden.device):
        return loaded.lm.norm(hidden[0, packed.last]).float() @ direction


def in_full(device: torch.device) -> torch.autocast:
    """As the engine computes it: under a step's autocast this would be rounded to bfloat16."""
    return torch.autocast(device.type, enabled=False)


def _masks(packed: Pack) -> tuple[Tensor, Tensor]:
    """Additive (1, 1, N, N): queries see the page (in the band), or only themselves."""
    segment, like = packed.segment, packed.hidden
    n = len(segment)
    past = torch.ones(n, n, dtype=torch.bool, device=like.device).tril()
    own = past & (segment[:, None] == segment[None])
    page = past & (segment[None] == 0)

    def additive(visible: Tensor) -> Tensor:
        mask = torch.zeros(n, n, dtype=like.dtype, device=like.device)
        return mask.masked_fill(~visible, MASKED)[None, None]

    return additive(own | page), additive(own)
