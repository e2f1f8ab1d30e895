"""Recurrent networks beyond the contract: read-out, ragged, bidirectional, pieces, dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import rnn
from zoo.parts import recurrence
from zoo.parts.layers import dense
from zoo.rnn import PRESETS, Config

KEY = jax.random.key(0)
BATCH, TIME = 4, 6
TWO = Config(inputs=3, units=(5, 4), output_units=2, cell="gru")
LENGTHS = np.array([6, 3, 1, 3])
MASK = jnp.asarray(np.arange(TIME)[None] < LENGTHS[:, None])


@functools.cache
def _params(cfg):
    return jax.jit(rnn.init)(cfg, KEY)


def _inputs(cfg, time=TIME):
    return jax.random.normal(jax.random.key(1), (BATCH, time, cfg.inputs))


def _close(actual, expected, tolerance=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


def _loss(cfg, batch, key=None, carry=()):
    """Loss with its Aux and the gradients of the parameters."""
    return _value_and_grad(cfg, _params(cfg), batch, key, carry)


@jax.jit
def _value_and_grad(cfg, params, batch, key, carry):
    return jax.value_and_grad(
        lambda params: rnn.loss(cfg, params, batch, key=key, carry=carry), has_aux=True
    )(params)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_steps_equal_unrolled_apply(cell):
    cfg = dataclasses.replace(TWO, cell=cell)
    params, inputs = _params(cfg), _inputs(cfg)
    carry = rnn.initial_carry(cfg, params, BATCH)
    after, logits = jax.jit(rnn.unroll)(cfg, params, carry, inputs)
    last = jax.jit(rnn.apply)(dataclasses.replace(cfg, read_out="last"), params, inputs)
    _close(jax.jit(rnn.apply)(cfg, params, inputs), logits, 0)
    for t in range(TIME):
        carry, y = jax.jit(rnn.step)(cfg, params, carry, inputs[:, t])
        _close(y, logits[:, t])
    _close(carry, after)
    _close(last, logits[:, -1])


def test_layers_are_stacked_recurrences():
    params, x = _params(TWO), _inputs(TWO)
    for index in range(2):
        layer = params[f"layer_{index}"]
        _, x = recurrence.unroll("gru", layer, recurrence.initial_carry("gru", layer, BATCH), x)
    _close(rnn.apply(TWO, params, _inputs(TWO)), dense(params["output"], x))


@pytest.mark.parametrize("read_out", ["each", "last"])
def test_both_directions_equal_two_passes_one_of_them_reversed(read_out):
    cfg = dataclasses.replace(TWO, bidirectional=True, cell="lstm", read_out=read_out)
    params, x = _params(cfg), _inputs(cfg)
    after, logits = jax.jit(rnn.unroll)(cfg, params, (), x, mask=MASK)

    @jax.jit
    def alone(values):
        ends = ()
        for index in range(2):
            layer, results = params[f"layer_{index}"], []
            for direction, turn in (("forward", 1), ("backward", -1)):
                start = recurrence.initial_carry("lstm", layer[direction], 1)
                results.append(
                    recurrence.unroll("lstm", layer[direction], start, values[:, ::turn])[1][
                        :, ::turn
                    ]
                )
            values, ends = jnp.concatenate(results, axis=-1), (results[0][:, -1], results[1][:, 0])
        return dense(
            params["output"], values if read_out == "each" else jnp.concatenate(ends, axis=-1)
        )[0]

    for row, length in enumerate(LENGTHS):
        expected = alone(x[row : row + 1, :length])
        _close(logits[row, :length] if read_out == "each" else logits[row], expected)
    assert after == ()
    assert rnn.init_carry(cfg, params, BATCH, key=KEY) == ()
    assert "reset" not in rnn.example_batch(cfg, KEY, BATCH)
    with pytest.raises(ValueError, match="bidirectional=True, allowed: False"):
        rnn.step(cfg, params, (), x[:, 0])
    with pytest.raises(
        ValueError, match="bidirectional=True, allowed: False, to continue from a carry"
    ):
        rnn.unroll(cfg, params, (jnp.ones((BATCH, 10)), jnp.ones((BATCH, 8))), x)


@pytest.mark.parametrize(("read_out", "bidirectional"), [("each", False), ("last", True)])
def test_ragged_sequences_count_like_each_alone(read_out, bidirectional):
    """Padding is NaN, in inputs and targets, and reaches neither loss nor gradients."""
    cfg = dataclasses.replace(TWO, read_out=read_out, output="linear", bidirectional=bidirectional)
    inputs = _inputs(cfg)
    targets = jax.random.normal(KEY, (BATCH, TIME, 2) if read_out == "each" else (BATCH, 2))
    batch = {
        "inputs": jnp.where(MASK[:, :, None], inputs, jnp.nan),
        "targets": targets,
        "mask": MASK,
    }
    if read_out == "each":
        batch["targets"] = jnp.where(MASK[:, :, None], targets, jnp.nan)
    else:  # and a row that is not there
        rows = [
            jnp.full_like(leaf[:1], 0 if leaf.dtype == bool else jnp.nan) for leaf in batch.values()
        ]
        batch = {
            name: jnp.concatenate([leaf, row])
            for (name, leaf), row in zip(batch.items(), rows, strict=True)
        }
    (total, aux), gradients = _loss(cfg, batch)
    parts = []
    for row, length in enumerate(LENGTHS):
        alone = {
            "inputs": inputs[row : row + 1, :length],
            "targets": targets[row : row + 1],
            "mask": jnp.ones((1, length), bool),
        }
        if read_out == "each":
            alone["targets"] = alone["targets"][:, :length]
        parts.append(_loss(cfg, alone))
    (expected, expected_aux), expected_gradients = jax.tree.map(
        lambda *leaves: sum(leaves),
        *[
            ((part, part_aux._replace(carry=())), part_gradients)
            for (part, part_aux), part_gradients in parts
        ],
    )
    _close((total, aux._replace(carry=())), (expected, expected_aux), 1e-5)
    _close(gradients, expected_gradients, 1e-5)
    assert aux.count == (LENGTHS.sum() if read_out == "each" else BATCH)


def test_targets_of_sequences_are_not_taken_for_those_of_steps():
    """Even if the number of outputs equals the number of steps, with any padding."""
    cfg = rnn.Config(inputs=2, units=(4,), output_units=TIME, read_out="last", output="linear")
    params, mask = _params(cfg), jnp.ones((3, TIME), bool).at[1, 1:].set(False).at[2].set(False)
    inputs, targets = _inputs(cfg)[:3], jnp.arange(3.0 * TIME).reshape(3, TIME)
    two = {"inputs": inputs[:2], "targets": targets[:2], "mask": mask[:2]}
    three = {
        "inputs": inputs.at[1, 1:].set(jnp.inf).at[2].set(jnp.nan),
        "targets": targets.at[2].set(jnp.nan),
        "mask": mask,
    }
    (expected, _), gradient = _value_and_grad(cfg, params, two, None, ())
    (found, aux), padded = _value_and_grad(cfg, params, three, None, ())
    assert aux.count == 2
    _close(found, expected)
    _close(padded, gradient, 1e-5)


def test_images_are_sequences_of_rows_and_a_mask_of_rows_is_enough():
    cfg = PRESETS["digits"]
    batch = rnn.example_batch(cfg, KEY, BATCH)
    assert batch["mask"].shape == (BATCH,)
    batch["mask"] = jnp.array([True, True, False, True])
    images = batch | {"inputs": batch["inputs"][:, :, :, None]}
    steps = batch | {"mask": jnp.broadcast_to(batch["mask"][:, None], (BATCH, 8))}
    _close(_loss(cfg, images), _loss(cfg, batch), 0)
    _close(_loss(cfg, steps), _loss(cfg, batch), 0)
    with pytest.raises(ValueError, match=r"mask: shape \(5,\), expected \[4\]"):
        rnn.loss(cfg, _params(cfg), batch | {"mask": jnp.ones(5, bool)})


def test_a_mask_of_rows_is_enough_where_every_step_is_read():
    batch = rnn.example_batch(TWO, KEY, BATCH)
    rows = jnp.array([True, True, False, True])
    steps = jnp.broadcast_to(rows[:, None], batch["mask"].shape)
    _close(_loss(TWO, batch | {"mask": rows}), _loss(TWO, batch | {"mask": steps}), 0)
    with pytest.raises(ValueError, match=r"mask: shape \(5,\), expected \[4\]"):
        rnn.loss(TWO, _params(TWO), batch | {"mask": jnp.ones(5, bool)})


def test_truncation_stops_the_gradient_but_not_the_state():
    """Truncated backpropagation through time: a piece's initial carry is a constant."""
    cfg = dataclasses.replace(TWO, cell="lstm", units=(5,))
    batch = {
        "inputs": _inputs(cfg),
        "targets": jax.random.randint(KEY, (BATCH, TIME), 0, 2),
        "mask": jnp.ones((BATCH, TIME), bool),
    }
    pieces = [
        {name: leaf[:, part] for name, leaf in batch.items()}
        for part in (slice(0, 4), slice(4, None))
    ]
    (_, aux), _ = _loss(cfg, pieces[0])
    (total, _), gradients = _loss(
        cfg, pieces[1] | {"reset": jnp.zeros(BATCH, bool)}, carry=aux.carry
    )

    def second(params):
        carry = jax.lax.stop_gradient(
            rnn.unroll(cfg, params, rnn.initial_carry(cfg, params, BATCH), pieces[0]["inputs"])[0]
        )
        logits = jax.nn.log_softmax(rnn.unroll(cfg, params, carry, pieces[1]["inputs"])[1])
        return -jnp.sum(jnp.take_along_axis(logits, pieces[1]["targets"][:, :, None], 2))

    _close((total, gradients), jax.jit(jax.value_and_grad(second))(_params(cfg)), 1e-5)
    (_, whole), _ = _loss(cfg, batch)
    (_, again), _ = _loss(
        cfg, pieces[1] | {"reset": jnp.array([False, True, False, True])}, carry=aux.carry
    )
    (_, afresh), _ = _loss(cfg, pieces[1])
    for from_carry, restarted, mixed in zip(whole.carry, afresh.carry, again.carry, strict=True):
        _close(mixed[::2], from_carry[::2])
        _close(mixed[1::2], restarted[1::2])
    through_carry = jax.jit(
        jax.grad(
            lambda params: sum(jnp.sum(leaf) for leaf in rnn.loss(cfg, params, batch)[1].carry)
        )
    )
    assert not any(leaf.any() for leaf in jax.tree.leaves(through_carry(_params(cfg))))


def test_dropout_applies_between_layers_not_to_the_carry():
    cfg = Config(inputs=3, units=(32,), output_units=2, cell="rnn", dropout=0.5)
    params, inputs = _params(cfg), _inputs(cfg)
    start = rnn.initial_carry(cfg, params, BATCH)
    run = jax.jit(jax.vmap(lambda keys: rnn.unroll(cfg, params, start, inputs, key=keys)))
    carry, logits = run(jax.random.split(KEY, (2000, BATCH)))
    expected_carry, expected = rnn.unroll(cfg, params, start, inputs)
    np.testing.assert_allclose(
        carry[0], jnp.broadcast_to(expected_carry[0], carry[0].shape), rtol=1e-5, atol=1e-6
    )
    error = np.std(logits, axis=0) / np.sqrt(2000)
    assert (error > 0).all()
    np.testing.assert_array_less(np.abs(np.mean(logits, axis=0) - expected), 5 * error)


@pytest.mark.parametrize("read_out", ["each", "last"])
def test_dropout_applies_to_layer_inputs_and_read_out(read_out):
    plain = dataclasses.replace(TWO, read_out=read_out)
    keys = jax.random.split(KEY, BATCH)
    apply = jax.jit(rnn.apply)
    expected = apply(plain, _params(plain), _inputs(plain), key=keys)
    for rates in ({"input_dropout": 0.5}, {"dropout": 0.5}):
        cfg = dataclasses.replace(plain, **rates)
        assert not np.allclose(apply(cfg, _params(plain), _inputs(cfg), key=keys), expected)
        _close(apply(cfg, _params(plain), _inputs(cfg)), expected, 0)


def test_rematerialisation_changes_nothing():
    cfg = PRESETS["tiny"]
    batch = rnn.example_batch(cfg, KEY, BATCH)
    keys = jax.random.split(KEY, BATCH)
    again = dataclasses.replace(cfg, remat=True)
    _close(_loss(again, batch, key=keys), _loss(cfg, batch, key=keys), 1e-5)


def test_trace_names_gates_of_every_layer_and_direction():
    cfg = dataclasses.replace(TWO, cell="lstm", bidirectional=True)
    logits, seen = rnn.trace(cfg, _params(cfg), _inputs(cfg))
    names = {
        f"{direction}_{name}_{index}"
        for direction in ("forward", "backward")
        for index in range(2)
        for name in (*recurrence.GATES["lstm"], "cell")
    }
    assert set(seen) == names | {"hidden_0", "hidden_1", "logits", "outputs"}
    _close(seen["outputs"], jax.nn.softmax(logits))
    for direction, units in (("forward", slice(0, 4)), ("backward", slice(4, None))):
        _close(
            seen[f"{direction}_output_1"] * jnp.tanh(seen[f"{direction}_cell_1"]),
            seen["hidden_1"][:, :, units],
        )
    _, seen = rnn.trace(TWO, _params(TWO), _inputs(TWO))
    assert {"reset_0", "update_1", "hidden_0"} < set(seen)


def test_presets_have_the_sizes_of_their_names():
    sizes = {
        name: sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(lambda cfg=cfg: rnn.init(cfg, KEY)))
        )
        for name, cfg in PRESETS.items()
    }
    gate, read = 2 * 64 + 64 * 64 + 64, 64 + 1
    assert sizes["adding_rnn"] == gate + read
    assert sizes["adding_lstm"] == 4 * gate + read
    assert sizes["adding_gru"] == 3 * gate + 64 + read
    assert sizes["digits"] == 4 * (8 * 128 + 128 * 128 + 128) + 128 * 10 + 10


@pytest.mark.parametrize(
    ("field", "overrides"),
    [
        ("activation", {"cell": "lstm", "activation": "relu"}),
        ("objective", {"output": "linear", "objective": "cross_entropy"}),
        ("units", {"units": ()}),
        ("cell", {"cell": "mgu"}),
        ("forget_bias", {"forget_bias": float("inf")}),
    ],
)
def test_invalid_configs_name_the_field(field, overrides):
    config = object.__new__(Config)
    for other in dataclasses.fields(Config):
        object.__setattr__(config, other.name, overrides.get(other.name, getattr(TWO, other.name)))
    with pytest.raises(ValueError, match=rf"{field}=.*allowed"):
        config.__post_init__()


def test_wrong_target_shapes_name_the_expected_shape():
    batch = rnn.example_batch(TWO, KEY, BATCH)
    for targets in (batch["targets"][:, 0], jnp.zeros((BATCH, 8, 3))):
        with pytest.raises(ValueError, match=r"targets: shape .*expected \[4, 8"):
            rnn.loss(TWO, _params(TWO), batch | {"targets": targets})
    with pytest.raises(
        ValueError, match=r"inputs: shape .*expected \[batch, time, \.\.\.\] with inputs=3"
    ):
        rnn.apply(TWO, _params(TWO), jnp.zeros((BATCH, 3)))
