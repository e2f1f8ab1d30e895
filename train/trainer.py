"""Training as a call: ``fit`` for a model and data in a program, ``run`` for a recipe and a folder."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.batches import Batches, Scaling, fit_scaling
from train.checkpoint import Checkpoints, describe
from train.data import Dataset, load_data
from train.loop import Interrupts, Loop
from train.progress import Progress
from train.recipe import Recipe, module_of
from train.run_folder import RunFolder, versions, write_json
from train.step import TrainState, init_state, make_step
from train.transfer import TRANSFERS, load_params, matching, shared
from zoo.base import Model, Params

EVAL_BATCH, SMALL = 250, 2**14
"""Examples evaluated at a time, where each holds at most SMALL values; of larger ones, as many as in a training batch."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run gives back.

    params: of the best evaluation, or of the last step where nothing selects.  state: of the last step.
    history: the lines of metrics.jsonl.  complete: False when a signal ended it; resume with the same call.
    """

    module: Model
    cfg: Any
    params: Params
    state: TrainState
    history: list[dict[str, Any]]
    complete: bool
    seconds: float


def fit(
    module: Model,
    cfg: Any,
    data: str | Dataset | Mapping[str, Any] = "digits",
    *,
    validation: Mapping[str, Any] | None = None,
    params: Params | None = None,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Result:
    """Trains a model and returns its best parameters::

        result = train.fit(zoo.mlp, cfg, {"inputs": x, "targets": y}, epochs=20, optimizer=train.Optimizer(learning_rate=0.05))

    data: the name of a data set, a Dataset, or arrays {"inputs": [n, ...], "targets": [n]}; ``validation``: arrays alike.
    params: start from these.  out: a run folder for checkpoints (starting again there resumes).
    settings: fields of train.Recipe: optimizer, batch_size, epochs or steps, seed, preprocess ("none" for arrays), patience,
    init_from (a run folder or a file to start from), ...
    Raises ValueError for bad settings or shapes, and what ``run`` raises, before any step, Diverged when the loss is not finite.
    """
    names = [
        field.name for field in dataclasses.fields(Recipe) if field.name not in ("name", "model", "data", "after", "transfer")
    ]
    for setting in settings:
        if setting not in names:
            raise TypeError(f"fit() has no setting {setting!r}; settings: {', '.join(names)}")
    if isinstance(data, str):
        dataset = load_data(data, data_dir, image_shape=settings.get("image_shape", (28, 28, 1)))
    elif isinstance(data, Dataset):
        dataset = data
    else:
        tables = {"train": data} | ({} if validation is None else {"validation": validation})
        dataset = Dataset("arrays", {split: jax.tree.map(np.asarray, dict(table)) for split, table in tables.items()})
        settings.setdefault("preprocess", "none")
    if settings.get("init_from") is not None:
        settings["init_from"] = os.fspath(settings["init_from"])
        if params is not None:
            raise ValueError(f"init_from={settings['init_from']!r}, allowed with params: None")
    stage = _prepare(Recipe(name="fit", model=cfg, data=dataset.name, **settings), dataset, module)
    start = _load_start(stage, out) if params is None else _Start(params)
    return _run_stage(stage, out, start, quiet)


def run(
    recipe: Recipe[Any],
    out: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Runs every stage of a recipe, or goes on where it was interrupted.  Earlier stages lie in ``out/stage-1``, ...

    Every stage takes the recipe's seed, the first one its init_from.
    Raises DataError, RunError, CheckpointError, ValueError, OSError before any step, Diverged later.
    """
    recipes = [dataclasses.replace(stage, seed=recipe.seed) for stage in recipe.stages]
    recipes[0] = dataclasses.replace(recipes[0], init_from=recipe.init_from or recipes[0].init_from)
    datasets = {each.data: load_data(each.data, data_dir, image_shape=each.image_shape) for each in recipes}
    stages = [_prepare(each, datasets[each.data], module_of(each.model)) for each in recipes]
    earlier = [None if out is None else os.path.join(out, f"stage-{number}") for number in range(1, len(stages))]
    folders = [*earlier, out]
    start = _load_start(stages[0], folders[0])
    if out is not None:  # another run's folder is refused before the first stage starts
        RunFolder.create(out, recipes[-1], stages[-1].dataset.fingerprint)
    result = None
    for stage, folder in zip(stages, folders, strict=True):
        if result is not None:
            params = TRANSFERS[stage.recipe.transfer](result.cfg, result.params, stage.recipe.model, stage.fresh())
            start = _Start(params)
        result = _run_stage(stage, folder, start, quiet, tensorboard)
        if not result.complete:
            break
    assert result is not None
    return result


@dataclasses.dataclass(frozen=True)
class _Stage:
    """What one stage of a recipe needs, checked and not yet started.  start: the first arguments of ``init_state``."""

    recipe: Recipe[Any]
    module: Model
    dataset: Dataset
    batches: Batches
    validation: Batches | None
    total: int
    start: tuple[Model, Any, optax.GradientTransformationExtraArgs, jax.Array]
    step: Callable
    abstract: TrainState
    metrics: Any

    def fresh(self) -> Params:
        """Parameters as the stage draws them itself."""
        return init_state(*self.start, self.recipe.batch_size).params


class _Start(NamedTuple):
    """What a stage starts from: parameters, None for fresh ones, and what to say about them."""

    params: Params | None = None
    note: str = ""


def _load_start(stage: _Stage, out: str | os.PathLike[str] | None) -> _Start:
    """What the recipe's init_from gives; nothing is read where the run has a checkpoint to resume from."""
    source = stage.recipe.init_from
    if source is None or (out is not None and _has_checkpoint(RunFolder(out))):
        return _Start()
    earlier, fresh = load_params(source, stage.recipe.model), stage.fresh()
    try:
        params = matching(None, earlier, stage.recipe.model, fresh)
    except ValueError as error:
        raise ValueError(f"init_from={source!r}: {error}") from None
    takes = shared(earlier, fresh)
    left = [path for path, taken in takes.items() if not taken]
    kept = f"; fresh: {', '.join(left)}" if left else ""
    return _Start(params, f"starting from {source}: {len(takes) - len(left)} of {len(takes)} parameters{kept}")


def _has_checkpoint(folder: RunFolder) -> bool:
    return folder.checkpoints.is_dir() and bool(Checkpoints(folder.checkpoints, read_only=True).steps())


def _prepare(recipe: Recipe[Any], dataset: Dataset, module: Model) -> _Stage:
    """Wrong shapes, classes and metrics are found here, before a folder is made or a step is run."""
    cfg = recipe.model
    batches, validation = _batches(recipe, dataset)
    total = recipe.steps or max(round(recipe.epochs * batches.steps_per_epoch), 1)
    optimizer = recipe.optimizer.build(total, batches.steps_per_epoch)
    key = jax.random.key(recipe.seed)
    step, start = make_step(module, cfg, optimizer, recipe.augment), (module, cfg, optimizer, key)
    abstract = jax.eval_shape(lambda: init_state(*start, recipe.batch_size))
    rows = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32)
    batch = jax.eval_shape(Batches.fetch, (batches.table, batches.scaling), rows)
    _, metrics = jax.eval_shape(step, abstract, batch, key)
    outputs = jax.eval_shape(lambda params, inputs: module.apply(cfg, params, inputs), abstract.params, batch["inputs"])
    _check_classes(dataset, outputs)
    if validation is not None:
        recipe = _with_metric(recipe, list(metrics))
    return _Stage(recipe, module, dataset, batches, validation, total, start, step, abstract, metrics)


def _run_stage(
    stage: _Stage, out: str | os.PathLike[str] | None, start: _Start, quiet: bool, tensorboard: bool = False
) -> Result:
    """Trains one stage to its end, or to a signal."""
    recipe, batches = stage.recipe, stage.batches
    if start.params is not None:
        _check_params(start.params, stage.abstract.params)
    folder = None if out is None else RunFolder.create(out, recipe, stage.dataset.fingerprint)
    with contextlib.ExitStack() as stack:
        checkpoints, state, history = None, None, []
        events = folder.path if folder and tensorboard else None
        progress = stack.enter_context(Progress(recipe.name, stage.total, batches.steps_per_epoch, quiet, events))
        if folder:
            stack.enter_context(folder.locked())
            folder.write_data(stage.dataset, batches.scaling)
            checkpoints = stack.enter_context(Checkpoints(folder.checkpoints))
            state, history = _resume(folder, checkpoints, stage.abstract, progress)
        if state is None:
            params = jax.tree.map(jnp.copy, start.params)  # the state is donated to the first step, the caller's are not
            state = init_state(*stage.start, recipe.batch_size, params)
            if start.note:
                progress.say(start.note)
        loop = Loop(recipe, stage.module, batches, stage.validation, stage.total, state, history, progress, folder, checkpoints)
        with Interrupts() as interrupts:
            loop.run(stage.step, stage.metrics, stage.start[-1], interrupts)
        best = loop.best_params()
        if folder and loop.complete() and not folder.summary.exists():
            write_json(folder.summary, loop.summary())
    return Result(stage.module, recipe.model, best, loop.state, loop.history, loop.complete(), loop.seconds())


def _batches(recipe: Recipe[Any], dataset: Dataset) -> tuple[Batches, Batches | None]:
    splits = recipe.train_on.split("+")
    missing = [split for split in splits if split not in dataset.splits]
    if missing:
        raise ValueError(f"data {dataset.name}: train_on={recipe.train_on!r}, but it has only {', '.join(dataset.splits)}")
    table = dataset.joined(*splits)
    scaling = None
    if recipe.preprocess != "none":
        if isinstance(table["inputs"], dict):
            raise ValueError(f"preprocess={recipe.preprocess!r}, allowed for inputs of several arrays: none")
        scaling = fit_scaling(recipe.preprocess, table["inputs"], dataset.input_range)
    batches = Batches(table, recipe.batch_size, seed=recipe.seed, scaling=scaling)
    held_out = None
    if "validation" in dataset.splits and "validation" not in splits:
        held_out = evaluation_batches(dataset.splits["validation"], recipe.batch_size, scaling)
    return batches, held_out


def evaluation_batches(table: Mapping[str, Any], batch_size: int, scaling: Scaling | None) -> Batches:
    """All examples of a split in order, in batches that need not be larger than ``batch_size``, the training's."""
    leaves = jax.tree.leaves(table["inputs"])
    small = max(leaf[0].size for leaf in leaves) <= SMALL
    rows = min(max(batch_size, EVAL_BATCH if small else 1), len(leaves[0]))
    return Batches(table, rows, seed=None, scaling=scaling)


def _check_classes(dataset: Dataset, outputs: Any) -> None:
    """Raises ValueError when the targets name a class that the model has no output for: on a device that would go unnoticed."""
    for split, table in dataset.splits.items():
        targets = table.get("targets")
        if not isinstance(outputs, jax.ShapeDtypeStruct) or getattr(targets, "dtype", np.dtype(float)).kind not in "ui":
            continue
        assert targets is not None
        if outputs.ndim == targets.ndim + 1 and not 0 <= targets.min() <= targets.max() < outputs.shape[-1]:
            bad = targets.min() if targets.min() < 0 else targets.max()
            raise ValueError(f"data {dataset.name}: {split} targets hold class {bad}, the model has {outputs.shape[-1]} outputs")


def _check_params(params: Params, expected: Params) -> None:
    """Raises ValueError naming the first leaf that the model does not have, or has in another shape."""
    have, want = describe(params), describe(expected)
    for path in [*want, *have]:
        if have.get(path) != want.get(path):
            raise ValueError(f"params: {path} is {have.get(path, 'missing')}, the model has {want.get(path, 'none')}")


def _with_metric(recipe: Recipe[Any], metrics: list[str]) -> Recipe[Any]:
    if recipe.select_by in metrics:
        return recipe
    if recipe.name == "fit" and recipe.select_by == "accuracy":  # nobody asked for it, and this model has none
        return dataclasses.replace(recipe, select_by="loss", select_mode="min")
    raise ValueError(f"recipe {recipe.name}: select_by={recipe.select_by!r}, allowed: {', '.join(sorted(metrics))}")


def _resume(
    folder: RunFolder, checkpoints: Checkpoints, abstract: Any, progress: Progress
) -> tuple[TrainState | None, list[dict[str, Any]]]:
    found = checkpoints.restore(abstract, say=progress.say)
    if found is None:
        return None, folder.truncate_history(0)
    state, step = found
    checkpoints.drop_after(step)
    there, here = folder.config()["versions"], versions()
    changed = [f"{name} {there.get(name)} -> {here[name]}" for name in here if there.get(name) != here[name]]
    if changed:
        progress.say(f"resuming with other versions, so not bit for bit: {', '.join(changed)}")
    return state, folder.truncate_history(step)
