"""Autoencoders against equations by hand, principal components, and models initialised by them."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import train
from train.transfer import matching, unroll
from zoo import autoencoder, conv_autoencoder, convnet, dbn, mlp
from zoo.convnet import Stage
from zoo.parts import layers

KEY = jax.random.key(0)
FUNCTIONS = {
    "logistic": (lambda z: 1 / (1 + np.exp(-z)), lambda y: y * (1 - y)),
    "tanh": (np.tanh, lambda y: 1 - y**2),
    "relu": (lambda z: np.maximum(z, 0), lambda y: (y > 0).astype(float)),
    "linear": (lambda z: z, np.ones_like),
}
"""Nonlinearity, and its derivative as a function of its result."""


def _keys(rows, seed=7):
    return jax.random.split(jax.random.key(seed), rows)


def _inputs(cfg, size=5):
    """Values between 0 and 1, not only 0 and 1."""
    return jnp.asarray(np.random.default_rng(1).uniform(size=(size, cfg.sizes[0])))


def _batch(inputs):
    return {"inputs": inputs, "mask": jnp.ones(len(inputs), bool)}


def _params(model, cfg, seed=3):
    """Random parameters, including biases, with the shapes of ``init``."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.7 * rng.normal(size=leaf.shape)), _shapes(model, cfg)
    )


def _shapes(model, cfg):
    return jax.eval_shape(lambda: model.init(cfg, KEY))


def _close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def _value_and_grad(model, cfg):
    return jax.jit(
        jax.value_and_grad(
            lambda params, batch, key=None: model.loss(cfg, params, batch, key=key), has_aux=True
        )
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("activation", "code", "output", "objective"),
    [
        ("logistic", None, "logistic", None),
        ("logistic", "linear", "logistic", "squared_error"),
        ("tanh", "relu", "linear", None),
    ],
)
def test_reconstruction_and_gradients_equal_the_equations(
    activation, code, output, objective, tied
):
    """Up y = f(x W + b), down z = g(y V + c); errors propagate by transposed kernel and slope."""
    cfg = autoencoder.Config(
        sizes=(5, 4, 3),
        activation=activation,
        code=code,
        output=output,
        objective=objective,
        tied=tied,
    )
    params = _params(autoencoder, cfg)
    batch = _batch(_inputs(cfg))
    x = np.asarray(batch["inputs"])
    names = ["layer_0", "layer_1", "decoder_1", "decoder_0"]
    kernels = [
        np.asarray(params[name].get("kernel", params[name.replace("decoder", "layer")]["kernel"].T))
        for name in names
    ]
    kinds = [activation, code or activation, activation, output]
    y = [x]
    for name, kernel, kind in zip(names, kernels, kinds, strict=True):
        y.append(FUNCTIONS[kind][0](y[-1] @ kernel + np.asarray(params[name]["bias"])))
    out = y[-1]
    if output == "logistic" and objective is None:
        error = -np.sum(x * np.log(out) + (1 - x) * np.log(1 - out))
        delta = out - x
    else:
        error = 0.5 * np.sum((out - x) ** 2)
        delta = (out - x) * FUNCTIONS[output][1](out)
    expected = {}
    for index in (3, 2, 1, 0):
        expected[names[index]] = {"kernel": y[index].T @ delta, "bias": delta.sum(0)}
        if index:
            delta = (delta @ kernels[index].T) * FUNCTIONS[kinds[index - 1]][1](y[index])
    if tied:
        for index in (0, 1):
            expected[f"layer_{index}"]["kernel"] += expected[f"decoder_{index}"].pop("kernel").T

    (total, aux), gradients = _value_and_grad(autoencoder, cfg)(params, batch)
    np.testing.assert_allclose(total, error, rtol=1e-12)
    np.testing.assert_allclose(
        aux.metrics["reconstruction_error"][0], np.sum((out - x) ** 2), rtol=1e-12
    )
    _close(gradients, expected, rtol=1e-9, atol=1e-12)
    seen = jax.jit(autoencoder.trace)(cfg, params, batch["inputs"])[1]
    for name, value in zip(("hidden_0", "code", "decoded_1", "reconstruction"), y[1:], strict=True):
        np.testing.assert_allclose(seen[name], value, rtol=1e-12, err_msg=name)
    assert set(seen) == {"hidden_0", "code", "decoded_1", "logits", "reconstruction"}
    np.testing.assert_allclose(autoencoder.encode(cfg, params, batch["inputs"]), y[2], rtol=1e-12)
    np.testing.assert_allclose(autoencoder.decode(cfg, params, jnp.asarray(y[2])), out, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_tied_kernels_equal_untied_equal_kernels():
    """The same function; the gradient of the tied kernel is the sum of both."""
    cfg = autoencoder.Config(sizes=(6, 5, 3), tied=True, noise="mask", noise_level=0.3)
    free = dataclasses.replace(cfg, tied=False)
    params, batch = _params(autoencoder, cfg), _batch(_inputs(cfg))
    both = {**params}
    for index in (0, 1):
        both[f"decoder_{index}"] = {
            **params[f"decoder_{index}"],
            "kernel": params[f"layer_{index}"]["kernel"].T,
        }
    keys = _keys(5)
    (total, _), gradients = _value_and_grad(autoencoder, cfg)(params, batch, keys)
    (free_total, _), summands = _value_and_grad(autoencoder, free)(both, batch, keys)
    np.testing.assert_allclose(total, free_total, rtol=1e-12)
    for index in (0, 1):
        parts = summands[f"layer_{index}"]["kernel"] + summands[f"decoder_{index}"]["kernel"].T
        np.testing.assert_allclose(gradients[f"layer_{index}"]["kernel"], parts, rtol=1e-10)
        np.testing.assert_allclose(
            gradients[f"decoder_{index}"]["bias"], summands[f"decoder_{index}"]["bias"], rtol=1e-10
        )


def test_noise_has_its_statistics():
    x = jax.random.uniform(KEY, (4000, 50), minval=0.1, maxval=0.9)
    noisy = {noise: layers.corrupt(x, noise, 0.3, _keys(4000)) for noise in layers.NOISES}
    np.testing.assert_array_equal(noisy["none"], x)
    for noise, values in (("mask", [0]), ("salt_pepper", [0, 1])):
        changed = noisy[noise] != x
        np.testing.assert_allclose(changed.mean(0), 0.3, atol=0.04)
        np.testing.assert_array_equal(jnp.unique(noisy[noise][changed]), values)
    salt = noisy["salt_pepper"]
    np.testing.assert_allclose([jnp.mean(salt == 0), jnp.mean(salt == 1)], 0.15, atol=0.005)
    added = noisy["gaussian"] - x
    np.testing.assert_allclose(added.mean(), 0, atol=0.004)
    np.testing.assert_allclose(added.std(), 0.3, rtol=0.01)
    np.testing.assert_allclose(jnp.mean(jnp.abs(added) < 0.3), 0.6827, atol=0.005)
    # Units of an example, and examples, are corrupted independently of each other.
    np.testing.assert_allclose(np.corrcoef(added.T), np.eye(50), atol=0.08)
    np.testing.assert_allclose(np.corrcoef(added[:50]), np.eye(50), atol=0.7)
    for noise in layers.NOISES:
        assert layers.corrupt(x, noise, 0.3, None) is x
    half, whole = (
        layers.corrupt(x.astype(dtype), "gaussian", 0.3, _keys(4000))
        for dtype in (jnp.bfloat16, jnp.int32)
    )
    assert (half.dtype, whole.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("noise", layers.NOISES[1:])
@pytest.mark.parametrize("model", [autoencoder, conv_autoencoder])
def test_noise_depends_on_the_examples_key_and_the_loss_uses_clean_inputs(model, noise):
    cfg = dataclasses.replace(model.PRESETS["tiny"], noise=noise, noise_level=0.4)
    if model is conv_autoencoder:
        cfg = dataclasses.replace(
            cfg, stages=tuple(dataclasses.replace(stage, dropout=0.0) for stage in cfg.stages)
        )
    params, shape = (
        _params(model, cfg),
        jax.eval_shape(lambda: model.example_batch(cfg, KEY, 4))["inputs"].shape,
    )
    inputs = jnp.asarray(np.random.default_rng(0).integers(0, 2, shape).astype(np.float32))
    keys, others, apply = _keys(4), _keys(4, seed=8), jax.jit(model.apply)
    outputs, batch = apply(cfg, params, inputs, key=keys), _batch(inputs)
    mixed = apply(cfg, params, inputs, key=jnp.stack([others[0], keys[1], others[2], keys[3]]))
    np.testing.assert_array_equal(
        jnp.all(jnp.isclose(mixed, outputs), axis=range(1, inputs.ndim)), [False, True, False, True]
    )
    total, aux = jax.jit(model.loss)(cfg, params, batch, key=keys)
    np.testing.assert_allclose(
        total, -np.sum(np.log(np.where(inputs == 1, outputs, 1 - outputs))), rtol=1e-5
    )
    error, count = aux.metrics["reconstruction_error"]
    np.testing.assert_allclose(error, np.sum((inputs - outputs) ** 2), rtol=1e-5)
    assert count == aux.count == 4


def test_targets_are_ignored():
    cfg = autoencoder.PRESETS["tiny"]
    params, batch = _params(autoencoder, cfg), autoencoder.example_batch(cfg, KEY, 3)
    labelled = {**batch, "targets": jnp.arange(3)}
    assert autoencoder.loss(cfg, params, labelled)[0] == autoencoder.loss(cfg, params, batch)[0]


@pytest.mark.parametrize(
    ("fields", "single"),
    [
        (
            {"activation": "logistic", "output": "linear"},
            {"activation": "logistic", "output": "logistic"},
        ),
        (
            {"activation": "logistic", "objective": "squared_error"},
            {"activation": "logistic", "output": "logistic", "objective": "squared_error"},
        ),
    ],
)
def test_greedy_stage_trains_the_top_pair_as_an_autoencoder(fields, single):
    cfg = autoencoder.Config(
        sizes=(8, 7, 6, 4), noise="mask", noise_level=0.5, tied=True, greedy=True, **fields
    )
    pair = autoencoder.Config(sizes=(6, 4), noise="mask", noise_level=0.5, tied=True, **single)
    params, batch = _params(autoencoder, cfg), _batch(_inputs(cfg))
    key = _keys(5)
    below = jax.jit(autoencoder.trace)(cfg, params, batch["inputs"])[1]["hidden_1"]
    (total, aux), gradients = _value_and_grad(autoencoder, cfg)(params, batch, key)
    top_params = {"layer_0": params["layer_2"], "decoder_0": params["decoder_2"]}
    (expected, expected_aux), top = _value_and_grad(autoencoder, pair)(
        top_params, _batch(below), key
    )
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    _close(aux.metrics, expected_aux.metrics, rtol=1e-6)
    _close(
        {"layer_0": gradients.pop("layer_2"), "decoder_0": gradients.pop("decoder_2")},
        top,
        rtol=1e-5,
        atol=1e-7,
    )
    assert all(leaf.any() for leaf in jax.tree.leaves(top))
    assert len(gradients) == 4
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("activation", ["tanh", "relu", "lecun_tanh"])
def test_greedy_loss_is_the_reconstruction_error_of_hidden_units(activation):
    """Units of each kind are reconstructed by units of the same kind."""
    cfg = autoencoder.Config(sizes=(8, 6, 4), activation=activation, code="linear", greedy=True)
    params, batch = _params(autoencoder, cfg), _batch(_inputs(cfg))
    seen = jax.jit(autoencoder.trace)(cfg, params, batch["inputs"])[1]
    (total, aux), _ = _value_and_grad(autoencoder, cfg)(params, batch)
    error = np.square(seen["decoded_1"] - seen["hidden_0"]).sum()
    np.testing.assert_allclose(
        [aux.metrics["reconstruction_error"][0], total], [error, error / 2], rtol=1e-5
    )


def test_the_lowest_greedy_pair_is_an_ordinary_autoencoder():
    cfg = autoencoder.Config(
        sizes=(8, 4), activation="tanh", noise="gaussian", noise_level=0.5, greedy=True
    )
    params, batch = _params(autoencoder, cfg), _batch(_inputs(cfg))
    plain = dataclasses.replace(cfg, greedy=False)
    assert (
        autoencoder.loss(cfg, params, batch, key=_keys(5))[0]
        == autoencoder.loss(plain, params, batch, key=_keys(5))[0]
    )


def test_greedy_stages_pass_on_all_parameters():
    first, second = (
        autoencoder.Config(sizes=sizes, noise="mask", noise_level=0.2, greedy=True)
        for sizes in ((8, 6), (8, 6, 4))
    )
    earlier, fresh = _params(autoencoder, first), _params(autoencoder, second, 4)
    params = matching(first, earlier, second, fresh)
    _close({name: params[name] for name in earlier}, earlier, rtol=0)
    _close(params["decoder_1"], fresh["decoder_1"], rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_unrolling_a_deep_belief_net_gives_its_passes_up_and_down(tied):
    cfg = autoencoder.Config(sizes=(7, 5, 3), code="linear", tied=tied)
    rng = np.random.default_rng(0)
    net = {
        f"layer_{index}": {
            "kernel": rng.normal(size=(inputs, outputs)).astype(np.float32),
            "bias": rng.normal(size=outputs).astype(np.float32),
            "visible_bias": rng.normal(size=inputs).astype(np.float32),
        }
        for index, (inputs, outputs) in enumerate(((7, 5), (5, 3)))
    }
    params = jax.jit(autoencoder.unroll)(cfg, net)
    shapes = _shapes(autoencoder, cfg)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    x = rng.uniform(size=(4, 7)).astype(np.float32)
    sigmoid, (lower, upper) = FUNCTIONS["logistic"][0], net.values()
    code = sigmoid(x @ lower["kernel"] + lower["bias"]) @ upper["kernel"] + upper["bias"]
    down = sigmoid(
        sigmoid(code @ upper["kernel"].T + upper["visible_bias"]) @ lower["kernel"].T
        + lower["visible_bias"]
    )
    np.testing.assert_allclose(
        autoencoder.encode(cfg, params, jnp.asarray(x)), code, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(autoencoder.apply(cfg, params, jnp.asarray(x)), down, rtol=1e-5)


def test_unsupported_unrolling_is_refused_by_name():
    cfg = autoencoder.Config(sizes=(3, 2))
    layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2), "visible_bias": jnp.ones(3)}
    for wrong, message in (
        (
            {"layer_0": layer, "layer_1": layer},
            r"layers layer_0, layer_1, expected layer_0 for sizes=\(3, 2\)",
        ),
        (
            {"layer_0": {**layer, "kernel": jnp.ones((2, 3))}},
            r"layer_0.kernel: shape \(2, 3\), expected \[3, 2\]",
        ),
        (
            {"layer_0": {**layer, "visible_bias": jnp.ones(2)}},
            r"layer_0.visible_bias: shape \(2,\), expected \[3\]",
        ),
        (
            {"layer_0": {"kernel": layer["kernel"], "bias": layer["bias"]}},
            "layer_0 has kernel, bias, expected .*visible_bias",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            autoencoder.unroll(cfg, wrong)


@pytest.mark.parametrize(
    ("net", "fields", "message"),
    [
        (
            {},
            {"activation": "tanh"},
            "activation='tanh', allowed after a deep belief net with bernoulli units there: "
            "'logistic'",
        ),
        ({}, {"code": "linear"}, "code='linear', allowed .* bernoulli .*: 'logistic'"),
        ({"top_units": "gaussian"}, {}, "code='logistic', allowed .* gaussian .*: 'linear'"),
        ({"visible_units": "gaussian"}, {}, "output='logistic', allowed .* gaussian .*: 'linear'"),
        (
            {"visible_units": "gaussian", "top_units": "gaussian"},
            {"output": "linear", "code": "linear"},
            None,
        ),
    ],
)
def test_unrolling_requires_the_same_units(net, fields, message):
    earlier, cfg = dbn.Config(sizes=(4, 3, 2), **net), autoencoder.Config(sizes=(4, 3, 2), **fields)
    params = dbn.init(earlier, KEY)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        unroll(earlier, params, cfg, {})


def test_unrolling_other_models_is_refused():
    cfg = autoencoder.Config(sizes=(4, 3))
    with pytest.raises(
        ValueError,
        match=r"transfer='unroll' between zoo.autoencoder and zoo.autoencoder, allowed: zoo.dbn "
        r"and",
    ):
        unroll(cfg, autoencoder.init(cfg, KEY), cfg, {})


def test_mlp_is_initialised_from_the_encoder():
    cfg = autoencoder.Config(sizes=(8, 6, 4), activation="tanh")
    net = mlp.Config(sizes=(8, 6, 4, 3), activation="tanh")
    earlier, fresh = _params(autoencoder, cfg), _params(mlp, net, 4)
    params = matching(cfg, earlier, net, fresh)
    seen, maps = (
        model.trace(c, p, _inputs(cfg))[1]
        for model, c, p in ((mlp, net, params), (autoencoder, cfg, earlier))
    )
    np.testing.assert_array_equal(seen["hidden_0"], maps["hidden_0"])
    np.testing.assert_array_equal(seen["hidden_1"], maps["code"])
    _close(params["layer_2"], fresh["layer_2"], rtol=0)


def test_convnet_is_initialised_from_the_encoder():
    stages = (Stage(features=3), Stage(features=4, pool="max", dropout=0.25))
    cfg = conv_autoencoder.Config(shape=(4, 6, 1), stages=stages)
    net = convnet.Config(shape=(4, 6, 1), stages=stages, dense=(5,), classes=3)
    earlier, fresh = _params(conv_autoencoder, cfg), _params(convnet, net, 4)
    params = matching(cfg, earlier, net, fresh)
    inputs = conv_autoencoder.example_batch(cfg, KEY, 2)["inputs"]
    seen, maps = (
        jax.jit(convnet.trace)(net, params, inputs)[1],
        jax.jit(conv_autoencoder.trace)(cfg, earlier, inputs)[1],
    )
    for name in ("conv_0", "conv_1", "pool_1"):
        np.testing.assert_allclose(seen[name], maps[name], rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(maps["pool_1"], maps["code"])
    _close(params["dense_0"], fresh["dense_0"], rtol=0)


@pytest.mark.parametrize("preset", ["digits", "lenet5"])
def test_convolutional_presets_fit_the_convnet_of_their_name(preset):
    ours, theirs = (_shapes(model, model.PRESETS[preset]) for model in (conv_autoencoder, convnet))
    stages = [name for name in theirs if name.startswith("conv_")]
    assert len(stages) == len(convnet.PRESETS[preset].stages)
    assert all(ours[name] == theirs[name] for name in stages)


def _correlate(x, layer):
    """'same' convolution by loops; even windows pad more after than before."""
    kernel = np.asarray(layer["kernel"])
    height, width = kernel.shape[:2]
    around = [((taps - 1) // 2, taps // 2) for taps in (height, width)]
    padded = np.pad(x, [(0, 0), *around, (0, 0)])
    rows, columns = x.shape[1:3]
    taps = [
        padded[:, i : i + rows, j : j + columns] @ kernel[i, j]
        for i in range(height)
        for j in range(width)
    ]
    return sum(taps) + np.asarray(layer["bias"])


@pytest.mark.usefixtures("x64")
def test_a_convolutional_reconstruction_equals_the_definition():
    stages = (
        Stage(features=3, pool="max", pool_size=(2, 3)),
        Stage(features=4, kernel=(2, 3), activation="tanh", pool="mean"),
    )
    cfg = conv_autoencoder.Config(
        shape=(4, 6, 2), stages=stages, activation="logistic", objective="squared_error"
    )
    params = _params(conv_autoencoder, cfg)
    x = np.asarray(jax.random.uniform(KEY, (2, 4, 6, 2)))
    sigmoid = FUNCTIONS["logistic"][0]
    below = sigmoid(_correlate(x, params["conv_0"])).reshape(2, 2, 2, 2, 3, 3).max((2, 4))
    code = np.tanh(_correlate(below, params["conv_1"])).reshape(2, 1, 2, 1, 2, 4).mean((2, 4))
    up = sigmoid(_correlate(np.kron(code, np.ones((1, 2, 2, 1))), params["decoder_1"]))
    out = sigmoid(_correlate(np.kron(up, np.ones((1, 2, 3, 1))), params["decoder_0"]))
    outputs, seen = jax.jit(conv_autoencoder.trace)(cfg, params, jnp.asarray(x))
    for actual, expected in ((seen["code"], code), (seen["decoded_1"], up), (outputs, out)):
        np.testing.assert_allclose(actual, expected, rtol=1e-10)
    assert set(seen) == {
        "conv_0",
        "pool_0",
        "conv_1",
        "pool_1",
        "code",
        "decoded_1",
        "logits",
        "reconstruction",
    }
    np.testing.assert_allclose(
        jax.jit(conv_autoencoder.encode)(cfg, params, jnp.asarray(x)), code, rtol=1e-10
    )
    np.testing.assert_allclose(
        jax.jit(conv_autoencoder.decode)(cfg, params, jnp.asarray(code)), out, rtol=1e-10
    )
    total, aux = jax.jit(conv_autoencoder.loss)(cfg, params, _batch(jnp.asarray(x)))
    np.testing.assert_allclose(total, 0.5 * np.sum((out - x) ** 2), rtol=1e-10)
    np.testing.assert_allclose(
        aux.metrics["reconstruction_error"][0], np.sum((out - x) ** 2), rtol=1e-10
    )


@pytest.mark.parametrize(("shape", "axes"), [((12, 3), 1), ((4, 4, 2, 1), 3)])
def test_signals_and_volumes_are_reconstructed(shape, axes):
    stages = (
        Stage(features=3, pool="mean"),
        Stage(features=2, pool="max", pool_size=(2,) * (axes - 1) + (1,)),
    )
    cfg = conv_autoencoder.Config(shape=shape, stages=stages, output="linear")
    params, batch = _params(conv_autoencoder, cfg), conv_autoencoder.example_batch(cfg, KEY, 2)
    assert jax.eval_shape(lambda: conv_autoencoder.apply(cfg, params, batch["inputs"])).shape == (
        2,
        *shape,
    )
    assert np.isfinite(jax.jit(conv_autoencoder.loss)(cfg, params, batch)[0])


@pytest.mark.usefixtures("x64")
def test_linear_autoencoders_are_at_best_principal_components():
    """Baldi and Hornik 1989: principal components are the stationary optimum of training."""
    inputs = train.load_data("digits").splits["train"]["inputs"].reshape(-1, 64)[:400] / 16.0
    mean, units = inputs.mean(0), 5
    _, singular, components = np.linalg.svd(inputs - mean, full_matrices=False)
    least = np.sum(singular[units:] ** 2)
    cfg = autoencoder.Config(sizes=(64, units), activation="linear", output="linear")
    tied, batch = dataclasses.replace(cfg, tied=True), _batch(jnp.asarray(inputs))
    kernel = jnp.asarray(components[:units].T)
    params = {
        "layer_0": {"kernel": kernel, "bias": -jnp.asarray(mean) @ kernel},
        "decoder_0": {"bias": jnp.asarray(mean)},
    }
    (total, aux), gradients = _value_and_grad(autoencoder, tied)(params, batch)
    np.testing.assert_allclose(total, least / 2, rtol=1e-10)
    np.testing.assert_allclose(aux.metrics["reconstruction_error"][0], least, rtol=1e-10)
    _close(gradients, jax.tree.map(np.zeros_like, gradients), atol=1e-8)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 1000))

    def step(state, _):
        params, opt_state = state
        total, gradients = jax.value_and_grad(lambda p: autoencoder.loss(cfg, p, batch)[0])(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), 2 * total

    start = autoencoder.init(cfg, KEY)
    _, errors = jax.jit(
        lambda start: jax.lax.scan(step, (start, optimizer.init(start)), length=1000)
    )(start)
    assert np.min(errors) >= least
    assert errors[-1] < 1.02 * least


def test_presets_match_their_sources():
    shapes = {name: _shapes(autoencoder, cfg) for name, cfg in autoencoder.PRESETS.items()}
    count = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()
    }
    assert count["toolbox"] == 785 * 100 + 101 * 784
    assert (
        count["deep"]
        == 785 * 1000
        + 1001 * 500
        + 501 * 250
        + 251 * 30
        + 31 * 250
        + 251 * 500
        + 501 * 1000
        + 1001 * 784
    )
    assert count["stacked1000_3"] == 784 * 1000 + 2 * 1000 * 1000 + 784 + 5 * 1000
    assert {name: leaf.shape for name, leaf in shapes["deep"]["decoder_3"].items()} == {
        "kernel": (30, 250),
        "bias": (250,),
    }
    # nnsetup.m: uniform within 4 sqrt(6 / (in + out)) in absolute value.
    params, bound = autoencoder.init(autoencoder.PRESETS["toolbox"], KEY), 4 * np.sqrt(6 / 884)
    for name in ("layer_0", "decoder_0"):
        assert 0.97 * bound < np.abs(params[name]["kernel"]).max() <= bound
    assert not np.array_equal(params["layer_0"]["kernel"], params["decoder_0"]["kernel"].T)


def test_images_are_flattened_and_other_sizes_refused():
    cfg = autoencoder.Config(sizes=(12, 3))
    params = _params(autoencoder, cfg)
    images = jax.random.uniform(KEY, (2, 3, 4, 1))
    np.testing.assert_array_equal(
        autoencoder.apply(cfg, params, images),
        autoencoder.apply(cfg, params, images.reshape(2, 12)),
    )
    assert (
        autoencoder.loss(cfg, params, _batch(images))[0]
        == autoencoder.loss(cfg, params, _batch(images.reshape(2, 12)))[0]
    )
    with pytest.raises(ValueError, match=r"inputs: shape \(2, 3, 5, 1\).*sizes\[0\]=12"):
        autoencoder.apply(cfg, params, jnp.ones((2, 3, 5, 1)))
    with pytest.raises(ValueError, match=r"code: shape \(2, 4\), expected \[batch, 3\]"):
        autoencoder.decode(cfg, params, jnp.ones((2, 4)))
    conv = conv_autoencoder.PRESETS["tiny"]
    with pytest.raises(
        ValueError, match=r"code: shape \(2, 2, 1, 6\), expected \[batch, 1, 1, 6\]"
    ):
        conv_autoencoder.decode(conv, _params(conv_autoencoder, conv), jnp.ones((2, 2, 1, 6)))


_stage = Stage(features=3, pool="max")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: autoencoder.Config(sizes=(4,)),
            r"sizes=\(4,\), allowed: 2 or more positive integers",
        ),
        (
            lambda: autoencoder.Config(sizes=(4, 3), noise_level=0.3),
            "noise_level=0.3, allowed: 0 without noise; noise is one of",
        ),
        (
            lambda: autoencoder.Config(sizes=(4, 3), noise="salt_pepper", noise_level=1.0),
            "noise_level=1.0, allowed: a probability of corruption",
        ),
        (
            lambda: autoencoder.Config(sizes=(4, 3), noise="gaussian", noise_level=-1.0),
            "noise_level=-1.0, allowed: a positive number",
        ),
        (
            lambda: autoencoder.Config(sizes=(4, 3), output="linear", objective="cross_entropy"),
            "objective='cross_entropy', allowed: 'squared_error'",
        ),
        (
            lambda: conv_autoencoder.Config(shape=(8, 8, 1), stages=()),
            r"stages=\(\), allowed: one or more",
        ),
        (
            lambda: conv_autoencoder.Config(
                shape=(8, 8, 1), stages=(dataclasses.replace(_stage, padding="valid"),)
            ),
            "padding='valid', allowed: 'same'",
        ),
        (
            lambda: conv_autoencoder.Config(
                shape=(8, 8, 1), stages=(dataclasses.replace(_stage, stride=(2,)),)
            ),
            r"stride=\(2,\), allowed: 1",
        ),
        (
            lambda: conv_autoencoder.Config(
                shape=(8, 8, 1), stages=(dataclasses.replace(_stage, pool_stride=(1,)),)
            ),
            r"pool_stride=\(1,\), allowed: None, or pool_size",
        ),
        (
            lambda: conv_autoencoder.Config(
                shape=(8, 8, 1), stages=(dataclasses.replace(_stage, kernel=(3, 3, 3)),)
            ),
            r"kernel=\(3, 3, 3\), allowed: one number, or one for each of the 2 spatial axes",
        ),
        (
            lambda: conv_autoencoder.Config(shape=(8, 6, 1), stages=(_stage, _stage)),
            r"shape=\(8, 6, 1\), allowed: sizes that the windows \(2, 2\) of stage 1 divide; they "
            r"are \(4, 3\) there",
        ),
    ],
)
def test_bad_configs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
