"""Explanations and latency reports made up for the views: shapes as the engine gives them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from mrr.types import AttentionTrace, Explanation, KeepMap, Lens, Occlusion, Page

ROWS, COLUMNS, LAYERS, EXIT, BAND = 12, 8, 10, 7, (3, 7)
TOKENS = ("Query", ":", "revenue", " by", " region", "?", "<end>")
QUERY_SPAN = (2, 6)
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
    neutral = ("What is this?", "Describe the page.")
    return AttentionTrace(TOKENS, QUERY_SPAN, mass, page_maps, neutral_maps, neutral, sinks)


def occlusion(kept: np.ndarray, block: int = 2) -> Occlusion:
    rng = np.random.default_rng(3)
    rows, columns = (-(-side // block) for side in kept.shape)
    coarse = rng.normal(-0.05, 0.2, (rows, columns)).astype(np.float32)
    coarse[1, 1] = -1.5
    delta = np.kron(coarse, np.ones((block, block), np.float32))
    delta = delta[: kept.shape[0], : kept.shape[1]] * kept
    top = {"contrast": -1.6, "attention": -0.2, "occlusion": -2.4, "importance": -0.5}
    return Occlusion(delta, block, 1.25, 10, top, rng.normal(-0.1, 0.12, 20).astype(np.float32))


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
        query="revenue by region?",
        page=page,
        logit=1.25,
        keep=keep,
        lens=lens(3),
        attention=attention(keep.kept),
        occlusion=occlusion(keep.kept),
    )
