"""Metrics: how they are named, printed and judged."""

import math
from typing import Any

import numpy as np

from train.recipe import OF_DATA, Recipe, Target
from train.recipes import RECIPES

UNITS = ("%", "nats", "tokens")
"""Last words of metric names that are units."""
SCORES = ("BLEU", "CIDEr-D", "ROUGE-L")
"""Last words, or how they begin, of scores as papers print them."""


def name_metrics(split: str, means: dict[str, float], nats: bool) -> dict[str, float]:
    """Metrics by full name.  Accuracies become per cent, with the error beside; nats: the loss is a negative log-likelihood."""
    named = {}
    for name, value in means.items():
        if name != "accuracy":
            named[f"{split} {name}" + (" nats" if name == "loss" and nats else "")] = value
    accuracy = means.get("accuracy")
    if accuracy is not None:  # last, where it is seen
        named[f"{split} error %"] = 100 - 100 * accuracy
        named[f"{split} accuracy %"] = 100 * accuracy
    return named


def show_metric(
    name: str, value: float, count: int, interval: tuple[float, float] | None = None
) -> str:
    """One line: "test accuracy 98.7 %, 95 % interval 96.6 to 99.5"."""
    shown = " ".join(part for part in format_metric(name, value, count) if part)
    return shown if interval is None else f"{shown}, {show_interval(interval, count)}"


def show_interval(interval: tuple[float, float], count: int) -> str:
    """An interval for a share of ``count`` examples, in per cent: "95 % interval 96.6 to 99.5"."""
    low, high = (format_percent(end, count) for end in interval)
    return f"95 % interval {low} to {high}"


def format_metric(name: str, value: float, count: int) -> tuple[str, str, str]:
    """Label, number, unit (or ""): per cents as ``format_percent`` of ``count`` items has them; of a score what it is out of."""
    label, _, unit = name.rpartition(" ")
    if unit.startswith(SCORES):
        return name, f"{value:.2f}", "of 1000" if unit == "CIDEr-D" else "of 100"
    if unit not in UNITS:
        return name, f"{value:.{4 if abs(value) < 100 else 2}f}", ""
    if unit == "tokens":
        return label, f"{value:,.0f}", unit
    return label, format_percent(value, count) if unit == "%" else f"{value:.4f}", unit


def format_percent(value: float, count: int) -> str:
    """With as many decimals as ``count`` items resolve, but no more than two, or than two digits of what is missing to 0 or 100.

    Only what is exactly 0 or 100 is shown as that: "100".
    """
    missing = min(abs(value), abs(100 - value))
    if missing == 0:
        return f"{value:.0f}"
    resolved = max(math.ceil(math.log10(count)) - 2, 1)
    telling = 1 - math.floor(math.log10(missing)) if math.isfinite(missing) else 0
    return f"{value:.{min(resolved, max(telling, 2))}f}"


def reached(target: Target, value: float) -> bool:
    """Whether a value keeps within a target's bounds; True where it has none."""
    low = -math.inf if target.at_least is None else target.at_least
    high = math.inf if target.at_most is None else target.at_most
    return low <= value <= high


def other_task(recipe: Recipe[Any, Any]) -> list[str]:
    """What makes a run's task another one than its registered recipe's, whose targets then say nothing about it.

    Other data, or others of the settings that say what is learned from them: "data 'fashion_mnist' instead of 'mnist'".
    [] where the task is the recipe's, with whatever model and optimizer, and where no recipe of this name is registered.
    """
    registered = RECIPES.get(recipe.name, recipe)
    pairs = {
        name: (getattr(recipe, name), getattr(registered, name)) for name in (*OF_DATA, "labels")
    }
    here, there = pairs.pop("data")
    pairs = {"data": (str(here), str(there))} | pairs
    if str(here) == str(there):
        theirs = vars(there)
        pairs |= {f"data.{name}": (value, theirs[name]) for name, value in vars(here).items()}
    return [
        f"{name} {mine!r} instead of {own!r}" for name, (mine, own) in pairs.items() if mine != own
    ]


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts [true class, predicted class] of classes [n] and [n].

    Raises ValueError naming what is not as long as the other, or is outside of 0 to classes - 1.
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
    """Whether a number is an integer, of Python or numpy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
