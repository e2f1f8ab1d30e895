"""n-gram language models by interpolated modified Kneser-Ney smoothing: what a neural language model has to beat.

The formulas are those of Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998, Harvard
TR-10-98), section 3: with c the count of an n-gram, t the sum of c over all words after the same context, and D the discounts,

    p(word | context) = (c - D(c)) / t + backoff(context) p(word | context without its first word)
    backoff(context) = (D1 N1 + D2 N2 + D3 N3) / t          Nj: how many n-grams with this context have c = j, or c >= 3 for N3

Counts of the highest order are occurrences; those of lower orders are how many different words an n-gram was preceded by.  The
lowest order is interpolated with the uniform distribution.  After a context never seen, the lower order holds as it is.

A document is a stream of tokens 0..vocabulary - 1, and what ends a sentence is one of them.  Before its first token lies the
symbol `vocabulary`, as often as a context is long: a word in contexts, but without a count of its own, for it is not predicted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts D1, D2, D3+ of an order whose counts do not determine them: kenlm's `--discount_fallback`."""


class Level(NamedTuple):
    """The n-grams of one order, by ids 0, 1, ...: an n-gram's key is (id of its context) * (vocabulary + 1) + its last word."""

    keys: np.ndarray
    """[n-grams] int64, sorted; the index is the id."""
    kept: np.ndarray
    """[n-grams + 1] (c - D(c)) / t; last, which is index -1 and stands for any unseen n-gram, 0."""
    backoff: np.ndarray
    """[contexts + 1] weight of the lower order; last, which stands for any unseen context, 1."""
    discounts: np.ndarray
    """[3] D1, D2, D3+."""


class KneserNey(NamedTuple):
    """A fitted model; its order is the number of its levels."""

    vocabulary: int
    levels: tuple[Level, ...]
    """From order 1 up."""


def fit(documents: Sequence[np.ndarray], vocabulary: int, order: int) -> KneserNey:
    """The model of n-grams up to `order` in documents, each [length] integers in 0..vocabulary - 1.

    Discounts are `FALLBACK` in an order where no n-gram has count 1, or 2, 3 or 4, or where a discount Dj is not within (0, j).
    Every probability is positive.  Raises ValueError for no documents, an empty one, other tokens, or an order below 1.
    """
    if vocabulary < 1 or order < 1:
        raise ValueError(f"vocabulary {vocabulary} and order {order} must be at least 1")
    words, previous = _stream(documents, vocabulary)
    ids, lengths = (
        np.zeros_like(words),
        [],
    )  # ids of the n-grams that end at each position; the empty one's is 0
    for _ in range(order):
        contexts = int(ids.max()) + 1
        keys, where, longer = np.unique(
            ids[previous] * (vocabulary + 1) + words, return_index=True, return_inverse=True
        )
        lengths.append((keys, contexts, ids[where]))
        ids = longer
    counts = np.where(lengths[-1][0] % (vocabulary + 1) == vocabulary, 0, np.bincount(ids))
    levels = []
    for keys, contexts, shorter in reversed(lengths):
        levels.append(_level(keys, keys // (vocabulary + 1), contexts, counts))
        # An n-gram of this order is one more word before what is left without its first one; every shorter n-gram has some.
        counts = np.bincount(shorter, counts > 0).astype(np.int64)
    return KneserNey(vocabulary, tuple(reversed(levels)))


def probabilities(model: KneserNey, document: np.ndarray, start: int = 0) -> np.ndarray:
    """p of each token of a document from `start` on, given the order - 1 tokens before it: [length - start] float64.

    Tokens before `start` are context only.  Raises ValueError for an empty document, other tokens than the model's, or a start
    outside 0..length.
    """
    words, previous = _stream([document], model.vocabulary)
    if not 0 <= start < len(words):
        raise ValueError(
            f"start is {start}; it must be in 0..{len(words) - 1}, the length of the document"
        )
    ids, p = np.zeros_like(words), np.full(len(words), 1 / model.vocabulary)
    for level in model.levels:
        contexts = ids[previous]
        keys = (
            contexts * (model.vocabulary + 1) + words
        )  # negative, and so not found, if the context is unseen
        ids = np.searchsorted(
            level.keys, keys
        )  # within, as no key is beyond the last one: that of begin symbols alone
        ids = np.where(level.keys[ids] == keys, ids, -1)
        p = level.kept[ids] + level.backoff[contexts] * p
    return p[1 + start :]


def interpolate(a: np.ndarray, b: np.ndarray) -> float:
    """The weight w in [0, 1] for which w a + (1 - w) b is likeliest, for two models' probabilities [n] of the same tokens.

    The log-likelihood is concave in w: its slope is bisected, to 1e-15.  Where all weights are as good, 0.  Raises ValueError
    for different shapes, no tokens, values outside [0, 1], or a token that both models deem impossible.
    """
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(f"probabilities of different tokens: shapes {a.shape} and {b.shape}")
    if not np.maximum(a, b).all():
        raise ValueError(
            "a token has probability 0 in both models: no mixture of them is better than another"
        )

    low, high = 0.0, 1.0
    for _ in range(
        50
    ):  # never at 0 or 1, where a token that only one of the models deems possible would divide by 0
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if np.sum((a - b) / (middle * a + (1 - middle) * b)) > 0
            else (low, middle)
        )
    return (low + high) / 2


def perplexity(probabilities: np.ndarray) -> float:
    """exp of the mean of -log p, of tokens' probabilities [n]; infinite if one is 0.  Raises ValueError for none, or others."""
    with np.errstate(divide="ignore"):
        return float(np.exp(-np.mean(np.log(_checked(probabilities)))))


def _checked(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, np.float64)
    if (
        p.ndim != 1 or not p.size or not ((p >= 0) & (p <= 1 + 1e-6)).all()
    ):  # sums of float32 may round to more than 1
        raise ValueError(
            f"probabilities must be [n] within [0, 1], of at least one token; these have shape {p.shape}"
        )
    return p


def _stream(documents: Sequence[np.ndarray], vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, with a begin symbol before each document, and the position before each: a begin symbol's is its own."""
    documents = [np.asarray(document) for document in documents]
    if not documents:
        raise ValueError("there are no documents")
    for index, document in enumerate(documents):
        if document.ndim != 1 or not document.size or not np.issubdtype(document.dtype, np.integer):
            raise ValueError(
                f"document {index} must be [length] integers, not empty, not {document.dtype} {document.shape}"
            )
        if document.min() < 0 or document.max() >= vocabulary:
            raise ValueError(
                f"document {index} has tokens {document.min()}..{document.max()}, not in 0..{vocabulary - 1}"
            )
    words = np.concatenate(
        [
            part.astype(np.int64)
            for document in documents
            for part in (np.array([vocabulary]), document)
        ]
    )
    return words, np.arange(len(words)) - (words != vocabulary)


def _level(keys: np.ndarray, contexts: np.ndarray, number: int, counts: np.ndarray) -> Level:
    """keys, contexts (their ids, of `number`) and counts: [n-grams]; the count of what is not predicted is 0."""
    discounts = np.array(FALLBACK)
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=5)[1:5].tolist()
    if n1 * n2 * n3 * n4:
        y = n1 / (n1 + 2 * n2)
        estimates = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if (estimates > 0).all():  # which they are below 1, 2 and 3
            discounts = estimates
    taken = np.append(0.0, discounts)[np.minimum(counts, 3)]
    totals, left = np.bincount(contexts, counts, number), np.bincount(contexts, taken, number)
    backoff = np.divide(
        left, totals, out=np.ones(number), where=totals > 0
    )  # nothing follows what only ends a document
    return Level(
        keys,
        np.append((counts - taken) / totals[contexts], 0.0),
        np.append(backoff, 1.0),
        discounts,
    )
