"""One checkpoint under one configuration: pictures to page K/V, queries to logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrr.config import RerankConfig, digest
from mrr.errors import InvalidConfig, NotFinite
from mrr.model.band import Suffix, before_band, run_band, run_before_band
from mrr.model.dense import run_original
from mrr.model.graphs import Graphs, Inputs, beside, put
from mrr.model.head import RelevanceHead
from mrr.model.joint import run_joint
from mrr.model.kv import KVPage
from mrr.model.load import MAX_VISUAL_TOKENS, LoadedModel
from mrr.model.page_stack import PageStack, width
from mrr.model.prefix import InstructionKV, encode_instruction, encode_page
from mrr.model.prompt import Order, Prompt, PromptEncoder
from mrr.model.vision import Pixels, Sight, preprocess
from mrr.timing import Stages

# Raised whenever the code changes what a page's K/V is, so that older entries become misses.
FORMAT = 3
# Pages' columns in one batch: bounds masks, and on a GPU the K/V side by side (2 GB for the band
# of a 2B model in bfloat16).
_MAX_BATCH_COLUMNS = 65_536
# What torch joins is counted in 32 bits, or it is copied piece by piece.
_MAX_NUMBERS = 2**31 - 1
_serials = itertools.count()


@dataclass(frozen=True, slots=True)
class Reading:
    """Texts that have been read as far as the band.

    mark: on a GPU, a mark from before that in its queue. What makes or reads pages is queued before
    it, or done: what waits for the mark alone may put pages in place.
    """

    suffix: Suffix
    mark: torch.cuda.Event | None


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
        # As long as a graph reads them: texts that come to as many columns share one.
        self._stacks: WeakValueDictionary[tuple[int, int], Tensor] = WeakValueDictionary()

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
        return self.score_read(self.read(texts, stages), pages, stages)

    def read(self, texts: Sequence[str], stages: Stages) -> Reading:
        """Texts as far as the band, which is the same whatever the pages.

        Raises InputRejected for a text that cannot be kept apart from control tokens.
        """
        if self._instruction is None:
            with stages("query"):
                self.instruction()
        with stages("query") as mark:
            ids = [self.prompt(t, 1).suffix for t in texts]
            if self.graphs is None or len(texts) > 1:
                return Reading(run_before_band(self.loaded, self.config, ids), mark)
            hidden = self._captured_query(self.graphs, ids[0])
            return Reading(Suffix(hidden, torch.tensor([len(ids[0]) - 1])), mark)

    def score_read(self, reading: Reading, pages: Sequence[KVPage], stages: Stages) -> np.ndarray:
        """Logits (N,) float32 of texts that were read, as `score`. Raises NotFinite.

        On a GPU nothing that makes the pages may have been queued since, and not be done.
        """
        instruction, suffix = self.instruction(), reading.suffix
        n_texts, n, _ = suffix.hidden.shape
        graphs = self.graphs if n_texts == 1 else None
        if n_texts > 1:
            pages = list(pages) * n_texts
        logits = np.empty(len(pages), dtype=np.float32)
        lengths = [page.n_tokens for page in pages]
        columns = {length: width(instruction.n_tokens + length + n) for length in set(lengths)}
        per_column = instruction.both[:, :, 0].numel()
        most = min(_MAX_BATCH_COLUMNS, _MAX_NUMBERS // per_column)
        for batch in batches([columns[length] for length in lengths], most):
            some = [pages[i] for i in batch]
            with stages("band"):
                if graphs is not None:  # its graph ends with the logits
                    there = self._captured_band(graphs, reading, some)
                else:
                    part = suffix if n_texts == 1 else suffix.select(batch)
                    hidden = run_band(self.loaded, self.config, part, instruction, some)
            with stages("head"):
                if graphs is None:
                    there = self.head.logits(hidden)
                logits[batch] = self._fetched(there)
        return logits

    def _captured_query(self, graphs: Graphs, ids: list[int]) -> Tensor:
        """`before_band` for one text: (1, n, d)."""
        device, host = self.loaded.device, torch.from_numpy(np.array([ids]))

        def write(into: Inputs | None) -> Inputs:
            return (put(host, device, None if into is None else into[0]),)

        return graphs.run((self._serial, "query", len(ids)), self.query_pass, write)

    def _captured_band(self, graphs: Graphs, reading: Reading, pages: Sequence[KVPage]) -> Tensor:
        """Logits (N,) of one text; pages are put in place beside its pass through the layers."""
        loaded, instruction, hidden = self.loaded, self.instruction(), reading.suffix.hidden
        n = hidden.shape[1]
        longest = max(page.n_tokens for page in pages)
        shape = len(pages), width(instruction.n_tokens + longest + n)

        def write(into: Inputs | None) -> Inputs:
            if into is None:
                ready = PageStack.of(loaded, instruction, pages, n, memory=self._stacks.get(shape))
                self._stacks[shape] = ready.kv
                return hidden.clone(), *ready.tensors
            own, *there = into
            with beside(reading.mark):
                PageStack.of(loaded, instruction, pages, n, into=PageStack(*there))
            own.copy_(hidden)
            return into

        # Instruction, band and head are this object's.
        return graphs.run((self._serial, "band", *shape, n), self.band_pass, write)

    def query_pass(self, ids: Tensor) -> Tensor:
        """Ids (1, n) to hidden states before the band (1, n, d), by the GPU alone."""
        return before_band(self.loaded, self.config, ids)

    def band_pass(self, hidden: Tensor, *stacked: Tensor) -> Tensor:
        """Hidden states (1, n, d) to logits (N,) against a PageStack's tensors.

        By the GPU alone.
        """
        last = torch.full((1,), hidden.shape[1] - 1, device=hidden.device)
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
            return float(self._fetched(self.head.logits(hidden))[0])

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
            return self._fetched(self.head.normed_logits(hidden))

    @staticmethod
    def _fetched(logits: Tensor) -> np.ndarray:
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
