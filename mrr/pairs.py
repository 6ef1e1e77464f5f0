"""Reranking in the field's conventions: documents or texts in, positions and scores out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast, overload

import numpy as np
import torch

from mrr.document_scores import score_documents
from mrr.documents import Document, is_picture
from mrr.errors import InputRejected
from mrr.pages.naming import display_name
from mrr.ranking import check_count, sigmoid
from mrr.text_scores import score_texts
from mrr.types import RerankResult

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

Activation = Callable[[torch.Tensor], torch.Tensor]
T = TypeVar("T")
logger = logging.getLogger(__name__)


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
    PageLost for an added page, naming its position: none is ever scored as if it were empty.
    """
    engine.check_open()
    check_count("top_n", top_n)
    documents = _listed(documents, "document")
    engine = with_instruction(engine, instruction)
    if not documents:
        return []
    text = _cleaned(engine, query)
    names = [f"document {i}" for i in range(len(documents))]
    logits = score_documents(engine, text, documents, names, scopes)
    return _results(logits, documents if return_documents else None, top_n)


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
    scopes: Collection[str] | None,
) -> list[RerankResult]:
    """Texts against one picture: its prefix is computed once and read by every text.

    Source: miniReranker 3.1, vision-as-query. image: whatever `rerank` takes as a document.
    scopes: as there. Raises InputRejected for a picture that cannot be read and for a text that is
    empty or too long, naming its position: none is cut. PageLost for an added page.
    """
    engine.check_open()
    check_count("top_n", top_n)
    texts = _listed(texts, "text")
    if not texts:
        return []
    engine = with_instruction(engine, instruction)
    names = [f"text {i}" for i in range(len(texts))]
    logits = score_texts(engine, image, "the query picture", texts, names, scopes)
    return _results(logits, texts, top_n)


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
            logits[members] = score_texts(engine, first, names[0], texts, names, scopes)
        else:
            text = _cleaned(engine, str(first), names[0])
            logits[members] = score_documents(engine, text, seconds, names, scopes)
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
