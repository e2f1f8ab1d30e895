"""Encoder-decoder networks: one sequence becomes another, through a "thought vector" or attention (review, p. 441).

Encoder     recurrent layers read the embedded source: forward, from its end, or in both directions; h_j is what the last of them
            says of place j, m what it says after its last step (of both directions)
Decoder     s_0 = tanh(m B + b) in each layer, then s_i = f(s_{i-1}, E y_{i-1}), and
            p(y_i) = softmax(t_i V),  t_i = tanh(s_i S + c_i C + E y_{i-1} T + b)        (a deep output, Pascanu et al. 2014)
Context     c_i, by ``attention``:
            none      m                                                Cho et al. 2014; Sutskever, Vinyals, Le 2014
            others    sum_j a_ij h_j, where a_i compares a query with each h_j: see ``zoo.attention``
``input_feeding`` says whether contexts are an input of the recurrence as well, s_i = f(s_{i-1}, E y_{i-1}, c_i):
            True      the query is the first layer's s_{i-1}           Bahdanau, Cho, Bengio 2014, equations 4 to 6; with "none"
                                                                       Cho et al. 2014, equations 3 and 4
            False     the query is the last layer's s_i                Luong, Pham, Manning 2015, section 3.1; with "none"
                                                                       Sutskever et al.: m decides s_0 and the output only
What Luong et al. feed to step i + 1, section 3.3, is the context that Bahdanau et al. compute there: its query is s_i in both.

Without input feeding no layer waits for an attention of the step before, so a whole sentence is computed at once.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

from zoo import attention, recurrence, rnn
from zoo.base import (
    Aux,
    Batch,
    Params,
    require,
    require_choice,
    require_count,
    require_rate,
    require_shape,
    require_sizes,
    static,
)
from zoo.language import init_embedding, look_up, next_token_loss
from zoo.layers import ComputeDtype, at_least_float32, dense, dropout, init_layer, split_keys

Direction = Literal["forward", "backward", "both"]
EXAMPLE_SOURCE, EXAMPLE_TARGET = 7, 6
"""Tokens of an example; a model takes any number."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """An encoder-decoder network.

    source_vocabulary, vocabulary: number of source and of target tokens; training sets them to those of the data.
    features: numbers of a token's vector, in both languages, and of what the softmax reads.
    encoder_units, decoder_units: of every recurrent layer; an encoder that reads in both directions has as many in each.
    cell: lstm or gru.  forget_bias, remat, compute_dtype: see ``zoo.rnn``; remat is for the encoder.
    encoder: forward, backward (from the source's end, as Sutskever et al. reverse it) or both.
    attention, input_feeding: see the module.
    tied: the output kernel is the transposed target embedding (Press and Wolf 2016).
    dropout: probability that a number is dropped while training: of token vectors, annotations, between layers, and of t.
    label_smoothing: while training, the probability that a target is any token instead (Szegedy et al. 2016, section 7).
    """

    source_vocabulary: int
    vocabulary: int
    features: int
    encoder_units: tuple[int, ...]
    decoder_units: tuple[int, ...]
    cell: Literal["lstm", "gru"] = "gru"
    encoder: Direction = "both"
    attention: Literal["none", "additive", "dot", "general"] = "additive"
    input_feeding: bool = True
    tied: bool = False
    dropout: float = 0.0
    label_smoothing: float = 0.0
    forget_bias: float = 1.0
    remat: bool = False
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        for field in ("source_vocabulary", "vocabulary", "features"):
            require_count(self, field)
        for field in ("encoder_units", "decoder_units"):
            require_sizes(self, field, at_least=1)
        require_choice(self, "cell", ("lstm", "gru"))
        require_choice(self, "encoder", get_args(Direction))
        require_choice(self, "attention", ("none", *attention.SCORES))
        for field in ("input_feeding", "tied"):
            require_choice(self, field, (True, False))
        require_rate(self, "dropout", "label_smoothing")
        rnn.require_unrolled(self)
        fits = self.attention != "dot" or self.annotation_size == self.query_size
        why = (
            f"another than 'dot' unless an annotation, {self.annotation_size} numbers, has as many as a query, {self.query_size}"
        )
        require(fits, self, "attention", why)

    @property
    def kind(self) -> recurrence.Cell:
        """The cell as ``zoo.recurrence`` names it."""
        return self.cell

    @property
    def annotation_size(self) -> int:
        """Numbers that the encoder says of a place."""
        return self.encoder_units[-1] * (2 if self.encoder == "both" else 1)

    @property
    def query_size(self) -> int:
        """Numbers of the state that looks."""
        return self.decoder_units[0 if self.input_feeding else -1]


_numbers = Config(
    source_vocabulary=64, vocabulary=64, features=64, encoder_units=(128,), decoder_units=(128,), input_feeding=False
)
_search = Config(
    source_vocabulary=30_000, vocabulary=30_000, features=620, encoder_units=(1000,), decoder_units=(1000,), input_feeding=True
)

PRESETS: dict[str, Config] = {
    "tiny": Config(
        source_vocabulary=6, vocabulary=7, features=4, encoder_units=(3, 4), decoder_units=(5, 4), tied=True, dropout=0.1,
        label_smoothing=0.1,
    ),
    "numbers": _numbers,
    "multi30k": Config(
        source_vocabulary=6000, vocabulary=6000, features=256, encoder_units=(256,), decoder_units=(256,), tied=True,
        dropout=0.3, label_smoothing=0.1,
    ),
    # Bahdanau et al. 2014, and what they compare it with (Cho et al. 2014).
    "rnnsearch": _search,
    "rnnencdec": replace(_search, encoder="forward", attention="none"),
    # Sutskever et al. 2014: four layers of 1000 cells, vectors of 1000 numbers, the source reversed.
    "sutskever": Config(
        source_vocabulary=160_000, vocabulary=80_000, features=1000, encoder_units=(1000,) * 4, decoder_units=(1000,) * 4,
        cell="lstm", encoder="backward", attention="none", input_feeding=False,
    ),
    # Luong et al. 2015, "general" with dropout 0.2.
    "luong": Config(
        source_vocabulary=50_000, vocabulary=50_000, features=1000, encoder_units=(1000,) * 4, decoder_units=(1000,) * 4,
        cell="lstm", encoder="backward", attention="general", dropout=0.2,
    ),
}  # fmt: skip


class Memory(NamedTuple):
    """What the decoder knows of a source.  summary: m [batch, units].  places: None without attention."""

    summary: Array
    places: attention.Memory | None


Carry = tuple[Array, ...]
"""Of each layer of the decoder."""


def init(cfg: Config, key: Array) -> Params:
    """{"source", "target": {"embedding"}, "encoder", "decoder": {"layer_0": see ``zoo.recurrence``, ...}, ...}.

    "bridge": {"layer_0": {"kernel", "bias"}, ...} from m to s_0, "attention": see ``zoo.attention.init``, "readout": {"kernel"
    (of s, c, E y, in this order), "bias"}, "output": {"kernel" [features, vocabulary], "bias"}; tied models have no such kernel.
    """
    keys = dict(
        zip(
            ("source", "target", "encoder", "decoder", "bridge", "attention", "readout", "output"),
            jax.random.split(key, 8),
            strict=True,
        )
    )
    encoder, decoder = cfg.encoder_units, cfg.decoder_units
    bridges = zip(jax.random.split(keys["bridge"], len(decoder)), decoder, strict=True)
    fed = cfg.annotation_size if cfg.input_feeding else 0
    output = init_layer(keys["output"], (cfg.features, cfg.vocabulary), "glorot_uniform")
    params = {
        "source": init_embedding(keys["source"], cfg.source_vocabulary, cfg.features),
        "target": init_embedding(keys["target"], cfg.vocabulary, cfg.features),
        "encoder": rnn.init_layers(
            cfg, jax.random.split(keys["encoder"], len(encoder)), cfg.features, encoder, cfg.encoder == "both"
        ),
        "decoder": rnn.init_layers(cfg, jax.random.split(keys["decoder"], len(decoder)), cfg.features + fed, decoder),
        "bridge": {
            f"layer_{index}": init_layer(key, (cfg.annotation_size, recurrence.carry_size(cfg.kind, units)), "glorot_uniform")
            for index, (key, units) in enumerate(bridges)
        },
        "readout": init_layer(
            keys["readout"], (decoder[-1] + cfg.annotation_size + cfg.features, cfg.features), "glorot_uniform"
        ),
        "output": {"bias": output["bias"]} if cfg.tied else output,
    }
    if cfg.attention != "none":
        params["attention"] = attention.init(cfg.attention, keys["attention"], cfg.query_size, cfg.annotation_size)
    return params


def apply(cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None) -> Array:
    """Logits [batch, time, vocabulary] of each target token given the source and the target tokens before it; at least float32.

    inputs: "source" [batch, places] tokens, of which the first "lengths" [batch] count; "target" [batch, time]: the tokens
    before, of which the first is the one that every target begins with.
    """
    return _forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Logits, and "annotations" [batch, places, units], "summary", "hidden" [batch, time, units], "readout", "logits", "outputs".

    With attention "attention" [batch, time, places], whose rows sum to one.
    """
    logits, seen = _forward(cfg, params, inputs, None)
    return logits, seen | {"logits": logits, "outputs": jax.nn.softmax(logits)}


def encode(cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None) -> tuple[Memory, Carry]:
    """What is known of the source of ``inputs``, and the decoder's carry before its first step."""
    memory, carry, _ = _encode(cfg, params, inputs, key)
    return memory, carry


def step(cfg: Config, params: Params, carry: Carry, inputs: Array, memory: Memory) -> tuple[Carry, Array]:
    """One token [rows] of each target: the carry after it, and logits [rows, vocabulary] of the next.

    rows: batch of the memory, or a multiple: as many targets of the same source, side by side.
    """
    embedded = look_up(params["target"], inputs)
    each = inputs.shape[0] // memory.summary.shape[0]
    context = jnp.repeat(memory.summary, each, axis=0)
    if cfg.input_feeding:
        if memory.places is not None:
            context, _ = _look(cfg, params, memory.places, recurrence.output_of(cfg.kind, carry[0]))
        x = jnp.concatenate([embedded.astype(context.dtype), context], axis=-1)
    else:
        x = embedded
    after = []
    for index, state in enumerate(carry):
        state, x = recurrence.step(cfg.kind, params["decoder"][f"layer_{index}"], state, x, compute_dtype=cfg.compute_dtype)
        after.append(state)
    if memory.places is not None and not cfg.input_feeding:
        context, _ = _look(cfg, params, memory.places, x)
    return tuple(after), _read_out(cfg, params, x, context, embedded, None)[0]


def _look(cfg: Config, params: Params, places: attention.Memory, query: Array) -> tuple[Array, Array]:
    """Contexts [rows, ...] and weights [rows, places] of queries [rows, ...], several for each row of the memory."""
    assert cfg.attention != "none"
    batch = places.mask.shape[0]
    queries = query.reshape(batch, -1, query.shape[-1])
    context, weights = attention.attend(cfg.attention, params.get("attention", {}), places, queries, cfg.compute_dtype)
    return context.reshape(query.shape[0], -1), weights.reshape(query.shape[0], -1)


def _encode(cfg: Config, params: Params, inputs: dict[str, Array], key: Array | None) -> tuple[Memory, Carry, Array]:
    """The memory, the first carry, and the annotations."""
    source, lengths = inputs["source"], inputs["lengths"]
    require_shape("source", source, ("batch", "places"))
    require_shape("lengths", lengths, source.shape[:1])
    keys = split_keys(key, len(cfg.encoder_units) + 1)
    mask = jnp.arange(source.shape[1])[None] < lengths[:, None]
    x = dropout(look_up(params["source"], source), cfg.dropout, keys[0])
    both = cfg.encoder == "both"
    starts = (
        ()
        if both
        else tuple(
            recurrence.initial_carry(cfg.kind, params["encoder"][f"layer_{index}"], source.shape[0])
            for index in range(len(cfg.encoder_units))
        )
    )
    _, annotations, summary, _ = rnn.run_layers(
        cfg, params["encoder"], starts, x, mask, keys[1:-1], bidirectional=both, reverse=cfg.encoder == "backward"
    )
    annotations, places = dropout(annotations, cfg.dropout, keys[-1]), None
    if cfg.attention != "none":
        places = attention.memorise(cfg.attention, params.get("attention", {}), annotations, mask, cfg.compute_dtype)
    bridges = [params["bridge"][f"layer_{index}"] for index in range(len(cfg.decoder_units))]
    carry = tuple(jnp.tanh(at_least_float32(dense(bridge, summary, cfg.compute_dtype))) for bridge in bridges)
    return Memory(summary, places), carry, annotations


def _read_out(
    cfg: Config, params: Params, hidden: Array, context: Array, embedded: Array, key: Array | None
) -> tuple[Array, Array]:
    """Logits and t, of [..., units] each."""
    together = jnp.concatenate([hidden, context.astype(hidden.dtype), embedded.astype(hidden.dtype)], axis=-1)
    read = jnp.tanh(at_least_float32(dense(params["readout"], together.reshape(-1, together.shape[-1]), cfg.compute_dtype)))
    read = dropout(read.reshape(*hidden.shape[:-1], -1), cfg.dropout, key)
    output = params["output"] | ({"kernel": params["target"]["embedding"].T} if cfg.tied else {})
    logits = at_least_float32(dense(output, read.reshape(-1, cfg.features), cfg.compute_dtype))
    return logits.reshape(*hidden.shape[:-1], cfg.vocabulary), read


def _forward(cfg: Config, params: Params, inputs: dict[str, Array], key: Array | None) -> tuple[Array, dict[str, Array]]:
    """Logits, and what ``trace`` names."""
    source_key, target_key, layers_key, output_key = split_keys(key, 4)
    memory, carry, annotations = _encode(cfg, params, inputs, source_key)
    require_shape("target", inputs["target"], (annotations.shape[0], "time"))
    embedded = dropout(look_up(params["target"], inputs["target"]), cfg.dropout, target_key)
    layers = params["decoder"]
    keys = split_keys(layers_key, len(layers))
    weights, context = None, jnp.broadcast_to(memory.summary[:, None], (*embedded.shape[:2], memory.summary.shape[-1]))
    if not cfg.input_feeding:
        _, hidden, _, _ = rnn.run_layers(cfg, layers, carry, embedded, None, keys[1:])
        if memory.places is not None:
            flat, weights = _look(cfg, params, memory.places, hidden.reshape(-1, hidden.shape[-1]))
            context, weights = flat.reshape(context.shape), weights.reshape(*embedded.shape[:2], -1)
    else:
        if memory.places is None:
            x = jnp.concatenate([embedded.astype(context.dtype), context], axis=-1)
            _, hidden = recurrence.unroll(cfg.kind, layers["layer_0"], carry[0], x, compute_dtype=cfg.compute_dtype)
        else:
            hidden, context, weights = _unroll_attending(cfg, params, memory.places, carry[0], embedded)
        above = {name: layer for name, layer in layers.items() if name != "layer_0"}
        if above:
            hidden = dropout(hidden, cfg.dropout, keys[0])
            _, hidden, _, _ = rnn.run_layers(cfg, above, carry[1:], hidden, None, keys[1:])
    logits, read = _read_out(cfg, params, hidden, context, embedded, output_key)
    seen = {"annotations": annotations, "summary": memory.summary, "hidden": hidden, "readout": read}
    return logits, seen if weights is None else seen | {"attention": weights}


def _unroll_attending(
    cfg: Config, params: Params, places: attention.Memory, carry: Array, embedded: Array
) -> tuple[Array, Array, Array]:
    """The first layer, whose contexts depend on its own states: its outputs, contexts and weights [batch, time, ...]."""
    layer = params["decoder"]["layer_0"]
    kernel, bias = layer["input"]["kernel"], layer["input"]["bias"]
    of_token = {"input": {"kernel": kernel[: cfg.features], "bias": bias}}
    of_context = {"input": {"kernel": kernel[cfg.features :], "bias": jnp.zeros_like(bias)}}

    def body(carry: Array, projected: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        context, weights = _look(cfg, params, places, recurrence.output_of(cfg.kind, carry))
        projected = projected + recurrence.project(of_context, context, compute_dtype=cfg.compute_dtype)
        carry, hidden = recurrence.advance(cfg.kind, layer, carry, projected, compute_dtype=cfg.compute_dtype)
        return carry, (hidden, context, weights)

    projected = recurrence.project(of_token, embedded.swapaxes(0, 1), compute_dtype=cfg.compute_dtype)
    _, results = jax.lax.scan(body, carry, projected)
    hidden, context, weights = (leaf.swapaxes(0, 1) for leaf in results)
    return hidden, context, weights


def loss(cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()) -> tuple[Array, Aux]:
    """-log p of each target token, in nats, summed over unmasked ones; while training (key given) with label smoothing.

    batch: inputs: see ``apply``; targets [batch, time] tokens; mask [batch, time].
    """
    logits = apply(cfg, params, batch["inputs"], key=key)
    return next_token_loss(logits, batch, carry, cfg.label_smoothing if key is not None else 0.0)


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """Nothing."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Random tokens: sources and targets of different lengths."""
    keys = jax.random.split(key, 4)
    target = jax.random.randint(keys[0], (batch_size, EXAMPLE_TARGET + 1), 0, cfg.vocabulary)
    lengths = jax.random.randint(keys[1], (batch_size, 1), EXAMPLE_TARGET // 2, EXAMPLE_TARGET + 1)
    inputs = {
        "source": jax.random.randint(keys[2], (batch_size, EXAMPLE_SOURCE), 0, cfg.source_vocabulary),
        "lengths": jax.random.randint(keys[3], (batch_size,), EXAMPLE_SOURCE // 2, EXAMPLE_SOURCE + 1),
        "target": target[:, :-1],
    }
    mask = jnp.arange(EXAMPLE_TARGET)[None] < lengths
    return {"inputs": inputs, "targets": target[:, 1:], "mask": mask}
