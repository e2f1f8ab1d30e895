"""The same layer over time, and what makes its gradient fast.

``unroll`` projects the inputs of all steps in one matrix product.  Its gradient is written out: all that does not depend on the
errors of later steps is computed for all steps at once, then a scan back in time only multiplies and adds errors, and the
gradients of the weights are one matrix product each after it.  First derivatives are by reverse mode only (``jax.custom_vjp``,
which raises TypeError for forward mode); their own derivatives are by any, and so are those of ``step``.

On a CPU two products are written in the form that XLA computes at full speed (docs/speed.md); they agree to rounding.
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
"""Numbers of a kernel that costs more to pack in every step than the product with it is worth, for some ten rows."""
COLLIDING = 512
"""Columns, or a multiple, of matrices whose rows all fall into the same few lines of a cache."""


class _How(NamedTuple):
    """What is static.  chunk: steps computed again at a time for the gradient; None keeps what they computed."""

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
    """All steps from ``carry``: the carry after the last one, and the outputs of each, both of at least float32.

    mask: False marks steps that are not there.  reverse: from the last step to the first; outputs stay where their inputs are.
    remat: for the gradient keep only the carry of about every sqrt(time)-th step and compute again what lies between, which
    takes another forward pass and memory for 2 sqrt(time) steps instead of for all.
    compute_dtype: of the factors of matrix products; their sums, gates and the carry have at least float32.
    Raises ValueError when shapes do not fit.
    """
    carry, x, valid = steps_of(cell, params, carry, inputs, mask, reverse)
    chunk = max(1, math.ceil(math.sqrt(inputs.shape[1]))) if remat else None
    carry, hidden = _unroll(_How(cell, chunk, compute_dtype), params, carry, x, valid)
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
    """What lies inside of ``unroll``: an LSTM's and a GRU's gates by name, an LSTM's "cell"; [batch, time, units] each."""
    carry, x, _ = steps_of(cell, params, carry, inputs, None, reverse)
    _, _, inner = _run(_How(cell, None, compute_dtype), params, carry, x, None, keep=True)
    if not inner:
        return {}
    gates = jnp.split(batch_first(inner[0], reverse), len(GATES[cell]), axis=-1)
    return dict(zip(GATES[cell], gates, strict=True)) | (
        {"cell": batch_first(inner[1], reverse)} if cell == "lstm" else {}
    )


def _product(how: _How, a: Array, b: Array, axes: tuple[int, int] = (1, 0)) -> Array:
    return product(a, b, axes, compute_dtype=how.compute_dtype)


def _multiplier(how: _How, matrix: Array) -> Callable[[Array], Array]:
    """rows [batch, n] -> rows @ matrix [n, m], for the steps of a loop, which the matrix is prepared before.

    XLA's CPU backend packs the right factor of a product anew in every step, which takes as long as the product of few rows
    itself; a left factor is read as it lies there.
    """
    if matrix.size < LARGE:
        return functools.partial(_product, how, b=matrix)

    def on_cpu(rows: Array, turned: Array) -> Array:
        # Without the barrier the compiler exchanges the factors again.
        return lax.optimization_barrier(_product(how, turned, rows, (1, 1))).T

    plain = functools.partial(_product, how, axes=(1, 1))
    turned = matrix.T
    return lambda rows: lax.platform_dependent(rows, turned, cpu=on_cpu, default=plain)


def _correlation(how: _How, a: Array, b: Array) -> Array:
    """The transpose of a [rows, n] times b [rows, m]: a kernel's gradient from its inputs and the errors of its outputs.

    XLA's CPU backend leaves a left factor that it would have to transpose to another library, whose reading of b is at half its
    speed where the columns of b lie in the same cache lines; so it is transposed first there.
    """
    plain = functools.partial(_product, how, axes=(0, 0))
    if b.shape[1] % COLLIDING:
        return plain(a, b)

    def on_cpu(a: Array, b: Array) -> Array:
        return _product(how, lax.optimization_barrier(a.T), b)

    return lax.platform_dependent(a, b, cpu=on_cpu, default=plain)


def _run(
    how: _How, params: Params, carry: Array, x: Array, mask: Array | None, *, keep: bool
) -> tuple[Array, Array, tuple[Array, ...]]:
    """``scan_steps``, with the kernel prepared for the steps."""
    # Cast once, not in every step.
    multiply = _multiplier(
        how, params["recurrent"]["kernel"].astype(how.compute_dtype or wide(carry))
    )
    return scan_steps(how.cell, params, carry, x, mask, multiply, how.compute_dtype, keep=keep)


def _before(first: Array, steps: Array) -> Array:
    """What each step began with, from what each ended with."""
    return jnp.concatenate([first[None], steps])[:-1]


def _back(
    how: _How,
    params: Params,
    carry: Array,
    x: Array,
    mask: Array | None,
    hidden: Array,
    inner: tuple[Array, ...],
    carry_error: Array,
    errors: Array,
) -> tuple[Params, Array, Array]:
    """From the gradients with respect to both results of ``_run``, those for params (of at least float32), carry and x."""
    multiply = _multiplier(
        how, params["recurrent"]["kernel"].T.astype(how.compute_dtype or wide(carry))
    )
    start = unpack(how.cell, carry)
    before = _before(start[0], hidden)

    def valid(factor: Array, otherwise: float = 0.0) -> Array:
        # Replaced, not multiplied: the state of a row of padding may be anything.
        return factor if mask is None else jnp.where(mask, factor, otherwise)

    # Each step's errors of its gates, before their nonlinearities, are factors times errors of h or c.
    match how.cell:
        case "lstm":
            gates, cells = inner
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            squashed = jnp.tanh(cells)
            slopes = (
                g * i * (1 - i),
                _before(start[1], cells) * f * (1 - f),
                i * (1 - g * g),
                squashed * o * (1 - o),
            )
            factors = valid(jnp.concatenate(slopes, axis=-1))
            through = (valid(o * (1 - squashed * squashed)), valid(f, 1.0))
        case "gru":
            gates, product = inner
            r, z, n = jnp.split(gates, 3, axis=-1)
            candidate = (1 - z) * (1 - n * n)
            slopes = (candidate * product * r * (1 - r), (before - n) * z * (1 - z), candidate * r)
            factors = valid(jnp.concatenate(slopes, axis=-1))
            through = (valid(candidate), valid(z, 1.0))
        case "tanh":
            factors, through = valid(1 - hidden * hidden), ()
        case "relu":
            factors, through = valid((hidden > 0).astype(hidden.dtype)), ()

    def body(errors: State, at: Any) -> tuple[State, Any]:
        error, factors, through, valid = at
        dh = errors[0] + error
        if how.cell == "lstm":
            to_cell, forget = through
            dc = errors[1] + dh * to_cell
            inputs = jnp.concatenate([dc, dc, dc, dh], axis=1) * factors
            dh_before, rest, kept = multiply(inputs), (dc * forget,), inputs
        elif how.cell == "gru":
            candidate, update = through
            recurrent = jnp.concatenate([dh, dh, dh], axis=1) * factors
            dh_before, rest, kept = (
                multiply(recurrent) + dh * update,
                (),
                (recurrent, dh * candidate),
            )
        else:
            inputs = dh * factors
            dh_before, rest, kept = multiply(inputs), (), inputs
        if valid is not None and how.cell != "gru":  # whose update gate does it
            dh_before = dh_before + jnp.where(valid, 0, dh)
        return (dh_before, *rest), kept

    first, kept = lax.scan(
        body, unpack(how.cell, carry_error), (errors, factors, through, mask), reverse=True
    )
    if how.cell == "gru":
        recurrent_errors, candidate_errors = kept
        units = start[0].shape[1]
        input_errors = jnp.concatenate(
            [recurrent_errors[..., : 2 * units], candidate_errors], axis=-1
        )
        bias = {"bias": jnp.sum(recurrent_errors[..., 2 * units :], axis=(0, 1))}
    else:
        recurrent_errors, input_errors, bias = kept, kept, {}
    flat = _flat(input_errors)
    gradients = {
        "input": {"kernel": _correlation(how, _flat(x), flat), "bias": jnp.sum(flat, axis=0)},
        "recurrent": {
            "kernel": _correlation(how, _flat(valid(before)), _flat(recurrent_errors)),
            **bias,
        },
    }
    dx = _product(how, flat, params["input"]["kernel"], (1, 1)).reshape(x.shape)
    return gradients, pack(first), dx


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _value(
    how: _How, params: Params, carry: Array, x: Array, mask: Array | None
) -> tuple[Array, Array]:
    return _forward(how, False, params, carry, x, mask)[0]


@functools.partial(
    jax.jit, static_argnums=(0, 1), inline=True
)  # outside of any jit, nothing is compiled twice
def _forward(
    how: _How, keep: bool, params: Params, carry: Array, x: Array, mask: Array | None
) -> tuple[tuple[Array, Array], Any]:
    """The last carry and h of all steps; and for the gradient what these computed, or the carry before each chunk."""
    if how.chunk is None:
        after, hidden, inner = _run(how, params, carry, x, mask, keep=keep)
        return (after, hidden), (params, carry, x, mask, hidden, inner)

    def body(carry: Array, at: Any) -> tuple[Array, tuple[Array, Array]]:
        after, hidden, _ = _run(how, params, carry, *at, keep=False)
        return after, (hidden, carry)

    after, (hidden, carries) = lax.scan(body, carry, _chunks(how.chunk, x, mask))
    return (after, _joined(hidden, x)), (params, carries, x, mask)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward(
    how: _How, saved: Any, errors: tuple[Array, Array]
) -> tuple[Params, Array, Array, None]:
    params, _, x, mask, *_ = saved
    if how.chunk is None:
        _, carry, _, _, hidden, inner = saved
        gradients, carry_error, dx = _back(how, params, carry, x, mask, hidden, inner, *errors)
    else:
        carries = saved[1]

        def body(so_far: tuple[Array, Params], at: Any) -> tuple[tuple[Array, Params], Array]:
            (carry_error, sums), (carry, x, mask, errors) = so_far, at
            _, hidden, inner = _run(how, params, carry, x, mask, keep=True)
            gradients, carry_error, dx = _back(
                how, params, carry, x, mask, hidden, inner, carry_error, errors
            )
            return (carry_error, jax.tree.map(jnp.add, sums, gradients)), dx

        chunked = (carries, *_chunks(how.chunk, x, mask), _chunks(how.chunk, errors[1], None)[0])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf)), params)
        (carry_error, gradients), dx = lax.scan(body, (errors[0], zeros), chunked, reverse=True)
        dx = _joined(dx, x)
    gradients = jax.tree.map(lambda gradient, leaf: gradient.astype(leaf.dtype), gradients, params)
    return gradients, carry_error, dx.astype(x.dtype), None


def _chunks(length: int, x: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """[time, ...] -> [chunks, length, ...], filled up with zeros and with steps that are masked."""
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


def _forward_keeping(how: _How, *arguments: Any) -> tuple[tuple[Array, Array], Any]:
    return _forward(how, True, *arguments)


_unroll = jax.custom_vjp(_value, nondiff_argnums=(0,))
_unroll.defvjp(_forward_keeping, _backward)
