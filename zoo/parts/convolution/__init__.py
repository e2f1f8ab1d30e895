"""Convolution over any number of spatial axes, channels last.

``definition`` says what it is, in a line of mathematics and by XLA's own convolution.  ``fast`` has the same as matrix products
where a CPU runs these faster, and it is this ``convolve`` that the models use.
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
