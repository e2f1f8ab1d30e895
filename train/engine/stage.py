"""Preparation of one stage of a recipe, checked before creating a folder or running a step."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from train.batches import Batches, Feed, Scaling, fit_scaling
from train.dataset import Dataset, Endless, Table, as_table
from train.engine.checkpoint import describe
from train.engine.checks import (
    check_columns,
    check_inputs,
    check_read,
    registered,
    require_declared,
    with_targets,
)
from train.engine.optimizer import build_one_of
from train.engine.parallel import Layout, Parallel
from train.engine.step import TrainState, init_state, make_evaluate, make_step, root_key
from train.recipe import BETTER, Recipe, module_of, written_out
from train.samplers import Shuffled
from train.settings import shown
from train.stream import make_batches
from train.tasks import Task, learned
from zoo.base import Adaptable, Model, Params
from zoo.parts.config import replace

PREFERRED = ("accuracy", "label_error", "loss")
"""Default selection metrics, in this order."""
EVAL_BATCH, SMALL = 250, 2**14
"""Minimum evaluation batch size for examples of at most SMALL values.

Larger examples use the training batch size.
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a recipe, checked and not yet started.

    members: {label: recipe} of the runs trained in parallel.
    build: ``make_step`` without the options that the layout decides; takes (index, **how) for
        several members.
    abstract, metrics: shapes of one member's state and metrics.
    """

    recipe: Recipe[Any, Any]
    module: Model
    dataset: Dataset
    batches: Feed
    validation: Batches | None
    total: int
    members: dict[str, Recipe[Any, Any]]
    optimizer: Callable[[Any], optax.GradientTransformationExtraArgs]
    build: Callable[..., Callable]
    abstract: TrainState
    metrics: Any

    @property
    def task(self) -> Task:
        """The task that the model learns."""
        return learned(self.recipe.model.outputs, self.dataset.task)

    def key(self, index: int = 0) -> jax.Array:
        """A member's root key."""
        return root_key(list(self.members.values())[index].seed)

    def init(self, index: int = 0, params: Params | None = None) -> TrainState:
        """A member's state before its first step."""
        cfg, key = self.recipe.model, self.key(index)
        experience = self.batches.experience(self.module, cfg)
        optimizer, batch_size = self.optimizer(index), self.recipe.batch_size
        return init_state(self.module, cfg, optimizer, key, batch_size, params, experience)

    def fresh(self, index: int = 0) -> Params:
        """A member's freshly initialised parameters."""
        return self.init(index).params


def prepare(
    recipe: Recipe[Any, Any],
    dataset: Dataset,
    module: Model,
    parallel: Parallel,
    *,
    kept: bool = True,
) -> Stage:
    """Builds a stage and checks data, shapes, metrics and settings.

    Errors are raised here, before a folder is created or a step is run.
    kept: whether the run has a folder.
    """
    if not isinstance(parallel, Parallel):
        raise ValueError(f"parallel={shown(parallel)}, allowed: {Parallel.__module__}.Parallel")
    require_declared(recipe.model)
    splits = recipe.train_on.split("+")
    missing = [split for split in splits if split not in dataset.splits]
    if missing:
        raise ValueError(
            f"data {dataset.name}: train_on={recipe.train_on!r}, "
            f"but it has only {', '.join(dataset.splits)}"
        )
    check_read(
        recipe, validates="validation" in dataset.splits and "validation" not in splits, kept=kept
    )
    if recipe.relabel and dataset.relabel is None:
        raise ValueError(
            f"recipe {recipe.name}: relabel=True, allowed for data {dataset.name}: False"
        )
    recipe = _with_sizes(recipe, dataset)
    cfg, only = recipe.model, recipe.optimizer.only
    example = jax.eval_shape(lambda: module.example_batch(cfg, root_key(0), 1))
    check_columns(dataset, example)
    dataset = with_targets(dataset, cfg, example)
    layout = Layout(parallel, len(recipe.members))
    batches, validation = _batches(recipe, dataset, layout)
    total = recipe.steps or max(round(recipe.epochs * batches.steps_per_epoch), 1)
    optimizers = tuple(member.optimizer for member in recipe.members.values())

    def optimizer(index: Any) -> optax.GradientTransformationExtraArgs:
        return build_one_of(optimizers, index, total, batches.steps_per_epoch)

    def build(index: Any = 0, **how: Any) -> Callable:
        stops = "freeze" if len(optimizers) > 1 else "note"
        nonfinite = "skip" if recipe.on_nonfinite == "skip" else stops
        how |= {"load": batches.load, "advance": batches.advance(module, cfg), "only": only}
        return make_step(module, cfg, optimizer(index), recipe.augment, nonfinite=nonfinite, **how)

    key = root_key(recipe.seed)
    experience = batches.experience(module, cfg)
    abstract = jax.eval_shape(
        lambda: init_state(module, cfg, optimizer(0), key, recipe.batch_size, None, experience)
    )
    _, metrics = jax.eval_shape(build(), abstract, batches.example(recipe.batch_size), key)
    check_inputs(recipe, dataset, batches.scaling)
    measured = (
        metrics if validation is None else _evaluated(module, cfg, abstract.params, validation)
    )
    recipe = _selecting(
        recipe, sorted(name for name in measured if name != "nonfinite"), validation is not None
    )
    return Stage(
        recipe,
        module,
        dataset,
        batches,
        validation,
        total,
        recipe.members,
        optimizer,
        build,
        abstract,
        metrics,
    )


def _batches(
    recipe: Recipe[Any, Any], dataset: Dataset, layout: Layout
) -> tuple[Feed, Batches | None]:
    splits = recipe.train_on.split("+")
    table = dataset.joined(*splits)
    scaling = None
    if recipe.preprocess != "none":
        inputs = None if isinstance(table, Endless) else table["inputs"]
        if isinstance(inputs, dict) and "image" not in inputs:
            raise ValueError(
                f"preprocess={recipe.preprocess!r}, "
                "allowed for inputs of several arrays without an image: none"
            )
        scaling = fit_scaling(
            recipe.preprocess,
            inputs["image"] if isinstance(inputs, dict) else inputs,
            dataset.input_range,
        )
    options = {"scaling": scaling, "layout": layout}
    batches = make_batches(
        table, recipe.batch_size, seed=recipe.seed, labels=recipe.labels, **options
    )
    held_out = None
    if "validation" in dataset.splits and "validation" not in splits:
        held_out = evaluation_batches(
            dataset.splits["validation"], recipe.batch_size, scaling, layout
        )
    return batches, held_out


def evaluation_batches(
    table: Mapping[str, Any],
    batch_size: int,
    scaling: Scaling | None,
    layout: Layout | None = None,
) -> Batches:
    """All examples of a split in order.

    batch_size: the training batch size, for which there is enough memory; batches of small examples
    may be larger.
    """
    leaves = jax.tree.leaves(table["inputs"])
    # Text uses the training batch size, because each row starts its segment without context.
    # Bucketed data do too, because their outputs are much larger than their inputs.
    shuffled = as_table(table).sampler == Shuffled()
    small = shuffled and max(math.prod(leaf.shape[1:]) for leaf in leaves) <= SMALL
    rows = min(max(batch_size, EVAL_BATCH if small else 1), len(leaves[0]))
    return make_batches(table, rows, seed=None, scaling=scaling, layout=layout)


def scan_batches(batches: Batches, step: Callable[[Any, Any], tuple[Any, Any]], carry: Any) -> Any:
    """The values of every row of a table, in order: a tree of numpy arrays [n, ...].

    step: (carry, batch) -> (carry, values [batch, ...]).
    """
    results, structure = [], None
    with contextlib.closing(batches):
        for index in range(batches.steps_per_epoch):
            carry, values = step(carry, batches.batch(index))
            leaves, structure = jax.tree.flatten(jax.device_get(values))
            if not results:
                results = [np.zeros((batches.size, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
            rows = batches.rows(index)
            real = rows >= 0  # negative rows are padding
            for result, leaf in zip(results, leaves, strict=True):
                result[rows[real]] = leaf[real]
    return jax.tree.unflatten(structure, results)


def relabelled(stage: Stage, params: Params) -> Dataset:
    """The stage's data with the targets that its trained model assigns, see ``Recipe.relabel``."""
    apply = jax.jit(functools.partial(stage.module.apply, stage.recipe.model))

    def outputs(table: Table) -> np.ndarray:
        batches = evaluation_batches(table, stage.recipe.batch_size, stage.batches.scaling)
        return scan_batches(batches, lambda _, batch: ((), apply(params, batch["inputs"])), ())

    assert stage.dataset.relabel is not None  # see prepare
    return stage.dataset.relabel(outputs)


def _with_sizes(recipe: Recipe[Any, Any], dataset: Dataset) -> Recipe[Any, Any]:
    """The recipe with the model sizes that depend on the data, such as a vocabulary.

    Raises ValueError if the data are for another kind of model.
    """
    cfg, module = recipe.model, type(recipe.model).__module__
    example = jax.eval_shape(lambda: module_of(cfg).example_batch(cfg, root_key(0), 1))["inputs"]
    table = next(iter(dataset.tables.values()), {"inputs": example})
    have, want = (_described(inputs) for inputs in (table["inputs"], example))
    if have != want:
        raise ValueError(f"data {dataset.name}: inputs are {have}, allowed for {module}: {want}")
    cfg = _adapted(recipe, table["inputs"], dataset)
    sizes = dataset.task.sizes
    if not sizes.keys() <= {field.name for field in dataclasses.fields(cfg)}:
        raise ValueError(f"data {dataset.name}: tokens, allowed for {module}: data other than text")
    if sizes and not isinstance(example, dict) and recipe.preprocess != "none":
        raise ValueError(
            f"recipe {recipe.name}: preprocess={recipe.preprocess!r}, allowed for text: none"
        )
    return dataclasses.replace(recipe, model=replace(cfg, **sizes))


def _adapted(recipe: Recipe[Any, Any], inputs: Any, dataset: Dataset) -> Any:
    """Adapts the model of a registered recipe to other data, unless the user changed the model."""
    cfg = recipe.model
    author = next((stage for stage in registered() if stage.name == recipe.name), recipe)
    changed = author.data == recipe.data or author.model != cfg
    if changed or not isinstance(cfg, Adaptable) or isinstance(inputs, dict):
        return cfg
    return cfg.for_data(tuple(inputs.shape[1:]), len(dataset.task.labels) or None)


def _described(inputs: Any) -> str:
    return ", ".join(sorted(inputs)) if isinstance(inputs, dict) else "an array"


def check_params(params: Params, expected: Params) -> None:
    """Raises ValueError naming the first missing or unexpected leaf, or one of another shape."""
    have, want = describe(params), describe(expected)
    for path in [*want, *have]:
        if have.get(path) != want.get(path):
            raise ValueError(
                f"params: {path} is {have.get(path, 'missing')}, "
                f"the model has {want.get(path, 'none')}"
            )


def _evaluated(module: Model, cfg: Any, params: Params, validation: Batches) -> dict[str, Any]:
    """Shapes of an evaluation's metrics.  Raises ValueError if the model cannot take the split."""

    def evaluate(params: Params, source: Any) -> Any:
        carry = module.init_carry(cfg, params, validation.padded, key=root_key(0))
        return make_evaluate(module, cfg)(params, carry, validation.load(source))[1]

    try:
        return jax.eval_shape(evaluate, params, validation.example(validation.padded))
    except ValueError as error:
        raise ValueError(f"validation split: {error}") from error


def _selecting(recipe: Recipe[Any, Any], metrics: list[str], validates: bool) -> Recipe[Any, Any]:
    """The recipe with explicit ``select_by`` and ``select_mode``.

    Without validation, which makes them irrelevant, they have the same values as in earlier
    versions, so that runs of those can be resumed.
    """
    usual = next((name for name in PREFERRED if name in metrics or not validates), "loss")
    select_by = recipe.select_by or usual
    if select_by not in metrics and (validates or recipe.select_by):
        raise ValueError(
            f"recipe {recipe.name}: select_by={select_by!r}, allowed: {', '.join(metrics)}"
        )
    mode = recipe.select_mode or BETTER.get(select_by)
    if mode is None:
        raise ValueError(
            f"recipe {recipe.name}: select_by={select_by!r} without select_mode, "
            "allowed with it: max, min"
        )
    return written_out(dataclasses.replace(recipe, select_by=select_by, select_mode=mode))
