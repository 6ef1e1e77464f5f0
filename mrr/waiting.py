"""How torch's threads wait for one another; to be said before torch is imported."""

from __future__ import annotations

import os


def wait_asleep() -> None:
    """Let a thread that has nothing to do sleep, unless the user has said otherwise.

    OpenMP's threads spin while they wait, and on cores that other programs use as well, each spins
    in the time of the one it waits for: a query took twenty times as long (docs/LOG.md, "Beside
    other programs").
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
