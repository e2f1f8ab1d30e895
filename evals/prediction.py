"""Prediction: labels the user's own files with a run's best model.  The data set need not be there."""

import os
import pathlib
from collections.abc import Iterable

import jax
import numpy as np

from evals.evaluation import Restored, class_names, make_predict, restore
from train.formats import DataError, check_inputs, read_image, read_npz
from train.stage import evaluation_batches
from zoo.base import Conditional

TOP = 3


def predict(
    run_dir: str | os.PathLike[str], files: Iterable[str | os.PathLike[str]], *, invert: bool = False
) -> list[tuple[str, np.ndarray]]:
    """(label, outputs [classes]) of each item of the files: an image is one item, an npz file holds "inputs" [n, ...].

    Images of any size and format are resized to the shape of the training inputs, and brought to their range of values.
    invert: for files that are dark on light where the training data are light on dark, or the other way round.
    Raises RunError, CheckpointError, and DataError that names the file.
    """
    run = restore(run_dir)
    return [item for file in files for item in predict_file(run, pathlib.Path(file), invert=invert)]


def predict_file(run: Restored, file: pathlib.Path, *, invert: bool = False) -> list[tuple[str, np.ndarray]]:
    """``predict`` for one file and a model that is already restored."""
    if isinstance(run.module, Conditional):
        raise DataError(f"{run.folder.path}: the model writes instead of choosing a class; see --caption and --translate")
    inputs = read_inputs(run, file, invert=invert)
    batches = evaluation_batches({"inputs": inputs}, run.recipe.batch_size, run.scaling)
    function = jax.jit(make_predict(run.module, run.recipe.model))
    try:
        parts = [function(run.params, batches.batch(step)["inputs"]) for step in range(batches.steps_per_epoch)]
    except ValueError as error:  # the model refuses the shape
        raise DataError(f"{file}: {error}") from error
    if getattr(parts[0], "ndim", 0) != 2:
        raise DataError(f"{run.folder.path}: the model's outputs are not classes, so there are no labels to give")
    outputs = np.concatenate(jax.device_get(parts))[: len(inputs)]
    labels = [str(file)] if file.suffix != ".npz" else [f"{file}[{index}]" for index in range(len(inputs))]
    return list(zip(labels, outputs, strict=True))


def read_inputs(run: Restored, file: pathlib.Path, *, invert: bool = False) -> np.ndarray:
    """Raw inputs [n, *input_shape] from an image file, or "inputs" of an npz file.  Raises DataError that names the file."""
    low, high = run.data.input_range
    shape = run.data.input_shape
    if file.suffix == ".npz":
        arrays = read_npz(file)
        if "inputs" not in arrays:
            raise DataError(f"{file}: holds {', '.join(sorted(arrays)) or 'nothing'}; expected an array named inputs")
        inputs = check_inputs(str(file), "inputs", arrays["inputs"])
        if shape is not None and inputs.shape[1:] != shape:
            if inputs[0].size != np.prod(shape):
                raise DataError(f"{file}: inputs have shape {inputs.shape}, expected [n, {', '.join(map(str, shape))}]")
            inputs = inputs.reshape(len(inputs), *shape)
    else:
        if shape is None or len(shape) != 3:
            raise DataError(f"{file}: this run was not trained on images; give an npz file with an array named inputs")
        height, width, channels = shape
        pixels = read_image(file, (height, width, channels))[None].astype(np.float32)
        inputs = low + pixels * ((high - low) / 255)
    return (low + high) - inputs.astype(np.float32) if invert else inputs


def show_item(run: Restored, label: str, outputs: np.ndarray) -> str:
    """One line: the label and the most probable classes, "seven.png  7 98.2 %  1 0.9 %  2 0.4 %"."""
    names = class_names(run, len(outputs))
    best = np.argsort(-outputs, kind="stable")[:TOP]
    return "  ".join([label, *(f"{names[index]} {show_output(float(outputs[index]))}" for index in best)])


def show_output(value: float) -> str:
    """A probability in per cent; an output that is none, as a number."""
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.3g}"
