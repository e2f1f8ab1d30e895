"""The CTC loss against all paths and torch; best paths and edit distances against plain loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from zoo.parts import labelling

loss = jax.jit(labelling.loss)


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
