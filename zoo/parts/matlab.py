"""Matlab's convolutions by their own names, for what is written down in them: the review's slides, the DeepLearnToolbox.

    full[p] = sum over t of  a[p - t] b[t]        along every axis; b is flipped, unlike the kernels of ``zoo.parts.convolution``

The models do not need them: docs/models.md says how what they compute follows from these.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

SHAPES = ("full", "same", "valid")


@functools.partial(jax.jit, static_argnames="shape")
def convn(a: ArrayLike, b: ArrayLike, shape: str = "full") -> Array:
    """The convolution of two arrays of any number of axes; one that has fewer has axes of length 1 behind its own, as in Matlab.

    shape: full, all positions where they meet, m + n - 1 along an axis; same, the middle of that, as many as ``a`` has, from
        position floor(n / 2) on (scipy's begins at floor((n - 1) / 2), which for even n is one earlier); valid, where ``b`` lies
        within ``a``, m - n + 1, and an empty array where it is the larger one along any axis.
    The result has the arrays' own floating type, for integers the default one.  Raises ValueError for another shape.
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
        return jnp.zeros(wanted, dtype)  # the sum of nothing
    # One example of one channel, in full precision also where a backend would round the factors.
    result = lax.conv_general_dilated(
        a[None, None], jnp.flip(b)[None, None], (1,) * axes, pads, precision="highest"
    )
    return result[0, 0]


def conv2(a: ArrayLike, b: ArrayLike, shape: str = "full") -> Array:
    """``convn`` of two matrices.  Matlab's ``conv2(u, v, a)`` is ``conv2(a, jnp.outer(u, v))``.

    Raises ValueError for arrays that are no matrices.
    """
    for name, array in (("a", a), ("b", b)):
        if jnp.ndim(array) != 2:
            raise ValueError(
                f"{name}: shape {jnp.shape(array)}, expected a matrix [rows, columns]; convn takes any"
            )
    return convn(a, b, shape)
