"""Median and quartiles of a few measured values: what every timing here is reported as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Past this share of the median, the quartiles say more about the machine than about the code.
NOISY = 0.2


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of n values, in their unit."""

    median: float
    q1: float
    q3: float
    n: int

    @property
    def noisy(self) -> bool:
        """Whether the middle half of the values is too wide for a headline."""
        return self.q3 - self.q1 > NOISY * abs(self.median)


def spread(values: Sequence[float]) -> Spread:
    """Summarise at least one value."""
    q1, median, q3 = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return Spread(float(median), float(q1), float(q3), len(values))
