"""Stage c as a run: the embedder's language model, on simulated or real visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mrr.model import lexical
from mrr.model.load import pick_device
from mrr.model.prompt import QWEN_RERANKER, PromptEncoder
from mrr.train import muon
from mrr.train.embedding import (
    PageEmbedder,
    aim_at_pooling,
    aim_at_print,
    contrast,
    guide_loss,
    keep_half,
)
from mrr.train.eyes import Eyes
from mrr.train.fit import Step, fit, last_batch, loader
from mrr.train.match_data import MatchBatch, MatchBatches
from mrr.train.match_train import PAGE, page_sources, ranking_batches, ranking_quality
from mrr.train.pair import Sizes, build
from mrr.train.run import Run, autocast, seed_everything


@dataclass(frozen=True, slots=True)
class EmbedPlan:
    """One embedding run. Contrast wants many pages and few queries of each."""

    folder: Path
    corpus_dir: Path
    tokenizer: PreTrainedTokenizerFast
    steps: int = 1500
    n_pages: int = 12
    n_positive: int = 3
    minutes: float = 0.0  # see fit
    workers: int = 0
    unit: int = 200
    matrix_lr: float = 4e-3
    other_lr: float = 2e-3
    eval_every: int = 150
    seed: int = 0
    sizes: tuple[tuple[int, int], ...] = ((512, 512), PAGE)
    check_pages: int = 20


def fresh_embedder(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, seed: int = 0) -> PageEmbedder:
    """An embedder whose vectors begin as means of what it sees."""
    model = build(tokenizer, sizes, embedder=True, seed=seed)
    lm = model.model.language_model
    lm.embed_tokens.weight.requires_grad_(False)
    aim_at_pooling(lm)
    aim_at_print(lm, lm.embed_tokens.weight[model.config.image_token_id].detach())
    return PageEmbedder(lm, PromptEncoder(tokenizer, QWEN_RERANKER))


def texts_of(batch: MatchBatch) -> list[str]:
    """The batch's queries as a user would type them."""
    return [" ".join(query) for query in batch.queries]


def train(plan: EmbedPlan, embedder: PageEmbedder, eyes: Eyes, pixels: bool) -> PageEmbedder:
    """Run or resume to plan.steps."""
    device = pick_device()
    seed_everything(plan.seed)
    embedder = embedder.to(device)
    optimizers = muon.optimizers(embedder.named_parameters(), plan.matrix_lr, plan.other_lr)
    run = Run(plan.folder)
    run.resume(embedder, optimizers)
    sources = page_sources(plan.corpus_dir, plan.tokenizer, plan.sizes, plan.unit)
    drawn = ranking_batches(plan.corpus_dir, plan.tokenizer, pixels, plan.check_pages)
    held_out = next(drawn).to(device)

    def take(batch: MatchBatch) -> Step:
        visual, _ = eyes(batch)
        vectors, importance = embedder.pages(visual, batch.grid)
        loss, cosine = contrast(embedder, vectors, batch, texts_of(batch))
        guide = guide_loss(importance, batch)

        def shown() -> dict[str, float]:
            ndcg, hit = ranking_quality(cosine, batch.answer)
            return {
                "guide": float(guide.detach()),
                "ndcg5": ndcg,
                "hit1": hit,
                "rows": batch.grid[0],
            }

        return Step(0.1 * loss + guide, shown, visual.shape[0] * visual.shape[1])

    batches = MatchBatches(
        sources,
        plan.n_pages,
        plan.n_positive,
        0,
        f"{plan.folder.name}/{plan.seed}",
        pixels,
        run.step,
        last_batch(plan.steps, plan.minutes),
    )
    fit(
        run,
        embedder,
        optimizers,
        loader(batches, plan.workers),
        steps=plan.steps,
        minutes=plan.minutes,
        take=take,
        evaluate=lambda: evaluate(embedder, eyes, held_out, device),
        eval_every=plan.eval_every,
    )
    return embedder


@torch.no_grad()
def evaluate(
    embedder: PageEmbedder, eyes: Eyes, batch: MatchBatch, device: torch.device
) -> dict[str, float]:
    """First-stage NDCG@5 and Hit@1, and the share of printed cells among the half that is kept."""
    torch.manual_seed(0)
    with autocast(device):
        visual, _ = eyes(batch)
        vectors, _ = embedder.pages(visual, batch.grid)
        _, cosine = contrast(embedder, vectors, batch, texts_of(batch))
        kept = keep_half(embedder, visual, batch.grid)
    ndcg, hit = ranking_quality(cosine, batch.answer)
    lexical_ndcg, lexical_hit = ranking_quality(_lexical(embedder, visual, batch), batch.answer)
    return {
        "ndcg5": ndcg,
        "hit1": hit,
        "lexical_ndcg5": lexical_ndcg,
        "lexical_hit1": lexical_hit,
        "kept_printed": printed_share(kept, batch),
    }


def _lexical(embedder: PageEmbedder, visual: Tensor, batch: MatchBatch) -> Tensor:
    """(B, Q) similarity as the engine's first stage computes it for a lexical embedder."""
    table, control = embedder.lm.embed_tokens.weight, list(embedder.encoder.control.values())
    vectors = np.stack([lexical.page_vector(page, table, control) for page in visual])
    texts = [embedder.encoder.text_ids(f" {text}") for text in texts_of(batch)]
    scores = np.stack([lexical.similarity(ids, vectors) for ids in texts], 1)
    return torch.from_numpy(scores).to(visual.device)


def printed_share(kept: Tensor, batch: MatchBatch) -> float:
    """Share of the cells that hold a word piece's centre which survive pruning; kept (B, cells)."""
    printed = torch.zeros_like(kept)
    printed[batch.pieces[:, 0], batch.pieces[:, 1]] = True
    return round(float(kept[printed].float().mean()), 4)
