"""How near captions are to what several people wrote: CIDEr-D and ROUGE-L, as COCO's evaluation computes them.

CIDEr-D   100 * 10 / 4 sum_n mean_r exp(-(l(c) - l(r))^2 / (2 * 6^2)) min(g_n(c), g_n(r)) . g_n(r) / (|g_n(c)| |g_n(r)|)
          of n = 1 ... 4, a candidate c and its references r of l words; g_n weighs n words in a row by how often they occur
          times log(examples / examples that have them in a reference)          Vedantam, Zitnick, Parikh 2015
ROUGE-L   100 (1 + b^2) P R / (R + b^2 P), b = 1.2; P and R are the longest common subsequence over the words of the candidate
          and of a reference, each the greatest of all references               Lin 2004, equations 2 to 4

Both are in the units of papers: CIDEr-D from 0 to 1000 (COCO's own program prints a hundredth of it), ROUGE-L from 0 to 100.
Words are what lies between spaces: for numbers that compare with published ones tokenise both sides first, as COCO does (lower
case, no punctuation).  Of a whole corpus both are the mean of its examples.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDER, SIGMA, BETA = 4, 6.0, 1.2


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D [n], float64, from 0 to 1000, of a candidate for each example and one or more references of it.

    What every example has in a reference weighs nothing, so that a single example has 0.
    Raises ValueError unless each candidate has references.
    """
    _require_references(candidates, references)
    found_in = [
        set().union(*(found for text in own for found in _ngrams(text))) for own in references
    ]
    frequency = Counter(ngram for ngrams in found_in for ngram in ngrams)

    def weigh(text: str) -> list[dict[tuple[str, ...], float]]:
        # What no reference has weighs as much as what one has.
        return [
            {
                ngram: count * math.log(len(references) / max(frequency[ngram], 1))
                for ngram, count in found.items()
            }
            for found in _ngrams(text)
        ]

    def similarity(candidate: str, reference: str) -> float:
        apart = len(candidate.split()) - len(reference.split())
        cosines = map(_clipped_cosine, weigh(candidate), weigh(reference))
        return 1000 * math.exp(-(apart**2) / (2 * SIGMA**2)) * sum(cosines) / ORDER

    pairs = zip(candidates, references, strict=True)
    return np.array(
        [np.mean([similarity(text, reference) for reference in own]) for text, own in pairs]
    )


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L [n], float64, from 0 to 100, of a candidate for each example and one or more references of it.

    Raises ValueError unless each candidate has references.
    """
    _require_references(candidates, references)
    scores = []
    for candidate, own in zip(candidates, references, strict=True):
        words = candidate.split()
        common = [
            (_longest_common(words, reference.split()), len(reference.split())) for reference in own
        ]
        precision = max(length for length, _ in common) / max(len(words), 1)
        recall = max(length / max(size, 1) for length, size in common)
        # Where one is 0 so is the other.
        scores.append(
            100 * (1 + BETA**2) * precision * recall / ((recall + BETA**2 * precision) or 1)
        )
    return np.array(scores)


def _require_references(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    without = [index for index, own in enumerate(references) if isinstance(own, str) or not own]
    if not candidates or len(candidates) != len(references) or without:
        which = f", of which {without[0]} has {references[without[0]]!r}" if without else ""
        found = f"{len(candidates)} candidates, references of {len(references)}{which}"
        raise ValueError(
            f"{found}; expected one or more candidates, and for each a list of one or more references"
        )


def _ngrams(text: str) -> list[Counter[tuple[str, ...]]]:
    """How often each row of 1 ... ORDER words occurs."""
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
    """Words of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = lengths.copy()
        for end, word_there in enumerate(other, 1):
            lengths[end] = (
                before[end - 1] + 1 if word == word_there else max(before[end], lengths[end - 1])
            )
    return lengths[-1]
