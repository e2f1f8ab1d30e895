"""How sure a measured share is: Wilson's 95 % interval.

It holds for a share of *independent* examples, such as the accuracy of a classifier or the share of sentences that are translated
word for word.  The pixels of an image and the tokens of a text depend on each other: a share of those has no interval.
"""

import math

Z = 1.959963984540054
"""A normal variable lies within this many deviations of its mean with a probability of 95 %."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """The least and the greatest share in the population, 0 to 1, that a share of ``count`` independent examples is likely from.

    It inverts the score test (Wilson 1927), so that it is right for shares of 0 and 1 too, where p (1 - p) / count is 0.
    Raises ValueError naming what is out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share!r}, allowed: 0 to 1")
    if not count >= 1:
        raise ValueError(f"count={count!r}, allowed: at least 1")
    square = Z * Z / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    # Exact at the ends, where rounding would leave 1e-17.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)
