"""Deep belief nets: greedy stages, the up-pass as a multilayer perceptron, the top chain."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from tests.test_rbm import assert_trees, batch_of, fold, row_keys, sigmoid
from zoo import dbn, mlp, rbm
from zoo.parts.parameters import restore_matching

KEY = jax.random.key(0)
CFG = dbn.Config(sizes=(6, 5, 4), initializer_deviation=0.8)
GRADIENT = jax.jit(jax.value_and_grad(dbn.loss, argnums=1, has_aux=True))
MACHINE_GRADIENT = jax.jit(jax.value_and_grad(rbm.loss, argnums=1, has_aux=True))


def _setup(cfg, rows=7):
    """Parameters whose biases are not zero, and inputs."""
    drawn = dbn.init(cfg, KEY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), drawn
    )
    inputs = (
        rng.normal(size=(rows, cfg.sizes[0]))
        if cfg.visible_units == "gaussian"
        else rng.random((rows, cfg.sizes[0]))
    )
    return params, inputs.astype(np.float32)


def _means(params, inputs, layers):
    """In numpy: the inputs and the hidden means of the first ``layers`` RBMs."""
    seen = [np.asarray(inputs, float)]
    for index in range(layers):
        layer = params[f"layer_{index}"]
        seen.append(
            sigmoid(seen[-1] @ np.asarray(layer["kernel"], float) + np.asarray(layer["bias"]))
        )
    return seen


def _part(cfg, index, params, seen, keys, carry=()):
    return MACHINE_GRADIENT(
        cfg.machines[index],
        params[f"layer_{index}"],
        batch_of(np.float32(seen)),
        key=fold(keys, index),
        carry=carry,
    )


# ---------------------------------------------------------------- learning


def test_greedy_stage_equals_an_rbm_on_the_means_below():
    params, inputs = _setup(CFG)
    keys, seen = row_keys(7), _means(params, inputs, 1)
    (total, aux), gradients = GRADIENT(CFG, params, batch_of(inputs), key=keys, carry=())
    (expected, expected_aux), gradient = _part(CFG, 1, params, seen[1], keys)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert_trees(aux, expected_aux, rtol=1e-5)
    assert_trees(gradients["layer_1"], gradient, rtol=1e-4, atol=1e-5)
    assert all(not np.any(leaf) for leaf in gradients["layer_0"].values())
    assert all(np.any(leaf) for leaf in gradients["layer_1"].values())


def test_jointly_trained_rbms_have_independent_losses():
    cfg = dbn.Config(sizes=CFG.sizes, trains="all")
    params, inputs = _setup(cfg)
    keys, seen = row_keys(7), _means(params, inputs, 1)
    (total, aux), gradients = GRADIENT(cfg, params, batch_of(inputs), key=keys, carry=())
    parts = [_part(cfg, index, params, seen[index], keys) for index in range(2)]
    np.testing.assert_allclose(total, sum(float(value) for (value, _), _ in parts), rtol=1e-5)
    assert_trees(aux.metrics, parts[-1][0][1].metrics, rtol=1e-5)
    for index, (_, gradient) in enumerate(
        parts
    ):  # the contrastive divergence of an RBM has no gradient for the one below
        assert_trees(gradients[f"layer_{index}"], gradient, rtol=1e-4, atol=1e-5)


def test_lower_layers_are_frozen_in_greedy_training():
    """Even with a penalty, which has a gradient for every kernel, only ``only`` is trained."""
    cfg = CFG
    params, inputs = _setup(cfg, 40)
    optimizer = train.Optimizer(learning_rate=0.1, l2=0.01, only=("layer_1.*",))
    result = train.fit(
        dbn, cfg, {"inputs": inputs}, params=params, optimizer=optimizer, batch_size=10, steps=8
    )
    for name, leaf in params["layer_0"].items():
        np.testing.assert_array_equal(result.params["layer_0"][name], leaf)
    for name, leaf in params["layer_1"].items():
        assert not np.array_equal(result.params["layer_1"][name], leaf)
    # Without it they would change.
    penalty = train.Optimizer(learning_rate=0.1, l2=0.01).build(8, 4)
    updates: Any = penalty.update(
        jax.tree.map(jnp.zeros_like, params), penalty.init(params), params, factor=1.0
    )[0]
    assert np.all(updates["layer_0"]["kernel"])


@pytest.mark.parametrize("trains", ["top", "all"])
def test_each_rbm_has_its_own_persistent_chains(trains):
    cfg = dbn.Config(sizes=CFG.sizes, trains=trains, persistent=True, steps=2)
    params, inputs = _setup(cfg)
    keys, seen = row_keys(7), _means(params, inputs, 1)
    carry = dbn.init_carry(cfg, params, 7, key=KEY)
    assert [part.shape for part in carry] == [(7, 6), (7, 5)]
    (_, aux), gradients = GRADIENT(cfg, params, batch_of(inputs), key=keys, carry=carry)
    for index in range(2):
        if trains == "all" or index == 1:
            (_, alone), gradient = _part(cfg, index, params, seen[index], keys, carry[index])
            np.testing.assert_array_equal(aux.carry[index], alone.carry)
            assert_trees(gradients[f"layer_{index}"], gradient, rtol=1e-4, atol=1e-5)
            assert not np.array_equal(aux.carry[index], carry[index])
        else:  # lower layers are not trained, so their chains stay
            np.testing.assert_array_equal(aux.carry[index], carry[index])
    evaluated = dbn.loss(cfg, params, batch_of(inputs), carry=carry)[1].carry
    jax.tree.map(np.testing.assert_array_equal, evaluated, carry)
    assert dbn.init_carry(CFG, params, 7, key=KEY) == ()


# ---------------------------------------------------------------- the up-pass


def test_up_pass_equals_the_mlp_initialised_from_it():
    params, inputs = _setup(CFG)
    perceptron = mlp.Config(sizes=(*CFG.sizes, 10), activation="logistic")
    fresh = mlp.init(perceptron, jax.random.key(5))
    started = restore_matching(params, fresh)
    assert set(started) == {"layer_0", "layer_1", "layer_2"}
    assert all(set(layer) == {"kernel", "bias"} for layer in started.values()), (
        "visible biases are of no use to it"
    )
    top, hidden = dbn.trace(CFG, params, jnp.asarray(inputs))
    _, units = mlp.trace(perceptron, started, jnp.asarray(inputs))
    expected = _means(params, inputs, 2)
    for index in range(2):
        np.testing.assert_array_equal(hidden[f"hidden_{index}"], units[f"hidden_{index}"])
        np.testing.assert_allclose(hidden[f"hidden_{index}"], expected[index + 1], rtol=1e-5)
    np.testing.assert_array_equal(top, hidden["hidden_1"])
    np.testing.assert_array_equal(dbn.apply(CFG, params, jnp.asarray(inputs)), top)
    for name, leaf in fresh["layer_2"].items():
        np.testing.assert_array_equal(started["layer_2"][name], leaf)


def test_transfer_without_matching_parameters_is_refused():
    fresh = mlp.init(mlp.Config(sizes=(7, 2, 10)), KEY)
    with pytest.raises(
        ValueError, match=r"no earlier parameter has the path and shape.*layer_0.kernel \[6, 5\]"
    ):
        restore_matching(dbn.init(CFG, KEY), fresh)


# ---------------------------------------------------------------- downwards


@pytest.mark.parametrize("binarize", ["none", "threshold"])
def test_samples_are_a_top_rbm_chain_and_means_downwards(binarize):
    cfg = dbn.Config(sizes=CFG.sizes, binarize=binarize)
    params, inputs = _setup(cfg)
    keys = row_keys(7)
    start = inputs > 0.5 if binarize == "threshold" else inputs
    below = np.float32(_means(params, start, 1)[-1])
    chain = jax.jit(rbm.sample)(cfg.machines[1], params["layer_1"], jnp.asarray(below), keys, 3)
    assert set(np.unique(chain)) <= {0, 1}
    layer = params["layer_0"]
    down = sigmoid(
        np.asarray(chain, float) @ np.asarray(layer["kernel"], float).T
        + np.asarray(layer["visible_bias"])
    )
    dream = jax.jit(dbn.fantasies)(cfg, params, jnp.asarray(inputs), keys, 3)
    np.testing.assert_allclose(dream, down, rtol=1e-5)
    np.testing.assert_allclose(dbn.down(cfg, params, chain, 1), down, rtol=1e-5)


def test_single_rbm_is_a_valid_dbn():
    cfg = dbn.Config(sizes=(6, 5), initializer_deviation=0.8)
    params, inputs = _setup(cfg)
    keys = row_keys(7)
    (total, _), gradients = GRADIENT(cfg, params, batch_of(inputs), key=keys, carry=())
    (expected, _), gradient = _part(cfg, 0, params, inputs, keys)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert_trees(gradients["layer_0"], gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        dbn.fantasies(cfg, params, jnp.asarray(inputs), keys, 2),
        rbm.fantasies(cfg.machines[0], params["layer_0"], jnp.asarray(inputs), keys, 2),
    )


@pytest.mark.parametrize("gaussian", ["visible_units", "top_units"])
def test_gaussian_inputs_or_a_gaussian_top(gaussian):
    units: Any = {gaussian: "gaussian"}
    cfg = dbn.Config(sizes=CFG.sizes, trains="all", initializer_deviation=0.3, **units)
    visible, top = gaussian == "visible_units", gaussian == "top_units"
    kinds = [(machine.visible_units, machine.hidden_units) for machine in cfg.machines]
    assert kinds == [
        ("gaussian" if visible else "bernoulli", "bernoulli"),
        ("bernoulli", "gaussian" if top else "bernoulli"),
    ]
    assert cfg.input_range == (None if visible else (0.0, 1.0))
    params, inputs = _setup(cfg)
    below, above = (
        jax.tree.map(lambda leaf: np.asarray(leaf, float), params[name])
        for name in ("layer_0", "layer_1")
    )
    hidden = sigmoid(inputs @ below["kernel"] + below["bias"])
    codes = hidden @ above["kernel"] + above["bias"]
    codes = codes if top else sigmoid(codes)
    down = (
        sigmoid(codes @ above["kernel"].T + above["visible_bias"]) @ below["kernel"].T
        + below["visible_bias"]
    )
    found, seen = dbn.trace(cfg, params, jnp.asarray(inputs))
    np.testing.assert_allclose(found, codes, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        seen["reconstruction"], down if visible else sigmoid(down), rtol=1e-4, atol=1e-5
    )


def test_losses_of_all_machines_add_up_with_gaussian_inputs():
    cfg = dbn.Config(
        sizes=CFG.sizes, trains="all", initializer_deviation=0.3, visible_units="gaussian"
    )
    params, inputs = _setup(cfg)
    below = jax.tree.map(lambda leaf: np.asarray(leaf, float), params["layer_0"])
    hidden = sigmoid(inputs @ below["kernel"] + below["bias"])
    keys = row_keys(7)
    (total, _), gradients = GRADIENT(cfg, params, batch_of(inputs), key=keys, carry=())
    parts = [_part(cfg, index, params, seen, keys) for index, seen in enumerate((inputs, hidden))]
    np.testing.assert_allclose(total, sum(float(value) for (value, _), _ in parts), rtol=1e-5)
    for index, (_, gradient) in enumerate(parts):
        assert_trees(gradients[f"layer_{index}"], gradient, rtol=1e-4, atol=1e-5)


def test_units_between_let_inputs_and_top_be_gaussian():
    cfg = dbn.Config(sizes=CFG.sizes, visible_units="gaussian", top_units="gaussian")
    kinds = [(machine.visible_units, machine.hidden_units) for machine in cfg.machines]
    assert kinds == [("gaussian", "bernoulli"), ("bernoulli", "gaussian")]


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match=r"sizes=\(6,\), allowed: 2 or more positive integers"):
        dbn.Config(sizes=(6,))
    with pytest.raises(ValueError, match="top_units='gaussian', allowed: 'bernoulli' beside"):
        dbn.Config(sizes=(6, 5), visible_units="gaussian", top_units="gaussian")
