"""One checkpoint under one configuration: pictures to page K/V, queries to logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrr.config import RerankConfig, digest
from mrr.errors import InvalidConfig, NotFinite
from mrr.model.band import Suffix, before_band, run_band, run_before_band
from mrr.model.dense import run_original
from mrr.model.graphs import Fork, Graphs, Inputs, put, round_up
from mrr.model.head import RelevanceHead
from mrr.model.joint import run_joint
from mrr.model.kv import KVPage
from mrr.model.load import MAX_VISUAL_TOKENS, LoadedModel
from mrr.model.page_stack import PageStack
from mrr.model.prefix import InstructionKV, encode_instruction, encode_page
from mrr.model.prompt import Order, Prompt, PromptEncoder
from mrr.model.vision import Pixels, Sight, preprocess
from mrr.timing import Stages

# Raised whenever the code changes what a page's K/V is, so that older entries become misses.
FORMAT = 3
# Pages' columns in one batch: bounds masks, and on a GPU the K/V side by side (2 GB for the band
# of a 2B model in bfloat16).
_MAX_BATCH_COLUMNS = 65_536
# Lengths of captured queries are a multiple of this: few for the graphs' sake, and little padding.
_SUFFIX_MULTIPLE = 2
_serials = itertools.count()


class Scorer:
    """The tensors' side of the engine; it knows nothing of files, stores or ranking.

    image_is: which side of the pair the picture is, "document" to rank pages for a query,
    "query" to rank texts for a picture. graphs: the model's CUDA graphs, used for one text's pass;
    None is without.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        encoder: PromptEncoder,
        config: RerankConfig,
        image_is: str = "document",
        graphs: Graphs | None = None,
    ) -> None:
        self.loaded = loaded
        self.config = config = config.resolve(loaded.n_layers)
        self.encoder = encoder
        self.head = RelevanceHead(loaded, encoder.positive_id, encoder.negative_id)
        self.image_is = image_is
        self.order: Order = _order(config, image_is)
        self.image_first = self.order == f"{image_is}-first"
        self.min_pixels, self.max_pixels = _pixel_bounds(loaded, config)
        self.graphs = graphs
        self._serial = next(_serials)  # unlike id(self), never another's later on
        self._instruction: InstructionKV | None = None

    @property
    def reads_instruction(self) -> bool:
        """Whether the prompt has a place for the instruction."""
        return "{instruction}" in self.encoder.words(self.order)

    def fingerprint(self, **context: object) -> str:
        """Identity of page K/V made here; context adds what decides pruning (the embedder)."""
        seed = self.config.seed if self.config.pruner == "random" else None
        return digest(
            format=FORMAT,
            band=self.config.band,
            keep=[self.config.keep_ratio, self.config.pruner, seed],
            kv_dtype=self.config.kv_dtype,
            instruction=self.config.instruction if self.reads_instruction else None,
            model=self.loaded.digest,
            dtype=str(self.loaded.dtype),
            prompt=[self.encoder.template.name, self.encoder.words(self.order)],
            pixels=[self.min_pixels, self.max_pixels, self.loaded.cell],
            versions=[version(p).split(".")[0] for p in ("torch", "transformers")],
            **context,
        )

    def preprocess(self, image: Image.Image) -> Pixels:
        """The page as this model sees it."""
        return preprocess(self.loaded, image, self.min_pixels, self.max_pixels)

    def sight(self, image: Image.Image, stages: Stages) -> Sight:
        """The same, with the tower's output; both computed when they are asked for."""
        return Sight(self.loaded, image, self.min_pixels, self.max_pixels, stages)

    def prompt(self, text: str, n_visual_tokens: int) -> Prompt:
        """The whole prompt of one pair of the picture and a text."""
        return self.encoder.pair(
            self.order,
            instruction=self.config.instruction,
            query=None if self.image_is == "query" else text,
            document=None if self.image_is == "document" else text,
            n_visual_tokens=n_visual_tokens,
        )

    def encode(self, sight: Sight, kept: np.ndarray, stages: Stages) -> KVPage:
        """Vision tower and prefix pass of one page. Needs an order that puts the image first."""
        assert self.image_first
        pixels, visual = sight.pixels, sight.visual
        with stages("prefix"):
            return encode_page(
                self.loaded,
                self.encoder,
                self.config,
                self.prompt("", pixels.n_tokens),
                pixels,
                visual,
                kept,
            )

    def instruction(self) -> InstructionKV:
        """K/V of the shared head of every prompt, computed once."""
        if self._instruction is None:
            prompt = self.prompt("", 1)
            self._instruction = encode_instruction(self.loaded, self.config, prompt)
        return self._instruction

    def score(self, texts: Sequence[str], pages: Sequence[KVPage], stages: Stages) -> np.ndarray:
        """Logits (N,) float32 of one text against N pages, or of N texts against one page."""
        by_graph = self.graphs is not None and len(texts) == 1
        with stages("query"):
            instruction = self.instruction()
            ids = [self.prompt(t, 1).suffix for t in texts]
            fork = Fork(self.loaded.device)  # the first pages are put in place beside the query
            if by_graph:
                suffix = self._captured_query(ids[0])
            else:
                suffix = run_before_band(self.loaded, self.config, ids)
        if len(texts) > 1:
            pages = list(pages) * len(texts)
        logits = np.empty(len(pages), dtype=np.float32)
        n = suffix.hidden.shape[1]
        columns = [PageStack.width(instruction, [page], n) for page in pages]
        for batch in batches(columns, _MAX_BATCH_COLUMNS):
            some = [pages[i] for i in batch]
            with stages("band"):
                if by_graph:  # it ends with the logits
                    read = self._captured_band(suffix, some, fork)
                else:
                    part = suffix if len(texts) == 1 else suffix.select(batch)
                    hidden = run_band(self.loaded, self.config, part, instruction, some)
            with stages("head"):
                logits[batch] = self._read(read if by_graph else self.head.logits(hidden))
            fork = Fork(self.loaded.device)
        return logits

    def _captured_query(self, ids: list[int]) -> Suffix:
        """`run_before_band` for one text, in a graph where its padded length has one."""
        assert self.graphs is not None
        device, n = self.loaded.device, round_up(len(ids), _SUFFIX_MULTIPLE)
        padded = torch.tensor([ids + [0] * (n - len(ids))])

        def write(into: Inputs | None) -> Inputs:
            return (put(padded, device, None if into is None else into[0]),)

        hidden = self.graphs.run((self._serial, "query", n), self.query_pass, write)
        return Suffix(hidden, torch.tensor([len(ids) - 1]))

    def _captured_band(self, suffix: Suffix, pages: Sequence[KVPage], fork: Fork) -> Tensor:
        """Logits (N,) of one text, in a graph where the padded shape of the pages has one.

        suffix: its `last` on the host. fork: since when nothing was queued that makes the pages or
        reads the graph's K/V.
        """
        assert self.graphs is not None
        device, n = self.loaded.device, suffix.hidden.shape[1]
        instruction = self.instruction()

        def write(into: Inputs | None) -> Inputs:
            if into is None:
                ready = PageStack.of(self.loaded, instruction, pages, n)
                return suffix.hidden.clone(), put(suffix.last, device, None), *ready.tensors
            hidden, last, *there = into
            with fork.beside():
                PageStack.of(self.loaded, instruction, pages, n, into=PageStack(*there))
            hidden.copy_(suffix.hidden)
            put(suffix.last, device, last)
            return into

        # Instruction, band and head are this object's.
        key = (self._serial, "band", len(pages), PageStack.width(instruction, pages, n), n)
        return self.graphs.run(key, self.band_pass, write)

    def query_pass(self, ids: Tensor) -> Tensor:
        """Ids (1, n) to hidden states before the band (1, n, d), by the GPU alone."""
        return before_band(self.loaded, self.config, ids)

    def band_pass(self, hidden: Tensor, last: Tensor, *stacked: Tensor) -> Tensor:
        """Hidden states (1, n, d) to logits (N,) against a PageStack's tensors, by the GPU alone.

        last: (1,) int64, the text's last token.
        """
        suffix, pages = Suffix(hidden, last), PageStack(*stacked)
        state = run_band(self.loaded, self.config, suffix, self.instruction(), pages)
        return self.head.logits(state)

    def score_joint(self, text: str, sight: Sight, kept: np.ndarray, stages: Stages) -> float:
        """Logit of one pair in an order that cannot be cached, with every other part on."""
        pixels, visual = sight.pixels, sight.visual
        prompt = self.prompt(text, pixels.n_tokens)
        with stages("layers"):
            hidden = run_joint(self.loaded, self.encoder, self.config, prompt, pixels, visual, kept)
        with stages("head"):
            return float(self._read(self.head.logits(hidden))[0])

    def score_original(
        self, texts: Sequence[str], pixels: Sequence[Pixels], stages: Stages
    ) -> np.ndarray:
        """Logits (N,) of N pairs through the stock forward pass in one batch.

        The tower is timed by hooks, since the stock forward runs it inside; "layers" is the rest.
        """
        prompts = [self.prompt(t, p.n_tokens) for t, p in zip(texts, pixels, strict=True)]
        tower = Stages(self.loaded.device)
        stages.ms.setdefault("vision", 0.0)  # it comes first, though its time is known last
        with stages("layers"), tower.module("vision", self.loaded.model.model.visual):
            hidden = run_original(self.loaded, prompts, pixels, self.encoder.image_id)
        stages.ms["vision"] += tower.ms["vision"]
        stages.ms["layers"] -= tower.ms["vision"]
        with stages("head"):
            return self._read(self.head.normed_logits(hidden))

    @staticmethod
    def _read(logits: Tensor) -> np.ndarray:
        values = logits.cpu().numpy()
        if not np.isfinite(values).all():
            raise NotFinite("A relevance logit is not finite; the weights may be damaged.")
        return values


def batches(lengths: Sequence[int], max_columns: int) -> list[list[int]]:
    """Indices grouped so that rows padded to their longest stay within max_columns a group.

    Similar lengths share a group, which keeps the padding small.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= max_columns:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _pixel_bounds(loaded: LoadedModel, config: RerankConfig) -> tuple[int, int]:
    """(least, most) pixels of a page, the checkpoint's own where config leaves them open.

    Raises InvalidConfig where they exclude each other or make a page too small or too large.
    """
    least = config.min_pixels or loaded.min_pixels
    most = config.max_pixels or loaded.max_pixels
    token = loaded.cell**2
    if not token <= most <= MAX_VISUAL_TOKENS * token:
        raise InvalidConfig(
            f"max_pixels is {most}; this model sees pages of 1 to {MAX_VISUAL_TOKENS} visual "
            f"tokens, {token} to {MAX_VISUAL_TOKENS * token} pixels."
        )
    if least > most:
        raise InvalidConfig(
            f"Pages would have at least {least} and at most {most} pixels; set min_pixels and "
            "max_pixels so that the first is not the larger. What is left out is the checkpoint's."
        )
    return least, most


def _order(config: RerankConfig, image_is: str) -> Order:
    """Vision-first puts the picture first, whichever side of the pair it is (section 3.1)."""
    if config.order != "vision-first":
        return config.order
    return "query-first" if image_is == "query" else "document-first"
