"""A decoder: a recurrent network that writes a sequence given a memory, and may look at one place of it for each token.

States  s_0 = tanh(m B + b) in each layer, then s_i = f(s_{i-1}, E y_{i-1}), and
        p(y_i) = softmax(t_i V),  t_i = tanh(s_i S + c_i C + E y_{i-1} T + b)        (a deep output, Pascanu et al. 2014)
Context c_i, by a Config's ``attention``:
        none      m                                                what is known of the whole, a single vector
        others    sum_j a_ij h_j, where a_i compares a query with each annotation h_j: see ``zoo.attention``
        With a gate it is times sigmoid(q G + g) (Xu et al. 2015, section 4.2.1).
``input_feeding`` says whether contexts are an input of the recurrence as well, s_i = f(s_{i-1}, E y_{i-1}, c_i):
        True      the query is the first layer's s_{i-1}
        False     the query is the last layer's s_i, and no layer waits for an attention of the step before, so that a whole
                  sequence is computed at once

A Config (``zoo.seq2seq``, ``zoo.captioner``) has vocabulary, features, decoder_units, kind, attention, input_feeding, tied,
dropout, remat, forget_bias, compute_dtype, annotation_size and query_size (numbers of an annotation, of a query).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from zoo import attention, recurrence, rnn
from zoo.base import Params, require_shape
from zoo.language import init_embedding, look_up
from zoo.layers import at_least_float32, dense, dropout, init_layer, split_keys

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


def init(cfg: Any, keys: dict[str, Array], gate: Array | None = None) -> Params:
    """{"target": {"embedding"}, "decoder": {"layer_0": see ``zoo.recurrence``, ...}, ...}; keys: those of KEYS; gate: a gate's.

    "bridge": {"layer_0": {"kernel", "bias"}, ...} from m to s_0, "attention": see ``zoo.attention.init``, with a gate also
    "gate": {"kernel", "bias"}; "readout": {"kernel" (of s, c, E y, in this order), "bias"}, "output": {"kernel" [features,
    vocabulary], "bias"}; tied models have no such kernel.
    """
    units = cfg.decoder_units
    bridges = zip(jax.random.split(keys["bridge"], len(units)), units, strict=True)
    fed = cfg.annotation_size if cfg.input_feeding else 0
    output = init_layer(keys["output"], (cfg.features, cfg.vocabulary), "glorot_uniform")
    params = {
        "target": init_embedding(keys["target"], cfg.vocabulary, cfg.features),
        "decoder": rnn.init_layers(cfg, jax.random.split(keys["decoder"], len(units)), cfg.features + fed, units),
        "bridge": {
            f"layer_{index}": init_layer(key, (cfg.annotation_size, recurrence.carry_size(cfg.kind, size)), "glorot_uniform")
            for index, (key, size) in enumerate(bridges)
        },
        "readout": init_layer(keys["readout"], (units[-1] + cfg.annotation_size + cfg.features, cfg.features), "glorot_uniform"),
        "output": {"bias": output["bias"]} if cfg.tied else output,
    }
    if cfg.attention != "none":
        params["attention"] = attention.init(cfg.attention, keys["attention"], cfg.query_size, cfg.annotation_size)
        if gate is not None:
            params["attention"]["gate"] = init_layer(gate, (cfg.query_size, 1), "glorot_uniform")
    return params


def start(cfg: Any, params: Params, annotations: Array, mask: Array, summary: Array) -> tuple[Memory, Carry]:
    """The memory of annotations [batch, places, units], mask [batch, places], m [batch, units]; and the carry before any step."""
    places = None
    if cfg.attention != "none":
        places = attention.memorise(cfg.attention, params.get("attention", {}), annotations, mask, cfg.compute_dtype)
    bridges = [params["bridge"][f"layer_{index}"] for index in range(len(cfg.decoder_units))]
    carry = tuple(jnp.tanh(at_least_float32(dense(bridge, summary, cfg.compute_dtype))) for bridge in bridges)
    return Memory(summary, places), carry


def step(
    cfg: Any, params: Params, carry: Carry, inputs: Array, memory: Memory, choose: Choose | None = None
) -> tuple[Carry, Array]:
    """One token [rows] of each sequence: the carry after it, and logits [rows, vocabulary] of the next.

    rows: batch of the memory, or a multiple: as many sequences of the same example, side by side.
    """
    embedded = look_up(params["target"], inputs)
    context = jnp.repeat(memory.summary, inputs.shape[0] // memory.summary.shape[0], axis=0)
    x = embedded
    if cfg.input_feeding:
        if memory.places is not None:
            query = recurrence.output_of(cfg.kind, carry[0])
            context, _ = _look(cfg, params, memory.places, query, None if choose is None else functools.partial(_at, choose, 0))
        x = jnp.concatenate([embedded.astype(context.dtype), context], axis=-1)
    after = []
    for index, state in enumerate(carry):
        state, x = recurrence.step(cfg.kind, params["decoder"][f"layer_{index}"], state, x, compute_dtype=cfg.compute_dtype)
        after.append(state)
    if memory.places is not None and not cfg.input_feeding:
        context, _ = _look(cfg, params, memory.places, x)
    return tuple(after), _read_out(cfg, params, x, context, embedded, None)[0]


def unroll(
    cfg: Any,
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
    embedded, layers = dropout(look_up(params["target"], inputs), cfg.dropout, target_key), params["decoder"]
    between = split_keys(layers_key, len(layers))
    weights, context = {}, jnp.broadcast_to(memory.summary[:, None], (*embedded.shape[:2], memory.summary.shape[-1]))
    if not cfg.input_feeding:
        _, hidden, _, _ = rnn.run_layers(cfg, layers, carry, embedded, None, between[1:])
        if memory.places is not None:
            flat, weights = _look(cfg, params, memory.places, hidden.reshape(-1, hidden.shape[-1]))
            context = flat.reshape(context.shape)
            weights = {name: leaf.reshape(*embedded.shape[:2], -1) for name, leaf in weights.items()}
    else:
        if memory.places is None:
            x = jnp.concatenate([embedded.astype(context.dtype), context], axis=-1)
            _, hidden = recurrence.unroll(cfg.kind, layers["layer_0"], carry[0], x, compute_dtype=cfg.compute_dtype)
        else:
            hidden, context, weights = _unroll_attending(cfg, params, memory.places, carry[0], embedded, choose)
        above = {name: layer for name, layer in layers.items() if name != "layer_0"}
        if above:
            hidden = dropout(hidden, cfg.dropout, between[0])
            _, hidden, _, _ = rnn.run_layers(cfg, above, carry[1:], hidden, None, between[1:])
    logits, read = _read_out(cfg, params, hidden, context, embedded, output_key)
    return logits, {"hidden": hidden, "readout": read, **weights}


def _at(choose: Choose, index: Any, weights: Array) -> Array:
    return choose(weights, index)


def _look(
    cfg: Any, params: Params, places: attention.Memory, query: Array, choose: Callable[[Array], Array] | None = None
) -> tuple[Array, dict[str, Array]]:
    """Contexts [rows, ...] of queries [rows, ...], several for each row of the memory; and the weights, see ``unroll``."""
    looking, batch = params.get("attention", {}), places.mask.shape[0]
    queries = query.reshape(batch, -1, query.shape[-1])
    weights = attention.weigh(cfg.attention, looking, places, queries, cfg.compute_dtype)
    used = weights if choose is None else choose(weights.reshape(query.shape[0], -1)).reshape(weights.shape)
    context = attention.gather(places, used, cfg.compute_dtype).reshape(query.shape[0], -1)
    seen = {"attention": weights} | ({} if choose is None else {"looked": used})
    if "gate" in looking:
        opened = jax.nn.sigmoid(at_least_float32(dense(looking["gate"], query, cfg.compute_dtype)))
        context = context * jnp.broadcast_to(opened, context.shape)
    return context, {name: leaf.reshape(query.shape[0], -1) for name, leaf in seen.items()}


def _read_out(cfg: Any, params: Params, hidden: Array, context: Array, embedded: Array, key: Array | None) -> tuple[Array, Array]:
    """Logits and t, of [..., units] each."""
    together = jnp.concatenate([hidden, context.astype(hidden.dtype), embedded.astype(hidden.dtype)], axis=-1)
    read = jnp.tanh(at_least_float32(dense(params["readout"], together.reshape(-1, together.shape[-1]), cfg.compute_dtype)))
    read = dropout(read.reshape(*hidden.shape[:-1], -1), cfg.dropout, key)
    output = params["output"] | ({"kernel": params["target"]["embedding"].T} if cfg.tied else {})
    logits = at_least_float32(dense(output, read.reshape(-1, cfg.features), cfg.compute_dtype))
    return logits.reshape(*hidden.shape[:-1], cfg.vocabulary), read


def _unroll_attending(
    cfg: Any, params: Params, places: attention.Memory, carry: Array, embedded: Array, choose: Choose | None
) -> tuple[Array, Array, dict[str, Array]]:
    """The first layer, whose contexts depend on its own states: its outputs, contexts and weights [batch, time, ...]."""
    layer = params["decoder"]["layer_0"]
    kernel, bias = layer["input"]["kernel"], layer["input"]["bias"]
    of_token = {"input": {"kernel": kernel[: cfg.features], "bias": bias}}
    of_context = {"input": {"kernel": kernel[cfg.features :], "bias": jnp.zeros_like(bias)}}

    def body(carry: Array, at: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array, dict[str, Array]]]:
        projected, index = at
        chosen = None if choose is None else functools.partial(_at, choose, index)
        context, weights = _look(cfg, params, places, recurrence.output_of(cfg.kind, carry), chosen)
        projected = projected + recurrence.project(of_context, context, compute_dtype=cfg.compute_dtype)
        carry, hidden = recurrence.advance(cfg.kind, layer, carry, projected, compute_dtype=cfg.compute_dtype)
        return carry, (hidden, context, weights)

    projected = recurrence.project(of_token, embedded.swapaxes(0, 1), compute_dtype=cfg.compute_dtype)
    _, results = jax.lax.scan(body, carry, (projected, jnp.arange(len(projected))))
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), results)
