"""Reconstruction: how well a model gives back its inputs, what it dreams, and what its code tells."""

import functools
import html
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from evals.base import Evaluation, Measured, Subject
from evals.report.checkpoints import histograms
from evals.report.examples import evenly, labelled, spread
from evals.report.maps import feature_maps, first_weights
from evals.report.page import as_bytes, as_images, legend, picture, plot, titled
from evals.report.points import neighbour_error, principal, tsne
from evals.run import Run
from train import tasks
from train.engine.step import root_key
from zoo.base import Autoencoder, Generative, Model, Params

TASK = tasks.Reconstruction

PAIRS = 12
AVERAGED = 1000
CHAINS = 5
"""From each of two starts."""
STEPS = (0, 1, 3, 10, 30, 100, 300, 1000)
CODES = 2000
MOST_COMPONENTS = 4096
"""Of inputs: their covariances take 134 MB then, and half a minute."""
LEGEND = 20
"""Of more classes than this nobody tells the colours apart."""


def measure(subject: Subject) -> Measured:
    """The metrics of the loss; beside them, the error of as many principal components."""
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
    """Examples, and what the model makes of them."""
    run, inputs = evaluation.run, evaluation.table["inputs"]
    if as_images(inputs[:1], run.data.input_range) is None:
        return None
    rows, many = spread(evaluation, PAIRS), evenly(len(inputs), AVERAGED)
    scaled, mirrored = run.map(_reconstructed, {"inputs": inputs[rows]})
    errors, targets = np.square(scaled - mirrored).sum(axis=1), labelled(evaluation)
    originals, pictures = (
        as_images(inputs[rows], run.data.input_range),
        as_pixels(evaluation, mirrored),
    )
    assert originals is not None
    cards = []
    for number, row in enumerate(rows):
        images = picture(originals[number], f"example {row}") + picture(
            pictures[number], f"reconstruction of example {row}"
        )
        label = "" if targets is None else f"<b>{html.escape(run.task.labels[targets[row]])}</b> "
        cards.append(
            f"<figure>{images}<figcaption>{label}{errors[number]:.2f}</figcaption></figure>"
        )
    scaled, mirrored = run.map(_reconstructed, {"inputs": inputs[many]})
    error, constant = (
        np.square(scaled - other).sum(axis=1).mean(dtype=np.float64)
        for other in (mirrored, scaled.mean(axis=0, keepdims=True))
    )
    intro = f"Examples of the {evaluation.split} split above, what the model makes of them below, and the squared error between "
    intro += "the two, summed over an example as the model sees it, scaled.  The mean of "
    intro += f"{len(many):,} examples is {error:.2f}; if the answer to each were their mean image, it would be {constant:.2f}."
    return titled("Reconstructions", f'<p>{intro}</p><div class="pairs">{"".join(cards)}</div>')


def fantasies(evaluation: Evaluation) -> str | None:
    """What the model dreams: Gibbs chains from examples and from random states, over a geometric number of steps."""
    run, inputs = evaluation.run, evaluation.table["inputs"]
    if not isinstance(run.module, Generative):
        return None
    if as_images(inputs[:1], run.data.input_range) is None:
        return None
    begin, fall = jax.random.split(root_key(0))
    data = run.map(_flat, {"inputs": inputs[spread(evaluation, CHAINS)]})
    noise = np.asarray(
        run.module.example_batch(run.recipe.model, begin, len(data))["inputs"]
    ).reshape(data.shape)
    columns = [
        as_pixels(evaluation, values) for values in dreams(run, np.concatenate([data, noise]), fall)
    ]
    tables = []
    for first, title in (
        (0, f"from {evaluation.split} examples"),
        (len(data), "from random states"),
    ):
        lines = [f"<tr>{''.join(f'<th>{steps}</th>' for steps in STEPS)}</tr>"]
        for chain in range(first, first + len(data)):
            shown = zip(STEPS, columns, strict=True)
            cells = [
                picture(pixels[chain], f"chain {chain}, {steps} steps") for steps, pixels in shown
            ]
            lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        tables.append(f'<table class="chains"><caption>{title}</caption>{"".join(lines)}</table>')
    intro = "Each row is a Gibbs chain, with the number of its steps above: what it starts at, then the means of the visible "
    intro += "units given the last states of hidden ones.  A model that mixes leaves what a chain started at for other likely data."
    return titled("Fantasies", f'<p>{intro}</p><div class="plots">{"".join(tables)}</div>')


def dreams(run: Run, start: np.ndarray, key: Any) -> list[np.ndarray]:
    """Visible means of chains from scaled inputs [chains, values], after each of STEPS; at 0 steps ``start`` itself.

    Every column runs from the start again: the same keys make the same chain, whatever the module keeps between its steps.
    """
    module: Any = run.module
    cfg = run.recipe.model
    keys = jax.random.split(key, len(start))
    after = jax.jit(module.fantasies)
    columns = (after(cfg, run.params, start, keys, np.int32(steps)) for steps in STEPS if steps)
    return [start, *map(np.asarray, columns)]


def codes(evaluation: Evaluation) -> str | None:
    """Maps in the plane of the inputs and of the model's code for them, by class; how well neighbours tell classes in each."""
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
    plots = "".join(
        f"<figure>{plot(name, _scatter(points, targets, colors))}</figure>"
        for name, points in maps.items()
    )
    lines = ["<tr><th>space</th><th>dimensions</th><th>error %</th></tr>"]
    for name, points in (spaces | maps).items():
        lines.append(
            f"<tr><th>{name}</th><td>{points.shape[1]}</td><td>{100 * neighbour_error(points, targets):.1f}</td></tr>"
        )
    caption = "<caption>leave-one-out error of the nearest neighbour's class</caption>"
    known = legend(zip(classes, colors, strict=True)) if len(colors) <= LEGEND else ""
    some = (
        f"{len(rows):,} evenly spaced examples of the {evaluation.count:,}"
        if len(rows) < evaluation.count
        else "the examples"
    )
    intro = f"Each point is one of {some} of the {evaluation.split} split, its colour the class, which the model was not told."
    table = f'<table class="matrix">{caption}{"".join(lines)}</table>'
    body = f'<p>{intro}</p>{known}<div class="plots">{plots}<div>{table}</div></div>'
    return titled("Codes", body)


def as_pixels(evaluation: Evaluation, values: np.ndarray) -> np.ndarray:
    """Scaled values [n, ...] of as many numbers as images have -> bytes, as ``as_images`` of raw ones."""
    run = evaluation.run
    raw = values.reshape(len(values), *evaluation.table["inputs"].shape[1:]).astype(np.float32)
    if run.scaling is not None:
        shift, scale = (np.broadcast_to(part, raw.shape) for part in run.scaling)
        raw = np.divide(raw, scale, out=np.zeros_like(raw), where=scale != 0) + shift
    pixels = as_bytes(raw, run.data.input_range)
    return pixels[..., 0] if pixels.ndim == 4 and pixels.shape[-1] == 1 else pixels


def principal_error(run: Run, training: Any, inputs: Any) -> float | None:
    """Squared error of an example, in the mean, by as many principal components of the training inputs as the code has units.

    Inputs are raw [n, ...], and compared as the model sees them, scaled.  None where that says nothing, as the code has no fewer
    units than there are inputs or the error is of hidden units, and of streamed inputs and more than MOST_COMPONENTS.
    """
    units = run.map(_coded, {"inputs": training[:1]})[1].shape[1]
    of_hidden = run.recipe.model.outputs.of == "hidden"
    if of_hidden or not (
        isinstance(training, np.ndarray) and units < training[0].size <= MOST_COMPONENTS
    ):
        return None
    training, inputs = (run.map(_flat, {"inputs": each}) for each in (training, inputs))
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
    """Scaled inputs and their codes, or highest hidden means; each [batch, dimensions]."""
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
            160  # of what is rasterised: as vectors, thousands of points would be a megabyte
        )
        axes.scatter(
            *points.T, s=7, c=[colors[target] for target in targets], linewidths=0, rasterized=True
        )
        axes.set_xticks([])
        axes.set_yticks([])

    return draw


SECTIONS = (reconstructions, codes, feature_maps, first_weights, histograms)
VERBS = {}
