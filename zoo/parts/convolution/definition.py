"""Convolution over any number of spatial axes, channels last.

It is a cross-correlation, as everywhere in this field but in signal processing:

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
    """x [batch, *space, in], kernel [*window, in, out] -> [batch, *outputs, out], by XLA's own convolution.

    strides, pads: one for each spatial axis; 1 and no padding unless given.  Raises ValueError when shapes do not fit.
    """
    return correlate(x, kernel, *fitting(x, kernel, strides, pads))


def correlate(x: Array, kernel: Array, strides: Sizes, pads: Pads) -> Array:
    """``convolve`` with strides and pads that are known to fit."""
    axes = "DHW"[3 - len(strides) :] if len(strides) <= 3 else "ABCDEFG"[: len(strides)]
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C")
    )


def fitting(
    x: Array, kernel: Array, strides: Sizes | None, pads: Pads | None
) -> tuple[Sizes, Pads]:
    """Strides and pads, one for each spatial axis.  Raises ValueError when shapes do not fit."""
    dimensions = kernel.ndim - 2
    strides, pads = strides or (1,) * dimensions, pads or ((0, 0),) * dimensions
    if (
        x.ndim != kernel.ndim
        or x.shape[-1] != kernel.shape[-2]
        or len(strides) != dimensions
        or len(pads) != dimensions
    ):
        raise ValueError(
            f"inputs: shape {x.shape}, expected [batch, {dimensions} spatial axes, {kernel.shape[-2]} channels]"
        )
    require_steps("strides", strides)
    for pad in itertools.chain.from_iterable(pads):
        require_integer("pads", pad, at_least=0)
    if min(output_sizes(x.shape[1:-1], kernel.shape[:-2], strides, pads)) < 1:
        raise ValueError(
            f"inputs: shape {x.shape}, expected spatial sizes that hold the kernel's {kernel.shape[:-2]}"
        )
    return strides, pads


def output_sizes(space: Sizes, window: Sizes, strides: Sizes, pads: Pads) -> Sizes:
    """Number of positions of the window along each axis; below 1 where it does not fit."""
    axes = zip(space, window, strides, pads, strict=True)
    return tuple((size + sum(pad) - taps) // stride + 1 for size, taps, stride, pad in axes)


def padding(kind: Padding, space: Sizes, window: Sizes, strides: Sizes) -> Pads:
    """valid: none.  same: as many outputs as positions divided by the stride.  A number: that many zeros on either side."""
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
    """Raises ValueError unless all of these sizes, of a window or of strides, are positive integers."""
    for size in sizes:
        require_integer(name, size)


class Geometry(NamedTuple):
    """A convolution without its values.  space: sizes of the inputs; pads: zeros (before, after) each spatial axis."""

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
        """Multiplications of the definition."""
        return (
            self.batch
            * math.prod(self.outputs)
            * math.prod(self.window)
            * self.channels_in
            * self.channels_out
        )


def geometry(inputs: Sizes, kernel: Sizes, strides: Sizes, pads: Pads) -> Geometry:
    """The geometry of a convolution from the shapes of its arguments."""
    return Geometry(inputs[0], inputs[1:-1], kernel[:-2], strides, pads, *kernel[-2:])
