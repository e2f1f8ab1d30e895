"""Building blocks that several models share, all pure functions.

Initialisers, activations, dense and convolutional layers, dropout, losses.
"""

import functools
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Key

from zoo.base import Aux, Batch, Outputs, Params, Targets
from zoo.parts.checking import (
    is_number,
    require,
    require_argument,
    require_integer,
    require_one_of,
    require_real,
    require_shape,
)
from zoo.parts.convolution import Pads, Sizes, convolve

Activation = Literal["relu", "tanh", "logistic", "lecun_tanh", "linear"]
Initializer = Literal["he_normal", "glorot_uniform", "lecun_normal"]
Output = Literal["softmax", "logistic", "linear"]
Objective = Literal["cross_entropy", "squared_error"]
Noise = Literal["none", "mask", "gaussian", "salt_pepper"]
ComputeDtype = Literal["bfloat16"] | None

ACTIVATIONS = get_args(Activation)
INITIALIZERS = get_args(Initializer)
OUTPUTS = get_args(Output)
NOISES = get_args(Noise)
NATURAL_OBJECTIVE: dict[Output, Objective] = {
    "softmax": "cross_entropy",
    "logistic": "cross_entropy",
    "linear": "squared_error",
}
"""The objective whose gradient at the logits is outputs - targets (the canonical link)."""

TARGET_ROWS: dict[Output, Literal["numbers", "probabilities", "distribution"]] = {
    "softmax": "distribution",
    "logistic": "probabilities",
    "linear": "numbers",
}
"""The kinds of targets, other than classes, that each output accepts: see ``zoo.base.Targets``."""


def activate(name: Activation, x: Array) -> Array:
    """Applies the nonlinearity elementwise.

    lecun_tanh: 1.7159 tanh(2x/3) (LeCun et al. 1998, Efficient BackProp, section 4.4).
    """
    require_one_of("name", name, ACTIVATIONS)
    match name:
        case "relu":
            return jax.nn.relu(x)
        case "tanh":
            return jnp.tanh(x)
        case "logistic":
            return jax.nn.sigmoid(x)
        case "lecun_tanh":
            return 1.7159 * jnp.tanh(x * (2 / 3))
        case "linear":
            return x


def init_layer(key: Array, shape: Sizes, initializer: Initializer, gain: float = 1.0) -> Params:
    """A kernel [*window, in, out] drawn by ``initializer`` times ``gain``, and a zero bias [out].

    shape: that of the kernel; a dense layer has no window.
    """
    require_one_of("initializer", initializer, INITIALIZERS)
    require_argument("gain", gain, math.isfinite, "a finite number")
    draw = getattr(jax.nn.initializers, initializer)()
    return {"kernel": gain * draw(key, shape), "bias": jnp.zeros(shape[-1])}


def dense(
    params: Params, x: Float[Array, "*batch in"], compute_dtype: ComputeDtype = None
) -> Float[Array, "*batch out"]:
    """x W + b, in ``compute_dtype`` if given, otherwise in the parameters' type."""
    kernel, bias = params["kernel"], params["bias"]
    dtype = compute_dtype or kernel.dtype
    outputs = x.astype(dtype) @ kernel.astype(dtype)
    return outputs + jnp.broadcast_to(bias.astype(dtype), outputs.shape)


def conv(
    params: Params, x: Array, strides: Sizes, pads: Pads, compute_dtype: ComputeDtype = None
) -> Array:
    """Cross-correlation of x [batch, *space, in] with kernel [*window, in, out], plus bias [out].

    The kernel is not flipped, as usual in deep learning.  ``flip`` it for a convolution in the
    sense of mathematics and Matlab.
    """
    kernel, bias = params["kernel"], params["bias"]
    dtype = compute_dtype or kernel.dtype
    outputs = convolve(x.astype(dtype), kernel.astype(dtype), strides, pads)
    return outputs + jnp.broadcast_to(bias.astype(dtype), outputs.shape)


def flip(kernel: Array) -> Array:
    """Kernel [*window, in, out] reversed along its window.

    The review slides (EQ1, EQ2) and the Matlab code convolve with ``convn``, which reverses the
    kernel (``zoo.parts.matlab``): ``convn(x, k, 'valid')`` is this convolution with ``flip(k)``.
    Its gradients can also be written with ``convn``: with respect to the inputs, the 'full'
    convolution of the error with the reversed k; with respect to k, the 'valid' convolution of the
    reversed inputs with the error.
    """
    return jnp.flip(kernel, range(kernel.ndim - 2))


def split_keys(key: Key[Array, " batch"] | None, count: int) -> list[Key[Array, " batch"] | None]:
    """Derives ``count`` independent key arrays [batch] from one; for None, a list of Nones."""
    require_integer("count", count, at_least=0)
    if key is None:
        return [None] * count
    return [jax.vmap(jax.random.fold_in, (0, None))(key, index) for index in range(count)]


def uniforms(key: Key[Array, " batch"], units: int) -> Float[Array, "batch units"]:
    """Uniform numbers between 0 and 1 in steps of 2^-16, one row per key.

    Random bits are the main cost, so each 32-bit word provides two numbers.
    """
    require_integer("units", units)

    def row(key: Array) -> Array:
        words = jax.random.bits(key, (-(-units // 2),), jnp.uint32)
        return jnp.concatenate([words & 0xFFFF, words >> 16])[:units]

    return (jax.vmap(row)(key).astype(float) + 0.5) / 2**16


def bernoulli(
    key: Key[Array, " batch"], probability: Float[Array, "batch units"]
) -> Float[Array, "batch units"]:
    """1 with this probability (to within 2^-17), otherwise 0, in the same type; one key per row."""
    return (uniforms(key, probability.shape[-1]) < probability).astype(probability.dtype)


def dropout(x: Array, rate: float, key: Key[Array, " batch"] | None) -> Array:
    """Drops each unit with probability ``rate`` and divide the others by 1 - rate.

    The expected activation then equals the deterministic one, so evaluation (key=None) uses ``x``
    unchanged (Srivastava et al. 2014, section 10).
    x [batch, ...]; key: one per example.  Raises ValueError unless 0 <= rate < 1.
    """
    require_real("rate", rate, below=1.0)
    if key is None or rate == 0:
        return x
    keep = jax.vmap(functools.partial(jax.random.bernoulli, p=1 - rate, shape=x.shape[1:]))(key)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))


def corrupt(x: Array, noise: Noise, level: float, key: Key[Array, " batch"] | None) -> Array:
    """Corrupts the inputs of a denoising autoencoder (Vincent et al. 2008, 2010).

    mask: each unit is set to 0 with probability ``level``; the others are not rescaled.
    salt_pepper: each unit is replaced with probability ``level``, by 0 or 1 with equal probability.
    gaussian: adds normal noise with standard deviation ``level``.
    x [batch, ...]; key: one per example; None returns x.
    Raises ValueError for an unknown noise or an invalid level.
    """
    require_one_of("noise", noise, NOISES)
    require_real("level", level, below=math.inf if noise == "gaussian" else 1.0)
    if key is None or noise == "none":
        return x
    if noise == "gaussian":
        x = x.astype(jnp.result_type(x, float))  # x may hold integers
        return x + level * jax.vmap(
            functools.partial(jax.random.normal, shape=x.shape[1:], dtype=x.dtype)
        )(key)
    chance = uniforms(key, math.prod(x.shape[1:])).reshape(x.shape)
    peak = chance < level / 2 if noise == "salt_pepper" else jnp.zeros(x.shape, bool)
    return jnp.where(chance < level, peak.astype(x.dtype), x)


def output_activation(output: Output, logits: Array) -> Array:
    """Class probabilities (softmax), independent ones (logistic), or the logits (linear)."""
    require_one_of("output", output, OUTPUTS)
    match output:
        case "softmax":
            return jax.nn.softmax(logits)
        case "logistic":
            return jax.nn.sigmoid(logits)
        case "linear":
            return logits


def supervised_outputs(output: Output, objective: Objective | None, units: int) -> Outputs:
    """The property ``outputs`` of a Config with ``units`` output units and ``supervised_loss``.

    Targets are classes, or values in the range of the output units.
    """
    likelihood = output == "softmax" and (objective or NATURAL_OBJECTIVE[output]) == "cross_entropy"
    return Outputs("targets", Targets(units, TARGET_ROWS[output]), likelihood)


def output_losses(
    output: Output, objective: Objective, logits: Float[Array, "batch out"], targets: Array
) -> Array:
    """The loss of each example [batch], summed over output units.

    cross_entropy: -sum t log y for softmax; logistic outputs add -sum (1-t) log(1-y).
    squared_error: 1/2 sum (y - t)^2.
    targets: classes [batch] (integers), or [batch, out] (0/1 or real).
    """
    require_one_of("output", output, OUTPUTS)
    require_one_of(
        "objective", objective, ("squared_error",) if output == "linear" else get_args(Objective)
    )
    if jnp.issubdtype(targets.dtype, jnp.integer) and targets.ndim == 1:
        if output == "softmax" and objective == "cross_entropy":
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    if objective == "squared_error":
        return 0.5 * jnp.sum(jnp.square(output_activation(output, logits) - targets), axis=-1)
    if output == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def require_objective(cfg: Any, output: Output, objective: Objective | None) -> None:
    """Raises ValueError if the Config ``cfg`` has an objective that its output does not support."""
    linear = output == "linear" and objective == "cross_entropy"
    require(not linear, cfg, "objective", "'squared_error' or None for linear outputs")


def supervised_loss(
    output: Output, objective: Objective | None, logits: Float[Array, "batch out"], batch: Batch
) -> tuple[Array, Aux]:
    """The loss summed over unmasked examples; objective: None is the output's natural objective.

    Metrics: "accuracy" for class targets, "squared_error" (summed over outputs) for linear outputs.
    batch: mask [batch], targets: classes [batch] (integers) or [batch, out] (0/1 or real).
    """
    targets = batch["targets"]
    if jnp.issubdtype(targets.dtype, jnp.integer):
        require_shape("targets", targets, (logits.shape[0],))
        metrics = {"accuracy": jnp.argmax(logits, axis=-1) == targets}
    else:
        require_shape("targets", targets, logits.shape)
        metrics = (
            {"squared_error": jnp.sum(jnp.square(logits - targets), axis=-1)}
            if output == "linear"
            else {}
        )
    losses = output_losses(output, objective or NATURAL_OBJECTIVE[output], logits, targets)
    return summed(losses, batch["mask"], **metrics)


def require_noise(cfg: Any, noise: Noise, level: Any) -> None:
    """Raises ValueError unless ``level``, the Config's noise_level, is valid for its noise."""
    if noise == "none":
        # A level without noise means that the user forgot to choose the noise.
        require(
            level == 0,
            cfg,
            "noise_level",
            "0 without noise; noise is one of " + ", ".join(NOISES[1:]),
        )
    elif noise == "gaussian":
        require(is_number(level) and 0 < level < math.inf, cfg, "noise_level", "a positive number")
    else:
        require(
            is_number(level) and 0 <= level < 1,
            cfg,
            "noise_level",
            "a probability of corruption, 0 <= noise_level < 1",
        )


def reconstruction_loss(
    output: Output, objective: Objective | None, logits: Array, clean: Array, mask: Array
) -> tuple[Array, Aux]:
    """The reconstruction loss against the clean inputs, summed over unmasked examples.

    objective: None is the output's natural objective.  logits, clean [batch, ...]; mask [batch].
    Metric "reconstruction_error": the squared difference, summed over units.
    """
    logits, clean = (at_least_float32(x.reshape(x.shape[0], -1)) for x in (logits, clean))
    losses = output_losses(output, objective or NATURAL_OBJECTIVE[output], logits, clean)
    errors = jnp.sum(jnp.square(output_activation(output, logits) - clean), axis=-1)
    return summed(losses, mask, reconstruction_error=errors)


def example_reconstructed(output: Output, key: Array, inputs: Sizes) -> Batch:
    """Random bits of shape [batch, ...], or normal numbers for linear outputs; no targets."""
    values = (
        jax.random.normal(key, inputs)
        if output == "linear"
        else jax.random.bernoulli(key, 0.5, inputs).astype(float)
    )
    return {"inputs": values, "mask": jnp.ones(inputs[0], bool)}


def example_supervised(output: Output, key: Array, inputs: Sizes, units: int) -> Batch:
    """Uniform inputs of shape [batch, ...] with random targets.

    Targets are classes [batch], or normal numbers [batch, units] for linear outputs.
    """
    input_key, target_key = jax.random.split(key)
    if output == "linear":
        targets = jax.random.normal(target_key, (inputs[0], units))
    else:
        targets = jax.random.randint(target_key, inputs[:1], 0, units)
    return {
        "inputs": jax.random.uniform(input_key, inputs),
        "targets": targets,
        "mask": jnp.ones(inputs[0], bool),
    }


@jax.custom_jvp
def add_gradient(value: Array, surrogate: Array) -> Array:
    """``value``, unchanged, with the gradient of value + surrogate (same shape and type).

    For an objective whose gradient is estimated by that of a surrogate.  The usual
    value + surrogate - stop_gradient(surrogate) loses digits of the value where the surrogate is
    large, and gives NaN where it is infinite.
    """
    return value


@add_gradient.defjvp
def _add_gradient(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return primals[0], tangents[0] + tangents[1]


def summed(losses: Array, mask: Bool[Array, "..."], **metrics: Array) -> tuple[Array, Aux]:
    """Sums per-item losses and metrics over unmasked items: the total and Aux of the contract.

    Padding is replaced, not multiplied by zero, so that its values (even NaN) do not matter.
    losses, mask and metrics have the same shape, [batch] or [batch, time].
    Raises ValueError if the mask has another shape.
    """
    require_shape("mask", mask, losses.shape)
    count = jnp.sum(mask, dtype=losses.dtype)

    def total(values: Array) -> Array:
        return jnp.sum(jnp.where(mask, values, jnp.zeros_like(values)), dtype=losses.dtype)

    return total(losses), Aux(
        count, {name: (total(values), count) for name, values in metrics.items()}
    )


def mask_of_steps(mask: Array, shape: tuple[int, ...]) -> Array:
    """The mask as [batch, time]; a mask [batch] applies to all steps of a row.

    Raises ValueError for other shapes.
    """
    require_shape("mask", mask, shape[:1] if mask.ndim == 1 else shape)
    return jnp.broadcast_to(mask[:, None], shape) if mask.ndim == 1 else mask


def at_least_float32(x: Array) -> Array:
    """x in float32, or in its own type if wider: the type for softmax, losses and reductions."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
