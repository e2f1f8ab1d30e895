"""Optimizers as data: a frozen dataclass that builds an optax transformation."""

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from train.settings import settle
from zoo.parts.parameters import leaves_by_path

Schedule = Literal["constant", "step", "exponential", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Settings of the optimizer, by default SGD with momentum.

    Decay and max-norm act on parameter leaves named ``kernel`` only, never on biases or embeddings.
    """

    name: Literal["sgd", "adam", "rmsprop"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    """sgd, rmsprop: momentum coefficient; adam: beta 1."""
    momentum_start: float | None = None
    """Initial momentum, increasing linearly to `momentum` over `momentum_epochs` (sgd only)."""
    momentum_epochs: float = 0.0
    nesterov: bool = False
    schedule: Schedule = "constant"
    """step: multiply the learning rate by `decay` every `decay_every` epochs.
    exponential, linear, cosine: decrease it to `decay` times its initial value at the end."""
    decay: float = 0.1
    decay_every: float = 10.0
    warmup: float = 0.0
    """Epochs over which the learning rate increases linearly from 0."""
    clip_norm: float | None = None
    """Maximum global norm of the gradient."""
    l2: float = 0.0
    """L2 penalty l2/2 |W|^2: adds l2 times the kernel to its gradient."""
    weight_decay: float = 0.0
    """Decoupled (AdamW): subtracts learning rate times weight_decay times the kernel."""
    max_norm: float | None = None
    """Maximum norm of each unit's incoming weights, by projection after each step
    (Srivastava et al. 2014, section 5.1)."""
    plateau_factor: float = 1.0
    """Multiplies the learning rate after `plateau_patience` evaluations without improvement."""
    plateau_patience: int = 1
    only: tuple[str, ...] = ()
    """Patterns of the parameters to train, such as layer_1.*, or !conv_* to exclude some.
    All others are frozen; by default all are trained."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        settle(self, "optimizer: ")
        for field in ("learning_rate", "decay_every", "clip_norm", "max_norm", "plateau_patience"):
            self._require(field, lambda value: value > 0, "a positive number")
        for field in ("momentum", "momentum_start"):
            self._require(field, lambda value: 0 <= value < 1, "0 <= momentum < 1")
        for field in ("l2", "weight_decay", "warmup", "momentum_epochs"):
            self._require(field, lambda value: value >= 0, "a number of at least 0")
        self._require("plateau_factor", lambda value: 0 < value <= 1, "0 < factor <= 1")
        to_zero = self.schedule in ("linear", "cosine")
        self._require(
            "decay",
            lambda value: 0 < value <= 1 or (to_zero and value == 0),
            "0 < decay <= 1 (linear and cosine: 0 as well)",
        )
        if self.momentum_start is not None and self.name != "sgd":
            raise ValueError(
                f"optimizer: momentum_start={self.momentum_start!r}, allowed: only with name='sgd'"
            )

    def _require(self, field: str, allows: Any, allowed: str) -> None:
        value = getattr(self, field)
        if value is not None and not (math.isfinite(value) and allows(value)):
            raise ValueError(f"optimizer: {field}={value!r}, allowed: {allowed}")

    def rate(self, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
        """The learning rate as a function of the step."""
        start, end, warmup = (
            self.learning_rate,
            self.learning_rate * self.decay,
            round(self.warmup * steps_per_epoch),
        )
        steps = max(total_steps - warmup, 1)
        match self.schedule:
            case "constant":
                schedule = optax.constant_schedule(start)
            case "step":
                every = max(round(self.decay_every * steps_per_epoch), 1)
                schedule = optax.exponential_decay(start, every, self.decay, staircase=True)
            case "exponential":
                schedule = optax.exponential_decay(start, steps, self.decay)
            case "linear":
                schedule = optax.linear_schedule(start, end, steps)
            case "cosine":
                schedule = optax.cosine_decay_schedule(start, steps, alpha=self.decay)
        if warmup:
            schedule = optax.join_schedules(
                [optax.linear_schedule(0.0, start, warmup), schedule], [warmup]
            )
        return schedule

    def build(
        self, total_steps: int, steps_per_epoch: float
    ) -> optax.GradientTransformationExtraArgs:
        """The optax transformation; its update takes ``factor=``, a learning-rate multiplier."""
        return build_one_of((self,), 0, total_steps, steps_per_epoch)


def build_one_of(
    optimizers: Sequence[Optimizer], index: Any, total_steps: int, steps_per_epoch: float
) -> optax.GradientTransformationExtraArgs:
    """``optimizers[index].build(...)`` for a possibly traced index.

    The optimizers may differ only in numbers.  Each step evaluates all of their schedules, a few
    scalars, and selects one.
    """
    first = optimizers[0]

    def has(field: str) -> bool:
        return any(getattr(optimizer, field) for optimizer in optimizers)

    def number(field: str) -> Any:
        values = [getattr(optimizer, field) for optimizer in optimizers]
        return values[0] if len(set(values)) == 1 else jnp.asarray(values)[index]

    def schedule(make: Callable[[Optimizer], optax.Schedule]) -> optax.Schedule:
        schedules = [make(optimizer) for optimizer in dict.fromkeys(optimizers)]
        if len(schedules) == 1:
            return schedules[0]
        schedules = [make(optimizer) for optimizer in optimizers]
        return lambda step: jnp.stack(
            [jnp.asarray(schedule(step), jnp.float32) for schedule in schedules]
        )[index]

    def momentum() -> optax.GradientTransformation:
        if first.momentum_start is None:
            return optax.trace(number("momentum"), nesterov=first.nesterov)

        def rise(optimizer: Optimizer) -> optax.Schedule:
            assert optimizer.momentum_start is not None
            return optax.linear_schedule(
                optimizer.momentum_start,
                optimizer.momentum,
                max(round(optimizer.momentum_epochs * steps_per_epoch), 1),
            )

        return optax.inject_hyperparams(optax.trace, static_args="nesterov")(
            decay=schedule(rise), nesterov=first.nesterov
        )

    none = optax.identity()
    match first.name:
        case "sgd":
            direction = momentum()
        case "adam":
            direction = optax.scale_by_adam(b1=number("momentum"), nesterov=first.nesterov)
        case "rmsprop":
            direction = optax.chain(
                optax.scale_by_rms(), optax.trace(number("momentum"), nesterov=first.nesterov)
            )
    # The chain always has the same length, so the checkpoint structure does not depend on which
    # hyperparameters happen to be zero.
    parts: list[optax.GradientTransformation] = [
        optax.clip_by_global_norm(number("clip_norm")) if has("clip_norm") else none,
        optax.add_decayed_weights(number("l2"), mask=kernel_mask) if has("l2") else none,
        direction,
        optax.add_decayed_weights(number("weight_decay"), mask=kernel_mask)
        if has("weight_decay")
        else none,
        optax.scale_by_learning_rate(
            schedule(lambda optimizer: optimizer.rate(total_steps, steps_per_epoch))
        ),
        scale_by_factor(),
        project_max_norm(number("max_norm")) if has("max_norm") else none,
    ]
    whole = optax.with_extra_args_support(optax.chain(*parts))
    if not first.only:
        return whole
    return optax.partition(
        {True: whole, False: optax.set_to_zero()}, functools.partial(trained, patterns=first.only)
    )


def trained(params: Any, patterns: Sequence[str]) -> Any:
    """True for the leaves to train, selected by path ("layer_1.kernel").

    A leaf is trained if it matches a pattern without "!" (or there is none), and none with "!".
    Raises ValueError for a pattern that matches no leaf, and if no leaf is left to train.
    """
    paths = list(leaves_by_path(params))
    matches = {
        pattern: {path for path in paths if fnmatch.fnmatchcase(path, pattern.removeprefix("!"))}
        for pattern in patterns
    }
    for pattern, matching in matches.items():
        if not matching:
            raise ValueError(
                f"optimizer: only={pattern!r}, allowed: patterns of {', '.join(paths)}"
            )
    included = [paths for pattern, paths in matches.items() if not pattern.startswith("!")]
    excluded = [paths for pattern, paths in matches.items() if pattern.startswith("!")]
    flags = [
        (not included or any(path in matching for matching in included))
        and not any(path in matching for matching in excluded)
        for path in paths
    ]
    if not any(flags):
        raise ValueError(
            f"optimizer: only={' '.join(patterns)!r}, "
            f"which leaves nothing to train of {', '.join(paths)}"
        )
    return jax.tree.unflatten(jax.tree.structure(params), flags)


def numeric_fields() -> list[str]:
    """Names of the numeric settings, which sweeps can vary within one program."""
    return [field.name for field in dataclasses.fields(Optimizer) if field.type in _NUMERIC]


_NUMERIC = (float, int, float | None)


def kernel_mask(params: Any) -> Any:
    """True for leaves named "kernel"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
    )


def _no_state(params: Any) -> optax.EmptyState:
    return optax.EmptyState()


def scale_by_factor() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by the extra argument ``factor``, the plateau schedule's factor."""

    def update(
        updates: Any, state: Any, params: Any = None, *, factor: Any = 1.0, **_: Any
    ) -> tuple[Any, Any]:
        return jax.tree.map(
            lambda update: update * jnp.asarray(factor, update.dtype), updates
        ), state

    return optax.GradientTransformationExtraArgs(_no_state, update)


def project_max_norm(bound: Any) -> optax.GradientTransformation:
    """Projects each unit's incoming weights to norm at most ``bound``: update = project(p + u) - p.

    The incoming weights of a unit are a column of the kernel: all axes but the last.
    Must be last in a chain.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def project(is_kernel: bool, update: Any, param: Any) -> Any:
            if not is_kernel:
                return update
            moved = param + update
            norm = jnp.sqrt(
                jnp.sum(jnp.square(moved), axis=tuple(range(moved.ndim - 1)), keepdims=True)
            )
            return (
                moved * jnp.minimum(1.0, bound / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
                - param
            )

        return jax.tree.map(project, kernel_mask(params), updates, params), state

    return optax.GradientTransformation(_no_state, update)


def field_names() -> list[str]:
    """Names of the fields, for messages."""
    return [field.name for field in dataclasses.fields(Optimizer)]
