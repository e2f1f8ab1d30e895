"""Sections of the report on what local filters are and say: the feature maps of one example, and the first layer's weights."""

import html
import math

import jax
import numpy as np

from evals.base import Evaluation
from evals.report.page import as_bytes, picture, titled
from train.batches import Batches
from train.formats import Images

MAPS_SHOWN = 16
FRAMES_SHOWN = 8
UNITS_SHOWN = 64
READING = {
    1: "Time runs to the right; each row of a picture is a channel, the first at the bottom.  ",
    2: "",
    3: f"Frames (of weights, channels too) are side by side, of more than {FRAMES_SHOWN} as many, evenly spaced.  ",
}
"""How to read pictures, by the number of spatial axes."""


def spatial(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """What the model's trace of the chosen example has along the axes of the input: {name: float32 [*space, channels]}.

    {} unless inputs are arrays [*space, channels] of one to three spatial axes.
    """
    inputs = evaluation.table["inputs"]
    if not isinstance(inputs, np.ndarray | Images) or inputs.ndim - 2 not in READING:
        return {}
    run, chosen = evaluation.run, inputs[evaluation.example][None]
    batch = Batches({"inputs": chosen}, 1, seed=None, scaling=run.scaling).batch(0)
    _, seen = run.module.trace(
        run.recipe.model, run.params, batch["inputs"]
    )  # not jitted, which would sort the names
    maps = {
        name: leaf for name, leaf in seen.items() if leaf.ndim == inputs.ndim and len(leaf) == 1
    }
    return {name: np.asarray(leaf[0], np.float32) for name, leaf in maps.items()}


def feature_maps(evaluation: Evaluation, beside: str = "") -> str | None:
    """The chosen example, and every layer's feature maps of it from the bottom up.

    beside: HTML beside them.
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
    intro = f"Example {evaluation.example} of the {evaluation.split} split, from the input at the bottom upwards, as in figure 2 "
    intro += "of LeCun, Bengio, Hinton (2015).  <code>--example N</code> chooses another."
    note = f"In each layer black is the least value and white the greatest: the numbers above it.  {READING[raw.ndim - 1]}"
    body = f'<div class="network"><div class="layers">{"".join(layers)}</div>{beside}</div>'
    return titled("Feature maps", f'<p>{intro}</p>{body}<p class="note">{note}</p>')


def first_weights(evaluation: Evaluation) -> str | None:
    """Filters of the first convolution, or else kernels of units that see the whole image, as pictures."""
    shape = evaluation.run.data.input_shape
    found = _first_kernel(evaluation) if shape is not None and len(shape) - 1 in READING else None
    if shape is None or found is None:
        return None
    name, kernel = found
    # Units that never learned look like noise: the largest come first.
    units = kernel.shape[-1]
    shown = np.argsort(-np.square(kernel).reshape(-1, units).sum(axis=0), kind="stable")[
        :UNITS_SHOWN
    ]
    pictures = {}
    for unit in shown:
        weights = kernel[..., unit]
        # Channels that are no colours are side by side, as frames are.
        if weights.ndim > 2 and weights.shape[-1] not in (1, 3):
            weights = np.moveaxis(weights, -1, 0).reshape(-1, *weights.shape[-3:-1], 1)
        largest = float(abs(weights).max())
        pictures[f"unit {unit}"] = as_bytes(weights, (-largest, largest))
    which = f"the {len(shown)} largest of {units}" if len(shown) < units else f"all {units}"
    intro = f"Filters of <code>{html.escape(name)}</code>, {which}, each on its own scale: "
    intro += "white excites, black inhibits, grey is zero.  "
    reading = READING[next(iter(pictures.values())).ndim - 1]
    return titled(
        "First-layer weights", f"<p>{intro}{reading}</p>{_grid(pictures, 'taps weights')}"
    )


def draw(pixels: np.ndarray) -> np.ndarray:
    """Bytes [time, channels], [height, width, channels] or [frames, height, width, channels] -> what ``picture`` takes.

    Time runs to the right and channels upwards; frames are side by side, with a transparent pixel between them.
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
    """Name and weights [*window, channels, units] of the first kernel that slides over the inputs, or sees all of an image."""
    shape = evaluation.run.data.input_shape
    assert shape is not None
    leaves = jax.tree_util.tree_leaves_with_path(evaluation.run.params)
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves
    ]
    named.sort(
        key=lambda item: item[0].startswith("decoder")
    )  # which fits too where a layer has as many units as inputs
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
) -> str:
    """Values [*space, channels] as a row of pictures: one for each channel, unless channels are colours or space is time."""
    pixels = as_bytes(values, value_range)
    *space, channels = values.shape
    what = f"{channels} {'channel' if name == 'input' else 'map'}{'s' if channels > 1 else ''} of {' x '.join(map(str, space))}"
    shown = {name: pixels}
    if len(space) > 1 and not colours:
        contrast = values.astype(np.float32).reshape(-1, channels).std(axis=0)
        chosen = np.sort(np.argsort(-contrast, kind="stable")[:MAPS_SHOWN])
        shown = {f"{name}, map {index}": pixels[..., index, None] for index in chosen}
        what += f", the {MAPS_SHOWN} of most contrast" if channels > MAPS_SHOWN else ""
    note = f'<span class="note">{what}; {value_range[0]:.3g} to {value_range[1]:.3g}</span>'
    pictures = _grid(shown, "signals", "input" if name == "input" else "")
    return f"<figure><figcaption><b>{html.escape(name)}</b> {note}</figcaption>{pictures}</figure>"


def _grid(shown: dict[str, np.ndarray], signals: str, kind: str = "") -> str:
    """{what it is: bytes [*space, channels]} as pictures, arranged by the number of spatial axes."""
    first = next(iter(shown.values()))
    kind = f"{kind} {(signals, 'weights', 'strips')[first.ndim - 2]}".strip()
    width = (
        f' style="--width:{2.25 * min(len(first), FRAMES_SHOWN):g}rem"' if first.ndim == 4 else ""
    )  # for every frame the same
    return f'<div class="{kind}"{width}>{"".join(picture(draw(pixels), name) for name, pixels in shown.items())}</div>'
