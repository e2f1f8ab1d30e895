"""The CTC network: the layers of zoo.rnn, any length, and while someone is speaking."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import ctc, rnn
from zoo.base import Aux

TINY = ctc.PRESETS["tiny"]
FORWARD = dataclasses.replace(TINY, bidirectional=False, units=(5, 4))
KEY = jax.random.key(0)
apply, unroll, step, loss = (jax.jit(each) for each in (ctc.apply, ctc.unroll, ctc.step, ctc.loss))


@pytest.mark.parametrize("cfg", [TINY, FORWARD], ids=["both directions", "forward"])
def test_the_network_is_a_recurrent_network_on_stacked_frames(cfg):
    params = ctc.init(cfg, KEY)
    other = rnn.Config(
        inputs=cfg.stack * cfg.features,
        units=cfg.units,
        output_units=cfg.vocabulary,
        bidirectional=cfg.bidirectional,
    )
    frames = jax.random.normal(KEY, (2, 8, cfg.features))
    logits = apply(cfg, params, {"frames": frames, "lengths": jnp.array([8, 8])})
    expected = jax.jit(rnn.apply)(other, params, frames.reshape(2, 8 // cfg.stack, -1))
    np.testing.assert_allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize("cfg", [TINY, FORWARD], ids=["both directions", "forward"])
def test_a_padded_recording_has_the_outputs_of_the_recording_alone(cfg):
    params = ctc.init(cfg, KEY)
    frames = jax.random.normal(KEY, (3, 11, cfg.features))
    lengths = jnp.array([11, 6, 3])
    padded = jnp.where(jnp.arange(11)[None, :, None] < lengths[:, None, None], frames, jnp.nan)
    together = apply(cfg, params, {"frames": padded, "lengths": lengths})
    for row, length in enumerate(lengths.tolist()):
        one = {"frames": frames[row, None, :length], "lengths": lengths[row, None]}
        alone = apply(cfg, params, one)
        steps = ctc.steps_of(cfg, lengths)[row]
        assert alone.shape[1] == steps
        np.testing.assert_allclose(together[row, :steps], alone[0], atol=1e-6)


def test_a_forward_network_transcribes_in_pieces_with_the_same_result():
    params = ctc.init(FORWARD, KEY)
    frames = jax.random.normal(KEY, (2, 14, FORWARD.features))
    whole = apply(FORWARD, params, {"frames": frames, "lengths": jnp.array([14, 14])})
    carry, parts = ctc.initial_carry(FORWARD, params, 2), []
    for piece in (frames[:, :4], frames[:, 4:10], frames[:, 10:]):
        carry, logits = unroll(FORWARD, params, carry, piece)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-6)
    carry = ctc.initial_carry(FORWARD, params, 2)
    for index in range(7):
        carry, logits = step(FORWARD, params, carry, frames[:, 2 * index : 2 * index + 2])
        np.testing.assert_allclose(logits, whole[:, index], atol=1e-6)


def test_a_bidirectional_network_needs_the_whole_recording():
    params = ctc.init(TINY, KEY)
    carry = ctc.initial_carry(FORWARD, ctc.init(FORWARD, KEY), 1)
    with pytest.raises(ValueError, match="bidirectional=True, allowed: False, to continue from a"):
        ctc.unroll(TINY, params, carry, jnp.zeros((1, 4, 3)))
    with pytest.raises(ValueError, match="bidirectional=True, allowed: False, to compute single"):
        ctc.step(TINY, params, (), jnp.zeros((1, 2, 3)))


def test_recordings_whose_labels_do_not_fit_are_counted_and_change_nothing():
    params, batch = ctc.init(TINY, KEY), ctc.example_batch(TINY, KEY, 4)
    batch["targets"] = batch["targets"].at[0].set(1)
    batch["mask"] = batch["mask"].at[0].set(True)
    short = {
        **batch,
        "inputs": {**batch["inputs"], "lengths": batch["inputs"]["lengths"].at[0].set(4)},
    }
    total, aux = loss(TINY, params, short)
    rest = jax.tree.map(lambda leaf: leaf[1:], batch)
    expected, others = loss(TINY, params, rest)
    assert isinstance(aux, Aux)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert aux.count == others.count
    assert tuple(map(int, aux.metrics["unaligned"])) == (1, 4)
    assert tuple(map(int, others.metrics["unaligned"])) == (0, 3)


def test_label_error_is_measured_in_evaluation_only():
    params, batch = ctc.init(TINY, KEY), ctc.example_batch(TINY, KEY, 4)
    keys = jax.random.split(KEY, 4)
    assert set(loss(TINY, params, batch, key=keys)[1].metrics) == {"unaligned"}
    errors, count = loss(TINY, params, batch)[1].metrics["label_error"]
    assert count == batch["mask"].sum()
    assert 0 < errors <= count


def test_a_vocabulary_needs_a_label_beside_the_blank():
    with pytest.raises(ValueError, match="vocabulary=1, allowed: 2 or more, the blank and a label"):
        dataclasses.replace(TINY, vocabulary=1)
