"""Caption metrics with several references: CIDEr-D and ROUGE-L, computed as in COCO's evaluation.

CIDEr-D (Vedantam, Zitnick, Parikh 2015)

    100 * 10 / 4 sum_n mean_r exp(-(l(c) - l(r))^2 / (2 * 6^2))
                              min(g_n(c), g_n(r)) . g_n(r) / (|g_n(c)| |g_n(r)|)

    for n = 1 ... 4, a candidate c and its references r; l is the number of words.  g_n is the
    vector of TF-IDF weights of n-grams: their count times
    log(examples / examples with the n-gram in a reference).

ROUGE-L (Lin 2004, equations 2 to 4)

    100 (1 + b^2) P R / (R + b^2 P), b = 1.2

    P and R are the length of the longest common subsequence divided by the number of words in the
    candidate and in the reference; each is the maximum over the references.

Both are in the units that papers use: CIDEr-D from 0 to 1000 (COCO's program prints a hundredth of
this), ROUGE-L from 0 to 100.  Words are separated by spaces: to compare with published numbers,
first tokenise both sides as COCO does (lower case, no punctuation).  The score of a corpus is the
mean over its examples.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDER, SIGMA, BETA = 4, 6.0, 1.2


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each example [n], float64, from 0 to 1000.

    There are one candidate and one or more references for each example.  N-grams that occur in the
    references of every example have weight 0, so the score of a single example is 0.
    Raises ValueError unless each candidate has references.
    """
    _require_references(candidates, references)
    ngrams_of = [
        set().union(*(counts for text in reference_texts for counts in _ngrams(text)))
        for reference_texts in references
    ]
    frequency = Counter(ngram for ngrams in ngrams_of for ngram in ngrams)

    def weigh(text: str) -> list[dict[tuple[str, ...], float]]:
        # An n-gram without a document frequency is treated as one with a frequency of 1.
        return [
            {
                ngram: count * math.log(len(references) / max(frequency[ngram], 1))
                for ngram, count in counts.items()
            }
            for counts in _ngrams(text)
        ]

    def similarity(candidate: str, reference: str) -> float:
        apart = len(candidate.split()) - len(reference.split())
        cosines = map(_clipped_cosine, weigh(candidate), weigh(reference))
        return 1000 * math.exp(-(apart**2) / (2 * SIGMA**2)) * sum(cosines) / ORDER

    pairs = zip(candidates, references, strict=True)
    return np.array(
        [
            np.mean([similarity(text, reference) for reference in reference_texts])
            for text, reference_texts in pairs
        ]
    )


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L of each example [n], float64, from 0 to 100.

    There are one candidate and one or more references for each example.
    Raises ValueError unless each candidate has references.
    """
    _require_references(candidates, references)
    scores = []
    for candidate, reference_texts in zip(candidates, references, strict=True):
        words = candidate.split()
        common = [
            (_longest_common(words, reference.split()), len(reference.split()))
            for reference in reference_texts
        ]
        precision = max(length for length, _ in common) / max(len(words), 1)
        recall = max(length / max(size, 1) for length, size in common)
        # If one of them is 0, so is the other; "or 1" then avoids a division by 0.
        scores.append(
            100 * (1 + BETA**2) * precision * recall / ((recall + BETA**2 * precision) or 1)
        )
    return np.array(scores)


def _require_references(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    without = [
        index for index, texts in enumerate(references) if isinstance(texts, str) or not texts
    ]
    if not candidates or len(candidates) != len(references) or without:
        example = f"; example {without[0]} has {references[without[0]]!r}" if without else ""
        given = f"{len(candidates)} candidates, references for {len(references)} examples{example}"
        raise ValueError(
            f"{given}; expected one or more candidates, and for each a list of one or more "
            "references"
        )


def _ngrams(text: str) -> list[Counter[tuple[str, ...]]]:
    """Counts of the n-grams of each order 1 ... ORDER."""
    words = text.split()
    return [
        Counter(zip(*(words[first:] for first in range(n)), strict=False))
        for n in range(1, ORDER + 1)
    ]


def _clipped_cosine(
    candidate: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]
) -> float:
    shared = candidate.keys() & reference.keys()
    product = math.fsum(
        min(candidate[ngram], reference[ngram]) * reference[ngram] for ngram in shared
    )
    norms = math.hypot(*candidate.values()) * math.hypot(*reference.values())
    return product / norms if norms else 0.0


def _longest_common(one: list[str], other: list[str]) -> int:
    """Length, in words, of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = lengths.copy()
        for end, word_there in enumerate(other, 1):
            lengths[end] = (
                before[end - 1] + 1 if word == word_there else max(before[end], lengths[end - 1])
            )
    return lengths[-1]
