"""What an occlusion measurement came to, in sentences with the numbers. No torch."""

from __future__ import annotations

from mrr.types import Occlusion


def occlusion_verdict(occlusion: Occlusion) -> str:
    """Whether hiding the cells that attention to the query singles out did more than random ones.

    Those are the first of the ranking "contrast".
    """
    random, n = occlusion.random_deltas, occlusion.n_top
    top = occlusion.top_deltas.get("contrast")
    if top is None or not len(random):
        is_whole = top is not None and occlusion.measured.all()
        why = "cannot be drawn from so few blocks" if is_whole else "was not run"
        return f"The control {why}: read the map as a measurement of this one page, no more."
    low, high = float(random.min()), float(random.max())
    cells = f"the {n} cells that get" if n > 1 else "the one cell that gets"
    times = f"{len(random)} times" if len(random) > 1 else "once"
    numbers = (
        f"Hiding {cells} the most attention beyond what neutral queries pay changes the logit of "
        f"{signed(occlusion.base_logit)} by {signed(top)}; hiding as many random cells, "
        f"{times}, changes it by {signed(random.mean())} on average, between "
        f"{signed(low)} and {signed(high)}. "
    )
    if top < min(low, 0.0):
        return numbers + "They support the score more than any random set did."
    if top > max(high, 0.0):
        return numbers + "They speak against the page more than any random set did."
    if low <= top <= high:
        return numbers + "That is within chance: this map does not show what the score rests on."
    return numbers + "They matter less than any random set did."


def signed(value: float) -> str:
    """Two decimals with a sign and a true minus; what rounds to zero is +0.00, never −0.00."""
    return f"{round(float(value), 2) + 0.0:+.2f}".replace("-", "−")
