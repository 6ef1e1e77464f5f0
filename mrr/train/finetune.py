"""Fine-tune a Qwen-VL checkpoint to be a mini reranker: LoRA with the band, the exit and pruning
on, from labels or from the checkpoint's own dense scores. Source: miniReranker, Training.

Self-distillation needs no labels: with the adapter switched off, every layer and token on and the
prompt in the order that the checkpoint knows, the same weights are the teacher.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mrr.build import check_same_cells, template_of, trained_config
from mrr.config import Limits, RerankConfig
from mrr.errors import InputRejected
from mrr.measure.dataset import Dataset, read_dataset
from mrr.model.embedder import Embedder
from mrr.model.joint import run_joint
from mrr.model.load import LoadedModel, load_model
from mrr.model.prompt import PromptEncoder
from mrr.model.vision import Pixels, Sight
from mrr.pages.ingest import read_pages
from mrr.pages.sandbox import Decoder
from mrr.prune import kept_tokens
from mrr.query import clean_query
from mrr.timing import Stages
from mrr.train.adapter import save_adapter
from mrr.train.fit import Step, fit, last_batch
from mrr.train.packed import in_full, look, pack, score
from mrr.train.run import Run, seed_everything
from mrr.types import FailedFile

# The projections that the official recipe adapts.
_ADAPTED = r".*language_model\.layers\.({layers})\.(self_attn|mlp)\.(q|k|v|up|down|gate)_proj"


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """One fine-tuning. data: a folder as `mrr eval` reads it (corpus, queries, qrels).

    n_queries: queries asked of a page in one step, half of them its own where it has as many.
    dense_teacher: learn the dense model's probabilities instead of the labels.
    minutes: if given, so much time instead of steps; see fit.
    config: what is trained in; a band or exit that it leaves open is the one that the checkpoint
    was trained for, or the paper's.
    """

    model: str
    data: Path
    folder: Path
    embedder: str | None = None
    dense_teacher: bool = False
    steps: int = 2000
    minutes: float = 0.0
    n_queries: int = 8
    rank: int = 32
    lr: float = 1e-4
    seed: int = 0
    eval_every: int = 200
    config: RerankConfig = field(default_factory=RerankConfig)


@dataclass(frozen=True, slots=True)
class PageTask:
    """One page, the queries asked of it and the probability that it answers each."""

    image: Image.Image
    queries: list[str]
    target: Tensor

    def to(self, device: torch.device) -> PageTask:
        """The task with its targets on a device."""
        return PageTask(self.image, self.queries, self.target.to(device))


class Tuner:
    """A checkpoint with an adapter, and what a training step needs of it."""

    def __init__(self, plan: FinetunePlan):
        self.plan = plan
        self.loaded: LoadedModel = load_model(plan.model, fused=False)
        self.config = trained_config(self.loaded, plan.config).resolve(self.loaded.n_layers)
        if self.config.order != "vision-first" or self.config.pruner == "random":
            raise InputRejected("Fine-tuning is vision-first, and not for random pruning.")
        assert self.config.exit_layer is not None
        layers = "|".join(str(i) for i in range(self.config.exit_layer))
        lora = LoraConfig(
            r=plan.rank, lora_alpha=plan.rank, target_modules=_ADAPTED.format(layers=layers)
        )
        self.adapted: PeftModel = get_peft_model(self.loaded.model, lora)
        self.encoder = PromptEncoder(self.loaded.tokenizer, template_of(self.loaded, None))
        rows = self.loaded.model.lm_head.weight.detach()
        yes, no = self.encoder.positive_id, self.encoder.negative_id
        self.direction = rows[yes].float() - rows[no].float()
        self.embedder: Embedder | None = None
        if plan.embedder is not None:
            self.embedder = Embedder(load_model(plan.embedder, head=False))
            check_same_cells(self.loaded, self.embedder.loaded)
        if self.embedder is None and self.config.pruner == "embedder":
            raise InputRejected("Pruning by the embedder needs one: pass embedder, or keep all.")

    @property
    def identity(self) -> dict[str, object]:
        """What a run that is resumed must have in common with its beginning."""
        return {
            "model": self.loaded.digest,
            "embedder": None if self.embedder is None else self.embedder.loaded.digest,
            "teacher": "dense" if self.plan.dense_teacher else "labels",
            "rank": self.plan.rank,
            "config": asdict(self.config),
        }

    def scores(self, task: PageTask, dense: bool) -> Tensor:
        """(Q,) logits of a page's queries, under the plan's configuration or through everything."""
        loaded, config = self.loaded, self.config
        sight = self._sight(task)
        pixels = sight.pixels
        kept = np.arange(pixels.n_tokens) if dense else self._kept(sight)
        packed = pack(
            loaded,
            self.encoder,
            config.instruction,
            task.queries,
            pixels,
            look(loaded, pixels),
            kept,
        )
        n = loaded.n_layers
        assert config.band is not None and config.exit_layer is not None
        band, end = ((0, n), n) if dense else (config.band, config.exit_layer)
        return score(loaded, packed, self.direction.to(packed.hidden.device), band, end)

    def _sight(self, task: PageTask) -> Sight:
        loaded, config = self.loaded, self.config
        low, high = config.min_pixels or loaded.min_pixels, config.max_pixels or loaded.max_pixels
        return Sight(loaded, task.image, low, high, Stages(loaded.device))

    def _kept(self, sight: Sight) -> np.ndarray:
        """The tokens that the engine would keep: the embedder runs as it does there."""
        config, importance = self.config, None
        if self.embedder is not None and config.pruner == "embedder":
            guide = sight.by(self.embedder.loaded)
            with in_full(self.loaded.device):
                importance = self.embedder.embed_page(guide.pixels, guide.visual)[1]
        return kept_tokens(
            config.pruner, config.keep_ratio, sight.pixels.grid, importance=importance
        )

    @torch.no_grad()
    def teach(self, task: PageTask) -> PageTask:
        """The same task with the dense model's probabilities for targets.

        It is asked in the order of its own training: what another order costs is what the adapter
        is to make up for.
        """
        with self.adapted.disable_adapter():
            if self.encoder.template.native == "document-first" or "band" in self.loaded.trained:
                logits = self.scores(task, dense=True)
            else:
                logits = self._query_first(task, self._sight(task).pixels)
        return PageTask(task.image, task.queries, logits.sigmoid())

    def _query_first(self, task: PageTask, pixels: Pixels) -> Tensor:
        """(Q,) logits through every layer and token, one query after the other."""
        loaded, encoder = self.loaded, self.encoder
        dense, visual = self.config.dense(loaded.n_layers), look(loaded, pixels)
        everything, last = np.arange(pixels.n_tokens), []
        for query in task.queries:
            prompt = encoder.pair(
                "query-first",
                instruction=dense.instruction,
                query=query,
                document=None,
                n_visual_tokens=pixels.n_tokens,
            )
            last.append(run_joint(loaded, encoder, dense, prompt, pixels, visual, everything))
        with in_full(loaded.device):
            return loaded.lm.norm(torch.cat(last)).float() @ self.direction

    def loss(self, task: PageTask) -> tuple[Tensor, Tensor]:
        """(cross entropy, logits) of one page."""
        if self.plan.dense_teacher:
            task = self.teach(task)
        logits = self.scores(task, dense=False)
        return F.binary_cross_entropy_with_logits(logits, task.target.float()), logits


def tasks(dataset: Dataset, n_queries: int, seed: str) -> Iterator[PageTask]:
    """An endless stream of pages with queries. Pictures are held in memory, decoded once."""
    images = _images(dataset)
    rng = random.Random(seed)
    texts = {query.query_id: query.text for query in dataset.queries}
    right: dict[str, list[str]] = {page.page_id: [] for page in dataset.pages}
    for query_id, grades in dataset.qrels.items():
        for page_id, grade in grades.items():
            if grade > 0:
                right[page_id].append(query_id)
    wanted = [page_id for page_id, own in right.items() if own]
    while True:
        page_id = rng.choice(wanted)
        own = right[page_id]
        mine = rng.sample(own, min(len(own), max(1, n_queries // 2)))
        others = [query_id for query_id in texts if query_id not in own]
        asked = mine + rng.sample(others, min(len(others), n_queries - len(mine)))
        target = torch.tensor([float(query_id in own) for query_id in asked])
        yield PageTask(images[page_id], [texts[query_id] for query_id in asked], target)


def _images(dataset: Dataset) -> dict[str, Image.Image]:
    images = {}
    by_file = sorted(dataset.pages, key=lambda page: (str(page.file), page.page_num))
    with Decoder(Limits(max_pdf_pages=len(dataset.pages))) as decoder:
        for file, pages in groupby(by_file, key=lambda page: page.file):
            wanted = list(pages)
            numbers = ",".join(str(page.page_num) for page in wanted)
            drawn: dict[int, Image.Image] = {}
            for item in read_pages(decoder, [(file.name, file)], numbers):
                if isinstance(item, FailedFile):
                    raise InputRejected(f"{file.name} cannot be learned from: {item.reason}")
                drawn[item.page_num] = item.image
            for page in wanted:
                if page.page_num not in drawn:
                    raise InputRejected(f"{file.name} has no page {page.page_num}.")
                images[page.page_id] = drawn[page.page_num]
    return images


def as_asked(dataset: Dataset, encoder: PromptEncoder) -> Dataset:
    """The dataset with its queries as the engine would read them; see MiniReranker.clean."""
    limits = Limits()

    def cleaned(text: str) -> str:
        return encoder.truncate(clean_query(text, limits)[0], limits.max_query_tokens)

    queries = tuple(replace(query, text=cleaned(query.text)) for query in dataset.queries)
    return replace(dataset, queries=queries)


def finetune(plan: FinetunePlan) -> Path:
    """Train or resume the adapter; writes it to plan.folder / "adapter", which the engine loads.

    Raises InputRejected where the folder has a run of another model, embedder or configuration.
    """
    if Path(plan.model).expanduser().resolve().is_relative_to(plan.folder.resolve()):
        raise InputRejected(
            "The adapter that this run wrote cannot be tuned further in the same run, which would "
            "go on from its checkpoint. Choose another folder with --run."
        )
    seed_everything(plan.seed)
    tuner = Tuner(plan)
    dataset = as_asked(read_dataset(plan.data), tuner.encoder)
    trained = [p for p in tuner.adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.lr, weight_decay=0.0)
    optimizer.param_groups[0]["base_lr"] = plan.lr
    run = Run(plan.folder)
    run.check_same(tuner.identity)
    module = _AdapterOnly(tuner.adapted)
    run.resume(module, [optimizer])

    def take(task: PageTask) -> Step:
        loss, logits = tuner.loss(task)

        def shown() -> dict[str, float]:
            right = ((logits > 0) == (task.target.to(logits.device) > 0.5)).float().mean()
            return {"accuracy": float(right)}

        return Step(loss, shown, 1)

    def check() -> dict[str, float]:
        """Agreement with the teacher on pages of this set, the first of a fixed stream."""
        fixed = tasks(dataset, plan.n_queries, "check")
        with torch.no_grad():
            gaps = [
                (tuner.scores(task, False).sigmoid() - tuner.teach(task).target).abs().mean()
                for task, _ in zip(fixed, range(8), strict=False)
            ]
        return {"gap_to_teacher": round(float(torch.stack(gaps).mean()), 4)}

    left = last_batch(plan.steps, plan.minutes) - run.step
    stream = tasks(dataset, plan.n_queries, f"{plan.seed}/{run.step}")
    fit(
        run,
        module,
        [optimizer],
        (task for task, _ in zip(stream, range(left), strict=False)),
        steps=plan.steps,
        minutes=plan.minutes,
        take=take,
        evaluate=check,
        eval_every=plan.eval_every,
    )
    template = tuner.encoder.template.name
    return save_adapter(tuner.adapted, tuner.loaded, tuner.config, template, plan.folder)


class _AdapterOnly(torch.nn.Module):
    """Shows only the adapter's weights to checkpoints: the base is on disk already."""

    def __init__(self, adapted: PeftModel):
        super().__init__()
        named = [(n, p) for n, p in adapted.named_parameters() if p.requires_grad]
        self.weights = torch.nn.ParameterDict({n.replace(".", "/"): p for n, p in named})
