"""Reranking in the field's conventions: documents in, positions and scores out.

Pictures given here are cached like any page, in a scope of their own, so the second query over
the same documents pays for the query only. Nobody asked to keep them: the store evicts them as it
does K/V, and one that it has no room for is scored without it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cache_db.evict import DOCUMENTS
from mrr.errors import BudgetExceeded, InputRejected
from mrr.model.scorer import Scorer
from mrr.page_cache import page_of
from mrr.pages.ingest import from_pil
from mrr.prune import kept_tokens
from mrr.query import clean_query
from mrr.timing import Stages
from mrr.types import FailedFile, Hit, Page, PageImage, RerankResult

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

Picture = Image.Image | bytes | Path
Document = Picture | str | Page | Hit

# Pictures that were passed to rerank() and predict(): the newest stay, or a service that is asked
# about ever new ones would list them without end. What they take of the disk, the budget bounds.
_MAX_DOCUMENTS = 1000
_TEXTS_AT_ONCE = 64


def rerank(
    engine: MiniReranker,
    query: str,
    documents: Sequence[Document],
    top_n: int | None,
    instruction: str | None,
    return_documents: bool,
) -> list[RerankResult]:
    """Every document scored by the mini system, best first; ties keep the input order.

    documents: PIL pictures, encoded bytes or data URLs, paths of one-page files, or added pages:
    their ids, or what `rank` and the store say of them.
    instruction: the task line, where it differs from the configured one. Raises InputRejected for
    a document that cannot be read, naming its position: none is ever scored as if it were empty.
    """
    engine.check_open()
    _check_top_n(top_n)
    engine = with_instruction(engine, instruction)
    if not documents:
        return []
    text, _ = engine.clean(query)
    with engine.lock, ExitStack() as held:
        placed = [_place(engine, text, each, i, held) for i, each in enumerate(documents)]
        pages = {page.page_id: page for page in placed if isinstance(page, Page)}
        _forget_old(engine, set(pages))
        ranked = engine.rank(query, pages=set(pages), scopes={p.scope for p in pages.values()})
        scores = {hit.page.page_id: hit.logit for hit in ranked}
        logits = [
            _logit(engine, text, scores, placed[i], document, i)
            for i, document in enumerate(documents)
        ]
    return _results(logits, documents if return_documents else None, top_n)


def rank_texts(
    engine: MiniReranker,
    image: Picture,
    texts: Sequence[str],
    top_n: int | None,
    instruction: str | None,
) -> list[RerankResult]:
    """Texts against one picture: its prefix is computed once and read by every text.

    Source: miniReranker 3.1, vision-as-query. The picture's K/V is not stored; the embedder
    chooses its tokens as it does for pages.
    """
    engine.check_open()
    _check_top_n(top_n)
    if not texts:
        return []
    engine = with_instruction(engine, instruction)
    cleaned = [_candidate(engine, text, i) for i, text in enumerate(texts)]
    picture = _read(engine, image, "the query picture").image
    with engine.lock:
        return _results(_score_texts(engine, picture, cleaned), texts, top_n)


def _score_texts(engine: MiniReranker, picture: Image.Image, texts: list[str]) -> list[float]:
    """Logits of cleaned texts against one picture, some texts at a time."""
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
    if scorer.image_first:
        page = scorer.encode(sight, kept, stages)
        logits: list[float] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            logits += scorer.score(texts[start : start + _TEXTS_AT_ONCE], [page], stages).tolist()
        return logits
    return [scorer.score_joint(text, sight, kept, stages) for text in texts]


def _candidate(engine: MiniReranker, text: str, index: int) -> str:
    """A candidate text as the model will read it; refused, never cut, where it is too long."""
    limits = replace(engine.limits, max_query_chars=max(len(text), 1))
    try:
        cleaned, _ = clean_query(text, limits)
    except InputRejected:
        raise InputRejected(f"Text {index} is empty; every candidate needs words.") from None
    n_tokens = len(engine.encoder.text_ids(cleaned))
    if n_tokens > engine.limits.max_text_tokens:
        raise InputRejected(
            f"Text {index} has {n_tokens} tokens; the limit is {engine.limits.max_text_tokens}. "
            "Split it and rank the parts."
        )
    return cleaned


def predict(engine: MiniReranker, pairs: Sequence[tuple[Document, Document]]) -> np.ndarray:
    """Scores of pairs, grouped so that each picture and each query is run once.

    A pair whose first side is a picture is vision-as-query, any other is a query for a page.
    """
    pairs = list(pairs)  # pictures are told apart by identity, so each must stay where it is
    scores = np.empty(len(pairs), dtype=np.float32)
    groups: dict[tuple[bool, int | str], list[int]] = {}
    for i, (first, _) in enumerate(pairs):
        picture_query = not isinstance(first, str)
        groups.setdefault((picture_query, id(first) if picture_query else str(first)), []).append(i)
    for (picture_query, _), members in groups.items():
        first = pairs[members[0]][0]
        seconds = [pairs[i][1] for i in members]
        if picture_query:
            results = rank_texts(engine, first, _texts(seconds), None, None)  # type: ignore[arg-type]
        else:
            results = rerank(engine, str(first), seconds, None, None, False)
        for result in results:
            scores[members[result.index]] = result.relevance_score
    return scores


def with_instruction(engine: MiniReranker, instruction: str | None) -> MiniReranker:
    """The engine under another task line; its pages then have K/V of their own."""
    if instruction is None or instruction == engine.config.instruction:
        return engine
    return engine.with_config(replace(engine.config, instruction=instruction))


def sigmoid(logit: float | np.floating) -> float:
    """1 / (1 + exp(-logit)), in float64."""
    return float(0.5 * (1.0 + np.tanh(0.5 * np.float64(logit))))  # exp would overflow


def _known(engine: MiniReranker, document: Document, index: int) -> Page | Picture | str:
    """The stored page that a document names, or else the picture or file that it is."""
    named = document.page if isinstance(document, Hit) else document
    page_id = named.page_id if isinstance(named, Page) else named
    known = engine.store.page(page_id) if isinstance(page_id, str) else None
    if known is not None:
        return known
    if isinstance(named, Page):
        raise InputRejected(f"Document {index}, {named.label}, is not in the store. Add it first.")
    return named


def _place(
    engine: MiniReranker, text: str, document: Document, index: int, held: ExitStack
) -> Page | float:
    """The page of a document, pinned as long as `held` is; or its logit, where it has no room."""
    known = _known(engine, document, index)
    if isinstance(known, Page):
        held.enter_context(engine.store.pinned([known.page_id]))
        return known
    item = _read(engine, known, f"document {index}")
    page = page_of(item, DOCUMENTS)
    held.enter_context(engine.store.pinned([page.page_id]))  # or the next ones could push it out
    try:
        return engine.cache.add(item, DOCUMENTS, page).page
    except BudgetExceeded:
        return _score_unstored(engine, text, page, item.image)


def _score_unstored(engine: MiniReranker, text: str, page: Page, image: Image.Image) -> float:
    """The logit of a picture for a cleaned query, as its page would have it."""
    cache, stages = engine.cache, Stages(engine.device)
    sight = cache.scorer.sight(image, stages)
    kept = cache.kept(page, sight, stages)
    if not cache.scorer.image_first:
        return cache.scorer.score_joint(text, sight, kept, stages)
    kv = cache.scorer.encode(sight, kept, stages)
    return float(cache.scorer.score([text], [kv], stages)[0])


def _logit(
    engine: MiniReranker,
    text: str,
    scores: dict[str, float],
    placed: Page | float,
    document: Document,
    index: int,
) -> float:
    """The score of a document; one that left the store meanwhile is read again, if it can be."""
    if not isinstance(placed, Page):
        return placed
    if placed.page_id in scores:
        return scores[placed.page_id]
    if isinstance(document, Page | Hit) or document == placed.page_id:
        raise InputRejected(
            f"Document {index}, {placed.label}, cannot be read any more. Add it again."
        )
    item = _read(engine, document, f"document {index}")
    return _score_unstored(engine, text, placed, item.image)


def _forget_old(engine: MiniReranker, in_hand: set[str]) -> None:
    """Remove the oldest documents beyond _MAX_DOCUMENTS, never those that are being ranked."""
    known = [page.page_id for page in engine.store.pages([DOCUMENTS])]
    spare = [page_id for page_id in known if page_id not in in_hand]
    n_over = len(known) - _MAX_DOCUMENTS
    if n_over > 0:
        engine.remove_pages(spare[:n_over])


def _read(engine: MiniReranker, document: Picture | str, name: str) -> PageImage:
    """Exactly one decoded page, or InputRejected."""
    if isinstance(document, Image.Image):
        return from_pil(document, name, engine.limits)
    if isinstance(document, bytes):
        items = list(engine.decode([(name, document)]))
    elif isinstance(document, str) and document.startswith("data:"):
        items = list(engine.decode([(name, _of_data_url(document, name))]))
    elif isinstance(document, str | Path):  # named, so that a folder is refused and not searched
        items = list(engine.decode([(Path(document).name, Path(document))]))
    else:
        items = list(engine.decode([document]))
    for item in items:
        if isinstance(item, FailedFile):
            raise InputRejected(f"{name.capitalize()}: {item.reason}")
    pages = [item for item in items if isinstance(item, PageImage)]
    if len(pages) != 1:
        raise InputRejected(
            f"{name.capitalize()} has {len(pages)} pages; a document is one page. Add the file "
            "with add() and use rank(), or pass its page ids."
        )
    return pages[0]


def _of_data_url(url: str, name: str) -> bytes:
    """The file in a data URL, which is how a picture travels in JSON."""
    head, _, body = url.partition(",")
    try:
        if head.endswith(";base64"):
            return base64.b64decode(body, validate=True)
    except ValueError:
        pass
    raise InputRejected(
        f"{name.capitalize()} is a data URL that is not base64; write data:image/png;base64,..."
    )


def _texts(documents: Sequence[Document]) -> list[str]:
    if not all(isinstance(d, str) for d in documents):
        raise InputRejected("Both sides of a pair are pictures; one of them must be a text.")
    return [str(d) for d in documents]


def _check_top_n(top_n: int | None) -> None:
    if top_n is not None and top_n < 1:
        raise InputRejected(f"top_n is {top_n}; at least one result must be asked for.")


def _results(
    logits: Sequence[float], documents: Sequence[Document] | None, top_n: int | None
) -> list[RerankResult]:
    order = np.argsort(-np.asarray(logits, dtype=np.float32), kind="stable")[:top_n]
    return [
        RerankResult(
            index=int(i),
            relevance_score=sigmoid(logits[i]),
            logit=float(logits[i]),
            document=None if documents is None else documents[i],
        )
        for i in order
    ]
