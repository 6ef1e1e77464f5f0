"""Reranking in the field's conventions: documents in, positions and scores out.

Pictures given here are cached like any page, in a scope of their own, so the second query over
the same documents pays for the query only. Nobody asked to keep them: the store evicts them as it
does K/V, and one that it has no room for is scored without it.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast, overload

import numpy as np
from PIL import Image

from cache_db.evict import DOCUMENTS
from mrr.errors import BudgetExceeded, InputRejected
from mrr.model.scorer import Scorer
from mrr.page_cache import page_of
from mrr.pages.ingest import Content, File, from_pil
from mrr.pages.naming import display_name
from mrr.prune import kept_tokens
from mrr.query import clean_query
from mrr.timing import Stages
from mrr.types import AddedPage, FailedFile, Hit, Page, PageImage, PageLike, RerankResult

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

Picture = Content
Document = Picture | PageLike
T = TypeVar("T")

# Pictures that were passed to rerank() and predict(): the newest stay, or a service that is asked
# about ever new ones would list them without end. What they take of the disk, the budget bounds.
_MAX_DOCUMENTS = 1000
_TEXTS_AT_ONCE = 64
_DATA_URL = re.compile(r"data:[^\s,]*,", re.IGNORECASE)  # "data: by region, 2024" is a query
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def rerank(
    engine: MiniReranker,
    query: str,
    documents: Iterable[Document],
    top_n: int | None,
    instruction: str | None,
    return_documents: bool,
) -> list[RerankResult]:
    """Every document scored by the mini system, best first; ties keep the input order.

    documents: PIL pictures, encoded bytes or data URLs, files opened in binary mode, paths of
    one-page files, or added pages: their ids, or what `add`, `rank` and the store say of them.
    instruction: the task line, where it differs from the configured one. Raises InputRejected for
    a document that cannot be read, naming its position: none is ever scored as if it were empty.
    """
    engine.check_open()
    _check_top_n(top_n)
    documents = _listed(documents, "document")
    engine = with_instruction(engine, instruction)
    if not documents:
        return []
    text, _ = engine.clean(query)
    with engine.lock, ExitStack() as held:
        placed = [
            _place(engine, text, each, f"document {i}", held) for i, each in enumerate(documents)
        ]
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
    _check_top_n(top_n)
    texts = _listed(texts, "text")
    if not texts:
        return []
    engine = with_instruction(engine, instruction)
    cleaned = [_candidate(engine, text, i) for i, text in enumerate(texts)]
    picture = _picture(engine, image, "the query picture")
    with engine.lock:
        return _results(_score_texts(engine, picture, cleaned), texts, top_n)


def _score_texts(engine: MiniReranker, picture: Image.Image, texts: list[str]) -> list[float]:
    """Logits of cleaned texts against one picture, some texts at a time.

    Equal texts are scored once: beside others, each would get another rounding of its logit.
    """
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
    different = list(dict.fromkeys(texts))
    logits: list[float] = []
    if scorer.image_first:
        page = scorer.encode(sight, kept, stages)
        for start in range(0, len(different), _TEXTS_AT_ONCE):
            some = different[start : start + _TEXTS_AT_ONCE]
            logits += scorer.score(some, [page], stages).tolist()
    else:
        logits += [scorer.score_joint(text, sight, kept, stages) for text in different]
    logit = dict(zip(different, logits, strict=True))
    return [logit[text] for text in texts]


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


@overload
def predict(engine: MiniReranker, pairs: tuple[Document, Document]) -> float: ...
@overload
def predict(engine: MiniReranker, pairs: Iterable[tuple[Document, Document]]) -> np.ndarray: ...
def predict(
    engine: MiniReranker, pairs: tuple[Document, Document] | Iterable[tuple[Document, Document]]
) -> np.ndarray | float:
    """(N,) scores of pairs, grouped so that each picture and each query is run once.

    A pair whose first side is a picture is vision-as-query, any other is a query for a page. One
    pair that is in no list gets a number, as from a CrossEncoder.
    """
    engine.check_open()
    one = isinstance(pairs, tuple | list) and len(pairs) == 2 and isinstance(pairs[0], Document)
    # Pictures are told apart by identity, so each must stay where it is.
    listed = cast(list[tuple[Document, Document]], [pairs] if one else _listed(pairs, "pair"))
    scores = np.empty(len(listed), dtype=np.float32)
    groups: dict[int | str, list[int]] = {}
    for i, (first, _) in enumerate(listed):
        groups.setdefault(str(first) if isinstance(first, str) else id(first), []).append(i)
    for members in groups.values():
        first = listed[members[0]][0]
        seconds = [listed[i][1] for i in members]
        if _is_picture(engine, first):
            results = rank_texts(engine, first, _texts(engine, seconds), None, None)
        else:
            results = rerank(engine, str(first), seconds, None, None, False)
        for result in results:
            scores[members[result.index]] = result.relevance_score
    return float(scores[0]) if one else scores


def _is_picture(engine: MiniReranker, side: Document) -> bool:
    """Whether a side of a pair is a picture; a string is one as a data URL or a page's id."""
    if not isinstance(side, str):
        return True
    return _DATA_URL.match(side) is not None or engine.store.page(side) is not None


def with_instruction(engine: MiniReranker, instruction: str | None) -> MiniReranker:
    """The engine under another task line; its pages then have K/V of their own."""
    if instruction is None or instruction == engine.config.instruction:
        return engine
    return engine.with_config(replace(engine.config, instruction=instruction))


def sigmoid(logit: float | np.floating) -> float:
    """1 / (1 + exp(-logit)), in float64."""
    return float(0.5 * (1.0 + np.tanh(0.5 * np.float64(logit))))  # exp would overflow


def _known(engine: MiniReranker, document: Document, name: str) -> Page | Picture | str:
    """The stored page that a document names, or else the picture or file that it is."""
    named = document.page if isinstance(document, Hit | AddedPage) else document
    page_id = named.page_id if isinstance(named, Page) else named
    known = engine.store.page(page_id) if isinstance(page_id, str) else None
    if known is not None:
        return known
    if isinstance(named, Page):
        raise InputRejected(
            f"{name.capitalize()}, {named.label}, is not in the store. Add it first."
        )
    return named


def _picture(engine: MiniReranker, document: Document, name: str) -> Image.Image:
    """The canonical picture of a document, from the store where it is a page of it."""
    known = _known(engine, document, name)
    if isinstance(known, Page):
        return engine.cache.picture(known)
    return _read(engine, known, name).image


def _place(
    engine: MiniReranker, text: str, document: Document, name: str, held: ExitStack
) -> Page | float:
    """The page of a document, pinned as long as `held` is; or its logit, where it has no room."""
    known = _known(engine, document, name)
    if isinstance(known, Page):
        held.enter_context(engine.store.pinned([known.page_id]))
        return known
    item = _read(engine, known, name)
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
    if isinstance(document, Page | AddedPage | Hit) or document == placed.page_id:
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
    items = list(engine.decode([_file(document, name)]))
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


def _file(document: Picture | str, name: str) -> File:
    """What to read a document from, called by its own name if it is a path, else by `name`."""
    if isinstance(document, str):
        if _DATA_URL.match(document):
            return name, _of_data_url(document, name)
        _check_there(document, name)
    if isinstance(document, str | Path):  # named, so that a folder is refused and not searched
        return Path(document).name, Path(document)
    return (name, document) if isinstance(document, Content) else document


def _check_there(path: str, name: str) -> None:
    """Raise InputRejected for a string that is no path, saying what else it may have meant."""
    if _URL.match(path):
        raise InputRejected(
            f"{name.capitalize()} is a URL, and none is fetched. Download it and pass its path."
        )
    if not os.path.exists(path):
        raise InputRejected(
            f'{name.capitalize()}: there is no file "{display_name(path)}", nor a page of this id. '
            "A document is a picture, a file or a page id; texts are ranked by rank_texts."
        )


def _of_data_url(url: str, name: str) -> bytes:
    """The file in a data URL, which is how a picture travels in JSON."""
    head, _, body = url.partition(",")
    try:
        if head.casefold().endswith(";base64"):
            return base64.b64decode(body, validate=True)
    except ValueError:
        pass
    raise InputRejected(
        f"{name.capitalize()} is a data URL that is not base64; write data:image/png;base64,..."
    )


def _texts(engine: MiniReranker, documents: Sequence[Document]) -> list[str]:
    if any(_is_picture(engine, d) for d in documents):
        raise InputRejected("Both sides of a pair are pictures; one of them must be a text.")
    return [str(d) for d in documents]


def _listed(given: Iterable[T], what: str) -> list[T]:
    """All that were given, in a list: a generator gives them once, and they are asked for twice.

    Raises InputRejected for one that is not in a list; of a text, that would be its letters.
    """
    if isinstance(given, Document):
        raise InputRejected(f"This is a single {type(given).__name__}. Pass a list: [{what}].")
    return list(given)


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
