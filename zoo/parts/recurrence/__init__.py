"""One recurrent layer over time: tanh or ReLU units, LSTM, GRU.

``definition`` has the equations, a layer's parameters, a single step, and a plain loop over all
steps.  ``fast`` has the same loop with a hand-written gradient; the models use its ``unroll``.
"""

from zoo.parts.recurrence import definition, fast
from zoo.parts.recurrence.definition import (
    CELLS,
    GATES,
    Cell,
    advance,
    carry_size,
    init,
    initial_carry,
    output_of,
    project,
    step,
)
from zoo.parts.recurrence.fast import COLLIDING, LARGE, inspect, unroll

__all__ = [
    "CELLS",
    "COLLIDING",
    "GATES",
    "LARGE",
    "Cell",
    "advance",
    "carry_size",
    "definition",
    "fast",
    "init",
    "initial_carry",
    "inspect",
    "output_of",
    "project",
    "step",
    "unroll",
]
