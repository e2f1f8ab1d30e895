"""Convolutional autoencoders (Masci et al. 2011).

The encoder is the stages of a ConvNet, down to a code of feature maps; the decoder mirrors it.
Where a stage pools, the decoder repeats each value over the pooling window; a convolution then
returns to the number of features below.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from zoo import convnet
from zoo.base import Aux, Batch, Outputs, Params, blank_padding, block
from zoo.convnet import Stage
from zoo.parts.checking import require, require_inputs, require_shape
from zoo.parts.config import PositiveFloat, at_least, static
from zoo.parts.convolution import Sizes
from zoo.parts.layers import (
    Activation,
    ComputeDtype,
    Initializer,
    Noise,
    Objective,
    activate,
    at_least_float32,
    conv,
    corrupt,
    dropout,
    example_reconstructed,
    init_layer,
    output_activation,
    reconstruction_loss,
    require_noise,
    require_objective,
    split_keys,
)
from zoo.parts.pooling import pool


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A convolutional autoencoder.

    shape: of one example, channels last: (28, 28, 1) for images, (100, 40) for signals, (8, 16, 16,
        1) for volumes or video.
    stages: of the encoder, inputs first.  Padding must be "same" and strides 1; pooling windows
        must not overlap, and must divide the sizes of their inputs.  Dropout applies to the encoder
        only.
    activation: nonlinearity of stages without their own, and of their mirror images; lecun_tanh is
        1.7159 tanh(2x/3).
    output: kind of reconstruction units, logistic or linear.
    objective: cross_entropy or squared_error (1/2 sum of squares); None selects the natural one
        (see zoo.autoencoder).
    noise: corruption of the inputs in training: none, mask (zeros), gaussian, salt_pepper (zeros
        and ones).
    noise_level: probability that a unit is corrupted; standard deviation of gaussian noise.
    initializer, gain: distribution of the kernels, and a factor on them; biases are zero.
    compute_dtype: None computes in the parameters' type; "bfloat16" halves memory traffic on
        accelerators.
    """

    shape: Annotated[tuple[int, ...], at_least(2)]
    stages: tuple[Stage, ...]
    activation: Activation = "relu"
    output: Literal["logistic", "linear"] = "logistic"
    objective: Objective | None = None
    noise: Noise = "none"
    noise_level: float = 0.0
    initializer: Initializer = "he_normal"
    gain: PositiveFloat = 1.0
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        stages = convnet.require_stages(self)
        require_objective(self, self.output, self.objective)
        require_noise(self, self.noise, self.noise_level)
        space = self.shape[:-1]
        for number, stage in enumerate(stages):
            require(stage.padding == "same", stage, "padding", "'same' in an autoencoder")
            require(set(stage.stride) == {1}, stage, "stride", "1 in an autoencoder")
            at = stage.geometry(space)
            require(
                at.pool == at.pool_strides,
                stage,
                "pool_stride",
                "None, or pool_size, in an autoencoder",
            )
            if stage.pool:
                divides = all(
                    size % window == 0 for size, window in zip(space, at.pool, strict=True)
                )
                require(
                    divides,
                    self,
                    "shape",
                    f"sizes that the windows {at.pool} of stage {number} divide; "
                    f"they are {space} there",
                )
            space = stage.outputs(space)

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> "Config":
        """See ``zoo.base.Adaptable``."""
        return replace(self, shape=shape)

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return Outputs("inputs")

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Allowed range of the inputs; None allows any."""
        return (0.0, 1.0) if self.output == "logistic" else None


PRESETS: dict[str, Config] = {
    "tiny": Config(
        shape=(4, 4, 2),
        stages=(
            Stage(features=5, pool="max", dropout=0.05),
            Stage(features=6, kernel=(2,), pool="mean"),
        ),
        activation="tanh",
        noise="mask",
        noise_level=0.05,
    ),
    # The stages of convnet "digits", for the 8x8 digits that ship with the package.
    "digits": Config(
        shape=(8, 8, 1),
        stages=tuple(replace(stage, dropout=0.0) for stage in convnet.PRESETS["digits"].stages),
        noise="mask",
        noise_level=0.3,
    ),
    # The kernel shapes of convnet "lenet5", whose second stage has no padding.
    "lenet5": Config(
        shape=(28, 28, 1),
        stages=tuple(replace(stage, padding="same") for stage in convnet.PRESETS["lenet5"].stages),
        noise="mask",
        noise_level=0.3,
    ),
}


def init(cfg: Config, key: Array) -> Params:
    """{"conv_0": {"kernel" [*window, in, out], "bias" [out]}, ..., "decoder_0": ..., ...}.

    The encoder's stages have the names of a ConvNet's.  decoder_0,
    {"kernel" [*window, out, in], "bias" [in]}, inverts conv_0.
    """
    up, down = jax.random.split(key, (2, len(cfg.stages)))
    axes = cfg.shape[:-1]
    params: Params = {}
    for index, (inputs, outputs) in enumerate(
        itertools.pairwise((cfg.shape[-1], *(stage.features for stage in cfg.stages)))
    ):
        window = cfg.stages[index].geometry(axes).window
        params[f"conv_{index}"] = init_layer(
            up[index], (*window, inputs, outputs), cfg.initializer, cfg.gain
        )
        params[f"decoder_{index}"] = init_layer(
            down[index], (*window, outputs, inputs), cfg.initializer, cfg.gain
        )
    return params


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, *shape] -> their reconstruction of the same shape, at least float32.

    The reconstruction consists of probabilities unless the outputs are linear.  Inputs are
    corrupted, and units dropped, only if there is a key.
    """
    return _forward(cfg, params, inputs, key)["reconstruction"]


def encode(cfg: Config, params: Params, inputs: Array) -> Array:
    """Clean inputs [batch, *shape] -> code [batch, *space, features], at least float32."""
    return at_least_float32(_up(cfg, params, inputs, None)["code"])


def decode(cfg: Config, params: Params, code: Array) -> Array:
    """Code [batch, *space, features] -> reconstruction [batch, *shape]."""
    space = cfg.shape[:-1]
    for stage in cfg.stages:
        space = stage.outputs(space)
    require_shape("code", code, ("batch", *space, cfg.stages[-1].features))
    return _down(cfg, params, code)["reconstruction"]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """The reconstruction, and all feature maps [batch, *space, features].

    They are "conv_0" (after the nonlinearity), "pool_0", ..., "code", the decoder's "decoded_1"
    (reconstructs the input of the second stage), ..., "logits", "reconstruction".
    """
    intermediates = _forward(cfg, params, inputs, None)
    return intermediates["reconstruction"], intermediates


def _forward(cfg: Config, params: Params, inputs: Array, key: Array | None) -> dict[str, Array]:
    intermediates = _up(cfg, params, inputs, key)
    return intermediates | _down(cfg, params, intermediates["code"])


def _up(cfg: Config, params: Params, inputs: Array, key: Array | None) -> dict[str, Array]:
    require_shape("inputs", inputs, ("batch", *cfg.shape))
    require_inputs(inputs, math.prod(cfg.shape), cfg.input_range, "shape")
    keys = split_keys(key, len(cfg.stages) + 1)
    x, intermediates = corrupt(inputs, cfg.noise, cfg.noise_level, keys[-1]), {}
    for index, stage in enumerate(cfg.stages):
        at = stage.geometry(x.shape[1:-1])
        x = conv(params[f"conv_{index}"], x, at.strides, at.pads, cfg.compute_dtype)
        x = intermediates[f"conv_{index}"] = activate(stage.activation or cfg.activation, x)
        if stage.pool:
            x = intermediates[f"pool_{index}"] = block(
                pool(x, stage.pool, at.pool, at.pool_strides)
            )
        x = dropout(x, stage.dropout, keys[index])
    return intermediates | {"code": x}


def _down(cfg: Config, params: Params, x: Array) -> dict[str, Array]:
    intermediates = {}
    for index in reversed(range(len(cfg.stages))):
        stage = cfg.stages[index]
        if stage.pool:
            x = _repeat(x, stage.geometry(x.shape[1:-1]).pool)
        at = stage.geometry(x.shape[1:-1])
        x = conv(params[f"decoder_{index}"], x, at.strides, at.pads, cfg.compute_dtype)
        if index:
            x = intermediates[f"decoded_{index}"] = block(
                activate(cfg.stages[index - 1].activation or cfg.activation, x)
            )
    logits = at_least_float32(x)
    return intermediates | {
        "logits": logits,
        "reconstruction": output_activation(cfg.output, logits),
    }


def _repeat(x: Array, window: Sizes) -> Array:
    for axis, size in enumerate(window, start=1):
        x = jnp.repeat(x, size, axis)
    return x


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Summed loss of the reconstruction against the clean inputs, over unmasked examples.

    Metric "reconstruction_error": the squared error of an example, summed over units.
    batch: inputs [batch, *shape], in 0..1 for logistic outputs, mask [batch]; targets are ignored.
    """
    batch, _ = blank_padding(batch)
    return reconstruction_loss(
        cfg.output,
        cfg.objective,
        _forward(cfg, params, batch["inputs"], key)["logits"],
        batch["inputs"],
        batch["mask"],
    )


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): there is no carry."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Inputs [batch, *shape]: random bits, or normal numbers for linear outputs."""
    return example_reconstructed(cfg.output, key, (batch_size, *cfg.shape))
