"""Engines over the tiny pair, and what is asked of them."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from mrr import MiniReranker
from tests.tiny import DEVICE, picture

N_PAGES = 5
SIZES = ((192, 128), (128, 256), (96, 96), (256, 192), (160, 160))


def pictures():
    return [picture(i, SIZES[i % len(SIZES)]) for i in range(N_PAGES)]


def logits(ranked) -> dict[str, float]:
    return {hit.page.page_id: hit.logit for hit in ranked}


def reopen(pair, tmp_path: Path, **options) -> MiniReranker:
    defaults = {
        "embedder": pair[1],
        "store": tmp_path / "store",
        "device": DEVICE,
        "dtype": torch.float32,
    }
    return MiniReranker.from_pretrained(pair[0], self_check=False, **{**defaults, **options})


def png(image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
