"""Hidden Markov models against enumeration of all paths and hmmlearn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hmmlearn.base import BaseHMM

from zoo.parts import hmm

forward, posteriors, viterbi = (
    jax.jit(each) for each in (hmm.forward, hmm.forward_backward, hmm.viterbi)
)


def _random(seed, states=3, emissions=4, arcs=6):
    random = np.random.default_rng(seed)
    pairs = list(itertools.product(range(states), repeat=2))
    chosen = random.choice(len(pairs), arcs, replace=False)
    return hmm.graph_of(
        random.integers(0, emissions, states).tolist(),
        [(*pairs[index], float(random.normal())) for index in chosen],
        {0: -0.3, 1: -1.2},
        {states - 1: -0.5, 0: -0.9},
    )


def _dense(graph):
    """Weights [source, target]."""
    weights = np.full((len(graph.emissions),) * 2, -np.inf)
    for target, (sources, log_weights) in enumerate(
        zip(graph.sources, graph.log_weights, strict=True)
    ):
        for source, weight in zip(sources, log_weights, strict=True):
            if weight > hmm.IMPOSSIBLE:
                weights[source, target] = weight
    return weights


def _paths(graph, scores):
    """(log weight, states) of all paths of one row that are possible."""
    weights = _dense(graph)
    for path in itertools.product(range(len(graph.emissions)), repeat=len(scores)):
        total = graph.log_start[path[0]] + graph.log_final[path[-1]]
        total += sum(scores[t, graph.emissions[state]] for t, state in enumerate(path))
        total += sum(weights[a, b] for a, b in itertools.pairwise(path))
        if total > hmm.IMPOSSIBLE / 2:
            yield total, path


@pytest.mark.parametrize("seed", range(4))
def test_likelihood_posteriors_and_best_path_equal_enumeration(x64, seed):
    graph = _random(seed)
    scores = np.random.default_rng(seed).normal(size=(3, 5, 4)) * 2
    lengths = np.array([5, 3, 1])
    mask = np.arange(5)[None] < lengths[:, None]
    found = posteriors(graph, jnp.asarray(scores), mask)
    best = viterbi(graph, jnp.asarray(scores), mask)
    np.testing.assert_allclose(forward(graph, jnp.asarray(scores), mask), found.log_likelihood)
    for row, length in enumerate(lengths):
        paths = list(_paths(graph, scores[row, :length]))
        if not paths:
            assert found.log_likelihood[row] == hmm.IMPOSSIBLE
            assert best.score[row] == hmm.IMPOSSIBLE
            continue
        total = np.logaddexp.reduce([weight for weight, _ in paths])
        np.testing.assert_allclose(found.log_likelihood[row], total)
        gammas, uses = np.zeros((5, 3)), np.zeros((3, 3))
        for weight, path in paths:
            chance = np.exp(weight - total)
            for t, state in enumerate(path):
                gammas[t, state] += chance
            for a, b in itertools.pairwise(path):
                uses[a, b] += chance
        np.testing.assert_allclose(found.states[row], gammas, atol=1e-12)
        expected = np.zeros(graph.sources.shape)
        for target, arc in np.ndindex(*graph.sources.shape):
            if graph.log_weights[target, arc] > hmm.IMPOSSIBLE:
                expected[target, arc] = uses[graph.sources[target, arc], target]
        np.testing.assert_allclose(found.arcs[row], expected, atol=1e-12)
        weight, path = max(paths)
        np.testing.assert_allclose(best.score[row], weight)
        assert best.states[row, :length].tolist() == list(path)
        assert np.all(best.emissions[row] == graph.emissions[best.states[row]])


def test_likelihood_posteriors_and_best_path_equal_hmmlearn(x64):
    random = np.random.default_rng(0)
    start, transitions = random.dirichlet(np.ones(5)), random.dirichlet(np.ones(5), 5)

    class Given(BaseHMM):
        """Emission scores are the observations."""

        def _compute_log_likelihood(self, X):
            return X

    theirs = Given(n_components=5)
    theirs.startprob_, theirs.transmat_, theirs.n_features = start, transitions, 5
    scores = random.normal(size=(60, 5)) * 3
    arcs = [(a, b, float(np.log(transitions[a, b]))) for a, b in np.ndindex(5, 5)]
    starts = {state: float(np.log(p)) for state, p in enumerate(start)}
    graph = hmm.graph_of(range(5), arcs, starts, dict.fromkeys(range(5), 0.0))
    found = posteriors(graph, jnp.asarray(scores[None]))
    total, gammas = theirs.score_samples(scores)
    np.testing.assert_allclose(found.log_likelihood[0], total)
    np.testing.assert_allclose(found.states[0], gammas, atol=1e-10)
    weight, path = theirs.decode(scores)
    best = viterbi(graph, jnp.asarray(scores[None]))
    np.testing.assert_allclose(best.score[0], weight)
    np.testing.assert_array_equal(best.states[0], path)


def test_the_gradient_of_the_likelihood_is_the_posterior(x64):
    graph = _random(1)
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 4)))
    mask = jnp.arange(6)[None] < jnp.array([[6], [4]])
    gradient = jax.grad(lambda scores: jnp.sum(forward(graph, scores, mask)))(scores)
    found = posteriors(graph, scores, mask)
    of_emissions = np.zeros(scores.shape)
    for state, emission in enumerate(graph.emissions):
        of_emissions[:, :, emission] += found.states[:, :, state]
    np.testing.assert_allclose(gradient, of_emissions, atol=1e-10)
    weights = jax.grad(
        lambda weights: jnp.sum(forward(graph._replace(log_weights=weights), scores, mask))
    )(jnp.asarray(graph.log_weights))
    real = graph.log_weights > hmm.IMPOSSIBLE
    np.testing.assert_allclose(
        np.where(real, weights, 0), np.where(real, found.arcs.sum(axis=0), 0), atol=1e-10
    )


def test_rows_have_their_own_graphs_and_padding_changes_nothing():
    graphs = [_random(seed, states=3 + seed, arcs=6 + seed) for seed in range(3)]
    together = hmm.stacked(graphs, 8)
    scores = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    mask = np.arange(6)[None] < np.array([[6], [5], [4]])
    garbage = np.where(mask[..., None], scores, np.nan)
    found, best = posteriors(together, garbage, mask), viterbi(together, garbage, mask)
    for row, graph in enumerate(graphs):
        length = int(mask[row].sum())
        alone = posteriors(graph, scores[row, None, :length])
        np.testing.assert_allclose(found.log_likelihood[row], alone.log_likelihood[0], rtol=1e-5)
        states = len(graph.emissions)
        np.testing.assert_allclose(found.states[row, :length, :states], alone.states[0], atol=1e-5)
        path = viterbi(graph, scores[row, None, :length])
        np.testing.assert_array_equal(best.states[row, :length], path.states[0])
        assert np.all(np.asarray(best.states[row, length:]) == best.states[row, length - 1])


def test_long_sequences_stay_finite_in_float32():
    graph = hmm.alignment_graph([[[0, 1]], [[1]]], np.full((2, 3), np.log(0.9)))
    scores = np.random.default_rng(0).normal(-60, 20, size=(1, 2000, 6)).astype(np.float32)
    value, gradient = jax.value_and_grad(lambda scores: jnp.sum(forward(graph, scores)))(scores)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient.sum(axis=2), 1, rtol=1e-3)


def _sequences(graph, length, states, silence=None):
    """{sequence of emissions: probability} of all paths with this number of frames."""
    found = {}
    for weight, path in _paths(graph, np.zeros((length, 100))):
        key = tuple(int(graph.emissions[state]) for state in path)
        found[key] = found.get(key, 0) + np.exp(weight)
    return found


def test_the_graph_of_a_sentence():
    """One word of two pronunciations, one state per phone, with optional silence."""
    stay = np.log(np.array([[0.5], [0.25], [0.1]]))
    graph = hmm.alignment_graph([[[0], [1]]], stay, states=1, silence=2)
    assert _sequences(graph, 1, 1) == pytest.approx(
        {(0,): 0.25 * 0.5 * 0.5, (1,): 0.25 * 0.5 * 0.75}
    )
    two = _sequences(graph, 2, 1)
    assert set(two) == {(0, 0), (1, 1), (2, 0), (2, 1), (0, 2), (1, 2)}
    assert two[0, 0] == pytest.approx(0.25 * 0.5 * 0.5 * 0.5)
    assert two[2, 1] == pytest.approx(0.5 * 0.9 * 0.5 * 0.75 * 0.5)
    total = sum(sum(_sequences(graph, length, 1).values()) for length in range(1, 8))
    assert 0.95 < total < 1


def test_the_graph_of_any_phones():
    random = np.random.default_rng(0)
    bigram = np.log(random.dirichlet(np.ones(3), 3))
    stay = np.log(np.array([[0.5, 0.4], [0.3, 0.2]]))
    graph = hmm.phone_loop(bigram, stay, states=2, weight=2.0, penalty=-0.5)
    (path,) = [p for w, p in _paths(graph, np.zeros((4, 4))) if p == (0, 1, 2, 3)]
    weight = next(w for w, p in _paths(graph, np.zeros((4, 4))) if p == path)
    leave = np.log(1 - np.exp(stay))
    expected = 2 * (bigram[2, 0] + bigram[0, 1] + bigram[1, 2]) - 1.0 + leave.sum()
    np.testing.assert_allclose(weight, expected)


def test_phones_of_a_path():
    path = [0, 0, 1, 2, 6, 7, 7, 8, 3, 4, 5, 3, 4, 5]
    assert hmm.phones_of(path) == [0, 2, 1, 1]
    assert hmm.phones_of(path, silence=2) == [0, 1, 1]
    assert hmm.phones_of([]) == []


STAY = np.full((2, 3), -1.0)
WRONG = {
    "arcs=1, allowed: an integer": lambda: hmm.graph_of([0], [(0, 1, 0.0)], {0: 0.0}, {0: 0.0}),
    r"words=\[\], allowed: one or more": lambda: hmm.alignment_graph([], STAY),
    r"words=\[\[\]\], allowed: one or more": lambda: hmm.alignment_graph([[]], STAY),
    "log_stay: up to 0, allowed: below 0": lambda: hmm.alignment_graph([[[0]]], np.zeros((1, 3))),
    r"log_bigram: shape \(2, 2\)": lambda: hmm.phone_loop(np.zeros((2, 2)), STAY),
    r"mask: shape \(2, 2\), expected \[2, 3\]": lambda: hmm.forward(
        _random(0), jnp.zeros((2, 3, 4)), jnp.ones((2, 2), bool)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
