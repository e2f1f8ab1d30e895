"""The MLP against equations by hand, and against a transcription of the Matlab toolbox."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import train
import zoo
from train.engine.step import init_state, make_step
from zoo import mlp
from zoo.parts import layers

KEY = jax.random.key(0)
INIT, BATCH = jax.jit(mlp.init), jax.jit(mlp.example_batch, static_argnums=2)
GRADIENT = jax.jit(jax.value_and_grad(mlp.loss, argnums=1, has_aux=True))


def _batch(cfg, size=5, seed=1):
    return BATCH(cfg, jax.random.key(seed), size)


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "lecun_tanh"])
@pytest.mark.parametrize("output", ["softmax", "logistic", "linear"])
@pytest.mark.usefixtures("x64")
def test_gradients_equal_the_review_equations(activation, output):
    """Figure 1: z = W x, y = f(z); dE/dy of a layer is W^T dE/dz of the next, dE/dz = f'(z) dE/dy.

    For each output's natural loss the error at the logits is output - target.
    """
    cfg = mlp.Config(sizes=(4, 6, 5, 3), activation=activation, output=output)
    params, batch = INIT(cfg, KEY), _batch(cfg)
    f, slope = {
        "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
        "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
        "logistic": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
        "lecun_tanh": (
            lambda z: 1.7159 * np.tanh(2 * z / 3),
            lambda z: 1.7159 * 2 / 3 * (1 - np.tanh(2 * z / 3) ** 2),
        ),
    }[activation]
    layer_params = [jax.tree.map(np.asarray, params[f"layer_{index}"]) for index in range(3)]
    y, zs = [np.asarray(batch["inputs"])], []
    for layer in layer_params:
        zs.append(y[-1] @ layer["kernel"] + layer["bias"])
        y.append(f(zs[-1]))
    out = {
        "softmax": lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True),
        "logistic": lambda z: 1 / (1 + np.exp(-z)),
        "linear": lambda z: z,
    }[output](zs[-1])
    targets = (
        np.asarray(batch["targets"])
        if output == "linear"
        else np.eye(3)[np.asarray(batch["targets"])]
    )
    error = {
        "softmax": lambda: -np.sum(targets * np.log(out)),
        "logistic": lambda: -np.sum(targets * np.log(out) + (1 - targets) * np.log(1 - out)),
        "linear": lambda: 0.5 * np.sum((out - targets) ** 2),
    }[output]()
    delta = out - targets
    expected = {}
    for index in (2, 1, 0):
        expected[f"layer_{index}"] = {"kernel": y[index].T @ delta, "bias": delta.sum(0)}
        if index:
            delta = (delta @ layer_params[index]["kernel"].T) * slope(zs[index - 1])

    (total, _), gradients = GRADIENT(cfg, params, batch)
    np.testing.assert_allclose(total, error, rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), gradients, expected
    )


def _toolbox_epoch(weights, x, targets, *, rate, momentum, l2, activation, batch):
    """nntrain.m etc. in numpy; logistic outputs, squared error.  weights [out, 1 + in]."""
    f, slope_of_y = {
        "lecun_tanh": (
            lambda z: 1.7159 * np.tanh(2 / 3 * z),
            lambda y: 1.7159 * 2 / 3 * (1 - (y / 1.7159) ** 2),
        ),
        "logistic": (lambda z: 1 / (1 + np.exp(-z)), lambda y: y * (1 - y)),
    }[activation]
    velocity = [np.zeros_like(w) for w in weights]
    for start in range(0, len(x), batch):
        a = [np.insert(x[start : start + batch], 0, 1, axis=1)]
        a.append(np.insert(f(a[0] @ weights[0].T), 0, 1, axis=1))
        out = 1 / (1 + np.exp(-(a[1] @ weights[1].T)))
        d_out = -(targets[start : start + batch] - out) * out * (1 - out)
        d_hidden = (d_out @ weights[1])[:, 1:] * slope_of_y(a[1])[:, 1:]
        for index, (delta, below) in enumerate(((d_hidden, a[0]), (d_out, a[1]))):
            gradient = delta.T @ below / len(delta)
            gradient = gradient + l2 * np.insert(weights[index][:, 1:], 0, 0, axis=1)
            velocity[index] = momentum * velocity[index] + rate * gradient
            weights[index] = weights[index] - velocity[index]
    return weights


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("preset", "l2"), [("toolbox", 0.0), ("toolbox", 1e-2), ("toolbox_logistic", 0.0)]
)
def test_toolbox_updates_equal_the_matlab_code(preset, l2):
    cfg = dataclasses.replace(mlp.PRESETS[preset], sizes=(7, 6, 4))
    recipe = train.RECIPES["mlp-toolbox"]
    optimizer = dataclasses.replace(recipe.optimizer, l2=l2)
    transformation = optimizer.build(10, 10)
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(30, 7)), rng.integers(0, 4, 30)
    state = jax.jit(lambda key: init_state(mlp, cfg, transformation, key, 10))(KEY)
    weights = [
        np.insert(np.asarray(state.params[f"layer_{index}"]["kernel"]).T, 0, 0, axis=1)
        for index in range(2)
    ]
    step = jax.jit(make_step(mlp, cfg, transformation))
    for start in range(0, 30, 10):
        batch = {
            "inputs": x[start : start + 10],
            "targets": labels[start : start + 10],
            "mask": np.ones(10, bool),
        }
        state, _ = step(state, jax.tree.map(jnp.asarray, batch), KEY)
    weights = _toolbox_epoch(
        weights,
        x,
        np.eye(4)[labels],
        rate=2.0,
        momentum=0.5,
        l2=l2,
        activation=cfg.activation,
        batch=10,
    )
    for index, weight in enumerate(weights):
        layer = state.params[f"layer_{index}"]
        np.testing.assert_allclose(layer["kernel"], weight[:, 1:].T, rtol=1e-9)
        np.testing.assert_allclose(layer["bias"], weight[:, 0], rtol=1e-9, atol=1e-12)


def test_toolbox_initialisation_has_the_matlab_range():
    """nnsetup.m: uniform within 4 sqrt(6 / (in + out)) in absolute value."""
    params = mlp.init(mlp.PRESETS["toolbox"], KEY)
    for inputs, outputs, layer in ((784, 100, "layer_0"), (100, 10, "layer_1")):
        bound = 4 * np.sqrt(6 / (inputs + outputs))
        kernel = np.asarray(params[layer]["kernel"])
        assert 0.97 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)


def test_dropout_rate_is_the_probability_of_dropping_and_keeps_the_expectation():
    x = jnp.ones((4000, 50))
    dropped = layers.dropout(x, 0.2, jax.random.split(KEY, 4000))
    np.testing.assert_allclose(jnp.mean(dropped == 0), 0.2, atol=0.005)
    np.testing.assert_allclose(jnp.unique(dropped), [0, 1.25], rtol=1e-6)
    np.testing.assert_allclose(dropped.mean(0), 1, atol=0.04)
    assert layers.dropout(x, 0.2, None) is x


def test_evaluation_equals_the_expected_activation():
    """For a linear model the mean over masks equals the deterministic output exactly."""
    cfg = mlp.Config(
        sizes=(6, 8, 2), activation="linear", output="linear", input_dropout=0.3, dropout=0.5
    )
    params, batch = mlp.init(cfg, KEY), _batch(cfg, 1)
    inputs = jnp.repeat(batch["inputs"], 20_000, axis=0)
    samples = mlp.apply(cfg, params, inputs, key=jax.random.split(KEY, 20_000))
    error = 5 * samples.std(0) / np.sqrt(20_000)
    np.testing.assert_array_less(
        np.abs(samples.mean(0) - mlp.apply(cfg, params, batch["inputs"])[0]), error
    )


def test_dropout_masks_hidden_units_and_inputs_separately():
    cfg = mlp.Config(sizes=(50, 60, 3), dropout=0.5, activation="logistic")
    params, inputs = mlp.init(cfg, KEY), jnp.ones((1, 50))
    plain = mlp.apply(dataclasses.replace(cfg, dropout=0.0), params, inputs, key=KEY[None])
    np.testing.assert_array_equal(plain, mlp.apply(cfg, params, inputs))
    assert not np.array_equal(plain, mlp.apply(cfg, params, inputs, key=KEY[None]))


def test_squared_error_of_classes_uses_one_hot_targets():
    cfg = mlp.Config(sizes=(4, 3), output="softmax", objective="squared_error")
    params, batch = mlp.init(cfg, KEY), _batch(cfg)
    total, aux = mlp.loss(cfg, params, batch)
    probabilities = jax.nn.softmax(mlp.apply(cfg, params, batch["inputs"]))
    np.testing.assert_allclose(
        total, 0.5 * np.sum((probabilities - np.eye(3)[batch["targets"]]) ** 2), rtol=1e-6
    )
    correct, count = aux.metrics["accuracy"]
    assert count == 5
    assert correct == np.sum(np.argmax(probabilities, -1) == np.asarray(batch["targets"]))


def test_probability_targets_equal_the_classes_they_concentrate_on():
    for output in ("softmax", "logistic"):
        cfg = mlp.Config(sizes=(4, 3), output=output)
        params, batch = mlp.init(cfg, KEY), _batch(cfg)
        soft = {**batch, "targets": jax.nn.one_hot(batch["targets"], 3)}
        np.testing.assert_allclose(
            mlp.loss(cfg, params, soft)[0], mlp.loss(cfg, params, batch)[0], rtol=1e-6
        )


def test_images_are_flattened_and_other_sizes_refused():
    cfg = mlp.Config(sizes=(12, 3))
    params = mlp.init(cfg, KEY)
    images = jax.random.normal(KEY, (2, 3, 4, 1))
    np.testing.assert_array_equal(
        mlp.apply(cfg, params, images), mlp.apply(cfg, params, images.reshape(2, 12))
    )
    with pytest.raises(ValueError, match=r"inputs: shape \(2, 3, 5, 1\).*sizes\[0\]=12"):
        mlp.apply(cfg, params, jnp.ones((2, 3, 5, 1)))


def test_presets_match_their_sources():
    count = {
        name: sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(lambda cfg=cfg: mlp.init(cfg, KEY)))
        )
        for name, cfg in mlp.PRESETS.items()
    }
    assert count["toolbox"] == 785 * 100 + 101 * 10
    assert count["tanh500"] == 785 * 500 + 501 * 10
    assert count["dropout1024x3"] == 785 * 1024 + 2 * 1025 * 1024 + 1025 * 10


def test_registry_creates_overrides_and_suggests():
    module, cfg = zoo.create("mlp/tanh500", dropout=0.5, sizes=(784, 30, 10))
    assert module is mlp
    assert cfg == dataclasses.replace(mlp.PRESETS["tanh500"], dropout=0.5, sizes=(784, 30, 10))
    assert zoo.list_models("mlp/tool*") == [
        "mlp/toolbox",
        "mlp/toolbox_dropout",
        "mlp/toolbox_logistic",
        "mlp/toolbox_softmax",
    ]
    with pytest.raises(ValueError, match="did you mean mlp/tanh500"):
        zoo.create("mlp/tanh50")
    with pytest.raises(ValueError, match="no field 'droput'; fields: sizes, activation"):
        zoo.create("mlp/tiny", droput=0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": (4,)}, r"sizes=\(4,\), allowed: 2 or more positive integers"),
        ({"sizes": (4, 0)}, "sizes"),
        (
            {"sizes": (4, 3), "dropout": 1.0},
            "dropout=1.0, allowed: a probability of dropping, 0 <= rate < 1",
        ),
        (
            {"sizes": (4, 3), "output": "linear", "objective": "cross_entropy"},
            "objective='cross_entropy', allowed: 'squared_error'",
        ),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        mlp.Config(**fields)


def test_params_work_with_any_optax_transformation():
    cfg = mlp.PRESETS["tiny"]
    params, batch = INIT(cfg, KEY), _batch(cfg)
    optimizer = optax.masked(
        optax.adamw(1e-2), {"layer_0": True, "layer_1": False, "layer_2": True}
    )

    @jax.jit
    def update(params):
        gradients = jax.grad(lambda params: mlp.loss(cfg, params, batch)[0])(params)
        return optax.apply_updates(
            params, optimizer.update(gradients, optimizer.init(params), params)[0]
        )

    assert jax.tree.structure(update(params)) == jax.tree.structure(params)
