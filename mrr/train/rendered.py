"""Quality of a trained pair on full pages of held-out text, drawn for the occasion."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from mrr.model.load import pick_device
from mrr.train import embed_train, eyes, fonts, match_train
from mrr.train.embedding import PageEmbedder, keep_half
from mrr.train.layout import Style
from mrr.train.match_data import MatchBatch, MatchBatches
from mrr.train.match_train import BODY_PX, PAGE
from mrr.train.matching import Matcher
from mrr.train.run import autocast

_ASKED = 8  # queries about what differs between two pages that look alike


def quality(
    corpus_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    matcher: Matcher,
    embedder: PageEmbedder,
    tower: nn.Module,
    n_pages: int,
    n_draws: int,
) -> dict[str, Any]:
    """Of n_pages pages that all meet each other's queries: in common faces, and in unseen ones.

    n_draws: how often, with other pages; the means are over the queries of all draws, for those
    of one tell little.
    """
    styles = {"common faces": None, "faces never trained on": unseen_faces()}
    whole = eyes.real(tower)
    half = eyes.pruned(whole, lambda visual, grid: keep_half(embedder, visual, grid))
    found = {}
    for name, style in styles.items():
        drawn = match_train.ranking_batches(corpus_dir, tokenizer, True, n_pages, style=style)
        measured = [
            _measured(batch.to(pick_device()), matcher, embedder, whole, half)
            for batch in itertools.islice(drawn, n_draws)
        ]
        sources = match_train.page_sources(corpus_dir, tokenizer, (PAGE,), 1, "validation", style)
        n_pairs = max(1, n_draws * n_pages // 2)
        alike = MatchBatches(sources, 2, _ASKED, 0, "validation/alike", True, last=n_pairs, twins=1)
        found[name] = {
            **_over_all_queries(measured),
            "near-duplicates told apart": told_apart(alike, matcher, half),
        }
    return found


def unseen_faces() -> Style:
    """Faces that training never sees, in the sizes that it does."""
    unseen = tuple(fonts.find(fonts.HELD_OUT)) or tuple(fonts.find())
    return Style(unseen, body_px=BODY_PX)


def _over_all_queries(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several: queries add up, everything else is their mean over the queries."""
    weights = [each["queries"] for each in measured]
    parts = {
        part: {
            name: round(float(np.average([each[part][name] for each in measured], 0, weights)), 4)
            for name in values
        }
        for part, values in measured[0].items()
        if isinstance(values, dict)
    }
    return {"draws": len(measured), "pages": measured[0]["pages"], "queries": sum(weights), **parts}


@torch.no_grad()
def told_apart(
    pairs: Iterable[MatchBatch], matcher: Matcher, look: eyes.Eyes
) -> dict[str, dict[str, float | int]]:
    """Of two pages that look alike, is it the better one that scores more? Chance is .5.

    Counts the queries of which one page of a pair covers more: by a word that the other lacks, or
    by the order of its words alone.
    """
    device = pick_device()
    counts = {by: Counter[str]() for by in ("words", "order")}
    matcher.eval()
    for pair in pairs:
        batch = pair.to(device)
        if len(batch.cover) < 2:
            continue  # one of the two had hardly a word
        better = (batch.cover[0] - batch.cover[1]).sign()
        same_words = (batch.present[0] == batch.present[1]).all(-1)
        with autocast(device):
            visual, kept = look(batch)
            scored = {
                "mini": matcher(visual, batch, False, kept)[0],
                "dense": matcher(visual, batch, True, None)[0],
            }
        for by, counted in (("words", ~same_words), ("order", same_words)):
            counted = counted & (better != 0)
            counts[by]["queries"] += int(counted.sum())
            for name, score in scored.items():
                right = (score[0] - score[1]).sign() == better
                counts[by][name] += int((right & counted).sum())
    return {by: _shares(count) for by, count in counts.items()}


def _shares(count: Counter[str]) -> dict[str, float | int]:
    n = count["queries"]
    shares = {name: round(count[name] / max(1, n), 4) for name in ("mini", "dense")}
    return {"queries": n, **shares}


def _measured(
    batch: MatchBatch,
    matcher: Matcher,
    embedder: PageEmbedder,
    whole: eyes.Eyes,
    half: eyes.Eyes,
) -> dict[str, Any]:
    device = pick_device()
    pruned = match_train.evaluate(matcher, half, batch, device, ("mini",))
    return {
        "pages": len(batch.answer),
        "queries": int((batch.answer.sum(0) == 1).sum()),
        "reranker": match_train.evaluate(matcher, whole, batch, device),
        "reranker, half of the tokens": {
            name: value for name, value in pruned.items() if name.startswith("mini")
        },
        "embedder": embed_train.evaluate(embedder, whole, batch, device),
    }
