"""The neural probabilistic language model (Bengio, Ducharme, Vincent, Jauvin 2003).

x is the concatenation of the embeddings of the n - 1 preceding tokens; b, d, W, U, H are those of
the paper's equation 1:

    y = b + W x + U tanh(d + H x)          logits of the next token

W, the direct connections, is optional.  All positions share the embedding matrix C.  The carry is
the preceding tokens: the first predictions of a window use the end of the window before.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, random

from zoo.base import Aux, Batch, Outputs, Params, Targets, blank_padding, block, restart
from zoo.parts.checking import require_shape
from zoo.parts.config import PositiveInt, Rate, static
from zoo.parts.language import example_tokens, init_embedding, look_up, next_token_loss
from zoo.parts.layers import (
    ComputeDtype,
    Initializer,
    at_least_float32,
    dense,
    dropout,
    init_layer,
    mask_of_steps,
    output_activation,
    split_keys,
)


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A neural probabilistic language model.

    vocabulary: number of tokens; training sets it to that of the text.
    context: number of tokens that predict the next one, n - 1.
    features: size of a token's embedding.
    hidden: number of tanh units.
    direct: whether the embeddings also connect to the outputs directly.
    input_dropout, dropout: probability of dropping a number of an embedding, or a hidden unit, in
        training.
    initializer: distribution of the kernels.
    compute_dtype: None computes in the parameters' type; "bfloat16" halves memory traffic on
        accelerators.
    """

    vocabulary: PositiveInt
    context: PositiveInt = 4
    features: PositiveInt = 60
    hidden: PositiveInt = 50
    direct: bool = False
    input_dropout: Rate = 0.0
    dropout: Rate = 0.0
    initializer: Initializer = "glorot_uniform"
    compute_dtype: ComputeDtype = None

    @property
    def input_range(self) -> tuple[float, float]:
        """Allowed range of the inputs, which are tokens."""
        return 0.0, self.vocabulary - 1.0

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return Outputs("targets", Targets(self.vocabulary), likelihood=True)


PRESETS: dict[str, Config] = {
    "tiny": Config(vocabulary=31, context=3, features=4, hidden=8, direct=True, dropout=0.1),
    # Bengio et al. 2003, table 1: n = 5, so a context of four tokens; only MLP9 has no direct
    # connections.
    "mlp1": Config(vocabulary=16_383, context=4, features=60, hidden=50, direct=True),
    "mlp5": Config(vocabulary=16_383, context=4, features=30, hidden=50, direct=True),
    "mlp9": Config(vocabulary=16_383, context=4, features=30, hidden=100),
}


def init(cfg: Config, key: Array) -> Params:
    """{"embedding": C, "hidden": H and d, "output": U and b, "direct": {"kernel" W}}.

    Kernels are drawn by ``cfg.initializer``; biases are zero.
    """
    keys = random.split(key, 4)
    size = cfg.context * cfg.features
    params: Params = {
        "embedding": init_embedding(keys[0], cfg.vocabulary, cfg.features),
        "hidden": init_layer(keys[1], (size, cfg.hidden), cfg.initializer),
        "output": init_layer(keys[2], (cfg.hidden, cfg.vocabulary), cfg.initializer),
    }
    if cfg.direct:
        params["direct"] = {
            "kernel": init_layer(keys[3], (size, cfg.vocabulary), cfg.initializer)["kernel"]
        }
    return params


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Tokens [batch, time] -> logits [batch, time, vocabulary] of the next tokens.

    Logits are at least float32.
    """
    return unroll(cfg, params, initial_carry(cfg, params, inputs.shape[0]), inputs, key=key)[1]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Logits, and the intermediates.

    "embedded" [batch, time, context * features], "hidden_0" [batch, time, hidden], "logits",
    "outputs".
    """
    contexts, _ = _contexts(cfg, initial_carry(cfg, params, inputs.shape[0]), inputs, None)
    return _forward(cfg, params, contexts, None)


def initial_carry(cfg: Config, params: Params, batch_size: Any) -> Array:
    """The context before a text: token 0, int32 [batch, context - 1]."""
    return jnp.zeros((batch_size, cfg.context - 1), jnp.int32)


def unroll(
    cfg: Config,
    params: Params,
    carry: Array,
    inputs: Array,
    *,
    key: Array | None = None,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """The carry after tokens [batch, time], and logits [batch, time, vocabulary].

    The tokens follow those of ``carry``.
    mask: [batch, time], False where there is no token; the logits there are meaningless.
    """
    contexts, carry = _contexts(cfg, carry, inputs, mask)
    return carry, _forward(cfg, params, contexts, key)[0]


def step(cfg: Config, params: Params, carry: Array, inputs: Array) -> tuple[Array, Array]:
    """One token [batch] per row: the carry after it, and logits [batch, vocabulary]."""
    carry, logits = unroll(cfg, params, carry, inputs[:, None])
    return carry, logits[:, 0]


def _contexts(cfg: Config, carry: Array, tokens: Array, mask: Array | None) -> tuple[Array, Array]:
    """The context of each position [batch, time, context], and the carry after the last one."""
    require_shape("inputs", tokens, ("batch", "time"))
    present = jnp.ones(tokens.shape, bool) if mask is None else mask
    require_shape("mask", present, tokens.shape)
    if mask is not None:
        # Move the unmasked tokens to the front, so that contexts skip gaps.
        tokens = jnp.take_along_axis(tokens, jnp.argsort(~present, axis=1, stable=True), axis=1)
    history = jnp.concatenate([carry.astype(tokens.dtype), tokens], axis=1)
    # Number of tokens of this window before each position.
    preceding = jnp.cumsum(present, axis=1) - jnp.astype(present, int)
    offsets = jnp.arange(cfg.context)
    positions = preceding[:, :, None] + jnp.broadcast_to(
        offsets[None, None], (*preceding.shape, cfg.context)
    )
    contexts = jnp.take_along_axis(history, positions.reshape(len(history), -1), axis=1).reshape(
        positions.shape
    )
    total = jnp.sum(present, axis=1)[:, None] + jnp.broadcast_to(
        offsets[None, :-1], (len(history), cfg.context - 1)
    )
    return contexts, jnp.take_along_axis(history, total, axis=1).astype(carry.dtype)


def _forward(
    cfg: Config, params: Params, contexts: Array, key: Array | None
) -> tuple[Array, dict[str, Array]]:
    keys = split_keys(key, 2)
    vectors = look_up(params["embedding"], contexts)
    x = dropout(vectors.reshape(*contexts.shape[:2], -1), cfg.input_dropout, keys[0])
    hidden = block(jnp.tanh(dense(params["hidden"], x, cfg.compute_dtype)))
    logits = dense(params["output"], dropout(hidden, cfg.dropout, keys[1]), cfg.compute_dtype)
    if cfg.direct:
        kernel = params["direct"]["kernel"].astype(
            cfg.compute_dtype or params["direct"]["kernel"].dtype
        )
        logits = logits + x.astype(kernel.dtype) @ kernel
    logits = at_least_float32(logits)
    return logits, {
        "embedded": x,
        "hidden_0": hidden,
        "logits": logits,
        "outputs": output_activation("softmax", logits),
    }


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


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> Array:
    """``initial_carry``."""
    return initial_carry(cfg, params, batch_size)


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Random tokens [batch, time] of texts with different lengths.

    Every other row starts a new text.
    """
    return example_tokens(key, batch_size, cfg.vocabulary)
