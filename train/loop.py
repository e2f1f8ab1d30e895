"""The host loop: it owns every effect (data, clock, files, signals); the computation is train.step."""

import collections
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.batches import Batches
from train.checkpoint import Checkpoints
from train.memory import peak_memory
from train.progress import Progress
from train.recipe import Recipe
from train.run_folder import RunFolder, hardware, today, versions
from train.step import TrainState, decide, divide, make_evaluate, make_steps
from zoo.base import Model, Params

IN_FLIGHT = 8
"""Dispatches before the host waits for the oldest: with several CPU devices a loop that never waits deadlocks."""
LOGS_PER_EVALUATION = 10
PLANNED = 64
"""Steps whose rows are sent to the device at once."""


class Diverged(RuntimeError):  # noqa: N818
    """The loss is not finite."""


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


@dataclasses.dataclass
class Loop:
    """One run of one stage.  folder and checkpoints are both None for a run in memory."""

    recipe: Recipe[Any]
    module: Model
    batches: Batches
    validation: Batches | None
    total: int
    state: TrainState
    history: list[dict[str, Any]]
    progress: Progress
    folder: RunFolder | None = None
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        self.step = int(self.state.step)
        self._saved = self.step if self.checkpoints and self.checkpoints.steps() else -1
        self._best: Params | None = None
        self._earlier = self.history[-1]["seconds"] if self.history else 0.0
        self._started = time.perf_counter()
        self._evaluate = jax.jit(make_evaluate(self.module, self.recipe.model))

    def seconds(self) -> float:
        """Of training, over all resumptions."""
        return self._earlier + time.perf_counter() - self._started

    def complete(self) -> bool:
        """All steps are done, or patience has run out."""
        patience = self.recipe.patience
        return self.step >= self.total or (patience is not None and int(self.state.control.stale) >= patience)

    def run(self, step_function: Callable, metrics_shapes: Any, key: Any, interrupts: Interrupts) -> None:
        """Trains to the end, or to a signal.  Every evaluation decides and is followed by a checkpoint."""
        where = f" in {self.folder.path}" if self.folder else ""
        if self.complete():
            self.progress.say(f"the run is complete: {self.step} steps{where}")
            return
        if self.step:
            self.progress.say(f"resuming at step {self.step} of {self.total}{where}")
        room = self.recipe.steps_per_dispatch
        steps = jax.jit(make_steps(step_function, self.batches.fetch, many=room > 1), donate_argnums=0)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics_shapes)
        eval_interval = max(round(self.recipe.eval_every * self.batches.steps_per_epoch), 1)
        log_interval = max(eval_interval // LOGS_PER_EVALUATION, 1)
        planned = max(room, PLANNED)
        plan, planned_to, counts = None, self.step, {}
        metrics, flying = zeros, collections.deque()
        unread: tuple[int, Any] | None = None
        while not self.complete() and interrupts.received is None:
            # Dispatches, logs and evaluations end at fixed steps, wherever the run was interrupted before.
            boundary = min(self.total, _next_multiple(self.step, eval_interval))
            count = min(_next_multiple(self.step, room), boundary) - self.step
            if self.step + count > planned_to:
                plan = jax.device_put((self.batches.plan(self.step, planned), np.int32(self.step)))
                planned_to = self.step + planned
            if count not in counts:  # on the device once: every array from the host costs a dispatch some 10 us
                counts[count] = jax.device_put(np.int32(count))
            self.state, metrics = steps(self.state, metrics, self.batches.arrays, plan, counts[count], key)
            log_at = _next_multiple(self.step, log_interval)
            self.step += count
            flying.append(metrics)
            if len(flying) > IN_FLIGHT:
                jax.block_until_ready(flying.popleft())
            if unread is not None:  # one dispatch late, so that the device never waits for the host
                self._log_training(*unread)
                unread = None
            if self.step >= log_at or self.step == boundary:
                unread, metrics = (self.step, metrics), zeros
            if self.step == boundary or interrupts.received is not None:
                if unread is not None:
                    self._log_training(*unread)
                    unread = None
                if self.step == boundary:
                    self._validate()
                self._save()
        if self.checkpoints:
            self.checkpoints.wait()
        if self.complete():
            self.progress.say(f"{self.step} steps in {self.seconds():.0f} s, peak memory {peak_memory() / 1e6:,.0f} MB")
        else:
            name = signal.Signals(interrupts.received or signal.SIGTERM).name
            kept = "; a checkpoint is written, the same command resumes" if self.folder else ""
            self.progress.say(f"stopped by {name} at step {self.step} of {self.total}{kept}")

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
            kept = f"; last good checkpoint: step {self._saved}" if self._saved >= 0 else ""
            before = max((line["step"] for line in self.history if line["split"] == "train"), default=0)
            raise Diverged(
                f"loss is {values['loss']} between steps {before} and {step}{kept}; a smaller optimizer.learning_rate may help"
            )
        self._record("train", step, values)

    def _validate(self) -> None:
        """Evaluates on the validation split and updates the control state; without one, the last step is the best."""
        if self.validation is None:
            return
        values = evaluate(self._evaluate, self.module, self.recipe.model, self.state.params, self.validation)
        self._record("validation", self.step, values)
        control = decide(
            self.state.control,
            values[self.recipe.select_by],
            self.step,
            self.recipe.select_mode,
            plateau_factor=self.recipe.optimizer.plateau_factor,
            plateau_patience=self.recipe.optimizer.plateau_patience,
        )
        self.state = self.state._replace(control=control)
        if int(control.best_step) == self.step and self.checkpoints is None:
            self._best = jax.tree.map(jnp.copy, self.state.params)  # the state itself is donated to the next step

    def _save(self) -> None:
        if self.checkpoints and self._saved != self.step:
            self.checkpoints.save(self.state, self.step, self.best_step())
            self._saved = self.step

    def best_step(self) -> int:
        """Of the best evaluation so far; the last step where nothing selects."""
        return (int(self.state.control.best_step) if self.validation is not None else 0) or self.step

    def best_params(self) -> Params:
        """The parameters at ``best_step``."""
        if self.best_step() == self.step:
            return self.state.params
        if self._best is not None:
            return self._best
        assert self.checkpoints is not None
        found = self.checkpoints.restore(jax.eval_shape(lambda: self.state), best=True, say=self.progress.say)
        assert found is not None
        return found[0].params

    def summary(self) -> dict[str, Any]:
        """What summary.json says of a complete run."""
        best = float(self.state.control.best)
        return {
            "complete": True,
            "step": self.step,
            "stopped_early": self.step < self.total,
            "best_step": self.best_step(),
            "best": None if math.isnan(best) else {self.recipe.select_by: best},
            "seconds": round(self.seconds(), 2),
            "peak_memory_mb": round(peak_memory() / 1e6),
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


def _next_multiple(step: int, interval: int) -> int:
    return (step // interval + 1) * interval
