"""Small pages and K/V whose right content follows from a number, so that wrong bytes show."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cache_db import Entry, PageStore
from mrr.types import Page

WIDTH, HEIGHT = 12, 8


def make_page(n: int, scope: str = "public") -> Page:
    page_id = hashlib.sha256(f"{scope} {n}".encode()).hexdigest()
    return Page(page_id, f"report.pdf p. {n}", "report.pdf", n, WIDTH, HEIGHT, scope)


def make_picture(n: int) -> Image.Image:
    pixels = np.random.default_rng(n).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels)


def make_key(n: int) -> str:
    return f"{n:064x}"


def make_tensors(n: int, n_tokens: int = 16) -> dict[str, np.ndarray]:
    """About 160 bytes a token."""
    rng = np.random.default_rng(n)
    return {
        "k": rng.integers(-127, 128, (2, n_tokens, 64), np.int8),
        "scale": rng.standard_normal((n_tokens, 8), np.float32),
    }


def put(store: PageStore, n: int, n_tokens: int = 16, page_id: str = "") -> int:
    return store.put(make_key(n), page_id, make_tensors(n, n_tokens), {"n": n})


def is_right(entry: Entry | None, n: int, n_tokens: int = 16) -> bool:
    """Whether an entry is exactly what `put` stored under n."""
    expected = make_tensors(n, n_tokens)
    return (
        entry is not None
        and dict(entry.meta) == {"n": n}
        and entry.tensors.keys() == expected.keys()
        and all(
            entry.tensors[name].dtype == tensor.dtype
            and np.array_equal(entry.tensors[name], tensor)
            for name, tensor in expected.items()
        )
    )


def files_of(root: Path) -> list[Path]:
    return sorted((root / "files").iterdir())


def leave_stray(root: Path, suffix: str = ".kv") -> Path:
    """A file such as a killed process leaves."""
    path = root / "files" / ("5" * 32 + suffix)
    path.write_text("left by a killed process")
    return path


def only_file(root: Path) -> Path:
    (path,) = files_of(root)
    return path


def descriptors(root: Path) -> list[str]:
    """Files below root that this process has open, one for each descriptor."""
    names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return [name for name in names if name.startswith(f"{root.resolve()}{os.sep}")]


def start(target: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Run target in a forked child, which opens its own store and does not outlive the tests."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


@contextmanager
def killed(child: BaseProcess) -> Iterator[None]:
    """A block at whose end the child is killed, whatever happens in it."""
    try:
        yield
    finally:
        kill(child)


def kill(child: BaseProcess) -> None:
    """kill -9, and wait for the end."""
    child.kill()
    child.join(60)


def finish(*children: BaseProcess) -> None:
    for child in children:
        child.join(60)
        assert child.exitcode == 0
