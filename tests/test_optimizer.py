"""Optimizers as data, against plain numpy update rules."""

import dataclasses
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from train.engine.member import Member
from train.engine.optimizer import Optimizer, project_max_norm, trained
from zoo import mlp

PARAMS: Any = {
    "layer": {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([1.0, -1.0])}
}


def _updates(optimizer, gradients, params=PARAMS, *, total=100, per_epoch=10, factor=1.0):
    transformation = optimizer.build(total, per_epoch)
    state = transformation.init(params)
    history = []
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params, factor=jnp.float32(factor))
        params = jax.tree.map(jnp.add, params, updates)
        history.append(params)
    return history


def _random_gradients(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), PARAMS)
        for _ in range(count)
    ]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_momentum_l2_equals_the_textbook_loop(nesterov):
    """v <- mu v + g, w <- w - lr v; Nesterov: w <- w - lr (g + mu v), as in optax and torch."""
    optimizer = Optimizer(learning_rate=0.1, momentum=0.8, nesterov=nesterov, l2=0.3)
    gradients = _random_gradients(5)
    w = jax.tree.map(np.asarray, PARAMS)["layer"]
    v = jax.tree.map(np.zeros_like, w)
    for gradient, after in zip(gradients, _updates(optimizer, gradients), strict=True):
        g = jax.tree.map(np.asarray, gradient)["layer"]
        g = {
            "kernel": g["kernel"] + 0.3 * w["kernel"],
            "bias": g["bias"],
        }  # the penalty is for kernels only
        v = {name: 0.8 * v[name] + g[name] for name in w}
        w = {name: w[name] - 0.1 * (g[name] + 0.8 * v[name] if nesterov else v[name]) for name in w}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after["layer"], w)


def test_decoupled_weight_decay_takes_rate_times_decay_off_kernels_only():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    for optimizer in (Optimizer(name="sgd"), Optimizer(name="adam"), Optimizer(name="rmsprop")):
        (after,) = _updates(
            dataclasses.replace(optimizer, learning_rate=0.5, weight_decay=0.1), [zero]
        )
        np.testing.assert_allclose(
            after["layer"]["kernel"], PARAMS["layer"]["kernel"] * 0.95, rtol=1e-6
        )
        np.testing.assert_array_equal(after["layer"]["bias"], PARAMS["layer"]["bias"])


def test_adam_and_rmsprop_first_steps_have_the_size_of_the_rate():
    """The first step of Adam is lr sign(g); RMSprop's is lr g / sqrt(0.1 g^2)."""
    (gradient,) = _random_gradients(1)
    for optimizer, size in (
        (Optimizer(name="adam"), 0.01),
        (Optimizer(name="rmsprop"), 0.01 / np.sqrt(0.1)),
    ):
        (after,) = _updates(dataclasses.replace(optimizer, learning_rate=0.01), [gradient])
        jax.tree.map(
            lambda a, p, g, size=size: np.testing.assert_allclose(
                a - p, -size * np.sign(g), rtol=1e-2
            ),
            after,
            PARAMS,
            gradient,
        )


def test_clipping_bounds_the_global_norm_and_leaves_small_gradients_alone():
    (gradient,) = _random_gradients(1)
    norm = float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))))
    for bound, factor in ((0.5 * norm, 0.5), (2 * norm, 1.0)):
        (after,) = _updates(Optimizer(learning_rate=1.0, momentum=0.0, clip_norm=bound), [gradient])
        jax.tree.map(
            lambda a, p, g, f=factor: np.testing.assert_allclose(
                p - a, f * g, rtol=1e-4, atol=1e-6
            ),
            after,
            PARAMS,
            gradient,
        )


def test_the_factor_scales_the_step():
    (gradient,) = _random_gradients(1)
    (full,), (half,) = (_updates(Optimizer(), [gradient], factor=factor) for factor in (1.0, 0.5))
    jax.tree.map(
        lambda h, f, p: np.testing.assert_allclose(h - p, (f - p) / 2, rtol=1e-5, atol=1e-7),
        half,
        full,
        PARAMS,
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.05, 5.0), st.sampled_from([(3, 4), (2, 3, 2, 5)]))
def test_max_norm_is_the_projection_on_the_ball(seed, bound, shape):
    """Incoming weights are projected on the bound, keeping direction (Srivastava et al. 5.1)."""
    rng = np.random.default_rng(seed)
    params: Any = {
        "kernel": jnp.asarray(rng.normal(size=shape), jnp.float32),
        "bias": jnp.full(shape[-1], 9.0),
    }
    step = {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32), "bias": jnp.ones(shape[-1])}
    projection = project_max_norm(bound)
    updates: Any = projection.update(step, projection.init(params), params)[0]
    moved = np.asarray(params["kernel"] + step["kernel"]).reshape(-1, shape[-1])
    after = np.asarray(params["kernel"] + updates["kernel"]).reshape(-1, shape[-1])
    norms = np.linalg.norm(moved, axis=0)
    np.testing.assert_allclose(
        after, moved * np.minimum(1, bound / norms)[None], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(updates["bias"], step["bias"])


def test_schedules_take_their_named_values():
    def rate(step, **fields):
        return np.asarray(Optimizer(learning_rate=1.0, **fields).rate(100, 10)(step)).item()

    assert rate(0) == rate(99) == 1
    assert rate(29, schedule="step", decay=0.1, decay_every=3) == 1
    assert rate(30, schedule="step", decay=0.1, decay_every=3) == pytest.approx(0.1)
    assert rate(60, schedule="step", decay=0.1, decay_every=3) == pytest.approx(0.01)
    assert rate(50, schedule="exponential", decay=0.01) == pytest.approx(0.1)
    assert rate(50, schedule="linear", decay=0.0) == pytest.approx(0.5)
    assert rate(50, schedule="cosine", decay=0.0) == pytest.approx(0.5)
    assert rate(100, schedule="cosine", decay=0.2) == pytest.approx(0.2)
    assert [rate(step, warmup=1) for step in (0, 5, 10, 99)] == pytest.approx([0, 0.5, 1, 1])


def test_momentum_rises_linearly_over_its_epochs():
    """0.5 to 0.9 over two epochs of ten steps (Hinton's guide for RBMs), on constant gradients."""
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    history = _updates(
        Optimizer(learning_rate=1.0, momentum=0.9, momentum_start=0.5, momentum_epochs=2),
        [ones] * 25,
    )
    bias = [1.0] + [float(after["layer"]["bias"][0]) for after in history]
    velocity = -np.diff(bias)
    mu = (velocity[1:] - 1) / velocity[:-1]
    np.testing.assert_allclose(mu, np.minimum(0.5 + 0.4 * np.arange(1, 25) / 20, 0.9), atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("momentum_start", -0.1),
        ("l2", -1.0),
        ("decay", 0.0),
        ("decay", 1.5),
        ("clip_norm", 0.0),
        ("max_norm", -2.0),
        ("plateau_factor", 0.0),
        ("warmup", -1.0),
        ("weight_decay", float("inf")),
        ("plateau_patience", 0),
    ],
)
def test_bad_values_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"optimizer: {field}=.*allowed"):
        dataclasses.replace(Optimizer(), **{field: value})


# ---------------------------------------------------------------- a part of the parameters

DEEP: Any = {
    name: jax.tree.map(lambda leaf, by=by: leaf * by, PARAMS["layer"])
    for name, by in (("layer_1", 1.0), ("layer_11", 2.0), ("head", -1.0))
}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("layer_1.*",), {"layer_1.kernel", "layer_1.bias"}),
        (("layer_1*",), {"layer_1.kernel", "layer_1.bias", "layer_11.kernel", "layer_11.bias"}),
        (("*.bias", "head.kernel"), {"layer_1.bias", "layer_11.bias", "head.bias", "head.kernel"}),
        (("layer_?.kernel",), {"layer_1.kernel"}),
        (("*",), {f"{layer}.{leaf}" for layer in DEEP for leaf in ("kernel", "bias")}),
        (("!layer_1*",), {"head.kernel", "head.bias"}),
        (("*.bias", "!head.*"), {"layer_1.bias", "layer_11.bias"}),
    ],
)
def test_patterns_select_trained_parameters(patterns, expected):
    flags = trained(DEEP, patterns)
    assert {
        f"{layer}.{leaf}"
        for layer, leaves in flags.items()
        for leaf, flag in leaves.items()
        if flag
    } == expected


@pytest.mark.parametrize("pattern", ["layer_2.*", "Layer_1.*", "layer_1", "kernel", ""])
def test_unmatched_pattern_lists_the_parameters(pattern):
    optimizer = Optimizer(only=("head.*", pattern))
    with pytest.raises(
        ValueError,
        match=rf"optimizer: only='{pattern.replace('*', '[*]')}', allowed: patterns of "
        rf".*layer_11.kernel",
    ):
        optimizer.build(10, 5).init(DEEP)


def test_freezing_all_parameters_is_an_error():
    with pytest.raises(
        ValueError,
        match=r"only='layer_1\.\* !layer_\*', which leaves nothing to train of .*layer_11.kernel",
    ):
        Optimizer(only=("layer_1.*", "!layer_*")).build(10, 5).init(DEEP)


@pytest.mark.parametrize(
    "fields",
    [
        {"l2": 0.3},
        {"weight_decay": 0.2, "nesterov": True},
        {"max_norm": 0.5},
        {"momentum_start": 0.5, "momentum_epochs": 1.0, "l2": 0.1},
        {"name": "adam", "weight_decay": 0.2, "clip_norm": 0.1},
        {"name": "rmsprop", "l2": 0.3, "warmup": 0.5, "schedule": "cosine"},
    ],
)
def test_frozen_parameters_are_unchanged_and_do_not_affect_the_rest(fields):
    """Neither weight decay nor the clipped norm may include frozen leaves."""
    rng = np.random.default_rng(1)
    gradients = [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), DEEP)
        for _ in range(4)
    ]
    optimizer = Optimizer(learning_rate=0.1, **fields)
    history = _updates(
        dataclasses.replace(optimizer, only=("layer_1.*",)), gradients, DEEP, factor=0.5
    )
    alone = _updates(
        optimizer,
        [{"layer_1": each["layer_1"]} for each in gradients],
        {"layer_1": DEEP["layer_1"]},
        factor=0.5,
    )
    for after, expected in zip(history, alone, strict=True):
        for name in ("layer_11", "head"):
            jax.tree.map(np.testing.assert_array_equal, after[name], DEEP[name])
        jax.tree.map(np.testing.assert_array_equal, after["layer_1"], expected["layer_1"])
    assert not np.array_equal(history[-1]["layer_1"]["kernel"], DEEP["layer_1"]["kernel"])


def test_training_a_part_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    """The checkpoint holds the moments of that part, and the recipe in the folder its patterns."""
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {
        "inputs": rng.normal(size=(24, 4)).astype(np.float32),
        "targets": rng.integers(0, 3, 24),
    }
    cfg = mlp.Config(sizes=(4, 5, 3))
    start = mlp.init(cfg, jax.random.key(7))

    def fit(out=None):
        optimizer = Optimizer(name="adam", learning_rate=0.05, l2=0.1, only=("layer_1.*",))
        settings: dict[str, Any] = {
            "batch_size": 8,
            "steps": 12,
            "eval_every": 1,
            "steps_per_dispatch": 3,
        }
        return train.fit(
            mlp,
            cfg,
            data,
            validation=data,
            params=start,
            out=out,
            optimizer=optimizer,
            select_by="loss",
            select_mode="min",
            **settings,
        )

    expected, recorded = fit(), Member.record

    def record(self, line):
        recorded(self, line)
        if line["step"] >= 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Member, "record", record)
    stopped = fit(tmp_path)
    assert not stopped.complete
    monkeypatch.undo()
    resumed = fit(tmp_path)
    assert resumed.complete
    jax.tree.map(np.testing.assert_array_equal, resumed.state, expected.state)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params["layer_0"], start["layer_0"])
    for leaves in zip(
        *(
            jax.tree.leaves(each["layer_1"])
            for each in (resumed.state.params, stopped.state.params, start)
        ),
        strict=True,
    ):
        assert len({np.asarray(leaf).tobytes() for leaf in leaves}) == 3
