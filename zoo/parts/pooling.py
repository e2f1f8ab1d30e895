"""Pooling over any number of spatial axes, channels last.

XLA's CPU backend takes 20 times as long for the gradient of a maximum over windows as for the maximum itself, so there both are
computed tap by tap; other platforms run XLA's own reduction (``jax.lax.platform_dependent``).  They agree to rounding.
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
"""Windows with more values are pooled by XLA's own reduction everywhere."""


def pool(x: Array, kind: Pooling, window: Sizes, strides: Sizes | None = None) -> Array:
    """Maximum or mean over windows: [batch, *space, channels] -> [batch, *outputs, channels].  What fills no window is left out.

    strides: the window's sizes unless given; less makes windows overlap.  Of equal maxima the first one has the gradient.
    Raises ValueError for another kind, for sizes that are not positive integers, and for inputs that hold no window.
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
            f"inputs: shape {x.shape}, expected [batch, {len(window)} spatial axes of at least {window}, channels]"
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
        parts, free = [], jnp.ones(result.shape, bool)
        for tap in _under_window(x, window, strides):
            hit = free & (tap == result)
            parts.append(jnp.where(hit, error, 0))
            free &= ~hit
        if window != strides:
            return jax.linear_transpose(lambda x: _under_window(x, window, strides), x)(parts)[0]
        whole = interleave(parts, window)
        return pad_space(
            whole,
            tuple(
                (0, size - have)
                for size, have in zip(x.shape[1:-1], whole.shape[1:-1], strict=True)
            ),
        )

    return (_by_platform(window, taps, plain, *saved, error),)


_maximum.defvjp(_maximum_forward, _maximum_backward)


def _by_platform(
    window: Sizes, taps: Callable[..., Array], plain: Callable[..., Array], *arguments: Array
) -> Array:
    """On a CPU, tap by tap: XLA's own gradient of a maximum is 20 times slower there.  Many taps would be a large program."""
    if math.prod(window) > MOST_TAPS:
        return plain(*arguments)
    return lax.platform_dependent(*arguments, cpu=taps, default=plain)


def _under_window(x: Array, window: Sizes, strides: Sizes) -> list[Array]:
    return window_taps(
        x, window, output_sizes(x.shape[1:-1], window, strides, ((0, 0),) * len(window)), strides
    )
