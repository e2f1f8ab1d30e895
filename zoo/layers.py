"""Pure building blocks that several models share: initialisers, activations, dense layers, dropout, elementwise losses."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Key

from zoo.base import Aux, Params, require_shape

Activation = Literal["relu", "tanh", "logistic", "lecun_tanh", "linear"]
Initializer = Literal["he_normal", "glorot_uniform", "lecun_normal"]
Output = Literal["softmax", "logistic", "linear"]
Objective = Literal["cross_entropy", "squared_error"]
ComputeDtype = Literal["bfloat16"] | None

ACTIVATIONS = get_args(Activation)
INITIALIZERS = get_args(Initializer)
OUTPUTS = get_args(Output)
NATURAL_OBJECTIVE: dict[Output, Objective] = {
    "softmax": "cross_entropy",
    "logistic": "cross_entropy",
    "linear": "squared_error",
}
"""The objective whose gradient at the logits is outputs - targets (the canonical link of each output)."""


def activate(name: Activation, x: Array) -> Array:
    """The nonlinearity, elementwise.  lecun_tanh is 1.7159 tanh(2x/3) (LeCun et al. 1998, Efficient BackProp, section 4.4)."""
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


def init_dense(key: Array, inputs: int, outputs: int, initializer: Initializer, gain: float = 1.0) -> Params:
    """Kernel [inputs, outputs] drawn by ``initializer`` times ``gain``, bias [outputs] zero."""
    draw = getattr(jax.nn.initializers, initializer)()
    return {"kernel": gain * draw(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}


def dense(params: Params, x: Float[Array, "*batch in"], compute_dtype: ComputeDtype = None) -> Float[Array, "*batch out"]:
    """x W + b, in ``compute_dtype`` or else in the parameters' own type."""
    kernel, bias = params["kernel"], params["bias"]
    dtype = compute_dtype or kernel.dtype
    outputs = x.astype(dtype) @ kernel.astype(dtype)
    return outputs + jnp.broadcast_to(bias.astype(dtype), outputs.shape)


def split_keys(key: Key[Array, " batch"] | None, count: int) -> list[Key[Array, " batch"] | None]:
    """``count`` independent arrays of keys [batch] from one; Nones from None."""
    if key is None:
        return [None] * count
    return [jax.vmap(jax.random.fold_in, (0, None))(key, index) for index in range(count)]


def dropout(x: Array, rate: float, key: Key[Array, " batch"] | None) -> Array:
    """Drops each unit with probability ``rate`` and divides the others by 1 - rate (Srivastava et al. 2014, section 10).

    The expected activation is then the deterministic one, so evaluation (key=None) uses ``x`` as it is.
    x [batch, ...]; key: one for each example.
    """
    if key is None or rate == 0:
        return x
    keep = jax.vmap(functools.partial(jax.random.bernoulli, p=1 - rate, shape=x.shape[1:]))(key)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))


def output_activation(output: Output, logits: Array) -> Array:
    """What the output units say: class probabilities (softmax), independent probabilities (logistic), or the logits."""
    match output:
        case "softmax":
            return jax.nn.softmax(logits)
        case "logistic":
            return jax.nn.sigmoid(logits)
        case "linear":
            return logits


def output_losses(output: Output, objective: Objective, logits: Float[Array, "batch out"], targets: Array) -> Array:
    """Loss of each example [batch], summed over output units.

    cross_entropy: -sum t log y for softmax, with -sum (1-t) log(1-y) added for logistic outputs.
    squared_error: 1/2 sum (y - t)^2.
    targets: classes [batch] (integers), or [batch, out] (0/1 or real).
    """
    if jnp.issubdtype(targets.dtype, jnp.integer) and targets.ndim == 1:
        if output == "softmax" and objective == "cross_entropy":
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    if objective == "squared_error":
        return 0.5 * jnp.sum(jnp.square(output_activation(output, logits) - targets), axis=-1)
    if output == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def summed(losses: Array, mask: Bool[Array, "..."], **metrics: Array) -> tuple[Array, Aux]:
    """Sums per-item losses and metrics over unmasked items: the total and its Aux, as the contract asks.

    Padding is replaced, not multiplied by zero, so that whatever it holds (NaN too) stays out.
    losses, mask and metrics have the same shape, [batch] or [batch, time].  Raises ValueError when the mask has another.
    """
    require_shape("mask", mask, losses.shape)
    count = jnp.sum(mask, dtype=losses.dtype)

    def total(values: Array) -> Array:
        return jnp.sum(jnp.where(mask, values, 0), dtype=losses.dtype)

    return total(losses), Aux(count, {name: (total(values), count) for name, values in metrics.items()})


def at_least_float32(x: Array) -> Array:
    """x in float32, or in its own type if that is wider: what softmax, losses and reductions run in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
