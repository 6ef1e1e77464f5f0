"""Where the models and example pages lie that ship with the project."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def assets(kind: str) -> Path:
    """Folder "models" or "examples": of the wheel, which calls assets mrr_assets, or a checkout.

    In that order, because beside an installed package a folder called assets may be anybody's.
    """
    installed = _ROOT / "mrr_assets"
    return (installed if installed.is_dir() else _ROOT / "assets") / kind
