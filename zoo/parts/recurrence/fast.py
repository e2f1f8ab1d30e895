"""The same layer over time with a fast gradient.

``unroll`` projects the inputs of all steps in one matrix product.  Its gradient is written by hand:
everything that does not depend on the errors of later steps is computed for all steps at once, a
scan back in time only multiplies and adds errors, and each weight gradient is one matrix product
afterwards.  First derivatives support reverse mode only (``jax.custom_vjp`` raises TypeError for
forward mode); higher ones, and those of ``step``, support both modes.

On a CPU, two products are written in the form that XLA computes at full speed (docs/speed.md); the
results agree to rounding.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from zoo.base import Params
from zoo.parts.layers import ComputeDtype
from zoo.parts.recurrence.definition import (
    GATES,
    Cell,
    State,
    batch_first,
    outputs_of,
    pack,
    product,
    scan_steps,
    steps_of,
    unpack,
    wide,
)

LARGE = 2**16
"""Size of a kernel above which packing it costs more than its product with about ten rows."""
COLLIDING = 512
"""Row lengths that are multiples of this map all rows to the same few cache sets."""


class _Options(NamedTuple):
    """Static options.

    chunk: number of steps that the gradient recomputes at a time; None keeps all intermediates.
    """

    cell: Cell
    chunk: int | None
    compute_dtype: ComputeDtype


def unroll(
    cell: Cell,
    params: Params,
    carry: Float[Array, "batch state"],
    inputs: Float[Array, "batch time features"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    reverse: bool = False,
    remat: bool = False,
    compute_dtype: ComputeDtype = None,
) -> tuple[Float[Array, "batch state"], Float[Array, "batch time units"]]:
    """All steps from ``carry``: the last carry and the outputs of all steps, at least float32.

    mask: False marks padding.
    reverse: runs from the last step to the first; outputs keep the order of the inputs.
    remat: keep only the carry of about every sqrt(time)-th step and recompute the rest for the
    gradient.  This costs another forward pass, and saves memory: 2 sqrt(time) steps instead of all.
    compute_dtype: type of the factors of matrix products; sums, gates and the carry are at least
    float32.
    Raises ValueError if shapes do not fit.
    """
    carry, x, valid = steps_of(cell, params, carry, inputs, mask, reverse)
    chunk = max(1, math.ceil(math.sqrt(inputs.shape[1]))) if remat else None
    carry, hidden = _unroll(_Options(cell, chunk, compute_dtype), params, carry, x, valid)
    return carry, outputs_of(hidden, mask, reverse)


def inspect(
    cell: Cell,
    params: Params,
    carry: Float[Array, "batch state"],
    inputs: Float[Array, "batch time features"],
    *,
    reverse: bool = False,
    compute_dtype: ComputeDtype = None,
) -> dict[str, Array]:
    """Intermediate results of ``unroll``, [batch, time, units] each.

    These are the gates of an LSTM or GRU by name, and an LSTM's "cell".
    """
    carry, x, _ = steps_of(cell, params, carry, inputs, None, reverse)
    _, _, inner = _run(_Options(cell, None, compute_dtype), params, carry, x, None, keep=True)
    if not inner:
        return {}
    gates = jnp.split(batch_first(inner[0], reverse), len(GATES[cell]), axis=-1)
    return dict(zip(GATES[cell], gates, strict=True)) | (
        {"cell": batch_first(inner[1], reverse)} if cell == "lstm" else {}
    )


def _product(options: _Options, a: Array, b: Array, axes: tuple[int, int] = (1, 0)) -> Array:
    return product(a, b, axes, compute_dtype=options.compute_dtype)


def _multiplier(options: _Options, matrix: Array) -> Callable[[Array], Array]:
    """The function rows [batch, n] -> rows @ matrix [n, m] for the steps of a loop.

    The matrix is prepared here, before the loop.  XLA's CPU backend packs the right factor of a
    product again in every step, which takes as long as a product with few rows; it reads a left
    factor in place.
    """
    if matrix.size < LARGE:
        return functools.partial(_product, options, b=matrix)

    def on_cpu(rows: Array, transposed: Array) -> Array:
        # Without the barrier, the compiler swaps the factors back.
        return lax.optimization_barrier(_product(options, transposed, rows, (1, 1))).T

    plain = functools.partial(_product, options, axes=(1, 1))
    transposed = matrix.T
    return lambda rows: lax.platform_dependent(rows, transposed, cpu=on_cpu, default=plain)


def _correlation(options: _Options, a: Array, b: Array) -> Array:
    """a' b for a [rows, n] and b [rows, m]: a kernel's gradient from its inputs and output errors.

    If the left factor needs transposing, XLA's CPU backend calls another library, which reads b at
    half speed when the rows of b map to the same cache sets.  In this case a is transposed first.
    """
    plain = functools.partial(_product, options, axes=(0, 0))
    if b.shape[1] % COLLIDING:
        return plain(a, b)

    def on_cpu(a: Array, b: Array) -> Array:
        return _product(options, lax.optimization_barrier(a.T), b)

    return lax.platform_dependent(a, b, cpu=on_cpu, default=plain)


def _run(
    options: _Options, params: Params, carry: Array, x: Array, mask: Array | None, *, keep: bool
) -> tuple[Array, Array, tuple[Array, ...]]:
    """``scan_steps`` with a kernel prepared for the loop."""
    # Cast once here, not in every step.
    multiply = _multiplier(
        options, params["recurrent"]["kernel"].astype(options.compute_dtype or wide(carry))
    )
    return scan_steps(
        options.cell, params, carry, x, mask, multiply, options.compute_dtype, keep=keep
    )


def _shift(first: Array, steps: Array) -> Array:
    """The state before each step, from the first one and the states after each step."""
    return jnp.concatenate([first[None], steps])[:-1]


def _back(
    options: _Options,
    params: Params,
    carry: Array,
    x: Array,
    mask: Array | None,
    hidden: Array,
    inner: tuple[Array, ...],
    carry_error: Array,
    errors: Array,
) -> tuple[Params, Array, Array]:
    """The gradients with respect to params (at least float32), carry and x.

    carry_error, errors: the gradients with respect to the two results of ``_run``.
    """
    multiply = _multiplier(
        options, params["recurrent"]["kernel"].T.astype(options.compute_dtype or wide(carry))
    )
    start = unpack(options.cell, carry)
    previous = _shift(start[0], hidden)

    def valid(factor: Array, otherwise: float = 0.0) -> Array:
        # Replaced, not multiplied by zero: a padding row may hold NaN.
        return factor if mask is None else jnp.where(mask, factor, otherwise)

    # A step's errors of its gates, before their nonlinearities, are errors of h or c times factors
    # that do not depend on later steps.  These factors are computed here for all steps at once.
    # ``factors`` give the errors that are multiplied by W, ``other_factors`` the rest.
    match options.cell:
        case "lstm":
            gates, cells = inner
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            squashed = jnp.tanh(cells)
            slopes = (
                g * i * (1 - i),
                _shift(start[1], cells) * f * (1 - f),
                i * (1 - g * g),
                squashed * o * (1 - o),
            )
            factors = valid(jnp.concatenate(slopes, axis=-1))
            other_factors = (valid(o * (1 - squashed * squashed)), valid(f, 1.0))
        case "gru":
            gates, product = inner
            r, z, n = jnp.split(gates, 3, axis=-1)
            candidate = (1 - z) * (1 - n * n)
            slopes = (
                candidate * product * r * (1 - r),
                (previous - n) * z * (1 - z),
                candidate * r,
            )
            factors = valid(jnp.concatenate(slopes, axis=-1))
            other_factors = (valid(candidate), valid(z, 1.0))
        case "tanh":
            factors, other_factors = valid(1 - hidden * hidden), ()
        case "relu":
            factors, other_factors = valid((hidden > 0).astype(hidden.dtype)), ()

    def body(errors: State, xs: Any) -> tuple[State, Any]:
        error, factors, other_factors, valid = xs
        dh = errors[0] + error
        if options.cell == "lstm":
            to_cell, forget = other_factors
            dc = errors[1] + dh * to_cell
            inputs = jnp.concatenate([dc, dc, dc, dh], axis=1) * factors
            dh_before, rest, kept = multiply(inputs), (dc * forget,), inputs
        elif options.cell == "gru":
            candidate, update = other_factors
            recurrent = jnp.concatenate([dh, dh, dh], axis=1) * factors
            dh_before, rest, kept = (
                multiply(recurrent) + dh * update,
                (),
                (recurrent, dh * candidate),
            )
        else:
            inputs = dh * factors
            dh_before, rest, kept = multiply(inputs), (), inputs
        if valid is not None and options.cell != "gru":  # for a GRU, z = 1 in padding does this
            # A masked step copies the state, so its error passes unchanged.
            dh_before = dh_before + jnp.where(valid, 0, dh)
        return (dh_before, *rest), kept

    first, kept = lax.scan(
        body,
        unpack(options.cell, carry_error),
        (errors, factors, other_factors, mask),
        reverse=True,
    )
    if options.cell == "gru":
        recurrent_errors, candidate_errors = kept
        units = start[0].shape[1]
        input_errors = jnp.concatenate(
            [recurrent_errors[..., : 2 * units], candidate_errors], axis=-1
        )
        bias = {"bias": jnp.sum(recurrent_errors[..., 2 * units :], axis=(0, 1))}
    else:
        recurrent_errors, input_errors, bias = kept, kept, {}
    # One large product each for all steps instead of a sum of small ones within the scan.
    flat = _flat(input_errors)
    gradients = {
        "input": {"kernel": _correlation(options, _flat(x), flat), "bias": jnp.sum(flat, axis=0)},
        "recurrent": {
            "kernel": _correlation(options, _flat(valid(previous)), _flat(recurrent_errors)),
            **bias,
        },
    }
    dx = _product(options, flat, params["input"]["kernel"], (1, 1)).reshape(x.shape)
    return gradients, pack(first), dx


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _value(
    options: _Options, params: Params, carry: Array, x: Array, mask: Array | None
) -> tuple[Array, Array]:
    return _forward(options, False, params, carry, x, mask)[0]


# Jitted, so that calls outside of any jit are compiled only once.
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _forward(
    options: _Options, keep: bool, params: Params, carry: Array, x: Array, mask: Array | None
) -> tuple[tuple[Array, Array], Any]:
    """The last carry and h of all steps, and the residuals for the gradient.

    Residuals are the intermediates of all steps, or only the carry before each chunk.
    """
    if options.chunk is None:
        after, hidden, inner = _run(options, params, carry, x, mask, keep=keep)
        return (after, hidden), (params, carry, x, mask, hidden, inner)

    def body(carry: Array, xs: Any) -> tuple[Array, tuple[Array, Array]]:
        after, hidden, _ = _run(options, params, carry, *xs, keep=False)
        return after, (hidden, carry)

    after, (hidden, carries) = lax.scan(body, carry, _chunks(options.chunk, x, mask))
    return (after, _joined(hidden, x)), (params, carries, x, mask)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward(
    options: _Options, saved: Any, errors: tuple[Array, Array]
) -> tuple[Params, Array, Array, None]:
    params, _, x, mask, *_ = saved
    if options.chunk is None:
        _, carry, _, _, hidden, inner = saved
        gradients, carry_error, dx = _back(options, params, carry, x, mask, hidden, inner, *errors)
    else:
        carries = saved[1]

        def body(so_far: tuple[Array, Params], xs: Any) -> tuple[tuple[Array, Params], Array]:
            (carry_error, sums), (carry, x, mask, errors) = so_far, xs
            _, hidden, inner = _run(options, params, carry, x, mask, keep=True)
            gradients, carry_error, dx = _back(
                options, params, carry, x, mask, hidden, inner, carry_error, errors
            )
            return (carry_error, jax.tree.map(jnp.add, sums, gradients)), dx

        chunked = (
            carries,
            *_chunks(options.chunk, x, mask),
            _chunks(options.chunk, errors[1], None)[0],
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf)), params)
        (carry_error, gradients), dx = lax.scan(body, (errors[0], zeros), chunked, reverse=True)
        dx = _joined(dx, x)
    gradients = jax.tree.map(lambda gradient, leaf: gradient.astype(leaf.dtype), gradients, params)
    return gradients, carry_error, dx.astype(x.dtype), None


def _chunks(length: int, x: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """[time, ...] -> [chunks, length, ...]; the last chunk is filled up with zeros, masked."""
    time = x.shape[0]
    missing = -time % length

    def split(x: Array) -> Array:
        filled = jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))
        return filled.reshape(-1, length, *x.shape[1:])

    if mask is None and missing:
        mask = jnp.ones((time, x.shape[1], 1), bool)
    return split(x), None if mask is None else split(mask)


def _joined(chunks: Array, x: Array) -> Array:
    return chunks.reshape(-1, *chunks.shape[2:])[: x.shape[0]]


def _forward_keeping(options: _Options, *arguments: Any) -> tuple[tuple[Array, Array], Any]:
    return _forward(options, True, *arguments)


_unroll = jax.custom_vjp(_value, nondiff_argnums=(0,))
_unroll.defvjp(_forward_keeping, _backward)
