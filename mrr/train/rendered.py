"""Quality of a trained pair on full pages of held-out text, drawn for the occasion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast

from mrr.train import embed_train, eyes, fonts, match_train
from mrr.train.embedding import PageEmbedder, keep_half
from mrr.train.layout import Style
from mrr.train.match_data import MatchBatch
from mrr.train.match_train import BODY_PX
from mrr.train.matching import Matcher
from mrr.train.run import pick_device


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
        found[name] = _measured(batch.to(pick_device()), matcher, embedder, tower)
    return found


def _measured(
    batch: MatchBatch, matcher: Matcher, embedder: PageEmbedder, tower: nn.Module
) -> dict[str, Any]:
    device = pick_device()
    whole = eyes.real(tower)
    half = eyes.pruned(whole, lambda visual, grid: keep_half(embedder, visual, grid))
    pruned = match_train.evaluate(matcher, half, batch, device)
    return {
        "pages": len(batch.answer),
        "queries": int((batch.answer.sum(0) == 1).sum()),
        "reranker": match_train.evaluate(matcher, whole, batch, device),
        "reranker, half of the tokens": {
            name: value for name, value in pruned.items() if name.startswith("mini")
        },
        "embedder": embed_train.evaluate(embedder, whole, batch, device),
    }
