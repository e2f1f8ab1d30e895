"""Classification: a prediction for each example, the model's mistakes, and labels for new files."""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from evals import verbs
from evals.base import Evaluation, Measured, Subject
from evals.files import Failures, holds_arrays, read_inputs, readable
from evals.gradients import through_time
from evals.metrics import confusion_matrix
from evals.report import maps
from evals.report.page import as_images, picture, render, show_output, titled, unbroken
from evals.report.shifts import shifts
from evals.run import Run, class_names, predict_batch, restore
from train import tasks
from train.batches import Batches
from train.engine.step import root_key
from train.formats import DataError
from zoo.base import Model, Params

TASK = tasks.Classification
TOP = 3
"""Classes printed for each item."""
BARS = 5
"""Classes shown next to the feature maps."""
MISTAKES = 24
MATRIX_CLASSES = 20
"""With more classes the matrix does not fit on a screen: frequent confusions are listed instead."""
POLARITY = (
    "images are used as they are; if yours have the opposite polarity to the training data "
    "(e.g. dark on light), add --invert"
)


class Predictions(NamedTuple):
    """The predictions of a classifier for every example of a split, in order.

    outputs [n, classes]: probabilities, unless the model's outputs are linear.
    losses [n].  targets [n]: the true classes.
    """

    outputs: np.ndarray
    losses: np.ndarray
    targets: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The most probable class of each example [n]."""
        return self.outputs.argmax(axis=-1)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Classified(Measured):
    """predictions: None if the objective carries state from batch to batch."""

    predictions: Predictions | None


def measure(subject: Subject) -> Classified:
    """Accuracy, error, the metrics of the loss, and a prediction for each example."""
    metrics = subject.losses
    mask = subject.table.get("mask")
    count = len(subject.table["targets"]) if mask is None else int(np.sum(mask))
    shares = dict.fromkeys(subject.named({"accuracy %": 0, "error %": 0}), count)
    return Classified(metrics=metrics, shares=shares, predictions=_predict(subject))


def _predict(subject: Subject) -> Predictions | None:
    run, table = subject.run, subject.table
    carry = run.module.init_carry(run.recipe.model, run.params, 1, key=root_key(0))
    if jax.tree.leaves(carry):
        return None
    outputs, losses = run.map(_outputs_and_losses, table)
    return Predictions(outputs, losses, table["targets"])


@functools.partial(jax.jit, static_argnums=0)
def _outputs_and_losses(module: Model, cfg: Any, params: Params, batch: Any) -> tuple[Any, Any]:
    def loss_of_one(example: Any) -> Any:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        return module.loss(cfg, params, alone, key=None)[0]

    return predict_batch(module, cfg, params, batch["inputs"]), jax.vmap(loss_of_one)(batch)


# ------------------------------------------------------------------ the report


def confusions(evaluation: Evaluation) -> str | None:
    """The confusion matrix, or the most frequent confusions if there are many classes."""
    predictions = _predictions(evaluation)
    if predictions is None:
        return None
    names = class_names(evaluation.run, predictions.outputs.shape[1])
    counts = confusion_matrix(predictions.targets, predictions.classes, len(names))
    if len(names) <= MATRIX_CLASSES:
        body = render("confusions.html", names=names, rows=_matrix(counts))
    else:
        body = render("confusions.html", items=_pairs(counts, names))
    return titled("Confusion matrix", body)


def mistakes(evaluation: Evaluation) -> str | None:
    """The wrongly classified examples with the highest loss."""
    predictions = _predictions(evaluation)
    if predictions is None:
        return None
    names = class_names(evaluation.run, predictions.outputs.shape[1])
    wrong = np.flatnonzero(predictions.classes != predictions.targets)
    worst = wrong[np.argsort(-predictions.losses[wrong], kind="stable")][:MISTAKES]
    inputs = evaluation.table["inputs"]
    images = as_images(inputs[worst], evaluation.run.data.input_range)

    def shown(index: Any, label: Any) -> tuple[str, str]:
        return names[label], unbroken(predictions.outputs[index, label])

    cards = [
        {
            "image": picture(images[number], f"example {index}") if images is not None else "",
            "predicted": shown(index, predictions.classes[index]),
            "true": shown(index, predictions.targets[index]),
            "loss": f"{predictions.losses[index]:.2f}",
            "example": index,
        }
        for number, index in enumerate(worst)
    ]
    intro = f"{len(wrong):,} of {evaluation.count:,} examples are misclassified"
    if len(worst) < len(wrong):
        intro += f"; these {len(worst)} have the highest loss."
    else:
        intro += "." if len(wrong) else ": none."
    return titled("Worst mistakes", render("mistakes.html", intro=intro, cards=cards))


def feature_maps(evaluation: Evaluation) -> str | None:
    """``evals.report.maps.feature_maps`` next to the scores of the example."""
    return maps.feature_maps(evaluation, beside=_scores(evaluation))


def small_shifts(evaluation: Evaluation) -> str | None:
    """``evals.report.shifts.shifts``, if there are predictions."""
    predictions = _predictions(evaluation)
    return None if predictions is None else shifts(evaluation, predictions.targets)


def _predictions(evaluation: Evaluation) -> Predictions | None:
    assert isinstance(evaluation.measured, Classified)
    return evaluation.measured.predictions


def _scores(evaluation: Evaluation) -> str:
    """The most probable classes of the chosen example, with bars."""
    predictions = _predictions(evaluation)
    if predictions is None:
        return ""
    outputs = predictions.outputs[evaluation.example]
    true = predictions.targets[evaluation.example]
    names = class_names(evaluation.run, len(outputs))
    scale = max(float(outputs.max()), 1.0)
    rows = [
        {
            "name": names[index],
            "true": index == true,
            "width": f"{100 * max(float(outputs[index]), 0) / scale:.1f}",
            "output": unbroken(outputs[index]),
        }
        for index in np.argsort(-outputs, kind="stable")[:BARS]
    ]
    return render("scores.html", true_class=names[true], rows=rows)


def _matrix(counts: np.ndarray) -> list[dict[str, Any]]:
    """For each true class: (count, shade) of each predicted class, and the error."""
    rows = []
    for true, row in enumerate(counts):
        total = max(int(row.sum()), 1)
        # The square root keeps a single mistake visible next to hundreds of correct ones.
        shades = [f"{math.sqrt(count / total) * 0.75:.2f}" if count else "0" for count in row]
        cells = zip(row, shades, strict=True)
        rows.append({"cells": cells, "error": f"{100 - 100 * row[true] / total:.1f}"})
    return rows


def _pairs(counts: np.ndarray, names: list[str]) -> list[tuple[str, str]]:
    """The most frequent confusions: the two classes, and how often."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES]
    pairs = [divmod(int(index), len(counts)) for index in order if wrong.flat[index]]
    return [
        (f"{names[true]}, {names[predicted]}", f"{wrong[true, predicted]} of {counts[true].sum()}")
        for true, predicted in pairs
    ]


SECTIONS = (confusions, mistakes, feature_maps, maps.first_weights, small_shifts, through_time)


# ------------------------------------------------------------------ predict


def predict(
    run_dir: str | os.PathLike[str],
    files: Iterable[str | os.PathLike[str]],
    *,
    invert: bool = False,
) -> list[tuple[str, np.ndarray]]:
    """Classifies files: (label, outputs [classes]) for each item.

    An image is one item; an npz file contains n items, "inputs" [n, ...].  Images of any size and
    format are resized to the training images and scaled to their range of values.
    invert: for files with the opposite polarity to the training data, such as dark on light.
    Raises RunError, CheckpointError, DataError that names the file, and ValueError for a single
    path instead of a list.
    """
    if isinstance(files, str | os.PathLike):
        raise ValueError(f"files={os.fspath(files)!r}, allowed: a list of files")
    run = restore(run_dir)
    verbs.require(run, "predict", {"predict": predict} if isinstance(run.task, TASK) else {})
    return list(predict_files(run, [pathlib.Path(file) for file in files], invert=invert))


def predict_files(
    run: Run,
    files: Sequence[pathlib.Path],
    *,
    invert: bool = False,
    failed: Callable[[DataError], None] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """``predict`` with a run that is already restored.

    Batches contain items of several files, and all have the same size, so that the model is
    compiled only once.
    failed: see ``evals.files.readable``.
    """
    images_only = not any(map(holds_arrays, files))
    size = min(run.recipe.batch_size, len(files)) if images_only else run.recipe.batch_size
    accepted = set()

    def read(file: pathlib.Path) -> np.ndarray:
        inputs = read_inputs(run, file, invert=invert)
        if (kind := _kind(inputs[0])) not in accepted:
            _require_accepted(run, file, inputs, size)
            accepted.add(kind)
        return inputs

    items = (
        item
        for file, inputs in readable(files, read, failed)
        for item in zip(_labels(file, inputs), inputs, strict=True)
    )
    for _, alike in itertools.groupby(items, lambda item: _kind(item[1])):
        while group := list(itertools.islice(alike, size)):
            inputs = np.stack([inputs for _, inputs in group])
            outputs = run.map(_outputs, {"inputs": inputs}, rows=size)
            yield from zip((label for label, _ in group), outputs, strict=True)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(module: Model, cfg: Any, params: Params, batch: Any) -> Any:
    return predict_batch(module, cfg, params, batch["inputs"])


def _labels(file: pathlib.Path, inputs: np.ndarray) -> list[str]:
    if not holds_arrays(file):
        return [str(file)]
    return [f"{file}[{index}]" for index in range(len(inputs))]


def _kind(example: np.ndarray) -> tuple[Any, ...]:
    """Shape and dtype, which all examples of a batch share."""
    return example.shape, example.dtype


def _require_accepted(run: Run, file: pathlib.Path, inputs: np.ndarray, size: int) -> None:
    """Raises DataError naming the file if the model does not accept its examples."""
    try:
        batches = Batches({"inputs": inputs[:1]}, 1, seed=None, scaling=run.scaling)
        batch = jax.eval_shape(batches.load, batches.example(size))
        jax.eval_shape(functools.partial(_outputs, run.module), run.recipe.model, run.params, batch)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def show_item(run: Run, label: str, outputs: np.ndarray) -> str:
    """The label and the most probable classes on one line: "seven.png  7 98.2 %  1 0.9 %"."""
    names = class_names(run, len(outputs))
    best = np.argsort(-outputs, kind="stable")[:TOP]
    shown = (f"{names[index]} {show_output(float(outputs[index]))}" for index in best)
    return "  ".join([label, *shown])


def print_predictions(run: Run, options: verbs.Predict) -> int:
    """Prints a line for each item of each file; reports and skips files that cannot be read."""
    failures, images, labelled = Failures(), set(map(str, options.files)), False
    for label, outputs in predict_files(run, options.files, invert=options.invert, failed=failures):
        print(show_item(run, label, outputs))
        labelled = labelled or label in images
    grey = tuple(run.data.input_shape or ())[2:] == (1,)  # colours have no polarity
    if labelled and grey and not options.invert:
        print(POLARITY, file=sys.stderr)
    return int(failures.any)


VERBS = {"predict": print_predictions}
