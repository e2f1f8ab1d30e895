"""Recurrent neural language models (review, figures 4 and 5).

The embedding of a token passes through the recurrent layers of ``zoo.rnn``; the last layer gives
the logits of the next token (Mikolov et al. 2010).  Dropout applies to all connections except the
recurrent ones (Zaremba, Sutskever, Vinyals 2014).  With ``tied``, the embedding is also the
softmax's weight matrix (Inan et al. 2016; Press and Wolf 2016).  Tokens are words or characters.

A text is one sequence, read window by window: backpropagation through time is truncated at each
window, while the state is carried over.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from jax import Array, random

from zoo import rnn
from zoo.base import Aux, Batch, Outputs, Params, Targets, blank_padding, restart
from zoo.parts.checking import require, require_shape
from zoo.parts.config import NonNegativeFloat, PositiveFloat, PositiveInt, Rate, at_least, static
from zoo.parts.language import (
    example_tokens,
    init_embedding,
    init_uniform,
    look_up,
    next_token_loss,
)
from zoo.parts.layers import ComputeDtype, mask_of_steps


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A recurrent language model.

    vocabulary: number of tokens; training sets it to that of the text.
    features: size of a token's embedding.
    units: of every recurrent layer.
    cell, activation, forget_bias, remat, compute_dtype: see ``zoo.rnn``.
    tied: the output kernel is the transposed embedding; features must equal units[-1].
    dropout: probability of dropping a number in training: in the embedding, between layers, and
        before the softmax.
    init_scale: draw all parameters, including biases, uniformly from -init_scale .. init_scale
        (Zaremba et al. 2014), regardless of forget_bias; None uses a suitable initializer for each
        kind of parameter.
    """

    vocabulary: PositiveInt
    features: PositiveInt
    units: Annotated[tuple[int, ...], at_least(1)]
    cell: rnn.Unit = "lstm"
    activation: Literal["tanh", "relu"] = "tanh"
    tied: bool = False
    dropout: Rate = 0.0
    forget_bias: NonNegativeFloat = 1.0
    init_scale: PositiveFloat | None = None
    remat: bool = False
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require(
            self.cell == "rnn" or self.activation == "tanh",
            self,
            "activation",
            "'tanh' unless cell is 'rnn'",
        )
        fits = not self.tied or self.features == self.units[-1]
        require(
            fits,
            self,
            "tied",
            f"False unless features, {self.features}, is units[-1], {self.units[-1]}",
        )

    @property
    def input_range(self) -> tuple[float, float]:
        """Allowed range of the inputs, which are tokens."""
        return 0.0, self.vocabulary - 1.0

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return Outputs("targets", Targets(self.vocabulary), likelihood=True)

    @property
    def layers(self) -> rnn.Config:
        """The recurrent layers and the output layer."""
        return rnn.Config(
            inputs=self.features,
            units=self.units,
            output_units=self.vocabulary,
            cell=self.cell,
            activation=self.activation,
            input_dropout=self.dropout,
            dropout=self.dropout,
            forget_bias=self.forget_bias,
            remat=self.remat,
            compute_dtype=self.compute_dtype,
        )


_small = Config(vocabulary=10_000, features=200, units=(200, 200), init_scale=0.1, forget_bias=0.0)

PRESETS: dict[str, Config] = {
    "tiny": Config(vocabulary=7, features=4, units=(6, 4), tied=True, dropout=0.1),
    # Zaremba et al. 2014, section 4.1, Penn Treebank: not regularised, medium, large.
    "zaremba_small": _small,
    "zaremba_medium": replace(_small, features=650, units=(650, 650), init_scale=0.05, dropout=0.5),
    "zaremba_large": replace(
        _small, features=1500, units=(1500, 1500), init_scale=0.04, dropout=0.65
    ),
    # The review's figure 5: U from the inputs, a recurrent W, V to the outputs.
    "elman": Config(vocabulary=10_000, features=100, units=(100,), cell="rnn"),
    "characters": Config(vocabulary=66, features=64, units=(512,), dropout=0.3),
}


def init(cfg: Config, key: Array) -> Params:
    """{"embedding": {"embedding" [vocabulary, features]}, "layer_0": ..., "output": ...}.

    "output" is {"kernel", "bias"}; tied models have no output kernel.  See ``zoo.rnn.init``.
    """
    keys = random.split(key, 3)
    params = {
        "embedding": init_embedding(keys[0], cfg.vocabulary, cfg.features),
        **rnn.init(cfg.layers, keys[1]),
    }
    if cfg.init_scale is not None:
        params = init_uniform(keys[2], params, cfg.init_scale)
    if cfg.tied:
        params["output"] = {"bias": params["output"]["bias"]}
    return params


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Tokens [batch, time] -> logits [batch, time, vocabulary] of the next tokens.

    Logits are at least float32.
    """
    return unroll(cfg, params, initial_carry(cfg, params, inputs.shape[0]), inputs, key=key)[1]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Logits, "embedded" [batch, time, features], and the intermediates of ``zoo.rnn.trace``."""
    embedded = _embed(params, inputs)
    logits, intermediates = rnn.trace(cfg.layers, _whole(cfg, params), embedded)
    return logits, {"embedded": embedded, **intermediates}


def initial_carry(cfg: Config, params: Params, batch_size: Any) -> tuple[Array, ...]:
    """Zeros: see ``zoo.rnn.initial_carry``."""
    return rnn.initial_carry(cfg.layers, params, batch_size)


def unroll(
    cfg: Config,
    params: Params,
    carry: tuple[Array, ...],
    inputs: Array,
    *,
    key: Array | None = None,
    mask: Array | None = None,
) -> tuple[tuple[Array, ...], Array]:
    """The carry after tokens [batch, time], and logits [batch, time, vocabulary].

    See ``zoo.rnn.unroll``.
    """
    return rnn.unroll(
        cfg.layers, _whole(cfg, params), carry, _embed(params, inputs), key=key, mask=mask
    )


def step(
    cfg: Config, params: Params, carry: tuple[Array, ...], inputs: Array
) -> tuple[tuple[Array, ...], Array]:
    """One token [batch] per row: the carry after it, and logits [batch, vocabulary]."""
    return rnn.step(cfg.layers, _whole(cfg, params), carry, look_up(params["embedding"], inputs))


def _embed(params: Params, tokens: Array) -> Array:
    require_shape("inputs", tokens, ("batch", "time"))
    return look_up(params["embedding"], tokens)


def _whole(cfg: Config, params: Params) -> Params:
    """The parameters, including the output kernel of a tied model."""
    if not cfg.tied:
        return params
    return params | {"output": params["output"] | {"kernel": params["embedding"]["embedding"].T}}


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """-log p of each target token, in nats, summed over unmasked ones.

    batch: inputs, targets [batch, time] tokens; mask [batch, time], or [batch] if all sequences are
        equally long; reset [batch]: True for rows that do not continue from ``carry``.
    """
    batch, carry = blank_padding(batch, carry)
    mask = mask_of_steps(batch["mask"], batch["inputs"].shape[:2])
    start = restart(initial_carry(cfg, params, batch["inputs"].shape[0]), carry, batch)
    last, logits = unroll(cfg, params, start, batch["inputs"], key=key, mask=mask)
    return next_token_loss(logits, batch, last)


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[Array, ...]:
    """``initial_carry``."""
    return initial_carry(cfg, params, batch_size)


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Random tokens [batch, time] of texts with different lengths.

    Every other row starts a new text.
    """
    return example_tokens(key, batch_size, cfg.vocabulary)
