"""A fully convolutional network with learned upsampling and skips: its training step."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

import zoo
from evals.speed import workloads
from evals.speed.workloads import Workload, torch_stages
from zoo.base import Params
from zoo.convnet import Stage


def pixels(batch: int = 16, width: float = 1, side: int = 96) -> Workload:
    """A smaller version of Long et al. 2015, see ``network``.  width: factor on features, units."""
    cfg = network(width, side)
    arrays = zoo.fcn.example_batch(cfg, jax.random.key(2), batch)
    arrays["mask"] = jnp.ones_like(arrays["mask"])
    return Workload(
        zoo.fcn,
        cfg,
        arrays,
        Segmenter(cfg),
        lambda: torch_segmenter(cfg),
        torch_params,
        flax_params,
    )


PIXELS: dict[str, tuple[Callable[..., Workload], dict[str, float]]] = {
    "pixels": (pixels, {"flax": 0.8, "torch": 1.5})
}
"""See ``evals.speed.workloads.WORKLOADS``."""


def network(width: float = 1, side: int = 96) -> zoo.fcn.Config:
    """3x3 convolutions of 64-64-128 features with 2x2 max pools, 256 units over 3x3, 21 classes.

    Two learned 2x upsamplings, each followed by a skip, then a bilinear one.
    """
    stages = tuple(
        Stage(features=round(width * features), pool="max") for features in (64, 64, 128)
    )
    trunk = zoo.convnet.Config(shape=(24, 24, 3), stages=stages, dense=(round(256 * width),))
    return zoo.fcn.Config(
        shape=(side, side, 3), trunk=trunk, classes=21, skips=("pool_1", "pool_0")
    )


class Segmenter(nn.Module):
    """The network of ``pixels`` in flax."""

    cfg: zoo.fcn.Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Inputs [batch, height, width, channels] -> logits [batch, height, width, classes]."""
        cfg, maps, size = self.cfg, [], x.shape[:-1]
        for index, stage in enumerate(cfg.trunk.stages):
            x = nn.relu(nn.Conv(stage.features, (3, 3), name=f"conv_{index}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
            maps.append(x)
        x = nn.relu(
            nn.Conv(cfg.trunk.dense[0], cfg.window, padding="VALID", name="dense_0")(_around(x))
        )
        scores = nn.Dense(cfg.classes, name="dense_1")(x)
        for index, finer in enumerate(maps[-2::-1]):
            double = nn.ConvTranspose(
                cfg.classes,
                (4, 4),
                (2, 2),
                ((0, 0), (0, 0)),
                use_bias=False,
                name=f"double_{index}",
            )
            scores = double(_around(scores)) + nn.Dense(
                cfg.classes, name=f"skip_{cfg.skips[index]}"
            )(finer)
        return jax.image.resize(scores, (*size, cfg.classes), "bilinear")


def _around(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")


def flax_params(params: Params) -> Params:
    """The zoo's params in the form of ``Segmenter``."""
    doubles = {
        name: {"kernel": jnp.flip(params[name]["kernel"], (0, 1))}
        for name in _named(params, "double")
    }
    return {**params, "dense_0": _windowed(params["dense_0"], 3), **doubles}


def torch_params(params: Params) -> list[Any]:
    """The zoo's params in the order and layout of ``torch_segmenter``'s parameters."""
    convolutions = {name: params[name] for name in _named(params, "conv")} | {
        "dense_0": _windowed(params["dense_0"], 3)
    }
    # The coarsest skip comes first.
    convolutions |= {
        name: _windowed(params[name], 1) for name in ("dense_1", *reversed(_named(params, "skip")))
    }
    doubles = [
        jnp.moveaxis(params[name]["kernel"], (2, 3), (0, 1)) for name in _named(params, "double")
    ]
    return [*workloads.torch_params(convolutions), *doubles]


def _named(params: Params, kind: str) -> list[str]:
    return sorted(name for name in params if name.startswith(f"{kind}_"))


def _windowed(layer: Params, size: int) -> Params:
    """A dense layer's params as those of a convolution."""
    kernel = layer["kernel"]
    return {**layer, "kernel": kernel.reshape(size, size, -1, kernel.shape[-1])}


def torch_segmenter(cfg: zoo.fcn.Config) -> Any:
    """The same in torch, in channels-last memory format."""
    import torch  # pyright: ignore[reportMissingImports]

    functional: Any = torch.nn.functional

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            features = [stage.features for stage in cfg.trunk.stages]
            units, classes = cfg.trunk.dense[0], cfg.classes
            self.stages = torch.nn.Sequential(*torch_stages(cfg.trunk))
            self.head = torch.nn.ModuleList(
                [torch.nn.Conv2d(features[-1], units, 3), torch.nn.Conv2d(units, classes, 1)]
            )
            self.skips = torch.nn.ModuleList(
                [torch.nn.Conv2d(width, classes, 1) for width in features[-2::-1]]
            )
            doubles = [
                torch.nn.ConvTranspose2d(classes, classes, 4, 2, 3, bias=False)
                for _ in features[1:]
            ]
            self.doubles = torch.nn.ModuleList(doubles)

        def forward(self, x: Any) -> Any:
            size, maps = x.shape[1:3], []
            for layer in self.stages:
                x = layer(x)
                if isinstance(layer, torch.nn.MaxPool2d):
                    maps.append(x)
            scores = self.head[1](torch.relu(self.head[0](around(x))))
            for double, skip, finer in zip(self.doubles, self.skips, maps[-2::-1], strict=True):
                scores = double(around(scores)) + skip(finer)
            return functional.interpolate(scores, tuple(size), mode="bilinear").movedim(1, -1)

    def around(x: Any) -> Any:
        return functional.pad(x, (1, 1, 1, 1), mode="replicate")

    module: Any = Network()
    return module.to(memory_format=torch.channels_last)
