"""The models of the rows.  To add one, write a function like ``mlp`` and a line in WORKLOADS."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import zoo
from train.augment import Augment
from zoo.base import Batch, Model, Params
from zoo.convnet import Stage
from zoo.parts.convolution import Geometry, Sizes


def mean_cross_entropy(logits: Array, batch: Batch) -> Array:
    """The mean over all targets."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()


def masked_cross_entropy(logits: Array, batch: Batch) -> Array:
    """The mean over the unmasked targets."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return losses.mean(where=batch["mask"])


def torch_cross_entropy(batch: Batch) -> Callable[[Any], Any]:
    """The mean over the unmasked targets, of logits in torch."""
    import torch  # pyright: ignore[reportMissingImports]

    # The loss ignores targets of -100.
    targets = torch.tensor(np.where(batch["mask"], batch["targets"], -100)).long().flatten()
    return lambda logits: torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets)


@dataclass(frozen=True)
class Workload:
    """A model with targets in three frameworks, and the batch it trains on.

    network: a linen module from inputs (and ``lengths`` if present) to logits.
    torch_network: makes the equivalent torch module, in torch's fastest memory layout.
    torch_params: converts the zoo's params to the order and layout of its trained parameters.
    flax_params: renames the zoo's params for the linen module; the identity if names agree.
    lengths: of the sequences in a batch [batch], if they differ; steps beyond them are masked.
    flax_loss: of logits, and the batch.  torch_loss: makes the same of logits for a batch.
    """

    module: Model
    cfg: Any
    batch: Batch
    network: nn.Module
    torch_network: Callable[[], Any]
    torch_params: Callable[[Params], list[Any]]
    flax_params: Callable[[Params], Params] = lambda params: params
    lengths: Array | None = None
    flax_loss: Callable[[Array, Batch], Array] = mean_cross_entropy
    torch_loss: Callable[[Batch], Callable[[Any], Any]] = torch_cross_entropy


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

        return Sequential(
            Linear(784, width), ReLU(), Linear(width, width), ReLU(), Linear(width, 10)
        )

    arrays = zoo.mlp.example_batch(cfg, jax.random.key(2), batch)
    return Workload(zoo.mlp, cfg, arrays, Network(), torch_network, torch_params)


def torch_params(params: Params) -> list[Array]:
    """Kernel and bias of every layer, kernels as [outputs, inputs, *window].

    1-D windows get a leading axis of length 1.
    """

    def transposed(kernel: Array) -> Array:
        return jnp.moveaxis(kernel[None] if kernel.ndim == 3 else kernel, (-1, -2), (0, 1))

    return [
        leaf for layer in params.values() for leaf in (transposed(layer["kernel"]), layer["bias"])
    ]


def convnet(batch: int = 128, width: float = 1, side: int = 28) -> Workload:
    """The network of flax's MNIST example: 3x3, 32 and 64 features, 2x2 mean pools, 256 units."""
    stages = tuple(Stage(features=features, pool="mean") for features in (32, 64))
    return convolutional(
        zoo.convnet.Config(shape=(side, side, 1), stages=stages, dense=(256,)), batch, width
    )


def lenet5(batch: int = 128, width: float = 1, side: int = 28) -> Workload:
    """The preset ``convnet/lenet5``."""
    return convolutional(zoo.create("convnet/lenet5", shape=(side, side, 1))[1], batch, width)


def vgg32(batch: int = 32, width: float = 1, side: int = 32) -> Workload:
    """Eight 3x3 convolutions, 64 to 512 features as in VGG, for small images; no hidden dense."""
    pairs = itertools.product((64, 128, 256, 512), (None, "max"))
    stages = tuple(Stage(features=features, pool=pool) for features, pool in pairs)
    return convolutional(zoo.convnet.Config(shape=(side, side, 3), stages=stages), batch, width)


def tdnn(batch: int = 64, width: float = 1, length: int = 100) -> Workload:
    """The preset ``convnet/tdnn``: convolutions over time."""
    return convolutional(zoo.create("convnet/tdnn", shape=(length, 40))[1], batch, width)


def convolutional(cfg: zoo.convnet.Config, batch: int, width: float) -> Workload:
    """A ReLU network for signals or images, with dropout removed.

    width: a factor on all features and hidden units.
    """
    stages = tuple(
        replace(stage, features=round(width * stage.features), dropout=0.0) for stage in cfg.stages
    )
    cfg = replace(
        cfg, stages=stages, dense=tuple(round(width * units) for units in cfg.dense), dropout=0.0
    )
    arrays = zoo.convnet.example_batch(cfg, jax.random.key(2), batch)
    return Workload(
        zoo.convnet,
        cfg,
        arrays,
        ConvolutionalNetwork(cfg),
        lambda: torch_convolutional(cfg),
        torch_params,
    )


def convolutions(cfg: zoo.convnet.Config, batch: int) -> list[Geometry]:
    """Geometries of the stages' convolutions."""
    spaces, channels = (
        [cfg.shape[:-1], *cfg.spaces()],
        [cfg.shape[-1], *(stage.features for stage in cfg.stages)],
    )
    geometries = []
    for stage, space, ends in zip(
        cfg.stages, spaces[:-1], itertools.pairwise(channels), strict=True
    ):
        at = stage.geometry(space)
        geometries.append(Geometry(batch, space, at.window, at.strides, at.pads, *ends))
    return geometries


POOLS = {"max": nn.max_pool, "mean": nn.avg_pool}


def flax_stages(cfg: zoo.convnet.Config, x: Array) -> Array:
    """Inputs [batch, *shape] -> the last stage's maps; called inside a linen module."""
    for index, stage in enumerate(cfg.stages):
        at = stage.geometry(x.shape[1:-1])
        x = nn.relu(
            nn.Conv(stage.features, at.window, at.strides, at.pads, name=f"conv_{index}")(x)
        )
        if stage.pool:
            x = POOLS[stage.pool](x, at.pool, at.pool_strides)
    return x


class ConvolutionalNetwork(nn.Module):
    """The network in the style of flax's own examples."""

    cfg: zoo.convnet.Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Inputs [batch, *shape] -> logits [batch, classes]."""
        x = flax_stages(self.cfg, x)
        if self.cfg.global_pool:
            x = POOLS[self.cfg.global_pool](x, x.shape[1:-1])
        x = x.reshape(x.shape[0], -1)
        for index, units in enumerate(self.cfg.dense):
            x = nn.relu(nn.Dense(units, name=f"dense_{index}")(x))
        return nn.Dense(self.cfg.classes, name=f"dense_{len(self.cfg.dense)}")(x)


def torch_convolutional(cfg: zoo.convnet.Config) -> Any:
    """The same in torch."""
    from torch import channels_last, nn  # pyright: ignore[reportMissingImports]

    layers = torch_stages(cfg)
    if cfg.global_pool:
        layers.append(
            {"max": nn.AdaptiveMaxPool2d, "mean": nn.AdaptiveAvgPool2d}[cfg.global_pool](1)
        )
    layers += [torch_turn(1, -1), nn.Flatten()]
    inputs = cfg.stages[-1].features * (1 if cfg.global_pool else math.prod(cfg.spaces()[-1]))
    for sizes in itertools.pairwise((inputs, *cfg.dense, cfg.classes)):
        layers += [nn.Linear(*sizes), nn.ReLU()]
    network: Any = nn.Sequential(*layers[:-1])
    return network.to(memory_format=channels_last)


def torch_stages(cfg: zoo.convnet.Config) -> list[Any]:
    """Modules from inputs [batch, *shape] to the last maps [batch, features, height, width].

    Channels are the second axis but last in memory, so moving the axes copies no data.  Signals
    become images of height 1, because torch supports this faster layout for images only.
    """
    from torch import nn  # pyright: ignore[reportMissingImports]

    def lift(sizes: Sizes, other: int = 1) -> Any:
        return (other, *sizes) if len(sizes) == 1 else sizes

    pools = {"max": nn.MaxPool2d, "mean": nn.AvgPool2d}
    layers: list[Any] = (
        [torch_turn(-1, 1)]
        if len(cfg.shape) == 3
        else [nn.Unflatten(1, (1, -1)), torch_turn(-1, 1)]
    )
    for stage, shape in zip(cfg.stages, convolutions(cfg, batch=1), strict=True):
        pads = lift(tuple(low for low, _ in shape.pads), other=0)
        layers += [
            nn.Conv2d(
                shape.channels_in, shape.channels_out, lift(shape.window), lift(shape.strides), pads
            ),
            nn.ReLU(),
        ]
        if stage.pool:
            at = stage.geometry(shape.outputs)
            layers.append(pools[stage.pool](lift(at.pool), lift(at.pool_strides)))
    return layers


def torch_turn(source: int, target: int) -> Any:
    """A module that moves an axis."""
    from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

    class Turn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.movedim(source, target)

    return Turn()


WORKLOADS: dict[str, tuple[Callable[..., Workload], dict[str, float]]] = {
    "mlp": (mlp, {"flax": 1.05, "torch": 0.75}),
    "convnet": (convnet, {"flax": 0.6, "torch": 1.0}),
    "lenet5": (lenet5, {"torch": 1.0}),
    "vgg32": (vgg32, {"flax": 0.75, "torch": 1.0}),
    "tdnn": (tdnn, {"torch": 1.0}),
}
"""{row: (function of batch, width, ..., all with defaults; {peer: promised ratio})}."""

DEFORMATIONS = {
    "augment, affine": Augment(rotate=10, scale=0.1, shear=5, shift=1.5),
    "augment, elastic": Augment(rotate=10, scale=0.1, shear=5, shift=1.5, elastic=0.8),
}
"""{row: deformation of LeNet-5's batch of images}."""

LOOPS: dict[str, tuple[Model, Any, int, float | None]] = {
    "loop": (zoo.mlp, zoo.mlp.Config(sizes=(64, 32, 10)), 32, None),
    "loop, mlp": (zoo.mlp, zoo.mlp.Config(sizes=(784, 800, 800, 10)), 128, None),
    "loop, lenet5": (zoo.convnet, zoo.convnet.PRESETS["lenet5"], 128, 1.05),
}
"""{row: (module, Config, batch size, promised bound of the ratio or None)}.

In the first the host's work is visible; in the second it mostly overlaps with the device's; the
third is a recipe's model, dispatched step by step.
"""

SIDE_BY_SIDE = {
    "replicas, mlp": ("mlp-digits", "--epochs", "20"),
    "replicas, lenet5": (
        "convnet-lenet5",
        "--data",
        "synthetic:3200x28x28x1/10",
        "--train-on",
        "train",
        "--epochs",
        "2",
    ),
}
"""{row: (recipe, *options)}."""
