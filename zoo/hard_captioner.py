"""Captioning with hard attention: each word attends to one location of the image.

See Xu et al. 2015, section 4.1.  The location s_t is sampled from the weights alpha_t that soft
attention would use.  Training maximises a lower bound on log p(y | a), the expectation of log
p(y | s, a).  Its gradient is estimated by sampling (equation 12; REINFORCE, Williams 1992):

    d log p(y | s, a) / dW + lambda_r (log p(y | s, a) - b) d log p(s | a) / dW
        + lambda_e d H[s] / dW

The baseline b and the entropy H[s] of the weights reduce its variance.  With probability 1/2, an
image uses soft attention instead.  b is a moving average, 0.9 b + 0.1 log p, carried for each row
of a batch.  Unlike the paper's, it is the log p per token, because captions differ in length, and
it starts at that of a uniform guess.  Without a key, the decoder attends to the most likely
location.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from zoo import captioner, convnet
from zoo.base import Aux, Batch, Outputs, Params, blank_padding
from zoo.parts import decoder
from zoo.parts.checking import require
from zoo.parts.config import NonNegativeFloat, PositiveInt, Rate, static
from zoo.parts.decoder import Carry, Memory
from zoo.parts.language import token_losses
from zoo.parts.layers import ComputeDtype, add_gradient, mask_of_steps, split_keys, summed

SAMPLED = True


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A captioner that attends to one location at a time.

    encoder, vocabulary, features, units, cell, places, dropout, label_smoothing, forget_bias,
        compute_dtype: see ``zoo.captioner.Config``.
    attention, coverage: always soft and 0.
    reward: lambda_r.
    entropy: lambda_e.
    memory: decay rate of the baseline's moving average.
    soft: probability that an image uses soft attention in training.
    """

    encoder: convnet.Config
    vocabulary: PositiveInt
    features: PositiveInt
    units: PositiveInt
    cell: Literal["lstm", "gru"] = "lstm"
    attention: Literal["soft"] = "soft"
    places: bool = True
    coverage: float = 0.0
    dropout: Rate = 0.0
    label_smoothing: Rate = 0.0
    forget_bias: NonNegativeFloat = 1.0
    compute_dtype: ComputeDtype = None
    reward: NonNegativeFloat = 1.0
    entropy: NonNegativeFloat = 0.01
    memory: Rate = 0.9
    soft: Rate = 0.5

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        captioner.require_images(self, self.encoder)
        require(self.coverage == 0, self, "coverage", "0")

    @property
    def softly(self) -> captioner.Config:
        """The Config of a captioner with soft attention and the same parameters."""
        return captioner.Config(
            **{field.name: getattr(self, field.name) for field in fields(captioner.Config)}
        )

    @property
    def input_range(self) -> dict[str, tuple[float, float]]:
        """Allowed range of the inputs that are tokens."""
        return self.softly.input_range

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return self.softly.outputs

    @property
    def grid(self) -> tuple[int, int]:
        """Number of locations in height and width."""
        return self.softly.grid


def _hard(cfg: captioner.Config) -> Config:
    same: dict[str, Any] = {field.name: getattr(cfg, field.name) for field in fields(cfg)}
    return Config(**{**same, "coverage": 0.0})


PRESETS: dict[str, Config] = {name: _hard(cfg) for name, cfg in captioner.PRESETS.items()}
# Only the sampled locations are random: a test enumerates them.
PRESETS["tiny"] = replace(PRESETS["tiny"], features=5, dropout=0.0, label_smoothing=0.0)


def init(cfg: Config, key: Array) -> Params:
    """Parameters of a captioner: see ``zoo.captioner.init``."""
    return captioner.init(cfg.softly, key)


def _most_likely(weights: Array, step: Any) -> Array:
    return jax.nn.one_hot(jnp.argmax(weights, axis=-1), weights.shape[-1], dtype=weights.dtype)


def apply(
    cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None
) -> Array:
    """Logits [batch, time, vocabulary]: see ``zoo.captioner.apply``."""
    return _forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """As ``zoo.captioner.trace``, and "looked" [batch, time, height, width].

    "looked" is 1 at the attended location, and 0 elsewhere.
    """
    logits, intermediates = _forward(cfg, params, inputs, None)
    return captioner.show(cfg.softly, logits, intermediates)


def encode(
    cfg: Config, params: Params, inputs: dict[str, Array], *, key: Array | None = None
) -> tuple[Memory, Carry]:
    """The encoded image of ``inputs``, and the decoder's initial carry."""
    return captioner.encode(cfg.softly, params, inputs, key=key)


def decode_step(
    cfg: Config, params: Params, carry: Carry, inputs: Array, memory: Memory
) -> tuple[Carry, Array]:
    """One token [rows] per caption: see ``zoo.captioner.decode_step``."""
    return decoder.step(cfg.softly.writer, params, carry, inputs, memory, _most_likely)


def _forward(
    cfg: Config, params: Params, inputs: dict[str, Array], key: Array | None
) -> tuple[Array, dict[str, Array]]:
    if key is None:
        return captioner.forward(cfg.softly, params, inputs, None, _most_likely)
    draw_key, soft_key = split_keys(key, 6)[4:]  # ``captioner.forward`` uses the first four
    assert draw_key is not None
    assert soft_key is not None
    soft = jax.vmap(lambda key: jax.random.bernoulli(key, cfg.soft))(soft_key)

    def choose(weights: Array, step: Any) -> Array:
        keys = jax.vmap(jax.random.fold_in, (0, None))(draw_key, step)
        tiny = jnp.finfo(weights.dtype).tiny
        drawn = jax.vmap(jax.random.categorical)(
            keys, jnp.log(jnp.maximum(jax.lax.stop_gradient(weights), tiny))
        )
        return jnp.where(
            soft[:, None], weights, jax.nn.one_hot(drawn, weights.shape[-1], dtype=weights.dtype)
        )

    logits, intermediates = captioner.forward(cfg.softly, params, inputs, key, choose)
    return logits, intermediates | {"soft": soft}


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """-log p(y | s, a) of each target token, in nats, summed over unmasked ones.

    The gradient is that of the module's docstring.
    batch: see ``zoo.captioner.loss``.
    carry: b of each row [batch], () for new rows.
    """
    batch, carry = blank_padding(batch, carry)
    logits, intermediates = _forward(cfg, params, batch["inputs"], key)
    losses = token_losses(logits, batch, 0.0 if key is None else cfg.label_smoothing)
    mask = mask_of_steps(batch["mask"], logits.shape[:2])
    total, aux = summed(losses, mask)
    if key is None:
        return total, aux._replace(carry=carry)
    fresh = init_carry(cfg, params, mask.shape[0], key=key)
    baseline = (
        fresh
        if isinstance(carry, tuple)
        else jnp.where(batch["reset"], fresh, carry)
        if "reset" in batch
        else carry
    )
    tokens = jnp.sum(mask, axis=1, dtype=losses.dtype)
    reward = -jax.lax.stop_gradient(jnp.sum(jnp.where(mask, losses, 0), axis=1))
    # Sums over unmasked steps: log p(s | a) of the sampled locations, and the entropy H[s].
    log_weights = jnp.log(jnp.maximum(intermediates["attention"], jnp.finfo(losses.dtype).tiny))
    log_p = jnp.sum(
        jnp.where(jax.lax.stop_gradient(intermediates["looked"]) > 0, log_weights, 0), axis=2
    )
    entropy = -jnp.sum(intermediates["attention"] * log_weights, axis=2)
    log_p, entropy = (jnp.sum(jnp.where(mask, terms, 0), axis=1) for terms in (log_p, entropy))
    # Images with soft attention sampled nothing, and need no estimate.
    estimate = jnp.where(
        intermediates["soft"],
        0,
        cfg.reward * (reward - baseline * tokens) * log_p + cfg.entropy * entropy,
    )
    after = jnp.where(
        tokens > 0,
        cfg.memory * baseline + (1 - cfg.memory) * reward / jnp.maximum(tokens, 1),
        baseline,
    )
    return add_gradient(total, -jnp.sum(estimate)), aux._replace(carry=after)


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> Array:
    """Baselines [batch]: log p of a token for a uniform guess."""
    return jnp.full(batch_size, -jnp.log(float(cfg.vocabulary)))


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Uniform images, and random captions with different lengths."""
    return captioner.example_batch(cfg.softly, key, batch_size)
