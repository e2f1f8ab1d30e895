"""The same convolution in forms that are fast on a CPU.

XLA's CPU backend runs convolutions far more slowly than matrix products, so on a CPU a convolution
is rewritten as matrix products in one of three ways:

patches   The values under all taps, side by side, times the kernel as one matrix (im2col): for few
          input channels.
banded    The same for all spatial axes but the last, whose taps become a banded matrix
          [size * in, outputs * out]: for few input and output channels, where the larger matrix
          product costs less than moving the data.
winograd  Minimal filtering F(2, 3) along one or two axes (Winograd 1980; Lavin and Gray 2016): for
          kernels of 3 taps and stride 1.  Two outputs cost 4 products instead of 6; in two
          dimensions this is 2.25 times fewer.

``costs`` estimates the time of each from the shapes, and ``choose`` takes the fastest, separately
for the forward pass and the two gradients.  Other platforms run XLA's convolution;
``jax.lax.platform_dependent`` decides while the program is lowered.  All agree to rounding.
First derivatives support reverse mode only (``jax.custom_vjp``); higher ones support both modes.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from zoo.parts.convolution.definition import (
    Geometry,
    Pads,
    Sizes,
    correlate,
    fitting,
    geometry,
    output_sizes,
)

Formulation = Literal["plain", "patches", "banded", "winograd"]
Pass = Literal["forward", "inputs", "kernel"]
"""inputs, kernel: the gradient with respect to these."""
FORMULATIONS: tuple[Formulation, ...] = get_args(Formulation)
PASSES: tuple[Pass, ...] = get_args(Pass)
ANY_BATCH = 32
"""The batch size that costs assume where it is unknown."""


def convolve(
    x: Array, kernel: Array, strides: Sizes | None = None, pads: Pads | None = None
) -> Array:
    """The cross-correlation of x [batch, *space, in] with kernel [*window, in, out].

    Returns [batch, *outputs, out].

    strides, pads: one per spatial axis; by default 1 and no padding.
    Raises ValueError if shapes do not fit.
    """
    return _convolve(x, kernel, *fitting(x, kernel, strides, pads))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: Sizes, pads: Pads) -> Array:
    return _run("forward", x, kernel, None, strides, pads)


def _convolve_forward(
    x: Array, kernel: Array, strides: Sizes, pads: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return _run("forward", x, kernel, None, strides, pads), (x, kernel)


def _convolve_backward(
    strides: Sizes, pads: Pads, saved: tuple[Array, Array], error: Array
) -> tuple[Array, Array]:
    # Two separate programs, so that XLA can drop an unused one: the first layer's input gradient.
    return _run("inputs", *saved, error, strides, pads), _run(
        "kernel", *saved, error, strides, pads
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


# Jitted, so that calls outside of any jit are compiled only once.
@functools.partial(jax.jit, static_argnums=(0, 4, 5), inline=True)
def _run(
    which: Pass, x: Array, kernel: Array, error: Array | None, strides: Sizes, pads: Pads
) -> Array:
    run = functools.partial(formulate, which, strides=strides, pads=pads)
    # The batch size is symbolic in exported programs.
    shape = geometry(
        (x.shape[0] if isinstance(x.shape[0], int) else ANY_BATCH, *x.shape[1:]),
        kernel.shape,
        strides,
        pads,
    )
    # Half precision is meant for accelerators, and Winograd's transforms would lose digits in it.
    best = choose(shape, which) if jnp.finfo(x.dtype).bits >= 32 else "plain"
    arguments = (x, kernel) if error is None else (x, kernel, error)
    if best == "plain":
        return run("plain", *arguments)

    def on_cpu(*arguments: Array) -> Array:
        # Without the barrier, XLA fuses the producer of the inputs (e.g. pooling) into every slice
        # below and recomputes it each time.
        return run(best, *lax.optimization_barrier(arguments))

    return lax.platform_dependent(*arguments, cpu=on_cpu, default=functools.partial(run, "plain"))


MATMUL = 80e9
"""Multiply-adds per second of a large matrix product on two cores (AVX2).

Only the ratios of this constant and those below matter.
"""
PLAIN: dict[Pass, float] = {"forward": 0.7, "inputs": 0.7, "kernel": 0.4}
"""Speed of XLA's convolution relative to a matrix product, for many channels."""
BANDWIDTH = {"patches": (30e6, 6e9, 1.2e9), "winograd": (200e6, 30e9, 7e9)}
"""Bytes of intermediates that fit the cache; bytes per second within the cache, and beyond it."""
CALL = 15e-6
"""Fixed seconds per operation."""


def costs(shape: Geometry, which: Pass) -> dict[Formulation, float]:
    """Estimated seconds of each formulation that this geometry allows.

    The sum of multiply-adds over their rate and bytes of intermediates over theirs.
    ``python -m evals.speed convolutions`` compares the estimates with measurements.
    """
    positions = shape.batch * math.prod(shape.outputs)
    inputs, outputs, taps = shape.channels_in, shape.channels_out, math.prod(shape.window)
    # XLA's convolution vectorises over the channels of its result.  It is fastest for signals (1D)
    # and slowest for volumes (3D).
    channels = {"forward": outputs / 64, "inputs": inputs / 64, "kernel": inputs * outputs / 512}[
        which
    ]
    speed = PLAIN[which] * {1: 1.5, 2: 1.0}.get(len(shape.space), 0.25)
    seconds: dict[Formulation, float] = {
        "plain": CALL + shape.macs / (MATMUL * speed * min(1, channels))
    }

    def product(rows: int, inner: int, columns: int) -> float:
        return CALL + rows * inner * columns / (MATMUL * min(1, inner / 16, columns / 16))

    def traffic(kind: str, values: int, run: int = 16) -> float:
        cache, inside, outside = BANDWIDTH[kind]
        return 4 * values / ((inside if 4 * values < cache else outside) * min(1, run / 4))

    seconds["patches"] = product(positions, taps * inputs, outputs) + traffic(
        "patches", positions * taps * inputs, inputs
    )
    lines, band = (
        positions // shape.outputs[-1],
        taps // shape.window[-1] * shape.space[-1] * inputs,
    )
    seconds["banded"] = product(lines, band, shape.outputs[-1] * outputs) + traffic(
        "patches", lines * band
    )
    # Building the band matrix.
    seconds["banded"] += taps * shape.space[-1] * shape.outputs[-1] * inputs * outputs / MATMUL
    # Not for volumes: 64 products would be slow to compile.
    if set(shape.window) == {3} and set(shape.strides) == {1} and len(shape.space) < 3:
        tiles = shape.batch * math.prod(-(-count // TILE) for count in shape.outputs)
        products = (TILE + 2) ** len(shape.space)
        values = products * (2 * tiles * (inputs + outputs) + inputs * outputs)
        seconds["winograd"] = products * (product(tiles, inputs, outputs) + 2 * CALL) + traffic(
            "winograd", values
        )
    return seconds


def choose(shape: Geometry, which: Pass) -> Formulation:
    """The formulation with the lowest cost on a CPU."""
    seconds = costs(shape, which)
    return min(seconds, key=seconds.__getitem__)


def formulate(
    which: Pass,
    formulation: Formulation,
    x: Array,
    kernel: Array,
    error: Array | None = None,
    *,
    strides: Sizes,
    pads: Pads,
) -> Array:
    """Runs one pass of a convolution in one formulation.

    error: the gradient with respect to the result, for the two gradient passes.
    """
    if formulation == "winograd":
        if error is None:
            return _winograd(x, kernel, pads)
        return (_winograd_inputs if which == "inputs" else _winograd_kernel)(x, kernel, error, pads)
    function = {"plain": correlate, "patches": _patches, "banded": _banded}[formulation]
    if which == "forward":
        return function(x, kernel, strides, pads)
    # A convolution is linear in each argument, so its gradients are transposes.
    if which == "inputs":
        return jax.linear_transpose(lambda x: function(x, kernel, strides, pads), x)(error)[0]
    return jax.linear_transpose(lambda kernel: function(x, kernel, strides, pads), kernel)(error)[0]


def window_taps(x: Array, window: Sizes, outputs: Sizes, strides: Sizes) -> list[Array]:
    """The values under each tap of the window at all of its positions.

    One array [batch, *outputs, channels] per tap, taps in row-major order.
    """
    parts = []
    for offset in itertools.product(*map(range, window)):
        ends = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(offset, outputs, strides, strict=True)
        ]
        parts.append(
            lax.slice(x, (0, *offset, 0), (x.shape[0], *ends, x.shape[-1]), (1, *strides, 1))
        )
    return parts


def pad_space(x: Array, pads: Pads) -> Array:
    """Pads the spatial axes with zeros."""
    return jnp.pad(x, ((0, 0), *pads, (0, 0))) if any(map(any, pads)) else x


def _patches(x: Array, kernel: Array, strides: Sizes, pads: Pads) -> Array:
    window, out = kernel.shape[:-2], kernel.shape[-1]
    outputs = output_sizes(x.shape[1:-1], window, strides, pads)
    taps = window_taps(pad_space(x, pads), window, outputs, strides)
    if x.shape[-1] == 1:  # taps as rows, so that whole blocks are copied instead of single values
        patches = jnp.stack(taps).reshape(len(taps), -1)
        product = lax.dot_general(patches, kernel.reshape(-1, out), (((0,), (0,)), ((), ())))
    else:
        patches = jnp.concatenate(taps, axis=-1)
        product = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, out)
    return product.reshape(x.shape[0], *outputs, out)


def _banded(x: Array, kernel: Array, strides: Sizes, pads: Pads) -> Array:
    """A convolution over all spatial axes but the last.

    The positions and channels of the last axis are merged into its channels.
    """
    size, taps, stride, low = x.shape[-2], kernel.shape[-3], strides[-1], pads[-1][0]
    (count,) = output_sizes((size,), (taps,), (stride,), pads[-1:])
    place = np.zeros((taps, size, count))  # [t, p, q]: 1 where output q reads position p with tap t
    for tap, output in itertools.product(range(taps), range(count)):
        if 0 <= output * stride + tap - low < size:
            place[tap, output * stride + tap - low, output] = 1
    lines = kernel.reshape(-1, *kernel.shape[-3:])
    band = jnp.einsum("tpq,ltio->lpiqo", jnp.asarray(place, kernel.dtype), lines)
    band = band.reshape(*kernel.shape[:-3], size * kernel.shape[-2], count * kernel.shape[-1])
    merged = x.reshape(*x.shape[:-2], size * x.shape[-1])
    result = _patches(merged, band, strides[:-1], pads[:-1])
    return result.reshape(*result.shape[:-1], count, kernel.shape[-1])


TILE = 2
"""Number of outputs m of minimal filtering F(m, 3) along an axis.

2 is as accurate as the definition; 4 is hardly faster and loses a digit.
"""
FILTER_INPUTS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
FILTER_KERNEL = np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]])
FILTER_OUTPUTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
"""B', G and A' of y = A' [(G g) * (B' d)] (Lavin and Gray 2016, section 4.1).

2 outputs need 4 products instead of 6.
"""


def _combine(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """The sum of the parts weighted by each row of the matrix; entries of 0 cost nothing."""
    results = []
    for row in matrix:
        terms = [
            part if entry == 1 else part * jnp.asarray(entry, part.dtype)
            for entry, part in zip(row, parts, strict=True)
            if entry
        ]
        results.append(functools.reduce(jnp.add, terms))
    return results


def _along_axes(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """Applies the matrix along every axis of a cube of parts in row-major order."""
    if len(parts) == 1:
        return list(parts)
    inner = len(parts) // matrix.shape[1]
    slabs = [
        _along_axes(matrix, parts[start : start + inner]) for start in range(0, len(parts), inner)
    ]
    columns = [_combine(matrix, column) for column in zip(*slabs, strict=True)]
    return [part for slab in zip(*columns, strict=True) for part in slab]


def _tiles(x: Array, pads: Pads, length: int) -> tuple[list[Array], Sizes]:
    """Overlapping tiles of ``length`` values, one every TILE values along each axis.

    Returns a cube of parts [batch * tiles, channels], one for each position in a tile, and the
    number of tiles along each axis.  The last tile is filled up with zeros.
    """
    sizes = [size + sum(pad) for size, pad in zip(x.shape[1:-1], pads, strict=True)]
    counts = tuple(-(-(size - length) // TILE) + 1 for size in sizes)
    ends = [(count - 1) * TILE + length - size for count, size in zip(counts, sizes, strict=True)]
    x = pad_space(x, tuple((low, high + end) for (low, high), end in zip(pads, ends, strict=True)))
    parts = window_taps(x, (length,) * len(counts), counts, (TILE,) * len(counts))
    return [part.reshape(-1, x.shape[-1]) for part in parts], counts


def interleave(parts: Sequence[Array], sizes: Sizes) -> Array:
    """Reassembles tiles of these sizes.

    Parts [batch, *tiles, channels] -> [batch, *(tiles * sizes), channels].
    """
    for axis, size in reversed(list(enumerate(sizes, 1))):
        groups = [parts[start : start + size] for start in range(0, len(parts), size)]
        parts = [_merge(jnp.stack(group, axis=axis + 1), axis) for group in groups]
    (whole,) = parts
    return whole


def _merge(x: Array, axis: int) -> Array:
    """Merges axes ``axis`` and ``axis + 1``."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _winograd(x: Array, kernel: Array, pads: Pads, contract: int = 0) -> Array:
    """contract: the kernel's channel axis that is summed with the channels of ``x``."""
    outputs = output_sizes(x.shape[1:-1], kernel.shape[:-2], (1,) * len(pads), pads)
    tiles, counts = _tiles(x, pads, TILE + 2)
    tiles = _along_axes(FILTER_INPUTS, tiles)
    kernels = _along_axes(FILTER_KERNEL, list(kernel.reshape(-1, *kernel.shape[-2:])))
    products = [
        lax.dot_general(tile, weights, (((1,), (contract,)), ((), ())))
        for tile, weights in zip(tiles, kernels, strict=True)
    ]
    results = [
        part.reshape(x.shape[0], *counts, part.shape[-1])
        for part in _along_axes(FILTER_OUTPUTS, products)
    ]
    return interleave(results, (TILE,) * len(counts))[
        (slice(None), *(slice(count) for count in outputs))
    ]


def _winograd_inputs(x: Array, kernel: Array, error: Array, pads: Pads) -> Array:
    """The full convolution of the error with the flipped kernel, its channel axes swapped."""
    flipped = jnp.flip(kernel, range(len(pads)))
    axes = zip(x.shape[1:-1], error.shape[1:-1], pads, strict=True)
    return _winograd(
        error,
        flipped,
        tuple((2 - low, size - count + low) for size, count, (low, _) in axes),
        contract=1,
    )


def _winograd_kernel(x: Array, kernel: Array, error: Array, pads: Pads) -> Array:
    """The transposed algorithm: one product per position in a tile; it also sums over tiles."""
    inputs = _along_axes(FILTER_INPUTS, _tiles(x, pads, TILE + 2)[0])
    errors = _along_axes(FILTER_OUTPUTS.T, _tiles(error, ((0, 0),) * len(pads), TILE)[0])
    products = [
        lax.dot_general(*pair, (((0,), (0,)), ((), ())))
        for pair in zip(inputs, errors, strict=True)
    ]
    return jnp.stack(_along_axes(FILTER_KERNEL.T, products)).reshape(kernel.shape)
