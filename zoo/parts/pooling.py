"""Pooling over any number of spatial axes, channels last.

On XLA's CPU backend the gradient of a windowed maximum takes 20 times as long as the maximum, so
there both are computed tap by tap.  Other platforms run XLA's reduction
(``jax.lax.platform_dependent``).  The results agree to rounding.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from zoo.parts.checking import require_one_of
from zoo.parts.convolution import (
    Sizes,
    interleave,
    output_sizes,
    pad_space,
    require_steps,
    window_taps,
)

Pooling = Literal["max", "mean"]

MOST_TAPS = 32
"""Windows with more values use XLA's reduction on all platforms."""


def pool(x: Array, kind: Pooling, window: Sizes, strides: Sizes | None = None) -> Array:
    """Maximum or mean over windows: [batch, *space, channels] -> [batch, *outputs, channels].

    Inputs at the end that do not fill a window are ignored.
    strides: by default the window's sizes; smaller ones make windows overlap.
    The first of several equal maxima gets the gradient.
    Raises ValueError for an unknown kind, for sizes that are not positive integers, and for inputs
    smaller than the window.
    """
    require_one_of("kind", kind, get_args(Pooling))
    strides = strides or window
    require_steps("window", window)
    require_steps("strides", strides)
    if (
        x.ndim != len(window) + 2
        or min(output_sizes(x.shape[1:-1], window, strides, ((0, 0),) * len(window))) < 1
    ):
        raise ValueError(
            f"inputs: shape {x.shape}, expected [batch, {len(window)} spatial axes of at least "
            f"{window}, channels]"
        )
    return _maximum(x, window, strides) if kind == "max" else _mean(x, window, strides)


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _mean(x: Array, window: Sizes, strides: Sizes) -> Array:
    def plain(x: Array) -> Array:
        return lax.reduce_window(
            x, np.zeros((), x.dtype), lax.add, (1, *window, 1), (1, *strides, 1), "VALID"
        )

    def taps(x: Array) -> Array:
        return functools.reduce(jnp.add, _under_window(x, window, strides))

    return _by_platform(window, taps, plain, x) / jnp.asarray(math.prod(window), x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _maximum(x: Array, window: Sizes, strides: Sizes) -> Array:
    return _highest(x, window, strides)


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _highest(x: Array, window: Sizes, strides: Sizes) -> Array:
    def taps(x: Array) -> Array:
        return functools.reduce(jnp.maximum, _under_window(x, window, strides))

    return _by_platform(
        window, taps, functools.partial(_plain_maximum, window=window, strides=strides), x
    )


def _plain_maximum(x: Array, window: Sizes, strides: Sizes) -> Array:
    return lax.reduce_window(
        x, np.asarray(-np.inf, x.dtype), lax.max, (1, *window, 1), (1, *strides, 1), "VALID"
    )


def _maximum_forward(x: Array, window: Sizes, strides: Sizes) -> tuple[Array, tuple[Array, Array]]:
    result = _highest(x, window, strides)
    return result, (x, result)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _maximum_backward(
    window: Sizes, strides: Sizes, saved: tuple[Array, Array], error: Array
) -> tuple[Array]:
    def plain(x: Array, _: Array, error: Array) -> Array:
        return jax.vjp(functools.partial(_plain_maximum, window=window, strides=strides), x)[1](
            error
        )[0]

    def taps(x: Array, result: Array, error: Array) -> Array:
        parts, unassigned = [], jnp.ones(result.shape, bool)
        for tap in _under_window(x, window, strides):
            hit = unassigned & (tap == result)
            parts.append(jnp.where(hit, error, 0))
            unassigned &= ~hit
        if window != strides:
            return jax.linear_transpose(lambda x: _under_window(x, window, strides), x)(parts)[0]
        covered = interleave(parts, window)
        return pad_space(
            covered,
            tuple(
                (0, size - covered_size)
                for size, covered_size in zip(x.shape[1:-1], covered.shape[1:-1], strict=True)
            ),
        )

    return (_by_platform(window, taps, plain, *saved, error),)


_maximum.defvjp(_maximum_forward, _maximum_backward)


def _by_platform(
    window: Sizes, taps: Callable[..., Array], plain: Callable[..., Array], *arguments: Array
) -> Array:
    """Runs ``taps`` on a CPU and ``plain`` elsewhere.

    Large windows also run ``plain``, as many taps make a large program.
    """
    if math.prod(window) > MOST_TAPS:
        return plain(*arguments)
    return lax.platform_dependent(*arguments, cpu=taps, default=plain)


def _under_window(x: Array, window: Sizes, strides: Sizes) -> list[Array]:
    return window_taps(
        x, window, output_sizes(x.shape[1:-1], window, strides, ((0, 0),) * len(window)), strides
    )
