"""Partition functions and likelihoods against enumeration, integration and closed forms."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from tests.test_rbm import binary, numpy_energy, on_device, plane, random_params, sigmoid
from zoo import rbm
from zoo.parts import likelihood

KEY = jax.random.key(0)
ANNEALED = jax.jit(
    jax.vmap(
        lambda cfg, params, key, temperatures, base: likelihood.annealed_log_partition(
            cfg, params, key, chains=25, temperatures=temperatures, base=base
        ),
        in_axes=(None, None, 0, None, None),
    )
)


def log_sum_exp(x):
    most = x.max()
    return most + np.log(np.exp(x - most).sum())


# ---------------------------------------------------------------- exact


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("visible", "hidden"), [(3, 6), (6, 3), (4, 4)])
def test_the_sum_over_one_layer_is_the_sum_over_both(visible, hidden):
    cfg = rbm.Config(visible=visible, hidden=hidden)
    params = random_params(cfg, scale=2.0)
    brute = log_sum_exp(-numpy_energy(cfg, params, binary(visible), binary(hidden)))
    np.testing.assert_allclose(
        likelihood.exact_log_partition(cfg, on_device(params)), brute, rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("visible", "hidden"), [(13, 14), (15, 12), (20, 14)])
def test_states_are_enumerated_in_whole_chunks(visible, hidden):
    """Two chunks of the visible layer, exactly one of the hidden layer, and four."""
    cfg = rbm.Config(visible=visible, hidden=hidden)
    assert (
        2 ** min(visible, hidden) // likelihood.CHUNK == {13: 2, 12: 1, 14: 4}[min(visible, hidden)]
    )
    params = random_params(cfg)
    # Always over the hidden layer: for 13 visible units, a different sum from the tested one.
    h = binary(hidden)
    brute = log_sum_exp(
        h @ params["bias"]
        + np.logaddexp(0, h @ params["kernel"].T + params["visible_bias"]).sum(axis=1)
    )
    np.testing.assert_allclose(
        likelihood.exact_log_partition(cfg, on_device(params)), brute, rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
def test_log_partition_with_gaussian_layers_equals_integration():
    """Integrates over the Gaussian layer numerically the known sum over the other layer."""
    points, area = plane()
    quadratic = 0.5 * np.sum(points**2, axis=1)
    seen = rbm.Config(visible=2, hidden=3, visible_units="gaussian")
    params = random_params(seen)
    normalizers = np.logaddexp(0, points @ params["kernel"] + params["bias"]).sum(axis=1)
    integral = log_sum_exp(points @ params["visible_bias"] - quadratic + normalizers) + math.log(
        area
    )
    np.testing.assert_allclose(
        likelihood.exact_log_partition(seen, on_device(params)), integral, rtol=1e-10
    )
    hidden = rbm.Config(visible=3, hidden=2, hidden_units="gaussian")
    params = random_params(hidden)
    normalizers = np.logaddexp(0, points @ params["kernel"].T + params["visible_bias"]).sum(axis=1)
    integral = log_sum_exp(points @ params["bias"] - quadratic + normalizers) + math.log(area)
    np.testing.assert_allclose(
        likelihood.exact_log_partition(hidden, on_device(params)), integral, rtol=1e-10
    )


@pytest.mark.usefixtures("x64")
def test_gaussian_layers_of_many_units_have_their_closed_form():
    """Without connections: (2 pi)^(n/2) exp(|b|^2 / 2) times the Bernoulli layer's sum."""
    for cfg in (
        rbm.Config(visible=40, hidden=5, visible_units="gaussian"),
        rbm.Config(visible=5, hidden=2, hidden_units="gaussian"),
    ):
        params = random_params(cfg) | {"kernel": np.zeros((cfg.visible, cfg.hidden))}
        biases = params["visible_bias"], params["bias"]
        normal, other = biases if cfg.visible_units == "gaussian" else biases[::-1]
        closed = (
            0.5 * len(normal) * math.log(2 * math.pi)
            + 0.5 * normal @ normal
            + np.logaddexp(0, other).sum()
        )
        np.testing.assert_allclose(
            likelihood.exact_log_partition(cfg, on_device(params)), closed, rtol=1e-12
        )


def test_layers_too_large_or_gaussian_cannot_be_enumerated():
    for cfg, message in (
        (rbm.Config(visible=26, hidden=26), "26 bernoulli and 26 bernoulli units"),
        (rbm.Config(visible=3, hidden=26, visible_units="gaussian"), "3 gaussian and 26 bernoulli"),
        (rbm.Config(visible=26, hidden=3, hidden_units="gaussian"), "26 bernoulli and 3 gaussian"),
    ):
        assert not likelihood.enumerable(cfg)
        with pytest.raises(ValueError, match=f"{message}.*a layer of 25 bernoulli units or fewer"):
            likelihood.exact_log_partition(cfg, rbm.init(cfg, KEY))
    assert likelihood.enumerable(rbm.Config(visible=784, hidden=25))
    assert likelihood.enumerable(rbm.Config(visible=25, hidden=1000, hidden_units="gaussian"))


# ---------------------------------------------------------------- annealed importance sampling


def test_ais_estimates_are_close_on_trained_rbms():
    """Three seeds at once; the base rates are those of the training data."""
    cfg = rbm.Config(visible=64, hidden=12, binarize="threshold")
    dataset = train.load_data("digits")
    settings: dict[str, Any] = {
        "batch_size": 64,
        "epochs": 6,
        "steps_per_dispatch": 64,
        "replicas": 3,
        "eval_every": 6,
    }
    result = train.fit(rbm, cfg, dataset, optimizer=train.Optimizer(learning_rate=0.2), **settings)
    base = likelihood.base_rates(
        cfg, jnp.asarray((dataset.splits["train"]["inputs"].reshape(-1, 64) > 8).mean(axis=0))
    )
    assert len(result.members) == 3
    for member in result.members.values():
        exact = float(likelihood.exact_log_partition(cfg, member.params))
        estimate = likelihood.annealed_log_partition(
            cfg, member.params, KEY, chains=50, temperatures=400, base=base
        )
        assert np.linalg.norm(member.params["kernel"]) > 10, (
            "too little was learned for this to be hard"
        )
        off = abs(float(estimate.log_partition) - exact)
        assert off < 0.5
        assert off < 5 * float(estimate.standard_error) + 0.02
        assert estimate.standard_error < 0.2


@pytest.mark.parametrize(
    "units", [("bernoulli", "bernoulli"), ("gaussian", "bernoulli"), ("bernoulli", "gaussian")]
)
def test_ais_weights_are_unbiased_and_improve_with_temperatures(units):
    cfg = rbm.Config(visible=4, hidden=3, visible_units=units[0], hidden_units=units[1])
    params, base = on_device(random_params(cfg, 5, scale=0.7)), jnp.asarray([0.5, -0.5, 0.0, 1.0])
    exact = likelihood.exact_log_partition(cfg, params)
    keys = jax.random.split(KEY, 40)
    errors = []
    for temperatures in (3, 30, 300):
        estimates = ANNEALED(cfg, params, keys, temperatures, base)
        off = np.asarray(estimates.log_partition - exact, float)
        ratios = np.exp(off)  # the mean weight of each estimate's chains over the exact value
        np.testing.assert_array_less(
            abs(ratios.mean() - 1), 5 * ratios.std() / math.sqrt(len(keys)) + 1e-5
        )
        errors.append(math.sqrt(np.mean(off**2)))
        if temperatures == 300:  # their standard errors estimate the deviation
            np.testing.assert_allclose(
                np.mean((off / np.asarray(estimates.standard_error)) ** 2), 1, atol=0.9
            )
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_ais_with_few_temperatures_is_unbiased_with_correct_standard_error():
    """Temperatures far apart, so an off-by-one would show; more chains come closer."""
    cfg, chains = rbm.Config(visible=4, hidden=3), 20_000
    params, base = on_device(random_params(cfg, 5, scale=2.5)), jnp.asarray([0.5, -0.5, 0.0, 1.0])
    estimate = likelihood.annealed_log_partition(
        cfg, params, KEY, chains=chains, temperatures=4, base=base
    )
    weights = np.exp(np.asarray(estimate.log_weights, float))
    relative = weights.std(ddof=1) / weights.mean() / math.sqrt(chains)
    np.testing.assert_allclose(estimate.standard_error, relative, rtol=1e-4)
    of_base = np.logaddexp(0, np.asarray(base)).sum() + 3 * math.log(2)
    np.testing.assert_allclose(
        estimate.log_partition, of_base + math.log(weights.mean()), rtol=1e-5
    )
    exact = float(likelihood.exact_log_partition(cfg, params))
    assert relative < 0.02
    assert abs(weights.mean() / math.exp(exact - of_base) - 1) < 5 * relative


def test_ais_is_exact_if_the_rbm_equals_its_base():
    cfg = rbm.Config(visible=4, hidden=3)
    params = random_params(cfg) | {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)}
    estimate = likelihood.annealed_log_partition(
        cfg,
        on_device(params),
        KEY,
        chains=50,
        temperatures=3,
        base=jnp.asarray(params["visible_bias"], jnp.float32),
    )
    np.testing.assert_allclose(
        estimate.log_partition,
        np.logaddexp(0, params["visible_bias"]).sum() + 3 * math.log(2),
        rtol=1e-6,
    )
    np.testing.assert_allclose(estimate.log_weights, 0, atol=1e-6)
    assert estimate.standard_error < 1e-6


def test_base_rates_are_smoothed_by_five_percent_pseudo_data():
    cfg, means = rbm.Config(visible=5, hidden=2), np.array([0.0, 0.1, 0.5, 0.99, 1.0])
    base = np.asarray(likelihood.base_rates(cfg, jnp.asarray(means)))
    assert np.isfinite(base).all()
    on = 1000 * means + 25  # of 1000 examples and 50 more, half of which are on
    np.testing.assert_allclose(sigmoid(base), on / 1050, rtol=1e-5)
    gaussian = rbm.Config(visible=5, hidden=2, visible_units="gaussian")
    np.testing.assert_array_equal(
        likelihood.base_rates(gaussian, jnp.asarray(means)), jnp.asarray(means)
    )


# ---------------------------------------------------------------- pseudo-likelihood


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("hidden_units", rbm.UNITS)
def test_the_pseudo_likelihood_is_the_product_of_enumerated_conditionals(hidden_units):
    cfg = rbm.Config(visible=4, hidden=2, hidden_units=hidden_units)
    params, v = random_params(cfg), binary(4)
    if hidden_units == "bernoulli":
        p = np.exp(-numpy_energy(cfg, params, v, binary(2))).sum(axis=1)
    else:
        h, area = plane()
        p = np.exp(-numpy_energy(cfg, params, v, h)).sum(axis=1) * area
    expected = np.zeros(16)
    for state in range(16):
        for unit in range(4):
            flipped = state ^ (8 >> unit)
            expected[state] += math.log(p[state] / (p[state] + p[flipped]))
    found = likelihood.pseudo_log_likelihood(cfg, on_device(params), jnp.asarray(v))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_pseudo_likelihood_is_of_binary_states_only():
    gaussian, cfg = (
        rbm.Config(visible=2, hidden=2, visible_units="gaussian"),
        rbm.Config(visible=2, hidden=2),
    )
    params = on_device(random_params(cfg))
    with pytest.raises(
        ValueError, match="visible_units='gaussian', allowed for a pseudo-likelihood: 'bernoulli'"
    ):
        likelihood.pseudo_log_likelihood(gaussian, params, jnp.zeros((1, 2)))
    with pytest.raises(
        ValueError, match=r"visible: 0\.5, allowed for a pseudo-likelihood: states, 0 or 1"
    ):
        likelihood.pseudo_log_likelihood(cfg, params, jnp.array([[1.0, 0.5]]))


def test_chunked_log_partition_adds_no_rounding(monkeypatch):
    """In float32, for an RBM with equal energies: log Z is the log of the number of states."""
    monkeypatch.setattr(likelihood, "CHUNK", 1)
    cfg = rbm.Config(visible=2001, hidden=13)
    params = jax.tree.map(jnp.zeros_like, rbm.init(cfg, jax.random.key(0)))
    np.testing.assert_allclose(
        likelihood.exact_log_partition(cfg, params), 2014 * math.log(2), atol=1e-3
    )
