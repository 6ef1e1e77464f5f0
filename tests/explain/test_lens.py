"""The lens ends where the systems end, and before the band it knows no page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrr.explain import lens as lens_module
from mrr.explain.lens import dense_lens, mini_lens
from mrr.explain.trace import trace
from tests.model.helpers import DENSE, PRUNED, QUERY, SPARSE, STAGES, cases, scorer

MINI = replace(SPARSE, pruner="random", keep_ratio=0.5, kv_dtype="int8")


@pytest.mark.parametrize("config", [DENSE, SPARSE, PRUNED, MINI], ids=lambda c: str(c.band))
def test_mini_lens_ends_at_the_logit_of_the_fast_path(loaded, config):
    s = scorer(loaded, config)
    pages = [c.page for c in cases(s)]
    table = mini_lens(s, QUERY, pages)
    assert table.shape == (len(pages), config.exit_layer)
    np.testing.assert_allclose(table[:, -1], s.score([QUERY], pages, STAGES), atol=1e-5)


def test_mini_lens_is_the_same_for_all_pages_before_the_band_and_not_in_it(qwen3):
    s = scorer(qwen3, MINI)
    table = mini_lens(s, QUERY, [c.page for c in cases(s)])
    assert (table[:, :2] == table[0, :2]).all()
    assert (np.ptp(table[:, 2:], axis=0) > 0.01).all()


def test_mini_lens_reads_every_layer_as_the_head_reads_a_model_cut_there(qwen3):
    s = scorer(qwen3, MINI)
    pages = [c.page for c in cases(s)]
    table = mini_lens(s, QUERY, pages)
    for exit_layer in (3, 4, 5):
        band = (2, min(4, exit_layer))
        cut = scorer(qwen3, replace(MINI, band=band, exit_layer=exit_layer))
        logits = cut.score([QUERY], [c.page for c in cases(cut)], STAGES)
        np.testing.assert_allclose(table[:, exit_layer - 1], logits, atol=1e-5)


def test_mini_lens_does_not_depend_on_how_pages_are_batched(qwen3, monkeypatch):
    s = scorer(qwen3, MINI)
    pages = [c.page for c in cases(s)]
    together = mini_lens(s, QUERY, pages)
    monkeypatch.setattr(lens_module, "MAX_BATCH_COLUMNS", 1)
    np.testing.assert_allclose(mini_lens(s, QUERY, pages), together, atol=1e-5)


def test_texts_of_different_lengths_in_one_traced_batch_are_read_at_their_own_ends(qwen3):
    s = scorer(qwen3, MINI)
    page = cases(s)[0].page
    texts = ["a", QUERY, "a much longer query than the others"]
    alone = np.concatenate([trace(s, [text], [page]) for text in texts])
    np.testing.assert_allclose(trace(s, texts, [page]), alone, atol=1e-5)


def test_dense_lens_ends_at_the_logit_of_the_stock_forward_pass(loaded):
    s = scorer(loaded, MINI)
    for c in cases(s):
        full = dense_lens(s, QUERY, c.pixels)
        assert full.shape == (loaded.n_layers,)
        stock = s.score_original([QUERY], [c.pixels], STAGES)[0]
        assert abs(full[-1] - stock) <= 1e-4


def test_dense_lens_reads_the_stock_hidden_states_of_every_layer(loaded):
    s = scorer(loaded, MINI)
    c = cases(s)[0]
    seen: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda module, args, out: seen.append(out[0, -1]))
        for layer in loaded.lm.layers
    ]
    try:
        s.score_original([QUERY], [c.pixels], STAGES)
    finally:
        for handle in handles:
            handle.remove()
    expected = s.head.logits(torch.stack(seen)).cpu().numpy()
    np.testing.assert_allclose(dense_lens(s, QUERY, c.pixels), expected, atol=1e-4)
