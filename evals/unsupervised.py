"""Sections of the report on what models without targets learned: reconstructions, dreams, and codes.

They ask what a module offers: a trace that reconstructs the inputs, ``sample``, ``encode``.
"""

import html
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from evals.evaluation import Evaluation, Restored
from evals.page import as_bytes, as_images, picture, plot, titled
from train.formats import Images
from train.stage import evaluation_batches
from train.step import root_key
from zoo import dbn, rbm

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
NEEDS = "<p>{what} needs {package}: <code>pip install 'purezoo[evals]'</code></p>"


def reconstructions(evaluation: Evaluation) -> str | None:
    """Examples, and what the model makes of them."""
    name, run, inputs = mirror(evaluation), evaluation.run, evaluation.table["inputs"]
    if name is None or as_images(inputs[:1], run.data.input_range) is None:
        return None
    trace = jax.jit(run.module.trace)

    def both(params: Any, inputs: Any) -> tuple[Any, Any]:
        return inputs.reshape(len(inputs), -1), trace(run.recipe.model, params, inputs)[1][name].reshape(len(inputs), -1)

    rows, many = spread(evaluation, PAIRS), evenly(len(inputs), AVERAGED)
    scaled, mirrored = over(run, both, inputs[rows])
    errors, targets = np.square(scaled - mirrored).sum(axis=1), labelled(evaluation)
    originals, pictures = as_images(inputs[rows], run.data.input_range), as_pixels(evaluation, mirrored)
    assert originals is not None
    cards = []
    for number, row in enumerate(rows):
        images = picture(originals[number], f"example {row}") + picture(pictures[number], f"reconstruction of example {row}")
        label = "" if targets is None else f"<b>{html.escape(run.data.classes[targets[row]])}</b> "
        cards.append(f"<figure>{images}<figcaption>{label}{errors[number]:.2f}</figcaption></figure>")
    scaled, mirrored = over(run, both, inputs[many])
    error, constant = (
        np.square(scaled - other).sum(axis=1).mean(dtype=np.float64) for other in (mirrored, scaled.mean(axis=0, keepdims=True))
    )
    intro = f"Examples of the {evaluation.split} split above, what the model makes of them below, and the squared error between "
    intro += "the two, summed over an example as the model sees it, scaled.  The mean of "
    intro += f"{len(many):,} examples is {error:.2f}; if the answer to each were their mean image, it would be {constant:.2f}."
    return titled("Reconstructions", f'<p>{intro}</p><div class="pairs">{"".join(cards)}</div>')


def fantasies(evaluation: Evaluation) -> str | None:
    """What the model dreams: Gibbs chains from examples and from random states, over a geometric number of steps."""
    run, inputs = evaluation.run, evaluation.table["inputs"]
    if mirror(evaluation) is None or "steps" not in _arguments(run.module, "sample"):
        return None
    if as_images(inputs[:1], run.data.input_range) is None:
        return None
    begin, fall = jax.random.split(root_key(0))
    data = over(run, lambda _, inputs: inputs.reshape(len(inputs), -1), inputs[spread(evaluation, CHAINS)])
    noise = np.asarray(run.module.example_batch(run.recipe.model, begin, len(data))["inputs"]).reshape(data.shape)
    columns = [as_pixels(evaluation, values) for values in dreams(run, np.concatenate([data, noise]), fall)]
    tables = []
    for first, title in ((0, f"from {evaluation.split} examples"), (len(data), "from random states")):
        lines = [f"<tr>{''.join(f'<th>{steps}</th>' for steps in STEPS)}</tr>"]
        for chain in range(first, first + len(data)):
            shown = zip(STEPS, columns, strict=True)
            cells = [picture(pixels[chain], f"chain {chain}, {steps} steps") for steps, pixels in shown]
            lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        tables.append(f'<table class="chains"><caption>{title}</caption>{"".join(lines)}</table>')
    intro = "Each row is a Gibbs chain, with the number of its steps above: what it starts at, then the means of the visible "
    intro += (
        "units given the last states of hidden ones.  A model that mixes leaves what a chain started at for other likely data."
    )
    return titled("Fantasies", f'<p>{intro}</p><div class="plots">{"".join(tables)}</div>')


def dreams(run: Restored, start: np.ndarray, key: Any) -> list[np.ndarray]:
    """Visible means of chains from scaled inputs [chains, values], after each of STEPS; at 0 steps ``start`` itself.

    Every column runs from the start again: the same keys make the same chain, whatever the module keeps between its steps.
    """
    module: Any = run.module
    cfg, given, keys = run.recipe.model, run.params, jax.random.split(key, len(start))
    if module is dbn and len(cfg.machines) == 1:  # there is no machine below, whose means would be shown
        module, cfg, given = rbm, cfg.machines[0], given["layer_0"]

    @jax.jit
    def after(params: Any, start: Any, steps: Any) -> Any:
        if not hasattr(module, "gibbs_step"):
            return module.sample(cfg, params, start, keys, steps)
        # The last step is taken apart, for its hidden states: with the key that ``sample`` would take it with.
        before = module.sample(cfg, params, module.states(cfg, start), keys, steps - 1)
        _, hidden = module.gibbs_step(cfg, params, before, jax.vmap(jax.random.fold_in, (0, None))(keys, steps - 1))
        return module.mean(cfg.visible_units, module.visible_field(cfg, params, hidden))

    return [np.asarray(after(given, start, np.int32(steps))) if steps else start for steps in STEPS]


def codes(evaluation: Evaluation) -> str | None:
    """Maps in the plane of the inputs and of the model's code for them, by class; how well neighbours tell classes in each."""
    targets, run = labelled(evaluation), evaluation.run
    if targets is None or mirror(evaluation) is None:
        return None
    rows = evenly(evaluation.count, CODES)
    if len(rows) < 4:  # too few for t-SNE's neighbourhoods
        return None
    inputs, code = over(run, _coded(run), evaluation.table["inputs"][rows])
    targets, units = targets[rows], code.shape[1]
    spaces = {"inputs": inputs, "code": code}
    maps = {"PCA of the inputs": principal(inputs)}
    notes = []
    if units == 2:
        maps["code"] = code
    else:
        maps["PCA of the code"] = principal(code)
        if importlib.util.find_spec("sklearn") is None:
            notes.append(NEEDS.format(what="A t-SNE map", package="scikit-learn"))
        else:
            maps["t-SNE of the code"] = tsne(code)
    plots = ""
    colors = _colors(len(run.data.classes))
    if importlib.util.find_spec("matplotlib") is None:
        notes.append(NEEDS.format(what="The maps are drawn, which", package="matplotlib"))
    else:
        plots = "".join(f"<figure>{plot(name, _scatter(points, targets, colors))}</figure>" for name, points in maps.items())
    lines = ["<tr><th>space</th><th>dimensions</th><th>error %</th></tr>"]
    for name, points in (spaces | maps).items():
        lines.append(f"<tr><th>{name}</th><td>{points.shape[1]}</td><td>{100 * neighbour_error(points, targets):.1f}</td></tr>")
    caption = "<caption>leave-one-out error of the nearest neighbour's class</caption>"
    known = legend(zip(run.data.classes, colors, strict=True)) if len(colors) <= LEGEND else ""
    some = f"{len(rows):,} evenly spaced examples of the {evaluation.count:,}" if len(rows) < evaluation.count else "the examples"
    intro = f"Each point is one of {some} of the {evaluation.split} split, its colour the class, which the model was not told."
    table = f'<table class="matrix">{caption}{"".join(lines)}</table>'
    body = f'<p>{intro}</p>{known}<div class="plots">{plots}<div>{table}{"".join(notes)}</div></div>'
    return titled("Codes", body)


def mirror(evaluation: Evaluation) -> str | None:
    """What the trace calls the model's reconstruction of its inputs; None of a model that makes none, such as a classifier."""
    run, inputs = evaluation.run, evaluation.table["inputs"]
    if not any(hasattr(run.module, name) for name in ("decode", "sample", "down")) or not isinstance(inputs, np.ndarray | Images):
        return None
    one = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype if run.scaling is None else np.dtype(np.float32))
    seen = jax.eval_shape(lambda params, one: run.module.trace(run.recipe.model, params, one)[1], run.params, one)
    sizes = {name: math.prod(leaf.shape) for name, leaf in seen.items()}
    names = ("reconstruction", *(["outputs"] if hasattr(run.module, "decode") else []))
    return next((name for name in names if sizes.get(name) == math.prod(one.shape)), None)


def over(run: Restored, function: Callable[[Any, Any], Any], inputs: Any, params: Any = None) -> Any:
    """``function(params, scaled inputs)`` [n, ...] of raw inputs [n, ...], in batches; params: the best unless given."""
    batches, compiled = evaluation_batches({"inputs": inputs}, run.recipe.batch_size, run.scaling), jax.jit(function)
    params = run.params if params is None else params
    parts = [jax.device_get(compiled(params, batches.batch(step)["inputs"])) for step in range(batches.steps_per_epoch)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(inputs)], *parts)


def labelled(evaluation: Evaluation) -> np.ndarray | None:
    """The class of each example [n], where the data know classes."""
    targets = evaluation.table.get("targets")
    known = evaluation.run.data.classes and isinstance(targets, np.ndarray) and targets.ndim == 1 and targets.dtype.kind in "ui"
    return targets if known else None


def spread(evaluation: Evaluation, most: int) -> np.ndarray:
    """Rows of up to so many examples: the first ones of every class, in the order of classes; or evenly spaced."""
    targets = labelled(evaluation)
    if targets is None:
        return np.linspace(0, evaluation.count - 1, min(most, evaluation.count)).round().astype(int)
    order = np.argsort(targets, kind="stable")
    earlier = np.empty(len(order), int)  # examples of the same class before each one
    earlier[order] = np.arange(len(order)) - np.searchsorted(targets[order], targets[order])
    chosen = np.argsort(earlier, kind="stable")[:most]
    return chosen[np.argsort(targets[chosen], kind="stable")]


def evenly(count: int, most: int) -> np.ndarray:
    """Up to ``most`` rows of ``count``, a fixed number apart."""
    return np.arange(0, count, math.ceil(count / most))


def as_pixels(evaluation: Evaluation, values: np.ndarray) -> np.ndarray:
    """Scaled values [n, ...] of as many numbers as images have -> bytes, as ``as_images`` of raw ones."""
    run = evaluation.run
    raw = values.reshape(len(values), *evaluation.table["inputs"].shape[1:]).astype(np.float32)
    if run.scaling is not None:
        shift, scale = (np.broadcast_to(part, raw.shape) for part in run.scaling)
        raw = np.divide(raw, scale, out=np.zeros_like(raw), where=scale != 0) + shift
    pixels = as_bytes(raw, run.data.input_range)
    return pixels[..., 0] if pixels.ndim == 4 and pixels.shape[-1] == 1 else pixels


def principal_error(run: Restored, training: Any, inputs: Any) -> float | None:
    """Squared error of an example, in the mean, by as many principal components of the training inputs as the code has units.

    Inputs are raw [n, ...], and compared as the model sees them, scaled.  None where that says nothing, as the code has no fewer
    units than there are inputs or the error is of hidden units, and of streamed inputs and more than MOST_COMPONENTS.
    """
    units, cfg = over(run, _coded(run), training[:1])[1].shape[1], run.recipe.model
    of_hidden = getattr(cfg, "greedy", False) and len(cfg.sizes) > 2
    if of_hidden or not (isinstance(training, np.ndarray) and units < training[0].size <= MOST_COMPONENTS):
        return None
    training, inputs = (over(run, lambda _, inputs: inputs.reshape(len(inputs), -1), each) for each in (training, inputs))
    mean = training.mean(axis=0, dtype=np.float64)
    parts = np.array_split(training, len(training) // AVERAGED + 1)
    axes = np.linalg.eigh(sum((part - mean).T @ (part - mean) for part in parts))[1][:, ::-1][:, :units]
    centred = inputs - mean
    return float((np.square(centred).sum(axis=1) - np.square(centred @ axes).sum(axis=1)).mean())


def principal(points: np.ndarray) -> np.ndarray:
    """The first two principal components [n, 2] of points [n, dimensions]; signs so that the largest loading is positive."""
    centred = points - points.mean(axis=0, dtype=np.float64, keepdims=True)
    if centred.shape[1] < 2:
        return np.pad(centred, ((0, 0), (0, 2 - centred.shape[1])))
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    return centred @ (axes * np.sign(np.take_along_axis(axes, abs(axes).argmax(axis=0)[None], axis=0)))


def neighbour_error(points: np.ndarray, targets: np.ndarray) -> float:
    """The share of points [n, dimensions] whose nearest other one is of another class.  Raises ValueError for less than two."""
    if len(points) < 2 or len(points) != len(targets):
        raise ValueError(f"{len(points)} points, {len(targets)} targets, allowed: as many, at least two")
    points = points - points.mean(axis=0, dtype=np.float64, keepdims=True)
    squares = np.square(points).sum(axis=1)
    distances = squares[:, None] - 2 * points @ points.T + squares[None]
    np.fill_diagonal(distances, np.inf)
    return float((targets[distances.argmin(axis=1)] != targets).mean())


def legend(items: Iterable[tuple[str, str]]) -> str:
    """Names and their colours, for several plots."""
    entries = "".join(f'<span><i style="background:{color}"></i>{html.escape(name)}</span>' for name, color in items)
    return f'<p class="legend">{entries}</p>'


def _arguments(module: Any, name: str) -> set[str]:
    """Of a module's function of that name; none if it has none."""
    return set(inspect.signature(getattr(module, name)).parameters) if hasattr(module, name) else set()


def _coded(run: Restored) -> Callable[[Any, Any], Any]:
    """(params, scaled inputs) -> the inputs and the code: ``encode``, or the highest hidden means; each [n, dimensions]."""
    module: Any = run.module

    def both(params: Any, inputs: Any) -> tuple[Any, Any]:
        code = (module.encode if hasattr(module, "encode") else module.apply)(run.recipe.model, params, inputs)
        return inputs.reshape(len(inputs), -1), code.reshape(len(inputs), -1)

    return both


def tsne(points: np.ndarray) -> np.ndarray:
    """Points [n, features] as a map [n, 2] (van der Maaten and Hinton 2008)."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start = principal(points)
    start: Any = (1e-4 / (start[:, 0].std() or 1) * start).astype(np.float32)
    with threadpool_limits(1):  # several threads add up in another order every time
        return TSNE(perplexity=min(30, (len(points) - 1) / 3), init=start, random_state=0).fit_transform(points)


def _colors(classes: int) -> list[str]:
    if importlib.util.find_spec("matplotlib") is None:
        return ["gray"] * classes
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    few = colormaps["tab10" if classes <= 10 else "tab20"]
    many = colormaps["turbo"]
    return [to_hex(few(index) if classes <= LEGEND else many(index / (classes - 1))) for index in range(classes)]


def _scatter(points: np.ndarray, targets: np.ndarray, colors: list[str]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        axes.figure.dpi = 160  # of what is rasterised: as vectors, thousands of points would be a megabyte
        axes.scatter(*points.T, s=7, c=[colors[target] for target in targets], linewidths=0, rasterized=True)
        axes.set_xticks([])
        axes.set_yticks([])

    return draw
