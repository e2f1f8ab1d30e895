"""One training step as a pure function of state, batch and key; everything here can be jitted, vmapped and scanned."""

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
"""The generator of a run's random numbers, whatever JAX's default is: others draw other numbers under ``vmap`` than without, so
that dropout would depend on the number of devices."""
REMAT = jax.checkpoint_policies.save_only_these_names(BLOCK)
Metrics = dict[str, tuple[Array, Array]]
"""{name: (sum, count)}: add them up over batches, then divide once."""


class Control(NamedTuple):
    """What validation decides; part of the state, so that a resumed run decides alike.

    best, best_step: best value of the selecting metric and its step; 0 and 0 before the first.  stale: evaluations since then.
    factor: on the learning rate; waited: evaluations without improvement since the factor last changed.
    """

    best: Array
    best_step: Array
    stale: Array
    factor: Array
    waited: Array


class NonFinite(NamedTuple):
    """Steps whose loss or gradient was not finite.

    count: how many.  step: of the first of them, counted from 1; of the latest, where they are skipped.  loss: its mean;
    norm: of its gradient.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    step: Array
    loss: Array
    norm: Array


class TrainState(NamedTuple):
    """Everything that a run needs to go on, and all that a checkpoint holds."""

    step: Array
    params: Params
    opt_state: Any
    carry: Carry
    control: Control
    nonfinite: NonFinite
    experience: Any = ()


def init_control() -> Control:
    """Nothing evaluated yet."""
    return Control(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.float32(1), jnp.int32(0))


def all_finite() -> NonFinite:
    """None so far."""
    return NonFinite(jnp.int32(0), jnp.int32(0), jnp.float32(0), jnp.float32(0))


def root_key(seed: int | np.integer) -> Array:
    """The key that a run's parameters, carries and steps take theirs from."""
    return jax.random.key(seed, impl=PRNG)


def _keys(key: Array) -> tuple[Array, Array, Array, Array]:
    """Keys of the parameters, the carry, the steps and the experience.

    Folded in and not split: every step is given the same root key.
    """
    parameters, carry, steps, experience = (jax.random.fold_in(key, use) for use in range(4))
    return parameters, carry, steps, experience


def no_experience(params: Params, key: Array) -> tuple[()]:
    """The experience of data that steps do not move on: none."""
    return ()


def stay(experience: Any, params: Params, source: Any, key: Array, step: Array) -> tuple[Any, Any]:
    """Leaves the experience and the source of a batch as they are."""
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

    key: the run's root key.  params: instead of fresh ones.
    experience: (params, key) -> what steps move on beside the parameters, see ``train.experience``.
    """
    params_key, carry_key, _, experience_key = _keys(key)
    params = module.init(cfg, params_key) if params is None else params
    carry = module.init_carry(cfg, params, batch_size, key=carry_key)
    moved = experience(params, experience_key)
    return TrainState(
        jnp.int32(0), params, optimizer.init(params), carry, init_control(), all_finite(), moved
    )


def example_keys(key: Array, step: Array, rows: int | Array) -> Array:
    """Keys [batch] of one step, one for each example, by its row: they depend on nothing but (run, step, row).

    So dropout does not change with padding, accumulation or the number of devices.  rows: their number, or the global rows.
    """
    rows = jnp.arange(rows) if isinstance(rows, int) else rows
    step_key = jax.random.fold_in(_keys(key)[2], step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, rows)


def whole(batch: Batch) -> Batch:
    """A batch that is one already."""
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
    """``gradients(params, carry, source, key, step) -> (gradients, metrics, carry)``, all sums over the unmasked items.

    load(source) -> batch.  accumulate: parts that the batch is worked through in, one after the other, to take less memory.
    axis: the mesh axis whose devices hold a part of the batch each, in their order; sums are then over all of them.  The function
    is to be run on each device (``jax.shard_map``, ``jax.pmap``), and each gradient is reduced once, in its parameter's type.
    remat: for the backward pass only what the model calls a block's result is kept (``zoo.base.block``), the rest computed again.
    only: see ``Optimizer``; gradients of other parameters are zero, and neither computed nor added up over devices.
    """  # fmt: skip

    def part(
        params: Params, carry: Carry, batch: Batch, keys: Array
    ) -> tuple[list[Array], Metrics, Carry]:
        """Its gradients are those of the parameters that are trained."""
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
        first = jax.lax.axis_index(axis) * rows if axis else 0
        keys = example_keys(key, step, first + jnp.arange(rows))
        if accumulate == 1:
            sums, metrics, carry = part(params, carry, batch, keys)
        else:
            carries, batches, all_keys = jax.tree.map(
                lambda leaf: _split(leaf, accumulate), (carry, batch, keys)
            )

            def add(sums: Any, each: Any) -> tuple[Any, Carry]:
                *more, carry = part(params, *each)
                return jax.tree.map(jnp.add, sums, tuple(more)), carry

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
    """The leaves that are trained, see ``Optimizer.only``."""
    flags = jax.tree.leaves(trained(params, only))
    return [leaf for leaf, taken in zip(jax.tree.leaves(params), flags, strict=True) if taken]


def _with(
    params: Params,
    free: list[Array],
    only: tuple[str, ...],
    rest: Callable[[Array], Array] = lambda leaf: leaf,
) -> Params:
    """``params`` with other leaves where they are trained, and ``rest`` of them elsewhere."""
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
    """``step(state, batch, key) -> (state, metrics)``: the gradient of the mean loss, one update, summed metrics.

    key: the run's root key, the same at every step.  metrics holds "loss", the model's own, and "nonfinite": (steps, 1).
    augment: deforms the inputs first.
    A batch without any unmasked item has zero gradients.
    nonfinite: what happens where the loss or gradient is not finite.  note: ``state.nonfinite`` says which step was the first, and
    the state is lost.  freeze: from there on nothing changes but that.  skip: such a step changes nothing but that.  The last two
    need memory for another gradient, as no parameter may change before all of it is known.
    how: see ``make_gradients``.  spread: puts that function onto several devices.
    advance: (experience, params, source, key, step) -> (experience, source): moves the experience on,
        and takes the batch from it.
    """
    gradients_of = spread(make_gradients(module, cfg, augment, **how))

    def step(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, Metrics]:
        experience_key = jax.random.fold_in(_keys(key)[3], state.step)
        experience, batch = advance(
            state.experience, state.params, batch, experience_key, state.step
        )
        sums, metrics, carry = gradients_of(state.params, state.carry, batch, key, state.step)
        # The only place that divides: sums over all parts of the batch first, then one division.
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
        found = NonFinite(
            state.nonfinite.count + 1,
            state.step + 1,
            loss.astype(jnp.float32),
            norm.astype(jnp.float32),
        )
        trouble = _choose(
            ~finite if nonfinite == "skip" else ~finite & first, found, state.nonfinite
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
        after = (params, opt_state, carry, state.control, trouble, experience)
        return TrainState(state.step + 1, *after), metrics

    return step


def _choose(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda yes, no: jnp.where(condition, yes, no), yes, no)


def make_steps(step: Callable, many: bool) -> Callable:
    """``steps(state, metrics, arrays, plan, count, key)``: ``count`` steps in one dispatch (else one), metrics added up.

    The batch of a step is (arrays, its part of the plan), for the step's ``load``.  plan: (what tells its steps apart, such as
    rows [steps, batch]; the step that its first entry belongs to), so that steady dispatches bring nothing from the host.  The
    number of steps is a traced value, so the same compiled loop body runs whatever it is, and a run that was interrupted in
    the middle of a dispatch gives the same bits as one that was not.
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
    """``evaluate(params, carry, batch) -> (carry, metrics)``: the deterministic loss and metrics, as sums."""

    def evaluate(params: Params, carry: Carry, batch: Batch) -> tuple[Carry, Metrics]:
        total, aux = module.loss(cfg, params, batch, key=None, carry=carry)
        return aux.carry, {"loss": (total, aux.count), **aux.metrics}

    return evaluate


def divide(metrics: Metrics) -> dict[str, float]:
    """{name: mean} on the host; NaN where nothing was counted."""
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
    """The control state after an evaluation: a better value resets the counts, a stall shrinks the learning-rate factor."""
    value = float(np.float32(value))  # as precise as what it is compared with
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
