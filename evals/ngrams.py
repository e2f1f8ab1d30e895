"""n-gram language models with interpolated modified Kneser-Ney smoothing: the classical baseline.

The formulas are those of Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language
Modeling" (1998, Harvard TR-10-98), section 3.  With c the count of an n-gram, t the sum of c over
all words after the same context, and D the discounts,

    p(word | context) = (c - D(c)) / t + backoff(context) p(word | context without its first word)
    backoff(context) = (D1 N1 + D2 N2 + D3 N3) / t

where Nj is the number of n-grams with this context and c = j (c >= 3 for N3).

Counts of the highest order are numbers of occurrences; counts of lower orders are the number of
different words that precede the n-gram.  The lowest order is interpolated with the uniform
distribution.  After an unseen context, the lower order is used unchanged.

A document is a stream of tokens 0..vocabulary - 1, one of which ends a sentence.  It is preceded by
as many begin symbols, `vocabulary`, as a context is long.  The begin symbol occurs in contexts, but
has no count of its own, because it is never predicted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts D1, D2, D3+ where counts do not determine them, as kenlm's `--discount_fallback`."""


class Level(NamedTuple):
    """The n-grams of one order, with ids 0, 1, ...

    The key of an n-gram is (id of its context) * (vocabulary + 1) + its last word.
    """

    keys: np.ndarray
    """[n-grams] int64, sorted; the index is the id."""
    kept: np.ndarray
    """[n-grams + 1] (c - D(c)) / t; the last element, 0, is for unseen n-grams (id -1)."""
    backoff: np.ndarray
    """[contexts + 1] weight of the lower order; the last element, 1, is for unseen contexts."""
    discounts: np.ndarray
    """[3] D1, D2, D3+."""


class KneserNey(NamedTuple):
    """A fitted model; its order is the number of levels."""

    vocabulary: int
    levels: tuple[Level, ...]
    """From order 1 up."""


def fit(documents: Sequence[np.ndarray], vocabulary: int, order: int) -> KneserNey:
    """Fits n-grams up to `order` to documents, each [length] integers in 0..vocabulary - 1.

    An order uses the `FALLBACK` discounts if no n-gram has one of the counts 1, 2, 3 or 4, or if a
    discount Dj is outside of (0, j).  Every probability is positive.
    Raises ValueError without documents, for empty documents, for tokens out of range, and for an
    order below 1.
    """
    if vocabulary < 1 or order < 1:
        raise ValueError(f"vocabulary {vocabulary} and order {order} must be at least 1")
    words, previous = _stream(documents, vocabulary)
    # ids: of the n-gram that ends at each position; the empty n-gram has id 0.
    ids, lengths = np.zeros_like(words), []
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
        # Each n-gram of this order adds one preceding word to its suffix, the n-gram without its
        # first word.  Every shorter n-gram is such a suffix.
        counts = np.bincount(shorter, counts > 0).astype(np.int64)
    return KneserNey(vocabulary, tuple(reversed(levels)))


def probabilities(model: KneserNey, document: np.ndarray, start: int = 0) -> np.ndarray:
    """p of each token of a document given the order - 1 preceding ones: [length - start] float64.

    Tokens before `start` serve only as context.
    Raises ValueError for an empty document, tokens out of range, or a start outside of 0..length.
    """
    words, previous = _stream([document], model.vocabulary)
    if not 0 <= start < len(words):
        raise ValueError(
            f"start is {start}; it must be in 0..{len(words) - 1}, the length of the document"
        )
    ids, p = np.zeros_like(words), np.full(len(words), 1 / model.vocabulary)
    for level in model.levels:
        contexts = ids[previous]
        # If the context is unseen (-1), the key is negative, so it is not found.
        keys = contexts * (model.vocabulary + 1) + words
        # Never out of bounds: the key of begin symbols alone is the largest, and always present.
        ids = np.searchsorted(level.keys, keys)
        ids = np.where(level.keys[ids] == keys, ids, -1)
        p = level.kept[ids] + level.backoff[contexts] * p
    return p[1 + start :]


def interpolate(a: np.ndarray, b: np.ndarray) -> float:
    """The weight w in [0, 1] that maximises the likelihood of w a + (1 - w) b.

    a, b: the probabilities [n] of the same tokens under two models.
    The log-likelihood is concave in w, so bisection of its slope finds w, to 1e-15; 0 if all
    weights are equally good.
    Raises ValueError for different shapes, no tokens, values outside of [0, 1], or a token with
    probability 0 under both models.
    """
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(f"probabilities of different tokens: shapes {a.shape} and {b.shape}")
    if not np.maximum(a, b).all():
        raise ValueError(
            "a token has probability 0 in both models: no mixture of them is better than another"
        )

    low, high = 0.0, 1.0
    # `middle` is never 0 or 1, where a token with probability 0 under one model would divide by 0.
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if np.sum((a - b) / (middle * a + (1 - middle) * b)) > 0
            else (low, middle)
        )
    return (low + high) / 2


def perplexity(probabilities: np.ndarray) -> float:
    """exp of the mean of -log p, for probabilities [n] of tokens; infinite if one of them is 0.

    Raises ValueError without tokens, or for values outside of [0, 1].
    """
    with np.errstate(divide="ignore"):
        return float(np.exp(-np.mean(np.log(_checked(probabilities)))))


def _checked(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, np.float64)
    # The tolerance allows for sums of float32 that round to more than 1.
    if p.ndim != 1 or not p.size or not ((p >= 0) & (p <= 1 + 1e-6)).all():
        raise ValueError(
            "probabilities must be [n] within [0, 1], of at least one token; "
            f"these have shape {p.shape}"
        )
    return p


def _stream(documents: Sequence[np.ndarray], vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, with a begin symbol before each document, and the position that precedes each.

    The position that precedes a begin symbol is its own.
    """
    documents = [np.asarray(document) for document in documents]
    if not documents:
        raise ValueError("there are no documents")
    for index, document in enumerate(documents):
        if document.ndim != 1 or not document.size or not np.issubdtype(document.dtype, np.integer):
            raise ValueError(
                f"document {index} must be [length] integers, not empty, "
                f"not {document.dtype} {document.shape}"
            )
        if document.min() < 0 or document.max() >= vocabulary:
            raise ValueError(
                f"document {index} has tokens {document.min()}..{document.max()}, "
                f"not in 0..{vocabulary - 1}"
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
    """The n-grams of one order, from their keys, context ids and counts, each [n-grams].

    number: number of contexts.  N-grams that are never predicted have count 0.
    """
    discounts = np.array(FALLBACK)
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=5)[1:5].tolist()
    if n1 * n2 * n3 * n4:
        y = n1 / (n1 + 2 * n2)
        estimates = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if (estimates > 0).all():  # they are always below 1, 2 and 3
            discounts = estimates
    taken = np.append(0.0, discounts)[np.minimum(counts, 3)]
    totals, left = np.bincount(contexts, counts, number), np.bincount(contexts, taken, number)
    # The total is 0 for a context that only occurs at the end of a document.
    backoff = np.divide(left, totals, out=np.ones(number), where=totals > 0)
    return Level(
        keys,
        np.append((counts - taken) / totals[contexts], 0.0),
        np.append(backoff, 1.0),
        discounts,
    )
