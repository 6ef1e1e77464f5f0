"""Late interaction: what the vision tower alone knows, without any layer of the language model.

A query's score for a page is the sum over its tokens of the best cosine between the token's row of
the embedding table and any visual token. It says how much of a ranking is reading; only a model
whose tower was trained into that table, as the bundled one was, does well by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from mrr.measure.corpus import Corpus, Progress, report
from mrr.measure.metrics import Run
from mrr.measure.tasks import Task
from mrr.model.vision import encode_vision
from mrr.reranker import MiniReranker


@torch.inference_mode()
def late_interaction_run(
    reranker: MiniReranker, corpus: Corpus, tasks: Sequence[Task], progress: Progress | None = None
) -> Run:
    """{query id: all page ids of the corpus, best first}; each page goes through the tower once.

    Raises PageLost where the store has lost a page's picture.
    """
    loaded, scorer = reranker.loaded, reranker.cache.scorer
    tokens = []
    for task in tasks:
        text, _ = reranker.clean(task.query.text)
        ids = torch.tensor(reranker.encoder.text_ids(f" {text}"), device=loaded.device)
        tokens.append(F.normalize(loaded.lm.embed_tokens(ids).float(), dim=-1))
    scores = np.empty((len(tasks), len(corpus.pages)), dtype=np.float32)
    for column, page in enumerate(corpus.pages.values()):
        pixels = scorer.preprocess(reranker.cache.picture(page))
        visual = F.normalize(encode_vision(loaded, pixels).embeds.float(), dim=-1)
        for row, query in enumerate(tokens):
            scores[row, column] = float((query @ visual.T).amax(1).sum())
        report(progress, "late interaction", column + 1, len(corpus.pages))
    ids_of_pages = list(corpus.pages)
    return {
        task.query.query_id: tuple(ids_of_pages[i] for i in np.argsort(-row, kind="stable"))
        for task, row in zip(tasks, scores, strict=True)
    }
