"""Recurrent layers on top of each other, in one direction or in both.

``zoo.parts.recurrence`` has a single layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from zoo.base import Params, block
from zoo.parts import recurrence
from zoo.parts.config import NonNegativeFloat, Rate, at_least, static
from zoo.parts.layers import ComputeDtype, Initializer, dropout

Carry = tuple[Array, ...]
"""Of each layer, see ``zoo.parts.recurrence``."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """Recurrent layers; models make one of their own Configs.

    units: of every layer.
    cell: of all layers, as ``zoo.parts.recurrence`` names it.
    bidirectional: each layer also reads from the end; outputs of both directions lie side by side.
    reverse: layers of one direction read from the end.
    dropout: probability that an output is dropped between layers while training.
    forget_bias, initializer: see ``zoo.parts.recurrence.init``.
    remat, compute_dtype: see ``zoo.parts.recurrence.unroll``.
    """

    units: Annotated[tuple[int, ...], at_least(1)]
    cell: recurrence.Cell
    bidirectional: bool = False
    reverse: bool = False
    dropout: Rate = 0.0
    forget_bias: NonNegativeFloat = 1.0
    initializer: Initializer = "glorot_uniform"
    remat: bool = False
    compute_dtype: ComputeDtype = None


class Unrolled(NamedTuple):
    """What ``unroll`` returns.

    carry: of all layers and directions.
    outputs: of the last layer, [batch, time, units].
    last: those after the last unmasked step, [batch, units]; each direction has a last step of its own.
    intermediates: "hidden_0", ... [batch, time, units]; with ``gates`` also "forget_0", ...
    """

    carry: Carry
    outputs: Array
    last: Array
    intermediates: dict[str, Array]


def init(cfg: Config, keys: Sequence[Array] | Array, features: int) -> Params:
    """{"layer_0": see ``zoo.parts.recurrence``, ...} over ``features`` values; keys: one for each layer.

    A bidirectional layer has the parameters of its two directions, {"forward": ..., "backward": ...}.
    """
    params: Params = {}
    for index, (key, size) in enumerate(zip(keys, cfg.units, strict=True)):

        def draw(key: Array, size: int = size, features: int = features) -> Params:
            return recurrence.init(cfg.cell, key, features, size, cfg.initializer, cfg.forget_bias)

        if cfg.bidirectional:
            forward, backward = jax.random.split(key)
            params[f"layer_{index}"] = {"forward": draw(forward), "backward": draw(backward)}
        else:
            params[f"layer_{index}"] = draw(key)
        features = size * (2 if cfg.bidirectional else 1)
    return params


def initial_carry(cfg: Config, params: Params, batch_size: Any) -> Carry:
    """Zeros for each layer; () for layers of both directions, which begin anew.

    batch_size: an integer, or symbolic while exporting.
    """
    if cfg.bidirectional:
        return ()
    layers = [params[f"layer_{index}"] for index in range(len(cfg.units))]
    return tuple(recurrence.initial_carry(cfg.cell, layer, batch_size) for layer in layers)


def step(cfg: Config, params: Params, carry: Sequence[Array], x: Array) -> tuple[Carry, Array]:
    """One step of layers of one direction, x [batch, features].

    Returns the carry after it, and the outputs of the last layer [batch, units].
    """
    after = []
    for index, state in enumerate(carry):
        state, x = recurrence.step(
            cfg.cell, params[f"layer_{index}"], state, x, compute_dtype=cfg.compute_dtype
        )
        after.append(state)
    return tuple(after), x


def unroll(
    cfg: Config,
    params: Params,
    carry: Sequence[Array],
    x: Array,
    mask: Array | None,
    keys: Sequence[Array | None],
    *,
    first: int = 0,
    gates: bool = False,
) -> Unrolled:
    """Layers ``first``, ``first + 1``, ... over x [batch, time, features], with dropout between them.

    carry: of each of these layers; () where they read in both directions.
    mask [batch, time]: False where there is no step.
    keys: for dropout, one less than layers.
    gates: whether the intermediates include the gates.
    """
    after, states, intermediates = [], [], {}
    for number, index in enumerate(range(first, len(cfg.units))):
        layer = params[f"layer_{index}"]
        directions = layer if cfg.bidirectional else {"": layer}
        states, outputs = [], []
        for direction, own in sorted(directions.items(), reverse=True):  # forward first
            start = (
                recurrence.initial_carry(cfg.cell, own, x.shape[0]) if direction else carry[number]
            )
            backward = cfg.reverse or direction == "backward"
            state, hidden = recurrence.unroll(
                cfg.cell,
                own,
                start,
                x,
                mask,
                reverse=backward,
                remat=cfg.remat,
                compute_dtype=cfg.compute_dtype,
            )
            states.append(state)
            outputs.append(hidden)
            if gates:
                inner = recurrence.inspect(
                    cfg.cell, own, start, x, reverse=backward, compute_dtype=cfg.compute_dtype
                )
                intermediates |= {
                    "_".join(filter(None, (direction, gate, str(index)))): leaf
                    for gate, leaf in inner.items()
                }
        after += states
        x = block(jnp.concatenate(outputs, axis=-1) if cfg.bidirectional else outputs[0])
        intermediates[f"hidden_{index}"] = x
        if index < len(cfg.units) - 1:
            x = dropout(x, cfg.dropout, keys[number])
    last = [recurrence.output_of(cfg.cell, state) for state in states]
    return Unrolled(tuple(after), x, jnp.concatenate(last, axis=-1), intermediates)
