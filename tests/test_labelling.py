"""The CTC loss and alignments against all paths, the loss against torch, the rest against loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from zoo.parts import hmm, labelling

loss, align = jax.jit(labelling.loss), jax.jit(labelling.forced_alignment)


def _labelling(path):
    return [label for label, _ in itertools.groupby(path) if label]


def _enumerated(logits, steps, labels):
    """-log of the probabilities of all paths of a labelling, one row."""
    log_p = np.asarray(logits, np.float64)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
    total = sum(
        np.exp(log_p[range(steps), path].sum())
        for path in itertools.product(range(log_p.shape[1]), repeat=steps)
        if _labelling(path) == list(labels)
    )
    return -np.log(total) if total else np.inf


CASES = [(5, [1, 2]), (5, [1, 1]), (5, []), (4, [2, 2, 1]), (3, [2, 1, 2]), (2, [1]), (1, [2])]


def _batch(cases=CASES, seed=0):
    logits = np.random.default_rng(seed).normal(size=(len(cases), 5, 3)) * 2
    labels = np.zeros((len(cases), 3), np.int32)
    for row, (_, each) in enumerate(cases):
        labels[row, : len(each)] = each
    steps, counts = (
        np.array(column) for column in zip(*[(s, len(e)) for s, e in cases], strict=True)
    )
    return tuple(map(jnp.asarray, (logits, steps, labels, counts)))


def test_the_loss_is_the_sum_over_all_paths(x64):
    logits, steps, labels, counts = _batch()
    expected = [_enumerated(row, *case) for row, case in zip(logits, CASES, strict=True)]
    np.testing.assert_allclose(loss(logits, steps, labels, counts), expected, rtol=1e-10)


def test_the_gradient_equals_finite_differences(x64):
    logits, steps, labels, counts = _batch()
    check_grads(
        lambda logits: jnp.sum(loss(logits, steps, labels, counts)),
        (logits,), order=1, modes=["rev"], rtol=1e-6,
    )  # fmt: skip


def test_the_loss_equals_torch(x64):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(6, 40, 9)), random.integers(1, 9, (6, 15))
    steps, counts = random.integers(32, 41, 6), random.integers(3, 15, 6)
    logits, steps, labels, counts = map(jnp.asarray, (logits, steps, labels, counts))
    value, gradient = jax.value_and_grad(
        lambda logits: jnp.sum(labelling.loss(logits, steps, labels, counts))
    )(logits)
    theirs = torch.tensor(np.asarray(logits), requires_grad=True)
    others = (torch.tensor(np.asarray(each)) for each in (labels, steps, counts))
    log_p = theirs.log_softmax(-1).transpose(0, 1)
    total = torch.nn.functional.ctc_loss(log_p, *others, reduction="sum")
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-12)


def test_labels_that_do_not_fit_have_neither_loss_nor_gradient():
    logits, steps, labels, counts = _batch([(2, [1, 1]), (1, [1, 2]), (3, [1, 1])])
    fits = labelling.fits(steps, labels, counts)
    assert fits.tolist() == [False, False, True]
    value, gradient = jax.value_and_grad(
        lambda logits: jnp.sum(labelling.loss(logits, steps, labels, counts))
    )(jnp.asarray(logits))
    np.testing.assert_allclose(value, _enumerated(logits[2], 3, [1, 1]), rtol=1e-5)
    assert not np.any(gradient[:2])
    assert np.any(gradient[2])


def test_rows_of_padding_only_have_neither_loss_nor_gradient():
    logits, _, labels, _ = _batch()
    none = jnp.zeros(len(logits), np.int32)
    value, gradient = jax.value_and_grad(
        lambda logits: jnp.sum(labelling.loss(logits, none, labels, none))
    )(jnp.asarray(logits, jnp.float32))
    assert value == 0
    assert not np.any(gradient)


def test_a_certain_labelling_of_two_frames_has_a_finite_gradient():
    """Rounding makes optax's loss negative here (optax issue 1771)."""
    logits = np.array([[[0.0, 20.0], [0.0, 20.0]], [[0.0, 20.0], [20.0, 0.0]]], np.float32)
    ones = jnp.ones(2, jnp.int32)
    values, gradient = (
        loss(logits, 2 * ones, ones[:, None], ones),
        jax.grad(lambda logits: jnp.sum(labelling.loss(logits, 2 * ones, ones[:, None], ones)))(
            jnp.asarray(logits)
        ),
    )
    assert np.all(np.abs(values) < 1e-6)
    assert np.all(np.isfinite(gradient))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_padding_has_no_influence(seed):
    logits, steps, labels, counts = _batch(seed=seed)
    expected = loss(logits, steps, labels, counts)
    other = np.where(np.arange(5)[None, :, None] < steps[:, None, None], logits, 1e4)
    others = np.where(np.arange(3)[None] < counts[:, None], labels, 2)
    np.testing.assert_allclose(loss(other, steps, others, counts), expected, rtol=1e-6)


def test_the_best_path_is_merged_and_without_blanks():
    random = np.random.default_rng(0)
    logits, steps = random.normal(size=(50, 9, 3)), random.integers(0, 10, 50)
    labels, counts = jax.jit(labelling.best_path)(logits, steps)
    for row, count in enumerate(steps):
        expected = _labelling(logits[row, :count].argmax(axis=-1).tolist())
        assert counts[row] == len(expected)
        assert labels[row].tolist() == expected + [0] * (9 - len(expected))


def _aligned(log_p, steps, labels):
    """(log probability, path) of the best path of one row by enumeration; None without a path."""
    paths = (
        (float(log_p[range(steps), path].sum()), list(path))
        for path in itertools.product(range(log_p.shape[1]), repeat=steps)
        if _labelling(path) == list(labels)
    )
    return max((each for each in paths if each[0] > -np.inf), default=None)


def _check_alignment(found, row, log_p, steps, labels):
    """One row: its path is the best by enumeration, collapses to its labels and has its places."""
    path, places = found.labels[row].tolist(), found.places[row].tolist()
    rest = len(path) - steps
    best = _aligned(log_p, steps, labels)
    if best is None:
        assert found.log_probability[row] == -np.inf
        assert (path, places) == ([0] * len(path), [-1] * len(path))
        return
    np.testing.assert_allclose(found.log_probability[row], best[0], rtol=1e-10)
    assert path == best[1] + [0] * rest
    assert _labelling(path) == list(labels)
    assert [place for place, _ in itertools.groupby(places) if place >= 0] == list(
        range(len(labels))
    )
    for label, place in zip(path, places, strict=True):
        assert label == (labels[place] if place >= 0 else 0)


def test_the_alignment_is_the_best_of_all_paths(x64):
    cases = [*CASES, (2, [1, 1]), (1, [1, 2]), (0, []), (0, [1]), (3, [])]
    for seed in range(3):
        logits, steps, labels, counts = _batch(cases, seed)
        log_p = jax.nn.log_softmax(logits)
        found = align(log_p, steps, labels, counts)
        for row, (count, each) in enumerate(cases):
            _check_alignment(found, row, np.asarray(log_p[row]), count, each)
        fits = labelling.fits(steps, labels, counts)
        np.testing.assert_array_equal(np.isfinite(found.log_probability), fits)
        losses = loss(logits, steps, labels, counts)
        assert np.all((found.log_probability <= -losses + 1e-12)[fits])


def test_the_alignment_of_all_labellings_of_few_labels(x64):
    """Every labelling of up to three labels, each with every number of steps."""
    cases = [
        (steps, list(each))
        for steps in range(6)
        for count in range(4)
        for each in itertools.product((1, 2), repeat=count)
    ]
    logits, steps, labels, counts = _batch(cases)
    log_p = jax.nn.log_softmax(logits)
    found = align(log_p, steps, labels, counts)
    for row, (count, each) in enumerate(cases):
        _check_alignment(found, row, np.asarray(log_p[row]), count, each)


def test_an_alignment_needs_a_path_of_positive_probability(x64):
    logits, steps, labels, counts = _batch()
    random = np.random.default_rng(3)
    zero = random.random(logits.shape) < 0.3
    log_p = jnp.where(zero, -jnp.inf, jax.nn.log_softmax(logits))
    found = align(log_p, steps, labels, counts)
    for row, case in enumerate(CASES):
        _check_alignment(found, row, np.asarray(log_p[row]), *case)
    possible = np.isfinite(found.log_probability)
    assert possible.any()
    assert not possible.all()
    nothing = align(jnp.full((1, 5, 3), -jnp.inf), jnp.array([5]), labels[:1], counts[:1])
    assert nothing.log_probability[0] == -np.inf


def test_padding_and_other_rows_have_no_influence_on_an_alignment():
    logits, steps, labels, counts = _batch(seed=4)
    log_p = jnp.asarray(jax.nn.log_softmax(logits), jnp.float32)
    found = align(log_p, steps, labels, counts)
    after = jnp.arange(5)[None, :, None] >= steps[:, None, None]
    others = jnp.where(jnp.arange(3)[None] < counts[:, None], labels, 9)
    for value in (jnp.nan, 1e4, -jnp.inf):
        again = align(jnp.where(after, value, log_p), steps, others, counts)
        jax.tree.map(np.testing.assert_array_equal, again, found)
    one = jax.vmap(
        lambda *row: jax.tree.map(lambda leaf: leaf[0], align(*(leaf[None] for leaf in row)))
    )
    alone = one(log_p, steps, labels, counts)
    jax.tree.map(np.testing.assert_array_equal, alone, found)
    jax.tree.map(
        np.testing.assert_array_equal,
        labelling.forced_alignment(log_p, steps, labels, counts),
        found,
    )
    none = align(log_p, steps, labels[:, :0], 0 * counts)
    assert not none.labels.any()
    assert np.all(none.places == -1)


def test_the_gradient_of_an_alignment_is_its_path(x64):
    logits, steps, labels, counts = _batch()
    log_p = jax.nn.log_softmax(logits)
    found = align(log_p, steps, labels, counts)
    gradient = jax.grad(lambda log_p: jnp.sum(align(log_p, steps, labels, counts).log_probability))(
        log_p
    )
    valid = (jnp.arange(5)[None] < steps[:, None])[:, :, None]
    np.testing.assert_allclose(gradient, jax.nn.one_hot(found.labels, 3) * valid, atol=1e-12)


def test_long_alignments_in_float32():
    random = np.random.default_rng(0)
    labels = random.integers(1, 30, 200)
    path = np.repeat(np.stack([labels, 0 * labels], axis=1).ravel(), 5)
    logits = jnp.asarray(random.normal(size=(1, 2000, 30)) + 12 * np.eye(30)[path])
    arguments = (jnp.array([2000]), jnp.asarray(labels)[None], jnp.array([200]))
    log_p = jnp.asarray(jax.nn.log_softmax(logits), jnp.float32)
    found = align(log_p, *arguments)
    assert found.labels[0].tolist() == path.tolist()
    expected = np.asarray(log_p, np.float64)[0, range(2000), path].sum()
    np.testing.assert_allclose(found.log_probability[0], expected, rtol=1e-5)


def test_the_graph_of_paths_has_the_loss_and_its_posteriors(x64):
    """Also its ``leaving`` and final states, which the alignment does not use."""
    logits, steps, labels, counts = _batch()
    log_p, valid = jax.nn.log_softmax(logits), jnp.arange(5)[None] < steps[:, None]
    graph = labelling.path_graph(labels, counts)
    found = hmm.forward_backward(graph, log_p, valid)
    np.testing.assert_allclose(found.log_likelihood, -loss(logits, steps, labels, counts))
    of_labels = jnp.sum(
        found.states[..., None] * jax.nn.one_hot(graph.emissions, 3)[:, None], axis=2
    )
    gradient = jax.grad(lambda log_p: jnp.sum(hmm.forward(graph, log_p, valid)))(log_p)
    np.testing.assert_allclose(of_labels, gradient, atol=1e-12)
    of_logits = jax.grad(lambda logits: jnp.sum(loss(logits, steps, labels, counts)))(logits)
    expected = (jax.nn.softmax(logits) - of_labels) * valid[:, :, None]
    np.testing.assert_allclose(of_logits, expected, atol=1e-10)


def _distance(first, second):
    """Levenshtein's recursion."""

    @functools.cache
    def rest(i, j):
        if not i or not j:
            return i + j
        changed = rest(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(rest(i - 1, j) + 1, rest(i, j - 1) + 1, changed)

    return rest(len(first), len(second))


def test_edit_distances():
    random = np.random.default_rng(0)
    a, b = random.integers(1, 4, (60, 6)), random.integers(1, 4, (60, 8))
    counts, others = random.integers(0, 7, 60), random.integers(0, 9, 60)
    found = jax.jit(labelling.edit_distance)(a, counts, b, others)
    for row in range(60):
        expected = _distance(a[row, : counts[row]].tolist(), b[row, : others[row]].tolist())
        assert found[row] == expected


def test_shapes_that_do_not_correspond_are_named():
    logits, steps, labels, counts = _batch()
    with pytest.raises(ValueError, match=r"labels: shape \(2, 3\), expected \[7, most\]"):
        labelling.loss(logits, steps, labels[:2], counts)
    with pytest.raises(ValueError, match=r"counts: shape \(2,\), expected \[7\]"):
        labelling.loss(logits, steps, labels, counts[:2])
    with pytest.raises(ValueError, match=r"labels: shape \(2, 3\), expected \[7, most\]"):
        labelling.forced_alignment(logits, steps, labels[:2], counts)
    with pytest.raises(ValueError, match=r"steps: shape \(2,\), expected \[7\]"):
        labelling.forced_alignment(logits, steps[:2], labels, counts)
