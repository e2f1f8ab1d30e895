"""A toy model with a sampled objective: binary units and the score function (Williams 1992).

h ~ Bernoulli(sigmoid(x W + b)), y = h V + c, and the objective is E[1/2 |y - t|^2].  It tests the
hardest case of the contract.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from zoo.base import Aux, Batch, Outputs, Params, Targets, blank_padding
from zoo.parts.checking import require_choice, require_positive, require_shape
from zoo.parts.config import static
from zoo.parts.layers import ComputeDtype, add_gradient, at_least_float32, dense, init_layer, summed

SAMPLED = True


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """features, hidden, output_units: sizes."""

    features: int = 3
    hidden: int = 2
    output_units: int = 2
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        require_positive(self, "features", "hidden", "output_units")
        require_choice(self, "compute_dtype", (None, "bfloat16"))

    @property
    def input_range(self) -> None:
        """Anything."""
        return None

    @property
    def outputs(self) -> Outputs:
        """Numbers, with squared error."""
        return Outputs("targets", Targets(self.output_units, "numbers"))


PRESETS = {"tiny": Config()}


def init(cfg: Config, key: Array) -> Params:
    """Kernels and biases of the stochastic and of the output layer."""
    keys = jax.random.split(key)
    return {
        "stochastic": init_layer(keys[0], (cfg.features, cfg.hidden), "glorot_uniform"),
        "output": init_layer(keys[1], (cfg.hidden, cfg.output_units), "glorot_uniform"),
    }


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, features] -> outputs [batch, outputs]; probabilities if key=None."""
    return _forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Outputs, and "hidden" [batch, hidden]: the probabilities."""
    outputs, _, hidden = _forward(cfg, params, inputs, None)
    return outputs, {"hidden": hidden}


def _forward(
    cfg: Config, params: Params, inputs: Array, key: Array | None
) -> tuple[Array, Array, Array]:
    require_shape("inputs", inputs, ("batch", cfg.features))
    logits = at_least_float32(dense(params["stochastic"], inputs, cfg.compute_dtype))
    hidden, log_probability = jax.nn.sigmoid(logits), jnp.zeros(inputs.shape[0], logits.dtype)
    if key is not None:
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (cfg.hidden,), logits.dtype))(key)
        hidden = jax.lax.stop_gradient((uniform < hidden).astype(logits.dtype))
        log_probability = jnp.sum(hidden * logits - jax.nn.softplus(logits), axis=-1)
    return (
        at_least_float32(dense(params["output"], hidden, cfg.compute_dtype)),
        log_probability,
        hidden,
    )


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Squared error, with a score-function estimate of the expectation's gradient."""
    batch, _ = blank_padding(batch)
    outputs, log_probability, _ = _forward(cfg, params, batch["inputs"], key)
    require_shape("targets", batch["targets"], outputs.shape)
    cost = 0.5 * jnp.sum(jnp.square(outputs - batch["targets"]), axis=-1)
    return summed(add_gradient(cost, jax.lax.stop_gradient(cost) * log_probability), batch["mask"])


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): nothing is carried."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Normal inputs, uniform targets."""
    keys = jax.random.split(key)
    return {
        "inputs": jax.random.normal(keys[0], (batch_size, cfg.features)),
        "targets": jax.random.uniform(keys[1], (batch_size, cfg.output_units)),
        "mask": jnp.ones(batch_size, bool),
    }
