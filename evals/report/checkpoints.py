"""Report sections on the training of unsupervised models, from the checkpoints that the run kept.

They show histograms of weights and hidden units, a picture of the hidden units, and free energies,
which reveal overfitting: Hinton, "A practical guide to training restricted Boltzmann machines"
(2010), sections 6 and 15.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import train.engine.loop
from evals.base import Evaluation
from evals.report.examples import evenly, spread
from evals.report.page import COLORS, INK, as_bytes, legend, picture, plot, render, titled
from evals.run import load_split
from train.dataset import Table, as_many_of_each
from train.engine.checkpoint import CheckpointError, Checkpoints
from train.engine.run_folder import RunError, abstract_state
from train.engine.stage import evaluation_batches
from train.engine.step import make_evaluate
from train.formats import DataError
from zoo.base import Model, Params
from zoo.parts.parameters import leaves_by_path

SHOWN = 8
ACTIVE = 1000
ROWS, COLUMNS = 100, 500
COMPARED = 2000
MANY = 1000
"""Histograms of at least this many values are logarithmic: most weights are near zero, and the
learned structure is in the tails."""
EARLY, LATE = (76, 141, 255), (232, 116, 59)
"""Colours of the first and the last checkpoint."""


def histograms(evaluation: Evaluation) -> str | None:
    """Histograms of weights, biases and mean hidden values at each kept checkpoint.

    Below them, pictures of the hidden units for individual examples.
    """
    run = evaluation.run
    rows = evenly(evaluation.count, ACTIVE)
    columns = {step: _values(evaluation, params, rows) for step, params in parameters(evaluation)}
    names = {step: name for step, name in _names(evaluation).items() if step in columns}
    colors = dict(zip(columns, _colors(len(columns)), strict=True))
    intro = (
        f"Histograms of weights, biases, and each hidden unit's mean over {len(rows):,} "
        f"{evaluation.split} examples, with one line for each kept checkpoint."
    )
    plots = []
    for name in next(iter(columns.values())):
        edges = bins([values[name] for values in columns.values()])
        counted = [
            (np.histogram(values[name], edges)[0], colors[step]) for step, values in columns.items()
        ]
        plots.append(
            plot(name, lambda axes, edges=edges, counted=counted: _stairs(axes, edges, counted))
        )
    key = legend((names[step], colors[step]) for step in columns)
    shown = run.map(_hidden, {"inputs": evaluation.table["inputs"][spread(evaluation, ROWS)]})
    layers = [_units(name, values) for name, values in _ordered(shown).items()]
    note = (
        f"Below: hidden units for {len(next(iter(shown.values())))} examples.  Each row is an "
        "example (ordered by class, if there are classes), each column a unit.  A column of "
        "uniform grey is a unit that carries no information."
    )
    values = {"intro": intro, "legend": key, "plots": plots, "note": note, "layers": layers}
    return titled("Weights and units", render("histograms.html", **values))


def free_energies(evaluation: Evaluation) -> str | None:
    """Mean free energy of training and held-out examples at each kept checkpoint.

    For models whose objective reports a free energy, on the run's own data; else None.
    """
    if not evaluation.subject.own:
        return None
    try:
        held_out, tables = _tables(evaluation)
    except (DataError, RunError) as error:
        return titled("Free energy", render("free_energies.html", error=str(error)))
    names, run = _names(evaluation), evaluation.run
    function = jax.jit(make_evaluate(run.module, run.recipe.model))
    batches = {
        split: evaluation_batches(table, run.recipe.batch_size, run.scaling)
        for split, table in tables.items()
    }
    rows, steps, means = [], [], {split: [] for split in tables}
    for step, params in parameters(evaluation):
        steps.append(step)
        for split, split_batches in batches.items():
            measured = train.engine.loop.evaluate(
                function, run.module, run.recipe.model, params, split_batches
            )
            means[split].append(measured["free_energy"])
        trained, other = (values[-1] for values in means.values())
        energies = [f"{value:.2f}" for value in (trained, other, other - trained)]
        rows.append((names[step], energies))
    count = len(jax.tree.leaves(tables["train"])[0])
    intro = (
        f"Mean free energy, in nats, of {count:,} training and {count:,} {held_out} examples.  "
        "Only the difference is meaningful, because the partition function is unknown: when it "
        "grows, the model overfits (Hinton 2010, section 6)."
    )
    if held_out == "test":
        why = (
            "the run was trained on it" if "validation" in run.recipe.train_on else "there is none"
        )
        intro += f"  With the test split, not the validation split, as {why}."
    plots = []
    if len(steps) > 1:
        epochs = [_epoch(evaluation, step) for step in steps]
        best = _epoch(evaluation, run.step)
        curves = dict(
            zip(
                ("training", held_out),
                zip(means.values(), COLORS.values(), strict=True),
                strict=True,
            )
        )
        gap = np.subtract(means[held_out], means["train"])
        drawn = {
            "free energy": curves,
            f"free energy, {held_out} - training": {"": (gap, "#8a63d2")},
        }
        plots = [
            plot(name, lambda axes, lines=lines: _curves(axes, epochs, lines, best))
            for name, lines in drawn.items()
        ]
    values = {"intro": intro, "few": len(steps) < 4, "held_out": held_out}
    return titled("Free energy", render("free_energies.html", plots=plots, rows=rows, **values))


def parameters(evaluation: Evaluation) -> Iterator[tuple[int, Params]]:
    """Yields step and parameters of up to SHOWN kept checkpoints; skips damaged ones."""
    run = evaluation.run
    abstract = abstract_state(run.recipe)
    with Checkpoints(run.folder.checkpoints, read_only=True) as checkpoints:
        for step in chosen(checkpoints.steps(), run.step, SHOWN):
            try:
                params = run.params if step == run.step else checkpoints.load(abstract, step).params
            except CheckpointError:
                continue
            yield step, params


def chosen(steps: list[int], best: int, most: int) -> list[int]:
    """Up to ``most`` of the ascending steps, evenly spaced, including the best and the last one."""
    picked = [
        steps[index]
        for index in np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))
    ]
    if best in steps and best not in picked:
        nearest = min(picked[:-1], key=lambda step: abs(step - best))
        picked[picked.index(nearest)] = best
    return sorted(picked)


def bins(values: list[np.ndarray]) -> np.ndarray:
    """Edges of histogram bins that cover several arrays of the same size."""
    low, high = min(part.min() for part in values), max(part.max() for part in values)
    return np.histogram_bin_edges(
        np.array([low, high], np.float64), int(np.clip(1.5 * np.sqrt(values[0].size), 10, 50))
    )


def _values(evaluation: Evaluation, params: Params, rows: np.ndarray) -> dict[str, np.ndarray]:
    """All parameters and the hidden units' means over examples: {name: [n]}.

    Kernels come before biases, decoders after encoders.
    """
    named = {
        name: np.asarray(leaf, np.float64).ravel() for name, leaf in leaves_by_path(params).items()
    }
    named = dict(
        sorted(named.items(), key=lambda item: ("bias" in item[0], item[0].startswith("decoder")))
    )
    table = {"inputs": evaluation.table["inputs"][rows]}
    layers = _ordered(evaluation.run.map(_hidden, table, params=params))
    return named | {
        f"{name}, means": values.mean(axis=0, dtype=np.float64) for name, values in layers.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _hidden(module: Model, cfg: Any, params: Params, batch: Any) -> dict[str, Any]:
    """Hidden layers and the code: {name: [batch, units]}."""
    _, intermediates = module.trace(cfg, params, batch["inputs"])
    chosen = (name for name in intermediates if name.startswith("hidden") or name == "code")
    return {name: intermediates[name].reshape(len(intermediates[name]), -1) for name in chosen}


def _ordered(layers: dict[str, Any]) -> dict[str, Any]:
    """Layers from the bottom up, because jax sorts names alphabetically."""
    return dict(sorted(layers.items(), key=lambda item: (item[0] == "code", len(item[0]), item[0])))


def _units(name: str, values: np.ndarray) -> dict[str, str]:
    """Grey picture of values [examples, units] with its name, a note, and its width in rem.

    Probabilities range from black (0) to white (1).
    """
    low, high = float(values.min()), float(values.max())
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    units = values.shape[1]
    what = (
        f"{units:,} units"
        + (f", the first {COLUMNS}" if units > COLUMNS else "")
        + f"; black {low:.3g}, white {high:.3g}"
    )
    image = picture(as_bytes(values[:, :COLUMNS], (low, high)), f"{name}, units")
    width = f"{0.625 * min(units, COLUMNS):g}"
    return {"name": name, "what": what, "width": width, "picture": image}


def _tables(evaluation: Evaluation) -> tuple[str, dict[str, dict[str, Any]]]:
    """The name of the held-out split, and raw examples: {"train": ..., name: ...}.

    Both tables have the same number of examples.  The held-out split is validation, unless it does
    not exist or the run was trained on it; then test.
    """
    run = evaluation.run

    def load(split: str) -> Table:
        return (
            evaluation.table
            if split == evaluation.split
            else load_split(run, split, evaluation.data_dir)
        )

    held_out = "test"
    if "validation" not in run.recipe.train_on:
        try:
            held_out, other = "validation", load("validation")
        except DataError:
            held_out, other = "test", load("test")
    else:
        other = load("test")
    trained = load("train")
    size = trained.size
    pool = np.arange(size)
    if run.recipe.labels is not None and "+" not in run.recipe.train_on:
        pool = np.sort(as_many_of_each(trained["targets"], run.recipe.labels, run.recipe.seed))
    held = np.arange(other.size)
    count = min(len(pool), len(held), COMPARED)
    rows = {"train": (trained, pool), held_out: (other, held)}
    spaced = {
        split: (table, of[np.linspace(0, len(of) - 1, count).round().astype(int)])
        for split, (table, of) in rows.items()
    }
    return held_out, {
        split: jax.tree.map(lambda leaf, of=of: leaf[of], dict(table))
        for split, (table, of) in spaced.items()
    }


def _names(evaluation: Evaluation) -> dict[int, str]:
    """Names of all checkpoints: {step: "epoch 2, the best"}."""
    steps = Checkpoints(evaluation.run.folder.checkpoints, read_only=True).steps()
    best = evaluation.run.step
    return {
        step: f"epoch {_epoch(evaluation, step):.4g}"
        + (", the best" if step == best < steps[-1] else "")
        for step in steps
    }


def _epoch(evaluation: Evaluation, step: int) -> float:
    """The epoch of a step, from the history; the step itself if there is no history."""
    history = evaluation.run.folder.history()
    return step * history[-1]["epoch"] / history[-1]["step"] if history else float(step)


def _colors(count: int) -> list[str]:
    """Colours from blue to orange, legible on white and on black."""
    middle = (150, 90, 200)
    mixed = [
        np.interp(np.linspace(0, 2, count), [0, 1, 2], band)
        for band in zip(EARLY, middle, LATE, strict=True)
    ]
    return [
        f"#{red:02x}{green:02x}{blue:02x}"
        for red, green, blue in np.transpose(mixed).round().astype(int)
    ]


def _stairs(axes: Any, edges: np.ndarray, counted: list[tuple[np.ndarray, str]]) -> None:
    axes.figure.set_size_inches(3.1, 2.1)
    axes.locator_params(nbins=4)
    for counts, color in counted:
        axes.stairs(counts, edges, color=color, linewidth=1.3)
    if counted[0][0].sum() >= MANY:
        axes.set_yscale("log")


def _curves(axes: Any, epochs: list[float], lines: dict[str, tuple[Any, str]], best: float) -> None:
    for label, (values, color) in lines.items():
        axes.plot(epochs, values, color=color, label=label, linewidth=1.8, marker="o", markersize=4)
    axes.axvline(best, color=INK, linewidth=1, linestyle=":", label="checkpoint")
    axes.set_xlabel("epoch")
    axes.legend(fontsize=10)
