"""One recurrent layer over time, and what makes its gradient fast.

From inputs x_t and outputs h_{t-1}; gates are packed side by side in the order given:

tanh, relu   h_t = f(x_t U + b + h_{t-1} W)                        LeCun, Bengio, Hinton 2015, figure 5; Elman 1990
lstm         i, f, o = logistic(x_t U + b + h_{t-1} W)             Hochreiter and Schmidhuber 1997; forget gate f: Gers et al.
             g = tanh(x_t U + b + h_{t-1} W)                       2000; no peepholes
             c_t = f c_{t-1} + i g, h_t = o tanh(c_t)              packed i, f, g, o
gru          r, z = logistic(x_t U + b + h_{t-1} W)                Cho et al. 2014
             n = tanh(x_t U + b + r (h_{t-1} W + d))
             h_t = (1 - z) n + z h_{t-1}                           packed r, z, n

A GRU's reset gate r acts behind the recurrent product, as in cuDNN, torch and flax, so that all gates share one (the paper's acts
on h_{t-1} before it); z keeps the old state, as in the paper's equation 7.

Parameters: {"input": {"kernel" U [features, gates * units], "bias" b [gates * units]},
             "recurrent": {"kernel" W [units, gates * units]}}; a GRU's "recurrent" also has "bias" d [units].
The carry is one array: h [batch, units], or an LSTM's h and c side by side [batch, 2 * units].

A masked step leaves the carry as it is and has outputs of zero.  Whatever is in padding, NaN too, reaches no value and no
gradient of the rest.

``unroll`` projects the inputs of all steps in one matrix product.  Its gradient is written out: all that does not depend on the
errors of later steps is computed for all steps at once, then a scan back in time only multiplies and adds errors, and the
gradients of the weights are one matrix product each after it.  First derivatives are by reverse mode only (``jax.custom_vjp``,
which raises TypeError for forward mode); their own derivatives are by any, and so are those of ``step``.

On a CPU two products are written in the form that XLA computes at full speed (docs/speed.md); they agree to rounding.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

from zoo.base import Params, require_argument, require_integer, require_one_of, require_shape
from zoo.layers import INITIALIZERS, ComputeDtype, Initializer

Cell = Literal["tanh", "relu", "lstm", "gru"]
CELLS: tuple[Cell, ...] = get_args(Cell)
GATES: dict[Cell, tuple[str, ...]] = {
    "tanh": ("state",),
    "relu": ("state",),
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
}
"""What a cell computes from its inputs and the state before, in the order in which it is packed."""

LARGE = 2**16
"""Numbers of a kernel that costs more to pack in every step than the product with it is worth, for some ten rows."""
COLLIDING = 512
"""Columns, or a multiple, of matrices whose rows all fall into the same few lines of a cache."""


class _How(NamedTuple):
    """What is static.  chunk: steps computed again at a time for the gradient; None keeps what they computed."""

    cell: Cell
    chunk: int | None
    compute_dtype: ComputeDtype


def carry_size(cell: Cell, units: int) -> int:
    """Numbers that one row carries from step to step."""
    return 2 * units if cell == "lstm" else units


def init(
    cell: Cell,
    key: Array,
    features: int,
    units: int,
    initializer: Initializer = "glorot_uniform",
    forget_bias: float = 1.0,
) -> Params:
    """Each gate's input kernel by ``initializer``, its recurrent one orthogonal (Saxe et al. 2014); biases zero.

    forget_bias: of an LSTM's forget gate, so that it begins by remembering (Gers et al. 2000; Jozefowicz et al. 2015: 1).
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
    recurrent = {"kernel": jnp.concatenate([rotate(key, (units, units)) for key in keys[len(gates) :]], axis=1)}
    return {
        "input": {
            "kernel": jnp.concatenate([draw(key, (features, units)) for key in keys[: len(gates)]], axis=1),
            "bias": jnp.concatenate(bias),
        },
        "recurrent": recurrent | ({"bias": jnp.zeros(units)} if cell == "gru" else {}),
    }


def initial_carry(cell: Cell, params: Params, batch_size: Any) -> Float[Array, "batch state"]:
    """Zeros, of the type that a carry has: the parameters', but at least float32.  batch_size: symbolic while exporting."""
    kernel = params["recurrent"]["kernel"]
    return jnp.zeros((batch_size, carry_size(cell, kernel.shape[0])), _wide(kernel))


def output_of(cell: Cell, carry: Float[Array, "batch state"]) -> Float[Array, "batch units"]:
    """The output h that a carry holds: that of the last unmasked step."""
    return carry[:, : carry.shape[1] // 2] if cell == "lstm" else carry


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
    _require_fit(cell, params, carry, inputs, ("batch", "time"))
    kernel = params["input"]["kernel"]
    x = inputs.astype(kernel.dtype)
    if mask is not None:
        require_shape("mask", mask, inputs.shape[:2])
        x = jnp.where(mask[:, :, None], x, 0)
    chunk = max(1, math.ceil(math.sqrt(inputs.shape[1]))) if remat else None
    valid = None if mask is None else _time_first(mask, reverse)[:, :, None]
    how = _How(cell, chunk, compute_dtype)
    carry, hidden = _unroll(how, params, carry.astype(_wide(kernel)), _time_first(x, reverse), valid)
    outputs = _batch_first(hidden, reverse)
    return carry, outputs if mask is None else jnp.where(mask[:, :, None], outputs, 0)


def step(
    cell: Cell,
    params: Params,
    carry: Float[Array, "batch state"],
    inputs: Float[Array, "batch features"],
    *,
    compute_dtype: ComputeDtype = None,
) -> tuple[Float[Array, "batch state"], Float[Array, "batch units"]]:
    """One step of ``unroll``: the carry after it and its outputs.  Raises ValueError when shapes do not fit."""
    _require_fit(cell, params, carry, inputs, ("batch",))
    return advance(cell, params, carry, project(params, inputs, compute_dtype=compute_dtype), compute_dtype=compute_dtype)


def project(
    params: Params, inputs: Float[Array, "*batch features"], *, compute_dtype: ComputeDtype = None
) -> Float[Array, "*batch gates"]:
    """x U + b, of any number of steps in one matrix product: what ``advance`` goes on from."""
    return _project(_How("tanh", None, compute_dtype), params, inputs.astype(params["input"]["kernel"].dtype))


def advance(
    cell: Cell,
    params: Params,
    carry: Float[Array, "batch state"],
    projected: Float[Array, "batch gates"],
    *,
    compute_dtype: ComputeDtype = None,
) -> tuple[Float[Array, "batch state"], Float[Array, "batch units"]]:
    """``step`` from x_t U + b, which may have been computed in parts."""
    how, kernel = _How(cell, None, compute_dtype), params["recurrent"]["kernel"]
    carry = carry.astype(_wide(kernel))
    state, _ = _advance(how, params["recurrent"], functools.partial(_product, how, b=kernel), _unpack(how, carry), projected)
    return _pack(state), state[0]


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
    _require_fit(cell, params, carry, inputs, ("batch", "time"))
    how, kernel = _How(cell, None, compute_dtype), params["input"]["kernel"]
    x = _time_first(inputs.astype(kernel.dtype), reverse)
    _, _, inner = _run(how, params, carry.astype(_wide(kernel)), x, None, keep=True)
    if not inner:
        return {}
    gates = jnp.split(_batch_first(inner[0], reverse), len(GATES[cell]), axis=-1)
    return dict(zip(GATES[cell], gates, strict=True)) | ({"cell": _batch_first(inner[1], reverse)} if cell == "lstm" else {})


def _require_fit(cell: Cell, params: Params, carry: Array, inputs: Array, axes: tuple[str, ...]) -> None:
    require_one_of("cell", cell, CELLS)
    units = params["recurrent"]["kernel"].shape[0]
    require_shape("inputs", inputs, (*axes, params["input"]["kernel"].shape[0]))
    require_shape("recurrent kernel", params["recurrent"]["kernel"], (units, len(GATES[cell]) * units))
    rows = inputs.shape[0] if isinstance(inputs.shape[0], int) else "batch"  # exported programs leave the batch open
    require_shape("carry", carry, (rows, carry_size(cell, units)))


def _time_first(x: Array, reverse: bool) -> Array:
    """[batch, time, ...] -> [time, batch, ...], time reversed if told so: one scan serves both directions.

    Masked steps are passed by, wherever they then are.
    """
    return jnp.flip(x.swapaxes(0, 1), 0) if reverse else x.swapaxes(0, 1)


def _batch_first(x: Array, reverse: bool) -> Array:
    """The inverse of ``_time_first``."""
    return jnp.flip(x.swapaxes(0, 1), 1) if reverse else x.swapaxes(0, 1)


def _wide(kernel: Array) -> Any:
    return jnp.promote_types(kernel.dtype, jnp.float32)


def _product(how: _How, a: Array, b: Array, axes: tuple[int, int] = (1, 0)) -> Array:
    """The product of two matrices over these axes, its sums in at least float32."""
    dtype, wide = how.compute_dtype or jnp.promote_types(a.dtype, b.dtype), jnp.promote_types(a.dtype, jnp.float32)
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a.astype(dtype), b.astype(dtype), dimensions, preferred_element_type=wide)


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


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _add(x: Array, row: Array) -> Array:
    """x [..., n] + row [n]."""
    return x + jnp.broadcast_to(row.astype(x.dtype), x.shape)


def _project(how: _How, params: Params, x: Array) -> Array:
    """x U + b of all steps [time, batch, features] in one matrix product."""
    projected = _add(_product(how, _flat(x), params["input"]["kernel"]), params["input"]["bias"])
    return projected.reshape(*x.shape[:-1], projected.shape[-1])


State = tuple[Array, ...]
"""(h,) or (h, c)."""


def _unpack(how: _How, carry: Array) -> State:
    if how.cell != "lstm":
        return (carry,)
    h, c = jnp.split(carry, 2, axis=1)
    return h, c


def _pack(state: State) -> Array:
    return jnp.concatenate(state, axis=1)


def _logistic(x: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _advance(
    how: _How, recurrent: Params, multiply: Callable[[Array], Array], state: State, projected: Array
) -> tuple[State, tuple[Array, ...]]:
    """One step from x_t U + b: the state after it and what its gradient needs beside the states.  multiply: h -> h W."""
    product = multiply(state[0])
    units = state[0].shape[1]
    match how.cell:
        case "lstm":
            # logistic(x) = tanh(x / 2) / 2 + 1 / 2: one tanh serves all gates.
            is_candidate = np.arange(4 * units) // units == 2
            scale = jnp.broadcast_to(jnp.asarray(np.where(is_candidate, 1, 0.5), product.dtype), product.shape)
            shift = jnp.broadcast_to(jnp.asarray(np.where(is_candidate, 0, 0.5), product.dtype), product.shape)
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


def _run(
    how: _How, params: Params, carry: Array, x: Array, mask: Array | None, *, keep: bool
) -> tuple[Array, Array, tuple[Array, ...]]:
    """The last carry, h of all steps, and with ``keep`` what their gradient needs beside.

    That is an LSTM's gates and c, a GRU's gates and the h W + d of its candidate.
    x [time, batch, features]; mask [time, batch, 1].
    """
    # Cast once, not in every step.
    multiply = _multiplier(how, params["recurrent"]["kernel"].astype(how.compute_dtype or _wide(carry)))

    def body(state: State, at: tuple[Array, Array | None]) -> tuple[State, Any]:
        projected, valid = at
        after, inner = _advance(how, params["recurrent"], multiply, state, projected)
        if valid is not None:
            after = jax.tree.map(functools.partial(jnp.where, valid), after, state)
        return after, (after[0], (*inner, *after[1:]) if keep else ())

    last, (hidden, inner) = lax.scan(body, _unpack(how, carry), (_project(how, params, x), mask))
    return _pack(last), hidden, inner


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
    multiply = _multiplier(how, params["recurrent"]["kernel"].T.astype(how.compute_dtype or _wide(carry)))
    start = _unpack(how, carry)
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
            slopes = (g * i * (1 - i), _before(start[1], cells) * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o))
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
            dh_before, rest, kept = multiply(recurrent) + dh * update, (), (recurrent, dh * candidate)
        else:
            inputs = dh * factors
            dh_before, rest, kept = multiply(inputs), (), inputs
        if valid is not None and how.cell != "gru":  # whose update gate does it
            dh_before = dh_before + jnp.where(valid, 0, dh)
        return (dh_before, *rest), kept

    first, kept = lax.scan(body, _unpack(how, carry_error), (errors, factors, through, mask), reverse=True)
    if how.cell == "gru":
        recurrent_errors, candidate_errors = kept
        units = start[0].shape[1]
        input_errors = jnp.concatenate([recurrent_errors[..., : 2 * units], candidate_errors], axis=-1)
        bias = {"bias": jnp.sum(recurrent_errors[..., 2 * units :], axis=(0, 1))}
    else:
        recurrent_errors, input_errors, bias = kept, kept, {}
    flat = _flat(input_errors)
    gradients = {
        "input": {"kernel": _correlation(how, _flat(x), flat), "bias": jnp.sum(flat, axis=0)},
        "recurrent": {"kernel": _correlation(how, _flat(valid(before)), _flat(recurrent_errors)), **bias},
    }
    dx = _product(how, flat, params["input"]["kernel"], (1, 1)).reshape(x.shape)
    return gradients, _pack(first), dx


def _definition(how: _How, params: Params, carry: Array, x: Array, mask: Array | None) -> tuple[Array, Array]:
    return _forward(how, False, params, carry, x, mask)[0]


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)  # outside of any jit, nothing is compiled twice
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
def _backward(how: _How, saved: Any, errors: tuple[Array, Array]) -> tuple[Params, Array, Array, None]:
    params, _, x, mask, *_ = saved
    if how.chunk is None:
        _, carry, _, _, hidden, inner = saved
        gradients, carry_error, dx = _back(how, params, carry, x, mask, hidden, inner, *errors)
    else:
        carries = saved[1]

        def body(so_far: tuple[Array, Params], at: Any) -> tuple[tuple[Array, Params], Array]:
            (carry_error, sums), (carry, x, mask, errors) = so_far, at
            _, hidden, inner = _run(how, params, carry, x, mask, keep=True)
            gradients, carry_error, dx = _back(how, params, carry, x, mask, hidden, inner, carry_error, errors)
            return (carry_error, jax.tree.map(jnp.add, sums, gradients)), dx

        chunked = (carries, *_chunks(how.chunk, x, mask), _chunks(how.chunk, errors[1], None)[0])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _wide(leaf)), params)
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


_unroll = jax.custom_vjp(_definition, nondiff_argnums=(0,))
_unroll.defvjp(_forward_keeping, _backward)
