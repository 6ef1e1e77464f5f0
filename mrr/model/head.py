"""Read relevance off a hidden state: the logit lens on the yes and no rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mrr.model.load import LoadedModel


class RelevanceHead:
    """z_yes - z_no of hidden states at any layer, in float32. Source: miniReranker 3.2.

    Two rows of the LM head give exactly the difference that the whole head would.
    """

    def __init__(self, loaded: LoadedModel, positive_id: int, negative_id: int) -> None:
        rows = loaded.model.lm_head.weight
        self._norm = loaded.lm.norm
        self._direction = rows[positive_id].float() - rows[negative_id].float()

    def spread(self) -> float:
        """Standard deviation of the logit over hidden states without direction: its scale."""
        return float((self._direction * self._norm.weight.float()).norm())

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., d), not yet normed, to logits (...) in float32."""
        return self.normed_logits(self._norm(hidden))

    def normed_logits(self, hidden: Tensor) -> Tensor:
        """The same for hidden states that the final norm has already seen."""
        return hidden.float() @ self._direction
