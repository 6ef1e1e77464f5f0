"""Logits of texts for a picture, whose prefix is computed once and read by every text.

Source: miniReranker 3.1, vision-as-query. The picture's K/V is not stored; the embedder chooses
its tokens as it does for pages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from mrr.documents import Document, read_picture
from mrr.errors import InputRejected
from mrr.model.scorer import Scorer
from mrr.prune import kept_tokens
from mrr.query import clean_query
from mrr.timing import Stages

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

_TEXTS_AT_ONCE = 64


def score_texts(
    engine: MiniReranker,
    image: Document,
    name: str,
    texts: Sequence[str],
    names: Sequence[str],
    scopes: Collection[str] | None,
) -> list[float]:
    """Logits of texts against one picture, some at a time. name, names: what refusals call them.

    Equal texts are scored once: beside others, each would get another rounding of its logit.
    """
    cleaned = [_candidate(engine, text, each) for text, each in zip(texts, names, strict=True)]
    picture = read_picture(engine, image, name, scopes)
    with engine.lock:
        different = list(dict.fromkeys(cleaned))
        logit = dict(zip(different, _text_logits(engine, picture, different), strict=True))
    return [logit[text] for text in cleaned]


def _text_logits(engine: MiniReranker, picture: Image.Image, texts: list[str]) -> list[float]:
    scorer = Scorer(engine.loaded, engine.encoder, engine.config, image_is="query")
    stages = Stages(engine.device)
    sight = scorer.sight(picture, stages)
    guided = engine.embedder is not None and scorer.config.pruner == "embedder"
    kept = kept_tokens(
        scorer.config.pruner,
        scorer.config.keep_ratio,
        sight.pixels.grid,
        importance=engine.cache.embed(sight, stages)[1] if guided else None,
        seed=(scorer.config.seed,),
    )
    if not scorer.image_first:
        return [scorer.score_joint(text, sight, kept, stages) for text in texts]
    page = scorer.encode(sight, kept, stages)
    logits: list[float] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        logits += scorer.score(some, [page], stages).tolist()
    return logits


def _candidate(engine: MiniReranker, text: str, name: str) -> str:
    """A candidate text as the model will read it; refused, never cut, where it is too long."""
    if not isinstance(text, str):
        raise InputRejected(f"{name.capitalize()} is {text!r:.80}; every candidate is a text.")
    limits = replace(engine.limits, max_query_chars=max(len(text), 1))
    try:
        cleaned, _ = clean_query(text, limits)
    except InputRejected:
        raise InputRejected(f"{name.capitalize()} is empty; every candidate needs words.") from None
    n_tokens = len(engine.encoder.text_ids(cleaned))
    if n_tokens > engine.limits.max_text_tokens:
        raise InputRejected(
            f"{name.capitalize()} has {n_tokens} tokens; the limit is "
            f"{engine.limits.max_text_tokens}. Split it and rank the parts."
        )
    return cleaned
