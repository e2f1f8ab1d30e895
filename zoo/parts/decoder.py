"""A decoder: a recurrent network that generates a sequence given a memory, with optional attention.

States  s_0 = tanh(m B + b) in each layer, then s_i = f(s_{i-1}, E y_{i-1}).
Output  p(y_i) = softmax(t_i V),  t_i = tanh(s_i S + c_i C + E y_{i-1} T + b)
        (a deep output, Pascanu et al. 2014)
Context c_i, by ``Config.attention``:
        None      m, a single vector that summarises the input
        others    sum_j a_ij h_j, where the weights a_i compare a query with each annotation h_j:
                  see ``zoo.parts.attention``
        With a gate, c_i is multiplied by sigmoid(q G + g) (Xu et al. 2015, section 4.2.1).
``Config.input_feeding``: whether the context is also an input of the recurrence,
s_i = f(s_{i-1}, E y_{i-1}, c_i):
        True      the query is the first layer's s_{i-1}
        False     the query is the last layer's s_i; no layer depends on the attention of the
                  previous step, so all steps attend at once
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from zoo.base import Params
from zoo.parts import attention, recurrence, recurrent_layers
from zoo.parts.attention import Score
from zoo.parts.checking import require_shape
from zoo.parts.config import PositiveInt, static
from zoo.parts.language import init_embedding, look_up
from zoo.parts.layers import ComputeDtype, at_least_float32, dense, dropout, init_layer, split_keys


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder.  Models derive it from their own Configs.

    vocabulary: number of tokens.
    features: size of a token's embedding, and of the input of the softmax layer.
    annotation_size: size of an annotation, and of m.
    layers: the recurrent layers; their dropout and compute_dtype apply to the whole decoder.
    attention: the score, see ``zoo.parts.attention``; None: no attention.
    input_feeding: see the module docstring.
    tied: the output kernel is the transposed target embedding (Press and Wolf 2016).
    """

    vocabulary: PositiveInt
    features: PositiveInt
    annotation_size: PositiveInt
    layers: recurrent_layers.Config
    attention: Score | None
    input_feeding: bool
    tied: bool = False

    @property
    def query_size(self) -> int:
        """Size of the query."""
        return self.layers.units[0 if self.input_feeding else -1]

    @property
    def dropout(self) -> float:
        """Dropout probability in training."""
        return self.layers.dropout

    @property
    def compute_dtype(self) -> ComputeDtype:
        """Type of the factors of matrix products."""
        return self.layers.compute_dtype


KEYS = ("target", "decoder", "bridge", "attention", "readout", "output")
"""Names of the keys that ``init`` takes."""


class Memory(NamedTuple):
    """The input of the decoder.  summary: m [batch, units].  places: None without attention."""

    summary: Array
    places: attention.Memory | None


Carry = tuple[Array, ...]
"""One array per layer of the decoder."""
Choose = Callable[[Array, Any], Array]
"""(weights [rows, places], step number) -> the weights that the context uses.

For input feeding only.
"""


def init(cfg: Config, keys: dict[str, Array], gate: Array | None = None) -> Params:
    """{"target": {"embedding"}, "decoder": {"layer_0": see ``zoo.parts.recurrence``, ...}, ...}.

    keys: one for each name in KEYS.  gate: the key of a gate; None: no gate.
    "bridge": {"layer_0": {"kernel", "bias"}, ...}, from m to s_0
    "attention": see ``zoo.parts.attention.init``; with a gate, also "gate": {"kernel", "bias"}
    "readout": {"kernel", "bias"}, with inputs s, c, E y in this order
    "output": {"kernel" [features, vocabulary], "bias"}; tied models have no kernel here
    """
    units = cfg.layers.units
    sizes = [recurrence.carry_size(cfg.layers.cell, size) for size in units]
    bridges = zip(jax.random.split(keys["bridge"], len(units)), sizes, strict=True)
    fed = cfg.annotation_size if cfg.input_feeding else 0
    output = init_layer(keys["output"], (cfg.features, cfg.vocabulary), "glorot_uniform")
    params = {
        "target": init_embedding(keys["target"], cfg.vocabulary, cfg.features),
        "decoder": recurrent_layers.init(
            cfg.layers, jax.random.split(keys["decoder"], len(units)), cfg.features + fed
        ),
        "bridge": {
            f"layer_{index}": init_layer(key, (cfg.annotation_size, size), "glorot_uniform")
            for index, (key, size) in enumerate(bridges)
        },
        "readout": init_layer(
            keys["readout"],
            (units[-1] + cfg.annotation_size + cfg.features, cfg.features),
            "glorot_uniform",
        ),
        "output": {"bias": output["bias"]} if cfg.tied else output,
    }
    if cfg.attention is not None:
        params["attention"] = attention.init(
            cfg.attention, keys["attention"], cfg.query_size, cfg.annotation_size
        )
        if gate is not None:
            params["attention"]["gate"] = init_layer(gate, (cfg.query_size, 1), "glorot_uniform")
    return params


def start(
    cfg: Config, params: Params, annotations: Array, mask: Array, summary: Array
) -> tuple[Memory, Carry]:
    """The memory and the initial carry.

    annotations [batch, places, units], mask [batch, places], summary m [batch, units].
    """
    places = None
    if cfg.attention is not None:
        places = attention.precompute_keys(
            cfg.attention, params.get("attention", {}), annotations, mask, cfg.compute_dtype
        )
    bridges = [params["bridge"][f"layer_{index}"] for index in range(len(cfg.layers.units))]
    carry = tuple(
        jnp.tanh(at_least_float32(dense(bridge, summary, cfg.compute_dtype))) for bridge in bridges
    )
    return Memory(summary, places), carry


def step(
    cfg: Config,
    params: Params,
    carry: Carry,
    inputs: Array,
    memory: Memory,
    choose: Choose | None = None,
) -> tuple[Carry, Array]:
    """Reads one token [rows] of each sequence.

    Returns the next carry, and the logits [rows, vocabulary] of the next token.
    rows: the memory's batch size, or a multiple of it: several sequences per example, side by side.
    """
    embedded = look_up(params["target"], inputs)
    context = jnp.repeat(memory.summary, inputs.shape[0] // memory.summary.shape[0], axis=0)
    x = embedded
    if cfg.input_feeding:
        if memory.places is not None:
            query = recurrence.output_of(cfg.layers.cell, carry[0])
            context, _ = _attend(
                cfg,
                params,
                memory.places,
                query,
                None if choose is None else functools.partial(_at, choose, 0),
            )
        x = jnp.concatenate([embedded.astype(context.dtype), context], axis=-1)
    after, x = recurrent_layers.step(cfg.layers, params["decoder"], carry, x)
    if memory.places is not None and not cfg.input_feeding:
        context, _ = _attend(cfg, params, memory.places, x)
    return after, _read_out(cfg, params, x, context, embedded, None)[0]


def unroll(
    cfg: Config,
    params: Params,
    memory: Memory,
    carry: Carry,
    inputs: Array,
    keys: Sequence[Array | None],
    choose: Choose | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Reads all tokens [batch, time].

    Returns logits [batch, time, vocabulary], and the intermediates "hidden" and "readout"
    [batch, time, units].  With attention also "attention" [batch, time, places], whose rows sum to
    one; with ``choose`` also "looked", the weights that it returns.
    keys: three, for dropout.
    """
    require_shape("target", inputs, (memory.summary.shape[0], "time"))
    target_key, layers_key, output_key = keys
    embedded, layers = (
        dropout(look_up(params["target"], inputs), cfg.dropout, target_key),
        params["decoder"],
    )
    between = split_keys(layers_key, len(layers))
    weights, context = (
        {},
        jnp.broadcast_to(memory.summary[:, None], (*embedded.shape[:2], memory.summary.shape[-1])),
    )
    if not cfg.input_feeding:
        hidden = recurrent_layers.unroll(
            cfg.layers, layers, carry, embedded, None, between[1:]
        ).outputs
        if memory.places is not None:
            flat, weights = _attend(
                cfg, params, memory.places, hidden.reshape(-1, hidden.shape[-1])
            )
            context = flat.reshape(context.shape)
            weights = {
                name: leaf.reshape(*embedded.shape[:2], -1) for name, leaf in weights.items()
            }
    else:
        if memory.places is None:
            x = jnp.concatenate([embedded.astype(context.dtype), context], axis=-1)
            _, hidden = recurrence.unroll(
                cfg.layers.cell, layers["layer_0"], carry[0], x, compute_dtype=cfg.compute_dtype
            )
        else:
            hidden, context, weights = _unroll_attending(
                cfg, params, memory.places, carry[0], embedded, choose
            )
        if len(cfg.layers.units) > 1:
            hidden = dropout(hidden, cfg.dropout, between[0])
            hidden = recurrent_layers.unroll(
                cfg.layers, layers, carry[1:], hidden, None, between[1:], first=1
            ).outputs
    logits, read = _read_out(cfg, params, hidden, context, embedded, output_key)
    return logits, {"hidden": hidden, "readout": read, **weights}


def _at(choose: Choose, index: Any, weights: Array) -> Array:
    return choose(weights, index)


def _attend(
    cfg: Config,
    params: Params,
    places: attention.Memory,
    query: Array,
    choose: Callable[[Array], Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Contexts [rows, ...] of queries [rows, ...], and the weights, see ``unroll``.

    rows: the memory's batch size, or a multiple of it.
    """
    assert cfg.attention is not None  # otherwise there is no attention memory
    attention_params, batch = params.get("attention", {}), places.mask.shape[0]
    queries = query.reshape(batch, -1, query.shape[-1])
    weights = attention.attention_weights(
        cfg.attention, attention_params, places, queries, cfg.compute_dtype
    )
    used = (
        weights
        if choose is None
        else choose(weights.reshape(query.shape[0], -1)).reshape(weights.shape)
    )
    context = attention.context(places, used, cfg.compute_dtype).reshape(query.shape[0], -1)
    arrays = {"attention": weights} | ({} if choose is None else {"looked": used})
    if "gate" in attention_params:
        gate = jax.nn.sigmoid(
            at_least_float32(dense(attention_params["gate"], query, cfg.compute_dtype))
        )
        context = context * jnp.broadcast_to(gate, context.shape)
    return context, {name: leaf.reshape(query.shape[0], -1) for name, leaf in arrays.items()}


def _read_out(
    cfg: Config, params: Params, hidden: Array, context: Array, embedded: Array, key: Array | None
) -> tuple[Array, Array]:
    """Logits and t of inputs [..., units]."""
    inputs = jnp.concatenate(
        [hidden, context.astype(hidden.dtype), embedded.astype(hidden.dtype)], axis=-1
    )
    read = jnp.tanh(
        at_least_float32(
            dense(params["readout"], inputs.reshape(-1, inputs.shape[-1]), cfg.compute_dtype)
        )
    )
    read = dropout(read.reshape(*hidden.shape[:-1], -1), cfg.dropout, key)
    output = params["output"] | ({"kernel": params["target"]["embedding"].T} if cfg.tied else {})
    logits = at_least_float32(dense(output, read.reshape(-1, cfg.features), cfg.compute_dtype))
    return logits.reshape(*hidden.shape[:-1], cfg.vocabulary), read


def _unroll_attending(
    cfg: Config,
    params: Params,
    places: attention.Memory,
    carry: Array,
    embedded: Array,
    choose: Choose | None,
) -> tuple[Array, Array, dict[str, Array]]:
    """The first layer, step by step, because its contexts depend on its own previous states.

    Returns its outputs, contexts and weights [batch, time, ...].
    """
    layer = params["decoder"]["layer_0"]
    # The kernel is split so that the projection of all tokens is one product before the loop.
    kernel, bias = layer["input"]["kernel"], layer["input"]["bias"]
    of_token = {"input": {"kernel": kernel[: cfg.features], "bias": bias}}
    of_context = {"input": {"kernel": kernel[cfg.features :], "bias": jnp.zeros_like(bias)}}

    def body(
        carry: Array, xs: tuple[Array, Array]
    ) -> tuple[Array, tuple[Array, Array, dict[str, Array]]]:
        projected, index = xs
        choose_now = None if choose is None else functools.partial(_at, choose, index)
        context, weights = _attend(
            cfg, params, places, recurrence.output_of(cfg.layers.cell, carry), choose_now
        )
        projected = projected + recurrence.project(
            of_context, context, compute_dtype=cfg.compute_dtype
        )
        carry, hidden = recurrence.advance(
            cfg.layers.cell, layer, carry, projected, compute_dtype=cfg.compute_dtype
        )
        return carry, (hidden, context, weights)

    projected = recurrence.project(
        of_token, embedded.swapaxes(0, 1), compute_dtype=cfg.compute_dtype
    )
    _, results = jax.lax.scan(body, carry, (projected, jnp.arange(len(projected))))
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), results)
