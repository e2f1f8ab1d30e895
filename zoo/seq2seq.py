"""Encoder-decoder networks: sequence to sequence, by a "thought vector" or attention.

See the review, page 441.  Recurrent layers read the embedded source: forwards, backwards, or in
both directions.  h_j is the output of the last layer at position j; m is its output after its last
step (for both directions, of each).  ``zoo.parts.decoder`` generates the target:

attention "none"
    With input_feeding: Cho et al. 2014, equations 3 and 4.  Without: Sutskever, Vinyals, Le 2014,
    except that m and E y_{i-1} also enter t_i; in the paper, m only determines s_0.
any other attention
    With input_feeding: Bahdanau, Cho, Bengio 2014, equations 4 to 6.  Without: Luong, Pham, Manning
    2015, section 3.1, except that E y_{i-1} also enters t_i.

The input feeding of Luong et al., section 3.3, differs: the last layer's s_i is the query, and step
i + 1 receives tanh(W [c_i; s_i]).  Here the first layer's s_{i-1} is the query, and step i receives
c_i itself.
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
"""Tokens of an example; models accept any number."""


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """An encoder-decoder network.

    source_vocabulary, vocabulary: number of source and target tokens; training sets them to those
        of the data.
    features: size of a token's embedding, in both languages, and of the input of the softmax.
    encoder_units, decoder_units: of every recurrent layer; a bidirectional encoder has this many in
        each direction.
    cell: lstm or gru.
    forget_bias, remat, compute_dtype: see ``zoo.rnn``; remat applies to the encoder.
    encoder: forward, backward (Sutskever et al. reverse the source) or both.
    attention, input_feeding: see the module and ``zoo.parts.decoder``.
    tied: the output kernel is the transposed target embedding (Press and Wolf 2016).
    dropout: probability of dropping a number in training: in embeddings, annotations, between
        layers, and in t.
    label_smoothing: in training, the probability that a target is replaced by a uniformly random
        token (Szegedy et al. 2016, section 7).
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
        allowed = (
            "anything but 'dot' unless annotations and queries have the same size, "
            f"here {annotation} and {query}"
        )
        require(self.attention != "dot" or annotation == query, self, "attention", allowed)

    @property
    def input_range(self) -> dict[str, tuple[float, float]]:
        """Allowed range of the inputs, which are tokens."""
        return {
            "source": (0.0, self.source_vocabulary - 1.0),
            "target": (0.0, self.vocabulary - 1.0),
        }

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return Outputs("targets", Targets(self.vocabulary), likelihood=True)

    @property
    def annotation_size(self) -> int:
        """Size of an annotation, the output of the encoder at one position."""
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
        """The decoder, which generates the target."""
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
        source_vocabulary=6, vocabulary=7, features=4, encoder_units=(3, 4), decoder_units=(5, 4),
        tied=True, dropout=0.1, label_smoothing=0.1,
    ),
    "numbers": _numbers,
    "multi30k": Config(
        source_vocabulary=6000, vocabulary=6000, features=256, encoder_units=(256,),
        decoder_units=(256,), tied=True, dropout=0.3, label_smoothing=0.1,
    ),
    # Bahdanau et al. 2014, and their baseline (Cho et al. 2014).
    "rnnsearch": _search,
    "rnnencdec": replace(_search, encoder="forward", attention="none"),
    # Sutskever et al. 2014: four layers of 1000 cells, embeddings of size 1000, reversed source.
    # In the paper, m is not an input of the readout.
    "sutskever": Config(
        source_vocabulary=160_000, vocabulary=80_000, features=1000, encoder_units=(1000,) * 4,
        decoder_units=(1000,) * 4, cell="lstm", encoder="backward", attention="none",
        input_feeding=False,
    ),
    # The sizes of Luong et al. 2015, "general" with dropout 0.2; queries and input feeding are
    # Bahdanau's, see the module.
    "luong": Config(
        source_vocabulary=50_000, vocabulary=50_000, features=1000, encoder_units=(1000,) * 4,
        decoder_units=(1000,) * 4, cell="lstm", encoder="backward", attention="general",
        dropout=0.2,
    ),
}  # fmt: skip


def init(cfg: Config, key: Array) -> Params:
    """{"source", "target": {"embedding"}, "encoder", "decoder": {"layer_0": ..., ...}, ...}.

    Layers: see ``zoo.parts.recurrence``.  "bridge": {"layer_0": {"kernel", "bias"}, ...} from m to
    s_0; "attention": see ``zoo.parts.attention.init``; "readout": {"kernel" (of s, c, E y, in this
    order), "bias"}; "output": {"kernel" [features, vocabulary], "bias"}, without the kernel if
    tied.
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
    """Logits [batch, time, vocabulary] of each target token; at least float32.

    Each is conditioned on the source and the preceding target tokens.
    inputs: "source" [batch, positions] tokens, valid up to "lengths" [batch]; "target"
        [batch, time], the target shifted right, which starts with the begin-of-sequence token.
    """
    return _forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Logits, and the intermediates.

    "annotations" [batch, positions, units], "summary", "hidden" [batch, time, units], "readout",
    "logits", "outputs"; with attention, "attention" [batch, time, positions], whose rows sum to
    one.
    """
    logits, intermediates = _forward(cfg, params, inputs, None)
    return logits, intermediates | {"logits": logits, "outputs": jax.nn.softmax(logits)}


def encode(
    cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None
) -> tuple[Memory, Carry]:
    """The encoded source of ``inputs``, and the decoder's initial carry."""
    memory, carry, _ = _encode(cfg, params, inputs, key)
    return memory, carry


def decode_step(
    cfg: Config, params: Params, carry: Carry, inputs: Array, memory: Memory
) -> tuple[Carry, Array]:
    """One token [rows] per target: the carry after it, and the next token's logits.

    The logits are [rows, vocabulary]: see ``decoder.step``.
    """
    return decoder.step(cfg.writer, params, carry, inputs, memory)


def _encode(
    cfg: Config, params: Params, inputs: dict[str, Array], key: Array | None
) -> tuple[Memory, Carry, Array]:
    """The memory, the decoder's initial carry, and the annotations."""
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
    """Logits, and the intermediates of ``trace``."""
    source_key, *keys = split_keys(key, 4)
    memory, carry, annotations = _encode(cfg, params, inputs, source_key)
    logits, intermediates = decoder.unroll(
        cfg.writer, params, memory, carry, inputs["target"], keys
    )
    return logits, {"annotations": annotations, "summary": memory.summary, **intermediates}


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """-log p of each target token, in nats, summed over unmasked ones.

    In training (with a key), labels are smoothed.
    batch: inputs: see ``apply``; targets [batch, time] tokens; mask [batch, time], or [batch] if
        all targets are equally long.
    """
    batch, _ = blank_padding(batch)
    logits = apply(cfg, params, batch["inputs"], key=key)
    return next_token_loss(logits, batch, carry, cfg.label_smoothing if key is not None else 0.0)


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): there is no carry."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Random tokens; sources and targets have different lengths."""
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
