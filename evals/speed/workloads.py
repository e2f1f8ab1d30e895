"""The models of the rows.  A further one is a function like ``mlp`` and its line in WORKLOADS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax import Array

import zoo
from zoo.base import Batch, Model, Params


@dataclass(frozen=True)
class Workload:
    """A model that classifies, three times, and the batch it trains on.

    network: a linen module that takes the zoo's params as they are (its layers have the same names).
    torch_network: makes a torch module from the same inputs to the same logits, in torch's fastest layout.
    torch_params: the zoo's params in the order and the layout of that module's.
    """

    module: Model
    cfg: Any
    batch: Batch
    network: nn.Module
    torch_network: Callable[[], Any]
    torch_params: Callable[[Params], list[Array]]


def mlp(batch: int = 128, width: int = 800) -> Workload:
    """784-800-800-10, ReLU."""
    cfg = zoo.mlp.Config(sizes=(784, width, width, 10))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            for index in range(2):
                x = nn.relu(nn.Dense(width, name=f"layer_{index}")(x))
            return nn.Dense(10, name="layer_2")(x)

    def torch_network() -> Any:
        from torch.nn import Linear, ReLU, Sequential  # pyright: ignore[reportMissingImports]

        return Sequential(Linear(784, width), ReLU(), Linear(width, width), ReLU(), Linear(width, 10))

    def torch_params(params: Params) -> list[Array]:
        return [leaf for layer in params.values() for leaf in (layer["kernel"].T, layer["bias"])]

    arrays = zoo.mlp.example_batch(cfg, jax.random.key(2), batch)
    return Workload(zoo.mlp, cfg, arrays, Network(), torch_network, torch_params)


WORKLOADS: dict[str, tuple[Callable[..., Workload], dict[str, float]]] = {"mlp": (mlp, {"flax": 1.05, "torch": 0.75})}
"""{row: (function of batch and width, both with defaults; {peer: the ratio that we promise not to exceed})}."""

LOOPS = {
    "loop": (zoo.mlp.Config(sizes=(64, 32, 10)), 32),
    "loop, mlp": (zoo.mlp.Config(sizes=(784, 800, 800, 10)), 128),
}
"""{row: (Config of an MLP, batch size)}: one where the host's work shows, and one where most of it hides behind the device's."""
