"""Stacked recurrent layers, unidirectional or bidirectional.

See ``zoo.parts.recurrence`` for a single layer.
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
"""The carry of each layer, see ``zoo.parts.recurrence``."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """Recurrent layers.  Models derive it from their own Configs.

    units: number of units of each layer.
    cell: the cell type of all layers, a name in ``zoo.parts.recurrence``.
    bidirectional: each layer also reads from the end; the outputs of both directions are
        concatenated.
    reverse: unidirectional layers read from the end.
    dropout: probability of dropping an output between layers in training.
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
    """The results of ``unroll``.

    carry: one array per layer and direction.
    outputs: outputs of the last layer, [batch, time, units].
    last: outputs of the last unmasked step, [batch, units]; the backward direction ends at the
        first step.
    intermediates: "hidden_0", ... [batch, time, units]; with ``gates`` also "forget_0", ...
    """

    carry: Carry
    outputs: Array
    last: Array
    intermediates: dict[str, Array]


def init(cfg: Config, keys: Sequence[Array] | Array, features: int) -> Params:
    """{"layer_0": see ``zoo.parts.recurrence``, ...} for ``features`` inputs; keys: one per layer.

    A bidirectional layer has parameters for both directions: {"forward": ..., "backward": ...}.
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
    """Zeros for each layer; () for bidirectional layers, which always start from zeros.

    batch_size: an integer, or symbolic while exporting.
    """
    if cfg.bidirectional:
        return ()
    layers = [params[f"layer_{index}"] for index in range(len(cfg.units))]
    return tuple(recurrence.initial_carry(cfg.cell, layer, batch_size) for layer in layers)


def step(cfg: Config, params: Params, carry: Sequence[Array], x: Array) -> tuple[Carry, Array]:
    """One step of unidirectional layers, x [batch, features].

    Returns the next carry and the outputs of the last layer [batch, units].
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
    """Layers ``first``, ``first + 1``, ... of x [batch, time, features], with dropout between them.

    carry: one array for each of these layers; () for bidirectional ones.
    mask [batch, time]: False marks padding.
    keys: for dropout, one fewer than layers.
    gates: whether the intermediates include the gates.
    """
    after, states, intermediates = [], [], {}
    for number, index in enumerate(range(first, len(cfg.units))):
        layer = params[f"layer_{index}"]
        directions = layer if cfg.bidirectional else {"": layer}
        states, outputs = [], []
        for direction, direction_params in sorted(
            directions.items(), reverse=True
        ):  # forward first
            start = (
                recurrence.initial_carry(cfg.cell, direction_params, x.shape[0])
                if direction
                else carry[number]
            )
            backward = cfg.reverse or direction == "backward"
            state, hidden = recurrence.unroll(
                cfg.cell,
                direction_params,
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
                    cfg.cell,
                    direction_params,
                    start,
                    x,
                    reverse=backward,
                    compute_dtype=cfg.compute_dtype,
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
