"""Rankings to measure a reranker against: its own first stage, and BM25 on perfect text."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import pypdfium2 as pdfium

from mrr.measure.corpus import Corpus
from mrr.measure.dataset import Dataset
from mrr.measure.metrics import Run
from mrr.measure.tasks import Task
from mrr.reranker import MiniReranker
from mrr.timing import Stages

_WORD = re.compile(r"[^\W_]+")


def first_stage_run(reranker: MiniReranker, corpus: Corpus, tasks: Sequence[Task]) -> Run:
    """Every page by how its vector suits the query. Needs an embedder."""
    assert reranker.embedder is not None
    page_ids = list(corpus.pages)
    vectors = reranker.cache.vectors(list(corpus.pages.values()), Stages(reranker.device))
    run = {}
    for task in tasks:
        text, _ = reranker.clean(task.query.text)
        run[task.query.query_id] = _order(page_ids, reranker.embedder.similarity(text, vectors))
    return run


def has_bm25() -> bool:
    """Whether the development requirement that computes BM25 is installed."""
    return find_spec("bm25s") is not None


def bm25_run(texts: Mapping[str, str], tasks: Sequence[Task]) -> Run:
    """Every page by BM25 (Lucene's variant) over its text: {page id: text}."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    index = bm25s.BM25()
    index.index([words(text) for text in texts.values()], show_progress=False)
    known = set(index.vocab_dict)
    run = {}
    for task in tasks:
        terms = [word for word in words(task.query.text) if word in known]
        scores = index.get_scores(terms) if terms else np.zeros(len(texts))
        run[task.query.query_id] = _order(list(texts), scores)
    return run


def page_texts(dataset: Dataset) -> Mapping[str, str] | None:
    """{page id: text}: the dataset's own, or the PDFs' text layers; None unless all have one."""
    if dataset.texts is not None:
        return dataset.texts
    if any(page.file.suffix.lower() != ".pdf" for page in dataset.pages):
        return None
    texts: dict[str, str] = {}
    for file in dict.fromkeys(page.file for page in dataset.pages):
        with pdfium.PdfDocument(file) as document:
            for page in dataset.pages:
                if page.file == file:
                    text = document[page.page_num - 1].get_textpage().get_text_range()
                    texts[page.page_id] = text
    return texts if all(text.strip() for text in texts.values()) else None


def restrict(run: Run, tasks: Sequence[Task]) -> Run:
    """The same rankings over each task's candidates only."""
    kept = {}
    for task in tasks:
        candidates = set(task.candidates)
        kept[task.query.query_id] = tuple(
            page for page in run[task.query.query_id] if page in candidates
        )
    return kept


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits; no stemming, so that any language is treated alike."""
    return _WORD.findall(text.lower())


def _order(page_ids: Sequence[str], scores: np.ndarray) -> tuple[str, ...]:
    return tuple(page_ids[i] for i in np.argsort(-scores, kind="stable"))
