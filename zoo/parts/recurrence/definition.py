"""A recurrent layer over time, written like its equations.

Inputs are x_t and h_{t-1}; gates are packed side by side in the order given:

tanh, relu   h_t = f(x_t U + b + h_{t-1} W)              LeCun, Bengio, Hinton 2015, figure 5;
                                                         Elman 1990
lstm         i, f, o = logistic(x_t U + b + h_{t-1} W)   Hochreiter and Schmidhuber 1997;
             g = tanh(x_t U + b + h_{t-1} W)             forget gate f: Gers et al. 2000;
             c_t = f c_{t-1} + i g                       no peepholes
             h_t = o tanh(c_t)                           packed i, f, g, o
gru          r, z = logistic(x_t U + b + h_{t-1} W)      Cho et al. 2014
             n = tanh(x_t U + b + r (h_{t-1} W + d))
             h_t = (1 - z) n + z h_{t-1}                 packed r, z, n

A GRU's reset gate r is applied after the recurrent product, as in cuDNN, torch and flax, so that
all gates share one product; in the paper it is applied to h_{t-1} before the product.  z keeps the
old state, as in the paper's equation 7.

Parameters: {"input": {"kernel" U [features, gates * units], "bias" b [gates * units]},
             "recurrent": {"kernel" W [units, gates * units]}};
             a GRU's "recurrent" also has "bias" d [units].
The carry is one array: h [batch, units], or an LSTM's h and c side by side [batch, 2 * units].

A masked step leaves the carry unchanged and outputs zeros.  Padding, even NaN, affects no other
value and no gradient.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

from zoo.base import Params
from zoo.parts.checking import require_argument, require_integer, require_one_of, require_shape
from zoo.parts.layers import INITIALIZERS, ComputeDtype, Initializer

Cell = Literal["tanh", "relu", "lstm", "gru"]
CELLS: tuple[Cell, ...] = get_args(Cell)
GATES: dict[Cell, tuple[str, ...]] = {
    "tanh": ("state",),
    "relu": ("state",),
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
}
"""The gates of each cell in packing order."""
State = tuple[Array, ...]
"""(h,) or (h, c)."""


def init(
    cell: Cell,
    key: Array,
    features: int,
    units: int,
    initializer: Initializer = "glorot_uniform",
    forget_bias: float = 1.0,
) -> Params:
    """Parameters: input kernels by ``initializer``, recurrent ones orthogonal (Saxe et al. 2014).

    Kernels are drawn separately for each gate.  Biases are zero, except for the forget gate.
    forget_bias: initial bias of an LSTM's forget gate; a positive one makes the cell remember at
    the start of training (Gers et al. 2000; Jozefowicz et al. 2015 recommend 1).
    """
    require_one_of("cell", cell, CELLS)
    require_one_of("initializer", initializer, INITIALIZERS)
    require_integer("features", features)
    require_integer("units", units)
    require_argument("forget_bias", forget_bias, math.isfinite, "a finite number")
    gates = GATES[cell]
    draw, rotate = getattr(jax.nn.initializers, initializer)(), jax.nn.initializers.orthogonal()
    keys = jax.random.split(key, 2 * len(gates))
    bias = [jnp.full(units, forget_bias if gate == "forget" else 0, float) for gate in gates]
    recurrent = {
        "kernel": jnp.concatenate(
            [rotate(key, (units, units)) for key in keys[len(gates) :]], axis=1
        )
    }
    return {
        "input": {
            "kernel": jnp.concatenate(
                [draw(key, (features, units)) for key in keys[: len(gates)]], axis=1
            ),
            "bias": jnp.concatenate(bias),
        },
        "recurrent": recurrent | ({"bias": jnp.zeros(units)} if cell == "gru" else {}),
    }


def carry_size(cell: Cell, units: int) -> int:
    """Size of the carry of one row."""
    return 2 * units if cell == "lstm" else units


def initial_carry(cell: Cell, params: Params, batch_size: Any) -> Float[Array, "batch state"]:
    """A carry of zeros, in the parameters' type but at least float32.

    batch_size: an integer, or symbolic while exporting.
    """
    kernel = params["recurrent"]["kernel"]
    return jnp.zeros((batch_size, carry_size(cell, kernel.shape[0])), wide(kernel))


def output_of(cell: Cell, carry: Float[Array, "batch state"]) -> Float[Array, "batch units"]:
    """The output h in a carry: that of the last unmasked step."""
    return carry[:, : carry.shape[1] // 2] if cell == "lstm" else carry


def unroll(
    cell: Cell,
    params: Params,
    carry: Float[Array, "batch state"],
    inputs: Float[Array, "batch time features"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    reverse: bool = False,
    compute_dtype: ComputeDtype = None,
) -> tuple[Float[Array, "batch state"], Float[Array, "batch time units"]]:
    """All steps from ``carry``, one after the other.

    ``zoo.parts.recurrence.unroll`` computes the same with a faster gradient.
    Returns the carry after the last step and the outputs of all steps, both at least float32.
    mask: False marks padding.
    reverse: runs from the last step to the first; outputs keep the order of the inputs.
    compute_dtype: type of the factors of matrix products; sums, gates and the carry are at least
    float32.
    Raises ValueError if shapes do not fit.
    """
    carry, x, valid = steps_of(cell, params, carry, inputs, mask, reverse)
    multiply = functools.partial(
        product, b=params["recurrent"]["kernel"], compute_dtype=compute_dtype
    )
    carry, hidden, _ = scan_steps(cell, params, carry, x, valid, multiply, compute_dtype)
    return carry, outputs_of(hidden, mask, reverse)


def step(
    cell: Cell,
    params: Params,
    carry: Float[Array, "batch state"],
    inputs: Float[Array, "batch features"],
    *,
    compute_dtype: ComputeDtype = None,
) -> tuple[Float[Array, "batch state"], Float[Array, "batch units"]]:
    """One step of ``unroll``: the next carry and the outputs.

    Raises ValueError if shapes do not fit.
    """
    require_fit(cell, params, carry, inputs, ("batch",))
    return advance(
        cell,
        params,
        carry,
        project(params, inputs, compute_dtype=compute_dtype),
        compute_dtype=compute_dtype,
    )


def project(
    params: Params, inputs: Float[Array, "*batch features"], *, compute_dtype: ComputeDtype = None
) -> Float[Array, "*batch gates"]:
    """x U + b for any number of steps in one matrix product: the input of ``advance``."""
    kernel, bias = params["input"]["kernel"], params["input"]["bias"]
    flat = inputs.astype(kernel.dtype).reshape(-1, inputs.shape[-1])
    projected = _add(product(flat, kernel, compute_dtype=compute_dtype), bias)
    return projected.reshape(*inputs.shape[:-1], projected.shape[-1])


def advance(
    cell: Cell,
    params: Params,
    carry: Float[Array, "batch state"],
    projected: Float[Array, "batch gates"],
    *,
    compute_dtype: ComputeDtype = None,
) -> tuple[Float[Array, "batch state"], Float[Array, "batch units"]]:
    """``step`` from a given x_t U + b, which may be a sum of several projections."""
    kernel = params["recurrent"]["kernel"]
    carry = carry.astype(wide(kernel))
    multiply = functools.partial(product, b=kernel, compute_dtype=compute_dtype)
    state, _ = next_state(cell, params["recurrent"], multiply, unpack(cell, carry), projected)
    return pack(state), state[0]


def next_state(
    cell: Cell,
    recurrent: Params,
    multiply: Callable[[Array], Array],
    state: State,
    projected: Array,
) -> tuple[State, tuple[Array, ...]]:
    """One step from x_t U + b.

    Returns the next state and the intermediate results that the gradient needs in addition to the
    states.  multiply: h -> h W.
    """
    product = multiply(state[0])
    units = state[0].shape[1]
    match cell:
        case "lstm":
            # logistic(x) = tanh(x / 2) / 2 + 1 / 2, so one tanh computes all four gates.
            is_candidate = np.arange(4 * units) // units == 2
            scale = jnp.broadcast_to(
                jnp.asarray(np.where(is_candidate, 1, 0.5), product.dtype), product.shape
            )
            shift = jnp.broadcast_to(
                jnp.asarray(np.where(is_candidate, 0, 0.5), product.dtype), product.shape
            )
            gates = scale * jnp.tanh(scale * (projected + product)) + shift
            i, f, g, o = jnp.split(gates, 4, axis=1)
            c = f * state[1] + i * g
            return (o * jnp.tanh(c), c), (gates,)
        case "gru":
            gates = _logistic(projected[:, : 2 * units] + product[:, : 2 * units])
            r, z = jnp.split(gates, 2, axis=1)
            inner = _add(product[:, 2 * units :], recurrent["bias"])
            n = jnp.tanh(projected[:, 2 * units :] + r * inner)
            return (n + z * (state[0] - n),), (jnp.concatenate([gates, n], axis=1), inner)
        case "tanh":
            return (jnp.tanh(projected + product),), ()
        case "relu":
            return (jax.nn.relu(projected + product),), ()


def scan_steps(
    cell: Cell,
    params: Params,
    carry: Array,
    x: Array,
    mask: Array | None,
    multiply: Callable[[Array], Array],
    compute_dtype: ComputeDtype,
    *,
    keep: bool = False,
) -> tuple[Array, Array, tuple[Array, ...]]:
    """The last carry, h of all steps, and, with ``keep``, what the gradient needs in addition.

    For an LSTM these are the gates and c, for a GRU the gates and the candidate's h W + d.
    x [time, batch, features]; mask [time, batch, 1]; multiply: h -> h W.
    """

    def body(state: State, xs: tuple[Array, Array | None]) -> tuple[State, Any]:
        projected, valid = xs
        after, inner = next_state(cell, params["recurrent"], multiply, state, projected)
        if valid is not None:
            after = jax.tree.map(functools.partial(jnp.where, valid), after, state)
        return after, (after[0], (*inner, *after[1:]) if keep else ())

    start, projected = unpack(cell, carry), project(params, x, compute_dtype=compute_dtype)
    last, (hidden, inner) = lax.scan(body, start, (projected, mask))
    return pack(last), hidden, inner


def require_fit(
    cell: Cell, params: Params, carry: Array, inputs: Array, axes: tuple[str, ...]
) -> None:
    """Raises ValueError unless inputs [*axes, features], carry and parameters fit each other."""
    require_one_of("cell", cell, CELLS)
    units = params["recurrent"]["kernel"].shape[0]
    require_shape("inputs", inputs, (*axes, params["input"]["kernel"].shape[0]))
    require_shape(
        "recurrent kernel", params["recurrent"]["kernel"], (units, len(GATES[cell]) * units)
    )
    # The batch size is symbolic in exported programs.
    rows = inputs.shape[0] if isinstance(inputs.shape[0], int) else "batch"
    require_shape("carry", carry, (rows, carry_size(cell, units)))


def steps_of(
    cell: Cell, params: Params, carry: Array, inputs: Array, mask: Array | None, reverse: bool
) -> tuple[Array, Array, Array | None]:
    """The arguments of ``unroll`` for ``scan_steps``: carry, and inputs and mask with time first.

    Raises ValueError if shapes do not fit.
    """
    require_fit(cell, params, carry, inputs, ("batch", "time"))
    kernel = params["input"]["kernel"]
    x = inputs.astype(kernel.dtype)
    if mask is not None:
        require_shape("mask", mask, inputs.shape[:2])
        # A masked step keeps the carry, but NaN in its inputs would still reach the gradients.
        x = jnp.where(mask[:, :, None], x, 0)
    valid = None if mask is None else _time_first(mask, reverse)[:, :, None]
    return carry.astype(wide(kernel)), _time_first(x, reverse), valid


def outputs_of(hidden: Array, mask: Array | None, reverse: bool) -> Array:
    """The outputs [batch, time, units] of ``unroll`` from h [time, batch, units]."""
    outputs = batch_first(hidden, reverse)
    return outputs if mask is None else jnp.where(mask[:, :, None], outputs, 0)


def _time_first(x: Array, reverse: bool) -> Array:
    """[batch, time, ...] -> [time, batch, ...], with time reversed if ``reverse``.

    So one scan serves both directions.  Padding may then come first, but masked steps are skipped.
    """
    return jnp.flip(x.swapaxes(0, 1), 0) if reverse else x.swapaxes(0, 1)


def batch_first(x: Array, reverse: bool) -> Array:
    """The inverse of ``_time_first``."""
    return jnp.flip(x.swapaxes(0, 1), 1) if reverse else x.swapaxes(0, 1)


def wide(kernel: Array) -> Any:
    """The type of sums: that of the array, but at least float32."""
    return jnp.promote_types(kernel.dtype, jnp.float32)


def product(
    a: Array, b: Array, axes: tuple[int, int] = (1, 0), *, compute_dtype: ComputeDtype = None
) -> Array:
    """The product of two matrices over these axes, with sums in at least float32."""
    dtype, summed = (
        compute_dtype or jnp.promote_types(a.dtype, b.dtype),
        jnp.promote_types(a.dtype, jnp.float32),
    )
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(
        a.astype(dtype), b.astype(dtype), dimensions, preferred_element_type=summed
    )


def unpack(cell: Cell, carry: Array) -> State:
    """Splits a carry into its arrays, (h,) or (h, c)."""
    if cell != "lstm":
        return (carry,)
    h, c = jnp.split(carry, 2, axis=1)
    return h, c


def pack(state: State) -> Array:
    """The inverse of ``unpack``."""
    return jnp.concatenate(state, axis=1)


def _add(x: Array, row: Array) -> Array:
    """x [..., n] + row [n]."""
    return x + jnp.broadcast_to(row.astype(x.dtype), x.shape)


def _logistic(x: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * x) + 0.5
