"""95 % confidence intervals of measured proportions and rates.

The Wilson interval is valid for a proportion of *independent* examples, such as the accuracy of a
classifier or the share of exact translations.  The pixels of an image and the tokens of a text are
not independent, so proportions of those get no interval.  The bootstrap over groups is valid for a
rate whose items depend on each other only within a group, such as the words of one speaker.
"""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054
"""A normal variable lies within Z standard deviations of its mean with probability 95 %."""
DRAWS, SEED = 2000, 0
"""Draws and seed of the bootstrap."""
FEWEST_GROUPS = 3
"""A bootstrap over fewer groups says nothing."""


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


def bootstrap(
    numerators: np.ndarray, denominators: np.ndarray, groups: Sequence[str]
) -> tuple[float, float] | None:
    """The percentile interval (low, high) of sum(numerators) / sum(denominators).

    Groups are drawn with replacement, with all of their items (Efron 1979; Bisani and Ney 2004 for
    speech).  None for fewer than FEWEST_GROUPS groups with a denominator, and if these have the
    same rate, such as 0: draws then say nothing of other groups.
    numerators, denominators, groups: of each item, [n].
    Raises ValueError if these have different lengths.

    Example::

        >>> import numpy as np
        >>> from evals.intervals import bootstrap
        >>> errors, words = np.array([1, 3, 2, 2]), np.array([10, 10, 10, 10])
        >>> bootstrap(errors, words, ["ann", "bob", "cat", "dan"])
        (0.125, 0.275)
    """
    if not len(numerators) == len(denominators) == len(groups):
        counts = f"{len(numerators)}, {len(denominators)} and {len(groups)}"
        raise ValueError(f"numerators, denominators, groups: {counts}, allowed: the same number")
    names, group = np.unique(np.asarray(groups, str), return_inverse=True)
    above, below = (np.bincount(group, values, len(names)) for values in (numerators, denominators))
    above, below = above[below > 0], below[below > 0]
    if len(below) < FEWEST_GROUPS:
        return None
    drawn = np.random.default_rng(SEED).integers(len(below), size=(DRAWS, len(below)))
    rates = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    low, high = np.quantile(rates, (0.025, 0.975)).tolist()
    return (low, high) if low < high else None
