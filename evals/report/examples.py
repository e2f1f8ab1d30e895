"""Selects the examples that the report shows."""

import math

import numpy as np

from evals.base import Evaluation


def labelled(evaluation: Evaluation) -> np.ndarray | None:
    """The class of each example [n]; None if the data name no classes."""
    return evaluation.table["targets"] if evaluation.run.task.labels else None


def spread(evaluation: Evaluation, most: int) -> np.ndarray:
    """Rows of up to ``most`` examples.

    With classes: the first examples of every class, ordered by class.  Without: evenly spaced.
    """
    targets = labelled(evaluation)
    if targets is None:
        return np.linspace(0, evaluation.count - 1, min(most, evaluation.count)).round().astype(int)
    order = np.argsort(targets, kind="stable")
    earlier = np.empty(len(order), int)  # number of earlier examples of the same class
    earlier[order] = np.arange(len(order)) - np.searchsorted(targets[order], targets[order])
    chosen = np.argsort(earlier, kind="stable")[:most]
    return chosen[np.argsort(targets[chosen], kind="stable")]


def evenly(count: int, most: int) -> np.ndarray:
    """Up to ``most`` of ``count`` rows, evenly spaced from the first row."""
    return np.arange(0, count, math.ceil(count / most))
