"""Connectionist temporal classification (CTC): labellings of sequences without an alignment.

Graves, Fernandez, Gomez, Schmidhuber 2006.  At every step a network outputs a distribution over the
labels and a blank, label 0.  A path has a label or the blank at every step; B maps it to a
labelling by merging repeated labels and then removing blanks.  The probability of a labelling is
the sum over its paths, p(l | x) = sum_{pi in B^-1(l)} prod_t y^t_{pi_t} (equations 2 and 3).

``steps`` [batch] is the number of valid steps of each row; whatever follows them is never read.
Labels [batch, most] are those of the first ``counts`` [batch] places.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from zoo.parts import hmm
from zoo.parts.checking import require_shape
from zoo.parts.layers import at_least_float32

BLANK = 0
"""The label that stands for none."""


class Alignment(NamedTuple):
    """The most probable path of a given labelling, for each row.

    labels: int32 [batch, time], the path: the label of each step, or the blank.
    places: int32 [batch, time], which label of the labelling that is, from 0; -1 for the blank.
    log_probability: [batch], of the path; -inf if the labelling has no path.
    After the last valid step, and in rows without a path, labels are the blank and places -1.
    """

    labels: Array
    places: Array
    log_probability: Array


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


def forced_alignment(
    log_probabilities: Float[Array, "batch time labels"],
    steps: Int[Array, " _"],
    labels: Int[Array, "_ most"],
    counts: Int[Array, " _"],
) -> Alignment:
    """The most probable of a labelling's paths: which step belongs to which of its labels.

    It is the recursion of Graves et al. (equations 6 and 7) with the largest path in place of the
    sum, so its log probability is at most -``loss``.  log_probabilities: such as
    ``jax.nn.log_softmax(logits)``; -inf is allowed.  At least float32.
    A labelling has no path, and log probability -inf, if it does not fit (``fits``) or if a
    probability of 0 stands in the way of all its paths.
    Raises ValueError for shapes that do not correspond.

        >>> import jax.numpy as jnp
        >>> from zoo.parts import labelling
        >>> p = jnp.array([[[0.1, 0.8, 0.1], [0.5, 0.2, 0.3], [0.6, 0.1, 0.3]]])
        >>> found = labelling.forced_alignment(
        ...     jnp.log(p), jnp.array([3]), jnp.array([[1, 2]]), jnp.array([2])
        ... )
        >>> found.labels.tolist(), found.places.tolist()
        ([[1, 2, 0]], [[0, 1, -1]])
        >>> round(float(jnp.exp(found.log_probability[0])), 4)  # 0.8 0.3 0.6
        0.144
    """
    require_shape("labels", labels, (log_probabilities.shape[0], "most"))
    require_shape("steps", steps, log_probabilities.shape[:1])
    require_shape("counts", counts, log_probabilities.shape[:1])
    valid = jnp.arange(log_probabilities.shape[1])[None] < steps[:, None]
    scores = jnp.maximum(at_least_float32(log_probabilities), hmm.IMPOSSIBLE)
    path = hmm.viterbi(path_graph(labels, counts), scores, valid)
    # hmm gives a row without steps the score 0, whatever its labels.
    possible = fits(steps, labels, counts) & (path.score > hmm.IMPOSSIBLE / 2)
    shown = valid & possible[:, None]
    return Alignment(
        jnp.where(shown, path.emissions, BLANK),
        jnp.where(shown & (path.states % 2 == 1), path.states // 2, -1),
        jnp.where(possible, path.score, -jnp.inf),
    )


def path_graph(labels: Int[Array, "batch most"], counts: Int[Array, " batch"]) -> hmm.Graph:
    """The paths of each labelling as a graph for ``zoo.parts.hmm``, whose scores are log y.

    State 2 i + 1 is label i, and the even states are the blanks around the labels (the l' of Graves
    et al.).  A path stays, or goes to the next state, or omits a blank between different labels.
    """
    batch, most = labels.shape
    states = 2 * most + 1
    state, last = jnp.arange(states)[None], 2 * counts[:, None]
    inside = jnp.arange(most)[None] < counts[:, None]
    emissions = jnp.full((batch, states), BLANK, jnp.int32)
    emissions = emissions.at[:, 1::2].set(jnp.where(inside, labels, BLANK))
    before = jnp.pad(emissions, ((0, 0), (2, 0)))[:, :states]
    omits = (state % 2 == 1) & (emissions != before)
    # Arc 0, 1 or 2 into a state comes from the state 2, 1 or 0 places before it.
    arc = jnp.arange(3)[None]
    sources, targets = state.T - 2 + arc, state.T + 2 - arc
    exists = jnp.stack([omits, *[jnp.ones_like(omits)] * 2], axis=-1)
    exists &= (sources >= 0)[None] & (state <= last)[:, :, None]
    leaving = jnp.where(targets < states, 3 * targets + arc, 3 * states)
    starts, finals = (state < 2) & (state <= last), (state == last) | (state == last - 1)
    weights, start, final = (
        jnp.where(each, 0.0, hmm.IMPOSSIBLE) for each in (exists, starts, finals)
    )
    return hmm.Graph(emissions, jnp.maximum(sources, 0), weights, leaving, start, final)


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
            changed = jnp.minimum(
                before[1:] + 1, before[:-1] + (others != label).astype(before.dtype)
            )
            fewest = jnp.concatenate([jnp.array([index + 1]), changed])
            # Insertions: after[j] = min over k <= j of fewest[k] + j - k.
            after = jax.lax.cummin(fewest - places) + places
            return jnp.where(index < count, after, before), None

        last, _ = jax.lax.scan(row, places, (jnp.arange(len(labels)), labels))
        return last[other_count]

    return jax.vmap(one)(labels, counts, others, other_counts)
