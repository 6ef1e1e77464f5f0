"""Explanations and latency reports made up for the views: shapes as the engine gives them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from mrr.config import RerankConfig
from mrr.measure.latency import CachingLatency, LatencyReport, StageCost, SystemLatency
from mrr.measure.machine import Machine
from mrr.measure.spread import spread
from mrr.types import AttentionTrace, Explanation, KeepMap, Lens, Occlusion, Page

ROWS, COLUMNS, LAYERS, EXIT, BAND = 12, 8, 10, 7, (3, 7)
QUERY = "revenue by region?"
TOKENS = ("Query", ":", " reve", "nue", " by", " region", "?", "<end>")
QUERY_SPAN = (2, 7)
SINK = (0, 0)


def page_picture(width: int = 480, height: int = 720) -> Image.Image:
    """Black lines on white, a red square in the upper left, a blue one in the lower right."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for y in range(24, height, 22):
        draw.rectangle((40, y, width - 40 - (y * 7) % 120, y + 7), fill=(70, 70, 70))
    draw.rectangle((0, 0, width // 8, height // 12), fill=(220, 30, 30))
    draw.rectangle((width * 7 // 8, height * 11 // 12, width, height), fill=(30, 30, 220))
    return image


def keep_map(rows: int = ROWS, columns: int = COLUMNS, ratio: float = 0.5) -> KeepMap:
    importance = np.random.default_rng(1).gamma(1.5, 0.01, (rows, columns)).astype(np.float32)
    kept = importance >= np.quantile(importance, 1 - ratio)
    kept[SINK] = True
    return KeepMap(kept, importance, "embedder", ratio)


def attention(kept: np.ndarray) -> AttentionTrace:
    rng = np.random.default_rng(2)
    n, heads = len(TOKENS), 4
    sinks = np.zeros(kept.shape, dtype=bool)
    sinks[SINK] = True
    mass = np.zeros((EXIT, heads, n, 3), dtype=np.float32)
    mass[..., 2] = 1.0
    page_maps, neutral_maps = {}, {}
    head_maps, neutral_heads = {}, {}
    for layer in range(*BAND):
        page = rng.uniform(0.2, 0.5, (heads, n)).astype(np.float32)
        mass[layer] = np.stack([np.full((heads, n), 0.1), page, 0.9 - page], axis=-1)
        raw = rng.gamma(0.4, 1.0, (n, *kept.shape)) * kept
        raw[:, SINK[0], SINK[1]] = raw.sum(axis=(1, 2)) * 0.4
        raw *= (page.mean(0) / raw.sum(axis=(1, 2)))[:, None, None]
        page_maps[layer] = raw.astype(np.float32)
        words = raw * rng.uniform(0.5, 1.2, raw.shape)
        words[slice(*QUERY_SPAN)] = words[slice(*QUERY_SPAN)].mean(axis=0)
        neutral_maps[layer] = words.astype(np.float32)
        spread = rng.gamma(0.5, 1.0, (heads, *kept.shape))
        spread *= kept / spread.mean(axis=0)
        head_maps[layer] = (page_maps[layer][slice(*QUERY_SPAN)].mean(0) * spread).astype("f4")
        neutral_heads[layer] = np.repeat(neutral_maps[layer][QUERY_SPAN[0]][None], heads, axis=0)
    neutral = ("What is this?", "Describe the page.")
    return AttentionTrace(
        TOKENS, QUERY_SPAN, mass, page_maps, head_maps, neutral_maps, neutral_heads, neutral, sinks
    )


def occlusion(kept: np.ndarray, block: int = 2) -> Occlusion:
    rng = np.random.default_rng(3)
    rows, columns = (-(-side // block) for side in kept.shape)
    coarse = rng.normal(-0.05, 0.2, (rows, columns)).astype(np.float32)
    coarse[1, 1] = -1.5
    delta = np.kron(coarse, np.ones((block, block), np.float32))
    delta = delta[: kept.shape[0], : kept.shape[1]] * kept
    top = {"contrast": -1.6, "attention": -0.2, "occlusion": -2.4, "importance": -0.5}
    measured = np.ones(kept.shape, dtype=bool)
    draws = rng.normal(-0.1, 0.12, 20).astype(np.float32)
    return Occlusion(delta, measured, block, 1.25, 10, top, draws)


def lens(seed: int = 0, *, dense: bool = True) -> Lens:
    """A candidate whose last logits grow with the seed."""
    rng = np.random.default_rng(seed)
    mini = np.zeros(EXIT, dtype=np.float32)
    mini[BAND[0] :] = np.linspace(0, seed - 2, EXIT - BAND[0]) + rng.normal(0, 0.1, EXIT - BAND[0])
    full = np.linspace(0, seed - 1.5, LAYERS).astype(np.float32)
    return Lens(mini, full if dense else None, EXIT, BAND)


def explanation(label: str = "report.pdf p. 3", page_id: str = "ab" * 32) -> Explanation:
    keep = keep_map()
    page = Page(page_id, label, "report.pdf", 3, 480, 720, "public")
    return Explanation(
        query=QUERY,
        page=page,
        logit=1.25,
        keep=keep,
        lens=lens(3),
        attention=attention(keep.kept),
        model="a reranker",
        embedder="an embedder",
        config=RerankConfig(exit_layer=EXIT, band=BAND),
        occlusion=occlusion(keep.kept),
    )


STAGES = {
    "original": {
        "decode": 20.0,
        "preprocess": 45.0,
        "vision": 5200.0,
        "layers": 3900.0,
        "head": 4.0,
    },
    "dense-reuse": {"retrieve": 1.0, "load": 30.0, "query": 2.0, "layers": 310.0, "head": 3.0},
    "mini": {"retrieve": 1.0, "load": 8.0, "query": 9.0, "band": 60.0, "head": 2.0},
}
CACHING = {"dense-reuse": 900.0, "mini": 620.0}
MACHINE = Machine("cpu", "Example CPU", "float32", 2, 2, "Linux", "3.11", "2.13", "5.23")


def latency_report(n_candidates: int = 10, *, wobble: float = 0.03) -> LatencyReport:
    """wobble: half the range of the repeats, as a share of the median."""
    factors = np.linspace(1 - wobble, 1 + wobble, 5)

    def costs(stages: Mapping[str, float], n_pages: int) -> tuple[StageCost, ...]:
        spreads = {stage: spread((ms * factors).tolist()) for stage, ms in stages.items()}
        return tuple(StageCost(stage, s, s.median / n_pages) for stage, s in spreads.items())

    def system(name: str, stages: Mapping[str, float]) -> SystemLatency:
        few = name == "original"
        total = spread((sum(stages.values()) * factors).tolist())
        calls = tuple({stage: ms * f for stage, ms in stages.items()} for f in factors)
        n_measured = 2 if few else n_candidates
        cold = {"encode": 900.0, **stages}
        return SystemLatency(
            name, n_measured, few, costs(stages, n_candidates), total, cold, calls, 40_000
        )

    totals = {name: sum(stages.values()) for name, stages in STAGES.items()}
    return LatencyReport(
        query="revenue by region?",
        n_candidates=n_candidates,
        repeats=5,
        warmup=1,
        state="warm",
        machine=MACHINE,
        systems=tuple(system(name, stages) for name, stages in STAGES.items()),
        caching=tuple(
            CachingLatency(
                name, 2, costs({"vision": ms}, 1), spread((ms * factors).tolist()), n, ()
            )
            for (name, ms), n in zip(CACHING.items(), (4_200_000, 610_000), strict=True)
        ),
        times_mini={
            name: spread((total / totals["mini"] * factors).tolist())
            for name, total in totals.items()
            if name != "mini"
        },
        notes=("original was measured on 2 pages and scaled per page.",),
    )
