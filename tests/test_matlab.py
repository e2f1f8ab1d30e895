"""Matlab's convolutions against its documentation, scipy and finite differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from zoo.parts import layers
from zoo.parts.convolution import convolve
from zoo.parts.matlab import conv2, convn

SHAPES = ("full", "same", "valid")


def _integers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(float)


def _printed(text):
    return np.array([line.split() for line in text.strip().splitlines()], float)


@pytest.mark.usefixtures("x64")
def test_matlab_documentation_examples():
    u, v = jnp.array([-1, 2, 3, -2, 0, 1, 2]), jnp.array([2, 4, -1, 1])
    np.testing.assert_array_equal(convn(u, v, "same"), [15, 5, -9, 7, 6, 7, -1])
    # (1 + x^2)(2 + 7 x): coefficients are convolved where polynomials are multiplied.
    np.testing.assert_array_equal(convn(jnp.array([1, 0, 1]), jnp.array([2, 7])), [2, 7, 2, 7])
    # Horizontal edges of a pedestal by Sobel's kernel, also as two vectors, conv2(u, v, A).
    sobel = jnp.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
    pedestal = jnp.zeros((10, 10)).at[2:7, 2:7].set(1)
    edges = np.zeros((12, 12))
    edges[2:4, 2:9] = [1, 3, 4, 4, 4, 3, 1]
    edges[7:9, 2:9] = -edges[2:4, 2:9]
    np.testing.assert_array_equal(conv2(pedestal, sobel), edges)
    np.testing.assert_array_equal(
        conv2(pedestal, jnp.outer(jnp.array([1, 0, -1]), jnp.array([1, 2, 1]))), edges
    )
    # rand(3) and rand(4): the full result, and 'same' with an even kernel.
    full = _printed("""
        0.1838 0.2374 0.9727 1.2644 0.7890 0.3750
        0.6929 1.2019 1.5499 2.1733 1.3325 0.3096
        0.5627 1.5150 2.3576 3.1553 2.5373 1.0602
        0.9986 2.3811 3.4302 3.5128 2.4489 0.8462
        0.3089 1.1419 1.8229 2.1561 1.6364 0.6841
        0.3287 0.9347 1.6464 1.7928 1.2422 0.5423
    """)
    same = _printed("2.3576 3.1553 2.5373\n3.4302 3.5128 2.4489\n1.8229 2.1561 1.6364")
    np.testing.assert_array_equal(full[2:5, 2:5], same)
    a, b = _integers(3, 3), _integers(4, 4, seed=1)
    np.testing.assert_array_equal(conv2(a, b, "same"), conv2(a, b)[2:5, 2:5])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((7,), (3,)),
        ((5,), (4,)),
        ((6, 5), (3, 2)),
        ((3, 4), (5, 2)),
        ((4, 5, 3), (2, 3, 2)),
        ((3, 4, 3, 2), (2, 2, 3, 1)),
    ],
)
def test_equals_scipy_except_the_centre_of_even_kernels(a, b):
    a, b = _integers(*a), _integers(*b, seed=1)
    full = scipy.signal.convolve(a, b, "full", "direct")
    np.testing.assert_array_equal(convn(a, b), full)
    starts = [n // 2 for n in b.shape]
    middle = full[tuple(slice(start, start + m) for start, m in zip(starts, a.shape, strict=True))]
    np.testing.assert_array_equal(convn(a, b, "same"), middle)
    if all(n % 2 for n in b.shape):
        np.testing.assert_array_equal(middle, scipy.signal.convolve(a, b, "same", "direct"))
    fits = all(m >= n for m, n in zip(a.shape, b.shape, strict=True))
    valid = convn(a, b, "valid")
    if fits:
        np.testing.assert_array_equal(valid, scipy.signal.convolve(a, b, "valid", "direct"))
    else:  # where scipy would exchange the two, or refuse
        assert valid.size == 0
        assert valid.shape == tuple(
            max(m - n + 1, 0) for m, n in zip(a.shape, b.shape, strict=True)
        )


def test_missing_axes_are_trailing_and_empty_inputs_stay_empty():
    images, kernel = _integers(6, 5, 4), _integers(3, 2, seed=1)
    each = [scipy.signal.convolve2d(images[..., index], kernel, "valid") for index in range(4)]
    np.testing.assert_array_equal(convn(images, kernel, "valid"), np.stack(each, axis=-1))
    np.testing.assert_array_equal(convn(jnp.float32(3), jnp.arange(4.0)), [0, 3, 6, 9])
    nothing, some = jnp.zeros((0, 3)), jnp.ones((2, 2))
    assert [convn(nothing, some, shape).shape for shape in SHAPES] == [(2, 4), (0, 3), (0, 2)]
    assert [convn(some, nothing, shape).shape for shape in SHAPES] == [(2, 4), (2, 2), (2, 0)]
    assert convn(nothing, some).sum() == 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", [((7,), (4,)), ((5, 4), (2, 3)), ((3, 4, 3), (2, 2, 2))])
def test_gradients_agree_with_finite_differences(sizes, shape):
    a, b = (jnp.asarray(_integers(*size, seed=seed)) for seed, size in enumerate(sizes))
    weights = jnp.asarray(
        _integers(*jax.eval_shape(functools.partial(convn, shape=shape), a, b).shape, seed=2)
    )

    @jax.jit
    def objective(a, b):
        return jnp.sum(weights * jnp.square(convn(a, b, shape)))

    gradients = jax.grad(objective, (0, 1))(a, b)
    for place, array in enumerate((a, b)):
        for index in itertools.islice(np.ndindex(*array.shape), 0, None, 3):
            moved = [array.at[index].add(step) for step in (1e-4, -1e-4)]
            ahead, behind = (objective(*((each, b) if place == 0 else (a, each))) for each in moved)
            slope = (ahead - behind) / 2e-4
            np.testing.assert_allclose(gradients[place][index], slope, rtol=1e-6, atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_the_slides_equations_are_the_gradients_of_a_convolutional_layer():
    """EQ1: convn(error, reversed kernel, 'full'); EQ2: convn(reversed inputs, error, 'valid')."""
    x, kernel, error = _integers(6, 5), _integers(3, 2, seed=1), _integers(4, 4, seed=2)
    eq1 = convn(error, np.flip(kernel), "full")
    eq2 = convn(np.flip(x), error, "valid")
    result, backward = jax.vjp(lambda x, kernel: convn(x, kernel, "valid"), x, kernel)
    for found, expected in zip(backward(jnp.asarray(error)), (eq1, eq2), strict=True):
        np.testing.assert_array_equal(found, expected)
    # The models' own convolution is that of the flipped kernel; its gradient is flipped likewise.
    flipped = layers.flip(jnp.asarray(kernel)[..., None, None])
    ours, backward = jax.vjp(
        lambda x, kernel: convolve(x, kernel), jnp.asarray(x)[None, ..., None], flipped
    )
    np.testing.assert_allclose(ours[0, ..., 0], result)
    inputs, kernels = backward(jnp.asarray(error)[None, ..., None])
    np.testing.assert_allclose(inputs[0, ..., 0], eq1)
    np.testing.assert_allclose(layers.flip(kernels)[..., 0, 0], eq2)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"shape='middle', allowed: 'full', 'same', 'valid'"):
        convn(jnp.ones(3), jnp.ones(2), "middle")
    with pytest.raises(ValueError, match=r"b: shape \(2,\), expected a matrix"):
        conv2(jnp.ones((3, 3)), jnp.ones(2))
