"""Quality of a trained pair on full pages of held-out text, drawn for the occasion."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from mrr.train import embed_train, eyes, fonts, match_train
from mrr.train.embedding import PageEmbedder, keep_half
from mrr.train.layout import Style
from mrr.train.match_data import MatchBatch, MatchBatches
from mrr.train.match_train import BODY_PX, PAGE
from mrr.train.matching import Matcher
from mrr.train.run import autocast, pick_device

_ASKED = 8  # queries about what differs between two pages that look alike


def quality(
    corpus_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    matcher: Matcher,
    embedder: PageEmbedder,
    tower: nn.Module,
    n_pages: int,
) -> dict[str, Any]:
    """Of n_pages pages that all meet each other's queries: in common faces, and in unseen ones."""
    unseen = tuple(fonts.find(fonts.HELD_OUT)) or tuple(fonts.find())
    styles = {
        "common faces": None,
        "faces never trained on": Style(unseen, body_px=BODY_PX),
    }
    found = {}
    for name, style in styles.items():
        batch = match_train.ranking_batch(corpus_dir, tokenizer, True, n_pages, style=style)
        sources = match_train.page_sources(corpus_dir, tokenizer, (PAGE,), 1, "validation", style)
        alike = MatchBatches(
            sources, 2, _ASKED, 0, "validation/alike", True, last=max(1, n_pages // 2), twins=1.0
        )
        found[name] = _measured(batch.to(pick_device()), matcher, embedder, tower)
        found[name]["near-duplicates told apart"] = told_apart(
            alike, matcher, _half(embedder, tower)
        )
    return found


def _half(embedder: PageEmbedder, tower: nn.Module) -> eyes.Eyes:
    """The half of the tower's visual tokens that the embedder keeps."""
    return eyes.pruned(eyes.real(tower), lambda visual, grid: keep_half(embedder, visual, grid))


@torch.no_grad()
def told_apart(
    pairs: Iterable[MatchBatch], matcher: Matcher, look: eyes.Eyes
) -> dict[str, float | int]:
    """Of two pages that look alike, is it the better one that scores more? Chance is .5.

    Counts the queries of which one page of a pair covers more, by words or by their order.
    """
    device = pick_device()
    right = {"mini": 0, "dense": 0}
    asked = 0
    matcher.eval()
    for pair in pairs:
        batch = pair.to(device)
        if len(batch.cover) < 2:
            continue  # one of the two had hardly a word
        differs = batch.cover[0] - batch.cover[1]
        with autocast(device):
            visual, kept = look(batch)
            for name in right:
                dense = name == "dense"
                score, _ = matcher(visual, batch, dense, None if dense else kept)
                right[name] += int(((score[0] - score[1]) * differs > 0).sum())
        asked += int((differs != 0).sum())
    return {"queries": asked, **{name: round(n / max(1, asked), 4) for name, n in right.items()}}


def _measured(
    batch: MatchBatch, matcher: Matcher, embedder: PageEmbedder, tower: nn.Module
) -> dict[str, Any]:
    device = pick_device()
    whole = eyes.real(tower)
    pruned = match_train.evaluate(matcher, _half(embedder, tower), batch, device)
    return {
        "pages": len(batch.answer),
        "queries": int((batch.answer.sum(0) == 1).sum()),
        "reranker": match_train.evaluate(matcher, whole, batch, device),
        "reranker, half of the tokens": {
            name: value for name, value in pruned.items() if name.startswith("mini")
        },
        "embedder": embed_train.evaluate(embedder, whole, batch, device),
    }
