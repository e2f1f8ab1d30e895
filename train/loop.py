"""The host loop: it owns every effect (data, clock, files, signals); the computation is train.step."""

import collections
import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.batches import Batches, Scaling, fit_scaling
from train.checkpoint import Checkpoints
from train.data import Dataset, load_data
from train.optimizer import Optimizer
from train.progress import Progress
from train.recipe import Recipe, module_of
from train.run import RunFolder, hardware, today, versions, write_json
from train.step import TrainState, decide, divide, init_state, make_evaluate, make_step, make_steps
from train.transfer import TRANSFERS
from zoo.base import Model, Params

IN_FLIGHT = 8
"""Dispatches before the host waits for the oldest: with several CPU devices a loop that never waits deadlocks."""
EVAL_BATCH = 250


class Diverged(RuntimeError):
    """The loss is not finite."""


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


class Interrupts:
    """Turns the first SIGTERM or Ctrl-C into a request to stop at the next step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


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
    settings: fields of train.Recipe: optimizer, batch_size, epochs or steps, seed, preprocess ("none" for arrays), patience, ...
    Raises ValueError for bad settings or shapes before any step, Diverged when the loss is not finite.
    """
    if isinstance(data, str):
        name, dataset = data, load_data(data, data_dir, image_shape=settings.get("image_shape", (28, 28, 1)))
    elif isinstance(data, Dataset):
        name, dataset = data.name, data
    else:
        splits = {"train": dict(data)} | ({"validation": dict(validation)} if validation is not None else {})
        name, dataset = "arrays", Dataset(name="arrays", splits=splits, classes=(), input_range=(0.0, 1.0), about="")
        settings.setdefault("preprocess", "none")
    names = [field.name for field in dataclasses.fields(Recipe) if field.name not in ("model", "data", "name")]
    for setting in settings:
        if setting not in names:
            raise TypeError(f"fit() has no setting {setting!r}; settings: {', '.join(names)}")
    settings.setdefault("optimizer", Optimizer())
    recipe = Recipe(name="fit", model=cfg, data=name, **settings)
    return run_stage(recipe, dataset, module=module, out=out, params=params, quiet=quiet)


def run(
    recipe: Recipe[Any],
    out: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Runs every stage of a recipe, or goes on where it was interrupted.  Earlier stages lie in ``out/stage-1``, ..."""
    stages = recipe.stages
    datasets = {stage.data: load_data(stage.data, data_dir, image_shape=stage.image_shape) for stage in stages}
    result, params = None, None
    for number, stage in enumerate(stages, 1):
        stage = dataclasses.replace(stage, seed=recipe.seed)
        last = stage.name == recipe.name and number == len(stages)
        folder = None if out is None else (out if last else os.path.join(out, f"stage-{number}"))
        if last and out is not None:
            RunFolder.create(out, stage, datasets[stage.data].fingerprint)
        if result is not None:
            fresh = module_of(stage.model).init(stage.model, jax.random.split(jax.random.key(stage.seed), 3)[0])
            params = TRANSFERS[stage.transfer](result.cfg, result.params, stage.model, fresh)
        result = run_stage(stage, datasets[stage.data], out=folder, params=params, quiet=quiet, tensorboard=tensorboard)
        if not result.complete:
            break
    assert result is not None
    return result


def run_stage(
    recipe: Recipe[Any],
    dataset: Dataset,
    *,
    module: Model | None = None,
    out: str | os.PathLike[str] | None = None,
    params: Params | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Trains one stage on a data set.  See ``fit`` and ``run``."""
    module = module or module_of(recipe.model)
    cfg = recipe.model
    batches, validation, scaling = _batches(recipe, dataset)
    total = recipe.steps or max(round(recipe.epochs * batches.steps_per_epoch), 1)
    optimizer = recipe.optimizer.build(total, batches.steps_per_epoch)
    key = jax.random.key(recipe.seed)

    def fresh() -> TrainState:
        return init_state(module, cfg, optimizer, key, recipe.batch_size, params)

    step_function = make_step(module, cfg, optimizer)
    batch = jax.eval_shape(Batches.fetch, batches.arrays, jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32))
    # Wrong shapes are found here, before a folder is made or a step is run.
    shapes = jax.eval_shape(step_function, jax.eval_shape(fresh), batch, key)[1]
    folder = None if out is None else RunFolder.create(out, recipe, dataset.fingerprint)
    if folder is not None:
        folder.write_data(dataset.name, dataset.classes, scaling)

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder.checkpoints)) if folder else None
        progress = stack.enter_context(
            Progress(recipe.name, total, batches.steps_per_epoch, quiet, folder.path if folder and tensorboard else None)
        )
        state, history = None, []
        if folder and checkpoints:
            state, history = _resume(folder, checkpoints, jax.eval_shape(fresh), progress)
        state = fresh() if state is None else state
        loop = _Loop(recipe, module, state, history, batches, validation, folder, checkpoints, progress, total)
        with Interrupts() as interrupts:
            complete = loop.run(step_function, shapes, key, interrupts)
        best = loop.best_params()
        if folder and complete and not folder.summary.exists():
            write_json(folder.summary, loop.summary())
    return Result(module, cfg, best, loop.state, loop.history, complete, loop.seconds())


def _batches(recipe: Recipe[Any], dataset: Dataset) -> tuple[Batches, Batches | None, Scaling | None]:
    splits = recipe.train_on.split("+")
    missing = [split for split in splits if split not in dataset.splits]
    if missing:
        raise ValueError(f"data {dataset.name}: train_on={recipe.train_on!r}, but it has only {', '.join(dataset.splits)}")
    table = dataset.joined(*splits)
    scaling = None
    if recipe.preprocess != "none" or not isinstance(table["inputs"], dict):
        scaling = fit_scaling(recipe.preprocess, np.asarray(table["inputs"]), dataset.input_range)
    batches = Batches(table, recipe.batch_size, seed=recipe.seed, scaling=scaling)
    held_out = None
    if "validation" in dataset.splits and "validation" not in splits:
        rows = max(recipe.batch_size, EVAL_BATCH)
        held_out = Batches(dataset.splits["validation"], rows, seed=None, scaling=scaling)
    return batches, held_out, scaling


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


class _Loop:
    """The state of one run of the host loop."""

    def __init__(
        self,
        recipe: Recipe[Any],
        module: Model,
        state: TrainState,
        history: list[dict[str, Any]],
        batches: Batches,
        validation: Batches | None,
        folder: RunFolder | None,
        checkpoints: Checkpoints | None,
        progress: Progress,
        total: int,
    ) -> None:
        self.recipe, self.module, self.state, self.history = recipe, module, state, history
        self.batches, self.validation, self.folder, self.checkpoints = batches, validation, folder, checkpoints
        self.progress, self.total = progress, total
        self.step = int(state.step)
        self.saved = self.step if checkpoints and checkpoints.steps() else -1
        self.best: Params | None = None
        self.earlier = history[-1]["seconds"] if history else 0.0
        self.started = time.perf_counter()
        self.evaluate = jax.jit(make_evaluate(module, recipe.model))

    def seconds(self) -> float:
        """Of training, over all resumptions."""
        return self.earlier + time.perf_counter() - self.started

    def stopped_early(self) -> bool:
        patience = self.recipe.patience
        return patience is not None and int(self.state.control.stale) >= patience

    def run(self, step_function: Callable, shapes: Any, key: Any, interrupts: Interrupts) -> bool:
        """Trains to the end, or to a signal (False).  Every boundary evaluates, decides, and saves."""
        if self.step >= self.total or self.stopped_early():
            self.progress.say(f"the run is complete: {self.step} steps" + (f" in {self.folder.path}" if self.folder else ""))
            return True
        if self.step:
            self.progress.say(f"resuming at step {self.step} of {self.total}")
        room = self.recipe.steps_per_dispatch
        steps = jax.jit(make_steps(step_function, self.batches.fetch, many=room > 1), donate_argnums=0)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        interval = max(round(self.recipe.eval_every * self.batches.steps_per_epoch), 1)
        log_interval = max(interval // 10, 1)
        arrays = self.batches.arrays
        metrics, logged = zeros, self.step
        flying: collections.deque[Any] = collections.deque()
        pending: tuple[int, Any] | None = None
        while self.step < self.total and not self.stopped_early():
            boundary = min(self.total, (self.step // interval + 1) * interval)
            count = min(room, boundary - self.step)
            rows = self.batches.plan(self.step, count, room)
            self.state, metrics = steps(self.state, metrics, arrays, rows, np.int32(count), key)
            self.step += count
            flying.append(metrics)
            if len(flying) > IN_FLIGHT:
                jax.block_until_ready(flying.popleft())
            if pending is not None:  # read one dispatch late, so that the device never waits for the host
                self._log_training(*pending)
                pending = None
            if self.step - logged >= log_interval or self.step == boundary:
                pending, metrics, logged = (self.step, metrics), zeros, self.step
            if self.step == boundary or interrupts.received is not None:
                if pending is not None:
                    self._log_training(*pending)
                    pending = None
                if self.step == boundary:
                    self._validate()
                self._save()
            if interrupts.received is not None:
                break
        if self.checkpoints:
            self.checkpoints.wait()
        if self.step >= self.total or self.stopped_early():
            return True
        name = signal.Signals(interrupts.received or signal.SIGTERM).name
        where = f"; checkpoint at step {self.step}, the same command resumes" if self.folder else ""
        self.progress.say(f"stopped by {name} at step {self.step} of {self.total}{where}")
        return False

    def _record(self, split: str, step: int, values: dict[str, float]) -> None:
        epoch = step / self.batches.steps_per_epoch
        line = {"step": step, "epoch": round(epoch, 4), "split": split, "seconds": round(self.seconds(), 3), **values}
        self.history.append(line)
        if self.folder:
            self.folder.append_history(line)
        self.progress.update(line, self.recipe.batch_size)

    def _log_training(self, step: int, metrics: Any) -> None:
        values = divide(metrics)
        if not math.isfinite(values["loss"]):
            kept = f"; last good checkpoint: step {self.saved}" if self.saved >= 0 else ""
            before = max((line["step"] for line in self.history if line["split"] == "train"), default=0)
            raise Diverged(
                f"loss is {values['loss']} between steps {before} and {step}{kept}; a smaller optimizer.learning_rate may help"
            )
        self._record("train", step, values)

    def _validate(self) -> None:
        """Evaluates on the validation split and updates the control state; without one, the last step is the best."""
        if self.validation is None:
            return
        values = evaluate(self.evaluate, self.module, self.recipe.model, self.state.params, self.validation)
        self._record("validation", self.step, values)
        if self.recipe.select_by not in values:
            raise ValueError(f"select_by={self.recipe.select_by!r}, allowed: {', '.join(values)}")
        optimizer = self.recipe.optimizer
        control = decide(
            self.state.control,
            values[self.recipe.select_by],
            self.step,
            self.recipe.select_mode,
            plateau_factor=optimizer.plateau_factor,
            plateau_patience=optimizer.plateau_patience,
        )
        self.state = self.state._replace(control=control)
        if int(control.best_step) == self.step and self.checkpoints is None:
            self.best = jax.tree.map(jnp.copy, self.state.params)

    def _save(self) -> None:
        if self.checkpoints and self.saved != self.step:
            best = int(self.state.control.best_step) if self.validation is not None else self.step
            self.checkpoints.save(self.state, self.step, best or self.step)
            self.saved = self.step

    def best_params(self) -> Params:
        """Of the best evaluation so far, or of the last step where nothing selects."""
        if self.validation is None or int(self.state.control.best_step) in (0, self.step):
            return self.state.params
        if self.checkpoints:
            found = self.checkpoints.restore(jax.eval_shape(lambda: self.state), best=True)
            assert found is not None
            return found[0].params
        assert self.best is not None
        return self.best

    def summary(self) -> dict[str, Any]:
        """What summary.json says of a complete run."""
        control = self.state.control
        selected = self.validation is not None
        return {
            "complete": True,
            "step": self.step,
            "stopped_early": self.step < self.total,
            "best_step": int(control.best_step) if selected else self.step,
            "best": {self.recipe.select_by: float(control.best)} if selected else None,
            "seconds": round(self.seconds(), 2),
            "hardware": hardware(),
            "date": today(),
            "versions": versions(),
        }


def evaluate(function: Callable, module: Model, cfg: Any, params: Params, batches: Batches) -> dict[str, float]:
    """Mean metrics over all batches, once each and in order, the carry threaded through; function: a jitted make_evaluate."""
    carry = module.init_carry(cfg, params, batches.batch_size, key=jax.random.key(0))
    total = None
    for step in range(batches.steps_per_epoch):
        carry, metrics = function(params, carry, batches.batch(step))
        total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
    return divide(total or {})


def lines_of(history: list[dict[str, Any]], split: str) -> Iterator[dict[str, Any]]:
    """The lines of a history that belong to one split."""
    return (line for line in history if line["split"] == split)
