"""Counts operations and bytes of a jaxpr; the compiler's own analysis counts loop bodies once."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

ELEMENTWISE = frozenset(
    [
        *(
            "abs",
            "add",
            "add_any",
            "atan2",
            "cbrt",
            "ceil",
            "cos",
            "cosh",
            "div",
            "erf",
            "erf_inv",
            "erfc",
            "exp",
            "exp2",
            "expm1",
        ),
        *(
            "floor",
            "integer_pow",
            "lgamma",
            "log",
            "log1p",
            "logistic",
            "max",
            "min",
            "mul",
            "neg",
            "nextafter",
            "pow",
            "rem",
        ),
        *("round", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh"),
    ]
)
"""Primitives with one operation per value of a floating-point result."""
REDUCTIONS = frozenset(
    [
        *(f"cum{name}" for name in ("logsumexp", "max", "min", "prod", "sum")),
        "argmax",
        "argmin",
        *(f"reduce_{name}" for name in ("max", "min", "prod", "sum")),
    ]
)
"""Primitives with one operation per value of the operand."""
WINDOWS = frozenset(
    ["reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"]
)
"""Primitives with one operation per value under each window."""
PASSED = frozenset(["select_and_gather_add", "select_and_scatter_add"])
"""Their gradients: one operation per value under each window; the smaller operand has one value per
window."""
LOOKUPS = frozenset(
    ["gather", "scatter", "scatter_add", "scatter_max", "scatter_min", "scatter_mul"]
)
"""Primitives whose arithmetic is negligible, but which move rows one by one."""


class Operation(NamedTuple):
    """Cost of one primitive, which is executed ``times`` times.

    products: FLOP of matrix products and convolutions, two per multiply-add, not counting padding
    and the zeros of dilation.  others: other floating-point operations.  bytes: of operands and
    results, for primitives that are not fused with a neighbour (products, windows, look-ups).
    dtype: of the operands.
    """

    name: str
    products: float
    others: float
    bytes: float
    dtype: str
    times: int


class Total(NamedTuple):
    """Sums of operations."""

    products: float
    others: float
    bytes: float


def total(operations: Iterable[Operation]) -> Total:
    """Sums over all operations, each multiplied by its ``times``."""
    rows = [
        (row.times * row.products, row.times * row.others, row.times * row.bytes)
        for row in operations
    ]
    return Total(*(sum(column) for column in zip(*rows, strict=True))) if rows else Total(0, 0, 0)


def operations(jaxpr: ClosedJaxpr | Jaxpr, platform: str) -> list[Operation]:
    """All operations of a jaxpr on one device of a platform ("tpu", "cuda", "cpu"), in order.

    Loop bodies count once per iteration.  Loops with a data-dependent trip count, and their
    conditions, count once, because they are the trainer's loop over steps.  Inside ``shard_map``
    shapes are those of one device's shard; code outside it is assumed to run on every device.  Of
    platform-dependent branches the platform's own counts, of other branches the one with the most
    operations.
    """
    return list(_walk(jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr, platform, 1))


def size(tree: Any) -> int:
    """Bytes of the arrays, or their shapes, in a pytree."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _walk(jaxpr: Jaxpr, platform: str, times: int) -> Iterator[Operation]:
    for eqn in jaxpr.eqns:
        operation = _operation(eqn, times)
        if operation is not None:
            yield operation
        elif eqn.primitive.name == "cond":
            yield from _branch(eqn, platform, times)
        else:
            inner = times * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
            for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(value):
                    yield from _walk(getattr(value, "jaxpr", value), platform, inner)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _branch(eqn: Any, platform: str, times: int) -> list[Operation]:
    branches, platforms = eqn.params["branches"], eqn.params.get("branches_platforms")
    if platforms is not None:
        index = next(
            index for index, names in enumerate(platforms) if names is None or platform in names
        )
        return list(_walk(branches[index].jaxpr, platform, times))
    return max(
        (list(_walk(branch.jaxpr, platform, times)) for branch in branches),
        key=lambda branch: sum(total(branch)[:2]),
    )


def _operation(eqn: Any, times: int) -> Operation | None:
    """The equation's cost; None if it is not counted or calls other jaxprs."""
    name, operands, results = (
        eqn.primitive.name,
        [atom.aval for atom in eqn.invars],
        [atom.aval for atom in eqn.outvars],
    )
    products, others, moved = 0, 0, _sum(operands) + _sum(results)
    if name == "dot_general":
        products = _dot(operands[0], results[0], eqn.params)
    elif name == "conv_general_dilated":
        products = _convolution(operands[0], operands[1], results[0], eqn.params)
    elif name in WINDOWS:
        others = math.prod(eqn.params["window_dimensions"]) * results[0].size
    elif name in PASSED:
        others = math.prod(eqn.params["window_dimensions"]) * min(aval.size for aval in operands)
    elif name in LOOKUPS:
        # Only the rows that are looked up move, in and out; the rest of the table is not touched.
        rows = results[0] if name == "gather" else operands[-1]
        moved = 2 * _bytes(rows) + _bytes(operands[1])
    elif name in REDUCTIONS and _floating(operands[0]):
        others, moved = operands[0].size, 0
    elif name in ELEMENTWISE and _floating(results[0]):
        others, moved = results[0].size, 0
    else:
        return None
    return Operation(name, products, others, moved, str(operands[0].dtype), times)


def _dot(left: Any, result: Any, params: dict[str, Any]) -> int:
    contracted = params["dimension_numbers"][0][0]
    return 2 * result.size * math.prod(left.shape[axis] for axis in contracted)


def _convolution(left: Any, right: Any, result: Any, params: dict[str, Any]) -> int:
    """Two operations per pair of value and tap; padding and the zeros of dilation do not count."""
    at = params["dimension_numbers"]
    pairs = 1
    for axis, (low, _) in enumerate(params["padding"]):
        sizes = (spec[2 + axis] for spec in (at.lhs_spec, at.rhs_spec, at.out_spec))
        values, taps, outputs = (
            aval.shape[index] for aval, index in zip((left, right, result), sizes, strict=True)
        )
        dilation = params["lhs_dilation"][axis]
        positions = np.arange(outputs)[:, None] * params["window_strides"][axis] - low
        positions = positions + np.arange(taps) * params["rhs_dilation"][axis]
        pairs *= int(
            (
                (positions >= 0)
                & (positions <= (values - 1) * dilation)
                & (positions % dilation == 0)
            ).sum()
        )
    # The kernel's input axis is that of one feature group; batch groups split the batch likewise.
    batch, features = (result.shape[at.out_spec[axis]] for axis in (0, 1))
    return 2 * pairs * batch * features * right.shape[at.rhs_spec[1]]


def _floating(aval: Any) -> bool:
    return jax.numpy.issubdtype(aval.dtype, np.floating)


def _sum(avals: Iterable[Any]) -> int:
    return sum(_bytes(aval) for aval in avals)


def _bytes(aval: Any) -> int:
    dtype = aval.dtype
    return math.prod(aval.shape) * (
        8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
    )
