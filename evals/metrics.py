"""Names, formatting and targets of metrics."""

import math
from typing import Any

import numpy as np

from train.recipe import OF_DATA, Recipe, Target
from train.recipes import RECIPES

UNITS = ("%", "nats", "tokens")
"""Last words of metric names that are units."""
SCORES = ("BLEU", "CIDEr-D", "ROUGE-L")
"""Prefixes of the last words of metric names that are scores, in the units that papers use."""


def name_metrics(split: str, means: dict[str, float], nats: bool) -> dict[str, float]:
    """Metrics by full name.  Accuracy is given in per cent, together with the error.

    nats: whether the loss is a negative log-likelihood.
    """
    named = {}
    for name, value in means.items():
        if name != "accuracy":
            named[f"{split} {name}" + (" nats" if name == "loss" and nats else "")] = value
    accuracy = means.get("accuracy")
    if accuracy is not None:  # printed last, where it is easy to see
        named[f"{split} error %"] = 100 - 100 * accuracy
        named[f"{split} accuracy %"] = 100 * accuracy
    return named


def show_metric(
    name: str, value: float, count: int, interval: tuple[float, float] | None = None
) -> str:
    """A metric on one line: "test accuracy 98.7 %, 95 % interval 96.6 to 99.5"."""
    shown = " ".join(part for part in format_metric(name, value, count) if part)
    return shown if interval is None else f"{shown}, {show_interval(interval, count)}"


def show_interval(interval: tuple[float, float], count: int) -> str:
    """Interval of a proportion of ``count`` examples, in per cent: "95 % interval 96.6 to 99.5"."""
    low, high = (format_percent(end, count) for end in interval)
    return f"95 % interval {low} to {high}"


def format_metric(name: str, value: float, count: int) -> tuple[str, str, str]:
    """Label, number and unit ("" if none); the unit of a score is its maximum: "of 100".

    Percentages are formatted by ``format_percent`` for ``count`` items.  Theirs is the only unit
    that may be followed by words: "WER % with lexicon" has the label "WER with lexicon".
    """
    label, _, unit = name.rpartition(" ")
    if " % " in name:
        label, unit = name.replace(" % ", " ", 1), "%"
    if unit.startswith(SCORES):
        return name, f"{value:.2f}", "of 1000" if unit == "CIDEr-D" else "of 100"
    if unit not in UNITS:
        return name, f"{value:.{4 if abs(value) < 100 else 2}f}", ""
    if unit == "tokens":
        return label, f"{value:,.0f}", unit
    return label, format_percent(value, count) if unit == "%" else f"{value:.4f}", unit


def format_percent(value: float, count: int) -> str:
    """A percentage, with as many decimals as ``count`` items resolve.

    It has at most two decimals, or as many as show two digits of the distance to 0 or 100.
    Only exactly 0 and exactly 100 become "0" and "100".
    """
    distance = min(abs(value), abs(100 - value))
    if distance == 0:
        return f"{value:.0f}"
    resolved = max(math.ceil(math.log10(count)) - 2, 1)
    significant = 1 - math.floor(math.log10(distance)) if math.isfinite(distance) else 0
    return f"{value:.{min(resolved, max(significant, 2))}f}"


def reached(target: Target, value: float) -> bool:
    """Whether a value is within a target's bounds; True if the target has none."""
    low = -math.inf if target.at_least is None else target.at_least
    high = math.inf if target.at_most is None else target.at_most
    return low <= value <= high


def other_task(recipe: Recipe[Any, Any]) -> list[str]:
    """How a run's task differs from that of its registered recipe; if so, the targets do not apply.

    Lists a different data set and different settings that define the task, such as
    "data 'fashion_mnist' instead of 'mnist'".  [] if the task is the same, whatever the model and
    optimizer, or if no recipe has this name.
    """
    registered = RECIPES.get(recipe.name, recipe)
    pairs = {
        name: (getattr(recipe, name), getattr(registered, name)) for name in (*OF_DATA, "labels")
    }
    actual_data, expected_data = pairs.pop("data")
    pairs = {"data": (str(actual_data), str(expected_data))} | pairs
    if str(actual_data) == str(expected_data):
        expected_settings = vars(expected_data)
        pairs |= {
            f"data.{name}": (value, expected_settings[name])
            for name, value in vars(actual_data).items()
        }
    return [
        f"{name} {actual!r} instead of {expected!r}"
        for name, (actual, expected) in pairs.items()
        if actual != expected
    ]


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts [true class, predicted class] from targets [n] and predictions [n].

    Raises ValueError if their shapes differ, or if values are outside of 0 to classes - 1.

    Example::

        >>> import numpy as np
        >>> from evals.metrics import confusion_matrix
        >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), classes=2).tolist()
        [[1, 1], [0, 1]]
    """
    targets, predicted = np.asarray(targets), np.asarray(predicted)
    if targets.shape != predicted.shape:
        raise ValueError(
            f"targets {targets.shape} and predicted {predicted.shape}, allowed: the same shape"
        )
    for name, values in (("targets", targets), ("predicted", predicted)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"{name}: {values.min()} to {values.max()}, allowed: 0 to {classes - 1}"
            )
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(
        classes, classes
    )


def is_whole(value: Any) -> bool:
    """Whether a value is a Python or numpy integer, and not a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
