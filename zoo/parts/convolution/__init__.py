"""Convolution over any number of spatial axes, channels last.

``definition`` defines it mathematically and implements it with XLA's convolution.  ``fast``
computes the same with matrix products where a CPU runs these faster; the models use its
``convolve``.
"""

from zoo.parts.convolution import definition, fast
from zoo.parts.convolution.definition import (
    Geometry,
    Padding,
    Pads,
    Sizes,
    geometry,
    output_sizes,
    padding,
    require_steps,
)
from zoo.parts.convolution.fast import (
    FORMULATIONS,
    PASSES,
    Formulation,
    Pass,
    choose,
    convolve,
    costs,
    formulate,
    interleave,
    pad_space,
    window_taps,
)

__all__ = [
    "FORMULATIONS",
    "PASSES",
    "Formulation",
    "Geometry",
    "Padding",
    "Pads",
    "Pass",
    "Sizes",
    "choose",
    "convolve",
    "costs",
    "definition",
    "fast",
    "formulate",
    "geometry",
    "interleave",
    "output_sizes",
    "pad_space",
    "padding",
    "require_steps",
    "window_taps",
]
