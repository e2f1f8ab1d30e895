"""Matlab's convolutions by their own names, as used in the review's slides and DeepLearnToolbox.

    full[p] = sum over t of  a[p - t] b[t]        along every axis

b is flipped, unlike the kernels of ``zoo.parts.convolution``.  The models do not use these
functions; docs/models.md explains how the two are related.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

SHAPES = ("full", "same", "valid")


@functools.partial(jax.jit, static_argnames="shape")
def convn(a: ArrayLike, b: ArrayLike, shape: str = "full") -> Array:
    """The convolution of two arrays with any number of axes.

    The array with fewer axes gets trailing axes of length 1, as in Matlab.
    shape, for lengths m of a and n of b along an axis:
        full: all positions where the arrays overlap, m + n - 1.
        same: the central m of these, from position floor(n / 2) (scipy's starts at
            floor((n - 1) / 2), one earlier for even n).
        valid: positions where ``b`` lies within ``a``, m - n + 1; empty if ``b`` is longer.
    The result has the arrays' floating type, or the default one for integers.
    Raises ValueError for an unknown shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape={shape!r}, allowed: {', '.join(map(repr, SHAPES))}")
    dtype = jnp.result_type(a, b, float)
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    axes = max(a.ndim, b.ndim, 1)
    a, b = (x.reshape(*x.shape, *[1] * (axes - x.ndim)) for x in (a, b))
    sizes = list(zip(a.shape, b.shape, strict=True))
    match shape:
        case "full":
            wanted, pads = (
                [max(m + n - 1, m, n) for m, n in sizes],
                [(n - 1, n - 1) for _, n in sizes],
            )
        case "same":
            wanted, pads = [m for m, _ in sizes], [(n - 1 - n // 2, n // 2) for _, n in sizes]
        case _:
            wanted, pads = [max(m - max(0, n - 1), 0) for m, n in sizes], [(0, 0)] * axes
    if not all((*a.shape, *b.shape, *wanted)):
        return jnp.zeros(wanted, dtype)  # empty, or an empty sum
    # One example with one channel.  "highest", as some backends round the factors by default.
    result = lax.conv_general_dilated(
        a[None, None], jnp.flip(b)[None, None], (1,) * axes, pads, precision="highest"
    )
    return result[0, 0]


def conv2(a: ArrayLike, b: ArrayLike, shape: str = "full") -> Array:
    """``convn`` of two matrices.  Matlab's ``conv2(u, v, a)`` is ``conv2(a, jnp.outer(u, v))``.

    Raises ValueError for arrays that are not matrices.
    """
    for name, array in (("a", a), ("b", b)):
        if jnp.ndim(array) != 2:
            raise ValueError(
                f"{name}: shape {jnp.shape(array)}, expected a matrix [rows, columns]; "
                "convn takes any"
            )
    return convn(a, b, shape)
