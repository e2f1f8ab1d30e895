"""Convolutional networks for signals, images and volumes.

LeCun, Bengio, Hinton 2015, figure 2; LeCun et al. 1998.

A stage is a convolution, a nonlinearity and optional pooling: local filters shared over all
positions, then a summary of neighbouring responses that is less sensitive to their position.  Dense
layers follow.  Arrays have channels last.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from zoo.base import Aux, Batch, Outputs, Params, blank_padding, block
from zoo.parts.checking import require, require_shape
from zoo.parts.config import PositiveFloat, PositiveInt, Rate, at_least, static
from zoo.parts.convolution import Pads, Sizes, output_sizes, padding
from zoo.parts.layers import (
    Activation,
    ComputeDtype,
    Initializer,
    Objective,
    Output,
    activate,
    at_least_float32,
    conv,
    dense,
    dropout,
    example_supervised,
    init_layer,
    output_activation,
    require_objective,
    split_keys,
    supervised_loss,
    supervised_outputs,
)
from zoo.parts.pooling import Pooling, pool


@static
@dataclass(frozen=True, kw_only=True)
class Stage:
    """Convolution, nonlinearity, pooling, dropout.

    A size given as a single number applies to every spatial axis.

    features: number of kernels.
    kernel, stride: sizes.
    padding: "valid" (none), "same", or a number such as "2": zeros on either side.
    activation: of this stage; None uses the network's.
    pool: max, mean or None.
    pool_size: of the pooling windows.
    pool_stride: between the pooling windows; None for windows that do not overlap.
    dropout: probability of dropping a unit of the stage's result in training.
    """

    features: PositiveInt
    kernel: Annotated[tuple[int, ...], at_least(1)] = (3,)
    stride: Annotated[tuple[int, ...], at_least(1)] = (1,)
    padding: str = "same"
    activation: Activation | None = None
    pool: Pooling | None = None
    pool_size: Annotated[tuple[int, ...], at_least(1)] = (2,)
    pool_stride: Annotated[tuple[int, ...], at_least(1)] | None = None
    dropout: Rate = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        known = self.padding in ("valid", "same") or (
            isinstance(self.padding, str) and self.padding.isdecimal()
        )
        require(known, self, "padding", "'valid', 'same', or a number of zeros such as '2'")

    def geometry(self, space: Sizes) -> "Geometry":
        """Sizes along every axis, for inputs with these spatial sizes."""
        window, strides = _each(self.kernel, space), _each(self.stride, space)
        kind: Any = int(self.padding) if self.padding.isdecimal() else self.padding
        pads = padding(kind, space, window, strides)
        return Geometry(
            window,
            strides,
            pads,
            _each(self.pool_size, space),
            _each(self.pool_stride or self.pool_size, space),
        )

    def outputs(self, space: Sizes) -> Sizes:
        """Spatial sizes of the stage's result."""
        at = self.geometry(space)
        space = output_sizes(space, at.window, at.strides, at.pads)
        return (
            output_sizes(
                space, at.pool, at.pool_strides, padding("valid", space, at.pool, at.pool_strides)
            )
            if self.pool
            else space
        )


@dataclass(frozen=True)
class Geometry:
    """A stage's sizes along every spatial axis."""

    window: Sizes
    strides: Sizes
    pads: Pads
    pool: Sizes
    pool_strides: Sizes


def require_stages(cfg: Any) -> tuple[Stage, ...]:
    """The stages of a Config.

    Raises ValueError unless there is at least one, and their sizes match the spatial axes of the
    Config's shape.
    """
    stages = tuple(cfg.stages) if isinstance(cfg.stages, list | tuple) else ()
    valid = bool(stages) and all(isinstance(stage, Stage) for stage in stages)
    require(valid, cfg, "stages", "one or more of zoo.convnet.Stage")
    object.__setattr__(cfg, "stages", stages)
    axes = len(cfg.shape) - 1
    for stage, field in itertools.product(stages, ("kernel", "stride", "pool_size", "pool_stride")):
        fits = len(getattr(stage, field) or (1,)) in (1, axes)
        require(
            fits,
            stage,
            field,
            f"one number, or one for each of the {axes} spatial axes of shape={cfg.shape}",
        )
    return stages


def _each(sizes: Sizes, space: Sizes) -> Sizes:
    return sizes * len(space) if len(sizes) == 1 else sizes


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A convolutional network.

    shape: of one example, channels last: (28, 28, 1) for images, (100, 40) for signals, (8, 16, 16,
        1) for volumes or video.
    stages: convolutional stages, inputs first.
    global_pool: mean or max over all remaining positions before the dense layers; None keeps each
        position.
    dense: units of the hidden dense layers.
    classes: number of outputs.
    activation: nonlinearity of stages and hidden dense units; lecun_tanh is 1.7159 tanh(2x/3).
    output, objective: softmax, logistic or linear; cross_entropy or squared_error, None for the
        natural one (see zoo.mlp).
    dropout: probability of dropping a hidden dense unit in training.
    initializer, gain: distribution of the kernels, and a factor on them; biases are zero.
    compute_dtype: None computes in the parameters' type; "bfloat16" halves memory traffic on
        accelerators.
    """

    shape: Annotated[tuple[int, ...], at_least(2)]
    stages: tuple[Stage, ...]
    global_pool: Pooling | None = None
    dense: Annotated[tuple[int, ...], at_least(0)] = ()
    classes: PositiveInt = 10
    activation: Activation = "relu"
    output: Output = "softmax"
    objective: Objective | None = None
    dropout: Rate = 0.0
    initializer: Initializer = "he_normal"
    gain: PositiveFloat = 1.0
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require_stages(self)
        require_objective(self, self.output, self.objective)
        for number, sizes in enumerate(self.spaces()):
            require(
                min(sizes) >= 1,
                self,
                "shape",
                f"sizes that stages 0 to {number} do not shrink below 1; they are {sizes} there",
            )

    @property
    def input_range(self) -> None:
        """Allowed inputs: any."""
        return None

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> "Config":
        """See ``zoo.base.Adaptable``."""
        return replace(self, shape=shape, classes=classes or self.classes)

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return supervised_outputs(self.output, self.objective, self.classes)

    def spaces(self) -> list[Sizes]:
        """Spatial sizes of the result of every stage."""
        return list(
            itertools.accumulate(
                self.stages, lambda space, stage: stage.outputs(space), initial=self.shape[:-1]
            )
        )[1:]


def _vgg(*plan: tuple[int, int]) -> Config:
    """A VGG network.

    plan: (features, number of 3x3 convolutions) between poolings.
    """
    stages = [
        Stage(features=features, pool="max" if last == count else None)
        for features, count in plan
        for last in range(1, count + 1)
    ]
    return Config(
        shape=(224, 224, 3), stages=tuple(stages), dense=(4096, 4096), classes=1000, dropout=0.5
    )


_toolbox = Stage(features=6, kernel=(5,), padding="valid", pool="mean")

PRESETS: dict[str, Config] = {
    "tiny": Config(
        shape=(6, 6, 2),
        stages=(
            Stage(features=4, pool="max", dropout=0.1),
            Stage(features=5, kernel=(2,), padding="valid", pool="mean"),
        ),
        dense=(5,),
        classes=3,
        activation="tanh",
        dropout=0.25,
    ),
    # The 8x8 digits that ship with the package.
    "digits": Config(
        shape=(8, 8, 1),
        stages=(
            Stage(features=32),
            Stage(features=64, pool="max", dropout=0.25),
            Stage(features=64, pool="max", dropout=0.25),
        ),
        dense=(128,),
        dropout=0.5,
    ),
    # LeCun et al. 1998, figure 2: 6 and 16 maps of 5x5 kernels, 120, 84.  Here ReLU replaces
    # 1.7159 tanh(2x/3), max pooling replaces scaled means, softmax replaces radial basis functions,
    # and all maps are connected.
    "lenet5": Config(
        shape=(28, 28, 1),
        stages=(
            Stage(features=6, kernel=(5,), pool="max"),
            Stage(features=16, kernel=(5,), padding="valid", pool="max"),
        ),
        dense=(120, 84),
    ),
    # The Matlab DeepLearnToolbox's test_example_CNN (Palm 2012): 6c5-2s-12c5-2s; 's' layers have no
    # parameters.
    "toolbox_cnn": Config(
        shape=(28, 28, 1),
        stages=(_toolbox, replace(_toolbox, features=12)),
        activation="logistic",
        output="logistic",
        objective="squared_error",
        initializer="glorot_uniform",
    ),
    # Krizhevsky 2014 as in torchvision: one column, no response normalisation.
    "alexnet": Config(
        shape=(224, 224, 3),
        stages=(
            Stage(
                features=64,
                kernel=(11,),
                stride=(4,),
                padding="2",
                pool="max",
                pool_size=(3,),
                pool_stride=(2,),
            ),
            Stage(
                features=192, kernel=(5,), padding="2", pool="max", pool_size=(3,), pool_stride=(2,)
            ),
            Stage(features=384),
            Stage(features=256),
            Stage(features=256, pool="max", pool_size=(3,), pool_stride=(2,)),
        ),
        dense=(4096, 4096),
        classes=1000,
        dropout=0.5,
    ),
    # Simonyan and Zisserman 2014, configurations D and E.
    "vgg16": _vgg((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "vgg19": _vgg((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
    # After Waibel et al. 1989: windows over time, with responses pooled over the whole word.
    "tdnn": Config(
        shape=(100, 40),
        stages=(
            Stage(features=64, kernel=(5,), pool="max", dropout=0.2),
            Stage(features=128, kernel=(5,), pool="max", dropout=0.2),
            Stage(features=128, kernel=(3,), dropout=0.2),
        ),
        global_pool="mean",
        dense=(128,),
        dropout=0.5,
    ),
    # Video: 8 frames of 16x16.
    "conv3d": Config(
        shape=(8, 16, 16, 1),
        stages=(Stage(features=16, pool="max"), Stage(features=32, pool="max", dropout=0.25)),
        global_pool="max",
        dense=(64,),
        classes=8,
        dropout=0.25,
    ),
}


def init(cfg: Config, key: Array) -> Params:
    """{"conv_0": {"kernel" [*window, in, out], "bias" [out]}, ..., "dense_0": ..., ...}.

    The last dense layer is the output.
    """
    keys = iter(jax.random.split(key, len(cfg.stages) + len(cfg.dense) + 1))
    params = {}
    channels, space = cfg.shape[-1], cfg.shape[:-1]
    for index, stage in enumerate(cfg.stages):
        shape = (*stage.geometry(space).window, channels, stage.features)
        params[f"conv_{index}"] = init_layer(next(keys), shape, cfg.initializer, cfg.gain)
        channels, space = stage.features, stage.outputs(space)
    sizes = (channels * (1 if cfg.global_pool else math.prod(space)), *cfg.dense, cfg.classes)
    for index, shape in enumerate(itertools.pairwise(sizes)):
        params[f"dense_{index}"] = init_layer(next(keys), shape, cfg.initializer, cfg.gain)
    return params


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, *shape] -> logits [batch, classes], at least float32."""
    return _forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Logits, and all intermediates.

    Feature maps "conv_0" (after the nonlinearity), "pool_0", ... [batch, *space, features];
    "hidden_0", ... [batch, units], "logits", "outputs" (probabilities unless the outputs are
    linear).
    """
    return _forward(cfg, params, inputs, None)


def run_stages(
    cfg: Config,
    params: Params,
    inputs: Array,
    keys: Sequence[Array | None],
    shape: Sizes | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The last stage's feature maps for inputs [batch, *shape], and all maps by name.

    keys: one per stage.  The names are those of ``trace``.
    shape: of one example, if it is not the Config's.
    """
    require_shape("inputs", inputs, ("batch", *(shape or cfg.shape)))
    x, intermediates = inputs, {}
    for index, (stage, key) in enumerate(zip(cfg.stages, keys, strict=False)):
        at = stage.geometry(x.shape[1:-1])
        x = conv(params[f"conv_{index}"], x, at.strides, at.pads, cfg.compute_dtype)
        x = intermediates[f"conv_{index}"] = activate(stage.activation or cfg.activation, x)
        if stage.pool:
            x = intermediates[f"pool_{index}"] = block(
                pool(x, stage.pool, at.pool, at.pool_strides)
            )
        x = dropout(x, stage.dropout, key)
    return x, intermediates


def _forward(
    cfg: Config, params: Params, inputs: Array, key: Array | None
) -> tuple[Array, dict[str, Array]]:
    keys = split_keys(key, len(cfg.stages) + len(cfg.dense))
    x, intermediates = run_stages(cfg, params, inputs, keys)
    if cfg.global_pool:
        x = (jnp.max if cfg.global_pool == "max" else jnp.mean)(x, axis=tuple(range(1, x.ndim - 1)))
    x = x.reshape(x.shape[0], -1)
    for index in range(len(cfg.dense)):
        x = intermediates[f"hidden_{index}"] = activate(
            cfg.activation, dense(params[f"dense_{index}"], x, cfg.compute_dtype)
        )
        x = dropout(x, cfg.dropout, keys[len(cfg.stages) + index])
    logits = at_least_float32(dense(params[f"dense_{len(cfg.dense)}"], x, cfg.compute_dtype))
    return logits, intermediates | {
        "logits": logits,
        "outputs": output_activation(cfg.output, logits),
    }


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Summed loss over unmasked examples; metric "accuracy" if targets are classes.

    batch: inputs [batch, *shape], mask [batch], targets: classes [batch] (integers) or
        [batch, classes] (0/1 or real).
    """
    batch, _ = blank_padding(batch)
    return supervised_loss(
        cfg.output, cfg.objective, apply(cfg, params, batch["inputs"], key=key), batch
    )


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): there is no carry."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Uniform inputs [batch, *shape] and random classes [batch].

    For linear outputs, the targets are normal, [batch, classes].
    """
    return example_supervised(cfg.output, key, (batch_size, *cfg.shape), cfg.classes)
