"""Checks of Config fields and function arguments.

Their ValueErrors name the field or argument, its value, and the allowed values.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer


def plain(value: Any) -> Any:
    """Converts NumPy and JAX scalars and 0-d arrays to Python's bool, int, float, complex or str.

    Also inside tuples and lists.  The conversion is exact: ``np.float32(0.1)`` becomes
    0.10000000149011612.  Anything else is returned unchanged.
    Raises ValueError for a traced value, which is not known yet.
    """
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, Tracer):
        raise ValueError(f"{value} is traced, allowed: concrete values")
    if (
        not isinstance(value, np.generic | np.ndarray | Array)
        or value.ndim
        or jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    ):
        return value
    scalar = value.item()
    # item() of a longdouble is still a NumPy scalar.
    return float(scalar) if isinstance(scalar, np.floating) else scalar


def require(condition: bool, cfg: Any, field: str, allowed: str) -> None:
    """Raises ValueError unless ``condition`` holds.

    It names the field of the Config, its value and the allowed values.
    """
    if not condition:
        raise ValueError(
            f"{type(cfg).__module__}.{type(cfg).__name__}: {field}={getattr(cfg, field)!r}, "
            f"allowed: {allowed}"
        )


def require_choice(cfg: Any, field: str, choices: tuple[Any, ...]) -> None:
    """Raises ValueError unless a field of a Config is one of ``choices``."""
    require(
        getattr(cfg, field) in choices,
        cfg,
        field,
        "one of " + ", ".join(repr(choice) for choice in choices),
    )


def require_positive(cfg: Any, *fields: str) -> None:
    """Raises ValueError unless fields of a Config are positive finite numbers."""
    for field in fields:
        value = getattr(cfg, field)
        require(is_number(value) and 0 < value < math.inf, cfg, field, "a positive number")


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float, but not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_argument(name: str, value: Any, fits: Callable[[Any], bool], allowed: str) -> None:
    """Raises ValueError naming an argument, its value and the allowed values, unless it fits.

    The value is first converted by ``plain``.  A traced value is unknown and passes.
    """
    if not isinstance(value, Tracer) and not fits(value := plain(value)):
        raise ValueError(f"{name}={value!r}, allowed: {allowed}")


def require_integer(
    name: str, value: Any, *, at_least: int = 1, at_most: int | None = None
) -> None:
    """Raises ValueError unless an argument is an integer in this range."""
    limits = f"an integer, {at_least} " + ("or more" if at_most is None else f"to {at_most}")
    most = math.inf if at_most is None else at_most
    require_argument(
        name, value, lambda number: type(number) is int and at_least <= number <= most, limits
    )


def require_real(name: str, value: Any, *, at_least: float = 0.0, below: float = math.inf) -> None:
    """Raises ValueError unless an argument is a finite number in this range."""
    limits = f"a number, {at_least:g} " + (
        "or more" if below == math.inf else f"<= {name} < {below:g}"
    )
    require_argument(
        name, value, lambda number: is_number(number) and at_least <= number < below, limits
    )


def require_one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises ValueError unless an argument is one of ``choices``."""
    require_argument(
        name, value, lambda one: one in choices, "one of " + ", ".join(map(repr, choices))
    )


def require_shape(name: str, array: Any, shape: tuple[int | str | None, ...]) -> None:
    """Raises ValueError unless the array's shape matches.

    shape: an int is the required length of this axis, a str names an axis of any length.
    """
    actual = jnp.shape(array)
    fits = len(actual) == len(shape) and all(
        not isinstance(want, int) or want == have for want, have in zip(shape, actual, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(axis) for axis in shape)
        raise ValueError(f"{name}: shape {actual}, expected [{wanted}]")


def require_inputs(
    inputs: Array, size: int, values: tuple[float, float] | None, what: str
) -> Array:
    """Reshapes inputs [batch, ...] of ``size`` values each to [batch, size].

    what: the name of this size in the Config.
    Raises ValueError for another size, and for concrete values outside the range ``values``; traced
    values are not checked.
    """
    if inputs.ndim < 2 or math.prod(inputs.shape[1:]) != size:
        raise ValueError(
            f"inputs: shape {inputs.shape}, expected [batch, ...] with {what}={size} values each"
        )
    if values is not None and not isinstance(inputs, Tracer):
        require_range("inputs", inputs, values)
    return inputs.reshape(inputs.shape[0], size)


def require_range(name: str, array: Any, values: tuple[float, float]) -> None:
    """Raises ValueError unless all values of an array are in the range ``values``.

    Integers are compared exactly, other types to within rounding in single precision.
    """
    low, high = values
    array = np.asarray(array)  # on the host: JAX would trace this within a traced function
    least, greatest = (array.min(), array.max()) if array.size else values
    slack = 0 if array.dtype.kind in "bui" else 1e-6 * (high - low)
    if not low - slack <= least <= greatest <= high + slack:
        raise ValueError(
            f"{name}: values from {least:g} to {greatest:g}, allowed: {low:g} to {high:g}"
        )
