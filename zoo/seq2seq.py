"""Encoder-decoder networks: one sequence becomes another, through a "thought vector" or attention (review, page 441).

Recurrent layers read the embedded source: forward, from its end, or in both directions.  h_j is what the last of them says of
place j, m what it says after its last step (of both directions).  ``zoo.parts.decoder`` writes the target:

attention "none"        input_feeding: Cho et al. 2014, equations 3 and 4; else as Sutskever, Vinyals, Le 2014, but that m and
                        E y_{i-1} also enter t_i: in the paper m decides s_0 only
another                 input_feeding: Bahdanau, Cho, Bengio 2014, equations 4 to 6; else as Luong, Pham, Manning 2015, section
                        3.1, but that E y_{i-1} also enters t_i
The input feeding of Luong et al., section 3.3, is another: the last layer's s_i looks, and step i + 1 is fed tanh(W [c_i; s_i]).
Here the first layer's s_{i-1} looks, and c_i itself is fed to step i.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from zoo.base import Aux, Batch, Outputs, Params, Targets, blank_padding
from zoo.parts import decoder, recurrent_layers
from zoo.parts.checking import require, require_shape
from zoo.parts.config import NonNegativeFloat, PositiveInt, Rate, at_least, static
from zoo.parts.decoder import Carry, Memory
from zoo.parts.language import init_embedding, look_up, next_token_loss
from zoo.parts.layers import ComputeDtype, dropout, split_keys

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
    attention, input_feeding: see the module and ``zoo.parts.decoder``.
    tied: the output kernel is the transposed target embedding (Press and Wolf 2016).
    dropout: probability that a number is dropped while training: of token vectors, annotations, between layers, and of t.
    label_smoothing: while training, the probability that a target is any token instead (Szegedy et al. 2016, section 7).
    """

    source_vocabulary: PositiveInt
    vocabulary: PositiveInt
    features: PositiveInt
    encoder_units: Annotated[tuple[int, ...], at_least(1)]
    decoder_units: Annotated[tuple[int, ...], at_least(1)]
    cell: Literal["lstm", "gru"] = "gru"
    encoder: Direction = "both"
    attention: Literal["none", "additive", "dot", "general"] = "additive"
    input_feeding: bool = True
    tied: bool = False
    dropout: Rate = 0.0
    label_smoothing: Rate = 0.0
    forget_bias: NonNegativeFloat = 1.0
    remat: bool = False
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        annotation, query = self.annotation_size, self.writer.query_size
        why = f"another than 'dot' unless an annotation, {annotation} numbers, has as many as a query, {query}"
        require(self.attention != "dot" or annotation == query, self, "attention", why)

    @property
    def input_range(self) -> dict[str, tuple[float, float]]:
        """What inputs must lie in: the tokens."""
        return {
            "source": (0.0, self.source_vocabulary - 1.0),
            "target": (0.0, self.vocabulary - 1.0),
        }

    @property
    def outputs(self) -> Outputs:
        """What the outputs are, and the loss."""
        return Outputs("targets", Targets(self.vocabulary), likelihood=True)

    @property
    def annotation_size(self) -> int:
        """Numbers that the encoder says of a place."""
        return self.encoder_units[-1] * (2 if self.encoder == "both" else 1)

    @property
    def reader(self) -> recurrent_layers.Config:
        """The layers that read the source."""
        return self._layers(
            self.encoder_units,
            bidirectional=self.encoder == "both",
            reverse=self.encoder == "backward",
        )

    @property
    def writer(self) -> decoder.Config:
        """The decoder, which writes the target."""
        return decoder.Config(
            vocabulary=self.vocabulary,
            features=self.features,
            annotation_size=self.annotation_size,
            layers=self._layers(self.decoder_units),
            attention=None if self.attention == "none" else self.attention,
            input_feeding=self.input_feeding,
            tied=self.tied,
        )

    def _layers(
        self, units: tuple[int, ...], *, bidirectional: bool = False, reverse: bool = False
    ) -> recurrent_layers.Config:
        return recurrent_layers.Config(
            units=units,
            cell=self.cell,
            dropout=self.dropout,
            forget_bias=self.forget_bias,
            remat=self.remat,
            compute_dtype=self.compute_dtype,
            bidirectional=bidirectional,
            reverse=reverse,
        )


_numbers = Config(
    source_vocabulary=64,
    vocabulary=64,
    features=64,
    encoder_units=(128,),
    decoder_units=(128,),
    input_feeding=False,
)
_search = Config(
    source_vocabulary=30_000,
    vocabulary=30_000,
    features=620,
    encoder_units=(1000,),
    decoder_units=(1000,),
    input_feeding=True,
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
    # Sutskever et al. 2014: four layers of 1000 cells, vectors of 1000 numbers, the source reversed; there m is not read out.
    "sutskever": Config(
        source_vocabulary=160_000, vocabulary=80_000, features=1000, encoder_units=(1000,) * 4, decoder_units=(1000,) * 4,
        cell="lstm", encoder="backward", attention="none", input_feeding=False,
    ),
    # The sizes of Luong et al. 2015, "general" with dropout 0.2; queries and input feeding are Bahdanau's, see the module.
    "luong": Config(
        source_vocabulary=50_000, vocabulary=50_000, features=1000, encoder_units=(1000,) * 4, decoder_units=(1000,) * 4,
        cell="lstm", encoder="backward", attention="general", dropout=0.2,
    ),
}  # fmt: skip


def init(cfg: Config, key: Array) -> Params:
    """{"source", "target": {"embedding"}, "encoder", "decoder": {"layer_0": see ``zoo.parts.recurrence``, ...}, ...}.

    "bridge": {"layer_0": {"kernel", "bias"}, ...} from m to s_0, "attention": see ``zoo.parts.attention.init``,
    "readout": {"kernel" (of s, c, E y, in this order), "bias"}, "output": {"kernel" [features, vocabulary], "bias"};
    tied models have no such kernel.
    """
    names = ("source", "target", "encoder", "decoder", "bridge", "attention", "readout", "output")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    layers = jax.random.split(keys["encoder"], len(cfg.encoder_units))
    return {
        "source": init_embedding(keys["source"], cfg.source_vocabulary, cfg.features),
        "encoder": recurrent_layers.init(cfg.reader, layers, cfg.features),
        **decoder.init(cfg.writer, {name: keys[name] for name in decoder.KEYS}),
    }


def apply(
    cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None
) -> Array:
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


def encode(
    cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None
) -> tuple[Memory, Carry]:
    """What is known of the source of ``inputs``, and the decoder's carry before its first step."""
    memory, carry, _ = _encode(cfg, params, inputs, key)
    return memory, carry


def decode_step(
    cfg: Config, params: Params, carry: Carry, inputs: Array, memory: Memory
) -> tuple[Carry, Array]:
    """One token [rows] of each target: the carry after it, and logits of the next [rows, vocabulary]: see ``decoder.step``."""
    return decoder.step(cfg.writer, params, carry, inputs, memory)


def _encode(
    cfg: Config, params: Params, inputs: dict[str, Array], key: Array | None
) -> tuple[Memory, Carry, Array]:
    """The memory, the first carry, and the annotations."""
    source, lengths = inputs["source"], inputs["lengths"]
    require_shape("source", source, ("batch", "places"))
    require_shape("lengths", lengths, source.shape[:1])
    keys, layers = split_keys(key, len(cfg.encoder_units) + 1), params["encoder"]
    mask = jnp.arange(source.shape[1])[None] < lengths[:, None]
    x = dropout(look_up(params["source"], source), cfg.dropout, keys[0])
    starts = recurrent_layers.initial_carry(cfg.reader, layers, len(source))
    _, annotations, summary, _ = recurrent_layers.unroll(
        cfg.reader, layers, starts, x, mask, keys[1:-1]
    )
    annotations = dropout(annotations, cfg.dropout, keys[-1])
    return *decoder.start(cfg.writer, params, annotations, mask, summary), annotations


def _forward(
    cfg: Config, params: Params, inputs: dict[str, Array], key: Array | None
) -> tuple[Array, dict[str, Array]]:
    """Logits, and what ``trace`` names."""
    source_key, *keys = split_keys(key, 4)
    memory, carry, annotations = _encode(cfg, params, inputs, source_key)
    logits, seen = decoder.unroll(cfg.writer, params, memory, carry, inputs["target"], keys)
    return logits, {"annotations": annotations, "summary": memory.summary, **seen}


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """-log p of each target token, in nats, summed over unmasked ones; while training (key given) with label smoothing.

    batch: inputs: see ``apply``; targets [batch, time] tokens; mask [batch, time], or [batch] where all are equally long.
    """
    batch, _ = blank_padding(batch)
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
        "source": jax.random.randint(
            keys[2], (batch_size, EXAMPLE_SOURCE), 0, cfg.source_vocabulary
        ),
        "lengths": jax.random.randint(
            keys[3], (batch_size,), EXAMPLE_SOURCE // 2, EXAMPLE_SOURCE + 1
        ),
        "target": target[:, :-1],
    }
    mask = jnp.arange(EXAMPLE_TARGET)[None] < lengths
    return {"inputs": inputs, "targets": target[:, 1:], "mask": mask}
