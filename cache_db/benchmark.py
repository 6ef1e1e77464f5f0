"""Where the time of reading an entry goes: file, digest, header. `python -m cache_db.benchmark`.

The file is in the page cache, which is the hardest case for the digest: a cold disk is slower.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy

from cache_db import codec
from cache_db.files import DiskFiles
from cache_db.store import PageStore

SIZES_MB = (9, 100)
N_REPEATS = 15
N_LAYERS = 8


def main() -> None:
    """Print one Markdown table, medians in milliseconds."""
    columns = [_measure(size) for size in SIZES_MB]
    print(f"| step | {' | '.join(f'{size} MB, ms' for size in SIZES_MB)} |")
    print("|---|" + "---|" * len(SIZES_MB))
    for step in columns[0]:
        print(f"| {step} | {' | '.join(f'{column[step]:.2f}' for column in columns)} |")


def _measure(size_mb: int) -> dict[str, float]:
    """Median milliseconds of each step for int8 K/V of 2 x N_LAYERS tensors."""
    shape = (8, size_mb * 2**20 // (2 * N_LAYERS * 8 * 128), 128)  # (H, T, D)
    rng = np.random.default_rng(0)
    tensors = {
        f"{kind}{layer}": rng.integers(-127, 128, shape, np.int8)
        for layer in range(N_LAYERS)
        for kind in "kv"
    }
    data = codec.encode("key", tensors, {})
    raw = data.tobytes()
    with tempfile.TemporaryDirectory() as folder:
        files = DiskFiles(Path(folder))
        files.write("entry", data)
        steps: dict[str, Callable[[], object]] = {
            "read the file": lambda: files.read("entry", data.nbytes),
            "digest XXH3-128": lambda: codec.digest(data.data),
            "header to arrays": lambda: codec.decode(data, "key", "disk"),
            "*instead: CRC-32*": lambda: zlib.crc32(raw),
            "*instead: SHA-256*": lambda: hashlib.sha256(raw).digest(),
            "*instead: BLAKE2b*": lambda: hashlib.blake2b(raw).digest(),
            "*instead: safetensors' own loader*": lambda: safetensors.numpy.load(raw),
        }
        medians = {step: _median_ms(action) for step, action in steps.items()}
        return medians | _measure_store(Path(folder) / "store", tensors)


def _measure_store(root: Path, tensors: dict[str, np.ndarray]) -> dict[str, float]:
    """The same through the store, with all it does around it."""
    with PageStore(root, memory_bytes=0) as cold, PageStore(root) as warm:
        medians = {"`put`": _median_ms(lambda: cold.put("key", "", tensors, {}))}
        warm.get("key")
        medians["`get` from disk"] = _median_ms(lambda: cold.get("key"))
        medians["`get` from memory"] = _median_ms(lambda: warm.get("key"))
    return medians


def _median_ms(action: Callable[[], object]) -> float:
    times = []
    for _ in range(N_REPEATS):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    main()
