"""Soft attention over a memory of annotations, such as the words of a sentence or image locations.

For a query q and annotations h_1 ... h_S (Bahdanau, Cho, Bengio 2014, equations 5 and 6):

    e_j = score(q, h_j),  a = softmax(e),  context c = sum_j a_j h_j

Scores, named as in Luong, Pham, Manning 2015 (section 3.1):

additive   v . tanh(q W + h_j U)    Bahdanau et al. 2014, appendix A.1.2
dot        q . h_j
general    q W . h_j

``precompute_keys`` computes the part that depends only on the annotations (h_j U, or W h_j) once.
A memory serves any number of queries: all steps of a sentence at once, or all hypotheses of a beam.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from zoo.base import Params
from zoo.parts.checking import require_integer, require_one_of, require_shape
from zoo.parts.layers import ComputeDtype, at_least_float32

Score = Literal["additive", "dot", "general"]
SCORES: tuple[Score, ...] = get_args(Score)


class Memory(NamedTuple):
    """The annotations of a batch and their keys.

    keys: [batch, places, units], compared with the queries.
    annotations: [batch, places, features], zero in padding.
    mask: bool [batch, places], False marks padding.
    """

    keys: Array
    annotations: Array
    mask: Array


def init(score: Score, key: Array, query: int, features: int) -> Params:
    """Parameters of a score; query, features: sizes of a query and of an annotation.

    additive: {"query": {"kernel" W [query, query]}, "key": {"kernel" U [features, query], "bias"},
               "score": {"kernel" v [query]}}
    general: {"key": {"kernel" W [features, query]}}
    dot: {}
    """
    require_one_of("score", score, SCORES)
    require_integer("query", query)
    require_integer("features", features)
    draw, keys = jax.nn.initializers.glorot_uniform(), jax.random.split(key, 3)
    match score:
        case "additive":
            return {
                "query": {"kernel": draw(keys[0], (query, query))},
                "key": {"kernel": draw(keys[1], (features, query)), "bias": jnp.zeros(query)},
                "score": {"kernel": draw(keys[2], (query, 1))[:, 0]},
            }
        case "general":
            return {"key": {"kernel": draw(keys[1], (features, query))}}
        case "dot":
            return {}


def precompute_keys(
    score: Score,
    params: Params,
    annotations: Float[Array, "batch places features"],
    mask: Bool[Array, "batch places"],
    compute_dtype: ComputeDtype = None,
) -> Memory:
    """The memory of annotations; mask is False in padding.  Raises ValueError if shapes differ."""
    require_one_of("score", score, SCORES)
    require_shape("mask", mask, annotations.shape[:2])
    annotations = jnp.where(mask[:, :, None], annotations, 0)
    if score == "dot":
        return Memory(annotations, annotations, mask)
    keys = _multiply(annotations, params["key"]["kernel"], compute_dtype)
    if score == "additive":
        keys = keys + jnp.broadcast_to(params["key"]["bias"].astype(keys.dtype), keys.shape)
    return Memory(keys, annotations, mask)


def attend(
    score: Score,
    params: Params,
    memory: Memory,
    queries: Float[Array, "batch queries query"],
    compute_dtype: ComputeDtype = None,
) -> tuple[Float[Array, "batch queries features"], Float[Array, "batch queries places"]]:
    """Contexts and weights, at least float32.

    The weights of a query sum to one, or are all zero if every place is padding.
    Raises ValueError if a query does not fit the keys.
    """
    weights = attention_weights(score, params, memory, queries, compute_dtype)
    return context(memory, weights, compute_dtype), weights


def attention_weights(
    score: Score,
    params: Params,
    memory: Memory,
    queries: Float[Array, "batch queries query"],
    compute_dtype: ComputeDtype = None,
) -> Float[Array, "batch queries places"]:
    """The weights of ``attend``."""
    require_one_of("score", score, SCORES)
    keys = memory.keys
    require_shape("queries", queries, (keys.shape[0], "queries", keys.shape[2]))
    if score == "additive":
        hidden = jnp.tanh(
            _multiply(queries, params["query"]["kernel"], compute_dtype)[:, :, None] + keys[:, None]
        )
        scores = _multiply(hidden, params["score"]["kernel"][:, None], compute_dtype)[..., 0]
    else:
        scores = _contract("bqu,bpu->bqp", queries, keys, compute_dtype)
    return masked_softmax(scores, memory.mask[:, None])


def context(
    memory: Memory,
    weights: Float[Array, "batch queries places"],
    compute_dtype: ComputeDtype = None,
) -> Float[Array, "batch queries features"]:
    """The weighted sums of the annotations."""
    return _contract("bqp,bpf->bqf", weights, memory.annotations, compute_dtype)


def masked_softmax(scores: Array, mask: Array) -> Array:
    """Softmax along the last axis over unmasked values; zeros if all are masked.

    mask: of a shape that broadcasts to that of the scores.
    """
    mask = jnp.broadcast_to(mask, scores.shape)
    scores = jnp.where(mask, at_least_float32(scores), -jnp.inf)
    # Not jax.nn.softmax, which is NaN where all scores are -inf.
    peak = jnp.max(scores, axis=-1, keepdims=True)
    likelihoods = jnp.exp(scores - jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0)))
    return likelihoods / jnp.maximum(
        jnp.sum(likelihoods, axis=-1, keepdims=True), jnp.finfo(scores.dtype).tiny
    )


def _multiply(x: Array, kernel: Array, compute_dtype: ComputeDtype) -> Array:
    """x [..., n] times kernel [n, m] as one matrix product, with sums in at least float32."""
    dtype, wide = (
        compute_dtype or jnp.promote_types(x.dtype, kernel.dtype),
        jnp.promote_types(x.dtype, jnp.float32),
    )
    flat = jnp.matmul(
        x.reshape(-1, x.shape[-1]).astype(dtype), kernel.astype(dtype), preferred_element_type=wide
    )
    return flat.reshape(*x.shape[:-1], kernel.shape[1])


def _contract(form: str, a: Array, b: Array, compute_dtype: ComputeDtype) -> Array:
    dtype, wide = (
        compute_dtype or jnp.promote_types(a.dtype, b.dtype),
        jnp.promote_types(a.dtype, jnp.float32),
    )
    return jnp.einsum(form, a.astype(dtype), b.astype(dtype), preferred_element_type=wide)
