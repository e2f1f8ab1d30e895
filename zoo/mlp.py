"""Multilayer perceptrons (LeCun, Bengio, Hinton 2015, figure 1).

Each layer computes z = x W + b and y = f(z); backpropagation multiplies the error by the transposed
kernel on the way down.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax
from jax import Array

from zoo.base import Aux, Batch, Outputs, Params, blank_padding, block
from zoo.parts.checking import require_inputs
from zoo.parts.config import PositiveFloat, Rate, at_least, static
from zoo.parts.layers import (
    Activation,
    ComputeDtype,
    Initializer,
    Objective,
    Output,
    activate,
    at_least_float32,
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


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A multilayer perceptron.

    sizes: units of every layer, inputs first, outputs last.
    activation: nonlinearity of the hidden units; lecun_tanh is 1.7159 tanh(2x/3).
    output: kind of output units.
    objective: cross_entropy or squared_error (1/2 sum of squares).  None selects the natural one:
        cross-entropy for softmax and logistic outputs, squared error for linear ones.
    input_dropout, dropout: probability of dropping an input or a hidden unit in training.
    initializer, gain: distribution of the kernels, and a factor on them (the Matlab toolbox's
        networks: glorot_uniform times 4).
    compute_dtype: None computes in the parameters' type; "bfloat16" halves memory traffic on
        accelerators.
    """

    sizes: Annotated[tuple[int, ...], at_least(2)]
    activation: Activation = "relu"
    output: Output = "softmax"
    objective: Objective | None = None
    input_dropout: Rate = 0.0
    dropout: Rate = 0.0
    initializer: Initializer = "glorot_uniform"
    gain: PositiveFloat = 1.0
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require_objective(self, self.output, self.objective)

    @property
    def input_range(self) -> None:
        """Allowed inputs: any."""
        return None

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> "Config":
        """See ``zoo.base.Adaptable``."""
        sizes = (math.prod(shape), *self.sizes[1:-1], classes or self.sizes[-1])
        return replace(self, sizes=sizes)

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return supervised_outputs(self.output, self.objective, self.sizes[-1])


_toolbox = Config(
    sizes=(784, 100, 10),
    activation="lecun_tanh",
    output="logistic",
    objective="squared_error",
    gain=4.0,
)

PRESETS: dict[str, Config] = {
    "tiny": Config(sizes=(6, 5, 5, 3), activation="tanh", dropout=0.25),
    "digits": Config(
        sizes=(64, 512, 512, 10), input_dropout=0.05, dropout=0.5, initializer="he_normal"
    ),
    # The networks of the Matlab DeepLearnToolbox's test_example_NN (Palm 2012).
    "toolbox": _toolbox,
    # The toolbox halves activations in testing; here they are doubled in training, so kernels start
    # at half the toolbox's scale.
    "toolbox_dropout": replace(_toolbox, dropout=0.5, gain=2.0),
    "toolbox_logistic": replace(_toolbox, activation="logistic"),
    "toolbox_softmax": Config(sizes=(784, 20, 10), activation="lecun_tanh", gain=4.0),
    # The MLP of the LISA deep learning tutorials.
    "tanh500": Config(sizes=(784, 500, 10), activation="tanh"),
    # Srivastava et al. 2014, table 2.
    "dropout1024x3": Config(
        sizes=(784, 1024, 1024, 1024, 10), input_dropout=0.2, dropout=0.5, initializer="he_normal"
    ),
}


def init(cfg: Config, key: Array) -> Params:
    """{"layer_0": {"kernel" [in, out], "bias" [out]}, ...}.

    Kernels are drawn by ``cfg.initializer``; biases are zero.
    """
    keys = jax.random.split(key, len(cfg.sizes) - 1)
    return {
        f"layer_{index}": init_layer(keys[index], (inputs, outputs), cfg.initializer, cfg.gain)
        for index, (inputs, outputs) in enumerate(zip(cfg.sizes[:-1], cfg.sizes[1:], strict=True))
    }


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, ...] of sizes[0] values each -> logits [batch, sizes[-1]].

    Images are flattened.  Logits are at least float32.
    """
    return _forward(cfg, params, inputs, key)[0]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Logits, and "hidden_0", ... [batch, units], "logits", "outputs".

    "outputs" are probabilities unless the outputs are linear.
    """
    return _forward(cfg, params, inputs, None)


def _forward(
    cfg: Config, params: Params, inputs: Array, key: Array | None
) -> tuple[Array, dict[str, Array]]:
    x = require_inputs(inputs, cfg.sizes[0], None, "sizes[0]")
    keys = split_keys(key, len(cfg.sizes) - 1)
    intermediates = {}
    x = dropout(x, cfg.input_dropout, keys[0])
    for index in range(len(cfg.sizes) - 2):
        x = block(activate(cfg.activation, dense(params[f"layer_{index}"], x, cfg.compute_dtype)))
        intermediates[f"hidden_{index}"] = x
        x = dropout(x, cfg.dropout, keys[index + 1])
    logits = at_least_float32(dense(params[f"layer_{len(cfg.sizes) - 2}"], x, cfg.compute_dtype))
    return logits, intermediates | {
        "logits": logits,
        "outputs": output_activation(cfg.output, logits),
    }


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Summed loss over unmasked examples; metric "accuracy" if targets are classes.

    batch: inputs [batch, ...], mask [batch], targets: classes [batch] (integers) or
        [batch, sizes[-1]] (0/1 or real).
    """
    batch, _ = blank_padding(batch)
    return supervised_loss(
        cfg.output, cfg.objective, apply(cfg, params, batch["inputs"], key=key), batch
    )


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): there is no carry."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Uniform inputs [batch, sizes[0]] and random classes [batch].

    For linear outputs, the targets are normal, [batch, sizes[-1]].
    """
    return example_supervised(cfg.output, key, (batch_size, cfg.sizes[0]), cfg.sizes[-1])
