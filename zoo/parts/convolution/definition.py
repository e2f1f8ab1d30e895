"""Convolution over any number of spatial axes, channels last.

It is a cross-correlation, as usual in deep learning:

    y[n, p, o] = sum over taps t and channels i of  x[n, p * stride + t, i] kernel[t, i, o]
"""

import itertools
import math
from typing import Literal, NamedTuple

from jax import Array, lax

from zoo.parts.checking import require_argument, require_integer

Padding = Literal["valid", "same"] | int
Sizes = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def convolve(
    x: Array, kernel: Array, strides: Sizes | None = None, pads: Pads | None = None
) -> Array:
    """The convolution of x [batch, *space, in] with kernel [*window, in, out], by XLA.

    Returns [batch, *outputs, out].
    strides, pads: one per spatial axis; by default 1 and no padding.
    Raises ValueError if shapes do not fit.
    """
    return correlate(x, kernel, *fitting(x, kernel, strides, pads))


def correlate(x: Array, kernel: Array, strides: Sizes, pads: Pads) -> Array:
    """``convolve`` with strides and pads that have been checked."""
    axes = "DHW"[3 - len(strides) :] if len(strides) <= 3 else "ABCDEFG"[: len(strides)]
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C")
    )


def fitting(
    x: Array, kernel: Array, strides: Sizes | None, pads: Pads | None
) -> tuple[Sizes, Pads]:
    """Strides and pads, one per spatial axis.  Raises ValueError if shapes do not fit."""
    dimensions = kernel.ndim - 2
    strides, pads = strides or (1,) * dimensions, pads or ((0, 0),) * dimensions
    if (
        x.ndim != kernel.ndim
        or x.shape[-1] != kernel.shape[-2]
        or len(strides) != dimensions
        or len(pads) != dimensions
    ):
        raise ValueError(
            f"inputs: shape {x.shape}, expected [batch, {dimensions} spatial axes, "
            f"{kernel.shape[-2]} channels]"
        )
    require_steps("strides", strides)
    for pad in itertools.chain.from_iterable(pads):
        require_integer("pads", pad, at_least=0)
    if min(output_sizes(x.shape[1:-1], kernel.shape[:-2], strides, pads)) < 1:
        raise ValueError(
            f"inputs: shape {x.shape}, expected spatial sizes that hold the kernel's "
            f"{kernel.shape[:-2]}"
        )
    return strides, pads


def output_sizes(space: Sizes, window: Sizes, strides: Sizes, pads: Pads) -> Sizes:
    """Number of window positions along each axis; below 1 if the window does not fit."""
    axes = zip(space, window, strides, pads, strict=True)
    return tuple((size + sum(pad) - taps) // stride + 1 for size, taps, stride, pad in axes)


def padding(kind: Padding, space: Sizes, window: Sizes, strides: Sizes) -> Pads:
    """The padding of each spatial axis.

    valid: none.  same: the number of outputs is the number of inputs divided by the stride, rounded
    up.  An integer: this many zeros on each side.
    """
    if kind == "valid":
        return ((0, 0),) * len(space)
    if kind == "same":
        require_steps("strides", strides)
        return tuple(
            (int(low), int(high))
            for low, high in lax.padtype_to_pads(space, window, strides, "SAME")
        )
    require_argument(
        "kind",
        kind,
        lambda zeros: type(zeros) is int and zeros >= 0,
        "'valid', 'same', or a number of zeros",
    )
    return ((kind, kind),) * len(space)


def require_steps(name: str, sizes: Sizes) -> None:
    """Raises ValueError unless all sizes (of a window or strides) are positive integers."""
    for size in sizes:
        require_integer(name, size)


class Geometry(NamedTuple):
    """The sizes of a convolution.

    space: spatial sizes of the inputs.  pads: zeros (before, after) along each spatial axis.
    """

    batch: int
    space: Sizes
    window: Sizes
    strides: Sizes
    pads: Pads
    channels_in: int
    channels_out: int

    @property
    def outputs(self) -> Sizes:
        """Spatial sizes of the result."""
        return output_sizes(self.space, self.window, self.strides, self.pads)

    @property
    def macs(self) -> int:
        """Number of multiply-adds of the definition."""
        return (
            self.batch
            * math.prod(self.outputs)
            * math.prod(self.window)
            * self.channels_in
            * self.channels_out
        )


def geometry(inputs: Sizes, kernel: Sizes, strides: Sizes, pads: Pads) -> Geometry:
    """The geometry of a convolution with arguments of these shapes."""
    return Geometry(inputs[0], inputs[1:-1], kernel[:-2], strides, pads, *kernel[-2:])
