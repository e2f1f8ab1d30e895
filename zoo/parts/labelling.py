"""Connectionist temporal classification (CTC): labellings of sequences without an alignment.

Graves, Fernandez, Gomez, Schmidhuber 2006.  At every step a network outputs a distribution over the
labels and a blank, label 0.  A path has a label or the blank at every step; B maps it to a
labelling by merging repeated labels and then removing blanks.  The probability of a labelling is
the sum over its paths, p(l | x) = sum_{pi in B^-1(l)} prod_t y^t_{pi_t} (equations 2 and 3).

``steps`` [batch] is the number of valid steps of each row; whatever follows them is never read.
Labels [batch, most] are those of the first ``counts`` [batch] places.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from zoo.parts.checking import require_shape
from zoo.parts.layers import at_least_float32

BLANK = 0
"""The label that stands for none."""


def loss(
    logits: Float[Array, "batch time labels"],
    steps: Int[Array, " _"],
    labels: Int[Array, "_ most"],
    counts: Int[Array, " _"],
) -> Float[Array, " batch"]:
    """-log p(l | x) in nats, at least float32; 0 for rows whose labels do not fit (``fits``).

    In float32, rounding can make the loss of a certain labelling slightly negative, by about 1e-7.
    Raises ValueError for shapes that do not correspond.
    """
    require_shape("labels", labels, (logits.shape[0], "most"))
    require_shape("steps", steps, logits.shape[:1])
    require_shape("counts", counts, logits.shape[:1])
    logits = at_least_float32(logits)
    # optax wants a 1 where there is padding.
    padded_steps = jnp.arange(logits.shape[1])[None] >= steps[:, None]
    padded_labels = jnp.arange(labels.shape[1])[None] >= counts[:, None]
    losses = optax.ctc_loss(
        logits,
        padded_steps.astype(logits.dtype),
        labels,
        padded_labels.astype(logits.dtype),
        blank_id=BLANK,
    )
    # Without a path, optax's loss is about 1e5 with an ordinary gradient.
    return jnp.where(fits(steps, labels, counts), losses, 0)


def fits(
    steps: Int[Array, " batch"], labels: Int[Array, "batch most"], counts: Int[Array, " batch"]
) -> Bool[Array, " batch"]:
    """Whether a labelling has a path: a step for every label and for a blank between equal ones."""
    repeated = (labels[:, 1:] == labels[:, :-1]) & (
        jnp.arange(1, labels.shape[1])[None] < counts[:, None]
    )
    return counts + jnp.sum(repeated, axis=1) <= steps


def best_path(
    logits: Float[Array, "batch time labels"], steps: Int[Array, " batch"]
) -> tuple[Int[Array, "batch time"], Int[Array, " batch"]]:
    """The labelling of the most probable path (greedy decoding), and its number of labels.

    Labels are padded with 0.  It need not be the most probable labelling, the sum over its paths.
    """
    path = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    before = jnp.pad(path[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    valid = jnp.arange(path.shape[1])[None] < steps[:, None]
    kept = (path != BLANK) & (path != before) & valid

    def packed(path: Array, kept: Array) -> Array:
        # Dropped labels go to one place after the end, which is cut off.
        places = jnp.where(kept, jnp.cumsum(kept) - 1, len(path))
        return jnp.zeros(len(path) + 1, path.dtype).at[places].set(path)[:-1]

    return jax.vmap(packed)(path, kept), jnp.sum(kept, axis=1)


def edit_distance(
    labels: Int[Array, "batch most"],
    counts: Int[Array, " batch"],
    others: Int[Array, "batch longest"],
    other_counts: Int[Array, " batch"],
) -> Int[Array, " batch"]:
    """Fewest substitutions, deletions and insertions between two sequences (Levenshtein 1966)."""

    def one(labels: Array, count: Array, others: Array, other_count: Array) -> Array:
        places = jnp.arange(len(others) + 1)

        def row(before: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
            index, label = step
            changed = jnp.minimum(before[1:] + 1, before[:-1] + (others != label))
            fewest = jnp.concatenate([jnp.array([index + 1]), changed])
            # Insertions: after[j] = min over k <= j of fewest[k] + j - k.
            after = jax.lax.cummin(fewest - places) + places
            return jnp.where(index < count, after, before), None

        last, _ = jax.lax.scan(row, places, (jnp.arange(len(labels)), labels))
        return last[other_count]

    return jax.vmap(one)(labels, counts, others, other_counts)
