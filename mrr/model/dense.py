"""The `original` system: transformers' own forward pass, every layer, every token, no reuse.

The layers have the fused parts of mrr/model/fused.py, as they have for the other systems.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrr.model.load import LoadedModel
from mrr.model.prompt import Prompt
from mrr.model.vision import Pixels


@torch.inference_mode()
def run_original(
    loaded: LoadedModel, prompts: Sequence[Prompt], pixels: Sequence[Pixels], image_id: int
) -> Tensor:
    """Last hidden states (N, d) of N whole prompts in one left-padded batch, final norm applied.

    Positions are passed in, since the stock model would remember the last batch's offset.
    """
    n = max(len(prompt.ids) for prompt in prompts)
    ids = torch.tensor([[0] * (n - len(p.ids)) + p.ids for p in prompts], device=loaded.device)
    mask = torch.tensor(
        [[0] * (n - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=loaded.device
    )
    grid_thw = torch.cat([p.grid_thw for p in pixels]).to(loaded.device)
    kinds = ((ids == image_id) & mask.bool()).int()
    positions, _ = loaded.model.model.get_rope_index(
        ids, mm_token_type_ids=kinds, image_grid_thw=grid_thw, attention_mask=mask
    )
    values = torch.cat([p.values for p in pixels]).to(loaded.device, loaded.dtype)
    out = loaded.model.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        pixel_values=values,
        image_grid_thw=grid_thw,
        mm_token_type_ids=kinds,
        use_cache=False,
    )
    return out.last_hidden_state[:, -1]
