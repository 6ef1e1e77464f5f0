"""The switches of the four parts, in one frozen place, and the limits of what is accepted."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from mrr.errors import InvalidConfig

PromptOrder = Literal["vision-first", "query-first", "document-first"]
Pruner = Literal["embedder", "uniform", "random", "none"]
KVDtype = Literal["int8", "bf16", "fp16", "fp32"]

DEFAULT_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."

# (band start, exit layer) by depth; 28 layers is 2B, 36 is 4B and 8B. Source: miniReranker 3.2.
_PAPER_BANDS = {28: (8, 16), 36: (8, 21)}


def _pair(value: Any) -> tuple[int, int]:
    start, end = value
    return operator.index(start), operator.index(end)


_WHOLE: tuple[Callable[[Any], Any], str] = (operator.index, "a whole number")
_NUMBERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "exit_layer": _WHOLE,
    "band": (_pair, "two whole numbers, start and end"),
    "keep_ratio": (float, "a number"),
    "min_pixels": _WHOLE,
    "max_pixels": _WHOLE,
    "seed": _WHOLE,
}
_MAX_INSTRUCTION_CHARS = 2000
_MAY_BE_OPEN = frozenset(("exit_layer", "band", "min_pixels", "max_pixels"))


@dataclass(frozen=True, slots=True)
class RerankConfig:
    """One switch per part; None means the paper's value for the model's depth.

    order: which segment comes first (part 1). exit_layer: how many layers run, 1..L (part 2).
    band: layers [start, end), counted from 0 and the end excluded, in which the query may attend
    to the page (part 3); end is at most exit_layer. What people read is `layer_range` of it.
    keep_ratio, pruner: share of visual tokens kept, and who chooses them (part 4).
    kv_dtype: how page K/V is stored; int8 is per channel for K and per token for V.
    min_pixels, max_pixels: size of the page that the model sees; None means the checkpoint's own
    bound, so below its least a max_pixels needs a min_pixels, too. Neither may be more than 1,800
    visual tokens' worth; whole tokens are rounded to.
    seed: of the random pruner only. It draws for each page and scope: the same picture in another
    scope keeps other tokens.
    """

    order: PromptOrder = "vision-first"
    exit_layer: int | None = None
    band: tuple[int, int] | None = None
    keep_ratio: float = 0.5
    pruner: Pruner = "embedder"
    kv_dtype: KVDtype = "int8"
    instruction: str = DEFAULT_INSTRUCTION
    min_pixels: int | None = None
    max_pixels: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._settle_types()
        for name, known in (("order", PromptOrder), ("pruner", Pruner), ("kv_dtype", KVDtype)):
            if getattr(self, name) not in get_args(known):
                choices = ", ".join(get_args(known))
                raise InvalidConfig(f"{name} is {getattr(self, name)!r}; choose one of {choices}.")
        if not 0.0 < self.keep_ratio <= 1.0:
            raise InvalidConfig(f"keep_ratio is {self.keep_ratio}; it must be in (0, 1].")
        for name in ("min_pixels", "max_pixels"):
            pixels = getattr(self, name)
            if pixels is not None and pixels < 1:
                raise InvalidConfig(f"{name} is {pixels}; it must be at least 1, or None.")
        if (self.min_pixels or 1) > (self.max_pixels or self.min_pixels or 1):
            raise InvalidConfig(
                f"min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}; "
                "the first must not be the larger."
            )
        if self.seed < 0:
            raise InvalidConfig(f"seed is {self.seed}; it must not be negative.")

    def _settle_types(self) -> None:
        """Take numbers and pairs as JSON and numpy give them, and refuse what is none."""
        for name, (kind, meant) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_OPEN:
                continue
            try:
                object.__setattr__(self, name, kind(value))
            except (TypeError, ValueError):
                raise InvalidConfig(f"{name} is {value!r}; it must be {meant}.") from None
        try:
            self.instruction.encode()
        except (AttributeError, UnicodeEncodeError):
            raise InvalidConfig(f"instruction is {self.instruction!r}; it must be text.") from None
        if len(self.instruction) > _MAX_INSTRUCTION_CHARS:  # each page would be read with it
            raise InvalidConfig(
                f"instruction has {len(self.instruction):,} characters; the limit is "
                f"{_MAX_INSTRUCTION_CHARS:,}."
            )

    def resolve(self, n_layers: int) -> RerankConfig:
        """Fill in band and exit for a model of n_layers layers, and check them against it."""
        default_start, default_exit = paper_band(n_layers)
        exit_layer = default_exit if self.exit_layer is None else self.exit_layer
        if not 1 <= exit_layer <= n_layers:
            raise InvalidConfig(f"exit_layer is {exit_layer}; this model has {n_layers} layers.")
        band = self.band or (min(default_start, exit_layer - 1), exit_layer)
        if not 0 <= band[0] < band[1] <= exit_layer:
            raise InvalidConfig(
                f"band [{band[0]}, {band[1]}) must lie within the {exit_layer} layers that run."
            )
        keep_all = self.pruner == "none" or self.keep_ratio == 1.0
        return replace(
            self,
            exit_layer=exit_layer,
            band=band,
            pruner="none" if keep_all else self.pruner,
            keep_ratio=1.0 if keep_all else self.keep_ratio,
        )

    def dense(self, n_layers: int, kv_dtype: KVDtype = "fp32") -> RerankConfig:
        """The same prompt and pixels with every part but the reuse switched off.

        kv_dtype should be the model's own, so that storing K/V loses nothing.
        """
        return replace(
            self,
            exit_layer=n_layers,
            band=(0, n_layers),
            keep_ratio=1.0,
            pruner="none",
            kv_dtype=kv_dtype,
        )


def paper_band(n_layers: int) -> tuple[int, int]:
    """(band start, exit layer) of the paper, scaled from 28 layers to other depths."""
    if n_layers in _PAPER_BANDS:
        return _PAPER_BANDS[n_layers]
    exit_layer = min(n_layers, max(2, round(n_layers * 16 / 28)))
    return min(round(n_layers * 8 / 28), exit_layer - 1), exit_layer


def layer_range(layers: tuple[int, int]) -> str:
    """[start, end) as people read it: counted from 0, both ends included, as in `3–6`."""
    start, end = layers
    return str(start) if end == start + 1 else f"{start}–{end - 1}"


def digest(**fields: object) -> str:
    """SHA-256, 64 hex digits, over JSON-able fields; the order of the fields does not matter."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one upload and one query may hold; a refusal names the limit that it broke."""

    max_file_bytes: int = 20 * 1024 * 1024
    max_image_pixels: int = 40_000_000
    max_pdf_pages: int = 200
    max_files: int = 100
    page_timeout_s: float = 10.0
    decoder_memory_bytes: int = 1024**3
    max_query_chars: int = 2000
    max_query_tokens: int = 512
    max_text_tokens: int = 4096

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            kind, meant = (float, "a number") if name == "page_timeout_s" else _WHOLE
            try:
                number = kind(value)
            except (TypeError, ValueError):
                raise InvalidConfig(f"{name} is {value!r:.80}; it must be {meant}.") from None
            if not 0 < number < math.inf:
                raise InvalidConfig(f"{name} is {number}; it must be above 0, and finite.")
            object.__setattr__(self, name, number)


def default_limits() -> Limits:
    """Where none are given: files of up to $MRR_MAX_FILE_MB, or of 20 MB. Raises InvalidConfig."""
    named = os.environ.get("MRR_MAX_FILE_MB", "").strip()
    if not named:
        return Limits()
    try:
        return Limits(max_file_bytes=int(float(named) * 2**20))
    except (ValueError, OverflowError):  # InvalidConfig is a ValueError: it is below a byte
        raise InvalidConfig(
            f"MRR_MAX_FILE_MB is {named!r}; it is a number of MB, such as 100."
        ) from None
