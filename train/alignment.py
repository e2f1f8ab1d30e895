"""Alignment of recordings with states of phones, for hybrids of a network and a Markov model.

A phone has a few states from left to right, and silence may occur between words.  A hidden Markov
model with one Gaussian per state is trained from the words alone, by a flat start and Viterbi
training (Juang and Rabiner 1990): it aligns the recordings, and each state is estimated again from
its frames.  A network that learns these states replaces the Gaussians and can align again.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.samplers import bucket_edges, bucket_of
from zoo.parts import hmm

Words = Sequence[Sequence[Sequence[int]]]
"""Pronunciations of the words of a sentence, see ``zoo.parts.hmm.alignment_graph``."""
ROUNDS = 12
"""Rounds of Viterbi training."""
BUCKETS, STEP, ROWS = 6, 16, 64
"""Buckets of similar length, multiples of STEP frames; recordings that are aligned at a time."""
LEAST_VARIANCE = 0.01
"""Of a state, as a share of the variance of all frames."""
ADDED = 0.1
"""Added to counts of transitions between phones and of frames of states."""


class Gaussians(NamedTuple):
    """A Gaussian with diagonal covariance for each state: mean, variance [states, values]."""

    mean: np.ndarray
    variance: np.ndarray

    def log_p(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """log p(frame | state), float32 [frames, states], of each recording."""
        joined = np.concatenate(frames).astype(np.float32)
        precision = 1 / self.variance
        weights = np.concatenate([-0.5 * precision, self.mean * precision], axis=1)
        constant = np.sum(np.log(2 * np.pi * self.variance) + self.mean**2 * precision, axis=1)
        log_p = np.concatenate([joined**2, joined], axis=1) @ weights.T.astype(np.float32)
        log_p -= (0.5 * constant).astype(np.float32)
        return np.split(log_p, np.cumsum([len(each) for each in frames])[:-1])


class Transitions(NamedTuple):
    """What alignments say of states and phones.

    log_stay: [phones, states], see ``hmm.alignment_graph``.
    log_bigram: [phones + 1, phones + 1], see ``hmm.phone_loop``.
    log_prior: [phones * states], log of the share of frames of each state.
    """

    log_stay: np.ndarray
    log_bigram: np.ndarray
    log_prior: np.ndarray


def flat_start(
    frames: Sequence[np.ndarray],
    words: Sequence[Words],
    *,
    phones: int,
    states: int,
    silence: int | None,
    rounds: int = ROUNDS,
) -> Gaussians:
    """Gaussians of the states, estimated from recordings whose words are known.

    frames: float [frames, values] of each recording, at least ``least_frames`` of them.
    At first, the frames of a recording are divided equally among its states.
    """
    joined = np.concatenate(frames).astype(np.float64)
    paths = [
        _divided(len(each), sentence, states, silence)
        for each, sentence in zip(frames, words, strict=True)
    ]
    log_stay = np.full((phones, states), np.log(0.5))  # the Gaussians decide, these hardly matter
    aligned = aligner(words, list(map(len, frames)), log_stay, silence=silence)
    for _ in range(rounds):
        gaussians = _estimated(joined, np.concatenate(paths), phones * states)
        paths = aligned(gaussians.log_p(frames))
    return _estimated(joined, np.concatenate(paths), phones * states)


Scores = Sequence[np.ndarray]
"""Scores of states, [frames, phones * states], of each recording."""


def aligner(
    words: Sequence[Words], lengths: Sequence[int], log_stay: np.ndarray, *, silence: int | None
) -> Callable[[Scores], list[np.ndarray]]:
    """A function that aligns recordings whose words are known: scores -> states.

    lengths: frames of each recording.  log_stay: [phones, states].
    The states are int32 [frames] of each recording.
    """
    states = log_stay.shape[1]
    graphs = [
        hmm.alignment_graph(sentence, log_stay, states=states, silence=silence)
        for sentence in words
    ]
    sizes = np.array(
        [(time, len(graph.emissions)) for time, graph in zip(lengths, graphs, strict=True)]
    )
    groups = [
        (rows, time, hmm.stacked([graphs[row] for row in rows], states=most))
        for rows, time, most in _groups(sizes)
    ]
    return functools.partial(_paths, groups, sizes[:, 0])


def decode(scores: Scores, graph: hmm.Graph) -> list[np.ndarray]:
    """The states of the best path through the same graph for each recording, int32 [frames]."""
    sizes = np.array([(len(each), 1) for each in scores])
    return _paths([(rows, time, graph) for rows, time, _ in _groups(sizes)], sizes[:, 0], scores)


def _paths(
    groups: Sequence[tuple[list[int], int, hmm.Graph]], lengths: np.ndarray, scores: Scores
) -> list[np.ndarray]:
    """Best paths through the graph of each group.  groups: rows, padded length and graph."""
    paths = [np.zeros(0, np.int32)] * len(scores)
    for rows, time, graph in groups:
        packed = np.zeros((len(rows), time, scores[0].shape[1]), np.float32)
        for row, index in enumerate(rows):
            packed[row, : lengths[index]] = scores[index]
        for index, path in zip(rows, np.asarray(_best(graph, packed, lengths[rows])), strict=True):
            paths[index] = path[: lengths[index]]
    return paths


def transitions(paths: Sequence[np.ndarray], *, phones: int, states: int) -> Transitions:
    """Relative frequencies in alignments.  paths: the state of each frame of each recording."""
    frames = np.bincount(np.concatenate(paths), minlength=phones * states)
    entries = np.zeros(phones * states)
    pairs = np.full((phones + 1, phones + 1), ADDED)
    pairs[-1, -1] = 0  # a recording has a phone
    for path in paths:
        path_states = [state for state, _ in itertools.groupby(path.tolist())]
        entries += np.bincount(path_states, minlength=phones * states)
        ends = [phones, *hmm.phones_of(path.tolist(), states=states), phones]
        np.add.at(pairs, (ends[:-1], ends[1:]), 1)
    # A visit of n frames stays n - 1 times: the geometric distribution with the same mean.
    stay = (frames - entries + ADDED) / (frames + 2 * ADDED)
    prior = (frames + ADDED) / np.sum(frames + ADDED)
    with np.errstate(divide="ignore"):
        bigram = np.maximum(np.log(pairs / pairs.sum(axis=1, keepdims=True)), hmm.IMPOSSIBLE)
    return Transitions(np.log(stay).reshape(phones, states), bigram, np.log(prior))


def least_frames(words: Words, states: int) -> int:
    """Fewest frames of a recording of these words."""
    return states * sum(min(map(len, word)) for word in words)


def _estimated(frames: np.ndarray, path: np.ndarray, states: int) -> Gaussians:
    """The Gaussians of frames [n, values] in these states; that of all for a state without any."""
    counts = np.bincount(path, minlength=states)[:, None]
    order = np.argsort(path, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    used = counts[:, 0] > 0

    def sums(values: np.ndarray) -> np.ndarray:
        total = np.tile(values.sum(axis=0) / len(values), (states, 1))
        total[used] = np.add.reduceat(values[order], starts[used]) / counts[used]
        return total

    mean = sums(frames)
    variance = sums(frames**2) - mean**2
    return Gaussians(mean, np.maximum(variance, LEAST_VARIANCE * frames.var(axis=0)))


def _divided(frames: int, words: Words, states: int, silence: int | None) -> np.ndarray:
    """Equal shares of the frames for the states of a sentence, with silence at both ends."""
    phones = [phone for word in words for phone in word[0]]
    quiet = [] if silence is None else [silence]
    sequence = [phone * states + s for phone in [*quiet, *phones, *quiet] for s in range(states)]
    return np.array(sequence)[np.arange(frames) * len(sequence) // frames]


def _groups(sizes: np.ndarray) -> list[tuple[list[int], int, int]]:
    """Groups of ROWS recordings of similar size: (rows, padded frames, padded states of a graph).

    sizes: [n, 2], frames and states of each recording.  The last group of a size repeats its first
    row, so that few shapes are compiled.
    """
    widths = -(-sizes // STEP) * STEP
    edges = bucket_edges(widths, widths.max(axis=0), BUCKETS)
    bucket = bucket_of(widths, edges)
    groups = []
    for number in range(len(edges[0])):
        rows = np.flatnonzero(bucket == number).tolist()
        size = [edge[number] for edge in edges]
        for first in range(0, len(rows), ROWS):
            group = rows[first : first + ROWS]
            groups.append(([*group, *[group[0]] * (ROWS - len(group))], *size))
    return groups


@jax.jit
def _best(graph: hmm.Graph, scores: Array, lengths: Array) -> Array:
    mask = jnp.arange(scores.shape[1])[None] < lengths[:, None]
    return hmm.viterbi(graph, scores, mask).emissions
