"""Reads the user's files as inputs of a trained model.  This does not need the data set."""

import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from evals.run import Run
from train.formats import DataError, check_inputs, read_image, read_npz

F = TypeVar("F")
T = TypeVar("T")


class Failures:
    """Prints errors of files, and remembers in ``any`` whether there were errors."""

    any = False

    def __call__(self, error: Exception) -> None:
        """Prints an error."""
        self.any = True
        print(f"error: {error}", file=sys.stderr)


def readable(
    files: Iterable[F], read: Callable[[F], T], failed: Callable[[DataError], None] | None = None
) -> Iterator[tuple[F, T]]:
    """Yields (file, read(file)) for each file, in order.

    failed: called with the error of each file that cannot be read, which is then skipped; if None,
    the first error is raised.
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


def read_inputs(run: Run, file: pathlib.Path, *, invert: bool = False) -> np.ndarray:
    """Raw inputs [n, *input_shape] from an image file, or from the array "inputs" of an npz file.

    invert: swaps the least and the greatest value (light and dark).
    Raises DataError that names the file.
    """
    low, high = run.data.input_range
    shape = run.data.input_shape
    if holds_arrays(file):
        arrays = read_npz(file)
        if "inputs" not in arrays:
            has = ", ".join(sorted(arrays)) or "nothing"
            raise DataError(f"{file}: contains {has}; expected an array named inputs")
        inputs = _shaped(file, check_inputs(str(file), "inputs", arrays["inputs"]), shape)
    else:
        if shape is None or len(shape) != 3:
            why = "this run was not trained on images"
            raise DataError(f"{file}: {why}; give an npz file with an array named inputs")
        height, width, channels = shape
        pixels = read_image(file, (height, width, channels))[None].astype(np.float32)
        inputs = low + pixels * ((high - low) / 255)
    return (low + high) - inputs.astype(np.float32) if invert else inputs


def holds_arrays(file: pathlib.Path) -> bool:
    """Whether a file is an npz file, by its name, rather than an image."""
    return file.suffix.lower() == ".npz"


def _shaped(file: pathlib.Path, inputs: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """Inputs [n, *shape] from inputs of that shape, flat inputs, or inputs without a channel axis.

    Raises DataError for other shapes, even of the same size: their axis order is unknown (channels
    may come first).
    """
    given = inputs.shape[1:]
    if shape is None or given == shape:
        return inputs
    if given == (np.prod(shape),) or (*given, 1) == shape:
        return inputs.reshape(len(inputs), *shape)
    first = len(shape) == 3 and given == (shape[2], *shape[:2])
    hint = "; channels come last: numpy.moveaxis(inputs, 1, -1)" if first else ""
    expected = f"[n, {', '.join(map(str, shape))}]"
    raise DataError(f"{file}: inputs have shape {inputs.shape}, expected {expected}{hint}")
