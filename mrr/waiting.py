"""How long torch's threads spin while they wait for one another; said before torch is imported."""

from __future__ import annotations

import os

_SPINS = "10000"  # some 0.1 ms; libgomp's own number is thirty times as large


def spin_less() -> None:
    """Let a thread that waits go to sleep soon, unless the user has said how it is to wait.

    A thread that spins on a core that other programs use too does so in the time of the one it
    waits for: beside one busy program a query took a hundred times as long (docs/LOG.md, "Beside
    other programs").
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
