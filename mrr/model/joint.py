"""One pass over the whole prompt, with the band as a mask: what the cached path must equal.

It serves the prompt orders that no cache can serve (the page second), and the full-depth lens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mrr.config import RerankConfig
from mrr.model.layers import MASKED, Observer, causal_mask, run_layers
from mrr.model.load import LoadedModel
from mrr.model.prefix import embed_rows, kept_rows
from mrr.model.prompt import Prompt, PromptEncoder
from mrr.model.vision import Pixels, VisualTokens, rope_positions


@torch.inference_mode()
def run_joint(
    loaded: LoadedModel,
    encoder: PromptEncoder,
    config: RerankConfig,
    prompt: Prompt,
    pixels: Pixels,
    visual: VisualTokens,
    kept: np.ndarray,
    observe: Observer | None = None,
) -> Tensor:
    """The last token's hidden state at the exit layer, (1, d), not normed.

    Outside the band the second segment attends to itself only; config must be resolved.
    """
    assert config.band is not None and config.exit_layer is not None
    start, end = config.band
    positions = rope_positions(loaded, prompt.ids, pixels, encoder.image_id)
    rows, visual_rows = kept_rows(prompt.ids, encoder.image_id, kept)
    hidden = embed_rows(loaded, prompt.ids, rows, visual_rows, visual, kept)
    cos_sin = loaded.lm.rotary_emb(hidden, positions[:, :, rows])
    apart = causal_mask(hidden.shape[1], hidden)
    n_first = int((rows < prompt.cut).sum())
    apart[..., n_first:, :n_first] = MASKED
    for layers, mask in (
        (range(start), apart),
        (range(start, end), None),
        (range(end, config.exit_layer), apart),
    ):
        hidden = run_layers(
            loaded.lm,
            hidden,
            cos_sin,
            layers,
            mask=mask,
            deepstack=tuple(features[kept] for features in visual.deepstack),
            visual_rows=visual_rows.to(loaded.device),
            observe=observe,
        )
    return hidden[:, -1]
