"""A finished run: its best model, its data, and a loop that maps a function over examples."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from train.batches import Scaling
from train.data import DataError, load_data, parse, with_settings
from train.dataset import Dataset, Table
from train.engine.run_folder import RunData, RunError, RunFolder, restore_best
from train.engine.stage import evaluation_batches, scan_batches
from train.recipe import Recipe, module_of
from train.stream import make_batches
from train.tasks import Task, learned
from zoo.base import Model, Params

Mapped = Callable[[Model, Any, Params, Any], Any]
"""(module, cfg, params, batch) -> a tree of arrays [batch, ...]."""


class Run(NamedTuple):
    """A run and its best model.  step: the step of the model's checkpoint."""

    folder: RunFolder
    recipe: Recipe[Any, Any]
    module: Model
    params: Params
    step: int
    data: RunData

    @property
    def task(self) -> Task:
        """The task that the model learned."""
        return self.data.task

    @property
    def scaling(self) -> Scaling | None:
        """How inputs are scaled; None leaves them unchanged (integers stay integers)."""
        return None if self.recipe.preprocess == "none" else self.data.scaling

    def map(
        self,
        function: Mapped,
        table: Mapping[str, Any],
        *,
        params: Params | None = None,
        rows: int | None = None,
    ) -> Any:
        """Applies ``function`` to every row of a table, in order: a tree of numpy arrays [n, ...].

        table: raw columns, at least {"inputs": [n, ...]}.
        rows: batch size; default: that of evaluation.  A smaller last batch is padded, so calls
            with the same ``rows`` and shapes compile a jitted ``function`` only once.
        """
        chosen = self.params if params is None else params

        def step(carry: tuple[()], batch: Any) -> tuple[tuple[()], Any]:
            return carry, function(self.module, self.recipe.model, chosen, batch)

        return self.scan(step, lambda _: (), table, rows=rows)

    def scan(
        self,
        step: Callable[[Any, Any], tuple[Any, Any]],
        start: Callable[[int], Any],
        table: Mapping[str, Any],
        *,
        rows: int | None = None,
    ) -> Any:
        """``map`` with a carry from batch to batch: step(carry, batch) -> (carry, values).

        start(rows): the carry before the first batch, for this many rows.
        """
        if rows is None:
            batches = evaluation_batches(table, self.recipe.batch_size, self.scaling)
        else:
            batches = make_batches(table, rows, seed=None, scaling=self.scaling)
        return scan_batches(batches, step, start(batches.padded))


def restore(run_dir: str | os.PathLike[str]) -> Run:
    """Loads a run with its best model.

    Raises RunError if this is not a run folder, CheckpointError if it has no intact checkpoint.
    """
    folder = RunFolder.open(run_dir)
    recipe = folder.recipe()
    state, step = restore_best(folder, recipe)
    return Run(folder, recipe, module_of(recipe.model), state.params, step, folder.data())


def load_dataset(run: Run, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Loads the data set that a run was trained on.

    Raises DataError if it is missing, RunError if its content has changed.
    """
    dataset = load_data(run.recipe.data, data_dir)
    # Splits are drawn from the whole data set: after a change, the test split may contain examples
    # that the model was trained on.
    if dataset.fingerprint != run.folder.config()["data_fingerprint"]:
        why = "is not what this run was trained on: its content has changed"
        raise RunError(f"{run.folder.path}: data {dataset.name!r} {why}")
    return dataset


def load_other(run: Run, data: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Loads another data set for a run's task, with the run's settings and vocabulary.

    Raises DataError if it is missing, or has another task or another input shape.
    """
    source, shape = parse(data, like=run.recipe.data), run.data.input_shape
    if shape is not None and "image_shape" in vars(source):
        source = with_settings(source, {"image_shape": shape})
    dataset = load_data(source, data_dir, task=run.task)
    task = learned(run.recipe.model.outputs, dataset.task)
    if task != run.task:
        raise DataError(f"data {data!r}: {task}; allowed for this run: {run.task}")
    inputs = next(iter(dataset.splits.values()))["inputs"]
    image = inputs.get("image") if isinstance(inputs, dict) else inputs
    given = None if image is None else tuple(image.shape[1:])
    if (run.task.sizes == {} and given != shape) or (
        shape is not None and isinstance(inputs, dict) and given != shape
    ):
        raise DataError(f"data {data!r}: inputs {given}; allowed for this run: {shape}")
    return dataset


def split_of(dataset: Dataset, split: str) -> Table:
    """The raw columns of a split.  If it does not exist, raises DataError that lists the splits."""
    if split not in dataset.splits:
        has = ", ".join(dataset.splits)
        raise DataError(f"data {dataset.name!r}: no {split} split; it has {has}")
    return dataset.splits[split]


def load_split(run: Run, split: str, data_dir: str | os.PathLike[str] | None) -> Table:
    """The raw columns of a split of the run's data.  Raises what ``load_dataset`` raises."""
    return split_of(load_dataset(run, data_dir), split)


def predict_batch(module: Model, cfg: Any, params: Params, inputs: Any) -> Any:
    """The predictions of the deterministic model.

    These are "outputs" among the intermediates of ``trace`` if present, else the model's outputs.
    """
    outputs, intermediates = module.trace(cfg, params, inputs)
    return intermediates.get("outputs", outputs)


def class_names(run: Run, count: int) -> list[str]:
    """Names of ``count`` outputs: their classes, or their indices where the data name no class."""
    known = run.task.labels
    return [*known, *map(str, range(len(known), count))]
