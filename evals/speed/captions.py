"""A captioner with soft attention: its training step and its captions by beam search."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

import zoo
from evals.speed import workloads
from evals.speed.translation import (
    Task,
    Writer,
    flax_writer_params,
    torch_linear,
    torch_writer,
    torch_writer_params,
)
from evals.speed.workloads import Workload, flax_stages, torch_stages
from zoo.base import Params
from zoo.convnet import Stage


def caption(
    batch: int = 32, width: float = 1, side: int = 96, length: int = 12, vocabulary: int = 1000
) -> Workload:
    """A smaller version of Xu et al. 2015, see ``network``; all captions have the same length.

    width: a factor on features and units.
    """
    cfg = network(width, side, vocabulary)
    keys = jax.random.split(jax.random.key(2), 2)
    target = jax.random.randint(keys[1], (batch, length + 1), 0, vocabulary)
    arrays = {
        "inputs": {**images(cfg, keys[0], batch), "target": target[:, :-1]},
        "targets": target[:, 1:],
        "mask": jnp.ones((batch, length), bool),
    }
    return Workload(
        zoo.captioner,
        cfg,
        arrays,
        Captioner(cfg),
        lambda: torch_captioner(cfg),
        torch_params,
        flax_params,
    )


CAPTIONS: dict[str, tuple[Callable[..., Workload], dict[str, float]]] = {
    "caption": (caption, {"flax": 0.8, "torch": 1.5}),
}
"""See ``evals.speed.workloads.WORKLOADS``."""


def network(width: float = 1, side: int = 96, vocabulary: int = 1000) -> zoo.captioner.Config:
    """3x3 convolutions with 64-64-128-128 features, max pools 2x2, 2x2, 3x3: 8x8 locations.

    Images are 96x96.  An LSTM of 256 units attends to the locations, with additive attention and a
    gate; token embeddings have the same size.
    """
    plan = ((64, 2), (64, 2), (128, 3), (128, None))
    stages = tuple(
        Stage(
            features=round(width * features), pool="max" if pool else None, pool_size=(pool or 2,)
        )
        for features, pool in plan
    )
    encoder = zoo.convnet.Config(shape=(side, side, 3), stages=stages)
    units = round(256 * width)
    return zoo.captioner.Config(
        encoder=encoder, vocabulary=vocabulary, features=units, units=units, places=False
    )


def images(cfg: zoo.captioner.Config, key: Array, batch: int) -> dict[str, Array]:
    """Random images [batch, *shape], each noise of one colour."""
    keys = jax.random.split(key, 2)
    colours = jax.random.uniform(keys[0], (batch, 1, 1, cfg.encoder.shape[-1]))
    return {"image": colours * jax.random.uniform(keys[1], (batch, *cfg.encoder.shape))}


def pictures(batch: int = 16, length: int = 12, cfg: zoo.captioner.Config | None = None) -> Task:
    """Captions of random images."""
    cfg = cfg or network()
    return Task(zoo.captioner, cfg, images(cfg, jax.random.key(2), batch), length)


class Captioner(nn.Module):
    """The network of ``caption`` in flax."""

    cfg: zoo.captioner.Config

    @nn.compact
    def __call__(self, x: dict[str, Array]) -> Array:
        """Inputs as in the zoo -> logits [batch, time, vocabulary]."""
        cfg = self.cfg
        maps = flax_stages(cfg.encoder, x["image"])
        annotations = maps.reshape(maps.shape[0], -1, maps.shape[-1])
        hidden, cell = jnp.split(
            nn.tanh(nn.Dense(2 * cfg.units, name="bridge")(annotations.mean(axis=1))), 2, axis=-1
        )
        writer = Writer(
            cfg.vocabulary, cfg.features, cfg.units, nn.OptimizedLSTMCell, gated=True, name="writer"
        )
        return writer((cell, hidden), annotations, x["target"])


def stages_of(params: Params) -> Params:
    """The encoder's params."""
    return {name: layer for name, layer in params.items() if name.startswith("conv_")}


def flax_params(params: Params) -> Params:
    """The zoo's params under the names of ``Captioner``."""
    return {
        **stages_of(params),
        "bridge": params["bridge"]["layer_0"],
        "writer": flax_writer_params("lstm", params),
    }


def torch_params(params: Params) -> list[Any]:
    """The zoo's params in the order and layout of ``torch_captioner``'s trained parameters."""
    bridge = torch_linear(params["bridge"]["layer_0"])
    return [
        *workloads.torch_params(stages_of(params)),
        *bridge,
        *torch_writer_params("lstm", params),
    ]


def torch_captioner(cfg: zoo.captioner.Config) -> Any:
    """The same in torch, its encoder in channels-last memory format."""
    import torch  # pyright: ignore[reportMissingImports]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            encoder: Any = torch.nn.Sequential(*torch_stages(cfg.encoder))
            annotation = cfg.encoder.stages[-1].features
            self.encoder = encoder.to(memory_format=torch.channels_last)
            self.bridge = torch.nn.Linear(annotation, 2 * cfg.units)
            self.writer = torch_writer(
                "lstm", cfg.vocabulary, cfg.features, cfg.units, annotation, gated=True
            )

        def forward(self, x: Any) -> Any:
            annotations = self.encoder(x["image"]).flatten(2).mT
            state = torch.tanh(self.bridge(annotations.mean(dim=1))).chunk(2, dim=1)
            return self.writer(state, annotations, x["target"])

    return Network()
