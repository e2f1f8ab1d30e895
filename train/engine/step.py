"""One training step as a pure function of state, batch and key.

Everything here can be jitted, vmapped and scanned.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from train.augment import Augment, deform_batch
from train.engine.optimizer import trained
from zoo.base import BLOCK, Batch, Carry, Model, Params

NO_AUGMENT = Augment()
PRNG = "threefry2x32"
"""The random generator of every run, regardless of JAX's default.

Other generators draw different numbers under ``vmap`` than without it, which would make dropout
depend on the number of devices.
"""
REMAT = jax.checkpoint_policies.save_only_these_names(BLOCK)
Metrics = dict[str, tuple[Array, Array]]
"""{name: (sum, count)}: add over batches, then divide once."""


class Control(NamedTuple):
    """The state of early stopping and the plateau schedule.

    It is part of the training state, so that a resumed run makes the same decisions.

    best, best_step: best value of the selection metric and its step; 0 and 0 before the first
    evaluation.
    stale: evaluations since the best one.
    factor: multiplies the learning rate.
    waited: evaluations without improvement since ``factor`` last changed.
    """

    best: Array
    best_step: Array
    stale: Array
    factor: Array
    waited: Array


class NonFinite(NamedTuple):
    """Steps whose loss or gradient was not finite.

    count: number of such steps.  step: the first one, counted from 1; the latest if such steps are
    skipped.  loss, norm: mean loss and gradient norm of that step.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    step: Array
    loss: Array
    norm: Array


class TrainState(NamedTuple):
    """Everything that a run needs to resume: the content of a checkpoint."""

    step: Array
    params: Params
    opt_state: Any
    carry: Carry
    control: Control
    nonfinite: NonFinite
    experience: Any = ()


def init_control() -> Control:
    """The control state before the first evaluation."""
    return Control(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.float32(1), jnp.int32(0))


def all_finite() -> NonFinite:
    """The record before any non-finite step."""
    return NonFinite(jnp.int32(0), jnp.int32(0), jnp.float32(0), jnp.float32(0))


def root_key(seed: int | np.integer) -> Array:
    """The key from which all keys of a run are derived."""
    return jax.random.key(seed, impl=PRNG)


def _keys(key: Array) -> tuple[Array, Array, Array, Array]:
    """Keys for the parameters, the carry, the steps and the experience.

    Derived with fold_in rather than split, because every step receives the same root key.
    """
    parameters, carry, steps, experience = (jax.random.fold_in(key, use) for use in range(4))
    return parameters, carry, steps, experience


def no_experience(params: Params, key: Array) -> tuple[()]:
    """The empty experience, for data that training steps do not change."""
    return ()


def stay(experience: Any, params: Params, source: Any, key: Array, step: Array) -> tuple[Any, Any]:
    """Returns the experience and the batch source unchanged."""
    return experience, source


def init_state(
    module: Model,
    cfg: Any,
    optimizer: optax.GradientTransformation,
    key: Array,
    batch_size: int,
    params: Params | None = None,
    experience: Callable[[Params, Array], Any] = no_experience,
) -> TrainState:
    """The state before the first step.

    key: the run's root key.  params: used instead of freshly initialised ones.
    experience: (params, key) -> additional state that steps update, see ``train.experience``.
    """
    params_key, carry_key, _, experience_key = _keys(key)
    params = module.init(cfg, params_key) if params is None else params
    carry = module.init_carry(cfg, params, batch_size, key=carry_key)
    initial = experience(params, experience_key)
    return TrainState(
        jnp.int32(0), params, optimizer.init(params), carry, init_control(), all_finite(), initial
    )


def example_keys(key: Array, step: Array, rows: int | Array) -> Array:
    """Keys [batch] of one step, one per example; they depend only on (run, step, row).

    Dropout is therefore independent of padding, accumulation and the number of devices.
    rows: the number of rows, or their global indices.
    """
    rows = jnp.arange(rows) if isinstance(rows, int) else rows
    step_key = jax.random.fold_in(_keys(key)[2], step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, rows)


def whole(batch: Batch) -> Batch:
    """Identity: the source is already a batch."""
    return batch


def make_gradients(
    module: Model,
    cfg: Any,
    augment: Augment = NO_AUGMENT,
    *,
    load: Callable[[Any], Batch] = whole,
    accumulate: int = 1,
    axis: str | None = None,
    remat: bool = False,
    only: tuple[str, ...] = (),
) -> Callable[[Params, Carry, Any, Array, Array], tuple[Params, Metrics, Carry]]:
    """``gradients(params, carry, source, key, step) -> (gradients, metrics, carry)``.

    Gradients and metrics are sums over the unmasked items.

    load(source) -> batch.
    accumulate: number of parts of the batch, computed one after the other to save memory.
    axis: the mesh axis along which devices hold consecutive parts of the batch; sums are then over
        all devices.  The function must run on each device (``jax.shard_map``, ``jax.pmap``).  Each
        gradient is reduced once, in its parameter's type.
    remat: keep only block outputs (``zoo.base.block``) for the backward pass; recompute the rest.
    only: see ``Optimizer``.  Gradients of all other parameters are zero; they are neither computed
        nor reduced over devices.
    """

    def part(
        params: Params, carry: Carry, batch: Batch, keys: Array
    ) -> tuple[list[Array], Metrics, Carry]:
        """Gradients (of the trained leaves only), metrics and carry of one part of the batch."""
        batch = deform_batch(augment, batch, keys)

        def objective(leaves: list[Array]) -> tuple[Array, Any]:
            return module.loss(cfg, _with(params, leaves, only), batch, key=keys, carry=carry)

        objective = jax.checkpoint(objective, policy=REMAT) if remat else objective
        (total, aux), gradients = jax.value_and_grad(objective, has_aux=True)(free(params, only))
        return gradients, {"loss": (total, aux.count), **aux.metrics}, aux.carry

    def gradients(
        params: Params, carry: Carry, source: Any, key: Array, step: Array
    ) -> tuple[Params, Metrics, Carry]:
        batch = load(source)
        rows = batch["mask"].shape[0]
        # Keys depend on the row in the whole batch, not on the row in this device's part.
        first = jax.lax.axis_index(axis) * rows if axis else 0
        keys = example_keys(key, step, first + jnp.arange(rows))
        if accumulate == 1:
            sums, metrics, carry = part(params, carry, batch, keys)
        else:
            carries, batches, all_keys = jax.tree.map(
                lambda leaf: _split(leaf, accumulate), (carry, batch, keys)
            )

            def add(sums: Any, inputs: Any) -> tuple[Any, Carry]:
                *terms, carry = part(params, *inputs)
                return jax.tree.map(jnp.add, sums, tuple(terms)), carry

            # Summed in a scan, so that only one part's activations are alive at a time.
            *shapes, _ = jax.eval_shape(
                part, params, *jax.tree.map(lambda leaf: leaf[0], (carries, batches, all_keys))
            )
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tuple(shapes))
            (sums, metrics), carry = jax.lax.scan(add, zeros, (carries, batches, all_keys))
            carry = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry)
        if axis:
            sums, metrics = jax.lax.psum((sums, metrics), axis)
        return _with(params, sums, only, jnp.zeros_like), metrics, carry

    return gradients


def free(params: Params, only: tuple[str, ...]) -> list[Array]:
    """The trainable leaves, see ``Optimizer.only``."""
    flags = jax.tree.leaves(trained(params, only))
    return [leaf for leaf, taken in zip(jax.tree.leaves(params), flags, strict=True) if taken]


def _with(
    params: Params,
    free: list[Array],
    only: tuple[str, ...],
    rest: Callable[[Array], Array] = lambda leaf: leaf,
) -> Params:
    """``params`` with its trainable leaves replaced by ``free``; ``rest`` maps the others."""
    leaves = iter(free)
    return jax.tree.map(
        lambda leaf, free: next(leaves) if free else rest(leaf), params, trained(params, only)
    )


def _split(leaf: Array, parts: int) -> Array:
    """[rows, ...] -> [parts, rows / parts, ...]."""
    return leaf.reshape(parts, -1, *leaf.shape[1:])


def make_step(
    module: Model,
    cfg: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    augment: Augment = NO_AUGMENT,
    *,
    nonfinite: Literal["note", "freeze", "skip"] = "note",
    spread: Callable[[Callable], Callable] = lambda gradients: gradients,
    advance: Callable[..., tuple[Any, Any]] = stay,
    **how: Any,
) -> Callable[[TrainState, Any, Array], tuple[TrainState, Metrics]]:
    """``step(state, batch, key) -> (state, metrics)``: one update with the mean loss's gradient.

    key: the run's root key, the same at every step.
    metrics: sums of "loss", the model's metrics, and "nonfinite": (non-finite steps, 1).
    A batch without unmasked items has zero gradients.

    augment: deforms the inputs first.
    nonfinite: what to do if the loss or gradient is not finite.  note: record the first such step
        in ``state.nonfinite``; the parameters become useless.  freeze: record it and change nothing
        else from then on.  skip: record it and change nothing else in that step.  The last two need
        memory for one more gradient, because the whole gradient must be known to be finite before
        any parameter changes.
    how: see ``make_gradients``.
    spread: distributes that function over devices.
    advance: (experience, params, source, key, step) -> (experience, source): updates the experience
        and takes the batch from it.
    """
    gradients_of = spread(make_gradients(module, cfg, augment, **how))

    def step(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, Metrics]:
        experience_key = jax.random.fold_in(_keys(key)[3], state.step)
        experience, batch = advance(
            state.experience, state.params, batch, experience_key, state.step
        )
        sums, metrics, carry = gradients_of(state.params, state.carry, batch, key, state.step)
        # Divide only here, after summing over all parts of the batch, so that the result does not
        # depend on how the batch was divided.
        total, count = metrics["loss"]
        divisor = jnp.maximum(count, 1)
        gradients = jax.tree.map(lambda gradient: gradient / divisor.astype(gradient.dtype), sums)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, factor=state.control.factor
        )
        params: Any = optax.apply_updates(state.params, updates)
        loss, norm = total / divisor.astype(total.dtype), optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        first = state.nonfinite.count == 0
        record = NonFinite(
            state.nonfinite.count + 1,
            state.step + 1,
            loss.astype(jnp.float32),
            norm.astype(jnp.float32),
        )
        record = _choose(
            ~finite if nonfinite == "skip" else ~finite & first, record, state.nonfinite
        )
        metrics["nonfinite"] = ((~finite).astype(jnp.int32), jnp.int32(1))
        if nonfinite != "note":
            good = finite if nonfinite == "skip" else finite & first
            old = state.params, state.opt_state, state.carry
            params, opt_state, carry = _choose(good, (params, opt_state, carry), old)
            if nonfinite == "freeze":
                experience = _choose(good, experience, state.experience)
            sums = {
                name: sum_and_count
                for name, sum_and_count in metrics.items()
                if name != "nonfinite"
            }
            metrics |= _choose(good, sums, jax.tree.map(jnp.zeros_like, sums))
        after = (params, opt_state, carry, state.control, record, experience)
        return TrainState(state.step + 1, *after), metrics

    return step


def _choose(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda yes, no: jnp.where(condition, yes, no), yes, no)


def make_steps(step: Callable, many: bool) -> Callable:
    """``steps(state, metrics, arrays, plan, count, key) -> (state, metrics)`` with summed metrics.

    many: run ``count`` steps in one dispatch; otherwise one.
    plan: (entries, first): entries hold one leaf row per step, such as row indices [steps, batch];
        ``first`` is the step of the first entry.  The plan stays on the device, so most dispatches
        transfer nothing from the host.  The step's ``load`` receives (arrays, entry).

    ``count`` is traced, so the same compiled loop body runs for any number of steps, and a run that
    was interrupted within a dispatch is bitwise equal to an uninterrupted one.
    """

    def one(
        loop: tuple[TrainState, Metrics], arrays: Any, plan: tuple[Any, Array], key: Array
    ) -> tuple[TrainState, Metrics]:
        (state, metrics), (entries, first) = loop, plan
        entry = jax.tree.map(lambda leaf: leaf[state.step - first], entries)
        state, new = step(state, (arrays, entry), key)
        return state, jax.tree.map(jnp.add, metrics, new)

    def steps(
        state: TrainState,
        metrics: Metrics,
        arrays: Any,
        plan: tuple[Any, Array],
        count: Array,
        key: Array,
    ) -> tuple[TrainState, Metrics]:
        if not many:
            return one((state, metrics), arrays, plan, key)
        return jax.lax.fori_loop(
            0, count, lambda _, loop: one(loop, arrays, plan, key), (state, metrics)
        )

    return steps


def make_evaluate(
    module: Model, cfg: Any
) -> Callable[[Params, Carry, Batch], tuple[Carry, Metrics]]:
    """``evaluate(params, carry, batch) -> (carry, metrics)``: sums, without randomness."""

    def evaluate(params: Params, carry: Carry, batch: Batch) -> tuple[Carry, Metrics]:
        total, aux = module.loss(cfg, params, batch, key=None, carry=carry)
        return aux.carry, {"loss": (total, aux.count), **aux.metrics}

    return evaluate


def divide(metrics: Metrics) -> dict[str, float]:
    """{name: mean} on the host; NaN for a count of 0."""
    sums = jax.device_get(metrics)
    return {
        name: float(total) / float(count) if count else float("nan")
        for name, (total, count) in sums.items()
    }


def decide(
    control: Control,
    value: float,
    step: int,
    mode: str,
    *,
    plateau_factor: float = 1.0,
    plateau_patience: int = 1,
) -> Control:
    """The control state after an evaluation.

    A better value resets the counters; ``plateau_patience`` evaluations without one multiply the
    learning-rate factor by ``plateau_factor``.
    """
    value = float(np.float32(value))  # rounded, because control.best is a float32
    best, sign = float(control.best), 1 if mode == "max" else -1
    if not math.isnan(value) and (not int(control.best_step) or sign * value > sign * best):
        return Control(
            jnp.float32(value), jnp.int32(step), jnp.int32(0), control.factor, jnp.int32(0)
        )
    waited = int(control.waited) + 1
    factor = control.factor
    if waited >= plateau_patience:
        factor, waited = factor * jnp.float32(plateau_factor), 0
    return control._replace(
        stale=control.stale + jnp.int32(1), factor=factor, waited=jnp.int32(waited)
    )
