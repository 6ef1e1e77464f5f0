"""The bundled pair from nothing, stage by stage. Every stage resumes; all live in one folder.

corpus/ tokenizer/    text, and the pieces it is cut into
reading/              a: the tower learns to read
matching/             b: the language model learns to match, on simulated visual tokens
joined/               b: the same on the tower's own visual tokens
embedding/ seeing/    c: the embedder, simulated, then on the tower's visual tokens
pruned/               d: the reranker with half of the visual tokens
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from mrr.config import DEFAULT_INSTRUCTION
from mrr.errors import InputRejected
from mrr.model.load import pick_device
from mrr.model.prompt import EMBEDDER_PROMPT, QWEN_RERANKER
from mrr.train import (
    begin,
    embed_train,
    export,
    eyes,
    fonts,
    held_out,
    match_train,
    reading,
    rendered,
    text,
    tokens,
)
from mrr.train.embedding import PageEmbedder, keep_half
from mrr.train.match_train import PAGE
from mrr.train.matching import Matcher, SimulatedReader
from mrr.train.pair import Sizes, build, count_parameters
from mrr.train.run import current_commit, read_state

logger = logging.getLogger(__name__)


_STAGES = ("reading", "matching", "joined", "embedding", "seeing", "pruned")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything: steps of each stage, sizes of batches, worker processes.

    minutes: if given, each stage that is run takes so long instead of its steps (fit). rate: of
    learning of the language model, to polish one that is trained. twins: see MatchPlan.
    """

    read_steps: int = 4800
    read_pages: int = 4
    read_reuse: int = 1
    match_steps: int = 300
    join_steps: int = 400
    embed_steps: int = 800
    see_steps: int = 400
    prune_steps: int = 900
    match_pages: int = 3
    embed_pages: int = 12
    minutes: float = 0.0
    workers: int = 1
    unit: int = 150
    rate: float = 1.0
    twins: float = 0.4
    seed: int = 0
    vocab_size: int = 8192
    check_pages: int = 20
    check_draws: int = 4
    sizes: Sizes = field(default_factory=Sizes)


class Workshop:
    """The stages over one folder."""

    def __init__(self, root: Path, scale: Scale):
        self.root, self.scale = root, scale

    @property
    def corpus_dir(self) -> Path:
        return self.root / "corpus"

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The run's own. Raises InputRejected where there is none yet."""
        folder = self.root / "tokenizer"
        if not folder.exists():  # transformers would ask the hub for it
            raise InputRejected(f"{self.root} holds no tokenizer yet; run the stage corpus first.")
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)

    def make_corpus(self, roots: Iterable[Path] | None = None) -> None:
        """Collect text, and train the tokenizer on it."""
        if not (self.corpus_dir / "words.json").exists():
            text.build(self.corpus_dir, roots)
        if (self.root / "tokenizer").exists():
            return
        template = QWEN_RERANKER.document_first + EMBEDDER_PROMPT + DEFAULT_INSTRUCTION
        lines = tokens.lines_for_pieces(self.corpus_dir, self.scale.seed)
        made = tokens.train_tokenizer(lines, template, self.scale.vocab_size)
        made.save_pretrained(self.root / "tokenizer")

    def begin_from(self, pair: Path, read_step: int) -> None:
        """Begin every stage from an exported pair; reading goes on at read_step of its curriculum.

        The tokenizer is the pair's. Raises InputRejected where the run has a tokenizer already.
        """
        if (self.root / "tokenizer").exists():
            raise InputRejected(f"{self.root} holds a run already; begin in another folder.")
        begin.remember(pair, self.root, read_step)
        reranker, embedder = begin.load_pair(pair)
        made = PreTrainedTokenizerFast.from_pretrained(
            pair / "tiny-reranker", local_files_only=True
        )
        made.save_pretrained(self.root / "tokenizer")
        reader = reading.bare_reader(made, self.scale.sizes, self.scale.seed)
        begin.save_start(reader, "visual", reranker.visual, self.root / "reading", read_step)
        matcher = match_train.fresh_matcher(self._match_plan("matching", 0))
        for stage in ("matching", "joined"):
            begin.save_start(matcher, "lm", reranker.language_model, self.root / stage, 0)
        page_embedder = self._fresh_embedder()
        for stage in ("embedding", "seeing"):
            begin.save_start(page_embedder, "lm", embedder.language_model, self.root / stage, 0)

    def read(self) -> reading.Reader:
        """Stage a."""
        return reading.train(self._reading_plan())

    def _reading_plan(self) -> reading.ReadingPlan:
        """Pages that are used again are drawn larger, for less of them is border."""
        again = self.scale.read_reuse > 1
        return reading.ReadingPlan(
            self.root / "reading",
            self.corpus_dir,
            self.tokenizer,
            steps=self.scale.read_steps,
            pages=max(1, self.scale.read_pages // 4) if again else self.scale.read_pages,
            size=reading.DRAWN_TO_CUT if again else reading.DRAWN,
            reuse=self.scale.read_reuse,
            minutes=self.scale.minutes,
            workers=self.scale.workers,
            unit=self.scale.unit,
            seed=self.scale.seed,
            sizes=self.scale.sizes,
            check_pages=max(1, self.scale.check_pages // 5),
        )

    def match(self) -> Matcher:
        """Stage b on simulated visual tokens: it need not wait for the tower."""
        plan = self._match_plan("matching", self.scale.match_steps)
        matcher = match_train.fresh_matcher(plan).to(pick_device())
        look = eyes.simulated(matcher.table, matcher.image_id, SimulatedReader())
        return match_train.train(plan, matcher, look, pixels=False)

    def join(self) -> Matcher:
        """Stage b on the trained tower's visual tokens, at full page size."""
        plan = self._match_plan("joined", self.scale.join_steps, seeing=True)
        self._hand_on("matching", "joined")
        matcher = match_train.fresh_matcher(plan)
        return match_train.train(plan, matcher, eyes.real(self._tower()), pixels=True)

    def embed(self) -> PageEmbedder:
        """Stage c on simulated visual tokens."""
        plan = self._embed_plan("embedding", self.scale.embed_steps)
        embedder = self._fresh_embedder().to(pick_device())
        blank = embedder.encoder.image_id
        table = embedder.lm.embed_tokens.weight.detach()
        look = eyes.simulated(table, blank, SimulatedReader())
        return embed_train.train(plan, embedder, look, pixels=False)

    def see(self) -> PageEmbedder:
        """Stage c on the trained tower's visual tokens."""
        self._hand_on("embedding", "seeing")
        plan = self._embed_plan("seeing", self.scale.see_steps, seeing=True)
        look = eyes.real(self._tower())
        return embed_train.train(plan, self._fresh_embedder(), look, pixels=True)

    def prune(self) -> Matcher:
        """Stage d: the joined reranker sees the half of the page that the embedder keeps."""
        plan = self._match_plan("pruned", self.scale.prune_steps, seeing=True)
        self._hand_on("joined", "pruned")
        matcher = match_train.fresh_matcher(plan)
        embedder = self.load(self._fresh_embedder(), "seeing")

        def keep(visual: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
            return keep_half(embedder, visual, grid)

        look = eyes.pruned(eyes.real(self._tower()), keep)
        return match_train.train(plan, matcher, look, pixels=True)

    def export(self, folder: Path, stage: str = "pruned") -> dict[str, int]:
        """Write tiny-reranker and tiny-embedder under folder. Returns bytes of each."""
        reader, tokenizer = self._reader(), self.tokenizer
        tower = reader.visual
        plan = self._match_plan(stage, 0)
        matcher = self.load(match_train.fresh_matcher(plan), stage)
        embedder = self.load(self._fresh_embedder(), "seeing")
        keep_ratio = 0.5 if stage == "pruned" else 1.0
        reranker_model = build(tokenizer, self.scale.sizes)
        embedder_model = build(tokenizer, self.scale.sizes, embedder=True)
        export.join(reranker_model, tower, matcher.lm)
        export.join(embedder_model, tower, embedder.lm)
        models = {"tiny-reranker": reranker_model, "tiny-embedder": embedder_model}
        training = {
            "runs": self._runs(),
            "parameters": {name: count_parameters(model) for name, model in models.items()},
            "reading": reading.check(self._reading_plan(), reader),
            "rendered": rendered.quality(
                self.corpus_dir,
                tokenizer,
                matcher,
                embedder,
                tower,
                self.scale.check_pages,
                self.scale.check_draws,
            ),
        }
        sections = {
            "tiny-reranker": export.trained_section(self.scale.sizes, keep_ratio),
            "tiny-embedder": {"pooling": "lexical"},
        }
        return {
            name: export.export(model, tokenizer, folder / name, training, sections[name])
            for name, model in models.items()
        }

    def draw_held_out(self, folder: Path, n_pages: int, n_queries: int, unseen_faces: bool) -> int:
        """Pages of held-out text, labelled, for `mrr eval`; returns how many queries."""
        if unseen_faces and not fonts.find(fonts.HELD_OUT):
            kept = ", ".join(fonts.HELD_OUT)
            raise InputRejected(f"None of the faces kept for this is here: {kept}. Install one.")
        style = rendered.unseen_faces() if unseen_faces else None
        sources = match_train.page_sources(
            self.corpus_dir, self.tokenizer, (PAGE,), 1, "validation", style
        )
        return held_out.write(sources[0][1], folder, n_pages, n_queries, self.scale.seed)

    def _runs(self) -> list[dict[str, Any]]:
        """What was done in this run, after what was done before it was begun from a pair."""
        begun = begin.begun(self.root)
        done = {name: read_state(self.root / name) for name in _STAGES}
        stages = {
            name: {
                "steps": state["step"] - (begun.read_step if name == "reading" else 0),
                "minutes": round(state["train_s"] / 60, 1),
                "device": state["device"],
            }
            for name, state in done.items()
            if state is not None and state["train_s"] > 0
        }
        this = {
            "stages": stages,
            "seed": self.scale.seed,
            "commit": current_commit(),
        }
        return [*begun.runs, this]

    def load(self, module: Any, stage: str) -> Any:
        """The module with a stage's weights, on the device, frozen."""
        weights = self._state(stage)["model"]
        module.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return module.to(pick_device()).eval().requires_grad_(False)

    def _reader(self) -> reading.Reader:
        fresh = reading.bare_reader(self.tokenizer, self.scale.sizes, self.scale.seed)
        reader: reading.Reader = self.load(fresh, "reading")
        return reader

    def _tower(self) -> nn.Module:
        return self._reader().visual

    def _fresh_embedder(self) -> PageEmbedder:
        return embed_train.fresh_embedder(self.tokenizer, self.scale.sizes, self.scale.seed)

    def _state(self, stage: str) -> dict[str, Any]:
        state = read_state(self.root / stage)
        if state is None:
            raise InputRejected(f"Stage {stage} has no checkpoint yet; run it first.")
        return state

    def _hand_on(self, done: str, following: str) -> None:
        """Begin a stage from the weights of the one before."""
        target = self.root / following / "checkpoint.pt"
        if read_state(target.parent) is not None:
            return
        state = self._state(done)
        fresh = {"model": state["model"], "optimizers": [], "step": 0, "train_s": 0.0, "n_cells": 0}
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(fresh, target.with_suffix(".part"))
        shutil.move(target.with_suffix(".part"), target)

    def _match_plan(self, name: str, steps: int, seeing: bool = False) -> match_train.MatchPlan:
        scale = self.scale
        return match_train.MatchPlan(
            self.root / name,
            self.corpus_dir,
            self.tokenizer,
            steps=steps,
            n_pages=scale.match_pages,
            minutes=scale.minutes,
            workers=scale.workers,
            unit=scale.unit,
            twins=scale.twins,
            matrix_lr=scale.rate * (2e-3 if seeing else 4e-3),
            other_lr=scale.rate * (1e-3 if seeing else 2e-3),
            seed=scale.seed,
            model=scale.sizes,
            check_pages=scale.check_pages,
        )

    def _embed_plan(self, name: str, steps: int, seeing: bool = False) -> embed_train.EmbedPlan:
        scale = self.scale
        return embed_train.EmbedPlan(
            self.root / name,
            self.corpus_dir,
            self.tokenizer,
            steps=steps,
            n_pages=scale.embed_pages,
            minutes=scale.minutes,
            workers=scale.workers,
            unit=scale.unit,
            matrix_lr=2e-3 if seeing else 4e-3,
            seed=scale.seed,
            sizes=((512, 512), PAGE),
            check_pages=scale.check_pages,
        )
