"""A toy member with a carry and resets: one tanh recurrent layer that predicts a class at every time step (Elman 1990).

It exists to prove the contract where it is hard.  inputs [batch, time, features], mask and targets [batch, time].
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from zoo.base import Aux, Batch, Params, require_choice, require_positive, require_rate, require_shape, static
from zoo.layers import ComputeDtype, at_least_float32, dense, dropout, init_layer, summed


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """features, hidden, classes: sizes.  dropout: probability that an input is dropped while training."""

    features: int = 3
    hidden: int = 8
    classes: int = 3
    dropout: float = 0.1
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        require_positive(self, "features", "hidden", "classes")
        require_rate(self, "dropout")
        require_choice(self, "compute_dtype", (None, "bfloat16"))


PRESETS = {"tiny": Config()}


def init(cfg: Config, key: Array) -> Params:
    """Kernels of the input, the recurrence and the output."""
    keys = jax.random.split(key, 3)
    return {
        "input": init_layer(keys[0], (cfg.features, cfg.hidden), "glorot_uniform"),
        "recurrent": {"kernel": init_layer(keys[1], (cfg.hidden, cfg.hidden), "glorot_uniform")["kernel"]},
        "output": init_layer(keys[2], (cfg.hidden, cfg.classes), "glorot_uniform"),
    }


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """inputs [batch, time, features] -> logits [batch, time, classes], from a zero state."""
    mask = jnp.ones(inputs.shape[:2], bool)
    hidden, _ = _unroll(cfg, params, jnp.zeros((inputs.shape[0], cfg.hidden), inputs.dtype), inputs, mask, key)
    return _logits(cfg, params, hidden)


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Logits, and "hidden" [batch, time, hidden]."""
    mask = jnp.ones(inputs.shape[:2], bool)
    hidden, _ = _unroll(cfg, params, jnp.zeros((inputs.shape[0], cfg.hidden), inputs.dtype), inputs, mask, None)
    return _logits(cfg, params, hidden), {"hidden": hidden}


def _logits(cfg: Config, params: Params, hidden: Array) -> Array:
    flat = dense(params["output"], hidden.reshape(-1, cfg.hidden), cfg.compute_dtype)
    return at_least_float32(flat).reshape(*hidden.shape[:2], cfg.classes)


def _unroll(cfg: Config, params: Params, start: Array, inputs: Array, mask: Array, key: Array | None) -> tuple[Array, Array]:
    require_shape("inputs", inputs, ("batch", "time", cfg.features))
    inputs = dropout(inputs, cfg.dropout, key)
    projected = dense(params["input"], inputs.reshape(-1, cfg.features), cfg.compute_dtype)
    projected = projected.reshape(*inputs.shape[:2], cfg.hidden).swapaxes(0, 1)

    def step(hidden: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        x, real = at
        kernel = params["recurrent"]["kernel"].astype(x.dtype)
        new = jnp.tanh(x + hidden.astype(x.dtype) @ kernel).astype(hidden.dtype)
        hidden = jnp.where(real[:, None], new, hidden)
        return hidden, hidden

    last, hidden = jax.lax.scan(step, start, (projected, mask.T))
    return hidden.swapaxes(0, 1), last


def loss(cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()) -> tuple[Array, Aux]:
    """Cross-entropy summed over unmasked steps; the carry is the hidden state [batch, hidden]."""
    mask, targets = batch["mask"], batch["targets"]
    require_shape("inputs", batch["inputs"], ("batch", "time", cfg.features))
    require_shape("targets", targets, batch["inputs"].shape[:2])
    require_shape("mask", mask, targets.shape)
    start = jnp.where(batch["reset"][:, None], jnp.zeros_like(carry), carry)
    hidden, last = _unroll(cfg, params, start, batch["inputs"], mask, key)
    logits = _logits(cfg, params, hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    total, aux = summed(losses, mask, accuracy=jnp.argmax(logits, -1) == targets)
    return total, aux._replace(carry=jax.lax.stop_gradient(last))


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> Array:
    """A zero state [batch, hidden]."""
    return jnp.zeros((batch_size, cfg.hidden), params["input"]["kernel"].dtype)


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Seven time steps; rows of different lengths."""
    keys = jax.random.split(key, 3)
    lengths = 3 + jax.random.randint(keys[2], (batch_size, 1), 0, 5)
    return {
        "inputs": jax.random.normal(keys[0], (batch_size, 7, cfg.features)),
        "targets": jax.random.randint(keys[1], (batch_size, 7), 0, cfg.classes),
        "mask": jnp.arange(7)[None, :] < lengths,
        "reset": jnp.arange(batch_size) % 2 == 0,
    }
