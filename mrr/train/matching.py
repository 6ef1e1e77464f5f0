"""Stage b: the language model learns to match queries with pages under the band mask.

Visual tokens may be simulated (sums of the frozen token embeddings with the errors that a reader
makes), so that matching is learned while the tower is still learning to read, or come from the
real tower. Supervision follows the path of the evidence: where a word's attention goes in the
first band layer, whether each word was found, whether all were, and the answer at the exit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrr.model.lexical import confidence_axis
from mrr.train.confidence import confidence
from mrr.train.interact import Interaction, Prefixes, Suffixes, interact, logits
from mrr.train.match_data import MatchBatch

_COVER_STEP = 0.05  # share of a query, by rarity, that makes a page e times as right


@dataclass(frozen=True, slots=True)
class Depths:
    """Layers, 0-based: the band, the exit, and where matching and read-out are supervised."""

    n_layers: int
    band: tuple[int, int]

    @property
    def exit_layer(self) -> int:
        """Layers that the mini system runs."""
        return self.band[1]

    @property
    def match_layer(self) -> int:
        """The layer whose attention finds a word on the page: the first of the band."""
        return self.band[0]


@dataclass(frozen=True, slots=True)
class SimulatedReader:
    """How well the simulated tower reads, drawn anew for every page.

    noise: highest length of the error vector relative to a token's. lost: highest share of pieces
    that are missed. leak: weight of pieces that only reach into a cell.
    """

    noise: float = 1.0
    lost: float = 0.4
    leak: float = 0.35

    def __call__(self, table: Tensor, blank: Tensor, batch: MatchBatch) -> Tensor:
        """(B, cells, D) visual tokens of about unit length, and how sure they are (confidence)."""
        b, (r, c) = batch.present.shape[0], batch.grid
        device, dim = table.device, table.shape[1]
        tokens = torch.zeros(b * r * c, dim, device=device)
        lost = self.lost * torch.rand(b, device=device)
        for rows, scale, drop in (
            (batch.pieces, 1.0, lost),
            (batch.overlaps, self.leak, lost + 0.3),
        ):
            page, cell, piece = rows.unbind(1)
            weight = scale * torch.empty(len(rows), device=device).uniform_(0.6, 1.3)
            weight = weight * (torch.rand(len(rows), device=device) > drop[page])
            tokens.index_add_(0, page * r * c + cell, weight[:, None] * table[piece])
        empty = tokens.abs().sum(1) == 0
        tokens[empty] = blank
        tokens = F.normalize(tokens, dim=-1).view(b, r * c, dim)
        error = torch.randn_like(tokens) / math.sqrt(dim)
        tokens = tokens + error * (self.noise * torch.rand(b, 1, 1, device=device))
        level = confidence(tokens.flatten(0, 1), table).view(b, r * c, 1)
        tokens = F.normalize(tokens, dim=-1) * torch.empty(b, r * c, 1, device=device).uniform_(
            0.8, 1.25
        )
        return tokens + level * confidence_axis(table)


class Matcher(nn.Module):
    """The language model with its training probes.

    prefix_ids: the prompt up to and including <|vision_start|>; suffix_ids of the template are in
    the batches.
    """

    prefix_ids: Tensor

    def __init__(self, lm: Any, prefix_ids: list[int], vision_end_id: int, image_id: int,
                 yes_no: tuple[int, int], depths: Depths):  # fmt: skip
        super().__init__()
        self.lm, self.depths, self.yes_no = lm, depths, yes_no
        self.image_id, self.vision_end_id = image_id, vision_end_id
        self.register_buffer("prefix_ids", torch.tensor(prefix_ids), persistent=False)
        dim = lm.config.hidden_size
        self.found_head = nn.Linear(dim, 1)  # is this word on the page
        self.so_far_head = nn.Linear(dim, 1)  # are all words up to here on the page

    @property
    def table(self) -> Tensor:
        """(V, D) frozen token embeddings."""
        return self.lm.embed_tokens.weight.detach()

    def prefixes(
        self, visual: Tensor, grid: tuple[int, int], kept: Tensor | None = None
    ) -> Prefixes:
        """Prompt and visual tokens (B, cells, D) at layer 0.

        kept: (B, cells) bool, as many of every page, or all.
        """
        b = len(visual)
        before = self.lm.embed_tokens(self.prefix_ids)
        after = self.lm.embed_tokens(torch.tensor([self.vision_end_id], device=visual.device))
        hidden = torch.cat([before.expand(b, -1, -1), visual, after.expand(b, -1, -1)], 1)
        positions = self.positions(grid).to(visual.device)
        n_whole = hidden.shape[1]
        if kept is None:
            return Prefixes(hidden, positions[:, None].expand(-1, b, -1), None, n_whole)
        stays = F.pad(kept, (len(before), len(after)), value=True)
        columns = stays.nonzero()[:, 1].view(b, -1)
        hidden = hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))
        return Prefixes(hidden, positions[:, columns], columns, n_whole)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(3, P) M-RoPE positions of a prefix with a page of `grid` cells."""
        start = len(self.prefix_ids)
        text = torch.arange(start).expand(3, -1)
        row, col = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        page = torch.stack([torch.zeros_like(row), row, col]).flatten(1) + start
        return torch.cat([text, page, torch.full((3, 1), start + max(grid))], 1)

    def forward(
        self, visual: Tensor, batch: MatchBatch, dense: bool, kept: Tensor | None = None
    ) -> tuple[Tensor, Interaction]:
        """(B, Q) logits at the exit (or the last layer, where dense) and what was seen."""
        d = self.depths
        last = d.n_layers if dense else d.exit_layer
        band = (0, last) if dense else d.band
        # Attention is as large as pages x queries: kept only where it is supervised.
        watch = (d.match_layer, d.exit_layer - 1) if self.training else ()
        suffixes = Suffixes(batch.ids, batch.length)
        seen = interact(
            self.lm, self.prefixes(visual, batch.grid, kept), suffixes, band, last, watch
        )
        return logits(self.lm, seen.hidden[last - 1], suffixes, self.yes_no), seen


@dataclass(frozen=True, slots=True)
class MatchLoss:
    """Loss and its parts, detached but for the total."""

    total: Tensor
    parts: dict[str, Tensor]


def match_loss(matcher: Matcher, score: Tensor, seen: Interaction, batch: MatchBatch) -> MatchLoss:
    """Everything that is supervised in one pass."""
    d = matcher.depths
    n_before = len(matcher.prefix_ids)
    n_cells = batch.grid[0] * batch.grid[1]
    answer = F.binary_cross_entropy_with_logits(score, batch.answer)
    # Pages compete for each query, those that no page answers too: the more of its rare words a
    # page has, the higher it ranks.
    wanted = (batch.cover / _COVER_STEP).softmax(0)
    ranked = (wanted * (wanted.clamp(min=1e-9).log() - score.log_softmax(0))).sum(0).mean()
    on_page = seen.page_attention[d.match_layer][..., n_before : n_before + n_cells]
    word_of = batch.word_of.expand(len(batch.present), -1, -1)
    word = word_of.clamp(min=0)
    is_there, all_so_far = batch.present.gather(2, word), batch.so_far.gather(2, word)
    missing = (word_of >= 0) & (is_there == 0)
    found, absent = _attention_loss(on_page[:, 0], batch.gold, missing)
    in_a_row, apart = _attention_loss(on_page[:, 1], batch.in_a_row, missing | batch.apart)
    ends = batch.word_end.expand(len(batch.present), -1, -1)
    probe = F.binary_cross_entropy_with_logits
    first, last = seen.hidden[d.match_layer], seen.hidden[min(d.match_layer + 2, d.exit_layer - 1)]
    heads = probe(matcher.found_head(_unit(first)).squeeze(-1)[ends], is_there[ends]) + probe(
        matcher.so_far_head(_unit(last)).squeeze(-1)[ends], all_so_far[ends]
    )
    readout = _readout_loss(seen.suffix_attention[d.exit_layer - 1], batch)
    attended = found + absent + in_a_row + apart
    total = answer + ranked + 0.1 * attended + 0.3 * heads + 0.1 * readout
    parts = {
        "answer": answer,
        "ranked": ranked,
        "found": found,
        "absent": absent,
        "in_a_row": in_a_row,
        "apart": apart,
        "probes": heads,
        "readout": readout,
    }
    return MatchLoss(total, {name: value.detach() for name, value in parts.items()})


def _unit(h: Tensor) -> Tensor:
    return F.rms_norm(h.float(), h.shape[-1:])


def _attention_loss(mass: Tensor, gold: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
    """-log of a head's attention on the cells that it should find, and of its attention off the
    page where there is nothing to find.

    mass: (B, Q, S, cells). gold: (k, 4) rows (page, query, token, cell). absent: (B, Q, S) bool.
    """
    b, q, s, _ = mass.shape
    page, query, token, cell = gold.unbind(1)
    at = (page * q + query) * s + token
    right = torch.zeros(b * q * s, device=mass.device)
    right = right.index_add(0, at, mass[page, query, token, cell])
    marked = torch.zeros(b * q * s, dtype=torch.bool, device=mass.device)
    marked[at] = True
    found = -right[marked].clamp(min=1e-5).log()
    rests = -(1 - mass.sum(-1)[absent]).clamp(min=1e-4).log()
    zero = mass.sum() * 0
    return (found.mean() if len(found) else zero), (rests.mean() if len(rests) else zero)


def _readout_loss(on_own: Tensor, batch: MatchBatch) -> Tensor:
    """-log of the last token's attention on the ends of the query's words, over all heads."""
    rows = torch.arange(len(batch.length), device=on_own.device)
    last = on_own.mean(1)[:, rows, batch.length - 1]  # (B, Q, S)
    return -((last * batch.word_end).sum(-1).clamp(min=1e-4)).log().mean()
