"""Convolution and pooling against numpy loops with Matlab's semantics; fast forms against XLA's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from zoo.parts import layers
from zoo.parts.convolution import (
    FORMULATIONS,
    PASSES,
    choose,
    convolve,
    costs,
    definition,
    fast,
    formulate,
    geometry,
    padding,
)
from zoo.parts.pooling import pool

KEY = jax.random.key(0)


def _convn(a, b, shape):
    """Matlab's ``convn`` of two arrays of equal rank by definition: the second one is reversed."""
    full = np.zeros([m + n - 1 for m, n in zip(a.shape, b.shape, strict=True)])
    for position in itertools.product(*map(range, a.shape)):
        for offset in itertools.product(*map(range, b.shape)):
            full[tuple(np.add(position, offset))] += a[position] * b[offset]
    if shape == "full":
        return full
    return full[tuple(slice(n - 1, m) for m, n in zip(a.shape, b.shape, strict=True))]


def _reverse(a):
    return np.flip(a)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("space", "window"), [((7,), (3,)), ((6, 5), (3, 2)), ((4, 4, 3), (2, 3, 2)), ((6, 6), (3, 3))]
)
def test_convolution_and_its_gradients_equal_matlab(space, window):
    """cnnff.m and cnnbp.m: z_j = sum_i convn(x_i, k_ij, 'valid');
    dE/dx_i = sum_j convn(d_j, reversed k_ij, 'full'), and
    dE/dk_ij = convn(reversed x_i, d_j, 'valid'), reversed as the kernel is (the review slides' EQ1
    and EQ2)."""
    rng = np.random.default_rng(0)
    x, matlab_kernel = rng.normal(size=(2, *space, 2)), rng.normal(size=(*window, 2, 3))
    z = [
        [
            sum(_convn(x[n, ..., i], matlab_kernel[..., i, j], "valid") for i in range(2))
            for j in range(3)
        ]
        for n in range(2)
    ]
    kernel = layers.flip(jnp.asarray(matlab_kernel))
    result, backward = jax.vjp(jax.jit(convolve), jnp.asarray(x), kernel)
    np.testing.assert_allclose(result, np.moveaxis(np.array(z), 1, -1), rtol=1e-12, atol=1e-12)

    error = rng.normal(size=result.shape)
    dx, dk = backward(jnp.asarray(error))
    for n, i in np.ndindex(2, 2):
        expected = sum(
            _convn(error[n, ..., j], _reverse(matlab_kernel[..., i, j]), "full") for j in range(3)
        )
        np.testing.assert_allclose(dx[n, ..., i], expected, rtol=1e-12, atol=1e-12)
    for i, j in np.ndindex(2, 3):
        expected = sum(_convn(_reverse(x[n, ..., i]), error[n, ..., j], "valid") for n in range(2))
        np.testing.assert_allclose(layers.flip(dk)[..., i, j], expected, rtol=1e-12, atol=1e-12)


# inputs [batch, *space, in], kernel [*window, in, out], strides, padding
GEOMETRIES = [
    ((3, 9, 4), (3, 4, 5), (1,), "same"),
    ((2, 11, 3), (4, 3, 2), (2,), "valid"),
    ((2, 8, 7, 1), (5, 5, 1, 6), (1, 1), "same"),
    ((2, 7, 6, 3), (3, 3, 3, 4), (1, 1), "same"),
    ((2, 7, 9, 3), (3, 3, 3, 4), (1, 1), "valid"),
    ((2, 5, 5, 2), (3, 3, 2, 2), (1, 1), 2),
    ((2, 9, 8, 3), (3, 2, 3, 4), (2, 3), "same"),
    ((2, 4, 6, 5, 2), (3, 3, 3, 2, 3), (1, 1, 1), "same"),
    ((2, 5, 4, 6, 1), (2, 3, 2, 1, 4), (1, 2, 1), "valid"),
]


def _arrays(inputs, kernel, strides, kind):
    keys = jax.random.split(KEY, 3)
    x, k = jax.random.normal(keys[0], inputs), jax.random.normal(keys[1], kernel)
    pads = padding(kind, inputs[1:-1], kernel[:-2], strides)
    error = jax.random.normal(
        keys[2], (inputs[0], *geometry(inputs, kernel, strides, pads).outputs, kernel[-1])
    )
    return x, k, error, pads


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("inputs", "kernel", "strides", "kind"), GEOMETRIES)
def test_every_formulation_equals_the_plain_one(inputs, kernel, strides, kind):
    x, k, error, pads = _arrays(inputs, kernel, strides, kind)
    allowed = costs(geometry(inputs, kernel, strides, pads), "forward").keys()
    assert ("winograd" in allowed) == (
        set(kernel[:-2]) == {3} and set(strides) == {1} and len(strides) < 3
    )

    @jax.jit
    def run(x, k, error):
        arguments = {which: (x, k) if which == "forward" else (x, k, error) for which in PASSES}
        return {
            (which, formulation): formulate(
                which, formulation, *arguments[which], strides=strides, pads=pads
            )
            for which, formulation in itertools.product(PASSES, allowed)
        }

    results = run(x, k, error)
    for (which, formulation), actual in results.items():
        np.testing.assert_allclose(
            actual,
            results[which, "plain"],
            rtol=1e-10,
            atol=1e-10,
            err_msg=f"{which}, {formulation}",
        )


@pytest.mark.parametrize("forced", FORMULATIONS)
def test_gradients_equal_plain_convolution_in_float32(forced, monkeypatch):
    inputs, kernel, strides, kind = GEOMETRIES[3]
    x, k, error, pads = _arrays(inputs, kernel, strides, kind)
    monkeypatch.setattr(fast, "choose", lambda shape, which: forced)

    def plain(x, k):
        return formulate("forward", "plain", x, k, strides=strides, pads=pads)

    def all_passes(function):
        def run(x, k, error):
            result, backward = jax.vjp(function, x, k)
            return result, *backward(error)

        return jax.jit(run)(x, k, error)

    for ours, theirs in zip(
        all_passes(lambda x, k: convolve(x, k, strides, pads)), all_passes(plain), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def test_formulation_choice_by_shape():
    shapes = {
        "plain": ((32, 100, 64), (5, 64, 128), (1,)),
        "patches": ((128, 28, 28, 1), (3, 3, 1, 32), (1, 1)),
        "banded": ((128, 28, 28, 1), (5, 5, 1, 6), (1, 1)),
        "winograd": ((32, 16, 16, 128), (3, 3, 128, 128), (1, 1)),
    }
    assert shapes.keys() == set(FORMULATIONS)
    for formulation, (inputs, kernel, strides) in shapes.items():
        shape = geometry(
            inputs, kernel, strides, padding("same", inputs[1:-1], kernel[:-2], strides)
        )
        assert formulation in {choose(shape, which) for which in PASSES}


def _operations(function, platform, *arguments):
    text = jax.export.export(jax.jit(function), platforms=(platform,))(*arguments).mlir_module()
    return (
        text.count("stablehlo.convolution"),
        text.count("stablehlo.dot_general"),
        text.count("stablehlo.select_and_scatter"),
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_use_native_convolution_and_pooling(platform):
    x, k = jnp.ones((32, 16, 16, 64)), jnp.ones((3, 3, 64, 64))

    def ours(x, k):
        return pool(convolve(x, k), "max", (2, 2)).sum()

    def theirs(x, k):
        y = lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()

    gradients = [jax.grad(function, (0, 1)) for function in (ours, theirs)]
    assert (
        _operations(gradients[0], platform, x, k)
        == _operations(gradients[1], platform, x, k)
        == (3, 0, 1)
    )
    convolutions, products, scatters = _operations(gradients[0], "cpu", x, k)
    assert convolutions == scatters == 0
    assert products == 3 * 16  # minimal filtering: 4 x 4 products for each of the three passes


def test_half_precision_is_left_to_the_backend():
    x, k = jnp.ones((8, 12, 12, 16), jnp.bfloat16), jnp.ones((3, 3, 16, 32), jnp.bfloat16)
    assert _operations(convolve, "cpu", x, k)[:2] == (1, 0)
    assert convolve(x, k).dtype == jnp.bfloat16


@pytest.mark.usefixtures("x64")
def test_derivatives_of_gradients_and_batches_of_kernels():
    inputs, kernel, strides, kind = GEOMETRIES[3]
    x, k, _, pads = _arrays(inputs, kernel, strides, kind)

    def energy(function):
        return lambda k: jnp.sum(jnp.tanh(function(x, k)))

    def ours(x, k):
        return convolve(x, k, strides, pads)

    def plain(x, k):
        return formulate("forward", "plain", x, k, strides=strides, pads=pads)

    def product(function):
        return jax.jit(lambda k: jax.jvp(jax.grad(energy(function)), (k,), (jnp.cos(k),))[1])(k)

    np.testing.assert_allclose(product(ours), product(plain), rtol=1e-9, atol=1e-9)
    many = jnp.stack([k, 2 * k, jnp.sin(k)])
    together = jax.jit(jax.vmap(jax.grad(energy(ours))))(many)
    np.testing.assert_allclose(
        together, jnp.stack([jax.grad(energy(plain))(each) for each in many]), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("window", "strides"), [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((2, 3), (1, 2)), ((3, 2), (3, 2))]
)
def test_pooling_equals_a_loop_and_ties_go_to_the_first(window, strides):
    # Few distinct values, so that windows have tied maxima.
    x = np.random.default_rng(0).integers(0, 3, (2, 7, 8, 3)).astype(np.float32)
    rows, columns = (
        (size - taps) // stride + 1
        for size, taps, stride in zip((7, 8), window, strides, strict=True)
    )
    highest, mean = np.empty((2, rows, columns, 3)), np.empty((2, rows, columns, 3))
    error = np.random.default_rng(1).normal(size=highest.shape)
    gradient = np.zeros(x.shape)
    for n, i, j, c in np.ndindex(highest.shape):
        top, left = i * strides[0], j * strides[1]
        part = x[n, top : top + window[0], left : left + window[1], c]
        highest[n, i, j, c], mean[n, i, j, c] = part.max(), part.mean()
        first = np.unravel_index(part.argmax(), part.shape)
        gradient[n, top + first[0], left + first[1], c] += error[n, i, j, c]
    result, backward = jax.vjp(lambda x: pool(x, "max", window, strides), jnp.asarray(x))
    np.testing.assert_array_equal(result, highest)
    np.testing.assert_allclose(backward(jnp.asarray(error, jnp.float32))[0], gradient, rtol=1e-6)
    np.testing.assert_allclose(pool(jnp.asarray(x), "mean", window, strides), mean, rtol=1e-6)


def test_mismatched_shapes_are_named():
    with pytest.raises(ValueError, match=r"inputs: shape \(2, 5, 5, 4\), expected .*3 channels"):
        convolve(jnp.ones((2, 5, 5, 4)), jnp.ones((3, 3, 3, 2)))
    with pytest.raises(ValueError, match=r"inputs: shape \(2, 2, 5, 3\), expected"):
        convolve(jnp.ones((2, 2, 5, 3)), jnp.ones((3, 3, 3, 2)))
    with pytest.raises(ValueError, match=r"inputs: shape \(2, 2, 5, 3\), expected"):
        pool(jnp.ones((2, 2, 5, 3)), "max", (3, 3))


def test_the_fast_form_equals_the_definition(x64):
    x, kernel = (
        jax.random.normal(jax.random.key(0), (2, 7, 6, 3)),
        jax.random.normal(jax.random.key(1), (3, 2, 3, 4)),
    )
    for strides, pads in ((None, None), ((2, 1), ((1, 0), (0, 2)))):
        expected = definition.convolve(x, kernel, strides, pads)
        np.testing.assert_allclose(
            convolve(x, kernel, strides, pads), expected, rtol=1e-10, atol=1e-12
        )
