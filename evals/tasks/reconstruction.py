"""Reconstruction: how well a model reconstructs its inputs, its samples, and its codes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from evals.base import Evaluation, Measured, Subject
from evals.report.checkpoints import histograms
from evals.report.examples import evenly, labelled, spread
from evals.report.maps import feature_maps, first_weights
from evals.report.page import as_bytes, as_images, legend, picture, plot, render, titled
from evals.report.points import neighbour_error, principal, tsne
from evals.run import Run
from train import tasks
from train.engine.step import root_key
from zoo.base import Autoencoder, Generative, Model, Params

TASK = tasks.Reconstruction

PAIRS = 12
AVERAGED = 1000
CHAINS = 5
"""Gibbs chains from each of two kinds of start."""
STEPS = (0, 1, 3, 10, 30, 100, 300, 1000)
CODES = 2000
MOST_COMPONENTS = 4096
"""Maximum input size for PCA: the covariance matrix then takes 134 MB and half a minute."""
LEGEND = 20
"""Maximum number of classes in a legend: more colours cannot be told apart."""


def measure(subject: Subject) -> Measured:
    """The metrics of the loss; for comparison, the error of PCA with a code of the same size."""
    run = subject.run
    named = {}
    if subject.own and "reconstruction_error" in subject.means:
        dataset = subject.dataset
        training = dataset.splits["train"]
        if "validation" in run.recipe.train_on:
            training = dataset.joined("train", "validation")
        error = principal_error(run, training["inputs"], subject.table["inputs"])
        named = {} if error is None else {"reconstruction_error of PCA": error}
    return Measured(metrics=subject.losses | subject.named(named))


def reconstructions(evaluation: Evaluation) -> str | None:
    """Examples and their reconstructions."""
    run, inputs = evaluation.run, evaluation.table["inputs"]
    if as_images(inputs[:1], run.data.input_range) is None:
        return None
    rows, many = spread(evaluation, PAIRS), evenly(len(inputs), AVERAGED)
    scaled, reconstructed = run.map(_reconstructed, {"inputs": inputs[rows]})
    errors, targets = np.square(scaled - reconstructed).sum(axis=1), labelled(evaluation)
    originals, pictures = (
        as_images(inputs[rows], run.data.input_range),
        as_pixels(evaluation, reconstructed),
    )
    assert originals is not None
    pairs = [
        (
            picture(originals[number], f"example {row}"),
            picture(pictures[number], f"reconstruction of example {row}"),
            None if targets is None else run.task.labels[targets[row]],
            f"{errors[number]:.2f}",
        )
        for number, row in enumerate(rows)
    ]
    scaled, reconstructed = run.map(_reconstructed, {"inputs": inputs[many]})
    error, constant = (
        np.square(scaled - other).sum(axis=1).mean(dtype=np.float64)
        for other in (reconstructed, scaled.mean(axis=0, keepdims=True))
    )
    intro = (
        f"Above: examples of the {evaluation.split} split.  Below: their reconstructions, with "
        "the squared error, summed over the scaled values of an example.  The mean of "
        f"{len(many):,} examples is {error:.2f}; if every reconstruction were the mean image, "
        f"it would be {constant:.2f}."
    )
    return titled("Reconstructions", render("reconstructions.html", intro=intro, pairs=pairs))


def fantasies(evaluation: Evaluation) -> str | None:
    """Samples of the model: Gibbs chains from examples and random states, after STEPS steps."""
    run, inputs = evaluation.run, evaluation.table["inputs"]
    if not isinstance(run.module, Generative):
        return None
    if as_images(inputs[:1], run.data.input_range) is None:
        return None
    start_key, chain_key = jax.random.split(root_key(0))
    data = run.map(_flat, {"inputs": inputs[spread(evaluation, CHAINS)]})
    noise = np.asarray(
        run.module.example_batch(run.recipe.model, start_key, len(data))["inputs"]
    ).reshape(data.shape)
    columns = [
        as_pixels(evaluation, values)
        for values in dreams(run, np.concatenate([data, noise]), chain_key)
    ]
    chains = [
        [
            picture(pixels[chain], f"chain {chain}, {steps} steps")
            for steps, pixels in zip(STEPS, columns, strict=True)
        ]
        for chain in range(2 * len(data))
    ]
    tables = {
        f"from {evaluation.split} examples": chains[: len(data)],
        "from random states": chains[len(data) :],
    }
    intro = (
        "Each row is a Gibbs chain, each column a number of steps: first the start, then the means "
        "of the visible units given the last hidden states.  If the chains mix well, they move "
        "from the start to other probable data."
    )
    values = {"intro": intro, "steps": STEPS, "tables": tables}
    return titled("Fantasies", render("fantasies.html", **values))


def dreams(run: Run, start: np.ndarray, key: Any) -> list[np.ndarray]:
    """Visible means of chains after each of STEPS, from scaled inputs ``start`` [chains, values].

    After 0 steps this is ``start`` itself.
    """
    module: Any = run.module
    cfg = run.recipe.model
    # Every number of steps reruns the chains from the start: the same keys produce the same chains,
    # and the state that a module keeps between steps need not be known here.
    keys = jax.random.split(key, len(start))
    after = jax.jit(module.fantasies)
    columns = (after(cfg, run.params, start, keys, np.int32(steps)) for steps in STEPS if steps)
    return [start, *map(np.asarray, columns)]


def codes(evaluation: Evaluation) -> str | None:
    """2D maps of the inputs and of their codes, by class, with the nearest-neighbour errors."""
    targets, run = labelled(evaluation), evaluation.run
    if targets is None:
        return None
    rows = evenly(evaluation.count, CODES)
    if len(rows) < 4:  # too few for t-SNE's neighbourhoods
        return None
    inputs, code = run.map(_coded, {"inputs": evaluation.table["inputs"][rows]})
    targets, units = targets[rows], code.shape[1]
    spaces = {"inputs": inputs, "code": code}
    maps = {"PCA of the inputs": principal(inputs)}
    if units == 2:
        maps["code"] = code
    else:
        maps["PCA of the code"] = principal(code)
        maps["t-SNE of the code"] = tsne(code)
    classes = run.task.labels
    colors = _colors(len(classes))
    plots = [plot(name, _scatter(points, targets, colors)) for name, points in maps.items()]
    errors = [
        (name, points.shape[1], f"{100 * neighbour_error(points, targets):.1f}")
        for name, points in (spaces | maps).items()
    ]
    known = legend(zip(classes, colors, strict=True)) if len(colors) <= LEGEND else ""
    some = (
        f"{len(rows):,} evenly spaced examples of the {evaluation.count:,}"
        if len(rows) < evaluation.count
        else "the examples"
    )
    intro = (
        f"Each point is one of {some} of the {evaluation.split} split.  Its colour is the class, "
        "which the model did not see."
    )
    values = {"intro": intro, "legend": known, "plots": plots, "errors": errors}
    return titled("Codes", render("codes.html", **values))


def as_pixels(evaluation: Evaluation, values: np.ndarray) -> np.ndarray:
    """Scaled values [n, ...] -> bytes, as ``as_images`` returns them for raw inputs."""
    run = evaluation.run
    raw = values.reshape(len(values), *evaluation.table["inputs"].shape[1:]).astype(np.float32)
    if run.scaling is not None:
        shift, scale = (np.broadcast_to(part, raw.shape) for part in run.scaling)
        raw = np.divide(raw, scale, out=np.zeros_like(raw), where=scale != 0) + shift
    pixels = as_bytes(raw, run.data.input_range)
    return pixels[..., 0] if pixels.ndim == 4 and pixels.shape[-1] == 1 else pixels


def principal_error(run: Run, training: Any, inputs: Any) -> float | None:
    """Mean squared reconstruction error of PCA with as many components as the code has units.

    The components are fitted to the training inputs.  Inputs are raw [n, ...]; the error is that of
    scaled inputs, as in the model's loss.
    Returns None where the comparison is meaningless (the code is not smaller than the inputs, or
    the loss is on hidden units), for streamed inputs, and for inputs larger than MOST_COMPONENTS.
    """
    units = run.map(_coded, {"inputs": training[:1]})[1].shape[1]
    of_hidden = run.recipe.model.outputs.of == "hidden"
    if of_hidden or not (
        isinstance(training, np.ndarray) and units < training[0].size <= MOST_COMPONENTS
    ):
        return None
    training, inputs = (run.map(_flat, {"inputs": raw}) for raw in (training, inputs))
    mean = training.mean(axis=0, dtype=np.float64)
    parts = np.array_split(training, len(training) // AVERAGED + 1)
    axes = np.linalg.eigh(sum((part - mean).T @ (part - mean) for part in parts))[1][:, ::-1][
        :, :units
    ]
    centred = inputs - mean
    return float((np.square(centred).sum(axis=1) - np.square(centred @ axes).sum(axis=1)).mean())


@functools.partial(jax.jit, static_argnums=0)
def _flat(module: Model, cfg: Any, params: Params, batch: Any) -> Any:
    """Scaled inputs [batch, values]."""
    return batch["inputs"].reshape(len(batch["inputs"]), -1)


@functools.partial(jax.jit, static_argnums=0)
def _reconstructed(module: Model, cfg: Any, params: Params, batch: Any) -> tuple[Any, Any]:
    """Scaled inputs and their reconstructions, each [batch, values]."""
    inputs = batch["inputs"]
    _, intermediates = module.trace(cfg, params, inputs)
    reconstruction = intermediates["reconstruction"]
    return inputs.reshape(len(inputs), -1), reconstruction.reshape(len(inputs), -1)


@functools.partial(jax.jit, static_argnums=0)
def _coded(module: Model, cfg: Any, params: Params, batch: Any) -> tuple[Any, Any]:
    """Scaled inputs and their codes, or the means of the top hidden layer: [batch, dimensions]."""
    inputs = batch["inputs"]
    encode = module.encode if isinstance(module, Autoencoder) else module.apply
    code = encode(cfg, params, inputs)
    return inputs.reshape(len(inputs), -1), code.reshape(len(inputs), -1)


def _colors(classes: int) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    few = colormaps["tab10" if classes <= 10 else "tab20"]
    many = colormaps["turbo"]
    return [
        to_hex(few(index) if classes <= LEGEND else many(index / (classes - 1)))
        for index in range(classes)
    ]


def _scatter(points: np.ndarray, targets: np.ndarray, colors: list[str]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        axes.figure.dpi = (
            160  # resolution of the rasterised points: as vectors they would take a megabyte
        )
        axes.scatter(
            *points.T, s=7, c=[colors[target] for target in targets], linewidths=0, rasterized=True
        )
        axes.set_xticks([])
        axes.set_yticks([])

    return draw


SECTIONS = (reconstructions, codes, feature_maps, first_weights, histograms)
VERBS = {}
