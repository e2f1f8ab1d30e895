"""The host loop: all side effects (data, clock, files, signals) around ``train.engine.step``."""

import dataclasses
import itertools
import signal
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train import entry
from train.batches import Batches, Feed
from train.engine import cluster
from train.engine.cluster import Watchdog
from train.engine.dispatch import Dispatcher, LateReader
from train.engine.member import Member
from train.engine.memory import peak_memory
from train.engine.progress import Progress
from train.engine.run_folder import RunFolder, hardware, today, versions
from train.engine.step import TrainState, divide, make_evaluate, root_key
from train.recipe import Recipe
from zoo.base import Model, Params

LOGS_PER_EVALUATION = 10


class Diverged(RuntimeError):  # noqa: N818
    """The loss or its gradient is not finite."""


class Interrupts:
    """Turns the first SIGTERM or Ctrl-C into a request to stop at the next step.

    A second Ctrl-C stops immediately.  Active from ``take`` to the end of a ``with`` block, or of
    an ``ExitStack`` onto which it was pushed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        self.take()
        return self

    def take(self) -> None:
        """Installs the handlers.  Raises KeyboardInterrupt if a signal has already arrived."""
        entry.check()
        if threading.current_thread() is threading.main_thread():
            # With several processes, JAX's runtime handles SIGTERM, so that all stop at one step.
            for number in (
                (signal.SIGINT,) if cluster.several() else (signal.SIGINT, signal.SIGTERM)
            ):
                self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: Any) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, _: Any) -> None:
        if self.received is not None:
            if number == signal.SIGINT and time.monotonic() - self._since >= entry.AGAIN:
                raise KeyboardInterrupt
            return
        self.received, self._since = number, time.monotonic()
        if cluster.several():
            cluster.pass_on_interrupt()


@dataclasses.dataclass
class Loop:
    """A running stage.

    Its members, usually one, are trained in parallel; with several, state leaves have a leading
    [members] axis.
    """

    recipe: Recipe[Any, Any]
    module: Model
    batches: Feed
    validation: Batches | None
    total: int
    state: TrainState
    members: list[Member]
    progress: Progress
    folder: RunFolder | None = None
    watchdog: Watchdog = dataclasses.field(default_factory=Watchdog)

    def __post_init__(self) -> None:
        self.layout = self.batches.layout
        self.many = self.layout.replicas > 1
        controls = self._host(self.state.control)
        nonfinite = self._host(self.state.nonfinite)
        for member, control, record in zip(self.members, controls, nonfinite, strict=True):
            member.control = control
            if self.many and self.recipe.on_nonfinite == "stop" and int(record.count):
                member.diverged = int(record.step)
        self.stopped_by: str | None = None
        self.step = int(np.max(jax.device_get(self.state.step)))
        histories = [member.history[-1]["seconds"] for member in self.members if member.history]
        self._earlier = max(histories, default=0.0)
        self._started = time.perf_counter()
        function = make_evaluate(self.module, self.recipe.model)
        self._evaluate = jax.jit(jax.vmap(function, (0, 0, None)) if self.many else function)

    def seconds(self) -> float:
        """Training time in seconds, including the time before resuming."""
        return self._earlier + time.perf_counter() - self._started

    def complete(self) -> bool:
        """Whether all steps are done or all members have stopped."""
        return self.step >= self.total or all(member.stopped() for member in self.members)

    def run(self, steps: Callable, metrics_shapes: Any, key: Any, interrupts: Interrupts) -> None:
        """Trains to the end or until a signal, with a checkpoint after every evaluation.

        steps: from ``Layout.steps``.  metrics_shapes: shapes of one member's metrics.
        key: the root key, or one per member.
        """
        where = f" in {self.folder.path}" if self.folder else ""
        if self.complete():
            self.progress.say(f"the run is complete: {self.step} steps{where}")
            return
        if self.step:
            self.progress.say(f"resuming at step {self.step} of {self.total}{where}")
        self._train(steps, metrics_shapes, key, interrupts)
        if self.complete():
            self.progress.say(
                f"{self.step} steps in {self.seconds():.0f} s, "
                f"peak memory {peak_memory() / 1e6:,.0f} MB"
            )
        else:
            name = self.stopped_by = signal.Signals(interrupts.received or signal.SIGTERM).name
            kept = "; a checkpoint is written, the same command resumes" if self.folder else ""
            self.progress.say(f"stopped by {name} at step {self.step} of {self.total}{kept}")

    def _train(self, steps: Callable, shapes: Any, key: Any, interrupts: Interrupts) -> None:
        put = self.layout.shard if self.many else self.layout.replicate
        lead = (len(self.members),) * self.many
        zeros = put(jax.tree.map(lambda leaf: np.zeros(lead + leaf.shape, leaf.dtype), shapes))
        room = self.recipe.steps_per_dispatch
        eval_interval = self.recipe.evaluation_interval(self.batches.steps_per_epoch)
        log_interval = max(eval_interval // LOGS_PER_EVALUATION, 1)
        ahead = max(room, self.batches.planned)
        dispatch = Dispatcher(steps, put(key), self.layout, self._plan, ahead, self.watchdog)
        metrics = LateReader(zeros, self._log_training)
        stop, dispatches, several = False, itertools.count(), cluster.several()
        while not self.complete() and not stop:
            # Dispatches, logs and evaluations end at fixed steps, so that a resumed run computes
            # and logs the same as an uninterrupted one.
            boundary = min(self.total, _next_multiple(self.step, eval_interval))
            log_at = _next_multiple(self.step, log_interval)
            # A dispatch ends where ``arrays`` changes (buckets), as it takes only one set of them.
            count = self.batches.alike(
                self.step, min(_next_multiple(self.step, room), boundary) - self.step
            )
            arrays = self.batches.arrays(self.step)
            # Asynchronous: returns before the device has finished.
            self.state, metrics.sums = dispatch(self.state, metrics.sums, arrays, self.step, count)
            self.step += count
            metrics.read()
            if self.step >= log_at or self.step == boundary:
                metrics.close(self.step)
            stop = (
                cluster.stop_requested(next(dispatches))
                if several
                else interrupts.received is not None
            )
            if stop:  # read the last metrics before saving: a non-finite state must not be saved
                metrics.close(self.step)
            if self.step == boundary or stop:
                metrics.read()
                self.watchdog.beat(f"step {self.step}")
                if self.step == boundary:
                    self._validate()
                self._save()
                self.watchdog.beat(f"saving step {self.step}")
        for member in self.members:
            if member.checkpoints:
                member.checkpoints.wait()

    def _plan(self, first: int, count: int) -> Any:
        """Plan entries of steps first .. first + count - 1, on the devices."""
        if not self.many:
            return self.batches.plan(first, count)
        plans = [
            self.batches.with_seed(member.recipe.seed).rows_of(first, count)
            for member in self.members
        ]
        return self.layout.shard(np.stack(plans))

    def _host(self, tree: Any) -> list[Any]:
        """Arrays of the state or its metrics on the host, as one tree per member."""
        tree = jax.device_get(tree)
        return (
            [
                jax.tree.map(lambda leaf, index=index: leaf[index], tree)
                for index in range(len(self.members))
            ]
            if self.many
            else [tree]
        )

    def member_state(self, index: int) -> TrainState:
        """The state of one member, as if it had been trained alone."""
        if not self.many:
            return self.state
        return jax.tree.map(lambda leaf: leaf[index], self.layout.local(self.state))

    def _record(self, member: Member, split: str, step: int, values: dict[str, float]) -> None:
        epoch = step / self.batches.steps_per_epoch
        line = {
            "step": step,
            "epoch": round(epoch, 4),
            "split": split,
            "seconds": round(self.seconds(), 3),
            **values,
        }
        member.record(line)

    def _show(self, split: str, step: int) -> None:
        """Shows the newest line; with several members, the mean over those still training."""
        lines = [
            member.history[-1]
            for member in self.members
            if member.history and member.history[-1]["step"] == step
        ]
        lines = [line for line in lines if line["split"] == split]
        if lines:
            mean = {
                name: value
                if isinstance(value, str)
                else statistics.fmean(line[name] for line in lines)
                for name, value in lines[0].items()
            }
            self.progress.update({**mean, "step": step}, self.recipe.batch_size * len(self.members))

    def _log_training(self, step: int, metrics: Any) -> None:
        for index, (member, sums) in enumerate(zip(self.members, self._host(metrics), strict=True)):
            values = divide(sums)
            if values.pop("nonfinite") and member.diverged is None:
                self._not_finite(index, member, round(float(sums["nonfinite"][0])))
            if member.diverged is None:
                self._record(member, "train", step, values)
        self._show("train", step)

    def _not_finite(self, index: int, member: Member, count: int) -> None:
        """Reports ``count`` recent non-finite steps, which changed no parameter; stops the member.

        Raises Diverged if no member is left to train.
        """
        record = self._host(self.state.nonfinite)[index]
        problem = (
            f"loss is {float(record.loss):g}, gradient norm {float(record.norm):g} "
            f"at step {int(record.step)}"
        )
        name = f"{member.label}: " if member.label else ""
        if self.recipe.on_nonfinite == "skip":
            times = f", the last of {count}" if count > 1 else ""
            self.progress.say(f"{name}{problem}{times}: skipped, {int(record.count)} so far")
            return
        if member.checkpoints:
            member.checkpoints.wait()
        saved = max(member.checkpoints.steps(), default=-1) if member.checkpoints else -1
        kept = f"; last good checkpoint: step {saved}" if saved >= 0 else ""
        advice = "a smaller optimizer.learning_rate may help, or on_nonfinite=skip"
        member.diverged = int(record.step)
        if all(other.diverged is not None for other in self.members):
            raise Diverged(f"{name}{problem}{kept}; {advice}")
        self.progress.say(f"{name}{problem}: this run stops here; the others continue")

    def _validate(self) -> None:
        """Evaluates on the validation split, if there is one, and updates the control state."""
        if self.validation is None:
            return
        key = root_key(0)
        sums = evaluate_sums(
            self._evaluate,
            self.module,
            self.recipe.model,
            self.state.params,
            self.validation,
            key,
            self.many,
        )
        for index, (member, metrics) in enumerate(zip(self.members, self._host(sums), strict=True)):
            if member.stopped():
                continue
            values = divide(metrics)
            self._record(member, "validation", self.step, values)
            member.decide(values, self.step, self.member_state(index))
        self._show("validation", self.step)
        controls = [member.control for member in self.members]
        if self.many:
            control = self.layout.shard(jax.tree.map(lambda *leaves: np.stack(leaves), *controls))
        else:
            control = self.layout.replicate(
                jax.tree.map(np.array, controls[0])
            )  # copies: the state's are donated
        self.state = self.state._replace(control=control)

    def _save(self) -> None:
        for index, member in enumerate(self.members):
            if member.checkpoints:
                member.save(self.member_state(index), self.step, self.validation is not None)

    def best_step(self, member: Member) -> int:
        """Step of the member's best evaluation so far; the last step without validation."""
        return member.best_step(self.step, self.validation is not None)

    def best_params(self, index: int = 0) -> Params:
        """A member's parameters at its ``best_step``."""
        member, state = self.members[index], self.layout.local(self.member_state(index))
        if self.best_step(member) == self.step:
            return state.params
        if member.best is not None:
            return self.layout.local(member.best)
        assert member.checkpoints is not None
        restored = member.checkpoints.restore(
            jax.eval_shape(lambda: state), best=True, say=self.progress.say
        )
        assert restored is not None
        return restored[0].params

    def summary(self, member: Member) -> dict[str, Any]:
        """The content of summary.json for a complete run."""
        best = member.best_value()
        return {
            "complete": True,
            "step": self.step,
            "stopped_early": self.step < self.total or member.stopped(),
            "diverged": member.diverged,
            "best_step": self.best_step(member),
            "best": None if best is None else {self.recipe.select_by: best},
            "seconds": round(self.seconds(), 2),
            "side_by_side": len(self.members),
            "peak_memory_mb": round(peak_memory() / 1e6),
            "hardware": hardware(),
            "date": today(),
            "versions": versions(),
        }


def evaluate(
    function: Callable, module: Model, cfg: Any, params: Params, batches: Batches
) -> dict[str, float]:
    """Mean metrics over all batches in order, passing the carry from batch to batch.

    function: a jitted ``make_evaluate``.
    """
    return divide(evaluate_sums(function, module, cfg, params, batches, root_key(0)))


def evaluate_sums(
    function: Callable,
    module: Model,
    cfg: Any,
    params: Params,
    batches: Batches,
    key: Any,
    many: bool = False,
) -> Any:
    """Like ``evaluate``, but returns sums.  many: parameters have a leading [members] axis."""
    if many:
        carry = jax.vmap(lambda params: module.init_carry(cfg, params, batches.padded, key=key))(
            params
        )
    else:
        carry = module.init_carry(cfg, params, batches.padded, key=key)
    total = {}
    for step in range(batches.steps_per_epoch):
        carry, metrics = function(params, carry, batches.batch(step))
        total = jax.tree.map(jnp.add, total, metrics) if total else metrics
    return total


def _next_multiple(step: int, interval: int) -> int:
    return (step // interval + 1) * interval
