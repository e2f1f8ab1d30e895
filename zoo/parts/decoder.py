"""A decoder: a recurrent network that writes a sequence given a memory, and may look at one place of it for each token.

States  s_0 = tanh(m B + b) in each layer, then s_i = f(s_{i-1}, E y_{i-1}), and
        p(y_i) = softmax(t_i V),  t_i = tanh(s_i S + c_i C + E y_{i-1} T + b)        (a deep output, Pascanu et al. 2014)
Context c_i, by ``Config.attention``:
        None      m                                                what is known of the whole, a single vector
        others    sum_j a_ij h_j, where a_i compares a query with each annotation h_j: see ``zoo.parts.attention``
        With a gate it is times sigmoid(q G + g) (Xu et al. 2015, section 4.2.1).
``Config.input_feeding`` says whether contexts are an input of the recurrence as well, s_i = f(s_{i-1}, E y_{i-1}, c_i):
        True      the query is the first layer's s_{i-1}
        False     the query is the last layer's s_i, and no layer waits for an attention of the step before, so that a whole
                  sequence is computed at once
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
    """A decoder; models make one of their own Configs.

    vocabulary: number of tokens.
    features: numbers of a token's vector, and of what the softmax reads.
    annotation_size: numbers of an annotation, and of m.
    layers: the recurrent layers; their dropout and compute_dtype are also those of all else.
    attention: how places are compared with a query, see ``zoo.parts.attention``; None without attention.
    input_feeding: see the module.
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
        """Numbers of the state that looks."""
        return self.layers.units[0 if self.input_feeding else -1]

    @property
    def dropout(self) -> float:
        """Probability that a number is dropped while training."""
        return self.layers.dropout

    @property
    def compute_dtype(self) -> ComputeDtype:
        """Of the factors of matrix products."""
        return self.layers.compute_dtype


KEYS = ("target", "decoder", "bridge", "attention", "readout", "output")
"""What ``init`` takes a key for."""


class Memory(NamedTuple):
    """What is known.  summary: m [batch, units].  places: None without attention."""

    summary: Array
    places: attention.Memory | None


Carry = tuple[Array, ...]
"""Of each layer of the decoder."""
Choose = Callable[[Array, Any], Array]
"""(weights [rows, places], number of the step) -> those that a context is made with; for input feeding only."""


def init(cfg: Config, keys: dict[str, Array], gate: Array | None = None) -> Params:
    """{"target": {"embedding"}, "decoder": {"layer_0": see ``zoo.parts.recurrence``, ...}, ...}.

    keys: those of KEYS.  gate: a gate's key.
    "bridge": {"layer_0": {"kernel", "bias"}, ...} from m to s_0, "attention": see ``zoo.parts.attention.init``, with a gate also
    "gate": {"kernel", "bias"}; "readout": {"kernel" (of s, c, E y, in this order), "bias"}, "output": {"kernel" [features,
    vocabulary], "bias"}; tied models have no such kernel.
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
    """The memory of annotations [batch, places, units], mask [batch, places], m [batch, units]; and the carry before any step."""
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
    """One token [rows] of each sequence: the carry after it, and logits [rows, vocabulary] of the next.

    rows: batch of the memory, or a multiple: as many sequences of the same example, side by side.
    """
    embedded = look_up(params["target"], inputs)
    context = jnp.repeat(memory.summary, inputs.shape[0] // memory.summary.shape[0], axis=0)
    x = embedded
    if cfg.input_feeding:
        if memory.places is not None:
            query = recurrence.output_of(cfg.layers.cell, carry[0])
            context, _ = _look(
                cfg,
                params,
                memory.places,
                query,
                None if choose is None else functools.partial(_at, choose, 0),
            )
        x = jnp.concatenate([embedded.astype(context.dtype), context], axis=-1)
    after, x = recurrent_layers.step(cfg.layers, params["decoder"], carry, x)
    if memory.places is not None and not cfg.input_feeding:
        context, _ = _look(cfg, params, memory.places, x)
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
    """All tokens [batch, time]: logits [batch, time, vocabulary]; and "hidden", "readout" [batch, time, units].

    With attention also "attention" [batch, time, places], whose rows sum to one, and "looked", what ``choose`` made of it.
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
            flat, weights = _look(cfg, params, memory.places, hidden.reshape(-1, hidden.shape[-1]))
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


def _look(
    cfg: Config,
    params: Params,
    places: attention.Memory,
    query: Array,
    choose: Callable[[Array], Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Contexts [rows, ...] of queries [rows, ...], several for each row of the memory; and the weights, see ``unroll``."""
    assert cfg.attention is not None  # or there were no places
    looking, batch = params.get("attention", {}), places.mask.shape[0]
    queries = query.reshape(batch, -1, query.shape[-1])
    weights = attention.attention_weights(
        cfg.attention, looking, places, queries, cfg.compute_dtype
    )
    used = (
        weights
        if choose is None
        else choose(weights.reshape(query.shape[0], -1)).reshape(weights.shape)
    )
    context = attention.context(places, used, cfg.compute_dtype).reshape(query.shape[0], -1)
    seen = {"attention": weights} | ({} if choose is None else {"looked": used})
    if "gate" in looking:
        opened = jax.nn.sigmoid(at_least_float32(dense(looking["gate"], query, cfg.compute_dtype)))
        context = context * jnp.broadcast_to(opened, context.shape)
    return context, {name: leaf.reshape(query.shape[0], -1) for name, leaf in seen.items()}


def _read_out(
    cfg: Config, params: Params, hidden: Array, context: Array, embedded: Array, key: Array | None
) -> tuple[Array, Array]:
    """Logits and t, of [..., units] each."""
    together = jnp.concatenate(
        [hidden, context.astype(hidden.dtype), embedded.astype(hidden.dtype)], axis=-1
    )
    read = jnp.tanh(
        at_least_float32(
            dense(params["readout"], together.reshape(-1, together.shape[-1]), cfg.compute_dtype)
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
    """The first layer, whose contexts depend on its own states: its outputs, contexts and weights [batch, time, ...]."""
    layer = params["decoder"]["layer_0"]
    kernel, bias = layer["input"]["kernel"], layer["input"]["bias"]
    of_token = {"input": {"kernel": kernel[: cfg.features], "bias": bias}}
    of_context = {"input": {"kernel": kernel[cfg.features :], "bias": jnp.zeros_like(bias)}}

    def body(
        carry: Array, at: tuple[Array, Array]
    ) -> tuple[Array, tuple[Array, Array, dict[str, Array]]]:
        projected, index = at
        chosen = None if choose is None else functools.partial(_at, choose, index)
        context, weights = _look(
            cfg, params, places, recurrence.output_of(cfg.layers.cell, carry), chosen
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
