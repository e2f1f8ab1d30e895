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
    """What updates the parameters: SGD with momentum unless said otherwise.

    A *kernel* is a parameter leaf of that name: decay and max-norm act on kernels, never on biases or embeddings.
    """

    name: Literal["sgd", "adam", "rmsprop"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    """sgd and rmsprop: fraction of the last update that is kept; adam: beta 1."""
    momentum_start: float | None = None
    """Momentum of the first step, rising linearly to `momentum` over `momentum_epochs` (sgd only)."""
    momentum_epochs: float = 0.0
    nesterov: bool = False
    schedule: Schedule = "constant"
    """step: times `decay` every `decay_every` epochs.  exponential, linear, cosine: down to `decay` times the rate at the end."""
    decay: float = 0.1
    decay_every: float = 10.0
    warmup: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    clip_norm: float | None = None
    """Upper bound of the gradient's global norm."""
    l2: float = 0.0
    """Added to the gradient: l2 times the kernel (the penalty l2/2 |W|^2)."""
    weight_decay: float = 0.0
    """Decoupled: each step takes learning rate times weight_decay times the kernel away (AdamW)."""
    max_norm: float | None = None
    """Upper bound of the norm of each unit's incoming weights, by projection after each step (Srivastava et al. 2014, 5.1)."""
    plateau_factor: float = 1.0
    """Factor on the learning rate whenever validation has not improved for `plateau_patience` evaluations."""
    plateau_patience: int = 1
    only: tuple[str, ...] = ()
    """Patterns such as layer_1.* of the parameters that are trained; the others stay as they are.  Without any, all are.
    !conv_* leaves those out."""

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
        """The optax transformation; its update takes ``factor=``, an extra factor on the learning rate."""
        return build_one_of((self,), 0, total_steps, steps_per_epoch)


def build_one_of(
    optimizers: Sequence[Optimizer], index: Any, total_steps: int, steps_per_epoch: float
) -> optax.GradientTransformationExtraArgs:
    """``optimizers[index].build(...)``, where they may differ in numbers only, and the index may be traced.

    The schedules of all are computed at every step, which are a few numbers, and one is taken.
    """
    first = optimizers[0]

    def has(field: str) -> bool:
        return any(getattr(each, field) for each in optimizers)

    def number(field: str) -> Any:
        values = [getattr(each, field) for each in optimizers]
        return values[0] if len(set(values)) == 1 else jnp.asarray(values)[index]

    def schedule(make: Callable[[Optimizer], optax.Schedule]) -> optax.Schedule:
        schedules = [make(each) for each in dict.fromkeys(optimizers)]
        if len(schedules) == 1:
            return schedules[0]
        schedules = [make(each) for each in optimizers]
        return lambda step: jnp.stack([jnp.asarray(each(step), jnp.float32) for each in schedules])[
            index
        ]

    def momentum() -> optax.GradientTransformation:
        if first.momentum_start is None:
            return optax.trace(number("momentum"), nesterov=first.nesterov)

        def rise(each: Optimizer) -> optax.Schedule:
            assert each.momentum_start is not None
            return optax.linear_schedule(
                each.momentum_start,
                each.momentum,
                max(round(each.momentum_epochs * steps_per_epoch), 1),
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
    # Always as many parts: what a checkpoint holds does not depend on whether a number is 0, which one of several may be.
    parts: list[optax.GradientTransformation] = [
        optax.clip_by_global_norm(number("clip_norm")) if has("clip_norm") else none,
        optax.add_decayed_weights(number("l2"), mask=kernel_mask) if has("l2") else none,
        direction,
        optax.add_decayed_weights(number("weight_decay"), mask=kernel_mask)
        if has("weight_decay")
        else none,
        optax.scale_by_learning_rate(
            schedule(lambda each: each.rate(total_steps, steps_per_epoch))
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
    """True for leaves whose path ("layer_1.kernel") the patterns fit: one of them, if there is one, and none after a "!".

    Raises ValueError for a pattern that fits none, and where nothing is left.
    """
    paths = list(leaves_by_path(params))
    fits = {
        pattern: {path for path in paths if fnmatch.fnmatchcase(path, pattern.removeprefix("!"))}
        for pattern in patterns
    }
    for pattern, found in fits.items():
        if not found:
            raise ValueError(
                f"optimizer: only={pattern!r}, allowed: patterns of {', '.join(paths)}"
            )
    taken = [found for pattern, found in fits.items() if not pattern.startswith("!")]
    left = [found for pattern, found in fits.items() if pattern.startswith("!")]
    flags = [
        (not taken or any(path in found for found in taken))
        and not any(path in found for found in left)
        for path in paths
    ]
    if not any(flags):
        raise ValueError(
            f"optimizer: only={' '.join(patterns)!r}, which leaves nothing to train of {', '.join(paths)}"
        )
    return jax.tree.unflatten(jax.tree.structure(params), flags)


def numeric_fields() -> list[str]:
    """Settings that are numbers, so that several values of one can be trained at once."""
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
    """Multiplies updates by the extra argument ``factor``: the part of the learning rate that validation decides."""

    def update(
        updates: Any, state: Any, params: Any = None, *, factor: Any = 1.0, **_: Any
    ) -> tuple[Any, Any]:
        return jax.tree.map(
            lambda update: update * jnp.asarray(factor, update.dtype), updates
        ), state

    return optax.GradientTransformationExtraArgs(_no_state, update)


def project_max_norm(bound: Any) -> optax.GradientTransformation:
    """Shrinks each unit's incoming weights to norm ``bound`` after the step, as an update: project(p + u) - p.

    The incoming weights of a unit are a kernel's column: all axes but the last.  Must be the last of a chain.
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
