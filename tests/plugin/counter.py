"""A model: the bias is a linear function of the mean of the flips."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from zoo.base import Aux, Batch, Outputs, Params, Targets, blank_padding
from zoo.parts.config import static


@static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """flips: of each coin."""

    flips: int = 8

    @property
    def outputs(self) -> Outputs:
        """Numbers."""
        return Outputs("targets", Targets(1, "numbers"))

    @property
    def input_range(self) -> tuple[float, float]:
        """Heads or tails."""
        return (0.0, 1.0)

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> "Config":
        """Another number of flips."""
        return dataclasses.replace(self, flips=shape[0])


PRESETS = {"tiny": Config()}


def init(cfg: Config, key: Array) -> Params:
    """{"scale" [], "offset" []}."""
    return {"scale": 0.1 * jax.random.normal(key), "offset": jnp.zeros(())}


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Flips [batch, flips] -> estimates [batch, 1]."""
    return params["scale"] * jnp.mean(inputs, axis=1, keepdims=True) + params["offset"]


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Squared error."""
    batch, _ = blank_padding(batch)
    errors = jnp.square(apply(cfg, params, batch["inputs"]) - batch["targets"])[:, 0]
    total, count = jnp.sum(errors, where=batch["mask"]), jnp.sum(batch["mask"])
    return total, Aux(count, {"squared_error": (total, count)})


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """Nothing is carried."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Random flips."""
    inputs = jax.random.bernoulli(key, 0.5, (batch_size, cfg.flips)).astype(jnp.float32)
    targets = jnp.full((batch_size, 1), 0.5)
    return {"inputs": inputs, "targets": targets, "mask": jnp.ones(batch_size, bool)}


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """The estimates, and the "means" [batch, 1]."""
    return apply(cfg, params, inputs), {"means": jnp.mean(inputs, axis=1, keepdims=True)}
