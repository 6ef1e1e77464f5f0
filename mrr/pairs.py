"""Reranking in the field's conventions: documents in, positions and scores out.

Pictures given here are cached like any page, in a scope of their own, so the second query over
the same documents pays for the query, and for reading the files, which are decoded once. Nobody
asked to keep them: the store evicts them as it does K/V, and one that it has no room for is scored
without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast, overload

import numpy as np
import torch
from PIL import Image

from cache_db.evict import DOCUMENTS
from mrr.documents import Document, Encoded, is_picture, known, opened, read_page, read_picture
from mrr.errors import BudgetExceeded, InputRejected, PageLost
from mrr.model.scorer import Scorer
from mrr.page_cache import page_of
from mrr.pages.naming import display_name
from mrr.prune import kept_tokens
from mrr.query import clean_query
from mrr.ranking import check_count, rank, sigmoid
from mrr.timing import Stages
from mrr.types import AddedPage, Candidate, Hit, Page, RerankResult

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

Activation = Callable[[torch.Tensor], torch.Tensor]
T = TypeVar("T")
logger = logging.getLogger(__name__)

# Pictures that were passed to rerank() and predict(): the newest stay, or a service that is asked
# about ever new ones would list them without end. What they take of the disk, the budget bounds.
_MAX_DOCUMENTS = 1000
_TEXTS_AT_ONCE = 64


def rerank(
    engine: MiniReranker,
    query: str,
    documents: Iterable[Document],
    top_n: int | None,
    instruction: str | None,
    return_documents: bool,
    scopes: Collection[str] | None,
) -> list[RerankResult]:
    """Every document scored by the mini system, best first; ties keep the input order.

    documents: PIL pictures, encoded bytes or data URLs, files opened in binary mode, paths of
    one-page files, or added pages: their ids, or what `add`, `rank` and the store say of them.
    instruction: the task line, where it differs from the configured one. scopes: whose added pages
    may be named; None: everybody's. Raises InputRejected for a document that cannot be read,
    naming its position: none is ever scored as if it were empty.
    """
    engine.check_open()
    check_count("top_n", top_n)
    documents = _listed(documents, "document")
    engine = with_instruction(engine, instruction)
    if not documents:
        return []
    text = _cleaned(engine, query)
    names = [f"document {i}" for i in range(len(documents))]
    logits = _score_documents(engine, text, documents, names, scopes)
    return _results(logits, documents if return_documents else None, top_n)


def _score_documents(
    engine: MiniReranker,
    text: str,
    documents: Sequence[Document],
    names: Sequence[str],
    scopes: Collection[str] | None,
) -> list[float]:
    """Logits of documents for a cleaned query. names: what a refusal calls each of them.

    Others may use the engine while one is read, and between two that are encoded.
    """
    with ExitStack() as held:
        placed = [
            _place(engine, text, document, name, scopes, held)
            for document, name in zip(documents, names, strict=True)
        ]
        pages = {page.page_id: page for page in placed if isinstance(page, Page)}
        _encode(engine, list(pages.values()))
        with engine.lock:
            _forget_old(engine, set(pages))
            seen = {page.scope for page in pages.values()}
            ranked = rank(engine, text, None, "mini", set(pages), seen)
            scores = {hit.page.page_id: hit.logit for hit in ranked}
            return [
                _logit(engine, text, scores, *each)
                for each in zip(placed, documents, names, strict=True)
            ]


def _encode(engine: MiniReranker, pages: list[Page]) -> None:
    """K/V of pages that have none under this configuration; others go in between."""
    if not engine.cache.scorer.image_first:
        return
    for page in engine.cache.missing(pages):
        with engine.lock, suppress(PageLost):  # `_logit` looks for a lost one
            engine.cache.load([page], Stages(engine.device))


def _cleaned(engine: MiniReranker, query: str, name: str = "") -> str:
    """The query as the model reads it; what was cut is logged, for results carry no notes.

    name: what a refusal calls it, where there are several.
    """
    of = f"{name.capitalize()}: " if name else ""
    try:
        text, notes = engine.clean(query)
    except InputRejected as error:
        raise InputRejected(f"{of}{error}") from None
    for note in notes:
        logger.warning("%s%s", of, note)
    return text


def rank_texts(
    engine: MiniReranker,
    image: Document,
    texts: Iterable[str],
    top_n: int | None,
    instruction: str | None,
) -> list[RerankResult]:
    """Texts against one picture: its prefix is computed once and read by every text.

    Source: miniReranker 3.1, vision-as-query. The picture's K/V is not stored; the embedder
    chooses its tokens as it does for pages. image: whatever `rerank` takes as a document.
    """
    engine.check_open()
    check_count("top_n", top_n)
    texts = _listed(texts, "text")
    if not texts:
        return []
    engine = with_instruction(engine, instruction)
    names = [f"text {i}" for i in range(len(texts))]
    logits = _score_texts(engine, image, "the query picture", texts, names, None)
    return _results(logits, texts, top_n)


def _score_texts(
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


@overload
def predict(
    engine: MiniReranker,
    pairs: tuple[Document, Document],
    activation_fn: Activation | None,
    scopes: Collection[str] | None,
) -> float: ...
@overload
def predict(
    engine: MiniReranker,
    pairs: Iterable[tuple[Document, Document]],
    activation_fn: Activation | None,
    scopes: Collection[str] | None,
) -> np.ndarray: ...
def predict(
    engine: MiniReranker,
    pairs: tuple[Document, Document] | Iterable[tuple[Document, Document]],
    activation_fn: Activation | None,
    scopes: Collection[str] | None,
) -> np.ndarray | float:
    """(N,) scores of pairs, grouped so that each picture and each query is run once.

    A pair whose first side is a picture is vision-as-query, any other is a query for a page. One
    pair that is in no list gets a number, as from a CrossEncoder. activation_fn: of the logits, a
    float32 tensor; None is the sigmoid. scopes: as for `rerank`.
    """
    engine.check_open()
    one = isinstance(pairs, tuple | list) and len(pairs) == 2 and isinstance(pairs[0], Document)
    # Pictures are told apart by identity, so each must stay where it is.
    listed = cast(list[tuple[Document, Document]], [pairs] if one else _listed(pairs, "pair"))
    groups: dict[int | str, list[int]] = {}
    for i, pair in enumerate(listed):
        if isinstance(pair, Mapping | Set):
            raise InputRejected(f"Pair {i} is {pair!r:.80}, without an order; pass a tuple.")
        try:
            first, second = pair
        except (TypeError, ValueError):
            raise InputRejected(f"Pair {i} is {pair!r:.80}; a pair has two sides.") from None
        listed[i] = first, second  # an iterator gives them once
        _check_pair(engine, first, second, f"pair {i}", scopes)
        groups.setdefault(str(first) if isinstance(first, str) else id(first), []).append(i)
    logits = np.empty(len(listed), dtype=np.float32)
    for members in groups.values():
        first, names = listed[members[0]][0], [f"pair {i}" for i in members]
        seconds = [listed[i][1] for i in members]
        if is_picture(engine, first, scopes):
            texts = [str(second) for second in seconds]
            logits[members] = _score_texts(engine, first, names[0], texts, names, scopes)
        else:
            text = _cleaned(engine, str(first), names[0])
            logits[members] = _score_documents(engine, text, seconds, names, scopes)
    if activation_fn is None:
        values = np.array([sigmoid(logit) for logit in logits], dtype=np.float32)
    else:
        values = np.asarray(activation_fn(torch.from_numpy(logits)), dtype=np.float32)
    return float(values[0]) if one else values


def _check_pair(
    engine: MiniReranker,
    first: Document,
    second: Document,
    name: str,
    scopes: Collection[str] | None,
) -> None:
    """Raise InputRejected for a pair of which not exactly one side is a picture."""
    for side in (first, second):
        if not isinstance(side, Document):
            raise InputRejected(
                f"{name.capitalize()} has a side that is {side!r:.80}; a pair is a text and a "
                "picture, file or page id."
            )
    pictures = [is_picture(engine, side, scopes) for side in (first, second)]
    if all(pictures):
        raise InputRejected(f"Both sides of {name} are pictures; one of them must be a text.")
    if not any(pictures) and os.path.exists(str(first)) and not os.path.exists(str(second)):
        raise InputRejected(
            f"{name.capitalize()} has a string on both sides, and on the first one it is read as "
            f'text: "{display_name(str(first))}" is not opened. Open the picture that is to stand '
            "there with PIL.Image.open, or pass a pathlib.Path."
        )


def with_instruction(engine: MiniReranker, instruction: str | None) -> MiniReranker:
    """The engine under another task line; its pages then have K/V of their own."""
    if instruction is None or instruction == engine.config.instruction:
        return engine
    return engine.with_config(replace(engine.config, instruction=instruction))


def _place(
    engine: MiniReranker,
    text: str,
    document: Document,
    name: str,
    scopes: Collection[str] | None,
    held: ExitStack,
) -> Page | float:
    """The page of a document, pinned as long as `held` is; or its logit, where it has no room."""
    found = _found(engine, document, name, scopes)
    if isinstance(found, Page):
        held.enter_context(engine.store.pinned([found.page_id]))
        return found
    item = read_page(engine, found, name)
    page = page_of(item, DOCUMENTS)
    held.enter_context(engine.store.pinned([page.page_id]))  # or the next ones could push it out
    with engine.lock:
        try:
            page = engine.cache.add(item, DOCUMENTS, page).page
        except BudgetExceeded:
            return _score_unstored(engine, text, page, item.image)
    engine.recognized.remember(found, page.page_id)
    return page


def _found(
    engine: MiniReranker, document: Document, name: str, scopes: Collection[str] | None
) -> Page | Image.Image | Encoded:
    """The stored page that a document names, or was when it was decoded; or what to read."""
    there = known(engine, document, name, scopes)
    if isinstance(there, Page):
        return there
    given = opened(engine, there, name)
    page_id = engine.recognized.page_id(given)
    page = None if page_id is None else engine.store.page(page_id)
    return given if page is None else page


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
    name: str,
) -> float:
    """The score of a document; one that left the store meanwhile is read again, if it can be."""
    if not isinstance(placed, Page):
        return placed
    if placed.page_id in scores:
        return scores[placed.page_id]
    if isinstance(document, Page | AddedPage | Hit | Candidate) or document == placed.page_id:
        raise InputRejected(
            f"{name.capitalize()}, {placed.label}, cannot be read any more. Add it again."
        )
    engine.recognized.forget()  # to have what was lost decoded, and stored again, the next time
    item = read_page(engine, opened(engine, document, name), name)
    return _score_unstored(engine, text, placed, item.image)


def _forget_old(engine: MiniReranker, in_hand: set[str]) -> None:
    """Remove the oldest documents beyond _MAX_DOCUMENTS, never those that are being ranked."""
    known = [page.page_id for page in engine.store.pages([DOCUMENTS])]
    spare = [page_id for page_id in known if page_id not in in_hand]
    n_over = len(known) - _MAX_DOCUMENTS
    if n_over > 0:
        engine.remove_pages(spare[:n_over])


def _listed(given: Iterable[T], what: str) -> list[T]:
    """All that were given, in a list: a generator gives them once, and they are asked for twice.

    Raises InputRejected for one that is not in a list; of a text, that would be its letters.
    """
    if isinstance(given, Document):
        raise InputRejected(f"This is a single {type(given).__name__}. Pass a list: [{what}].")
    return list(given)


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
