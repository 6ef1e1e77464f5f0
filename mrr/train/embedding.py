"""Stage c: the embedder. Page and query vectors, trained to meet by contrast.

The last token of the prompt gathers what it needs from the visual tokens by attention, so that
attention, averaged over layers and heads, says which cells carry the page's words. The engine
prunes the reranker's visual tokens by it. Source: miniReranker section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrr.model.embedder import DEFAULT_INSTRUCTION
from mrr.model.prompt import PromptEncoder
from mrr.train.interact import attend_alone, causal, finish, project
from mrr.train.match_data import MatchBatch


class PageEmbedder(nn.Module):
    """A small language model read at its last token. prompt: the engine's own template."""

    def __init__(self, lm: Any, encoder: PromptEncoder):
        super().__init__()
        self.lm, self.encoder = lm, encoder
        ids = encoder.embed(DEFAULT_INSTRUCTION, None, 1)
        cut = ids.index(encoder.image_id)
        self._before, self._after = ids[:cut], ids[cut + 1 :]
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def pages(self, visual: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Visual tokens (B, cells, D) to unit vectors (B, D) and importance (B, cells)."""
        b, n, _ = visual.shape
        device = visual.device
        embed = self.lm.embed_tokens
        before = embed(torch.tensor(self._before, device=device)).expand(b, -1, -1)
        after = embed(torch.tensor(self._after, device=device)).expand(b, -1, -1)
        hidden = torch.cat([before, visual, after], 1)
        start = len(self._before)
        row, col = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        page = torch.stack([torch.zeros_like(row), row, col]).flatten(1) + start
        tail = torch.arange(len(self._after)).expand(3, -1) + start + max(grid)
        positions = torch.cat([torch.arange(start).expand(3, -1), page, tail], 1).to(device)
        last = torch.full((b,), hidden.shape[1] - 1, device=device)
        vector, attention = self._read(hidden, positions, last)
        return vector, attention[:, start : start + n]

    def queries(self, texts: list[str]) -> Tensor:
        """Unit vectors (Q, D) of query texts."""
        device = self.log_scale.device
        rows = [self.encoder.embed(DEFAULT_INSTRUCTION, text) for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=device)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        positions = torch.arange(ids.shape[1], device=device).expand(3, -1)
        return self._read(self.lm.embed_tokens(ids), positions, last)[0]

    def _read(self, hidden: Tensor, positions: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (B, N, D) to the last token's unit vector and its mean attention (B, N)."""
        rope = self.lm.rotary_emb(hidden, positions[:, None])
        mask = causal(hidden.shape[1], hidden)
        rows = torch.arange(len(hidden), device=hidden.device)
        attention = torch.zeros(hidden.shape[:2], device=hidden.device)
        for layer in self.lm.layers:
            q, k, v = project(layer, hidden[:, None], rope)
            attention = attention + self._last_row(layer, q[:, 0], k[:, 0], last, mask)
            hidden = finish(layer, hidden[:, None], attend_alone(layer, q, k, v, mask))[:, 0]
        final = hidden[rows, last].float()
        final = F.rms_norm(final, final.shape[-1:]) * self.lm.norm.weight
        return F.normalize(final, dim=-1), attention / len(self.lm.layers)

    @staticmethod
    def _last_row(layer: Any, q: Tensor, k: Tensor, last: Tensor, mask: Tensor) -> Tensor:
        """Attention of token `last` to all, mean over heads; q, k are (B, heads, N, d)."""
        rows = torch.arange(len(q), device=q.device)
        k = k.repeat_interleave(layer.self_attn.num_key_value_groups, 1)
        scores = torch.einsum("bhd,bhnd->bhn", q[rows, :, last], k) * layer.self_attn.scaling
        return (scores + mask[last][:, None]).softmax(-1).mean(1)


def aim_at_pooling(lm: Any) -> None:
    """Start each layer as the plain average of what it sees, handed on unchanged.

    With values and output the identity, page and query vectors begin as means of their tokens, in
    one space, and contrast only has to learn the weights.
    """
    with torch.no_grad():
        for layer in lm.layers:
            attn = layer.self_attn
            attn.q_proj.weight.mul_(0.1)
            nn.init.eye_(attn.v_proj.weight)
            nn.init.eye_(attn.o_proj.weight)
            layer.mlp.down_proj.weight.mul_(0.1)


def aim_at_print(lm: Any, blank: Tensor, strength: float = 6.0) -> None:
    """Start every head's attention away from empty cells.

    blank: (D,) what the tower writes in an empty cell, of length 1. One row of each head, on a
    rotary pair that hardly turns over a page, takes `strength` off an empty cell's score.
    """
    for layer in lm.layers:
        attn = layer.self_attn
        half = attn.head_dim // 2
        row = half + int((lm.rotary_emb.inv_freq * 64 < 0.6).nonzero()[-1])
        # An empty cell is sqrt(D) long after the norm.
        each = math.sqrt(strength / (math.sqrt(len(blank)) * attn.scaling))
        with torch.no_grad():
            for head in range(attn.num_heads):
                at = head * attn.head_dim + row
                attn.q_proj.weight[at] = 0
                attn.q_proj.bias[at] = each
                attn.k_proj.weight[at] = -each * blank
                attn.k_proj.bias[at] = 0


def contrast(
    embedder: PageEmbedder, page_vectors: Tensor, batch: MatchBatch, texts: list[str]
) -> tuple[Tensor, Tensor]:
    """(loss, page-query cosines (B, Q)). Every page that answers a query is right for it.

    page_vectors: (B, D) of unit length. texts: the batch's Q queries.
    """
    cosine = page_vectors @ embedder.queries(texts).T
    score = cosine * embedder.log_scale.exp()
    asked = batch.answer.sum(0) > 0
    right = batch.answer[:, asked]
    by_page = -(score[:, asked].log_softmax(0) * right).sum(0) / right.sum(0)
    by_query = -(score.log_softmax(1) * batch.answer).sum(1) / batch.answer.sum(1).clamp(min=1)
    return by_page.mean() + 0.5 * by_query.mean(), cosine.detach()


def guide_loss(importance: Tensor, batch: MatchBatch) -> Tensor:
    """Scalar cross entropy of the last token's attention with where word pieces are printed.

    importance: (B, cells), shares of attention.
    """
    printed = torch.zeros_like(importance)
    page, cell, _ = batch.pieces.unbind(1)
    printed[page, cell] = 1.0
    share = printed / printed.sum(1, keepdim=True).clamp(min=1)
    return -(share * importance.clamp(min=1e-8).log()).sum(1).mean()


@torch.no_grad()
def keep_half(
    embedder: PageEmbedder, visual: Tensor, grid: tuple[int, int], keep_ratio: float = 0.5
) -> Tensor:
    """(B, cells) bool: the cells that the embedder's attention puts first."""
    _, importance = embedder.pages(visual, grid)
    n_kept = max(1, round(importance.shape[1] * keep_ratio))
    kept = torch.zeros_like(importance, dtype=torch.bool)
    return kept.scatter_(1, importance.topk(n_kept, 1).indices, True)
