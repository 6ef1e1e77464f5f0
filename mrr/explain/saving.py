"""An explanation as one .npz file, to look at later or to hold against another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrr.types import Explanation

# Whoever knows a session's scope can see its pages, and a file may be passed on.
_SECRET = ("page.scope",)


def save(why: Explanation, path: str | Path) -> None:
    """Write every array under its name, and the rest as JSON under "about".

    The names are those of the attributes: "keep.kept", "lens.mini", "attention.page_maps.8" for
    layer 8; mrr.types has the shapes. `numpy.load(path)` reads it, and `json.loads(str(...))` what
    is about it. As numpy does, it adds .npz to a path without it, and raises OSError where it
    cannot be written.
    """
    arrays: dict[str, Any] = {}  # of numpy
    about: dict[str, Any] = {}
    for name, value in _leaves("", why):
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif name not in _SECRET:
            about[name] = value
    arrays["about"] = np.array(json.dumps(about, allow_nan=False))
    np.savez_compressed(path, **arrays)


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """(name, array or JSON value) of all that a value has."""
    if is_dataclass(value):
        inside = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, Mapping):
        inside = list(value.items())
    else:
        return [(name, value)]
    return [leaf for key, part in inside for leaf in _leaves(f"{name}.{key}".lstrip("."), part)]
