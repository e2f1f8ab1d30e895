"""Kneser-Ney n-grams against the paper's formulas with dictionaries, by hand, and on Brown."""

import collections
import os
import pathlib

import numpy as np
import pytest

from evals import ngrams

BROWN = pathlib.Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere").absolute() / "brown"
needs_brown = pytest.mark.skipif(
    not BROWN.is_dir(), reason="needs $ZOO_DATA_DIR/brown; ZOO_DATA_DIR is not set, or has none"
)


def streams(seed, vocabulary, lengths, zipf=1.2):
    """Documents of first-order dependent words with frequencies as in natural text."""
    generator = np.random.default_rng(seed)
    p = 1 / np.arange(1, vocabulary + 1) ** zipf
    documents = []
    for length in lengths:
        words = generator.choice(vocabulary, length, p=p / p.sum())
        for t in range(1, length):
            if generator.random() < 0.5:
                words[t] = (3 * words[t - 1] + 1) % vocabulary
        documents.append(words)
    return documents


class Dictionaries:
    """The formulas of section 3 of the paper, n-gram by n-gram."""

    def __init__(self, documents, vocabulary, order):
        self.vocabulary, self.order = vocabulary, order
        self.counts = {length: collections.Counter() for length in range(1, order + 1)}
        preceding = collections.defaultdict(set)
        for document in documents:
            padded = ["begin"] * (order - 1) + [int(word) for word in document]
            for end in range(order, len(padded) + 1):
                self.counts[order][tuple(padded[end - order : end])] += 1
                for length in range(1, order):
                    preceding[tuple(padded[end - length : end])].add(padded[end - length - 1])
        for ngram, words in preceding.items():
            self.counts[len(ngram)][ngram] = len(words)
        self.after = collections.defaultdict(list)
        for counts in self.counts.values():
            for ngram, count in counts.items():
                self.after[ngram[:-1]].append(count)
        self.discounts = {
            length: self.closed_form(counts.values()) for length, counts in self.counts.items()
        }

    def closed_form(self, counts):
        n = collections.Counter(counts)
        if 0 in (n[1], n[2], n[3], n[4]):
            return {0: 0, 1: 0.5, 2: 1.0, 3: 1.5}
        y = n[1] / (n[1] + 2 * n[2])
        d = {j: j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3)}
        return {0: 0} | (d if min(d.values()) > 0 else {1: 0.5, 2: 1.0, 3: 1.5})

    def probability(self, context, word):
        context = tuple(context)
        lower = self.probability(context[1:], word) if context else 1 / self.vocabulary
        after = self.after.get(context, [])
        if not after:
            return lower
        discount, total = self.discounts[len(context) + 1], sum(after)
        gamma = (
            discount[1] * sum(count == 1 for count in after)
            + discount[2] * sum(count == 2 for count in after)
            + discount[3] * sum(count >= 3 for count in after)
        ) / total
        count = self.counts[len(context) + 1][(*context, word)]
        return max(count - discount[min(count, 3)], 0) / total + gamma * lower

    def probabilities(self, document):
        padded = ["begin"] * (self.order - 1) + [int(word) for word in document]
        return [
            self.probability(padded[t : t + self.order - 1], padded[t + self.order - 1])
            for t in range(len(document))
        ]


@pytest.mark.parametrize(
    ("vocabulary", "lengths"),
    [(30, [300, 1, 200, 2]), (9, [400]), (200, [400] * 5), (5, [3, 1]), (1, [3]), (40, [7] * 60)],
)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_paper(vocabulary, lengths, order):
    documents = streams(0, vocabulary, lengths)
    model, plain = (
        ngrams.fit(documents, vocabulary, order),
        Dictionaries(documents, vocabulary, order),
    )
    assert len(model.levels) == order
    for length, level in enumerate(model.levels, 1):
        np.testing.assert_allclose(
            level.discounts, [plain.discounts[length][j] for j in (1, 2, 3)], rtol=1e-12
        )
    unseen = np.random.default_rng(1).integers(0, vocabulary, 200)
    for document in [
        *documents[:4],
        *streams(2, vocabulary, [100, 1]),
        unseen,
        np.zeros(1, np.uint8),
    ]:
        found = ngrams.probabilities(model, document)
        assert (found > 0).all()
        np.testing.assert_allclose(found, plain.probabilities(document), rtol=1e-12)


def test_discounts_are_both_of_the_counts_and_of_the_fallback_here():
    """The previous test covers both; a fallback for one order leaves the others alone."""
    wide, narrow = (
        ngrams.fit(streams(0, v, lengths), v, 3) for v, lengths in ((200, [400] * 5), (5, [3, 1]))
    )
    for level in wide.levels:
        assert not np.isin(level.discounts, ngrams.FALLBACK).any()
        assert (level.discounts < [1, 2, 3]).all()
    for level in narrow.levels:
        np.testing.assert_array_equal(level.discounts, ngrams.FALLBACK)
    mixed = ngrams.fit(streams(0, 9, [400]), 9, 3)
    assert [tuple(level.discounts) == ngrams.FALLBACK for level in mixed.levels] == [
        True,
        True,
        False,
    ]
    # 12 words once, 6 twice, 16 three times and 1 four times: D2 = 2 - 3 * 12 / 24 * 16 / 6 is -2
    repeated = np.repeat(np.arange(35), np.repeat([1, 2, 3, 4], [12, 6, 16, 1]))
    assert tuple(ngrams.fit([repeated], 35, 1).levels[0].discounts) == ngrams.FALLBACK


def test_probabilities_by_hand():
    """0 1 0 has bigrams begin 0, 0 1, 1 0; 0 follows two words, 1 one; all discounts fall back."""
    model = ngrams.fit([np.array([0, 1, 0])], 2, 2)
    zero, one = (2 - 1) / 3 + (1 + 0.5) / 3 / 2, (1 - 0.5) / 3 + (1 + 0.5) / 3 / 2
    np.testing.assert_allclose(
        ngrams.probabilities(model, np.array([0, 1, 1, 0])),
        [(1 - 0.5) + 0.5 * zero, (1 - 0.5) + 0.5 * one, 0.5 * one, (1 - 0.5) + 0.5 * zero],
        rtol=1e-14,
    )


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_distributions_sum_to_one(order):
    vocabulary = 31  # one is never seen
    documents = [*streams(3, vocabulary - 1, [300, 50]), np.array([7])]
    model = ngrams.fit(documents, vocabulary, order)
    ends = documents[1][-order:]  # of a document, after which nothing need follow
    for context in (
        [],
        documents[0][:1],
        documents[0][:9],
        documents[0][100:104],
        ends,
        [30],
        [30, 30, 5],
        [7],
        [29] * 6,
    ):
        following = [
            ngrams.probabilities(model, np.array([*context, word], int), start=len(context))
            for word in range(vocabulary)
        ]
        assert np.shape(following) == (vocabulary, 1)
        np.testing.assert_allclose(np.sum(following), 1, rtol=1e-13)


def test_probabilities_depend_on_the_context_only():
    documents = streams(4, 20, [400, 60])
    model = ngrams.fit(documents, 20, 3)
    whole = ngrams.probabilities(model, documents[0])
    for start in (0, 1, 17, 400):
        np.testing.assert_array_equal(
            ngrams.probabilities(model, documents[0], start), whole[start:]
        )
    np.testing.assert_array_equal(
        ngrams.probabilities(model, documents[0][100:], start=2), whole[102:]
    )


def test_bad_input_is_refused():
    good = np.array([0, 1, 2])
    model = ngrams.fit([good], 3, 2)
    for documents, message in (
        ([], "no documents"),
        ([good, good[:0]], "document 1 must be .* not empty"),
        ([good.astype(float)], "integers.*float64"),
        ([good[None]], "document 0 must be"),
        ([good, good + 1], r"document 1 has tokens 1\.\.3, not in 0\.\.2"),
        ([good - 1], r"tokens -1\.\.1"),
    ):
        with pytest.raises(ValueError, match=message):
            ngrams.fit(documents, 3, 2)
        if len(documents) == 1:
            with pytest.raises(ValueError, match=message):
                ngrams.probabilities(model, documents[0])
    for vocabulary, order in ((3, 0), (0, 2)):
        with pytest.raises(
            ValueError, match=f"vocabulary {vocabulary} and order {order} must be at least 1"
        ):
            ngrams.fit([good], vocabulary, order)
    for start in (-1, 4):
        with pytest.raises(ValueError, match=f"start is {start}"):
            ngrams.probabilities(model, good, start)


# ---------------------------------------------------------------- mixtures


def test_the_mixture_weight_is_the_best_of_a_grid():
    generator = np.random.default_rng(0)
    grid = np.linspace(0, 1, 100_001)
    for a, b in (
        generator.uniform(0.01, 1, [2, 40]),
        generator.uniform(0.01, 1, [2, 40]) * [[1.0], [0.7]],
        np.array([[0.5, 0.0, 0.9], [0.5, 0.9, 0.0]]),
        np.array([[0.2, 0.3], [0.1, 0.2]]),
        np.array([[0.1, 0.2], [0.2, 0.3]]),
    ):
        with np.errstate(divide="ignore"):
            likelihoods = sum(np.log(grid * x + (1 - grid) * y) for x, y in zip(a, b, strict=True))
        np.testing.assert_allclose(
            ngrams.interpolate(a, b), grid[np.argmax(likelihoods)], atol=1e-5
        )
        np.testing.assert_allclose(
            ngrams.interpolate(b, a), 1 - ngrams.interpolate(a, b), atol=1e-12
        )
    np.testing.assert_allclose(
        ngrams.interpolate(np.array([1, 1, 0]), np.array([0, 0, 1])), 2 / 3, atol=1e-14
    )


def test_perplexity_is_the_inverse_of_the_geometric_mean():
    np.testing.assert_allclose(ngrams.perplexity(np.array([1 / 2, 1 / 8])), 4)
    assert ngrams.perplexity(np.array([0.5, 0.0])) == np.inf
    np.testing.assert_allclose(ngrams.perplexity(np.array([1 + 1e-7])), 1, rtol=1e-6)


def test_mismatched_probabilities_are_refused():
    half = np.full(3, 0.5)
    for a, b, message in (
        (half, half[:2], "different tokens"),
        (half[:0], half[:0], "at least one token"),
        (half + 1, half, r"within \[0, 1\]"),
        (half, half * np.nan, r"within \[0, 1\]"),
        (np.array([0.5, 0.0]), np.array([0.5, 0.0]), "probability 0 in both"),
    ):
        with pytest.raises(ValueError, match=message):
            ngrams.interpolate(a, b)
    with pytest.raises(ValueError, match="at least one token"):
        ngrams.perplexity(half[:0])


# ---------------------------------------------------------------- a corpus


@needs_brown
def test_trigrams_beat_bigrams_on_brown_and_the_mixture_beats_both():
    """On its newspaper texts, 44 files of about 2000 words."""
    texts = [
        [word.rpartition("/")[0] for word in path.read_text("latin-1").split()]
        for path in sorted(BROWN.glob("ca[0-4][0-9]"))
    ]
    assert len(texts) == 44
    held_out, training = texts[::10], [text for index, text in enumerate(texts) if index % 10]
    frequent = [
        word
        for word, count in collections.Counter(word for text in training for word in text).items()
        if count > 3
    ]
    ids = {word: index for index, word in enumerate(frequent, 1)}
    training, held_out = (
        [np.array([ids.get(word, 0) for word in text]) for text in part]
        for part in (training, held_out)
    )
    found = {}
    for order in (1, 2, 3):
        model = ngrams.fit(training, len(ids) + 1, order)
        found[order] = np.concatenate([ngrams.probabilities(model, text) for text in held_out])
    perplexities = {order: ngrams.perplexity(p) for order, p in found.items()}
    assert perplexities[1] > 1.5 * perplexities[2]
    assert perplexities[2] > 1.01 * perplexities[3]
    weight = ngrams.interpolate(found[3], found[2])
    assert 0.5 < weight < 1
    assert ngrams.perplexity(weight * found[3] + (1 - weight) * found[2]) < perplexities[3]
