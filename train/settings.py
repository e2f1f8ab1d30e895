"""Run-time type checks for settings: frozen dataclasses of plain Python values."""

import dataclasses
import functools
import reprlib
import types
import typing
from typing import Any, Literal, TypeVar, get_args, get_origin

from zoo.parts.checking import plain

_SAID = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
}


def settle(settings: Any, where: str) -> None:
    """Converts and checks the fields of a frozen dataclass; call in its ``__post_init__``.

    Converts NumPy and JAX numbers to Python's, and lists to tuples.  Raises ValueError, starting
    with ``where``, for a field that does not match its annotation: 2.0 and True are not integers,
    but integers are numbers.
    """
    for name, hint in _hints(type(settings)).items():
        try:
            value = _tupled(plain(getattr(settings, name)))
        except ValueError as error:
            raise ValueError(f"{where}{name}: {error}") from None
        if not _fits(value, hint):
            raise ValueError(f"{where}{name}={shown(value)}, allowed: {_said(hint)}")
        object.__setattr__(settings, name, value)


def shown(value: Any) -> str:
    """A shortened value for error messages."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if type(value) in (list, tuple) else value


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(parts) == len(value) and all(map(_fits, value, parts))
    if hint in (int, bool):
        return type(value) is hint
    if hint is float:
        return type(value) in (int, float)
    return isinstance(value, origin or hint)


def _said(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_said(part) for part in parts)
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin is tuple:
        kinds = dict.fromkeys(_said(part) for part in parts if part is not ...)
        return (
            f"a tuple, each {' or '.join(kinds)}"
            if parts[1:] == (...,)
            else f"a tuple of {len(parts)}, each {' or '.join(kinds)}"
        )
    cls = origin or hint
    return _SAID.get(cls) or f"{cls.__module__}.{cls.__qualname__}"
