"""Every public function refuses invalid arguments with their name, value and allowed values."""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import dbn, fcn, rbm, rnnlm
from zoo.interop import recurrent_weights
from zoo.parts import (
    attention,
    convolution,
    decode,
    language,
    layers,
    likelihood,
    matlab,
    pooling,
    recurrence,
)

KEY, KEYS = jax.random.key(0), jax.random.split(jax.random.key(0), 2)
RBM, DBN, LM = (module.PRESETS["tiny"] for module in (rbm, dbn, rnnlm))
RBM_PARAMS, DBN_PARAMS = rbm.init(RBM, KEY), dbn.init(DBN, KEY)
X, IMAGE = jnp.ones((2, 6)), jnp.ones((2, 5, 5, 1))
VOCABULARY = LM.vocabulary


def _plain(function: Any) -> Any:
    """Without the tests' run-time type checker, which would raise first."""
    return inspect.unwrap(function)


def _step(carry, tokens):
    return carry, jnp.zeros((len(tokens), 5))


def _annealed(**given: Any):
    how: dict[str, Any] = {"base": jnp.zeros(6)} | given
    return likelihood.annealed_log_partition(RBM, RBM_PARAMS, KEY, **how)


def _generate(length: Any = 3, **given):
    prompt = given.pop("prompt", jnp.zeros((2, 3), int))
    return _plain(language.generate)(rnnlm, LM, rnnlm.init(LM, KEY), prompt, length, KEYS, **given)


def _written(function, length=3, **given):
    return _plain(function)(_step, (), jnp.zeros(2, int), length, **given)


def _sampled(**given):
    return _written(decode.sample, key=KEYS, **given)


def _searched(length=3, **given):
    return _written(decode.beam_search, length, **({"end": 0, "width": 2} | given))


def _drop(rate):
    return layers.dropout(X, rate, KEYS)


def _corrupt(noise, level):
    return _plain(layers.corrupt)(X, noise, level, KEYS)


def _losses(output, objective):
    return _plain(layers.output_losses)(output, objective, X, X)


def _convolve(**given):
    return convolution.convolve(IMAGE, jnp.ones((3, 3, 1, 2)), **given)


def _pool(kind: Any = "max", window=(2, 2), **given):
    return _plain(pooling.pool)(IMAGE, kind, window, **given)


def _attention(score: Any = "dot", query=3, features=3):
    return _plain(attention.init)(score, KEY, query, features)


def _recurrence(cell: Any = "lstm", features=3, units=3, **given):
    return _plain(recurrence.init)(cell, KEY, features, units, **given)


REFUSED = [
    (lambda: _annealed(chains=1), "chains=1, allowed: an integer, 2 or more"),
    (lambda: _annealed(temperatures=0), "temperatures=0, allowed: an integer, 1 or more"),
    (lambda: _annealed(temperatures=jnp.int32(-3)), "temperatures=-3, allowed"),
    (
        lambda: _plain(likelihood.annealed_log_partition)(
            RBM, RBM_PARAMS, KEY, temperatures=10.5, base=jnp.zeros(6)
        ),
        "ures=10.5, a",
    ),
    (lambda: _annealed(base=jnp.zeros(5)), r"base: shape \(5,\), expected \[6\]"),
    (lambda: likelihood.base_rates(RBM, jnp.zeros(5)), r"means: shape \(5,\), expected \[6\]"),
    (
        lambda: likelihood.base_rates(RBM, jnp.full(6, 255.0)),
        "means: values from 255 to 255, allowed: 0 to 1",
    ),
    (
        lambda: likelihood.base_rates(RBM, jnp.full(6, jnp.nan)),
        "means: values from nan to nan, allowed: 0 to 1",
    ),
    (
        lambda: likelihood.pseudo_log_likelihood(RBM, RBM_PARAMS, jnp.zeros((2, 5))),
        r"visible: shape \(2, 5\), expected \[batch, 6\]",
    ),
    (lambda: rbm.sample(RBM, RBM_PARAMS, X, KEYS, -1), "steps=-1, allowed: an integer, 0 or more"),
    (lambda: _plain(rbm.sample)(RBM, RBM_PARAMS, X, KEYS, 2.0), "steps=2.0, allowed: an integer"),
    (lambda: rbm.fantasies(RBM, RBM_PARAMS, X, KEYS, 0), "steps=0, allowed: an integer, 1 or more"),
    (lambda: dbn.fantasies(DBN, DBN_PARAMS, X, KEYS, 0), "steps=0, allowed: an integer, 1 or more"),
    (
        lambda: dbn.down(DBN, DBN_PARAMS, jnp.zeros((2, 4)), 3),
        "machines=3, allowed: an integer, 0 to 2",
    ),
    (
        lambda: rbm.energy(RBM, RBM_PARAMS, X, jnp.zeros((1, 5))),
        r"hidden: shape \(1, 5\), expected \[2, 5\]",
    ),
    (
        lambda: _plain(rbm.mean)("binary", X),
        "units='binary', allowed: one of 'bernoulli', 'gaussian'",
    ),
    (lambda: _plain(rbm.draw)("binary", X, KEYS), "units='binary', allowed"),
    (lambda: _plain(rbm.log_normalizer)("binary", X), "units='binary', allowed"),
    (lambda: _generate(0), "length=0, allowed: an integer, 1 or more"),
    (lambda: _generate(2.5), "length=2.5, allowed"),
    (lambda: _generate(temperature=-1.0), "temperature=-1.0, allowed: a number, 0 or more"),
    (lambda: _generate(temperature=math.nan), "temperature=nan, allowed"),
    (lambda: _generate(temperature=math.inf), "temperature=inf, allowed"),
    (lambda: _generate(top_k=0), f"top_k=0, allowed: an integer, 1 to {VOCABULARY}"),
    (lambda: _generate(top_k=VOCABULARY + 1), f"top_k={VOCABULARY + 1}, allowed"),
    (
        lambda: _generate(suppressed=(-1,)),
        f"suppressed=-1, allowed: an integer, 0 to {VOCABULARY - 1}",
    ),
    (lambda: _generate(suppressed=tuple(range(VOCABULARY))), "suppressed: all 7 tokens, allowed"),
    (lambda: _generate(prompt=jnp.zeros((2, 0), int)), "prompt=0, allowed: one token or more"),
    (lambda: _written(decode.greedy, -1), "length=-1, allowed"),
    (lambda: _written(decode.greedy, end=5), "end=5, allowed: an integer, 0 to 4"),
    (lambda: _sampled(temperature=-0.5), "temperature=-0.5, allowed"),
    (lambda: _sampled(top_k=0), "top_k=0, allowed"),
    (lambda: _searched(width=0), "width=0, allowed: an integer, 1 or more"),
    (lambda: _searched(width=1.5), "width=1.5, allowed"),
    (lambda: _searched(0), "length=0, allowed"),
    (lambda: _searched(end=-1), "end=-1, allowed"),
    (lambda: _searched(length_penalty=-1.0), "length_penalty=-1.0, allowed: a number, 0 or more"),
    (lambda: _searched(length_penalty=math.nan), "length_penalty=nan, allowed"),
    (lambda: _drop(1.0), "rate=1.0, allowed: a number, 0 <= rate < 1"),
    (lambda: _drop(-0.1), "rate=-0.1, allowed"),
    (lambda: _drop(math.nan), "rate=nan, allowed"),
    (lambda: _corrupt("pepper", 0.1), "noise='pepper', allowed: one of 'none', 'mask'"),
    (lambda: _corrupt("mask", 1.5), "level=1.5, allowed: a number, 0 <= level < 1"),
    (lambda: _corrupt("gaussian", -1.0), "level=-1.0, allowed: a number, 0 or more"),
    (lambda: _plain(layers.activate)("sigmoid", X), "name='sigmoid', allowed: one of 'relu'"),
    (
        lambda: _plain(layers.output_activation)("sigmoid", X),
        "output='sigmoid', allowed: one of 'softmax'",
    ),
    (lambda: _losses("sigmoid", "cross_entropy"), "output='sigmoid', allowed"),
    (
        lambda: _losses("softmax", "mse"),
        "objective='mse', allowed: one of 'cross_entropy', 'squared_error'",
    ),
    (
        lambda: _losses("linear", "cross_entropy"),
        "objective='cross_entropy', allowed: one of 'squared_error'",
    ),
    (lambda: _plain(layers.init_layer)(KEY, (2, 3), "he"), "initializer='he', allowed"),
    (
        lambda: layers.init_layer(KEY, (2, 3), "he_normal", math.nan),
        "gain=nan, allowed: a finite number",
    ),
    (lambda: layers.uniforms(KEYS, 0), "units=0, allowed"),
    (lambda: layers.split_keys(KEYS, -1), "count=-1, allowed: an integer, 0 or more"),
    (lambda: _convolve(strides=(1, 0)), "strides=0, allowed: an integer, 1 or more"),
    (lambda: _convolve(pads=((0, -1), (0, 0))), "pads=-1, allowed: an integer, 0 or more"),
    (
        lambda: _plain(convolution.padding)("Same", (5,), (3,), (1,)),
        "kind='Same', allowed: 'valid', 'same', or a number",
    ),
    (lambda: convolution.padding(-1, (5,), (3,), (1,)), "kind=-1, allowed"),
    (lambda: _pool("min"), "kind='min', allowed: one of 'max', 'mean'"),
    (lambda: _pool(window=(2, 0)), "window=0, allowed: an integer, 1 or more"),
    (lambda: _pool(strides=(1, -1)), "strides=-1, allowed"),
    (lambda: matlab.convn(X, X, "valide"), "shape='valide', allowed: 'full', 'same', 'valid'"),
    (
        lambda: _attention("multiplicative"),
        "score='multiplicative', allowed: one of 'additive', 'dot', 'general'",
    ),
    (lambda: _attention(query=0), "query=0, allowed"),
    (
        lambda: _plain(attention.precompute_keys)(
            "dot", {}, jnp.ones((2, 3, 4)), jnp.ones((2, 1), bool)
        ),
        r"mask: shape \(2, 1\), expected",
    ),
    (lambda: _recurrence("elman"), "cell='elman', allowed: one of 'tanh'"),
    (lambda: _recurrence(units=0), "units=0, allowed"),
    (lambda: _recurrence(features=0), "features=0, allowed"),
    (lambda: _recurrence(forget_bias=math.inf), "forget_bias=inf, allowed: a finite number"),
    (lambda: _plain(recurrent_weights.from_torch)("rnn", {}), "cell='rnn', allowed"),
    (lambda: _plain(recurrent_weights.to_flax)("rnn", {}), "cell='rnn', allowed"),
    (
        lambda: recurrent_weights.from_torch("lstm", {}, -1),
        "layer=-1, allowed: an integer, 0 or more",
    ),
    (lambda: language.init_embedding(KEY, 0, 3), "vocabulary=0, allowed"),
    (
        lambda: language.init_uniform(KEY, {"a": X}, -0.1),
        "scale=-0.1, allowed: a number, 0 or more",
    ),
    (lambda: fcn.bilinear(0, 3), "axes=0, allowed"),
    (
        lambda: fcn.double(jnp.ones((3, 3, 1, 2)), IMAGE),
        r"kernel: shape \(3, 3, 1, 2\), expected \[4, 4, 1, out\]",
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_invalid_arguments_are_refused_by_name(number):
    call, message = REFUSED[number]
    with pytest.raises(ValueError, match=message):
        call()


def test_numpy_and_jax_scalars_are_accepted():
    chains: Any = np.int64(3)
    expected = likelihood.annealed_log_partition(
        RBM, RBM_PARAMS, KEY, chains=3, temperatures=4, base=jnp.zeros(6)
    )
    found = _plain(likelihood.annealed_log_partition)(
        RBM, RBM_PARAMS, KEY, chains=chains, temperatures=jnp.int32(4), base=jnp.zeros(6)
    )
    np.testing.assert_array_equal(found.log_weights, expected.log_weights)
    assert np.isfinite(found.standard_error)
    for temperature, top_k in (
        (0.5, 2),
        (np.float32(0.5), np.int64(2)),
        (jnp.float32(0.5), jnp.int32(2)),
    ):
        np.testing.assert_array_equal(
            _generate(4, temperature=temperature, top_k=top_k, suppressed=(np.int64(1),)),
            _generate(4, temperature=0.5, top_k=2, suppressed=(1,)),
        )


def test_traced_values_are_accepted():
    """Their values are unknown while a function is traced."""

    @jax.jit
    def run(temperature, steps):
        return _sampled(temperature=temperature).tokens, rbm.sample(RBM, RBM_PARAMS, X, KEYS, steps)

    written, sampled = run(0.5, 2)
    np.testing.assert_array_equal(written, _sampled(temperature=0.5).tokens)
    np.testing.assert_array_equal(sampled, rbm.sample(RBM, RBM_PARAMS, X, KEYS, 2))
