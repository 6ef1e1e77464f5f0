from dataclasses import replace

import pytest
import torch

from mrr.model.lexical import confidence_axis, split_confidence
from mrr.train.embed_train import fresh_embedder, printed_share
from mrr.train.embedding import keep_half
from mrr.train.eyes import simulated
from mrr.train.match_data import MatchBatch
from mrr.train.match_train import (
    MatchPlan,
    area,
    fresh_matcher,
    late_interaction,
    ranking_quality,
)
from mrr.train.matching import SimulatedReader
from mrr.train.stages import Workshop
from mrr.train.tokens import spelling_embeddings
from tests.train.conftest import SIZES


def test_ranking_quality_counts_only_queries_that_one_page_answers() -> None:
    answer = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    score = torch.tensor([[1.0, 0.0, 0.0], [2.0, 9.0, 0.0], [0.0, 9.0, 0.0]])
    ndcg, hit = ranking_quality(score, answer)
    assert (ndcg, hit) == (pytest.approx(1 / torch.log2(torch.tensor(3.0)).item(), abs=1e-4), 0.0)


def test_ties_never_count_as_found() -> None:
    answer = torch.eye(3)[:, :1]
    assert ranking_quality(torch.zeros(3, 1), answer)[1] == 0.0


def test_late_interaction_finds_the_page_whose_words_are_simulated_without_error(
    shop: Workshop, batch: MatchBatch
) -> None:
    table = spelling_embeddings(shop.tokenizer, 256)
    visual, _ = simulated(table, 5, SimulatedReader(noise=0.0, lost=0.0))(batch)
    score = late_interaction(table, visual, batch)
    assert ranking_quality(score, batch.answer)[0] > 0.8
    assert area(score, batch) > area(torch.zeros_like(score), batch)


def test_noise_makes_simulated_tokens_less_like_their_pieces(
    shop: Workshop, batch: MatchBatch
) -> None:
    table = spelling_embeddings(shop.tokenizer, 64)
    torch.manual_seed(0)
    clear, _ = simulated(table, 5, SimulatedReader(0.0, 0.0))(batch)
    dim, _ = simulated(table, 5, SimulatedReader(2.0, 0.9))(batch)
    page, cell, piece = batch.pieces.T

    def likeness(visual: torch.Tensor) -> float:
        return float((visual[page, cell] * table[piece]).sum(-1).mean())

    assert likeness(clear) > likeness(dim) + 0.1
    lengths = split_confidence(clear, confidence_axis(table))[0].norm(dim=-1)
    assert lengths.min() > 0.75 and lengths.max() < 1.3


def test_a_search_finds_printed_words_before_it_is_trained_and_rests_on_the_others(
    shop: Workshop, batch: MatchBatch
) -> None:
    sizes = replace(SIZES, dim=256)
    plan = MatchPlan(shop.root / "fresh", shop.corpus_dir, shop.tokenizer, model=sizes)
    matcher = fresh_matcher(plan)
    visual, _ = simulated(matcher.table, matcher.image_id, SimulatedReader(0.0, 0.0))(batch)
    with torch.no_grad():
        _, seen = matcher(visual, batch, dense=False)
    n_before, n_cells = len(matcher.prefix_ids), visual.shape[1]
    head = seen.page_attention[matcher.depths.match_layer][:, 0]
    mass = head[..., n_before : n_before + n_cells].sum(-1)
    is_word, word = batch.word_of >= 0, batch.word_of.clamp(min=0)
    there = batch.present.gather(2, word.expand(len(batch.present), -1, -1)) > 0
    # How much a word that the prompt itself holds finds there differs from word to word, so each
    # is compared with itself: its mass on pages that print it, and on those that do not.
    somewhere = is_word & there.any(0) & ~there.all(0)
    printed = mass.log().where(there, torch.nan).nanmean(0)[somewhere]
    other = mass.log().where(~there, torch.nan).nanmean(0)[somewhere]
    assert (printed - other).median().exp() > 2
    assert mass[is_word.expand_as(there) & ~there].median() < 0.5


def test_pruning_keeps_half_of_the_cells_and_the_share_of_print_is_counted(
    shop: Workshop, batch: MatchBatch
) -> None:
    embedder = fresh_embedder(shop.tokenizer, SIZES)
    visual = torch.randn(4, batch.grid[0] * batch.grid[1], SIZES.dim)
    kept = keep_half(embedder, visual, batch.grid)
    assert (kept.sum(1) == visual.shape[1] // 2).all()
    assert printed_share(torch.ones_like(kept), batch) == 1.0
    assert 0.2 < printed_share(kept, batch) < 0.8


def test_a_fresh_embedder_looks_away_from_empty_cells(shop: Workshop, batch: MatchBatch) -> None:
    embedder = fresh_embedder(shop.tokenizer, SIZES)
    table = embedder.lm.embed_tokens.weight.detach()
    visual, _ = simulated(table, embedder.encoder.image_id, SimulatedReader(0.0, 0.0))(batch)
    with torch.no_grad():
        _, importance = embedder.pages(visual, batch.grid)
    printed = torch.zeros_like(importance, dtype=torch.bool)
    printed[batch.pieces[:, 0], batch.pieces[:, 1]] = True
    assert importance[printed].mean() > 2 * importance[~printed].mean()
