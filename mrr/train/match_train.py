"""Stages b and d: training runs of the language model, on simulated or real visual tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from mrr.config import DEFAULT_INSTRUCTION
from mrr.model.load import pick_device
from mrr.model.prompt import QWEN_RERANKER, PromptEncoder
from mrr.train import fonts, muon
from mrr.train.data import PageSource
from mrr.train.eyes import Eyes
from mrr.train.fit import Step, fit, last_batch, loader
from mrr.train.layout import Style
from mrr.train.match_data import MatchBatch, MatchBatches
from mrr.train.matching import Depths, Matcher, match_loss
from mrr.train.pair import Sizes, build
from mrr.train.run import Run, autocast, seed_everything
from mrr.train.search import aim_at_neighbours, aim_at_words, quiet_before
from mrr.train.text import Corpus, load

DENSE_SHARE = 0.2
# Width and height: high enough for the search, which begins by keeping its distance (search.py).
SMALL = (512, 1024)
PAGE = (1024, 1536)  # whole windows, about as many cells as A4 has (mrr/train/export.py)
BODY_PX = (15.0, 20.0)  # 9 to 12 points at that size
_REUSE = 3  # batches in a row about the same drawn pages
_CHECKED = 4  # pages in one pass of an evaluation: bounds its memory


@dataclass(frozen=True, slots=True)
class MatchPlan:
    """One matching run. n_pages pages a batch, each with n_positive queries and n_near misses.

    twins: share of draws in which one page is a near-duplicate of another.
    """

    folder: Path
    corpus_dir: Path
    tokenizer: PreTrainedTokenizerFast
    steps: int = 3000
    n_pages: int = 3
    n_positive: int = 4
    n_near: int = 3
    twins: float = 0.4
    minutes: float = 0.0  # see fit
    workers: int = 0
    unit: int = 250
    matrix_lr: float = 4e-3
    other_lr: float = 2e-3
    eval_every: int = 200
    seed: int = 0
    sizes: tuple[tuple[int, int], ...] = (SMALL, PAGE)
    model: Sizes = field(default_factory=Sizes)
    check_pages: int = 20


def new_matcher(
    tokenizer: PreTrainedTokenizerFast, lm: Any, image_id: int, depths: Depths
) -> Matcher:
    """A matcher around a language model; the token table is frozen."""
    encoder = PromptEncoder(tokenizer, QWEN_RERANKER)
    prompt = encoder.pair(
        "document-first",
        instruction=DEFAULT_INSTRUCTION,
        query="",
        document=None,
        n_visual_tokens=1,
    )
    before = prompt.prefix[: prompt.prefix.index(image_id)]
    lm.embed_tokens.weight.requires_grad_(False)
    answers = (encoder.positive_id, encoder.negative_id)
    return Matcher(lm, before, encoder.vision_end_id, image_id, answers, depths)


def fresh_matcher(plan: MatchPlan) -> Matcher:
    """A matcher that starts as a search in the first band layer."""
    model = build(plan.tokenizer, plan.model, seed=plan.seed)
    depths = Depths(plan.model.reranker_layers, plan.model.band)
    matcher = new_matcher(
        plan.tokenizer, model.model.language_model, model.config.image_token_id, depths
    )
    rest = matcher.table[matcher.prefix_ids[-1]]
    quiet_before(matcher.lm, depths.match_layer)
    aim_at_words(matcher.lm, depths.match_layer, matcher.table, rest)
    aim_at_neighbours(matcher.lm, depths.match_layer, matcher.table, rest)
    return matcher


def page_sources(
    corpus_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    sizes: tuple[tuple[int, int], ...],
    unit: int,
    part: str = "train",
    style: Style | None = None,
) -> tuple[tuple[int, PageSource], ...]:
    """Small pages first, then larger ones, every `unit` batches; in common faces unless styled."""
    corpus: Corpus = load(corpus_dir, part)
    style = style or Style(tuple(fonts.find(fonts.COMMON)), body_px=BODY_PX)
    made = (PageSource(corpus, tokenizer, ((0, style),), size) for size in sizes)
    return tuple((i * unit, source) for i, source in enumerate(made))


def varied() -> Style:
    """Pages that are trained on: many faces, small print, some light scans.

    So that the language model meets clear cells and blurred ones.
    """
    common = tuple(fonts.find(fonts.COMMON))
    wide = (face for face in fonts.find(fonts.LATIN) if not fonts.is_held_out(face))
    return Style((*wide, *common * 4), body_px=(11.5, 20.0), scan_share=0.1)


def train(plan: MatchPlan, matcher: Matcher, eyes: Eyes, pixels: bool) -> Matcher:
    """Run or resume to plan.steps. Some batches run dense, so that the baseline is fair."""
    device = pick_device()
    seed_everything(plan.seed)
    matcher = matcher.to(device)
    before = tuple(f"layers.{i}." for i in range(matcher.depths.match_layer))
    optimizers = muon.optimizers(
        matcher.named_parameters(), plan.matrix_lr, plan.other_lr, gentle=before
    )
    run = Run(plan.folder)
    run.resume(matcher, optimizers)
    sources = page_sources(plan.corpus_dir, plan.tokenizer, plan.sizes, plan.unit, style=varied())
    drawn = ranking_batches(plan.corpus_dir, plan.tokenizer, pixels, plan.check_pages)
    held_out = next(drawn).to(device)
    name = f"{plan.folder.name}/{plan.seed}"
    coin = random.Random(f"{name}/{run.step}")

    def take(batch: MatchBatch) -> Step:
        dense = coin.random() < DENSE_SHARE
        visual, kept = eyes(batch)
        score, seen = matcher(visual, batch, dense, None if dense else kept)
        loss = match_loss(matcher, score, seen, batch)

        def shown() -> dict[str, float]:
            parts = {key: float(value) for key, value in loss.parts.items()}
            return {**parts, "auc": area(score, batch), "dense": dense, "rows": batch.grid[0]}

        return Step(loss.total, shown, visual.shape[0] * visual.shape[1])

    batches = MatchBatches(
        sources,
        plan.n_pages,
        plan.n_positive,
        plan.n_near,
        name,
        pixels,
        run.step,
        last_batch(plan.steps, plan.minutes),
        reuse=_REUSE if pixels else 1,
        twins=plan.twins,
    )
    fit(
        run,
        matcher,
        optimizers,
        loader(batches, plan.workers),
        steps=plan.steps,
        minutes=plan.minutes,
        take=take,
        evaluate=lambda: evaluate(matcher, eyes, held_out, device),
        eval_every=plan.eval_every,
    )
    return matcher


def area(score: Tensor, batch: MatchBatch) -> float:
    """Probability that a right pair outscores a wrong one, over the batch."""
    right, wrong = score[batch.answer > 0], score[batch.answer == 0]
    if not len(right) or not len(wrong):
        return math.nan
    return round(float((right[:, None] > wrong[None]).float().mean()), 4)


def ranking_batches(
    corpus_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    pixels: bool,
    n_pages: int = 20,
    n_queries: int = 3,
    style: Style | None = None,
) -> Iterator[MatchBatch]:
    """Full-size pages of held-out text that all meet each other's queries: 1 + 19 candidates.

    Every batch is of other pages; there is no end to them.
    """
    sources = page_sources(corpus_dir, tokenizer, (PAGE,), 1, "validation", style)
    return iter(MatchBatches(sources, n_pages, n_queries, 0, "validation", pixels))


@torch.no_grad()
def evaluate(
    matcher: Matcher,
    eyes: Eyes,
    batch: MatchBatch,
    device: torch.device,
    systems: Sequence[str] = ("mini", "dense"),
) -> dict[str, float]:
    """NDCG@5, Hit@1 and AUC of the systems, mini and dense, and of late interaction.

    NDCG and Hit count the queries that exactly one page answers: 1 + the other pages.
    """
    out: dict[str, float] = {}
    torch.manual_seed(0)  # the simulated reader's errors
    matcher.eval()
    with autocast(device):
        visual, kept = eyes(batch)
        late = late_interaction(matcher.table, visual, batch)
        out["late_ndcg5"], out["late_hit1"] = ranking_quality(late, batch.answer)
        for name in systems:
            dense = name == "dense"
            parts = [
                matcher(visual[i : i + _CHECKED], batch, dense, _rows(kept, i, dense))[0]
                for i in range(0, len(visual), _CHECKED)
            ]
            score = torch.cat(parts)
            ndcg, hit = ranking_quality(score, batch.answer)
            out |= {f"{name}_ndcg5": ndcg, f"{name}_hit1": hit, f"{name}_auc": area(score, batch)}
    matcher.train()
    return out


def _rows(kept: Tensor | None, first: int, dense: bool) -> Tensor | None:
    """Pruning of the pages that are checked together; the dense system sees everything."""
    return None if kept is None or dense else kept[first : first + _CHECKED]


def late_interaction(table: Tensor, visual: Tensor, batch: MatchBatch) -> Tensor:
    """(B, Q) sum over a query's pieces of the best cosine with any cell of the page.

    The baseline that needs no language model: what the tower has read, straight off its output.
    """
    pieces = F.normalize(table[batch.ids], dim=-1)  # (Q, S, D)
    cells = F.normalize(visual.float(), dim=-1)
    best = torch.einsum("qsd,bnd->bqsn", pieces, cells).amax(-1)
    return (best * (batch.word_of >= 0)).sum(-1)


def ranking_quality(score: Tensor, answer: Tensor) -> tuple[float, float]:
    """Mean NDCG@5 and Hit@1 over the queries that one page alone answers; score, answer (B, Q)."""
    lone = answer.sum(0) == 1
    score, answer = score[:, lone], answer[:, lone]
    own = (score * answer).sum(0)
    rank = 1 + ((score >= own) & (answer == 0)).sum(0)
    gain = torch.where(rank <= 5, 1 / torch.log2(1 + rank.float()), 0.0)
    return round(float(gain.mean()), 4), round(float((rank == 1).float().mean()), 4)
