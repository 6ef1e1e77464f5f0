"""Late interaction reads the tower alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mrr import MiniReranker
from mrr.measure.corpus import add_corpus
from mrr.measure.dataset import read_dataset
from mrr.measure.evaluate import evaluate
from mrr.measure.late import late_interaction_run
from mrr.measure.tasks import make_tasks
from mrr.model.vision import VisualTokens
from tests.measure.helpers import write_dataset


def test_the_page_that_shows_the_querys_own_embeddings_comes_first(
    reranker: MiniReranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset(write_dataset(tmp_path / "set"))
    corpus, tasks = add_corpus(reranker, dataset), make_tasks(dataset)
    wanted = [next(iter(task.grades)) for task in tasks]
    shown = iter(corpus.pages)  # pages go through the tower in the corpus's order

    def tower(loaded, pixels) -> VisualTokens:
        page = next(shown)
        seen = torch.randn(4, loaded.lm.embed_tokens.weight.shape[1])
        for task, right in zip(tasks, wanted, strict=True):
            if right == page:
                ids = torch.tensor(reranker.encoder.text_ids(f" {task.query.text}"))
                seen = torch.cat([seen, loaded.lm.embed_tokens(ids)])
        return VisualTokens(seen, ())

    monkeypatch.setattr("mrr.measure.late.encode_vision", tower)
    run = late_interaction_run(reranker, corpus, tasks)
    assert [run[task.query.query_id][0] for task in tasks] == wanted
    assert all(sorted(ranking) == sorted(corpus.pages) for ranking in run.values())


def test_it_is_an_anchor_only_where_it_is_asked_for(reranker: MiniReranker, tmp_path: Path) -> None:
    dataset = read_dataset(write_dataset(tmp_path / "set"))
    asked = evaluate(reranker, dataset, late_interaction=True)
    assert "late interaction" in [anchor.name for anchor in asked.anchors]
    unasked = evaluate(reranker, dataset)
    assert "late interaction" not in [anchor.name for anchor in unasked.anchors]
