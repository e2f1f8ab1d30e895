"""Dense autoencoders: deep (Hinton and Salakhutdinov 2006), denoising (Vincent et al. 2008), and stacked (Vincent et al. 2010).

An encoder maps inputs to a code, and a decoder the code back: y = f(x W + b), z = g(y V + c), with one such pair for every layer
of an encoder that is deep.  What is learned is to reconstruct the inputs; a denoising one sees them corrupted.
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

    sizes: units of every layer of the encoder, inputs first, code last; the decoder has them in reverse.
    activation: nonlinearity of the hidden units of both; lecun_tanh is 1.7159 tanh(2x/3).
    code: nonlinearity of the code units; None is that of the hidden ones.
    output: what the units of the reconstruction are, logistic or linear.
    objective: cross_entropy or squared_error (1/2 sum of squares); None is the natural one: cross-entropy for logistic outputs,
        squared error for linear ones.
    noise: what corrupts the inputs while training: none, mask (zeros), gaussian, salt_pepper (zeros and ones).
    noise_level: the probability that a unit is corrupted; the deviation of gaussian noise.
    tied: whether the decoder's kernels are the encoder's transposed.
    greedy: whether only the top pair of layers is trained.  It is then an autoencoder of its own for what the layers below say
        of the clean inputs, and it is these units that noise corrupts.  It reconstructs them by units of their own kind, logistic
        ones with the objective, others with squared error; ``output`` is of the lowest pair.
    initializer, gain: how kernels are drawn, and a factor on them (the Matlab toolbox's nets: glorot_uniform times 4).
    compute_dtype: None computes in the parameters' type; "bfloat16" halves memory traffic on accelerators.
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
        """What the outputs are, and the loss."""
        return Outputs("hidden" if self.greedy and len(self.sizes) > 2 else "inputs")

    @property
    def input_range(self) -> tuple[float, float] | None:
        """What inputs must lie in; None is anything."""
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
    # The Matlab DeepLearnToolbox's test_example_SAE (Palm 2012): its encoder initialises an MLP.
    "toolbox": Config(
        sizes=(784, 100), objective="squared_error", noise="mask", noise_level=0.5, gain=4.0
    ),
    # Hinton and Salakhutdinov 2006: initialised by ``unroll``.
    "deep": Config(sizes=(784, 1000, 500, 250, 30), code="linear"),
    # The stacked denoising autoencoder of the LISA deep learning tutorials, layer by layer.
    "stacked1000_1": _stacked,
    "stacked1000_2": replace(_stacked, sizes=(784, 1000, 1000), noise_level=0.2),
    "stacked1000_3": replace(_stacked, sizes=(784, 1000, 1000, 1000), noise_level=0.3),
}


def init(cfg: Config, key: Array) -> Params:
    """{"layer_0": {"kernel" [in, out], "bias" [out]}, ..., "decoder_0": {"kernel" [out, in], "bias" [in]}, ...}.

    The encoder's layers are named like an MLP's; decoder_0 inverts layer_0, and has only a bias where kernels are tied.
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
    """Inputs [batch, ...] of sizes[0] values each (an image is flattened) -> their reconstruction [batch, sizes[0]].

    Probabilities unless the outputs are linear; at least float32.  Inputs are corrupted only with a key.
    """
    return _forward(cfg, params, _flat(cfg, inputs), key)["reconstruction"]


def encode(cfg: Config, params: Params, inputs: Array) -> Array:
    """Inputs [batch, ...], clean -> code [batch, sizes[-1]], at least float32."""
    return at_least_float32(_up(cfg, params, _flat(cfg, inputs), None)["code"])


def decode(cfg: Config, params: Params, code: Array) -> Array:
    """Code [batch, sizes[-1]] -> reconstruction [batch, sizes[0]]."""
    require_shape("code", code, ("batch", cfg.sizes[-1]))
    return _down(cfg, params, code)["reconstruction"]


def trace(cfg: Config, params: Params, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """The reconstruction, and "hidden_0", ..., "code", the decoder's "decoded_1" (of hidden_0), ..., "logits",
    "reconstruction" [batch, units].
    """  # fmt: skip
    seen = _forward(cfg, params, _flat(cfg, inputs), None)
    return seen["reconstruction"], seen


def _flat(cfg: Config, inputs: Array) -> Array:
    return require_inputs(inputs, cfg.sizes[0], cfg.input_range, "sizes[0]")


def _forward(cfg: Config, params: Params, x: Array, key: Array | None) -> dict[str, Array]:
    seen = _up(cfg, params, x, key)
    return seen | _down(cfg, params, seen["code"])


def _up(cfg: Config, params: Params, x: Array, key: Array | None) -> dict[str, Array]:
    top = len(cfg.sizes) - 2
    seen = {}
    for index in range(top + 1):
        if index == (top if cfg.greedy else 0):
            x = corrupt(x, cfg.noise, cfg.noise_level, key)
        kind = cfg.code if index == top and cfg.code else cfg.activation
        x = block(activate(kind, dense(params[f"layer_{index}"], x, cfg.compute_dtype)))
        seen["code" if index == top else f"hidden_{index}"] = x
    return seen


def _down(cfg: Config, params: Params, x: Array) -> dict[str, Array]:
    seen = {}
    for index in reversed(range(len(cfg.sizes) - 1)):
        layer = params[f"decoder_{index}"]
        if cfg.tied:
            layer = {**layer, "kernel": params[f"layer_{index}"]["kernel"].T}
        x = dense(layer, x, cfg.compute_dtype)
        if index:
            x = seen[f"decoded_{index}"] = block(activate(cfg.activation, x))
    logits = at_least_float32(x)
    return seen | {"logits": logits, "reconstruction": output_activation(cfg.output, logits)}


def loss(
    cfg: Config, params: Params, batch: Batch, *, key: Array | None = None, carry: Any = ()
) -> tuple[Array, Aux]:
    """Summed loss of the reconstruction against the clean inputs over unmasked examples; metric "reconstruction_error".

    batch: inputs [batch, ...], in 0..1 for logistic outputs, mask [batch]; targets are not looked at.  The metric is the squared
    error of an example, summed over units.  A greedy model's inputs are those of its top pair.
    """
    batch, _ = blank_padding(batch)
    x = _flat(cfg, batch["inputs"])
    if cfg.outputs.of == "inputs":
        return reconstruction_loss(
            cfg.output, cfg.objective, _forward(cfg, params, x, key)["logits"], x, batch["mask"]
        )
    pair, params, x = _top_pair(cfg, params, x)
    logits = _forward(pair, params, x, key)["logits"]
    if pair.output == "linear":  # but for logistic units, whose losses are of logits
        logits = activate(cfg.activation, logits)
    return reconstruction_loss(pair.output, pair.objective, logits, x, batch["mask"])


def _top_pair(cfg: Config, params: Params, x: Array) -> tuple[Config, Params, Array]:
    """The top pair of layers as an autoencoder of its own, and its clean inputs."""
    top = len(cfg.sizes) - 2
    pair = {"layer_0": params[f"layer_{top}"], "decoder_0": params[f"decoder_{top}"]}
    logistic = cfg.activation == "logistic"
    output, objective = ("logistic", cfg.objective) if logistic else ("linear", None)
    single = replace(cfg, sizes=cfg.sizes[-2:], greedy=False, output=output, objective=objective)
    return single, pair, jax.lax.stop_gradient(_up(cfg, params, x, None)[f"hidden_{top - 1}"])


def init_carry(cfg: Config, params: Params, batch_size: int, *, key: Array) -> tuple[()]:
    """(): nothing is carried."""
    return ()


def example_batch(cfg: Config, key: Array, batch_size: int) -> Batch:
    """Inputs [batch, sizes[0]]: random bits, or normal numbers for linear outputs."""
    return example_reconstructed(cfg.output, key, (batch_size, cfg.sizes[0]))


def unroll(cfg: Config, params: Params) -> Params:
    """Parameters from those of a deep belief net (Hinton and Salakhutdinov 2006, figure 1).

    Its recognition pass, {"layer_0": {"kernel" [in, out], "bias" [out], "visible_bias" [in]}, ...}, is the encoder; kernels
    transposed and visible biases are the decoder.  Raises ValueError naming the layer that does not fit ``cfg.sizes``.
    """
    names = [f"layer_{index}" for index in range(len(cfg.sizes) - 1)]
    if sorted(params) != sorted(names):
        raise ValueError(
            f"params: layers {', '.join(sorted(params))}, expected {', '.join(names)} for sizes={cfg.sizes}"
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
                    f"params: {name} has {', '.join(params[name])}, expected kernel, bias, visible_bias"
                )
            require_shape(f"{name}.{leaf}", params[name][leaf], shape)
        kernel, up, down = (params[name][leaf] for leaf in ("kernel", "bias", "visible_bias"))
        unrolled[name] = {"kernel": kernel, "bias": up}
        unrolled[f"decoder_{index}"] = (
            {"bias": down} if cfg.tied else {"kernel": jnp.transpose(kernel), "bias": down}
        )
    return unrolled
