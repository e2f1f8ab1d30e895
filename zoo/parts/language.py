"""Shared by language models: token embeddings, the loss of the next token, and generation.

A language model is a model of the zoo with inputs tokens [batch, time] that also has ``unroll`` and
``step``, which start from a carry.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int, Key

from zoo.base import Aux, Batch, Params, Recurrent
from zoo.parts.checking import plain, require_argument, require_integer, require_real, require_shape
from zoo.parts.decode import sample
from zoo.parts.layers import mask_of_steps, summed

EXAMPLE_STEPS = 8
"""Number of tokens of an example; models accept any number."""


def init_embedding(key: Array, vocabulary: int, features: int) -> Params:
    """{"embedding" [vocabulary, features]}: normal, so that each row has about unit length."""
    require_integer("vocabulary", vocabulary)
    require_integer("features", features)
    return {"embedding": jax.random.normal(key, (vocabulary, features)) / jnp.sqrt(float(features))}


def init_uniform(key: Array, params: Params, scale: float) -> Params:
    """Parameters of these shapes, uniform between -scale and scale.

    Raises ValueError if scale is negative.
    """
    require_real("scale", scale)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.uniform(key, leaf.shape, leaf.dtype, -scale, scale)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def look_up(params: Params, tokens: Array) -> Array:
    """The embeddings [..., features] of tokens.  Raises ValueError unless tokens are integers."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"inputs: {tokens.dtype}, expected tokens, which are integers (preprocess='none')"
        )
    return params["embedding"].at[tokens].get(mode="clip")


def next_token_loss(
    logits: Float[Array, "batch time vocabulary"], batch: Batch, carry: Any, smoothing: float = 0.0
) -> tuple[Array, Aux]:
    """-log p of the targets, summed over unmasked tokens, with the carry in Aux.

    Gradients do not flow through the carry.
    batch: targets [batch, time]; mask [batch, time], or [batch] if all sequences have the same
    length.
    smoothing: the target is this token with probability 1 - smoothing, otherwise a token drawn
    uniformly (Szegedy et al. 2016, section 7).
    """
    total, aux = summed(
        token_losses(logits, batch, smoothing), mask_of_steps(batch["mask"], logits.shape[:2])
    )
    return total, aux._replace(carry=jax.lax.stop_gradient(carry))


def token_losses(
    logits: Float[Array, "batch time vocabulary"], batch: Batch, smoothing: float = 0.0
) -> Float[Array, "batch time"]:
    """The terms of ``next_token_loss``.  Masked values are undefined and have no gradient."""
    require_real("smoothing", smoothing, below=1.0)
    require_shape("targets", batch["targets"], logits.shape[:2])
    return _losses(
        smoothing, logits, batch["targets"], mask_of_steps(batch["mask"], logits.shape[:2])
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _losses(smoothing: float, logits: Array, targets: Array, mask: Array) -> Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if not smoothing:
        return losses
    return (1 - smoothing) * losses + smoothing * (
        jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
    )


@_losses.defjvp
def _losses_and_their_tangents(
    smoothing: float, primals: tuple[Array, Array, Array], tangents: tuple[Array, Any, Any]
) -> tuple[Array, Array]:
    """The losses and their tangents, which share the exponentials.

    The gradient is softmax minus target, zero where the mask is False.  The one that JAX
    derives scatters into the softmax, which takes twice as long to compile.
    """
    logits, targets, mask = primals
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    likelihoods = jnp.exp(logits - peak)
    total = jnp.sum(likelihoods, axis=-1, keepdims=True)
    constant = jnp.log(total) + peak
    losses = constant - jnp.take_along_axis(logits, targets[..., None], axis=-1)
    tokens = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    target = (tokens == targets[..., None]).astype(logits.dtype)
    if smoothing:
        losses = (1 - smoothing) * losses + smoothing * (
            constant - jnp.mean(logits, axis=-1, keepdims=True)
        )
        target = (1 - smoothing) * target + smoothing / logits.shape[-1]
    gradient = jnp.where(mask[..., None], likelihoods / total - target, 0)
    return losses[..., 0], jnp.sum(gradient * tangents[0], axis=-1)


def example_tokens(key: Array, batch_size: int, vocabulary: int) -> Batch:
    """A batch of random tokens [batch, EXAMPLE_STEPS] of different lengths.

    Every other row continues the previous batch.
    """
    tokens_key, length_key = jax.random.split(key)
    tokens = jax.random.randint(tokens_key, (batch_size, EXAMPLE_STEPS + 1), 0, vocabulary)
    lengths = jax.random.randint(length_key, (batch_size, 1), EXAMPLE_STEPS // 2, EXAMPLE_STEPS + 1)
    mask = jnp.arange(EXAMPLE_STEPS)[None] < lengths
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": mask,
        "reset": jnp.arange(batch_size) % 2 == 0,
    }


def generate(
    module: Recurrent,
    cfg: Any,
    params: Params,
    prompt: Int[Array, "batch time"],
    length: int,
    key: Key[Array, " batch"],
    *,
    temperature: Any = 1.0,
    top_k: int | None = None,
    suppressed: tuple[int, ...] = (),
) -> Int[Array, "batch length"]:
    """Continues a prompt of at least one token, in one compiled loop.

    Each token is drawn given all previous ones.
    module: a language model.  key: one per row.
    temperature: divides the logits; 0 takes the most probable token.
    top_k: draw from the k most probable tokens only; None: from all.
    suppressed: tokens that are never drawn, such as <unk>.
    Raises ValueError for an empty prompt, and the errors of ``zoo.parts.decode.sample``.
    """
    require_argument("prompt", prompt.shape[1], lambda tokens: tokens >= 1, "one token or more")
    # Checked here, before compilation: in there a length that is no integer fails with an obscure
    # error, and the temperature is traced.
    require_integer("length", length)
    require_real("temperature", temperature)
    return _generate(
        module,
        cfg,
        params,
        prompt,
        plain(length),
        key,
        temperature,
        plain(top_k),
        plain(tuple(suppressed)),
    )


@functools.partial(jax.jit, static_argnames=("module", "length", "top_k", "suppressed"))
def _generate(
    module: Recurrent,
    cfg: Any,
    params: Params,
    prompt: Array,
    length: int,
    key: Array,
    temperature: Any,
    top_k: int | None,
    suppressed: tuple[int, ...],
) -> Array:
    def step(carry: Any, tokens: Array) -> tuple[Any, Array]:
        return module.step(cfg, params, carry, tokens)

    carry = module.initial_carry(cfg, params, prompt.shape[0])
    if prompt.shape[1] > 1:
        carry, _ = module.unroll(cfg, params, carry, prompt[:, :-1])
    return sample(
        step,
        carry,
        prompt[:, -1],
        length,
        key,
        temperature=temperature,
        top_k=top_k,
        suppressed=suppressed,
    ).tokens
