"""Prediction: labels the user's own files with a run's best model.  The data set need not be there."""

import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from evals.evaluation import Restored, class_names, make_predict, restore
from train.batches import Batches
from train.formats import DataError, check_inputs, read_image, read_npz
from zoo.base import Conditional

TOP = 3
F = TypeVar("F")
T = TypeVar("T")


def predict(
    run_dir: str | os.PathLike[str], files: Iterable[str | os.PathLike[str]], *, invert: bool = False
) -> list[tuple[str, np.ndarray]]:
    """(label, outputs [classes]) of each item of the files: an image is one item, an npz file holds "inputs" [n, ...].

    Images of any size and format are resized to the shape of the training inputs, and brought to their range of values.
    invert: for files that are dark on light where the training data are light on dark, or the other way round.
    Raises RunError, CheckpointError, DataError that names the file, and ValueError for one file instead of several.
    """
    if isinstance(files, str | os.PathLike):
        raise ValueError(f"files={os.fspath(files)!r}, allowed: a list of files")
    return list(predict_files(restore(run_dir), [pathlib.Path(file) for file in files], invert=invert))


def predict_files(
    run: Restored, files: Sequence[pathlib.Path], *, invert: bool = False, failed: Callable[[DataError], None] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """``predict`` with a model that is already restored.

    Items of all files fill batches of one size, so that the model is compiled once.  failed: see ``readable``.
    """
    if isinstance(run.module, Conditional):
        raise DataError(f"{run.folder.path}: the model writes instead of choosing a class; see --caption and --translate")
    alone = not any(map(holds_arrays, files))
    size = min(run.recipe.batch_size, len(files)) if alone else run.recipe.batch_size
    accepted = set()

    def read(file: pathlib.Path) -> np.ndarray:
        inputs = read_inputs(run, file, invert=invert)
        if (kind := _kind(inputs[0])) not in accepted:
            _require_classes(run, file, inputs, size)
            accepted.add(kind)
        return inputs

    items = (item for file, inputs in readable(files, read, failed) for item in zip(_labels(file, inputs), inputs, strict=True))
    for _, alike in itertools.groupby(items, lambda item: _kind(item[1])):
        while group := list(itertools.islice(alike, size)):
            rows = np.stack([inputs for _, inputs in group])
            outputs = _function(run.module)(run.recipe.model, run.params, _batch(run, rows, size))
            yield from zip((label for label, _ in group), np.asarray(outputs), strict=False)  # what is padded has no label


def readable(
    files: Iterable[F], read: Callable[[F], T], failed: Callable[[DataError], None] | None = None
) -> Iterator[tuple[F, T]]:
    """(file, what ``read`` makes of it), in order.

    failed: is told of a file that cannot be read, which is left out; without it the error ends all.
    """
    for file in files:
        try:
            value = read(file)
        except DataError as error:
            if failed is None:
                raise
            failed(error)
        else:
            yield file, value


def _labels(file: pathlib.Path, inputs: np.ndarray) -> list[str]:
    return [str(file)] if not holds_arrays(file) else [f"{file}[{index}]" for index in range(len(inputs))]


def _kind(example: np.ndarray) -> tuple[Any, ...]:
    """What an example has to share with others to be in a batch with them."""
    return example.shape, example.dtype


def _require_classes(run: Restored, file: pathlib.Path, inputs: np.ndarray, size: int) -> None:
    """Raises DataError naming the file whose examples the model refuses, or the run's folder unless it chooses classes."""
    try:
        batches = Batches({"inputs": inputs[:1]}, 1, seed=None, scaling=run.scaling)
        batch = jax.eval_shape(batches.load, batches.example(size))
        outputs = jax.eval_shape(_function(run.module), run.recipe.model, run.params, batch["inputs"])
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    if getattr(outputs, "ndim", 0) != 2:
        raise DataError(f"{run.folder.path}: the model's outputs are not classes, so there are no labels to give")


def _batch(run: Restored, rows: np.ndarray, size: int) -> Any:
    """Raw inputs [rows, ...] as the model takes them, [size, ...]: the first one fills it up."""
    padded = np.concatenate([rows, np.broadcast_to(rows[:1], (size - len(rows), *rows.shape[1:]))])
    return Batches({"inputs": padded}, size, seed=None, scaling=run.scaling).batch(0)["inputs"]


@functools.cache
def _function(module: Any) -> Any:
    return jax.jit(lambda cfg, params, inputs: make_predict(module, cfg)(params, inputs))


def read_inputs(run: Restored, file: pathlib.Path, *, invert: bool = False) -> np.ndarray:
    """Raw inputs [n, *input_shape] from an image file, or "inputs" of an npz file.  Raises DataError that names the file."""
    low, high = run.data.input_range
    shape = run.data.input_shape
    if holds_arrays(file):
        arrays = read_npz(file)
        if "inputs" not in arrays:
            raise DataError(f"{file}: holds {', '.join(sorted(arrays)) or 'nothing'}; expected an array named inputs")
        inputs = _shaped(file, check_inputs(str(file), "inputs", arrays["inputs"]), shape)
    else:
        if shape is None or len(shape) != 3:
            raise DataError(f"{file}: this run was not trained on images; give an npz file with an array named inputs")
        height, width, channels = shape
        pixels = read_image(file, (height, width, channels))[None].astype(np.float32)
        inputs = low + pixels * ((high - low) / 255)
    return (low + high) - inputs.astype(np.float32) if invert else inputs


def holds_arrays(file: pathlib.Path) -> bool:
    """Whether a file is an npz file by its name, rather than an image."""
    return file.suffix.lower() == ".npz"


def _shaped(file: pathlib.Path, inputs: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """Inputs [n, *shape], given like this, flat, or without a last axis of length 1.

    As many values in other axes are refused: nobody knows in which order they are, and channels may come first.
    """
    given = inputs.shape[1:]
    if shape is None or given == shape:
        return inputs
    if given == (np.prod(shape),) or (*given, 1) == shape:
        return inputs.reshape(len(inputs), *shape)
    first = len(shape) == 3 and given == (shape[2], *shape[:2])
    hint = "; channels come last: numpy.moveaxis(inputs, 1, -1)" if first else ""
    raise DataError(f"{file}: inputs have shape {inputs.shape}, expected [n, {', '.join(map(str, shape))}]{hint}")


def show_item(run: Restored, label: str, outputs: np.ndarray) -> str:
    """One line: the label and the most probable classes, "seven.png  7 98.2 %  1 0.9 %  2 0.4 %"."""
    names = class_names(run, len(outputs))
    best = np.argsort(-outputs, kind="stable")[:TOP]
    return "  ".join([label, *(f"{names[index]} {show_output(float(outputs[index]))}" for index in best)])


def show_output(value: float) -> str:
    """A probability in per cent; an output that is none, as a number."""
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.3g}"
