"""Report section on small shifts: how robust a classifier is to translations of its inputs.

Pooling and weight sharing provide this robustness.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from evals.base import Evaluation
from evals.report.maps import spatial
from evals.report.page import COLORS, is_image_shape, plot, render, titled
from evals.run import Run, predict_batch
from train.formats import Images
from zoo.base import Model, Params

EXAMPLES = 2000
VALUES = 2**24
"""Maximum number of input values in total: fewer large examples are used, to stay fast."""
FARTHEST = 4
AXES = {1: (1,), 2: (1, 2), 3: (2, 3)}
"""Axes of inputs [n, *space, channels] that are shifted, by number of spatial axes.

These are time, or height and width (also of frames)."""


def shifts(evaluation: Evaluation, targets: np.ndarray) -> str | None:
    """Accuracy of a classifier on shifted inputs, by the shift.  targets: classes [n]."""
    inputs = evaluation.table["inputs"]
    if not isinstance(inputs, np.ndarray | Images):
        return None
    if not is_image_shape(inputs.shape[1:]) and not spatial(evaluation):
        return None
    axes = AXES[inputs.ndim - 2]
    most = min(EXAMPLES, max(VALUES // inputs[0].size, 1))
    rows = np.arange(0, len(inputs), math.ceil(len(inputs) / most))
    farthest = min(FARTHEST, *(inputs.shape[axis] - 1 for axis in axes))
    low = evaluation.run.data.input_range[0]
    shares = accuracies(
        _classifier(evaluation.run), inputs[rows], targets[rows], axes, farthest, low
    )
    unit, where = (
        ("steps", "in time, either way")
        if axes == (1,)
        else ("pixels", "in each of the four directions")
    )
    count = (
        f"{len(rows):,} examples"
        if len(rows) == len(inputs)
        else f"{len(rows):,} of {len(inputs):,} examples, evenly spaced"
    )
    body = render(
        "shifts.html",
        count=count,
        where=where,
        low=f"{low:g}",
        plot=plot("accuracy %", lambda axes: _draw(axes, shares, f"shift, {unit}")),
        unit=unit,
        shares=shares,
    )
    return titled("Small shifts", body)


def accuracies(
    classify: Callable[[np.ndarray], np.ndarray],
    inputs: np.ndarray,
    targets: np.ndarray,
    axes: tuple[int, ...],
    farthest: int,
    fill: float,
) -> list[float]:
    """Accuracy for inputs [n, ...] shifted by 0, 1, ... farthest positions.

    Each is the mean over both directions along every axis.
    classify: inputs -> classes [n].  targets: [n].
    Raises ValueError without inputs, or for a shift that leaves nothing of them.
    """
    if not len(inputs) or len(inputs) != len(targets):
        raise ValueError(
            f"{len(inputs)} inputs, {len(targets)} targets, allowed: the same number, at least one"
        )
    if not 0 <= farthest < min(inputs.shape[axis] for axis in axes):
        raise ValueError(
            f"farthest={farthest}, allowed: 0 or more, less than the length of the axes {axes} of "
            f"{inputs.shape}"
        )
    shares = [float((classify(inputs) == targets).mean())]
    for shift in range(1, farthest + 1):
        ways = itertools.product(axes, (shift, -shift))
        shares.append(
            float(
                np.mean([classify(shifted(inputs, axis, by, fill)) == targets for axis, by in ways])
            )
        )
    return shares


def shifted(inputs: np.ndarray, axis: int, by: int, fill: float) -> np.ndarray:
    """Inputs shifted by ``by`` positions along an axis, and filled up with ``fill``.

    A positive shift is towards the end of the axis, a negative one towards its beginning.
    """
    result = np.full_like(inputs, fill)
    length, before = inputs.shape[axis], (slice(None),) * axis
    result[*before, max(by, 0) : length + min(by, 0)] = inputs[
        *before, max(-by, 0) : length - max(by, 0)
    ]
    return result


def _classifier(run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """A function: raw inputs [n, ...] -> the most probable classes [n]."""
    return lambda inputs: run.map(_classes, {"inputs": inputs})


@functools.partial(jax.jit, static_argnums=0)
def _classes(module: Model, cfg: Any, params: Params, batch: Any) -> Any:
    return predict_batch(module, cfg, params, batch["inputs"]).argmax(axis=-1)


def _draw(axes: Any, shares: list[float], label: str) -> None:
    axes.plot(
        [100 * share for share in shares],
        color=COLORS["validation"],
        linewidth=1.8,
        marker="o",
        markersize=4,
    )
    axes.set_ylim(0, 102)
    axes.set_xticks(range(len(shares)))
    axes.set_xlabel(label)
