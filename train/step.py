"""One training step as a pure function of state, batch and key; everything here can be jitted, vmapped and scanned."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from train.augment import Augment, deform
from zoo.base import Batch, Carry, Model, Params

NO_AUGMENT = Augment()
Metrics = dict[str, tuple[Array, Array]]
"""{name: (sum, count)}: add them up over batches, then divide once."""


class Control(NamedTuple):
    """What validation decides; part of the state, so that a resumed run decides alike.

    best, best_step: best value of the selecting metric and its step.  stale: evaluations since then.
    factor: on the learning rate; waited: evaluations without improvement since the factor last changed.
    """

    best: Array
    best_step: Array
    stale: Array
    factor: Array
    waited: Array


class TrainState(NamedTuple):
    """Everything that a run needs to go on, and all that a checkpoint holds."""

    step: Array
    params: Params
    opt_state: Any
    carry: Carry
    control: Control


def init_control() -> Control:
    """Nothing evaluated yet."""
    return Control(jnp.float32(jnp.nan), jnp.int32(0), jnp.int32(0), jnp.float32(1), jnp.int32(0))


def init_state(
    module: Model, cfg: Any, optimizer: optax.GradientTransformation, key: Array, batch_size: int, params: Params | None = None
) -> TrainState:
    """The state before the first step.  key: the run's root key; params: instead of fresh ones."""
    params_key, carry_key, _ = jax.random.split(key, 3)
    params = module.init(cfg, params_key) if params is None else params
    carry = module.init_carry(cfg, params, batch_size, key=carry_key)
    return TrainState(jnp.int32(0), params, optimizer.init(params), carry, init_control())


def example_keys(key: Array, step: Array, rows: int | Array) -> Array:
    """Keys [batch] of one step, one for each example, by its row: they depend on nothing but (run, step, row).

    So dropout does not change with padding, accumulation or the number of devices.  rows: their number, or the global rows.
    """
    rows = jnp.arange(rows) if isinstance(rows, int) else rows
    step_key = jax.random.fold_in(jax.random.split(key, 3)[2], step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, rows)


def make_step(
    module: Model, cfg: Any, optimizer: optax.GradientTransformationExtraArgs, augment: Augment = NO_AUGMENT
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """``step(state, batch, key) -> (state, metrics)``: the gradient of the mean loss, one update, summed metrics.

    key: the run's root key, the same at every step.  metrics holds "loss" and the model's own.
    augment: deforms the inputs first.
    A batch without any unmasked item has zero gradients.
    """

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        keys = example_keys(key, state.step, batch["mask"].shape[0])
        batch = {**batch, "inputs": deform(augment, batch["inputs"], keys)}

        def objective(params: Params) -> tuple[Array, Any]:
            return module.loss(cfg, params, batch, key=keys, carry=state.carry)

        (total, aux), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        # The only place that divides: sums over all parts of the batch first, then one division.
        gradients = jax.tree.map(lambda gradient: gradient / jnp.maximum(aux.count, 1).astype(gradient.dtype), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, factor=state.control.factor)
        params: Any = optax.apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, opt_state, aux.carry, state.control)
        return state, {"loss": (total, aux.count), **aux.metrics}

    return step


def make_steps(step: Callable, fetch: Callable[[Any, Array], Batch], many: bool) -> Callable:
    """``steps(state, metrics, arrays, plan, count, key)``: ``count`` steps in one dispatch (else one), metrics added up.

    fetch(arrays, rows [batch]) -> batch, on the device.  plan: (rows [steps, batch], the step that its first row belongs to), so
    that steady dispatches bring nothing from the host.  The number of steps is a traced value, so the same compiled loop body
    runs whatever it is, and a run that was interrupted in the middle of a dispatch gives the same bits as one that was not.
    """

    def one(loop: tuple[TrainState, Metrics], arrays: Any, plan: tuple[Array, Array], key: Array) -> tuple[TrainState, Metrics]:
        (state, metrics), (rows, first) = loop, plan
        state, new = step(state, fetch(arrays, rows[state.step - first]), key)
        return state, jax.tree.map(jnp.add, metrics, new)

    def steps(
        state: TrainState, metrics: Metrics, arrays: Any, plan: tuple[Array, Array], count: Array, key: Array
    ) -> tuple[TrainState, Metrics]:
        if not many:
            return one((state, metrics), arrays, plan, key)
        return jax.lax.fori_loop(0, count, lambda _, loop: one(loop, arrays, plan, key), (state, metrics))

    return steps


def make_evaluate(module: Model, cfg: Any) -> Callable[[Params, Carry, Batch], tuple[Carry, Metrics]]:
    """``evaluate(params, carry, batch) -> (carry, metrics)``: the deterministic loss and metrics, as sums."""

    def evaluate(params: Params, carry: Carry, batch: Batch) -> tuple[Carry, Metrics]:
        total, aux = module.loss(cfg, params, batch, key=None, carry=carry)
        return aux.carry, {"loss": (total, aux.count), **aux.metrics}

    return evaluate


def divide(metrics: Metrics) -> dict[str, float]:
    """{name: mean} on the host; NaN where nothing was counted."""
    sums = jax.device_get(metrics)
    return {name: float(total) / float(count) if count else float("nan") for name, (total, count) in sums.items()}


def decide(
    control: Control, value: float, step: int, mode: str, *, plateau_factor: float = 1.0, plateau_patience: int = 1
) -> Control:
    """The control state after an evaluation: a better value resets the counts, a stall shrinks the learning-rate factor."""
    value = float(np.float32(value))  # as precise as what it is compared with
    best, sign = float(control.best), 1 if mode == "max" else -1
    if not math.isnan(value) and (math.isnan(best) or sign * value > sign * best):
        return Control(jnp.float32(value), jnp.int32(step), jnp.int32(0), control.factor, jnp.int32(0))
    waited = int(control.waited) + 1
    factor = control.factor
    if waited >= plateau_patience:
        factor, waited = factor * jnp.float32(plateau_factor), 0
    return control._replace(stale=control.stale + jnp.int32(1), factor=factor, waited=jnp.int32(waited))
