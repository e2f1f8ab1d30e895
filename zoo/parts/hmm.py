"""Hidden Markov models in log space: likelihood, posteriors of states, best path, phone graphs.

The model is a ``Graph``; the emissions are its inputs: scores [batch, time, emissions], log p(frame
| emission) or anything that takes its place, such as scaled likelihoods of a network.  Equations
are those of Rabiner 1989, "A tutorial on hidden Markov models", Proceedings of the IEEE 77(2).

mask [batch, time]: frames where it is 0 are treated as if they did not exist: they leave the state
unchanged, their scores are never used, and their posteriors are 0.  A row without any frame has
log likelihood 0.  None: all frames exist.

All functions are pure and run under jit, in time linear in the number of arcs.  Scores are used in
float32 or wider.  Every frame is rescaled as in Rabiner's section V.A, so that float32 stays exact
for long sequences.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from zoo.parts.checking import require_integer, require_real, require_shape
from zoo.parts.layers import at_least_float32

_Ends = list[tuple[int | None, float]]
"""States from which a graph under construction continues, None for its start, and log weights."""
IMPOSSIBLE = -1e30
"""Log weight of an arc that does not exist, and log likelihood of a row that no path explains.

-inf would not do: the gradient of logaddexp(-inf, -inf) is NaN.
"""


class Graph(NamedTuple):
    """States and weighted arcs.  Arrays are shared by all rows, or have a leading axis [batch].

    emissions: int [states], index of each state's score; several states may share one.
    sources: int [states, arcs], the states from which arcs lead to this one, in increasing order.
    log_weights: [states, arcs], log weight of each of these arcs; IMPOSSIBLE where there is none.
    leaving: int [states, arcs], the arcs that leave this state, as indices into the flattened
        log_weights; states * arcs where there is none.
    log_start, log_final: [states], log weight of starting in this state and of ending after it.
    """

    emissions: Any
    sources: Any
    log_weights: Any
    leaving: Any
    log_start: Any
    log_final: Any


class Posteriors(NamedTuple):
    """Results of ``forward_backward``; all 0 for rows that no path explains.

    states: [batch, time, states], p(state | scores), Rabiner's gamma.
    arcs: [batch, states, arcs], expected number of uses of each arc, Rabiner's xi summed over time.
    log_likelihood: [batch].
    """

    states: Array
    arcs: Array
    log_likelihood: Array


class Path(NamedTuple):
    """A path through the graph for each row.

    states, emissions: int32 [batch, time], the state of each frame and the index of its score.
    score: [batch], the log weight of the path including scores; IMPOSSIBLE if there is none.
    """

    states: Array
    emissions: Array
    score: Array


# ---------------------------------------------------------------- computations


def forward(
    graph: Graph,
    scores: Float[Array, "batch time emissions"],
    mask: Any = None,
) -> Float[Array, " batch"]:
    """The log likelihood: log of the sum over all paths (Rabiner, equations 19-21).

    It is differentiable; the gradient with respect to scores, log_weights, log_start and log_final
    is the expected number of uses.  Where no path explains the scores, it is IMPOSSIBLE with
    gradient 0.
    Raises ValueError for a mask of another shape or a graph of another number of rows.
    """
    return _forward(*_prepared(graph, scores, mask), keep=False)[0]


def forward_backward(
    graph: Graph,
    scores: Float[Array, "batch time emissions"],
    mask: Any = None,
) -> Posteriors:
    """Posteriors of states and arcs (Rabiner, equations 24-27 and 36-38).

    Raises ValueError for a mask of another shape or a graph of another number of rows.
    """
    graph, scores, mask = _prepared(graph, scores, mask)
    log_likelihood, alphas = _forward(graph, scores, mask, keep=True)
    arcs = graph.log_weights.shape[-1]
    absent = jnp.full((*graph.log_weights.shape[:-2], 1), IMPOSSIBLE, scores.dtype)
    flat = graph.log_weights.reshape(*graph.log_weights.shape[:-2], -1)
    weights = _pick(jnp.concatenate([flat, absent], axis=-1), graph.leaving, 2)
    targets = jnp.minimum(graph.leaving // arcs, graph.sources.shape[-2] - 1)

    def step(
        carry: tuple[Array, Array], frame: tuple[Array, Array, Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        beta, uses = carry
        score, exists, continues, alpha, before = frame
        gamma = jnp.where(exists[:, None], jax.nn.softmax(alpha + beta, axis=-1), 0)
        here = beta + _pick(score, graph.emissions, 1)
        used = _arriving(graph, before) + here[:, :, None]
        used = jax.nn.softmax(used.reshape(len(used), -1), axis=-1).reshape(used.shape)
        uses = uses + jnp.where(continues[:, None, None], used, 0)
        earlier = jax.nn.logsumexp(_pick(here, targets, 2) + _rows(weights, 3), axis=-1)
        earlier = jnp.maximum(earlier - jnp.max(earlier, axis=-1, keepdims=True), IMPOSSIBLE)
        return (jnp.where(exists[:, None], earlier, beta), uses), gamma

    seen = jnp.cumsum(mask, axis=0) > mask
    previous = jnp.concatenate([alphas[:1], alphas[:-1]])
    size = (scores.shape[1], *graph.sources.shape[-2:])
    start = (jnp.broadcast_to(_rows(graph.log_final, 2), size[:2]), jnp.zeros(size, scores.dtype))
    frames = (scores, mask, mask & seen, alphas, previous)
    (_, uses), gammas = jax.lax.scan(step, start, frames, reverse=True)
    possible = log_likelihood > IMPOSSIBLE / 2
    return Posteriors(
        jnp.where(possible[:, None, None], jnp.swapaxes(gammas, 0, 1), 0),
        jnp.where(possible[:, None, None], uses, 0),
        log_likelihood,
    )


def viterbi(
    graph: Graph,
    scores: Float[Array, "batch time emissions"],
    mask: Any = None,
) -> Path:
    """The path of the largest weight (Rabiner, equations 32-35).

    Of equally good predecessors the path takes the first in ``sources``, of equally good last
    states the first.  Frames that do not exist have the state of the last one before them.
    Raises ValueError for a mask of another shape or a graph of another number of rows.
    """
    graph, scores, mask = _prepared(graph, scores, mask)
    # An index into the list of arcs fits into a byte, that of a state would not.
    small = jnp.uint8 if graph.sources.shape[-1] <= 256 else jnp.int32

    def step(
        carry: tuple[Array, Array], frame: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        delta, started = carry
        score, exists = frame
        arriving = _arriving(graph, delta)
        best = jnp.where(started[:, None], jnp.max(arriving, axis=-1), _rows(graph.log_start, 2))
        new, scale = _rescaled(best + _pick(score, graph.emissions, 1))
        chosen = jnp.argmax(arriving, axis=-1).astype(small)
        after = (jnp.where(exists[:, None], new, delta), started | exists)
        return after, (chosen, jnp.where(exists, scale, 0))

    size = (scores.shape[1], graph.sources.shape[-2])
    start = (jnp.zeros(size, scores.dtype), jnp.zeros(size[0], bool))
    (delta, started), (chosen, scales) = jax.lax.scan(step, start, (scores, mask))
    ending = delta + _rows(graph.log_final, 2)
    continues = mask & (jnp.cumsum(mask, axis=0) > mask)

    def back(state: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, continues = frame
        arc = jnp.take_along_axis(chosen, state[:, None], axis=1)[:, 0].astype(jnp.int32)
        rows = jnp.arange(len(state))
        shared = graph.sources.ndim == 2
        source = graph.sources[state, arc] if shared else graph.sources[rows, state, arc]
        return jnp.where(continues, source, state), state

    last = jnp.argmax(ending, axis=-1).astype(jnp.int32)
    _, states = jax.lax.scan(back, last, (chosen, continues), reverse=True)
    states = states.T
    if graph.emissions.ndim == 1:
        emissions = graph.emissions[states]
    else:
        emissions = jnp.take_along_axis(graph.emissions, states, axis=1)
    score = _total(scales, jnp.max(ending, axis=-1), started)
    return Path(states, emissions, score)


def _forward(graph: Graph, scores: Array, mask: Array, *, keep: bool) -> tuple[Array, Any]:
    """Log likelihood [batch], and with ``keep``, rescaled log alpha [time, batch, states]."""

    def step(
        carry: tuple[Array, Array], frame: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Any]]:
        alpha, started = carry
        score, exists = frame
        arriving = jax.nn.logsumexp(_arriving(graph, alpha), axis=-1)
        arriving = jnp.where(started[:, None], arriving, _rows(graph.log_start, 2))
        new, scale = _rescaled(arriving + _pick(score, graph.emissions, 1))
        alpha = jnp.where(exists[:, None], new, alpha)
        return (alpha, started | exists), (jnp.where(exists, scale, 0), alpha if keep else None)

    size = (scores.shape[1], graph.sources.shape[-2])
    start = (jnp.zeros(size, scores.dtype), jnp.zeros(size[0], bool))
    (alpha, started), (scales, alphas) = jax.lax.scan(step, start, (scores, mask))
    ending = jax.nn.logsumexp(alpha + _rows(graph.log_final, 2), axis=-1)
    return _total(scales, ending, started), alphas


def _rescaled(values: Array) -> tuple[Array, Array]:
    """Values [batch, states] with maximum 0, and their maximum [batch].

    Log likelihoods of thousands of frames are near -1e5, where neighbouring float32 values differ
    by 0.01.  Their sum does not depend on the scale, so no gradient needs to flow through it.
    """
    scale = jax.lax.stop_gradient(jnp.max(values, axis=-1))
    return jnp.maximum(values - scale[:, None], IMPOSSIBLE), scale


def _total(scales: Array, ending: Array, started: Array) -> Array:
    total = jnp.where(started, jnp.sum(scales, axis=0) + ending, 0)
    return jnp.where(total > IMPOSSIBLE / 2, total, IMPOSSIBLE)


def _arriving(graph: Graph, values: Array) -> Array:
    """Values [batch, states] at the sources of all arcs, plus weights: [batch, states, arcs]."""
    return _pick(values, graph.sources, 2) + _rows(graph.log_weights, 3)


def _pick(values: Array, index: Array, rank: int) -> Array:
    """values[..., index] along the last axis: [batch, ...].

    values: [batch, n], or [n] for all rows.  index: of ``rank`` axes for all rows, else one more.
    """
    if index.ndim == rank:
        return values[..., index]
    return jax.vmap(lambda values, index: values[index])(values, index)


def _rows(leaf: Array, ndim: int) -> Array:
    """The leaf with a leading axis for the rows: of size 1 if all share it."""
    return leaf if leaf.ndim == ndim else leaf[None]


def _prepared(graph: Graph, scores: Array, mask: Any) -> tuple[Graph, Array, Array]:
    """The graph as arrays, scores [time, batch, emissions], and mask [time, batch]."""
    scores = at_least_float32(scores)
    mask = jnp.ones(scores.shape[:2], bool) if mask is None else jnp.asarray(mask)
    require_shape("mask", mask, scores.shape[:2])
    if np.ndim(graph.emissions) == 2:
        require_shape("graph.emissions", graph.emissions, (scores.shape[0], "states"))
    graph = Graph(
        emissions=jnp.asarray(graph.emissions, jnp.int32),
        sources=jnp.asarray(graph.sources, jnp.int32),
        log_weights=jnp.asarray(graph.log_weights, scores.dtype),
        leaving=jnp.asarray(graph.leaving, jnp.int32),
        log_start=jnp.asarray(graph.log_start, scores.dtype),
        log_final=jnp.asarray(graph.log_final, scores.dtype),
    )
    return graph, jnp.swapaxes(scores, 0, 1), mask.astype(bool).T


# ---------------------------------------------------------------- graphs


def graph_of(
    emissions: Sequence[int],
    arcs: Iterable[tuple[int, int, float]],
    starts: Mapping[int, float],
    finals: Mapping[int, float],
) -> Graph:
    """A graph of numpy arrays.

    emissions: of each state.  arcs: (source, target, log weight).  starts, finals: {state: log
    weight} of the states in which a path may start and end.
    Raises ValueError for an arc or an end whose state does not exist.
    """
    states = len(emissions)
    into: list[list[tuple[int, float]]] = [[] for _ in range(states)]
    for source, target, weight in arcs:
        for state in (source, target):
            require_integer("arcs", state, at_least=0, at_most=states - 1)
        into[target].append((source, weight))
    most = max(1, *map(len, into))
    sources = np.zeros((states, most), np.int32)
    weights = np.full((states, most), IMPOSSIBLE)
    from_: list[list[int]] = [[] for _ in range(states)]
    for target, each in enumerate(into):
        for arc, (source, weight) in enumerate(sorted(each)):
            sources[target, arc], weights[target, arc] = source, weight
            from_[source].append(target * most + arc)
    leaving = np.full((states, max(1, *map(len, from_))), states * most, np.int32)
    for source, each in enumerate(from_):
        leaving[source, : len(each)] = each
    ends = np.full((2, states), IMPOSSIBLE)
    for row, weights_of in enumerate((starts, finals)):
        for state, weight in weights_of.items():
            require_integer(
                "starts" if row == 0 else "finals", state, at_least=0, at_most=states - 1
            )
            ends[row, state] = weight
    return Graph(np.asarray(emissions, np.int32), sources, weights, leaving, ends[0], ends[1])


def stacked(graphs: Sequence[Graph], states: int | None = None) -> Graph:
    """One graph per row, [batch, ...]: filled up to ``states``, by default those of the largest.

    Added states cannot be reached.  Raises ValueError for fewer states than a graph has.
    """
    largest = max(len(graph.emissions) for graph in graphs)
    states = largest if states is None else states
    require_integer("states", states, at_least=largest)
    arcs = max(graph.sources.shape[1] for graph in graphs)
    out = max(graph.leaving.shape[1] for graph in graphs)

    def padded(graph: Graph) -> Graph:
        count, own = graph.sources.shape
        more = states - count
        # Indices into the flattened weights change with the number of arcs per state.
        target, arc = np.divmod(graph.leaving, own)
        leaving = np.where(graph.leaving == count * own, states * arcs, target * arcs + arc)
        wide = ((0, more), (0, arcs - own))
        return Graph(
            np.pad(graph.emissions, (0, more)),
            np.pad(graph.sources, wide),
            np.pad(graph.log_weights, wide, constant_values=IMPOSSIBLE),
            np.pad(
                leaving, ((0, more), (0, out - leaving.shape[1])), constant_values=states * arcs
            ),
            np.pad(graph.log_start, (0, more), constant_values=IMPOSSIBLE),
            np.pad(graph.log_final, (0, more), constant_values=IMPOSSIBLE),
        )

    return Graph(*map(np.stack, zip(*map(padded, graphs), strict=True)))


def alignment_graph(
    words: Sequence[Sequence[Sequence[int]]],
    log_stay: Any,
    *,
    states: int = 3,
    silence: int | None = None,
) -> Graph:
    """The graph of a sentence whose words are known.

    words: pronunciations of each word, which are parallel branches of the same probability; a
        pronunciation is a sequence of phones, and a phone has ``states`` states from left to right.
    log_stay: [phones, states], log probability of staying in a state for another frame.
    silence: a phone that may occur between words and at both ends, with probability 1/2.
    The emission of state s of phone p is p * states + s.
    Raises ValueError for a sentence without words and a word without pronunciation.
    """
    log_stay, log_leave = _stay_and_leave(log_stay, states)
    if not words or not all(words) or not all(phones for word in words for phones in word):
        raise ValueError(f"words={words!r}, allowed: one or more, with phones each")
    emissions: list[int] = []
    arcs: list[tuple[int, int, float]] = []
    starts: dict[int, float] = {}

    def chain(phones: Sequence[int], before: _Ends, weight: float) -> _Ends:
        """Adds states that follow the ends ``before``; returns their own end."""
        ends: _Ends = [(state, log_p + weight) for state, log_p in before]
        for phone in phones:
            for part in range(states):
                new = len(emissions)
                emissions.append(phone * states + part)
                arcs.append((new, new, float(log_stay[phone, part])))
                for state, log_p in ends:
                    if state is None:
                        starts[new] = log_p
                    else:
                        arcs.append((state, new, log_p))
                ends = [(new, float(log_leave[phone, part]))]
        return ends

    def maybe_silent(ends: _Ends) -> _Ends:
        if silence is None:
            return ends
        half = math.log(0.5)
        return [*((state, log_p + half) for state, log_p in ends), *chain([silence], ends, half)]

    ends = maybe_silent([(None, 0.0)])
    for word in words:
        after = []
        for phones in word:
            after += chain(phones, ends, -math.log(len(word)))
        ends = maybe_silent(after)
    finals = {state: log_p for state, log_p in ends if state is not None}
    return graph_of(emissions, arcs, starts, finals)


def phone_loop(
    log_bigram: Any,
    log_stay: Any,
    *,
    states: int = 3,
    weight: float = 1.0,
    penalty: float = 0.0,
) -> Graph:
    """The graph of any sequence of phones, for decoding.

    log_bigram: [phones + 1, phones + 1], log p(next | previous); the last row is that of the start,
        the last column that of the end.
    log_stay, states: see ``alignment_graph``.
    weight: multiplies log_bigram.  penalty: log weight added for each phone, below 0 to insert
        fewer.
    Raises ValueError for shapes that do not correspond.
    """
    log_stay, log_leave = _stay_and_leave(log_stay, states)
    phones = len(log_stay)
    log_bigram = np.asarray(log_bigram, float)
    require_shape("log_bigram", log_bigram, (phones + 1, phones + 1))
    require_real("weight", weight)
    first = np.arange(phones) * states
    arcs = [(s, s, w) for s, w in enumerate(log_stay.reshape(-1).tolist())]
    arcs += [
        (p * states + s, p * states + s + 1, float(log_leave[p, s]))
        for p in range(phones)
        for s in range(states - 1)
    ]
    scaled = np.maximum(weight * log_bigram, IMPOSSIBLE)
    arcs += [
        (
            int(first[p]) + states - 1,
            int(first[q]),
            float(log_leave[p, -1] + scaled[p, q] + penalty),
        )
        for p in range(phones)
        for q in range(phones)
        if states > 1 or p != q
    ]
    starts = {int(first[q]): float(scaled[-1, q] + penalty) for q in range(phones)}
    finals = {
        int(first[p]) + states - 1: float(log_leave[p, -1] + scaled[p, -1]) for p in range(phones)
    }
    return graph_of(range(phones * states), arcs, starts, finals)


def phones_of(
    emissions: Sequence[int], *, states: int = 3, silence: int | None = None
) -> list[int]:
    """The phones of a path, without silence.

    emissions: of the frames that exist, as in ``Path``.  With one state per phone, a repeated phone
    counts once.
    """
    phones = []
    for before, now in itertools.pairwise([-1, *map(int, emissions)]):
        if now % states == 0 and now != before:
            phones.append(now // states)
    return [phone for phone in phones if phone != silence]


def _stay_and_leave(log_stay: Any, states: int) -> tuple[np.ndarray, np.ndarray]:
    require_integer("states", states)
    log_stay = np.asarray(log_stay, float)
    require_shape("log_stay", log_stay, ("phones", states))
    if not np.all(log_stay < 0):
        raise ValueError(f"log_stay: up to {log_stay.max():g}, allowed: below 0")
    return log_stay, np.log(-np.expm1(log_stay))
