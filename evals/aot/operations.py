"""Operations and bytes of a function, counted over its jaxpr: the compiler's own analysis takes each loop for one iteration."""

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
"""Primitives with one operation for each value of their result, if it is a floating-point number."""
REDUCTIONS = frozenset([*(f"cum{name}" for name in ("logsumexp", "max", "min", "prod", "sum")), "argmax", "argmin",
                        *(f"reduce_{name}" for name in ("max", "min", "prod", "sum"))])  # fmt: skip
"""With one operation for each value of their operand."""
WINDOWS = frozenset(
    ["reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"]
)
"""With one operation for each value under each window."""
PASSED = frozenset(["select_and_gather_add", "select_and_scatter_add"])
"""The gradients of those: one for each value under each window, whose number is that of the smaller operand."""
LOOKUPS = frozenset(
    ["gather", "scatter", "scatter_add", "scatter_max", "scatter_min", "scatter_mul"]
)
"""They compute nothing worth counting, but move rows one by one."""


class Operation(NamedTuple):
    """What one primitive of a function does at each of its ``times``.

    products: floating-point operations of matrix products and convolutions, a multiply-add being two; products with padding and
    with the zeros between dilated values are not counted.  others: of everything else.
    bytes: of operands and results, where they are not fused with a neighbour's: products, windows and look-ups.
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
    """Of all operations, as often as they are done."""
    rows = [
        (each.times * each.products, each.times * each.others, each.times * each.bytes)
        for each in operations
    ]
    return Total(*(sum(column) for column in zip(*rows, strict=True))) if rows else Total(0, 0, 0)


def operations(jaxpr: ClosedJaxpr | Jaxpr, platform: str) -> list[Operation]:
    """All operations of a jaxpr on one device of this platform ("tpu", "cuda", "cpu"), in their order.

    Loops count as often as they run; those whose number of iterations is data count once, and so do their conditions: they are
    the trainer's loop over steps.  Within ``shard_map`` shapes are one device's share; what is outside it is taken to be done by
    every device.  Of the branches for platforms this one's counts, of others the one with the most operations.
    """
    return list(_walk(jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr, platform, 1))


def size(tree: Any) -> int:
    """Bytes of the arrays, or their shapes, in a pytree."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _walk(jaxpr: Jaxpr, platform: str, times: int) -> Iterator[Operation]:
    for eqn in jaxpr.eqns:
        found = _operation(eqn, times)
        if found is not None:
            yield found
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
        key=lambda found: sum(total(found)[:2]),
    )


def _operation(eqn: Any, times: int) -> Operation | None:
    """None if it is not counted, or is a call of others."""
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
        # Only the rows that are looked up move, there and back; of the table that they lie in the rest is not touched.
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
    """Two for each pair of a value and a tap that meet: neither padding nor the zeros of dilation."""
    at = params["dimension_numbers"]
    pairs = 1
    for axis, (low, _) in enumerate(params["padding"]):
        sizes = (spec[2 + axis] for spec in (at.lhs_spec, at.rhs_spec, at.out_spec))
        values, taps, outputs = (
            aval.shape[index] for aval, index in zip((left, right, result), sizes, strict=True)
        )
        spread = params["lhs_dilation"][axis]
        places = np.arange(outputs)[:, None] * params["window_strides"][axis] - low
        places = places + np.arange(taps) * params["rhs_dilation"][axis]
        pairs *= int(
            ((places >= 0) & (places <= (values - 1) * spread) & (places % spread == 0)).sum()
        )
    # The kernel's input axis is what one group of features sees; groups of the batch make as many parts of the batch.
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
