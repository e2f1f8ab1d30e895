"""Evaluation of a run: its best checkpoint, measured on one split of its data.

Whatever a model's ``loss`` counts is a metric.  A model that counts its accuracy on data with classes is a classifier: what it
says of each example is kept too, for the confusion matrix and the worst mistakes.  Of text, log p of each token is kept.
"""

import contextlib
import math
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

import train.loop
from evals.intervals import wilson
from train.batches import Batches, Scaling
from train.data import DataError, load_data
from train.dataset import Dataset
from train.recipe import OF_DATA, Recipe, Target, module_of
from train.recipes import RECIPES
from train.run_folder import RunData, RunError, RunFolder, hardware, read_json, restore_best, today, versions, write_json
from train.stage import evaluation_batches
from train.step import make_evaluate, root_key
from zoo.base import Batch, Model, Params

FORMAT = 1
UNITS = ("%", "nats", "tokens")
"""Last words of metric names that are units."""
SCORES = ("BLEU", "CIDEr-D", "ROUGE-L")
"""Last words, or how they begin, of scores as papers print them."""


class Restored(NamedTuple):
    """The best model of a run.  step: of its checkpoint."""

    folder: RunFolder
    recipe: Recipe[Any]
    module: Model
    params: Params
    step: int
    data: RunData

    @property
    def scaling(self) -> Scaling | None:
        """Of the inputs; None leaves them as they are, integers too."""
        return None if self.recipe.preprocess == "none" else self.data.scaling


class Predictions(NamedTuple):
    """What a classifier says of every example of a split, in its order.

    outputs [n, classes]: probabilities, unless the model's outputs are linear.  losses [n].  targets [n]: the true classes.
    """

    outputs: np.ndarray
    losses: np.ndarray
    targets: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The most probable class of each example [n]."""
        return self.outputs.argmax(axis=-1)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A run, measured.

    metrics: {"test accuracy %": ...}: the unit is the last word, where there is one.
    table: the split's raw arrays.  predictions: None unless the model is a classifier.
    example: of the split, the one that the report looks at closely.  data_dir: where its data set is looked up first.
    log_probabilities: of each token of the split [tokens], in its order; None unless it is text.
    sentences: of the split, source and target.  references: all that people said of each image, () where that is one sentence.
    translations: of the sources, or captions of the images (``evals.translation.Translation``); None of others.
    segments: the label of each pixel of the split's images [n, height, width]; None of others.
    note: how metrics were computed, where a name does not say it.
    """

    run: Restored
    split: str
    table: dict[str, Any]
    metrics: dict[str, float]
    predictions: Predictions | None
    example: int = 0
    data_dir: str | os.PathLike[str] | None = None
    log_probabilities: np.ndarray | None = None
    sentences: Sequence[tuple[str, str]] = ()
    references: Sequence[Sequence[str]] = ()
    translations: list[Any] | None = None
    segments: np.ndarray | None = None
    note: str = ""

    @property
    def count(self) -> int:
        """Examples of the split."""
        return len(jax.tree.leaves(self.table)[0])

    @property
    def items(self) -> int:
        """How many there are of what metrics are means over: tokens of text, else examples."""
        return self.count if self.log_probabilities is None else len(self.log_probabilities)

    @property
    def measured_on(self) -> str:
        """Says that: "300 test examples"."""
        return f"{self.items:,} {self.split} {'examples' if self.log_probabilities is None else 'tokens'}"

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals, in per cent, of the metrics that are shares of independent examples: see ``evals.intervals``."""
        targets, mask = self.table.get("targets"), self.table.get("mask", np.ones(self.count, bool))
        counts = {}
        if targets is not None and np.ndim(targets) == np.ndim(mask) == 1:  # neither pixels nor tokens
            counts |= dict.fromkeys((f"{self.split} accuracy %", f"{self.split} error %"), int(np.sum(mask)))
        if len(set(self.references)) == len(self.references):  # no image twice
            counts[f"{self.split} exact %"] = self.count
        found = {}
        for name in (name for name in self.metrics if name in counts):
            low, high = wilson(self.metrics[name] / 100, counts[name])
            found[name] = 100 * low, 100 * high
        return found

    @property
    def file(self) -> pathlib.Path:
        """eval.json of the run, for the test split; eval-validation.json, ... for others."""
        return self._file("eval", "json")

    @property
    def report(self) -> pathlib.Path:
        """report.html, named alike."""
        return self._file("report", "html")

    def _file(self, stem: str, suffix: str) -> pathlib.Path:
        return self.run.folder.path / (f"{stem}.{suffix}" if self.split == "test" else f"{stem}-{self.split}.{suffix}")


def restore(run_dir: str | os.PathLike[str]) -> Restored:
    """The best model of a run.  Raises RunError if this is no run folder, CheckpointError if no intact checkpoint is there."""
    folder = RunFolder.open(run_dir)
    recipe = folder.recipe()
    state, step = restore_best(folder, recipe)
    return Restored(folder, recipe, module_of(recipe.model), state.params, step, folder.data())


def evaluate(
    run_dir: str | os.PathLike[str], split: str = "test", data_dir: str | os.PathLike[str] | None = None, *, example: int = 0
) -> Evaluation:
    """Measures a run's best checkpoint on a split ("test", "validation", "train") of its data.

    Raises RunError, CheckpointError (see ``restore``), DataError when the data are missing or not those of the run, and
    ValueError when there is no such example.
    """
    run = restore(run_dir)
    dataset = load_dataset(run, data_dir)
    table = _split_of(run, dataset, split)
    count = len(jax.tree.leaves(table)[0])
    if not (is_whole(example) and 0 <= example < count):
        raise ValueError(f"example={example!r}, allowed: 0 to {count - 1}, as the {split} split has {count:,} examples")
    cfg = run.recipe.model
    with contextlib.closing(evaluation_batches(table, run.recipe.batch_size, run.scaling, widths=dataset.widths)) as batches:
        means = train.loop.evaluate(jax.jit(make_evaluate(run.module, cfg)), run.module, cfg, run.params, batches)
        predictions = _classify(run, table, batches) if "accuracy" in means else None
    labelled = _labels_pixels(run, table)
    nats = bool(run.data.vocabulary) or labelled or (predictions is not None and _is_log_likelihood(predictions))
    metrics, more = name_metrics(split, means, nats), {}
    if hasattr(run.module, "free_energy"):
        from evals.likelihood import likelihoods

        metrics |= likelihoods(run, split, table, _split_of(run, dataset, "train"))
    if "reconstruction_error" in means and hasattr(run.module, "decode"):
        from evals.unsupervised import principal_error

        training = dataset.joined("train", "validation") if "validation" in run.recipe.train_on else dataset.splits["train"]
        error = principal_error(run, training["inputs"], table["inputs"])
        metrics |= {} if error is None else {f"{split} reconstruction_error of PCA": error}
    if run.data.vocabulary and "reset" in table:
        from evals.language import measure

        named, more["log_probabilities"] = measure(run, split, dataset.splits, means["loss"])
        metrics |= named
    if run.data.tokenizers:
        from evals import captions, translation

        sentences = more["sentences"] = dataset.sentences[split]
        if translation.translates(run):
            named, more["translations"], more["note"] = translation.measure(run, split, sentences, means["loss"])
        else:
            references = more["references"] = dataset.references.get(split, ())
            named, more["translations"], more["note"] = captions.measure(run, split, table, sentences, references, means["loss"])
        metrics |= named
    if labelled:
        from evals import pixels

        named, more["segments"] = pixels.measure(run, split, table)
        more["note"] = pixels.NOTE
        metrics |= named
    return Evaluation(run, split, table, metrics, predictions, example, data_dir, **more)


def _labels_pixels(run: Restored, table: dict[str, Any]) -> bool:
    """Whether each pixel of an image has a label, and one by the model."""
    from evals.pixels import segments_images

    inputs, targets = table["inputs"], table.get("targets")
    return (
        isinstance(targets, np.ndarray) and targets.ndim == 3 and targets.shape == np.shape(inputs)[:-1] and segments_images(run)
    )


def write_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Writes eval.json into the run folder (eval-validation.json for another split), and returns what it holds."""
    run = evaluation.run
    record = {
        "format": FORMAT,
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "step": run.step,
        "split": evaluation.split,
        "count": evaluation.count,
        "metrics": evaluation.metrics,
        "intervals": {name: list(ends) for name, ends in evaluation.intervals.items()},
        "note": evaluation.note,
        "command": "python -m evals " + shlex.join([str(run.folder.path), "--split", evaluation.split]),
        "hardware": hardware(),
        "date": today(),
        "versions": versions(),
        "training": training(run.folder),
    }
    write_json(evaluation.file, record)
    return record


def training(folder: RunFolder) -> dict[str, Any]:
    """How the run was trained: complete, seconds (of all its stages), hardware, date, versions; None where it is not complete."""
    keys = ("hardware", "date", "versions")
    if not folder.summary.exists():
        history = folder.history()
        return {"complete": False, "seconds": history[-1]["seconds"] if history else 0.0} | dict.fromkeys(keys)
    summaries = [read_json(file) for file in (folder.summary, *folder.path.glob("stage-*/summary.json"))]
    seconds = round(sum(summary["seconds"] for summary in summaries), 2)
    return {"complete": True, "seconds": seconds} | {key: summaries[0][key] for key in keys}


def name_metrics(split: str, means: dict[str, float], nats: bool) -> dict[str, float]:
    """Metrics by full name.  Accuracies become per cent, with the error beside; nats: the loss is a negative log-likelihood."""
    named = {}
    for name, value in means.items():
        if name == "accuracy":
            named[f"{split} accuracy %"] = 100 * value
            named[f"{split} error %"] = 100 - 100 * value
        else:
            named[f"{split} {name}" + (" nats" if name == "loss" and nats else "")] = value
    return named


def show_metric(name: str, value: float, count: int, interval: tuple[float, float] | None = None) -> str:
    """One line: "test accuracy 98.7 %, 95 % interval 96.6 to 99.5"."""
    shown = " ".join(part for part in format_metric(name, value, count) if part)
    return shown if interval is None else f"{shown}, {show_interval(interval, count)}"


def show_interval(interval: tuple[float, float], count: int) -> str:
    """An interval for a share of ``count`` examples, in per cent: "95 % interval 96.6 to 99.5"."""
    low, high = (format_percent(end, count) for end in interval)
    return f"95 % interval {low} to {high}"


def format_metric(name: str, value: float, count: int) -> tuple[str, str, str]:
    """Label, number, unit (or ""): per cents as ``format_percent`` of ``count`` items has them; of a score what it is out of."""
    label, _, unit = name.rpartition(" ")
    if unit.startswith(SCORES):
        return name, f"{value:.2f}", "of 1000" if unit == "CIDEr-D" else "of 100"
    if unit not in UNITS:
        return name, f"{value:.{4 if abs(value) < 100 else 2}f}", ""
    if unit == "tokens":
        return label, f"{value:,.0f}", unit
    return label, format_percent(value, count) if unit == "%" else f"{value:.4f}", unit


def format_percent(value: float, count: int) -> str:
    """With as many decimals as ``count`` items resolve, but no more than two, or than two digits of what is missing to 0 or 100.

    Only what is exactly 0 or 100 is shown as that: "100".
    """
    missing = min(abs(value), abs(100 - value))
    if missing == 0:
        return f"{value:.0f}"
    resolved = max(math.ceil(math.log10(count)) - 2, 1)
    telling = 1 - math.floor(math.log10(missing)) if math.isfinite(missing) else 0
    return f"{value:.{min(resolved, max(telling, 2))}f}"


def reached(target: Target, value: float) -> bool:
    """Whether a value keeps within a target's bounds; True where it has none."""
    low = -math.inf if target.at_least is None else target.at_least
    high = math.inf if target.at_most is None else target.at_most
    return low <= value <= high


def other_task(recipe: Recipe[Any]) -> list[str]:
    """What makes a run's task another one than its registered recipe's, whose targets then say nothing about it.

    Other data, or others of the settings that say what is learned from them: "data 'fashion_mnist' instead of 'mnist'".
    [] where the task is the recipe's, with whatever model and optimizer, and where no recipe of this name is registered.
    """
    registered = RECIPES.get(recipe.name, recipe)
    pairs = {name: (getattr(recipe, name), getattr(registered, name)) for name in (*OF_DATA, "labels")}
    return [f"{name} {here!r} instead of {there!r}" for name, (here, there) in pairs.items() if here != there]


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts [true class, predicted class] of classes [n] and [n].

    Raises ValueError naming what is not as long as the other, or is outside of 0 to classes - 1.
    """
    targets, predicted = np.asarray(targets), np.asarray(predicted)
    if targets.shape != predicted.shape:
        raise ValueError(f"targets {targets.shape} and predicted {predicted.shape}, allowed: the same shape")
    for name, values in (("targets", targets), ("predicted", predicted)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{name}: {values.min()} to {values.max()}, allowed: 0 to {classes - 1}")
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def is_whole(value: Any) -> bool:
    """Whether a number is an integer, of Python or numpy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def make_predict(module: Model, cfg: Any) -> Callable[[Params, Any], Any]:
    """``predict(params, inputs)``: what the deterministic model says: "outputs" of its trace if it has them, or its outputs."""

    def predict(params: Params, inputs: Any) -> Any:
        outputs, seen = module.trace(cfg, params, inputs)
        return seen.get("outputs", outputs)

    return predict


def class_names(run: Restored, outputs: int) -> list[str]:
    """A name for each output: its class, or its number where the data name no class."""
    return [*run.data.classes, *map(str, range(len(run.data.classes), outputs))]


def load_split(run: Restored, split: str, data_dir: str | os.PathLike[str] | None) -> dict[str, Any]:
    """A split of the run's data, raw.  Raises DataError, RunError: see ``evaluate``."""
    return _split_of(run, load_dataset(run, data_dir), split)


def _split_of(run: Restored, dataset: Dataset, split: str) -> dict[str, Any]:
    if split not in dataset.splits:
        raise DataError(f"data {run.recipe.data!r}: no {split} split; it has {', '.join(dataset.splits)}")
    return dict(dataset.splits[split])


def load_dataset(run: Restored, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """The run's data.  Raises DataError, RunError: see ``evaluate``."""
    recipe = run.recipe
    if recipe.data == "arrays":
        raise DataError(f"{run.folder.path}: trained on arrays in memory, which are gone; --predict FILE.npz still works")
    dataset = load_data(recipe.data, data_dir, image_shape=recipe.image_shape, text=recipe.text, pairs=recipe.pairs)
    # Splits are made from the whole set: in a changed one, examples of the old training split may be among the tests.
    if dataset.fingerprint != run.folder.config()["data_fingerprint"]:
        raise RunError(f"{run.folder.path}: data {dataset.name!r} is not what this run was trained on: its content has changed")
    return dataset


def _classify(run: Restored, table: dict[str, Any], batches: Batches) -> Predictions | None:
    """What the model says of each example, if it is a classifier and the objective carries nothing from batch to batch."""
    cfg, targets = run.recipe.model, table.get("targets")
    if not run.data.classes or not isinstance(targets, np.ndarray) or targets.dtype.kind not in "ui" or targets.ndim != 1:
        return None
    if jax.tree.leaves(run.module.init_carry(cfg, run.params, 1, key=root_key(0))):
        return None
    predict = make_predict(run.module, cfg)

    def each(params: Params, batch: Batch) -> tuple[Any, Array]:
        def loss_of_one(example: Batch) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], example)
            return run.module.loss(cfg, params, alone, key=None)[0]

        return predict(params, batch["inputs"]), jax.vmap(loss_of_one)(batch)

    function = jax.jit(each)
    outputs, losses = jax.eval_shape(function, run.params, batches.batch(0))
    if not isinstance(outputs, jax.ShapeDtypeStruct) or outputs.ndim != 2 or outputs.shape[1] < len(run.data.classes):
        return None
    parts = [function(run.params, batches.batch(step)) for step in range(batches.steps_per_epoch)]
    outputs, losses = (np.concatenate(leaves)[: len(targets)] for leaves in zip(*jax.device_get(parts), strict=True))
    return Predictions(outputs, losses, targets)


def _is_log_likelihood(predictions: Predictions) -> bool:
    """Whether the losses are -log p(true class) of outputs that are a distribution, so that their unit is the nat."""
    outputs = predictions.outputs.astype(np.float64)
    if outputs.min() < 0 or not np.allclose(outputs.sum(axis=-1), 1, atol=1e-4):
        return False
    of_true = outputs[np.arange(len(outputs)), predictions.targets]
    seen = of_true > 1e-30  # below, single precision rounds to zero
    return np.allclose(-np.log(of_true[seen]), predictions.losses[seen], rtol=1e-2, atol=1e-3)
