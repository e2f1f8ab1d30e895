"""RBMs against enumeration of states, numerical integration and the toolbox's rbmtrain.m."""

import dataclasses
import functools
import itertools
import math
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from train.engine.member import Member
from train.engine.step import example_keys, init_state, make_step
from zoo import rbm
from zoo.parts import layers, likelihood

KEY = jax.random.key(0)
CFG = rbm.Config(visible=4, hidden=3)
jitted = functools.cache(jax.jit)
"""One compiled function for all tests, which compiles faster than its operations one by one."""
SAMPLE = jax.jit(rbm.sample)
GRADIENT = jax.jit(jax.value_and_grad(rbm.loss, argnums=1, has_aux=True))


def binary(units):
    """All states [2^units, units]."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=units)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def random_params(cfg, seed=0, scale=1.0):
    """All leaves normal, in numpy and in double precision."""
    rng = np.random.default_rng(seed)
    shapes = {
        "kernel": (cfg.visible, cfg.hidden),
        "bias": (cfg.hidden,),
        "visible_bias": (cfg.visible,),
    }
    return {name: scale * rng.normal(size=shape) for name, shape in shapes.items()}


def on_device(params):
    return jax.tree.map(jnp.asarray, params)


def numpy_energy(cfg, params, v, h):
    """Of every pair of a row of v and a row of h."""
    energy = (
        -(v @ params["visible_bias"])[:, None]
        - (h @ params["bias"])[None]
        - v @ params["kernel"] @ h.T
    )
    energy = energy + (
        0.5 * np.sum(v**2, axis=1)[:, None] if cfg.visible_units == "gaussian" else 0
    )
    return energy + (0.5 * np.sum(h**2, axis=1)[None] if cfg.hidden_units == "gaussian" else 0)


def joint(params, cfg=CFG):
    """p(v, h) [visible states, hidden states] of Bernoulli units."""
    weights = np.exp(-numpy_energy(cfg, params, binary(cfg.visible), binary(cfg.hidden)))
    return weights / weights.sum()


def chances(probability, states):
    """Probability [rows, states] of ``states`` [states, units] for independent units."""
    each = np.where(states[None] == 1, probability[:, None], 1 - probability[:, None])
    return np.prod(each, axis=-1)


def to_visible_states(params, v, cfg=CFG):
    """Transition probabilities of a Gibbs step from each row of v: [rows, visible states]."""
    hidden = chances(sigmoid(v @ params["kernel"] + params["bias"]), binary(cfg.hidden))
    return hidden @ chances(
        sigmoid(binary(cfg.hidden) @ params["kernel"].T + params["visible_bias"]),
        binary(cfg.visible),
    )


@functools.partial(jax.jit, static_argnums=0)
def row_keys(rows, step=0):
    """As the trainer makes them of KEY."""
    return example_keys(KEY, jnp.asarray(step), rows)


@jax.jit
def fold(keys, use):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, use)


def batch_of(inputs, mask=None):
    return {
        "inputs": jnp.asarray(inputs),
        "mask": jnp.ones(len(inputs), bool) if mask is None else jnp.asarray(mask),
    }


def assert_trees(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


# ---------------------------------------------------------------- the model


@pytest.mark.usefixtures("x64")
def test_energies_and_conditionals_are_those_of_the_joint_distribution():
    params, v, h = random_params(CFG), binary(4), binary(3)
    energy, p = numpy_energy(CFG, params, v, h), joint(params)
    own = on_device(params)
    pairs = np.repeat(v, len(h), axis=0), np.tile(h, (len(v), 1))
    found = jitted(rbm.energy)(CFG, own, *map(jnp.asarray, pairs))
    np.testing.assert_allclose(found, energy.ravel(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        jitted(rbm.free_energy)(CFG, own, jnp.asarray(v)),
        -np.log(np.exp(-energy).sum(axis=1)),
        rtol=1e-12,
        atol=1e-12,
    )
    hidden = rbm.mean("bernoulli", rbm.hidden_field(CFG, own, jnp.asarray(v)))
    np.testing.assert_allclose(hidden, p @ h / p.sum(axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(rbm.apply(CFG, own, jnp.asarray(v)), hidden, rtol=1e-12)
    visible = rbm.mean("bernoulli", rbm.visible_field(CFG, own, jnp.asarray(h)))
    np.testing.assert_allclose(visible, p.T @ v / p.sum(axis=0)[:, None], rtol=1e-12)
    # Units of a layer are conditionally independent: checks whole distributions, not only means.
    np.testing.assert_allclose(
        chances(np.asarray(hidden), h), p / p.sum(axis=1, keepdims=True), rtol=1e-11
    )
    np.testing.assert_allclose(
        chances(np.asarray(visible), v), p.T / p.sum(axis=0)[:, None], rtol=1e-11
    )


def plane(step=0.05, limit=9.0):
    """Grid points [points, 2] and the area of each, to integrate what vanishes at the border."""
    line = np.arange(-limit, limit + step, step)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2), step**2


@pytest.mark.usefixtures("x64")
def test_gaussian_visible_units_against_numerical_integration():
    cfg = rbm.Config(visible=2, hidden=3, visible_units="gaussian")
    params, h, (v, area) = random_params(cfg), binary(3), plane()
    own = on_device(params)
    weights = np.exp(-numpy_energy(cfg, params, v, h))
    few = slice(None, None, 997)
    np.testing.assert_allclose(
        rbm.free_energy(cfg, own, jnp.asarray(v[few])),
        -np.log(weights[few].sum(axis=1)),
        rtol=1e-10,
    )
    given = weights / (weights.sum(axis=0) * area)
    means = given.T @ v * area
    np.testing.assert_allclose(
        rbm.mean("gaussian", rbm.visible_field(cfg, own, jnp.asarray(h))), means, rtol=1e-9
    )
    np.testing.assert_allclose(given.T @ v**2 * area - means**2, 1, rtol=1e-9)
    pairs = np.repeat(v[:5], 8, axis=0), np.tile(h, (5, 1))
    np.testing.assert_allclose(
        rbm.energy(cfg, own, *map(jnp.asarray, pairs)), -np.log(weights[:5]).ravel(), rtol=1e-10
    )


@pytest.mark.usefixtures("x64")
def test_gaussian_hidden_units_against_numerical_integration():
    cfg = rbm.Config(visible=3, hidden=2, hidden_units="gaussian")
    params, v, (h, area) = random_params(cfg), binary(3), plane()
    own = on_device(params)
    weights = np.exp(-numpy_energy(cfg, params, v, h))
    np.testing.assert_allclose(
        rbm.free_energy(cfg, own, jnp.asarray(v)), -np.log(weights.sum(axis=1) * area), rtol=1e-10
    )
    means = weights @ h / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(rbm.apply(cfg, own, jnp.asarray(v)), means, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("units", rbm.UNITS)
def test_means_are_the_derivative_of_the_log_normalizer_and_states_have_them(units):
    field = np.linspace(-3, 3, 7)
    upper, lower = (
        rbm.log_normalizer(units, jnp.asarray(field + change)) for change in (1e-5, -1e-5)
    )
    np.testing.assert_allclose(
        (upper - lower) / 2e-5, rbm.mean(units, jnp.asarray(field)), rtol=1e-7, atol=1e-9
    )
    draws = 20_000
    states = np.asarray(
        rbm.draw(
            units, jnp.broadcast_to(jnp.asarray(field), (draws, 7)), jax.random.split(KEY, draws)
        )
    )
    means = np.asarray(rbm.mean(units, jnp.asarray(field)))
    variance = means * (1 - means) if units == "bernoulli" else np.ones(7)
    np.testing.assert_array_less(np.abs(states.mean(axis=0) - means), 5 * np.sqrt(variance / draws))
    np.testing.assert_allclose(states.var(axis=0), variance, rtol=0.08)
    np.testing.assert_array_less(
        np.abs(np.corrcoef(states.T) - np.eye(7)), 5 / math.sqrt(draws) + 1e-9
    )


# ---------------------------------------------------------------- the Gibbs chain


@pytest.mark.usefixtures("x64")
def test_a_gibbs_step_leaves_the_distribution_as_it_is():
    params, v, h = random_params(CFG, 1), binary(4), binary(3)
    own = on_device(params)
    up = chances(np.asarray(rbm.mean("bernoulli", rbm.hidden_field(CFG, own, jnp.asarray(v)))), h)
    down = chances(
        np.asarray(rbm.mean("bernoulli", rbm.visible_field(CFG, own, jnp.asarray(h)))), v
    )
    transition, p = up @ down, joint(params).sum(axis=1)
    np.testing.assert_allclose(transition, to_visible_states(params, v), rtol=1e-12)
    np.testing.assert_allclose(p @ transition, p, rtol=1e-12)
    flow = p[:, None] * transition
    np.testing.assert_allclose(flow, flow.T, rtol=1e-11)  # and it is reversible


def test_chain_frequencies_match_the_transition_matrix():
    params, chains = random_params(CFG, 1), 20_000
    own, transition = on_device(params), to_visible_states(params, binary(4))
    places = 2 ** np.arange(4)[::-1]

    def frequencies(visible):
        return np.bincount((np.asarray(visible) @ places).astype(int), minlength=16) / chains

    def assert_follows(visible, expected):
        error = np.sqrt(expected * (1 - expected) / chains)
        np.testing.assert_array_less(np.abs(frequencies(visible) - expected), 5 * error)

    start = jnp.broadcast_to(jnp.asarray([1.0, 0.0, 0.0, 1.0]), (chains, 4))
    keys, others = jax.random.split(KEY, chains), jax.random.split(jax.random.key(1), chains)
    one, two = (SAMPLE(CFG, own, start, keys, steps) for steps in (1, 2))
    assert_follows(one, transition[9])
    assert_follows(two, (transition @ transition)[9])
    # Continued with other keys, they form one chain of all these steps.
    assert_follows(SAMPLE(CFG, own, two, others, 3), np.linalg.matrix_power(transition, 5)[9])
    hidden = jitted(rbm.gibbs_step)(CFG, own, start, keys)[1]
    np.testing.assert_allclose(
        hidden.mean(axis=0),
        sigmoid(start[0] @ params["kernel"] + params["bias"]),
        atol=5 * 0.5 / 141,
    )


@pytest.mark.parametrize("units", [("bernoulli", "bernoulli"), ("gaussian", "bernoulli")])
def test_sample_runs_n_gibbs_steps_of_independent_chains(units):
    cfg = rbm.Config(visible=16, hidden=4, visible_units=units[0], hidden_units=units[1])
    params, keys = on_device(random_params(cfg, scale=0.3)), row_keys(6)
    start = rbm.example_batch(cfg, KEY, 6)["inputs"]
    step, visible = jitted(rbm.gibbs_step), start
    for index in range(4):
        visible = step(cfg, params, visible, fold(keys, index))[0]
    found = SAMPLE(cfg, params, start, keys, 4)
    np.testing.assert_allclose(found, visible, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(SAMPLE(cfg, params, start, keys, 0), start)
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(
        SAMPLE(cfg, params, start[order], keys[order], 4), found[order], rtol=1e-5, atol=1e-6
    )
    moved = SAMPLE(
        cfg,
        params,
        start.at[0].set(0.25),
        jax.random.split(jax.random.key(9), 6).at[1:].set(keys[1:]),
        4,
    )
    np.testing.assert_allclose(moved[1:], found[1:], rtol=1e-5, atol=1e-6)
    assert not np.allclose(moved[0], found[0])


@pytest.mark.parametrize("binarize", ["none", "threshold"])
@pytest.mark.parametrize("steps", [1, 3])
def test_fantasies_are_the_means_that_the_last_step_draws_from(steps, binarize):
    cfg = dataclasses.replace(CFG, binarize=binarize)
    params, keys = on_device(random_params(cfg)), row_keys(6)
    inputs = jnp.asarray(np.random.default_rng(0).random((6, 2, cfg.visible // 2)), jnp.float32)
    start = inputs.reshape(6, -1)
    start = (start > 0.5).astype(start.dtype) if binarize == "threshold" else start
    before = rbm.sample(cfg, params, start, keys, steps - 1)
    after, hidden = rbm.gibbs_step(cfg, params, before, fold(keys, steps - 1))
    np.testing.assert_array_equal(after, rbm.sample(cfg, params, start, keys, steps))
    expected = sigmoid(np.asarray(hidden @ params["kernel"].T + params["visible_bias"][None]))
    means = jax.jit(rbm.fantasies)(cfg, params, inputs, keys, steps)
    np.testing.assert_allclose(means, expected, rtol=1e-5)


def test_number_of_gibbs_steps_does_not_recompile():
    traces = []

    @jax.jit
    def sample(params, visible, key, steps):
        traces.append(steps)
        return rbm.sample(CFG, params, visible, key, steps)

    params, start = on_device(random_params(CFG)), jnp.zeros((2, 4))
    for steps in (1, 5, 100):
        sample(params, start, row_keys(2), steps)
    assert len(traces) == 1


# ---------------------------------------------------------------- what is learned, and how


def toolbox_rbmtrain(params, batches, numbers, *, alpha, momentum, l2=0.0):
    """rbmtrain.m in numpy with given uniform numbers: parameters and error per minibatch.

    The toolbox stores W [hidden, visible] and biases as columns; momentum(step) and l2 are ours.
    """
    w, b, c = (
        params["kernel"].T.copy(),
        params["visible_bias"][:, None].copy(),
        params["bias"][:, None].copy(),
    )
    v_w, v_b, v_c = np.zeros_like(w), np.zeros_like(b), np.zeros_like(c)
    history, errors = [], []

    def sigmrnd(x, uniform):
        return (sigmoid(x) > uniform).astype(float)

    for step, (v1, (up, down)) in enumerate(zip(batches, numbers, strict=True)):
        size = len(v1)
        h1 = sigmrnd(np.tile(c.T, (size, 1)) + v1 @ w.T, up)
        v2 = sigmrnd(np.tile(b.T, (size, 1)) + h1 @ w, down)
        h2 = sigmoid(np.tile(c.T, (size, 1)) + v2 @ w.T)
        c1, c2 = h1.T @ v1, h2.T @ v2
        v_w = momentum(step) * v_w + alpha * ((c1 - c2) / size - l2 * w)
        v_b = momentum(step) * v_b + alpha * (v1 - v2).sum(axis=0)[:, None] / size
        v_c = momentum(step) * v_c + alpha * (h1 - h2).sum(axis=0)[:, None] / size
        w, b, c = w + v_w, b + v_b, c + v_c
        history.append({"kernel": w.T, "visible_bias": b[:, 0], "bias": c[:, 0]})
        errors.append(np.sum((v1 - v2) ** 2) / size)
    return history, errors


SCHEDULES = {
    "constant": (train.Optimizer(learning_rate=0.7, momentum=0.5), lambda step: 0.5),
    "rising": (
        train.Optimizer(
            learning_rate=0.7, momentum=0.9, momentum_start=0.5, momentum_epochs=2, l2=0.05
        ),
        lambda step: min(0.5 + 0.4 * step / 6, 0.9),
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_equals_the_matlab_code(schedule):
    """Ten minibatches through the trainer's step, also with Hinton's momentum and kernel decay."""
    cfg, size = rbm.Config(visible=7, hidden=5, positive_phase="sampled"), 6
    settings, momentum = SCHEDULES[schedule]
    optimizer = settings.build(total_steps=10, steps_per_epoch=3)
    state = jax.jit(lambda key: init_state(rbm, cfg, optimizer, key, size))(KEY)
    start = jax.tree.map(np.asarray, state.params)
    # Half of them grey: the toolbox uses inputs between 0 and 1 directly.
    batches = np.random.default_rng(0).random((10, size, 7))
    batches[::2] = batches[::2] > 0.5

    def numbers(step):
        keys = row_keys(size, step)
        return tuple(
            np.asarray(layers.uniforms(fold(keys, use), units))
            for use, units in ((rbm.HIDDEN, 5), (rbm.VISIBLE, 7))
        )

    history, errors = toolbox_rbmtrain(
        start,
        batches,
        [numbers(step) for step in range(10)],
        alpha=0.7,
        momentum=momentum,
        l2=settings.l2,
    )
    step = jax.jit(make_step(rbm, cfg, optimizer))
    for inputs, expected, error in zip(batches, history, errors, strict=True):
        state, metrics = step(state, batch_of(inputs), KEY)
        # Schedules are computed in single precision.
        assert_trees(
            state.params, expected, rtol=1e-9, atol=1e-6 if schedule == "rising" else 1e-12
        )
        for name in ("loss", "reconstruction_error"):
            total, count = metrics[name]
            np.testing.assert_allclose(total / count, error, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_equal_the_matlab_code_given_its_random_numbers(steps):
    """Replaces keys by the toolbox's rand; more steps against the chain written out."""
    cfg, size, rng = (
        rbm.Config(visible=7, hidden=5, steps=steps, positive_phase="sampled"),
        6,
        np.random.default_rng(5),
    )
    params, batches = random_params(cfg, scale=0.5), rng.random((8, size, 7))
    numbers = [(rng.random((size, steps, 5)), rng.random((size, steps, 7))) for _ in batches]
    if steps == 1:
        plain = [(up[:, 0], down[:, 0]) for up, down in numbers]
        history, errors = toolbox_rbmtrain(
            params, batches, plain, alpha=0.7, momentum=lambda step: 0.0
        )
    else:
        history, errors = _chains_by_hand(params, batches, numbers, alpha=0.7)
    own = on_device(params)
    for inputs, each, expected, error in zip(batches, numbers, history, errors, strict=True):
        (total, _), gradient = GRADIENT(
            cfg, own, batch_of(inputs), key=rbm.Numbers(*map(jnp.asarray, each)), carry=()
        )
        own = jax.tree.map(lambda leaf, change: leaf - 0.7 * change / size, own, gradient)
        assert_trees(own, expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(total / size, error, rtol=1e-12)


def _chains_by_hand(params, batches, numbers, *, alpha):
    """As ``toolbox_rbmtrain``, whose chain has one step."""
    params, history, errors = dict(params), [], []
    for v1, (up, down) in zip(batches, numbers, strict=True):
        v, shown = v1, []
        for step in range(up.shape[1]):
            h = (up[:, step] < sigmoid(v @ params["kernel"] + params["bias"])).astype(float)
            v = (down[:, step] < sigmoid(h @ params["kernel"].T + params["visible_bias"])).astype(
                float
            )
            shown.append((h, v))
        (h1, first), h2 = shown[0], sigmoid(v @ params["kernel"] + params["bias"])
        change = {
            "kernel": v1.T @ h1 - v.T @ h2,
            "bias": (h1 - h2).sum(axis=0),
            "visible_bias": (v1 - v).sum(axis=0),
        }
        params = {name: leaf + alpha * change[name] / len(v1) for name, leaf in params.items()}
        history.append(params)
        errors.append(np.sum((v1 - first) ** 2) / len(v1))
    return history, errors


def test_given_random_numbers_replace_keys():
    """Given numbers equal to the keys' draws give the same steps, chains and persistent chains."""
    params, data, carry = _persistent_setup(6)
    own, keys = on_device(params), row_keys(6)

    def of_step(key):
        return rbm.Numbers(
            *(
                layers.uniforms(fold(key, use), units)
                for use, units in ((rbm.HIDDEN, 3), (rbm.VISIBLE, 4))
            )
        )

    def of_chain(key, steps):
        return rbm.Numbers(
            *(
                jnp.stack(each, axis=1)
                for each in zip(*(of_step(fold(key, step)) for step in range(steps)), strict=True)
            )
        )

    data, carry = jnp.asarray(data), jnp.asarray(carry)
    assert_trees(*(rbm.gibbs_step(CFG, own, data, each) for each in (of_step(keys), keys)), rtol=0)
    np.testing.assert_array_equal(
        SAMPLE(CFG, own, data, of_chain(keys, 4), 3), SAMPLE(CFG, own, data, keys, 3)
    )
    first, then = of_step(keys), of_chain(fold(keys, rbm.CHAIN), 2)
    numbers = rbm.Numbers(
        *(
            jnp.concatenate([one[:, None], more], axis=1)
            for one, more in zip(first, then, strict=True)
        )
    )
    expected, found = (
        GRADIENT(PERSISTENT, own, batch_of(data), key=key, carry=carry) for key in (keys, numbers)
    )
    assert_trees(found, expected, rtol=1e-6)
    field = jnp.asarray([[0.5, -1.0]])
    np.testing.assert_array_equal(
        rbm.draw("gaussian", field, jnp.asarray([[0.25, 2.0]])), [[0.75, 1.0]]
    )


def test_random_numbers_of_wrong_shape_are_refused():
    params, data = on_device(random_params(CFG)), jnp.zeros((2, 4))

    def numbers(hidden, visible):
        return rbm.Numbers(jnp.zeros(hidden), jnp.zeros(visible))

    def loss(numbers, **fields):
        return rbm.loss(
            rbm.Config(visible=4, hidden=3, **fields), params, batch_of(data), key=numbers
        )

    for call, message in (
        (
            lambda: loss(numbers((2, 1, 3), (2, 1, 4)), steps=2),
            r"numbers.hidden: shape \(2, 1, 3\), expected \[2, 2, 3\]",
        ),
        (
            lambda: loss(numbers((2, 1, 3), (2, 1, 5))),
            r"numbers.visible: shape \(2, 1, 5\), expected \[2, 1, 4\]",
        ),
        (
            lambda: loss(numbers((2, 1, 3), (2, 1, 4)), binarize="sample"),
            "binarize='sample', allowed with Numbers",
        ),
        (
            lambda: loss(numbers((2, 2, 3), (2, 2, 4)), persistent=True),
            r"carry=\(\), allowed with Numbers",
        ),
        (
            lambda: rbm.sample(CFG, params, data, numbers((2, 2, 3), (2, 2, 4)), 3),
            "steps=3, allowed: an integer, 0 to 2",
        ),
        (
            lambda: rbm.gibbs_step(CFG, params, data, numbers((2, 4), (2, 4))),
            r"numbers: shape \(2, 4\), expected \[2, 3\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def free_energy_gradient(params, v, weights):
    """Sum over rows of weight * dF(v) for Bernoulli units: -v p(h|v), -v, -p(h|v)."""
    hidden = sigmoid(v @ params["kernel"] + params["bias"])
    return {
        "kernel": -(v * weights[:, None]).T @ hidden,
        "bias": -weights @ hidden,
        "visible_bias": -weights @ v,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 3},
        {"steps": 3, "positive_phase": "sampled"},
        {"steps": 2, "persistent": True, "positive_phase": "sampled"},
    ],
)
def test_gradients_have_the_expectation_of_the_exact_chain(settings):
    """CD-k and persistent CD: free energy of the data less its expectation under transitions."""
    cfg, draws = rbm.Config(visible=4, hidden=3, **settings), 4096
    params = random_params(
        cfg, 42, scale=4.0
    )  # chains that mix slowly, so one step more or less would show
    data = np.array([[1.0, 0.0, 0.0, 1.0], [0.2, 0.9, 0.5, 0.0]])
    chains = np.array([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    first = to_visible_states(params, chains if cfg.persistent else data)
    end = first @ np.linalg.matrix_power(to_visible_states(params, binary(4)), cfg.steps - 1)
    positive = free_energy_gradient(params, data, np.ones(2))
    expected = jax.tree.map(
        np.subtract, positive, free_energy_gradient(params, binary(4), end.sum(axis=0))
    )
    own, batch, carry = (
        on_device(params),
        batch_of(data),
        jnp.asarray(chains) if cfg.persistent else (),
    )

    @jax.jit
    @jax.vmap
    def gradients(step):
        return jax.grad(
            lambda params: rbm.loss(cfg, params, batch, key=row_keys(2, step), carry=carry)[0]
        )(own)

    for name, leaf in gradients(jnp.arange(draws)).items():
        error = np.std(leaf, axis=0) / math.sqrt(draws)
        assert np.all(error < 0.1 * np.abs(expected[name]).max()), "too few draws to tell"
        np.testing.assert_array_less(
            np.abs(np.mean(leaf, axis=0) - expected[name]), 5 * error + 1e-5, err_msg=name
        )


@pytest.mark.parametrize(
    "settings",
    [{}, {"steps": 2, "positive_phase": "sampled"}, {"persistent": True, "sparsity_target": 0.1}],
)
@pytest.mark.parametrize("scale", [1.0, 1e5, 1e10, 1e37])
def test_loss_value_is_the_reconstruction_error(scale, settings):
    """Free energies, whose difference has the gradient, grow with the weights, up to infinity."""
    cfg = rbm.Config(visible=16, hidden=8, **settings)
    params = on_device(random_params(cfg, scale=scale))
    batch = batch_of(np.random.default_rng(1).integers(0, 2, (10, 16)).astype(np.float32))
    (total, aux), _ = GRADIENT(cfg, params, batch, key=row_keys(10), carry=())
    assert total == aux.metrics["reconstruction_error"][0] > 10


def test_diverging_training_is_reported():
    data: dict[str, Any] = {
        "inputs": np.random.default_rng(0).integers(0, 2, (40, 16)).astype(np.float32)
    }

    def fit(rate):
        optimizer = train.Optimizer(learning_rate=rate)
        return train.fit(
            rbm,
            rbm.Config(visible=16, hidden=8),
            data,
            optimizer=optimizer,
            batch_size=10,
            epochs=5,
        ).history

    assert [line["loss"] for line in fit(1e12) if line["split"] == "train"][-1] > 2
    with pytest.raises(train.Diverged, match="gradient norm nan"):
        fit(1e38)


# ---------------------------------------------------------------- persistent chains

PERSISTENT = rbm.Config(visible=4, hidden=3, steps=2, persistent=True)


def _persistent_setup(rows=5):
    rng = np.random.default_rng(3)
    params, data, carry = (
        random_params(PERSISTENT, 3),
        *(rng.integers(0, 2, (2, rows, 4)).astype(np.float32)),
    )
    return params, data, carry


def _persistent_gradient(params, data, carry, mask=None, reset=None):
    batch = batch_of(data, mask)
    batch |= {} if reset is None else {"reset": jnp.asarray(reset)}
    (_, aux), gradient = GRADIENT(
        PERSISTENT, on_device(params), batch, key=row_keys(len(data)), carry=jnp.asarray(carry)
    )
    return aux.carry, gradient


def _chains_from(params, start, keys):
    return SAMPLE(
        PERSISTENT, on_device(params), jnp.asarray(start), fold(keys, rbm.CHAIN), PERSISTENT.steps
    )


def test_the_negative_phase_of_persistent_chains_comes_from_the_carry_alone():
    params, data, carry = _persistent_setup()
    after, gradient = _persistent_gradient(params, data, carry)
    np.testing.assert_array_equal(after, _chains_from(params, carry, row_keys(5)))
    assert not np.array_equal(after, carry)
    ones = np.ones(5)
    expected = jax.tree.map(
        np.subtract,
        free_energy_gradient(params, data, ones),
        free_energy_gradient(params, np.asarray(after), ones),
    )
    assert_trees(gradient, expected, rtol=1e-4, atol=1e-5)
    other_after, other_gradient = _persistent_gradient(params, 1 - data, carry)
    np.testing.assert_array_equal(other_after, after)
    assert not np.allclose(other_gradient["kernel"], gradient["kernel"])


def test_masked_rows_of_persistent_chains_do_not_count():
    params, data, carry = _persistent_setup()
    mask = np.array([True, False, True, True, False])
    after, gradient = _persistent_gradient(params, data, carry, mask)
    expected = jax.tree.map(
        np.subtract,
        free_energy_gradient(params, data, mask.astype(float)),
        free_energy_gradient(params, np.asarray(after), mask.astype(float)),
    )
    assert_trees(gradient, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        after, _persistent_gradient(params, data, carry)[0]
    )  # yet their chains go on


def test_a_reset_restarts_rows_at_the_data():
    params, data, carry = _persistent_setup()
    reset = np.array([True, False, False, True, False])
    after, _ = _persistent_gradient(params, data, carry, reset=reset)
    start = np.where(reset[:, None], data, carry)
    np.testing.assert_array_equal(after, _chains_from(params, start, row_keys(5)))


def test_persistent_chains_begin_at_the_visible_biases():
    params = {**random_params(PERSISTENT), "visible_bias": np.array([-2.0, 0.0, 1.0, 30.0])}
    carry = np.asarray(rbm.init_carry(PERSISTENT, on_device(params), 4000, key=KEY))
    assert set(np.unique(carry)) == {0, 1}
    np.testing.assert_allclose(
        carry.mean(axis=0), sigmoid(params["visible_bias"]), atol=5 * 0.5 / math.sqrt(4000)
    )
    assert rbm.init_carry(CFG, on_device(params), 4, key=KEY) == ()
    # So do chains of a loss without a carry, one step later.
    extreme = {**on_device(params), "kernel": jnp.zeros_like(params["kernel"])}
    _, aux = rbm.loss(PERSISTENT, extreme, batch_of(np.zeros((2000, 4))), key=row_keys(2000))
    np.testing.assert_allclose(
        aux.carry.mean(axis=0), sigmoid(params["visible_bias"]), atol=5 * 0.5 / math.sqrt(2000)
    )


def test_persistent_chains_continue_with_current_parameters():
    optimizer = train.Optimizer(learning_rate=0.3).build(4, 4)
    state = jax.jit(lambda key: init_state(rbm, PERSISTENT, optimizer, key, 5))(KEY)
    _, data, _ = _persistent_setup()
    step = jax.jit(make_step(rbm, PERSISTENT, optimizer))
    for index in range(4):
        expected = _chains_from(state.params, state.carry, row_keys(5, index))
        state, _ = step(state, batch_of(data), KEY)
        np.testing.assert_array_equal(state.carry, expected)


def test_persistent_chains_resume_bit_for_bit(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {"inputs": rng.integers(0, 2, (22, 4)).astype(np.float32)}

    def fit(out=None):
        settings: dict[str, Any] = {
            "batch_size": 5,
            "steps": 10,
            "eval_every": 0.4,
            "steps_per_dispatch": 2,
        }
        return train.fit(rbm, PERSISTENT, data, validation=data, out=out, **settings)

    expected, recorded = fit(), Member.record

    def record(self, line):
        recorded(self, line)
        if line["step"] >= 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Member, "record", record)
    stopped = fit(tmp_path)
    assert not stopped.complete
    assert 4 <= int(stopped.state.step) < 10
    monkeypatch.undo()
    resumed = fit(tmp_path)
    assert resumed.state.carry.shape == (5, 4)
    jax.tree.map(
        np.testing.assert_array_equal,
        (resumed.state.carry, resumed.params),
        (expected.state.carry, expected.params),
    )
    assert not np.array_equal(stopped.state.carry, resumed.state.carry)


# ---------------------------------------------------------------- sparsity, binarisation, ranges


@pytest.mark.usefixtures("x64")
def test_sparsity_drives_hidden_means_to_the_target():
    """Its derivative by a hidden unit's input is cost (mean - target) (Hinton 2010, section 11)."""
    cost, target = 0.3, 0.1
    sparse = rbm.Config(visible=4, hidden=3, sparsity_target=target, sparsity_cost=cost)
    params, data, mask = random_params(sparse), binary(4)[[3, 9, 14]], np.array([True, False, True])
    batch = batch_of(data, mask)

    def gradient(cfg):
        return GRADIENT(cfg, on_device(params), batch, key=row_keys(3), carry=())

    ((total, _), with_cost), ((plain, _), without) = gradient(sparse), gradient(CFG)
    np.testing.assert_allclose(total, plain, rtol=1e-12)  # what is reported does not change
    pull = cost * (sigmoid(data @ params["kernel"] + params["bias"]) - target) * mask[:, None]
    expected = {"kernel": data.T @ pull, "bias": pull.sum(axis=0), "visible_bias": np.zeros(4)}
    assert_trees(jax.tree.map(np.subtract, with_cost, without), expected, rtol=1e-9, atol=1e-12)

    def cross_entropy(bias):
        mean = sigmoid(data[mask] @ params["kernel"] + bias)
        return -cost * np.sum(target * np.log(mean) + (1 - target) * np.log(1 - mean))

    slopes = [
        (cross_entropy(params["bias"] + change) - cross_entropy(params["bias"] - change)) / 2e-6
        for change in 1e-6 * np.eye(3)
    ]
    np.testing.assert_allclose(slopes, expected["bias"], rtol=1e-6)


GREY = np.array([0.0, 0.1, 0.49, 0.51, 0.8, 1.0], np.float32)


def test_thresholds_cut_at_a_half_with_or_without_a_key():
    cfg = rbm.Config(visible=6, hidden=2, binarize="threshold")
    expected = [[0, 0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(rbm.states(cfg, jnp.asarray(GREY[None])), expected)
    np.testing.assert_array_equal(rbm.states(cfg, jnp.asarray(GREY[None]), row_keys(1)), expected)
    assert rbm.states(cfg, jnp.full((1, 6), 0.5)).sum() == 0


def test_sampled_inputs_match_probabilities_independently_of_the_chain():
    cfg, draws = rbm.Config(visible=6, hidden=6, binarize="sample"), 20_000
    inputs, keys = jnp.broadcast_to(jnp.asarray(GREY), (draws, 6)), row_keys(draws)
    states = np.asarray(jitted(rbm.states)(cfg, inputs, keys))
    assert set(np.unique(states)) == {0, 1}
    np.testing.assert_array_less(
        np.abs(states.mean(axis=0) - GREY), 5 * np.sqrt(GREY * (1 - GREY) / draws) + 1e-4
    )
    for use in (rbm.HIDDEN, rbm.VISIBLE, rbm.CHAIN):
        uniform = np.asarray(layers.uniforms(fold(keys, use), 6))
        between = np.corrcoef(states[:, 1:5].T, uniform.T)[:4, 4:]
        assert np.abs(between).max() < 5 / math.sqrt(draws)
    # Every phase sees the same draw; without a key, inputs stay probabilities.
    params, few = on_device(random_params(cfg)), slice(0, 7)
    for key, seen in ((keys[few], states[few]), (None, inputs[few])):
        _, aux = jitted(rbm.loss)(cfg, params, batch_of(inputs[few]), key=key)
        energies = jitted(rbm.free_energy)(cfg, params, jnp.asarray(seen))
        np.testing.assert_allclose(aux.metrics["free_energy"][0], energies.sum(), rtol=1e-5)


@pytest.mark.parametrize("value", [-0.5, 1.5, math.nan])
def test_inputs_out_of_range_are_refused_by_name(value):
    params, inputs = on_device(random_params(CFG)), jnp.zeros((2, 4)).at[1, 2].set(value)
    for call in (
        lambda: rbm.apply(CFG, params, inputs),
        lambda: rbm.trace(CFG, params, inputs),
        lambda: rbm.loss(CFG, params, batch_of(inputs)),
    ):
        with pytest.raises(ValueError, match=r"inputs: values from .* allowed: 0 to 1"):
            call()
    rbm.apply(rbm.Config(visible=4, hidden=3, visible_units="gaussian"), params, inputs)
    edges = (
        jnp.zeros((2, 4)).at[0].set(1 + 1e-7).at[1].set(-1e-7)
    )  # single precision may round to these
    assert np.isfinite(rbm.apply(CFG, params, edges)).all()


def test_data_out_of_range_are_refused_before_a_folder_is_made(tmp_path):
    cfg, out = rbm.Config(visible=64, hidden=4), tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"train inputs, preprocess='standardize': values from -.* allowed: 0 to 1"
    ):
        train.fit(rbm, cfg, "digits", preprocess="standardize", steps=1, out=out)
    data, held_out = ({"inputs": scale * np.eye(4, 64, dtype=np.float32)} for scale in (1, 2))
    with pytest.raises(
        ValueError,
        match=r"validation inputs, preprocess='none': values from 0 to 2, allowed: 0 to 1",
    ):
        train.fit(rbm, cfg, data, validation=held_out, steps=1, out=out)
    assert not out.exists()
    gaussian = rbm.Config(visible=64, hidden=4, visible_units="gaussian")
    assert train.fit(rbm, gaussian, "digits", preprocess="standardize", steps=1).complete


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"visible_units": "gaussian", "hidden_units": "gaussian"},
            "hidden_units='gaussian', allowed: 'bernoulli' beside",
        ),
        (
            {"visible_units": "gaussian", "binarize": "sample"},
            "binarize='sample', allowed: 'none' for gaussian",
        ),
        (
            {"hidden_units": "gaussian", "sparsity_target": 0.1},
            "sparsity_target=0.1, allowed: None for gaussian",
        ),
        ({"sparsity_target": 1.0}, "sparsity_target=1.0, allowed: a probability"),
        ({"steps": 0}, "steps=0, allowed: a positive integer"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        rbm.Config(visible=4, hidden=3, **fields)


def test_training_lowers_reconstruction_error_and_raises_likelihood():
    """Eight hidden units, so log p(v) = -F(v) - log Z is exact; against independent units."""
    cfg = rbm.Config(visible=64, hidden=8, binarize="threshold")
    settings: dict[str, Any] = {
        "batch_size": 64,
        "epochs": 12,
        "eval_every": 12,
        "steps_per_dispatch": 32,
    }
    dataset = train.load_data("digits")
    result = train.fit(
        rbm, cfg, dataset, optimizer=train.Optimizer(learning_rate=0.2, momentum=0.5), **settings
    )
    shown, held_out = (
        (dataset.splits[split]["inputs"].reshape(-1, 64) > 8).astype(np.float32)
        for split in ("train", "validation")
    )
    untrained = jitted(rbm.init)(cfg, jax.random.key(0))
    total, aux = jitted(rbm.loss)(cfg, untrained, batch_of(held_out))
    before, after = float(total / aux.count), result.history[-1]["reconstruction_error"]
    assert result.history[-1]["split"] == "validation"
    assert after < 0.6 * before
    base = np.asarray(likelihood.base_rates(cfg, jnp.asarray(shown.mean(axis=0))))
    rates = np.sum(held_out * base - np.logaddexp(0, base), axis=1).mean()
    params = result.params
    energies = jitted(rbm.free_energy)(cfg, params, jnp.asarray(held_out))
    learned = -energies.mean() - jitted(likelihood.exact_log_partition)(cfg, params)
    assert learned > rates + 3
