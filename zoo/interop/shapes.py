"""Checks that parameters fit a model: names, shapes and types."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from zoo.base import Params


def shapes_of(init: Callable[..., Params], cfg: Any) -> Params:
    """Shapes and types of the parameters that ``init(cfg, key)`` draws."""
    return jax.eval_shape(partial(init, cfg), jax.random.key(0))


def nodes(tree: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The path of keys and the value of every leaf.

    An empty dict below the root counts as a leaf; otherwise it would be lost.
    """
    if not isinstance(tree, dict) or (keys and not tree):
        yield keys, tree
        return
    for key, value in tree.items():
        yield from nodes(value, (*keys, key))


def require_fit(where: str, params: Any, like: Any, *, dtypes: bool) -> None:
    """Raises ValueError naming every leaf that is missing, unknown, or differs from ``like``."""
    have, want = (
        {".".join(map(str, keys)): leaf for keys, leaf in nodes(tree)} for tree in (params, like)
    )
    faults = [f"{name} is missing" for name in want if name not in have]
    faults += [f"{name} is unknown" for name in have if name not in want]
    for what in ("shape", "dtype") if dtypes else ("shape",):
        pairs = [
            (name, getattr(have[name], what, None), getattr(want[name], what, None))
            for name in want
            if name in have
        ]
        faults += [
            f"{name} has {what} {value}, expected {expected}"
            for name, value, expected in pairs
            if value != expected
        ]
    if faults:
        rest = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise ValueError(f"{where}: " + "; ".join(faults[:10] + rest))
