"""Uncertainty of a measured proportion: the Wilson 95 % confidence interval.

It is valid for a proportion of *independent* examples, such as the accuracy of a classifier or the
share of exact translations.  The pixels of an image and the tokens of a text are not independent,
so proportions of those get no interval.
"""

import math

Z = 1.959963984540054
"""A normal variable lies within Z standard deviations of its mean with probability 95 %."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """The interval (low, high), 0 to 1, for a share of ``count`` independent examples.

    It inverts the score test (Wilson 1927), so it is also valid for shares of 0 and 1, where the
    variance estimate p (1 - p) / count is 0.
    Raises ValueError naming what is out of range.

    Example::

        >>> from evals.intervals import wilson
        >>> least, greatest = wilson(1.0, 300)
        >>> round(least, 3), greatest
        (0.987, 1.0)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share!r}, allowed: 0 to 1")
    if not count >= 1:
        raise ValueError(f"count={count!r}, allowed: at least 1")
    square = Z * Z / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    # Exactly 0 and 1 at the ends: rounding would leave errors of 1e-17.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)
