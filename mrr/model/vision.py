"""From a picture to visual tokens: the processor's resize, the vision tower, M-RoPE positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from mrr.errors import InputRejected
from mrr.model.load import LoadedModel
from mrr.timing import Stages


@dataclass(frozen=True, slots=True)
class Pixels:
    """A page as the vision tower takes it.

    values: (n_patches, C * t * p * p) float32 in merge-block order. grid_thw: (1, 3) in patches.
    grid: (R, C) merged visual tokens, row-major.
    """

    values: Tensor
    grid_thw: Tensor
    grid: tuple[int, int]

    @property
    def n_tokens(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """Output of the vision tower: embeds (T, d) and the DeepStack features, each (T, d)."""

    embeds: Tensor
    deepstack: tuple[Tensor, ...]


def preprocess(loaded: LoadedModel, image: Image.Image, min_pixels: int, max_pixels: int) -> Pixels:
    """Resize and cut into patches, as the checkpoint's own image processor does it."""
    if max(image.size) > 200 * min(image.size):
        raise InputRejected(
            f"The page is {image.width}x{image.height} pixels; the longer side may be at most 200 "
            "times the shorter. Crop it and try again."
        )
    merge = loaded.image_processor.merge_size
    out = loaded.image_processor(
        images=image.convert("RGB"),
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
        return_tensors="pt",
    )
    grid_thw = out["image_grid_thw"]
    _, rows, columns = grid_thw[0].tolist()
    return Pixels(out["pixel_values"], grid_thw, (rows // merge, columns // merge))


@torch.inference_mode()
def encode_vision(loaded: LoadedModel, pixels: Pixels) -> VisualTokens:
    """Run the vision tower over one page."""
    out = loaded.model.model.get_image_features(
        pixels.values.to(loaded.device, loaded.dtype), pixels.grid_thw.to(loaded.device)
    )
    deepstack = getattr(out, "deepstack_features", None) or ()  # Qwen3 only
    return VisualTokens(out.pooler_output[0], tuple(features[0] for features in deepstack))


class Sight:
    """A picture as one model sees it. Each step runs once, when it is first asked for."""

    def __init__(
        self,
        loaded: LoadedModel,
        image: Image.Image,
        min_pixels: int,
        max_pixels: int,
        stages: Stages,
    ) -> None:
        self.loaded, self.image, self._stages = loaded, image, stages
        self._bounds = min_pixels, max_pixels

    def by(self, other: LoadedModel) -> Sight:
        """The same picture seen by another model: this very sight where the two share a tower."""
        if other.tower is self.loaded.tower:
            return self
        return Sight(other, self.image, *self._bounds, self._stages)

    @cached_property
    def pixels(self) -> Pixels:
        """Resized and cut, timed as "preprocess"."""
        with self._stages("preprocess"):
            return preprocess(self.loaded, self.image, *self._bounds)

    @cached_property
    def visual(self) -> VisualTokens:
        """Through the vision tower, timed as "vision"."""
        pixels = self.pixels
        with self._stages("vision"):
            return encode_vision(self.loaded, pixels)


def rope_positions(loaded: LoadedModel, ids: list[int], pixels: Pixels, image_id: int) -> Tensor:
    """(3, 1, N) temporal, height and width positions of a whole prompt.

    Always computed here and passed on: the stock model keeps the last page's offset as state.
    """
    tokens = torch.tensor([ids], device=loaded.device)
    positions, _ = loaded.model.model.get_rope_index(
        tokens,
        mm_token_type_ids=(tokens == image_id).int(),
        image_grid_thw=pixels.grid_thw.to(loaded.device),
    )
    return positions
