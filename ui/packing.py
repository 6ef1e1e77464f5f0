"""Arrays on their way to the browser: base64 of little-endian float16, or one byte a cell."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

Json = dict[str, object]
ASSETS = Path(__file__).parent / "assets"


def pack_values(values: np.ndarray) -> str:
    """Base64 of float16, row-major: three significant digits, half the size of float32."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f2").tobytes()).decode("ascii")


def pack_mask(mask: np.ndarray) -> str:
    """Base64 of one byte a cell, 1 where True, row-major."""
    return base64.b64encode(np.ascontiguousarray(mask, dtype=np.uint8).tobytes()).decode("ascii")


def script(*names: str) -> str:
    """The named files of ui/assets/js as one text; later files use what earlier ones define."""
    return "\n".join((ASSETS / "js" / name).read_text(encoding="utf-8") for name in names)
