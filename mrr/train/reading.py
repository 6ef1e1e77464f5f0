"""Stage a: the vision tower learns to read.

Every 32 x 32 px cell predicts the word pieces whose centres lie in it, as directions in the frozen
table of token embeddings; a cell without text predicts the image placeholder. A head on an inner
block names the character at every 4 x 8 px: dense supervision that teaches glyphs quickly. That
head is not part of the model that ships.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from mrr.model import lexical
from mrr.model.load import pick_device
from mrr.train import confidence, fonts, muon, tower
from mrr.train.data import PageSource, WindowBatch, WindowBatches
from mrr.train.fit import Step, fit, last_batch, loader
from mrr.train.labels import N_CLASSES, SLOTS
from mrr.train.layout import Style
from mrr.train.pair import Sizes, build
from mrr.train.run import Run, autocast, seed_everything
from mrr.train.text import Corpus, load

TAP = 3  # block whose patches feed the character head
DRAWN = (512, 512)  # a page of a batch, px
DRAWN_TO_CUT = (1280, 1280)  # one that is cut to four such squares (mrr/train/data.py)
N_NOISE = 1024  # random pieces added to the softmax's candidates


class Reader(nn.Module):
    """The tower with its training heads. table: (V, D) frozen token embeddings."""

    table: Tensor
    axis: Tensor

    def __init__(self, visual: Any, table: Tensor, blank_id: int):
        super().__init__()
        self.visual = visual
        self.blank_id = blank_id
        self.register_buffer("table", table.detach().clone(), persistent=False)
        self.register_buffer("axis", lexical.confidence_axis(self.table), persistent=False)
        self.char_head = nn.Linear(visual.config.hidden_size, SLOTS * N_CLASSES)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (n, 256, 256) uint8 to cells (n * 64, D), characters."""
        cells, taps = tower.encode(self.visual, windows, TAP)
        characters = self.char_head(F.rms_norm(taps, taps.shape[-1:]))
        return cells.flatten(0, 1), characters.unflatten(-1, (SLOTS, N_CLASSES))


@dataclass(frozen=True, slots=True)
class ReadingLoss:
    """Parts of the loss and what they say; each a scalar tensor."""

    total: Tensor
    pieces: Tensor
    characters: Tensor
    aim: Tensor
    confidence: Tensor
    recall: Callable[[], float]

    def shown(self) -> dict[str, float]:
        """The parts as numbers."""
        return {
            "pieces": float(self.pieces),
            "characters": float(self.characters),
            "aim": float(self.aim),
            "confidence": float(self.confidence),
            "recall": self.recall(),
        }


def piece_loss(
    reader: Reader, cells: Tensor, batch: WindowBatch, generator: torch.Generator | None = None
) -> tuple[Tensor, Callable[[], float]]:
    """Softmax over candidate pieces for every cell. Returns (loss, recall among candidates).

    The candidates are the batch's own pieces and N_NOISE random ones. Pieces that only reach into
    a cell are neither right nor wrong there.
    """
    cell, piece = batch.pieces.T.contiguous()
    counts = torch.bincount(cell, minlength=len(cells))
    blank = (counts == 0).nonzero().squeeze(1)
    noise = torch.randint(len(reader.table), (N_NOISE,), generator=generator).to(piece.device)
    special = torch.tensor([reader.blank_id], device=piece.device)
    candidates = torch.cat([piece, noise, special]).unique()
    logits = reader.log_scale.exp() * F.normalize(cells, dim=-1) @ reader.table[candidates].T
    over_cell, over_piece = batch.overlaps.T.contiguous()
    known = torch.isin(over_piece, candidates)
    column = torch.searchsorted(candidates, over_piece[known])
    hidden = torch.zeros_like(logits, dtype=torch.bool)
    hidden[over_cell[known], column] = True
    right = torch.searchsorted(candidates, piece)
    hidden[cell, right] = False
    log_p = logits.float().masked_fill(hidden, -1e4).log_softmax(-1)
    blank_column = torch.searchsorted(candidates, special)
    text_loss = -(log_p[cell, right] / counts[cell]).sum() / (counts > 0).sum().clamp(min=1)
    blank_loss = -log_p[blank, blank_column].mean() if len(blank) else text_loss * 0

    @torch.no_grad()
    def recall() -> float:
        top = log_p.topk(3, -1).indices  # a cell rarely holds more than three centres
        n_top = counts[cell].clamp(max=3)
        places = torch.arange(3, device=cell.device)
        hits = (top[cell] == right[:, None]) & (places < n_top[:, None])
        return float(hits.any(1).float().mean())

    return text_loss + 0.1 * blank_loss, recall


def aim_loss(reader: Reader, cells: Tensor, batch: WindowBatch) -> Tensor:
    """1 - cosine to the sum of the cell's pieces, or to the placeholder where it is empty.

    The softmax is blind to what all cells share; matching by dot product is not.
    """
    cell, piece = batch.pieces.T.contiguous()
    wanted = torch.zeros_like(cells, dtype=torch.float32)
    wanted.index_add_(0, cell, reader.table[piece])
    empty = torch.bincount(cell, minlength=len(cells)) == 0
    wanted[empty] = reader.table[reader.blank_id]
    miss = 1 - F.cosine_similarity(cells.float(), wanted, dim=-1)
    return miss[~empty].mean() + (0.1 * miss[empty].mean() if empty.any() else 0.0)


def character_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy of the fine grid; blanks count a third."""
    weight = torch.ones(N_CLASSES, device=logits.device)
    weight[0] = 0.3
    return F.cross_entropy(logits.flatten(0, -2).float(), classes.flatten().long(), weight)


def reading_loss(reader: Reader, batch: WindowBatch, character_weight: float = 1.0) -> ReadingLoss:
    """All losses of one batch."""
    cells, character_logits = reader(batch.windows)
    read, level = lexical.split_confidence(cells, reader.axis)
    pieces, recall = piece_loss(reader, read, batch)
    characters = character_loss(character_logits, batch.characters)
    # Keep cells at the length of word embeddings, whatever the scale of the softmax.
    length = (read.norm(dim=-1) - 1.0).pow(2).mean()
    aim = aim_loss(reader, read, batch)
    sure = confidence.confidence_loss(read, level, reader.table)
    total = pieces + character_weight * characters + 2.0 * aim + 0.05 * length + 2.0 * sure
    return ReadingLoss(
        total, pieces.detach(), characters.detach(), aim.detach(), sure.detach(), recall
    )


@torch.no_grad()
def evaluate(reader: Reader, batches: list[WindowBatch], device: torch.device) -> dict[str, float]:
    """Recall of pieces against the whole vocabulary; accuracy of characters where there is ink."""
    hit = total = right = printed = 0
    miss = []
    for batch in batches:
        batch = batch.to(device)
        with autocast(device):
            cells, characters = reader(batch.windows)
        cells, level = lexical.split_confidence(cells.float(), reader.axis)
        miss.append(float(confidence.confidence_loss(cells, level, reader.table)))
        scores = F.normalize(cells, dim=-1) @ reader.table.T
        cell, piece = batch.pieces.unbind(1)
        n_top = torch.bincount(cell, minlength=len(cells))[cell]
        rank = (scores[cell] > scores[cell, piece][:, None]).sum(1)
        hit += int((rank < n_top).sum())
        total += len(piece)
        ink = batch.characters > 0
        right += int(((characters.argmax(-1) == batch.characters) & ink).sum())
        printed += int(ink.sum())
    return {
        "cell_recall": round(hit / max(1, total), 4),
        "char_accuracy": round(right / max(1, printed), 4),
        "confidence_miss": round(sum(miss) / len(miss), 4),
    }


def curriculum(unit: int) -> tuple[tuple[int, Style], ...]:
    """One face at one size, then the common faces, then pages, then many faces and light scans.

    unit: batches of the first step; starting wide was measured to be too hard.
    """
    common, many = fonts.find(fonts.COMMON), fonts.find(fonts.LATIN)
    upright = tuple(face for face in common if not face.bold and not face.italic)
    sans = tuple(face for face in upright if face.family == "liberationsans") or upright
    wide = tuple(face for face in many if not fonts.is_held_out(face))
    return (
        (0, Style(sans, body_px=(14.0, 16.0), dense=1.0, dark_share=0.0)),
        (unit, Style(upright, body_px=(13.0, 17.0), dense=1.0, dark_share=0.0)),
        (4 * unit, Style(tuple(common), body_px=(12.5, 18.0), dense=0.6)),
        (10 * unit, Style(tuple(common), body_px=(11.0, 20.0), dense=0.4, scan_share=0.1)),
        (16 * unit, Style((*wide, *common * 4), body_px=(10.5, 21.0), dense=0.7, scan_share=0.2)),
    )


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """One reading run. pages: squares of `size` in a batch, or, with reuse, cut out of `size`.

    reuse: batches that a drawn page is in. minutes: see fit.
    """

    folder: Path
    corpus_dir: Path
    tokenizer: PreTrainedTokenizerFast
    steps: int = 4800
    pages: int = 4
    reuse: int = 1
    minutes: float = 0.0
    workers: int = 1
    unit: int = 150
    matrix_lr: float = 1.5e-2
    other_lr: float = 2e-3
    eval_every: int = 250
    seed: int = 0
    size: tuple[int, int] = DRAWN
    sizes: Sizes = field(default_factory=Sizes)
    check_pages: int = 4


def bare_reader(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, seed: int) -> Reader:
    """A reader as built, for weights to be loaded into."""
    model = build(tokenizer, sizes, embedder=True, seed=seed)
    table = model.model.language_model.embed_tokens.weight
    return Reader(model.model.visual, table, model.config.image_token_id)


def whiten(reader: Reader, plan: ReadingPlan, source: PageSource) -> None:
    """Start the patch embedding from pages such as will be read."""
    pages = [source.page(f"whiten/{plan.seed}/{i}", i * plan.unit) for i in range(24)]
    tower.whiten_patches(reader.visual, torch.stack([torch.tensor(page.pixels) for page in pages]))


def validation_sets(plan: ReadingPlan, corpus: Corpus) -> dict[str, list[WindowBatch]]:
    """Whole pages of held-out text: in common faces, and in faces never trained on."""
    styles = {
        "common": Style(tuple(fonts.find(fonts.COMMON)), body_px=(13.0, 17.0)),
        "unseen_faces": Style(
            tuple(fonts.find(fonts.HELD_OUT)) or tuple(fonts.find()), body_px=(13.0, 17.0)
        ),
    }
    sets = {}
    for name, style in styles.items():
        source = PageSource(corpus, plan.tokenizer, ((0, style),))
        sets[name] = list(WindowBatches(source, 1, f"validation/{name}", 0, plan.check_pages))
    return sets


def check(plan: ReadingPlan, reader: Reader) -> dict[str, dict[str, float]]:
    """What the reader reads of whole pages of held-out text, three times as many as in training."""
    many = replace(plan, check_pages=3 * plan.check_pages)
    sets = validation_sets(many, load(plan.corpus_dir, "validation"))
    return {name: evaluate(reader, held, pick_device()) for name, held in sets.items()}


def train(plan: ReadingPlan) -> Reader:
    """Run or resume the reading stage to plan.steps. Returns the reader."""
    device = pick_device()
    seed_everything(plan.seed)
    styles = curriculum(plan.unit)
    source = PageSource(load(plan.corpus_dir, "train"), plan.tokenizer, styles, plan.size)
    held_out = validation_sets(plan, load(plan.corpus_dir, "validation"))
    reader = bare_reader(plan.tokenizer, plan.sizes, plan.seed).to(device)
    optimizers = muon.optimizers(
        reader.named_parameters(),
        plan.matrix_lr,
        plan.other_lr,
        slow=("patch_embed",),
        slow_lr=3e-4,
    )
    run = Run(plan.folder)
    if not run.resume(reader, optimizers):
        whiten(reader, plan, source)

    def take(batch: WindowBatch) -> Step:
        # Characters lead at first; once glyphs are known, pieces are what counts.
        loss = reading_loss(reader, batch, max(0.3, 1 - run.step / (10 * plan.unit)))
        return Step(loss.total, loss.shown, len(batch.windows) * tower.CELLS**2)

    def held_out_quality() -> dict[str, dict[str, float]]:
        return {name: evaluate(reader, held, device) for name, held in held_out.items()}

    batches = WindowBatches(
        source,
        plan.pages,
        f"reading/{plan.seed}",
        run.step,
        last_batch(plan.steps, plan.minutes),
        plan.reuse,
    )
    fit(
        run,
        reader,
        optimizers,
        loader(batches, plan.workers),
        steps=plan.steps,
        minutes=plan.minutes,
        take=take,
        evaluate=held_out_quality,
        eval_every=plan.eval_every,
    )
    return reader
