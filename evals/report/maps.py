"""Report sections on local filters: feature maps of one example, and first-layer weights."""

import math
from typing import Any

import jax
import numpy as np

from evals.base import Evaluation
from evals.report.page import as_bytes, picture, render, titled
from train.batches import Batches
from train.formats import Images

MAPS_SHOWN = 16
FRAMES_SHOWN = 8
UNITS_SHOWN = 64
READING = {
    1: "Time runs to the right; each row of a picture is a channel, the first at the bottom.",
    2: "",
    3: "Frames are side by side (in pictures of weights, channels too), "
    f"at most {FRAMES_SHOWN}, evenly spaced.",
}
"""How to read the pictures, by number of spatial axes."""


def spatial(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Spatial intermediates of the chosen example: {name: float32 [*space, channels]}.

    These are the values in the model's trace with as many axes as the input.  {} unless inputs are
    arrays [*space, channels] with one to three spatial axes.
    """
    inputs = evaluation.table["inputs"]
    if not isinstance(inputs, np.ndarray | Images) or inputs.ndim - 2 not in READING:
        return {}
    run, chosen = evaluation.run, inputs[evaluation.example][None]
    batch = Batches({"inputs": chosen}, 1, seed=None, scaling=run.scaling).batch(0)
    _, intermediates = run.module.trace(
        run.recipe.model, run.params, batch["inputs"]
    )  # not jitted: jit would sort the names
    maps = {
        name: leaf
        for name, leaf in intermediates.items()
        if leaf.ndim == inputs.ndim and len(leaf) == 1
    }
    return {name: np.asarray(leaf[0], np.float32) for name, leaf in maps.items()}


def feature_maps(evaluation: Evaluation, beside: str = "") -> str | None:
    """The chosen example and its feature maps in every layer, from the bottom up.

    beside: HTML shown next to them.
    """
    maps = spatial(evaluation)
    if not maps:
        return None
    raw = evaluation.table["inputs"][evaluation.example]
    layers = [
        _layer(
            "input",
            raw,
            evaluation.run.data.input_range,
            colours=raw.ndim > 2 and raw.shape[-1] in (3, 4),
        )
    ]
    layers += [
        _layer(name, values, (float(values.min()), float(values.max())))
        for name, values in maps.items()
    ]
    body = render(
        "feature_maps.html",
        example=evaluation.example,
        split=evaluation.split,
        layers=layers,
        beside=beside,
        reading=READING[raw.ndim - 1],
    )
    return titled("Feature maps", body)


def first_weights(evaluation: Evaluation) -> str | None:
    """Pictures of the filters of the first convolution, or of fully connected first-layer units."""
    shape = evaluation.run.data.input_shape
    named_kernel = (
        _first_kernel(evaluation) if shape is not None and len(shape) - 1 in READING else None
    )
    if shape is None or named_kernel is None:
        return None
    name, kernel = named_kernel
    # The largest come first, because units that never learned look like noise.
    units = kernel.shape[-1]
    shown = np.argsort(-np.square(kernel).reshape(-1, units).sum(axis=0), kind="stable")[
        :UNITS_SHOWN
    ]
    pictures = {}
    for unit in shown:
        weights = kernel[..., unit]
        # Channels that are not colours are shown side by side, like frames.
        if weights.ndim > 2 and weights.shape[-1] not in (1, 3):
            weights = np.moveaxis(weights, -1, 0).reshape(-1, *weights.shape[-3:-1], 1)
        largest = float(abs(weights).max())
        pictures[f"unit {unit}"] = as_bytes(weights, (-largest, largest))
    which = f"the {len(shown)} largest of {units}" if len(shown) < units else f"all {units}"
    body = render(
        "first_weights.html",
        name=name,
        which=which,
        reading=READING[next(iter(pictures.values())).ndim - 1],
        pictures=_grid(pictures, "taps weights"),
    )
    return titled("First-layer weights", body)


def draw(pixels: np.ndarray) -> np.ndarray:
    """Arranges bytes [time, channels], [(frames,) height, width, channels] as one ``picture``.

    Time runs to the right and channels upwards; frames are side by side, with a transparent pixel
    between them.
    """
    if pixels.ndim == 2:
        return pixels.T[::-1]
    if pixels.ndim == 3:
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    frames = pixels[
        np.linspace(0, len(pixels) - 1, min(len(pixels), FRAMES_SHOWN)).round().astype(int)
    ]
    if pixels.shape[-1] != 4:
        frames = np.concatenate([frames, np.full_like(frames[..., :1], 255)], axis=-1)
    return np.concatenate(list(np.pad(frames, ((0, 0), (0, 0), (0, 1), (0, 0)))), axis=1)[:, :-1]


def _first_kernel(evaluation: Evaluation) -> tuple[str, np.ndarray] | None:
    """Name and weights [*window, channels, units] of the first kernel.

    This is the first kernel of a convolution over the inputs, or else the first that is fully
    connected to an image.
    """
    shape = evaluation.run.data.input_shape
    assert shape is not None
    leaves = jax.tree_util.tree_leaves_with_path(evaluation.run.params)
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves
    ]
    named.sort(
        key=lambda item: item[0].startswith("decoder")
    )  # last: a decoder's kernel may have the same shape
    for name, leaf in named:
        if (
            name.rpartition(".")[-1] == "kernel"
            and leaf.ndim == len(shape) + 1
            and leaf.shape[-2] == shape[-1]
        ):
            return name, np.asarray(leaf, np.float32)
    for name, leaf in named:
        if len(shape) > 2 and leaf.ndim == 2 and len(leaf) == math.prod(shape):
            return name, np.asarray(leaf, np.float32).reshape(*shape, -1)
    return None


def _layer(
    name: str, values: np.ndarray, value_range: tuple[float, float], colours: bool = False
) -> dict[str, Any]:
    """A row of pictures of values [*space, channels].

    There is one picture for each channel; colours and time series are a single picture.
    """
    pixels = as_bytes(values, value_range)
    *space, channels = values.shape
    what = (
        f"{channels} {'channel' if name == 'input' else 'map'}{'s' if channels > 1 else ''} "
        f"of {' x '.join(map(str, space))}"
    )
    shown = {name: pixels}
    if len(space) > 1 and not colours:
        contrast = values.astype(np.float32).reshape(-1, channels).std(axis=0)
        chosen = np.sort(np.argsort(-contrast, kind="stable")[:MAPS_SHOWN])
        shown = {f"{name}, map {index}": pixels[..., index, None] for index in chosen}
        what += f", the {MAPS_SHOWN} with most contrast" if channels > MAPS_SHOWN else ""
    return {
        "name": name,
        "note": f"{what}; {value_range[0]:.3g} to {value_range[1]:.3g}",
        "pictures": _grid(shown, "signals", "input" if name == "input" else ""),
    }


def _grid(shown: dict[str, np.ndarray], signals: str, kind: str = "") -> str:
    """Arranges pictures, {title: bytes [*space, channels]}, by their number of spatial axes."""
    first = next(iter(shown.values()))
    kind = f"{kind} {(signals, 'weights', 'strips')[first.ndim - 2]}".strip()
    # Every frame has the same width.
    width = f"{2.25 * min(len(first), FRAMES_SHOWN):g}" if first.ndim == 4 else ""
    pictures = [picture(draw(pixels), name) for name, pixels in shown.items()]
    return render("grid.html", kind=kind, width=width, pictures=pictures)
