"""The training step: sums divided once, keys by row, many steps in one dispatch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
import zoo
from train.batches import Batches
from train.engine.step import (
    decide,
    divide,
    example_keys,
    init_control,
    init_state,
    make_evaluate,
    make_gradients,
    make_step,
    make_steps,
)
from zoo import mlp, rnn

CFG = mlp.PRESETS["tiny"]
KEY = jax.random.key(0)


def _state(optimizer, batch_size=6, cfg=CFG):
    return init_state(mlp, cfg, optimizer, KEY, batch_size)


def _assert_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def test_the_update_is_the_gradient_of_the_mean_over_unmasked_examples():
    cfg = dataclasses.replace(CFG, dropout=0.0)
    optimizer = train.Optimizer(learning_rate=1.0, momentum=0.0).build(10, 5)
    batch = mlp.example_batch(cfg, KEY, 6)
    batch["mask"] = jnp.array([True, True, False, True, False, False])
    state = _state(optimizer, cfg=cfg)
    kept = jax.tree.map(lambda leaf: leaf[jnp.array([0, 1, 3])], batch)
    gradients = jax.jit(jax.grad(lambda params: mlp.loss(cfg, params, kept)[0] / 3))(state.params)
    after, metrics = jax.jit(make_step(mlp, cfg, optimizer))(state, batch, KEY)
    _assert_close(
        after.params, jax.tree.map(jnp.subtract, state.params, gradients), rtol=1e-5, atol=1e-7
    )
    assert int(after.step) == 1
    assert float(metrics["loss"][1]) == float(metrics["accuracy"][1]) == 3
    np.testing.assert_allclose(
        divide(metrics)["loss"], mlp.loss(cfg, state.params, kept)[0] / 3, rtol=1e-6
    )


def test_gradients_of_frozen_parameters_are_not_computed():
    """Two matrix products forward, and one for the gradient of the trained kernel."""
    cfg = mlp.Config(sizes=(4, 5, 3))
    params, batch = mlp.init(cfg, KEY), mlp.example_batch(cfg, KEY, 6)
    found, products = {}, {}
    for only in ((), ("layer_1.*",)):
        function = make_gradients(mlp, cfg, only=only)
        found[only] = jax.jit(function)(params, (), batch, KEY, jnp.int32(0))[0]
        text = (
            jax.jit(function).lower(params, (), batch, KEY, jnp.int32(0)).compile().as_text() or ""
        )
        products[only] = text.count(" dot(")
    assert (products[()], products["layer_1.*",]) == (5, 3)
    _assert_close(found["layer_1.*",]["layer_1"], found[()]["layer_1"], rtol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(found["layer_1.*",]["layer_0"]))


def test_a_batch_of_padding_changes_no_parameter_and_is_never_nan():
    optimizer = train.Optimizer(momentum=0.0).build(10, 5)
    batch = {**mlp.example_batch(CFG, KEY, 6), "mask": jnp.zeros(6, bool)}
    state = _state(optimizer)
    after, metrics = jax.jit(make_step(mlp, CFG, optimizer))(state, batch, KEY)
    _assert_close(after.params, state.params, rtol=0)
    assert np.isnan(divide(metrics)["loss"])  # on the host: nothing was counted


def test_keys_depend_on_run_step_and_row_only():
    all_rows = jax.random.key_data(example_keys(KEY, jnp.int32(3), 8))
    some = jax.random.key_data(example_keys(KEY, jnp.int32(3), jnp.array([5, 2])))
    np.testing.assert_array_equal(some, all_rows[jnp.array([5, 2])])
    other_step = jax.random.key_data(example_keys(KEY, jnp.int32(4), 8))
    other_run = jax.random.key_data(example_keys(jax.random.key(1), jnp.int32(3), 8))
    drawn = np.concatenate([all_rows, other_step, other_run])
    assert len(np.unique(drawn, axis=0)) == 24


def test_scanned_steps_equal_single_steps():
    optimizer = train.Optimizer().build(100, 10)
    step = make_step(mlp, CFG, optimizer)
    rng = np.random.default_rng(0)
    table = {
        "inputs": rng.normal(size=(20, 6)).astype(np.float32),
        "targets": rng.integers(0, 3, 20),
    }
    batches = Batches(table, 6)
    shapes = jax.eval_shape(step, _state(optimizer), batches.batch(0), KEY)[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    many = jax.jit(make_steps(make_step(mlp, CFG, optimizer, load=batches.load), many=True))
    together, sums = many(
        _state(optimizer), zeros, batches.arrays(0), (batches.plan(0, 9), 0), np.int32(7), KEY
    )
    one_by_one, total = _state(optimizer), zeros
    for index in range(7):
        one_by_one, metrics = jax.jit(step)(one_by_one, batches.batch(index), KEY)
        total = jax.tree.map(jnp.add, total, metrics)
    assert int(together.step) == 7
    _assert_close(together.params, one_by_one.params, rtol=1e-5, atol=1e-6)
    _assert_close(sums, total, rtol=1e-5)
    # The same compiled body, so interruption within a dispatch does not change any bit.
    state, sums = many(
        _state(optimizer), zeros, batches.arrays(0), (batches.plan(0, 9), 0), np.int32(3), KEY
    )
    state, sums = many(state, sums, batches.arrays(0), (batches.plan(2, 9), 2), np.int32(4), KEY)
    _assert_close(state, together, rtol=0)


def test_the_step_vmaps_over_learning_rate_factors():
    optimizer = train.Optimizer(learning_rate=0.5, momentum=0.0).build(10, 5)
    batch, state = mlp.example_batch(CFG, KEY, 6), _state(optimizer)

    def run(factor):
        control = state.control._replace(factor=factor)
        return make_step(mlp, CFG, optimizer)(state._replace(control=control), batch, KEY)[0].params

    together, run = jax.jit(jax.vmap(run))(jnp.array([0.0, 1.0])), jax.jit(run)
    _assert_close(jax.tree.map(lambda leaf: leaf[0], together), state.params, rtol=0)
    _assert_close(
        jax.tree.map(lambda leaf: leaf[1], together), run(jnp.float32(1.0)), rtol=1e-5, atol=1e-7
    )


def test_evaluation_is_deterministic_and_threads_the_carry():
    cfg = rnn.PRESETS["tiny"]
    params = rnn.init(cfg, KEY)
    batch = rnn.example_batch(cfg, KEY, 4)
    carry = rnn.init_carry(cfg, params, 4, key=KEY)
    evaluate = jax.jit(make_evaluate(rnn, cfg))
    after, metrics = evaluate(params, carry, batch)
    total, aux = rnn.loss(cfg, params, batch, carry=carry)
    np.testing.assert_allclose(metrics["loss"][0], total, rtol=1e-5)
    np.testing.assert_allclose(after, aux.carry, rtol=1e-5, atol=1e-6)
    again, _ = evaluate(params, after, {**batch, "reset": jnp.zeros(4, bool)})
    assert not np.array_equal(again, after)


def _decided(values, mode="min", **settings):
    control = init_control()
    for step, value in enumerate(values, 1):
        control = decide(control, value, step, mode, **settings)
    return tuple(float(leaf) for leaf in control)


def test_control_keeps_the_first_best_and_counts_stale_evaluations():
    assert _decided([3.0, 1.0, 2.0, 1.0]) == (
        1.0,
        2,
        2,
        1,
        0,
    )  # best, best_step, stale, factor, waited
    assert _decided([0.5, 0.7, 0.7], mode="max")[:3] == (pytest.approx(0.7), 2, 1)
    assert _decided([float("nan"), 2.0, float("nan")])[:3] == (2.0, 2, 1)


def test_the_plateau_factor_shrinks_after_patience():
    control = _decided([1.0, 2.0, 2.0, 2.0, 2.0, 0.5, 2.0], plateau_factor=0.5, plateau_patience=2)
    assert control == (0.5, 6, 1, 0.25, 1)


def test_library_use_of_the_pure_step():
    module, cfg = zoo.create("mlp/tiny")
    optimizer = train.Optimizer(learning_rate=0.1).build(50, 10)
    batch, key = module.example_batch(cfg, KEY, 8), KEY
    state = train.init_state(module, cfg, optimizer, key, 8)
    step = jax.jit(train.make_step(module, cfg, optimizer))
    losses = []
    for _ in range(50):
        state, metrics = step(state, batch, key)
        losses.append(divide(metrics)["loss"])
    assert losses[-1] < 0.7 * losses[0]
