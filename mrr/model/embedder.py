"""The first-stage embedder: page and query vectors, and the importance that guides pruning.

One pass over a page yields both: the last token's final state is the vector, and the attention
it paid to each visual token, averaged over all layers and heads, is the importance.
Source: miniReranker 3.2 (single layers are unstable, so all are used). A checkpoint that says so
is searched by lexical vectors instead (mrr/model/lexical.py); its importance is the same.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrr.config import digest
from mrr.model import lexical
from mrr.model.layers import run_layers
from mrr.model.load import LoadedModel
from mrr.model.prefix import embed_rows, kept_rows
from mrr.model.prompt import EMBEDDER_PROMPT, QWEN_RERANKER, PromptEncoder
from mrr.model.vision import Pixels, VisualTokens, rope_positions

# Raised whenever the code changes what a vector or an importance is.
FORMAT = 4
DEFAULT_INSTRUCTION = "Represent the user's input."


class LastTokenRecorder:
    """Sums the last token's attention over layers without ever forming an n x n map."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._layers = 0

    def record(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float
    ) -> None:
        """query (1, heads, n, D), key (1, H, n, D), both after rotary."""
        groups = query.shape[1] // key.shape[1]
        last = query[0, :, -1].float().view(key.shape[1], groups, -1)
        scores = torch.einsum("hgd,hsd->hgs", last, key[0].float()) * scaling
        weights = scores.softmax(dim=-1).mean(dim=(0, 1))
        self._sum = weights if self._sum is None else self._sum + weights
        self._layers += 1

    def mean(self) -> Tensor:
        """(n,) attention, averaged over layers and heads; sums to 1."""
        assert self._sum is not None
        return self._sum / self._layers


class Embedder:
    """Vectors of pages, and how well they suit a query, from one loaded checkpoint."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.lexical = loaded.trained.get("pooling") == "lexical"
        self.encoder = PromptEncoder(loaded.tokenizer, QWEN_RERANKER)

    def fingerprint(self, min_pixels: int, max_pixels: int) -> str:
        """Identity of the vectors and importance made here: SHA-256, hex."""
        return digest(
            format=FORMAT,
            model=self.loaded.digest,
            dtype=str(self.loaded.dtype),
            prompt=EMBEDDER_PROMPT,
            instruction=DEFAULT_INSTRUCTION,
            pixels=[min_pixels, max_pixels, self.loaded.cell],
        )

    def similarity(self, text: str, vectors: np.ndarray) -> np.ndarray:
        """(N,) float32 of a query with pages (N, D): cosines, or shares of the query in [0, 1]."""
        if self.lexical:
            return lexical.similarity(self.encoder.text_ids(f" {text}"), vectors)
        return vectors @ self.embed_query(text)

    @torch.inference_mode()
    def embed_query(self, text: str) -> np.ndarray:
        """(d,) float32 of unit length: the last token's final state."""
        ids = self.encoder.embed(DEFAULT_INSTRUCTION, text)
        hidden = self.loaded.lm.embed_tokens(torch.tensor([ids], device=self.loaded.device))
        positions = torch.arange(len(ids), device=self.loaded.device).expand(3, 1, -1)
        hidden = run_layers(
            self.loaded.lm,
            hidden,
            self.loaded.lm.rotary_emb(hidden, positions),
            range(self.loaded.n_layers),
        )
        return self._vector(hidden)

    @torch.inference_mode()
    def embed_page(self, pixels: Pixels, visual: VisualTokens) -> tuple[np.ndarray, np.ndarray]:
        """Vector (D,) and importance (R, C), both float32, of one page in one pass.

        pixels, visual: of a `Sight` by this model.
        """
        ids = self.encoder.embed(DEFAULT_INSTRUCTION, None, pixels.n_tokens)
        everything = np.arange(pixels.n_tokens)
        rows, visual_rows = kept_rows(ids, self.encoder.image_id, everything)
        hidden = embed_rows(self.loaded, ids, rows, visual_rows, visual, everything)
        positions = rope_positions(self.loaded, ids, pixels, self.encoder.image_id)
        visual_rows = visual_rows.to(self.loaded.device)
        recorder = LastTokenRecorder()
        hidden = run_layers(
            self.loaded.lm,
            hidden,
            self.loaded.lm.rotary_emb(hidden, positions),
            range(self.loaded.n_layers),
            deepstack=visual.deepstack,
            visual_rows=visual_rows,
            recorder=recorder,
        )
        importance = recorder.mean()[visual_rows].cpu().numpy()
        vector = self._lexical_vector(visual) if self.lexical else self._vector(hidden)
        return vector, importance.reshape(pixels.grid)

    def _lexical_vector(self, visual: VisualTokens) -> np.ndarray:
        table = self.loaded.lm.embed_tokens.weight
        return lexical.page_vector(visual.embeds, table, list(self.encoder.control.values()))

    def _vector(self, hidden: Tensor) -> np.ndarray:
        last = self.loaded.lm.norm(hidden[0, -1]).float()
        return F.normalize(last, dim=0).cpu().numpy()
