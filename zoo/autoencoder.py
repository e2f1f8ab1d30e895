"""Dense autoencoders: deep, denoising and stacked.

Deep: Hinton and Salakhutdinov 2006.  Denoising: Vincent et al. 2008.  Stacked: Vincent et al. 2010.

An encoder maps inputs to a code, and a decoder maps the code back: y = f(x W + b), z = g(y V + c),
with one such pair for each layer of a deep encoder.  The model learns to reconstruct its inputs; a
denoising autoencoder sees corrupted inputs.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from zoo.base import Aux, Batch, Outputs, Params, blank_padding, block
from zoo.parts.checking import require_inputs, require_shape
from zoo.parts.config import PositiveFloat, at_least, static
from zoo.parts.layers import (
    Activation,
    ComputeDtype,
    Initializer,
    Noise,
    Objective,
    activate,
    at_least_float32,
    corrupt,
    dense,
    example_reconstructed,
    init_layer,
    output_activation,
    reconstruction_loss,
    require_noise,
    require_objective,
)


@static
@dataclass(frozen=True, kw_only=True)
class Config:
    """A dense autoencoder.

    sizes: units of every layer of the encoder, inputs first, code last; the decoder reverses them.
    activation: nonlinearity of all hidden units; lecun_tanh is 1.7159 tanh(2x/3).
    code: nonlinearity of the code units; None uses ``activation``.
    output: kind of reconstruction units, logistic or linear.
    objective: cross_entropy or squared_error (1/2 sum of squares).  None selects the natural one:
        cross-entropy for logistic outputs, squared error for linear ones.
    noise: corruption of the inputs in training: none, mask (zeros), gaussian, salt_pepper (zeros
        and ones).
    noise_level: probability that a unit is corrupted; standard deviation of gaussian noise.
    tied: whether the decoder's kernels are the encoder's, transposed.
    greedy: train only the top pair of layers.  It then acts as a separate autoencoder of the hidden
        units below, computed from clean inputs; noise corrupts these units.  It reconstructs them
        with units of the same kind: logistic units with ``objective``, others with squared error.
        ``output`` applies to the lowest pair only.
    initializer, gain: distribution of the kernels, and a factor on them (the Matlab toolbox's
        networks: glorot_uniform times 4).
    compute_dtype: None computes in the parameters' type; "bfloat16" halves memory traffic on
        accelerators.
    """

    sizes: Annotated[tuple[int, ...], at_least(2)]
    activation: Activation = "logistic"
    code: Activation | None = None
    output: Literal["logistic", "linear"] = "logistic"
    objective: Objective | None = None
    noise: Noise = "none"
    noise_level: float = 0.0
    tied: bool = False
    greedy: bool = False
    initializer: Initializer = "glorot_uniform"
    gain: PositiveFloat = 1.0
    compute_dtype: ComputeDtype = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        require_objective(self, self.output, self.objective)
        require_noise(self, self.noise, self.noise_level)

    def for_data(self, shape: tuple[int, ...], classes: int | None) -> "Config":
        """See ``zoo.base.Adaptable``."""
        return replace(self, sizes=(math.prod(shape), *self.sizes[1:]))

    @property
    def outputs(self) -> Outputs:
        """The meaning of the outputs, and the loss."""
        return Outputs("hidden" if self.greedy and len(self.sizes) > 2 else "inputs")

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Allowed range of the inputs; None allows any."""
        return (0.0, 1.0) if self.output == "logistic" else None


_stacked = Config(
    sizes=(784, 1000), noise="mask", noise_level=0.1, tied=True, greedy=True, gain=4.0
)

PRESETS: dict[str, Config] = {
    "tiny": Config(sizes=(8, 6, 5), activation="tanh", noise="mask", noise_level=0.1),
    # The 8x8 digits that ship with the package.
    "digits": Config(
        sizes=(64, 128, 16), activation="relu", code="linear", initializer="he_normal"
    ),
    # The Matlab DeepLearnToolbox's test_example_SAE (Palm 2012); the encoder initialises an MLP.
    "toolbox": Config(
        sizes=(784, 100), objective="squared_error", noise="mask", noise_level=0.5, gain=4.0
    ),
    # Hinton and Salakhutdinov 2006; initialised with ``unroll``.
    "deep": Config(sizes=(784, 1000, 500, 250, 30), code="linear"),
    # The stacked denoising autoencoder of the LISA deep learning tutorials, trained layer by layer.
    "stacked1000_1": _stacked,
    "stacked1000_2": replace(_stacked, sizes=(784, 1000, 1000), noise_level=0.2),
    "stacked1000_3": replace(_stacked, sizes=(784, 1000, 1000, 1000), noise_level=0.3),
}


def init(cfg: Config, key: Array) -> Params:
    """{"layer_0": {"kernel" [in, out], "bias" [out]}, ..., "decoder_0": ..., ...}.

    The encoder's layers have the names of an MLP's.  decoder_0, {"kernel" [out, in], "bias" [in]},
    inverts layer_0; with tied kernels it has only a bias.
    """
    layers = list(enumerate(zip(cfg.sizes[:-1], cfg.sizes[1:], strict=True)))
    up, down = jax.random.split(key, (2, len(layers)))
    params = {
        f"layer_{index}": init_layer(up[index], shape, cfg.initializer, cfg.gain)
        for index, shape in layers
    }
    for index, (inputs, outputs) in layers:
        decoder = init_layer(down[index], (outputs, inputs), cfg.initializer, cfg.gain)
        params[f"decoder_{index}"] = {"bias": decoder["bias"]} if cfg.tied else decoder
    return params


def apply(cfg: Config, params: Params, inputs: Array, *, key: Array | None = None) -> Array:
    """Inputs [batch, ...] of sizes[0] values each -> their reconstruction [batch, sizes[0]].

    Images are flattened.  The reconstruction is at least float32, and consists of probabilities
    unless the outputs are linear.  Inputs are corrupted only if there is a key.
    """
    return _forward(cfg, params, _flat(cfg, inputs), key)["reconstruction"]


def encode(cfg: Config, params: Params, inputs: Array) -> Array:
    """Clean inputs [batch, ...] -> code [batch, sizes[-1]], at least float32."""
    return at_least_float32(_up(cfg, params, _flat(cfg, inputs), None)["code"])


def decode(cfg: Config, params: Params, code: Array) -> Array:
    """Code [batch, sizes[-1]] -> reconstruction [batch, sizes[0]]."""
    require_shape("code", code, ("batch", cfg.sizes[-1]))
    return _down(cfg, params, code)["reconstruction"]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """The reconstruction, and all intermediates [batch, units].

    They are "hidden_0", ..., "code", the decoder's "decoded_1" (reconstructs hidden_0), ...,
    "logits", "reconstruction".
    """
    intermediates = _forward(cfg, params, _flat(cfg, inputs), None)
    return intermediates["reconstruction"], intermediates


def _flat(cfg: Config, inputs: Array) -> Array:
    return require_inputs(inputs, cfg.sizes[0], cfg.input_range, "sizes[0]")


def _forward(cfg: Config, params: Params, x: Array, key: Array | None) -> dict[str, Array]:
    intermediates = _up(cfg, params, x, key)
    return intermediates | _down(cfg, params, intermediates["code"])


def _up(cfg: Config, params: Params, x: Array, key: Array | None) -> dict[str, Array]:
    top = len(cfg.sizes) - 2
    intermediates = {}
    for index in range(top + 1):
        if index == (top if cfg.greedy else 0):
            x = corrupt(x, cfg.noise, cfg.noise_level, key)
        kind = cfg.code if index == top and cfg.code else cfg.activation
        x = block(activate(kind, dense(params[f"layer_{index}"], x, cfg.compute_dtype)))
        intermediates["code" if index == top else f"hidden_{index}"] = x
    return intermediates


def _down(cfg: Config, params: Params, x: Array) -> dict[str, Array]:
    intermediates = {}
    for index in reversed(range(len(cfg.sizes) - 1)):
        layer = params[f"decoder_{index}"]
        if cfg.tied:
            layer = {**layer, "kernel": params[f"layer_{index}"]["kernel"].T}
        x = dense(layer, x, cfg.compute_dtype)
        if index:
            x = intermediates[f"decoded_{index}"] = block(activate(cfg.activation, x))
    logits = at_least_float32(x)
    return intermediates | {
        "logits": logits,
        "reconstruction": output_activation(cfg.output, logits),
    }


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Summed loss of the reconstruction against the clean inputs, over unmasked examples.

    Metric "reconstruction_error": the squared error of an example, summed over units.
    batch: inputs [batch, ...], in 0..1 for logistic outputs, mask [batch]; targets are ignored.
        For a greedy model, the reconstructed inputs are those of its top pair.
    """
    batch, _ = blank_padding(batch)
    x = _flat(cfg, batch["inputs"])
    if cfg.outputs.of == "inputs":
        return reconstruction_loss(
            cfg.output, cfg.objective, _forward(cfg, params, x, key)["logits"], x, batch["mask"]
        )
    pair, params, x = _top_pair(cfg, params, x)
    logits = _forward(pair, params, x, key)["logits"]
    # The losses of logistic units take logits; all others take the units' values.
    if pair.output == "linear":
        logits = activate(cfg.activation, logits)
    return reconstruction_loss(pair.output, pair.objective, logits, x, batch["mask"])


def _top_pair(cfg: Config, params: Params, x: Array) -> tuple[Config, Params, Array]:
    """The top pair of layers as a separate autoencoder, and its clean inputs."""
    top = len(cfg.sizes) - 2
    pair = {"layer_0": params[f"layer_{top}"], "decoder_0": params[f"decoder_{top}"]}
    logistic = cfg.activation == "logistic"
    output, objective = ("logistic", cfg.objective) if logistic else ("linear", None)
    single = replace(cfg, sizes=cfg.sizes[-2:], greedy=False, output=output, objective=objective)
    # The layers below are fixed: no gradient flows into them.
    return single, pair, jax.lax.stop_gradient(_up(cfg, params, x, None)[f"hidden_{top - 1}"])


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): there is no carry."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Inputs [batch, sizes[0]]: random bits, or normal numbers for linear outputs."""
    return example_reconstructed(cfg.output, key, (batch_size, cfg.sizes[0]))


def unroll(cfg: Config, params: Params) -> Params:
    """Parameters from those of a deep belief net (Hinton and Salakhutdinov 2006, figure 1).

    The net's recognition pass, {"layer_0": {"kernel" [in, out], "bias" [out], "visible_bias" [in]},
    ...}, becomes the encoder; its transposed kernels and visible biases become the decoder.  Raises
    ValueError naming the layer that does not match ``cfg.sizes``.
    """
    names = [f"layer_{index}" for index in range(len(cfg.sizes) - 1)]
    if sorted(params) != sorted(names):
        raise ValueError(
            f"params: layers {', '.join(sorted(params))}, "
            f"expected {', '.join(names)} for sizes={cfg.sizes}"
        )
    unrolled: Params = {}
    for index, (name, inputs, outputs) in enumerate(
        zip(names, cfg.sizes[:-1], cfg.sizes[1:], strict=True)
    ):
        for leaf, shape in (
            ("kernel", (inputs, outputs)),
            ("bias", (outputs,)),
            ("visible_bias", (inputs,)),
        ):
            if leaf not in params[name]:
                raise ValueError(
                    f"params: {name} has {', '.join(params[name])}, "
                    "expected kernel, bias, visible_bias"
                )
            require_shape(f"{name}.{leaf}", params[name][leaf], shape)
        kernel, up, down = (params[name][leaf] for leaf in ("kernel", "bias", "visible_bias"))
        unrolled[name] = {"kernel": kernel, "bias": up}
        unrolled[f"decoder_{index}"] = (
            {"bias": down} if cfg.tied else {"kernel": jnp.transpose(kernel), "bias": down}
        )
    return unrolled
