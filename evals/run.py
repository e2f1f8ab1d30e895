"""A finished run: its best model, its data, and one loop that maps a function over examples."""

import contextlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from train.batches import Scaling
from train.data import DataError, load_data
from train.dataset import Dataset, Table
from train.recipe import Recipe, module_of
from train.run_folder import RunData, RunError, RunFolder, restore_best
from train.stage import evaluation_batches
from train.stream import make_batches
from train.tasks import Task, learned
from zoo.base import Model, Params

Mapped = Callable[[Model, Any, Params, Any], Any]
"""(module, cfg, params, batch) -> a tree of arrays that lead with [batch]."""


class Run(NamedTuple):
    """The best model of a run.  step: the step of its checkpoint."""

    folder: RunFolder
    recipe: Recipe[Any]
    module: Model
    params: Params
    step: int
    data: RunData

    @property
    def task(self) -> Task:
        """What the model learned."""
        return self.data.task

    @property
    def scaling(self) -> Scaling | None:
        """How inputs are scaled; None leaves them as they are, integers too."""
        return None if self.recipe.preprocess == "none" else self.data.scaling

    def map(
        self,
        function: Mapped,
        table: Table,
        *,
        params: Params | None = None,
        rows: int | None = None,
        widths: Any = None,
    ) -> Any:
        """``function`` of every row of a table, in the table's order: numpy arrays that lead with [n].

        table: raw columns, at least {"inputs": [n, ...]}.  rows: at a time; as many as evaluation
        takes unless given.  Fewer rows are padded, so calls with the same ``rows`` and shapes are
        compiled once, also where ``function`` is jitted itself.
        """
        chosen = self.params if params is None else params

        def step(carry: tuple[()], batch: Any) -> tuple[tuple[()], Any]:
            return carry, function(self.module, self.recipe.model, chosen, batch)

        return self.scan(step, lambda _: (), table, rows=rows, widths=widths)

    def scan(
        self,
        step: Callable[[Any, Any], tuple[Any, Any]],
        start: Callable[[int], Any],
        table: Table,
        *,
        rows: int | None = None,
        widths: Any = None,
    ) -> Any:
        """``map`` with a carry from batch to batch: step(carry, batch) -> (carry, values).

        start(rows): the carry before the first batch, of this many rows.
        """
        if rows is None:
            batches = evaluation_batches(table, self.recipe.batch_size, self.scaling, widths=widths)
        else:
            batches = make_batches(table, rows, seed=None, scaling=self.scaling, widths=widths)
        carry, results, structure = start(batches.padded), [], None
        with contextlib.closing(batches):
            for index in range(batches.steps_per_epoch):
                carry, values = step(carry, batches.batch(index))
                leaves, structure = jax.tree.flatten(jax.device_get(values))
                if not results:
                    results = [np.zeros((batches.size, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
                rows_here = batches.rows(index)
                there = rows_here >= 0  # others are padding
                for result, leaf in zip(results, leaves, strict=True):
                    result[rows_here[there]] = leaf[there]
        return jax.tree.unflatten(structure, results)


def restore(run_dir: str | os.PathLike[str]) -> Run:
    """The best model of a run.

    Raises RunError if this is no run folder, CheckpointError if it has no intact checkpoint.
    """
    folder = RunFolder.open(run_dir)
    recipe = folder.recipe()
    state, step = restore_best(folder, recipe)
    return Run(folder, recipe, module_of(recipe.model), state.params, step, folder.data())


def load_dataset(run: Run, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """The data that a run was trained on.

    Raises DataError when they are missing, RunError when their content has changed.
    """
    recipe = run.recipe
    if recipe.data == "arrays":
        why = "trained on arrays in memory, which are gone"
        raise DataError(f"{run.folder.path}: {why}; --data npz:FILE measures it on others")
    dataset = _load(run, recipe.data, data_dir, None)
    # Splits are made from the whole set: in a changed one, examples of the old training split may
    # be among the tests.
    if dataset.fingerprint != run.folder.config()["data_fingerprint"]:
        why = "is not what this run was trained on: its content has changed"
        raise RunError(f"{run.folder.path}: data {dataset.name!r} {why}")
    return dataset


def load_other(run: Run, data: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Other data for a run's task, encoded with the run's vocabulary.

    Raises DataError when they are missing, or are for another task or of another shape.
    """
    dataset = _load(run, data, data_dir, run.task)
    task = learned(run.recipe.model.outputs, dataset.task)
    if task != run.task:
        raise DataError(f"data {data!r}: {task}; allowed for this run: {run.task}")
    inputs = next(iter(dataset.splits.values()))["inputs"]
    image = inputs.get("image") if isinstance(inputs, dict) else inputs
    shape = None if image is None else tuple(image.shape[1:])
    of_images = isinstance(inputs, dict) or not run.task.sizes  # sequences may be of any length
    if of_images and shape != run.data.input_shape:
        raise DataError(f"data {data!r}: inputs {shape}; allowed for this run: {run.data.input_shape}")
    return dataset


def _load(run: Run, data: str, data_dir: str | os.PathLike[str] | None, task: Task | None) -> Dataset:
    recipe = run.recipe
    return load_data(
        data,
        data_dir,
        image_shape=recipe.image_shape,
        text=recipe.text,
        pairs=recipe.pairs,
        task=task,
    )


def split_of(dataset: Dataset, split: str) -> Table:
    """The raw columns of a split.  Raises DataError naming the splits that there are."""
    if split not in dataset.splits:
        has = ", ".join(dataset.splits)
        raise DataError(f"data {dataset.name!r}: no {split} split; it has {has}")
    return dict(dataset.splits[split])


def load_split(run: Run, split: str, data_dir: str | os.PathLike[str] | None) -> Table:
    """A split of the run's data, raw.  Raises DataError, RunError: see ``load_dataset``."""
    return split_of(load_dataset(run, data_dir), split)


def predict_batch(module: Model, cfg: Any, params: Params, inputs: Any) -> Any:
    """What the deterministic model estimates: "outputs" of its trace if it has them, else its outputs."""
    outputs, intermediates = module.trace(cfg, params, inputs)
    return intermediates.get("outputs", outputs)


def class_names(run: Run, count: int) -> list[str]:
    """A name for each of ``count`` outputs: its class, or its number where the data name none."""
    known = run.task.labels
    return [*known, *map(str, range(len(known), count))]
