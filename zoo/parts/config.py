"""The decorator of all Configs: static values, checked by their annotations.

    @static
    @dataclass(frozen=True, kw_only=True)
    class Config:
        sizes: Annotated[tuple[int, ...], at_least(2)]
        activation: Literal["relu", "tanh"] = "relu"
        dropout: Rate = 0.0

So ``__post_init__`` only checks rules that involve several fields.
"""

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import jax
import numpy as np
from jax import Array

from zoo.parts.checking import is_number, plain, require

T = TypeVar("T")


class Rule(NamedTuple):
    """Metadata of an annotation: the values that a field may have.

    fits: whether a value is allowed.  allowed: a description of these values for the error message.
    """

    fits: Callable[[Any], bool]
    allowed: str


PositiveInt = Annotated[
    int, Rule(lambda value: type(value) is int and value >= 1, "a positive integer")
]
PositiveFloat = Annotated[
    float, Rule(lambda value: is_number(value) and 0 < value < math.inf, "a positive number")
]
NonNegativeFloat = Annotated[
    float, Rule(lambda value: is_number(value) and 0 <= value < math.inf, "a number, 0 or more")
]
Rate = Annotated[
    float,
    Rule(
        lambda value: is_number(value) and 0 <= value < 1,
        "a probability of dropping, 0 <= rate < 1",
    ),
]


def at_least(count: int) -> Rule:
    """The rule for a tuple of at least ``count`` positive integers."""

    def fits(value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and len(value) >= count
            and all(type(size) is int and size >= 1 for size in value)
        )

    return Rule(fits, f"{count} or more positive integers")


def static(cls: type[T]) -> type[T]:
    """Class decorator for Configs: pytrees without leaves, part of the trace instead of its input.

    Arguments are first converted by ``plain``, and lists to tuples for tuple fields, so that
    Configs with equal numbers are equal, share one trace, and can be written as text.  Fields are
    then checked against their annotations: ``Literal``, ``bool``, or one with a ``Rule``; unions
    with None also allow None.  Then ``__post_init__`` runs, if the class has one.
    Raises ValueError naming a field that is traced, an array, or does not fit its annotation.
    """
    initialise, check = cls.__init__, getattr(cls, "__post_init__", None)
    names = list(inspect.signature(initialise).parameters)[1:]

    def known(name: str, value: Any) -> Any:
        where = f"{cls.__module__}.{cls.__name__}: {name}"
        try:
            value = plain(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if isinstance(value, np.ndarray | Array):
            raise ValueError(
                f"{where} is an array of shape {value.shape}, "
                "allowed: plain Python values, such as a tuple"
            )
        return tuple(value) if isinstance(value, list) and name in _rules(cls).tuples else value

    @functools.wraps(initialise)
    def init(self: Any, *args: Any, **fields: Any) -> None:
        positional = [known(name, value) for name, value in zip(names, args, strict=False)]
        initialise(
            self,
            *positional,
            *args[len(names) :],
            **{name: known(name, value) for name, value in fields.items()},
        )
        if check is None:  # otherwise the dataclass has called it
            self.__post_init__()

    def post_init(self: Any) -> None:
        """Raises ValueError naming the field, its value and the allowed ones."""
        for name, rule in _rules(cls).rules.items():
            require(rule.fits(getattr(self, name)), self, name, rule.allowed)
        if check is not None:
            check(self)

    cls.__init__ = init
    cls.__post_init__ = post_init  # pyright: ignore[reportAttributeAccessIssue]
    return jax.tree_util.register_static(cls)


class _Rules(NamedTuple):
    """The rules of a class by field name.  tuples: names of the tuple fields."""

    rules: dict[str, Rule]
    tuples: set[str]


@functools.cache
def _rules(cls: type) -> _Rules:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:  # a class in a function, whose annotations name local variables
        return _Rules({}, set())
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    rules = {name: rule for name, hint in fields.items() if (rule := _rule(hint)) is not None}
    return _Rules(
        rules,
        {name for name, hint in fields.items() if any(_is_tuple(part) for part in _parts(hint))},
    )


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_tuple(hint: Any) -> bool:
    return get_origin(get_args(hint)[0] if get_origin(hint) is Annotated else hint) is tuple


def _rule(hint: Any) -> Rule | None:
    """The rule of an annotation; None if it has none."""
    parts = _parts(hint)
    optional = type(None) in parts
    parts = tuple(part for part in parts if part is not type(None))
    if all(get_origin(part) is Literal for part in parts):
        choices = (None,) * optional + tuple(choice for part in parts for choice in get_args(part))
        return Rule(lambda value: value in choices, "one of " + ", ".join(map(repr, choices)))
    if parts == (bool,) and not optional:
        return Rule(lambda value: isinstance(value, bool), "True or False")
    (rule, *_) = [
        extra
        for part in parts
        for extra in getattr(part, "__metadata__", ())
        if isinstance(extra, Rule)
    ] or [None]
    if rule is None or not optional:
        return rule
    return Rule(lambda value: value is None or rule.fits(value), f"{rule.allowed}, or None")


def replace(cfg: T, **overrides: Any) -> T:
    """``dataclasses.replace`` with an error that names the unknown field and the existing ones."""
    fields = [field.name for field in dataclasses.fields(cfg)]  # pyright: ignore[reportArgumentType]
    for name in overrides:
        if name not in fields:
            raise ValueError(
                f"{type(cfg).__module__}.Config has no field {name!r}; fields: {', '.join(fields)}"
            )
    return dataclasses.replace(cfg, **overrides)  # pyright: ignore[reportArgumentType]
