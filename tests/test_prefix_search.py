"""Prefix beam search against enumeration of all alignments, and a search with dictionaries."""

import collections
import doctest
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.parts import prefix_search
from zoo.parts.prefix_search import Bigram

SPACE = 3
SPELLINGS = ((1,), (1, 2), (2, 1), (2, 2, 1))  # of four labels; the first begins the second
SENTENCES = ((0, 1, 2), (2, 0), (0, 0, 3), (1,), ())


def draw(seed, batch, time, labels, sharpness=1.5, impossible=0.0):
    """Random log p, float64.  impossible: share of labels other than the blank with p = 0."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (batch, time, labels))
    logits[:, :, 1:][rng.random((batch, time, labels - 1)) < impossible] = -np.inf
    return logits - np.log(np.sum(np.exp(logits), axis=2, keepdims=True))


def log_add(a, b):
    return float(np.logaddexp(a, b))


def words_of(labels, spellings):
    """The words that labels spell, or None: no words, or a space too many."""
    words, spelling = [], []
    for label in (*labels, SPACE) if labels else ():
        if label == SPACE:
            if tuple(spelling) not in spellings:
                return None
            words.append(spellings.index(tuple(spelling)))
            spelling = []
        else:
            spelling.append(label)
    return words


def words_score(words, ended, bigram, weight, bonus):
    """The language model's part of a score; `ended`: whether the sentence is complete."""
    score = bonus * len(words)
    if bigram is not None:
        path = [len(SPELLINGS), *words] + [len(SPELLINGS)] * ended
        score += weight * sum(
            float(bigram.log_p[pair]) for pair in itertools.pairwise(path) if len(path) > 1
        )
    return score


def enumerate_all(log_p, spellings=None, bigram=None, weight=0.0, bonus=0.0):
    """{labels: score} of every label sequence, by enumeration of all alignments [time, labels]."""
    sums = collections.defaultdict(float)
    for path in itertools.product(range(log_p.shape[1]), repeat=len(log_p)):
        collapsed = tuple(label for label, _ in itertools.groupby(path) if label)
        sums[collapsed] += math.exp(sum(log_p[t, label] for t, label in enumerate(path)))
    scores = {labels: math.log(p) for labels, p in sums.items() if p > 0}
    if spellings is None:
        return scores
    split = {labels: words_of(labels, spellings) for labels in scores}
    return {
        labels: scores[labels] + words_score(words, True, bigram, weight, bonus)
        for labels, words in split.items()
        if words is not None
    }


class Dictionaries:
    """Prefix beam search with dictionaries, of one utterance; `returns` counts a rare event."""

    def __init__(self, beam, longest=99, spellings=None, bigram=None, weight=0.0, bonus=0.0):
        self.beam, self.longest, self.spellings = beam, longest, spellings
        self.score_words = functools.partial(words_score, bigram=bigram, weight=weight, bonus=bonus)
        self.returns = 0

    def may_follow(self, prefix):
        if self.spellings is None:
            return True
        *complete, rest = "".join(map(str, prefix)).split(str(SPACE))
        known = ["".join(map(str, spelling)) for spelling in self.spellings]
        return all(word in known for word in complete) and any(
            word.startswith(rest) for word in known
        )

    def part_of_words(self, prefix):
        if self.spellings is None or SPACE not in prefix:
            return 0.0
        last_space = len(prefix) - 1 - prefix[::-1].index(SPACE)
        return self.score_words(words_of(prefix[:last_space], self.spellings), False)

    def search(self, log_p):
        """[(labels, score)], best first."""
        before = {(): (0.0, -np.inf)}
        for frame in log_p:
            after = collections.defaultdict(lambda: [-np.inf, -np.inf])
            for prefix, (blank, label) in before.items():
                total = log_add(blank, label)
                after[prefix][0] = log_add(after[prefix][0], total + frame[0])
                if prefix:
                    stay = label + frame[prefix[-1]]
                    after[prefix][1] = log_add(after[prefix][1], stay)
                for c in range(1, len(frame)):
                    extended = (*prefix, c)
                    if len(extended) > self.longest or not self.may_follow(extended):
                        continue
                    source = blank if prefix[-1:] == (c,) else total
                    after[extended][1] = log_add(after[extended][1], source + frame[c])
            ranked = sorted(after, key=lambda one: -log_add(*after[one]) - self.part_of_words(one))
            kept = {one: after[one] for one in ranked[: self.beam] if max(after[one]) > -np.inf}
            # A prefix that had left the beam, and is found again while a longer one is in it.
            self.returns += sum(
                one not in before and any(other[: len(one)] == one for other in before)
                for one in kept
            )
            before = kept
        scores = {one: log_add(*sums) for one, sums in before.items()}
        if self.spellings is not None:
            split = {one: words_of(one, self.spellings) for one in scores}
            scores = {
                one: scores[one] + self.score_words(words, True)
                for one, words in split.items()
                if words is not None
            }
        return sorted(scores.items(), key=lambda item: -item[1])


def as_lists(found):
    """[[(labels, score)]] of a result, without unused places."""
    found = jax.tree.map(np.asarray, found)
    batch, beam, longest = found.labels.shape
    assert (found.labels[np.arange(longest) >= found.lengths[:, :, None]] == 0).all()
    assert (found.lengths[found.scores == -np.inf] == 0).all()
    return [
        [
            (tuple(found.labels[b, i, : found.lengths[b, i]].tolist()), float(found.scores[b, i]))
            for i in range(beam)
            if found.scores[b, i] > -np.inf
        ]
        for b in range(batch)
    ]


def assert_same(rows, expected, rtol=1e-9):
    """Both [[(labels, score)]], in the same order."""
    assert len(rows) == len(expected)
    for row, reference in zip(rows, expected, strict=True):
        assert [labels for labels, _ in row] == [labels for labels, _ in reference]
        np.testing.assert_allclose(
            [score for _, score in row], [score for _, score in reference], rtol=rtol, atol=1e-9
        )


def search(log_p, lengths=None, **options):
    """`prefix_search.search` of numpy arrays, by default of full length."""
    lengths = np.full(len(log_p), log_p.shape[1]) if lengths is None else lengths
    options = {"beam": 4, "longest": max(log_p.shape[1], 1), **options}
    return prefix_search.search(jnp.asarray(log_p), jnp.asarray(lengths, jnp.int32), **options)


def best_first(scores):
    return sorted(scores.items(), key=lambda item: -item[1])


LEXICON = prefix_search.lexicon(SPELLINGS, 4, SPACE)
LANGUAGE = prefix_search.bigram(SENTENCES, len(SPELLINGS))
MODELS = {
    "none": ({}, {}),
    "lexicon": ({"lexicon": LEXICON}, {"spellings": SPELLINGS}),
    "bonus": ({"lexicon": LEXICON, "word_bonus": 1.3}, {"spellings": SPELLINGS, "bonus": 1.3}),
    "bigram": (
        {"lexicon": LEXICON, "language": LANGUAGE, "language_weight": 0.7, "word_bonus": -0.4},
        {"spellings": SPELLINGS, "bigram": LANGUAGE, "weight": 0.7, "bonus": -0.4},
    ),
}
"""Options of the search, and the same for the references."""


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("impossible", [0.0, 0.4])
@pytest.mark.parametrize(("time", "labels"), [(1, 1), (1, 3), (2, 2), (3, 3), (4, 3), (5, 3)])
def test_a_wide_beam_finds_every_sequence_with_its_probability(time, labels, impossible):
    log_p = draw(time, 6, time, labels, impossible=impossible)
    expected = [best_first(enumerate_all(row)) for row in log_p]
    assert_same(as_lists(search(log_p, beam=50)), expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("impossible", [0.0, 0.3])
@pytest.mark.parametrize("model", ["lexicon", "bonus", "bigram"])
def test_a_wide_beam_with_a_lexicon_finds_every_sequence(model, impossible):
    options, reference = MODELS[model]
    log_p = draw(7, 5, 5, 4, impossible=impossible)
    expected = [best_first(enumerate_all(row, **reference)) for row in log_p]
    assert max(map(len, expected)) >= 8
    assert_same(as_lists(search(log_p, beam=150, **options)), expected)


@pytest.mark.usefixtures("x64")
def test_scores_are_the_loss_of_the_sequences():
    log_p, lengths = draw(3, 8, 7, 3), np.array([7, 6, 5, 4, 3, 2, 1, 0])
    found = search(log_p, lengths, beam=150)
    padding = (np.arange(7) >= lengths[:, None]).astype(float)
    for place in range(5):
        labels = np.asarray(found.labels[:, place])
        losses = optax.ctc_loss(
            jnp.asarray(log_p), jnp.asarray(padding), jnp.asarray(labels), labels == 0.0
        )
        used = np.asarray(found.scores[:, place]) > -np.inf
        assert used.sum() >= 6
        np.testing.assert_allclose(-found.scores[used, place], losses[used], rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("beam", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("model", MODELS)
def test_a_narrow_beam_is_that_of_dictionaries(model, beam):
    options, reference = MODELS[model]
    log_p = draw(beam, 12, 30, 4, sharpness=1.0, impossible=0.1)
    oracle = Dictionaries(beam, **reference)
    expected = [oracle.search(row) for row in log_p]
    assert_same(as_lists(search(log_p, beam=beam, **options)), expected)
    assert oracle.returns > 0 or beam < 3 or model != "none"


@pytest.mark.usefixtures("x64")
def test_many_labels_and_a_wide_beam():
    log_p = draw(1, 3, 25, 20, sharpness=2.5)
    assert_same(as_lists(search(log_p, beam=25)), [Dictionaries(25).search(row) for row in log_p])


@pytest.mark.usefixtures("x64")
def test_scores_of_a_narrow_beam_are_lower_bounds():
    log_p = draw(5, 16, 12, 4)
    found = search(log_p, beam=6)
    labels = np.asarray(found.labels[:, 0])
    zeros = jnp.zeros(log_p.shape[:2])
    losses = optax.ctc_loss(jnp.asarray(log_p), zeros, jnp.asarray(labels), labels == 0.0)
    assert (np.asarray(found.scores[:, 0]) <= -np.asarray(losses) + 1e-9).all()
    wide = search(log_p, beam=200)
    assert (np.asarray(wide.scores[:, 0]) >= np.asarray(found.scores[:, 0]) - 1e-9).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("beam", [3, 50])
@pytest.mark.parametrize("longest", [1, 2, 3])
def test_prefixes_are_not_extended_beyond_the_longest(longest, beam):
    log_p = draw(longest, 6, 5, 3, sharpness=3.0)
    rows = as_lists(search(log_p, beam=beam, longest=longest))
    assert_same(rows, [Dictionaries(beam, longest).search(row) for row in log_p])
    if beam == 50:
        expected = [
            [one for one in best_first(enumerate_all(row)) if len(one[0]) <= longest]
            for row in log_p
        ]
        assert_same(rows, expected)


@pytest.mark.parametrize("model", ["none", "bigram"])
def test_padding_does_not_matter(model):
    log_p, lengths = draw(2, 6, 9, 4).astype(np.float32), np.array([9, 7, 4, 1, 0, 8])
    options = MODELS[model][0]
    rows = as_lists(search(log_p, lengths, beam=5, longest=9, **options))
    for content in (0.0, 1e9, -np.inf, np.nan):
        other = log_p.copy()
        other[np.arange(9) >= lengths[:, None]] = content
        assert as_lists(search(other, lengths, beam=5, longest=9, **options)) == rows
    for b in (2, 5):
        length = lengths[b]
        alone = search(log_p[b : b + 1, :length], beam=5, longest=9, **options)
        assert_same(as_lists(alone), rows[b : b + 1], rtol=1e-5)


@pytest.mark.parametrize("model", ["none", "bigram"])
def test_rows_do_not_influence_each_other(model):
    log_p = draw(4, 5, 8, 4).astype(np.float32)
    options = MODELS[model][0]
    rows = as_lists(search(log_p, **options))
    other = log_p.copy()
    other[[0, 1, 3, 4]] = draw(5, 4, 8, 4)
    lengths = np.array([0, 3, 8, 5, 8])
    assert as_lists(search(other, lengths, **options))[2] == rows[2]


@pytest.mark.parametrize("time", [0, 3])
def test_an_utterance_without_frames_is_empty(time):
    log_p = draw(0, 2, time, 4).astype(np.float32)
    assert as_lists(search(log_p, np.zeros(2), beam=3)) == [[((), 0.0)]] * 2
    with_words = as_lists(search(log_p, np.zeros(2), beam=3, **MODELS["bigram"][0]))
    end_first = 0.7 * float(LANGUAGE.log_p[-1, -1])
    assert_same(with_words, [[((), end_first)]] * 2, rtol=1e-6)


def test_an_utterance_of_no_complete_word_has_no_score():
    log_p = np.full((1, 1, 4), -np.inf, np.float32)
    log_p[0, 0, 2] = 0  # begins a word, and no word is complete after it
    found = search(log_p, beam=3, lexicon=LEXICON)
    assert np.all(found.scores == -np.inf)
    assert not np.any(found.lengths)
    assert as_lists(search(log_p, beam=3)) == [[((2,), 0.0)]]


def test_a_repeated_label_needs_a_blank_in_between():
    sure = np.log(np.maximum(np.eye(2)[[1, 1, 0, 1, 1]], 1e-30))[None].astype(np.float32)
    assert as_lists(search(sure, beam=2))[0][0][0] == (1, 1)
    sure = np.log(np.maximum(np.eye(2)[[1, 1, 1, 1, 1]], 1e-30))[None].astype(np.float32)
    assert as_lists(search(sure, beam=2))[0][0][0] == (1,)


@pytest.mark.parametrize("model", ["none", "bigram"])
def test_jit_gives_the_same(model):
    options = MODELS[model][0]
    log_p, lengths = draw(6, 3, 4, 4).astype(np.float32), jnp.array([4, 2, 3])
    run = functools.partial(prefix_search.search, beam=3, longest=4, **options)
    rows = as_lists(run(jnp.asarray(log_p), lengths))
    assert as_lists(jax.jit(run)(log_p, lengths)) == rows
    with jax.disable_jit():
        assert_same(as_lists(run(jnp.asarray(log_p), lengths)), rows, rtol=1e-5)


def test_other_lengths_and_weights_are_not_compiled_again():
    traced = 0

    @jax.jit
    def run(log_p, lengths, lexicon, language, weight, bonus):
        nonlocal traced
        traced += 1
        return prefix_search.search(
            log_p,
            lengths,
            beam=3,
            longest=4,
            lexicon=lexicon,
            language=language,
            language_weight=weight,
            word_bonus=bonus,
        )

    log_p = draw(6, 3, 4, 4).astype(np.float32)
    rows = [
        as_lists(run(log_p, np.array(lengths), LEXICON, LANGUAGE, weight, bonus))
        for lengths, weight, bonus in [([4, 2, 3], 0.5, 0.0), ([1, 0, 4], 2.0, -1.0)]
    ]
    assert traced == 1
    options = {"lexicon": LEXICON, "language": LANGUAGE, "beam": 3}
    direct = search(log_p, np.array([1, 0, 4]), language_weight=2.0, word_bonus=-1.0, **options)
    assert_same(rows[1], as_lists(direct), rtol=1e-5)


def test_scores_are_at_least_in_float32():
    log_p = jnp.asarray(draw(0, 2, 6, 4), jnp.bfloat16)
    found = search(log_p, **MODELS["bigram"][0])
    assert found.scores.dtype == jnp.float32
    assert found.labels.dtype == found.lengths.dtype == jnp.int32
    same = search(log_p.astype(jnp.float32), **MODELS["bigram"][0])
    assert as_lists(found) == as_lists(same)


def test_long_utterances_in_float32_are_those_in_float64():
    log_p = draw(8, 2, 300, 6, sharpness=3.0)
    single = as_lists(search(log_p.astype(np.float32), beam=8))
    with jax.enable_x64(True):
        double = as_lists(search(log_p.astype(np.float32).astype(float), beam=8))
    for row, reference in zip(single, double, strict=True):
        assert row[0][0] == reference[0][0]
        np.testing.assert_allclose(row[0][1], reference[0][1], rtol=1e-5)


def test_a_lexicon_is_a_trie():
    assert LEXICON.children.dtype == LEXICON.word.dtype == np.int32
    for index, spelling in enumerate(SPELLINGS):
        node = 0
        for label in spelling:
            node = LEXICON.children[node, label]
        assert LEXICON.word[node] == index
        assert LEXICON.children[node, SPACE] == 0
    # the root, 1, 1 2, 2, 2 1, 2 2, 2 2 1
    assert len(LEXICON.word) == 7
    assert sorted(LEXICON.word) == [-1, -1, -1, 0, 1, 2, 3]
    assert (LEXICON.children >= 0).sum() == 6 + len(SPELLINGS)


def test_a_bigram_has_witten_bell_probabilities():
    counts, followers = collections.Counter(), collections.defaultdict(set)
    for sentence in SENTENCES:
        path = ["start", *sentence, "end"]
        for pair in itertools.pairwise(path):
            counts[pair] += 1
            followers[pair[0]].add(pair[1])
    unigram = collections.Counter()
    for (_, word), count in counts.items():
        unigram[word] += count
    kinds, tokens = len(unigram), sum(unigram.values())
    log_p = prefix_search.bigram(SENTENCES, 5).log_p  # word 4 never occurs
    for row, before in enumerate([0, 1, 2, 3, 4, "start"]):
        total = sum(count for (first, _), count in counts.items() if first == before)
        n = len(followers[before])
        for column, word in enumerate([0, 1, 2, 3, 4, "end"]):
            lower = (unigram[word] + kinds / 6) / (tokens + kinds)
            p = (counts[before, word] + n * lower) / (total + n) if total else lower
            np.testing.assert_allclose(log_p[row, column], math.log(p), rtol=1e-5)


def test_rows_of_a_bigram_are_positive_and_sum_to_one():
    rng = np.random.default_rng(0)
    for words in (1, 2, 5, 30):
        sentences = [rng.integers(0, (words + 1) // 2, rng.integers(0, 5)) for _ in range(4)]
        log_p = prefix_search.bigram(sentences, words).log_p
        assert log_p.dtype == np.float32
        assert log_p.shape == (words + 1, words + 1)
        assert np.isfinite(log_p).all()
        np.testing.assert_allclose(np.exp(log_p.astype(float)).sum(1), 1, rtol=1e-5)


LOG_P, LENGTHS = jnp.zeros((2, 3, 4)), jnp.array([3, 1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beam": 0}, "beam=0, allowed: an integer, 1 or more"),
        ({"beam": True}, "beam=True, allowed"),
        ({"longest": 0}, "longest=0, allowed"),
        ({"log_probabilities": jnp.zeros((3, 4))}, "log_probabilities: shape"),
        ({"log_probabilities": jnp.zeros((2, 3, 0))}, "labels=0, allowed"),
        ({"lengths": jnp.array([1])}, "lengths: shape"),
        ({"lengths": jnp.array([1, 4])}, "lengths: values from 1 to 4, allowed: 0 to 3"),
        ({"lengths": jnp.array([-1, 3])}, "lengths: values from -1"),
        ({"language": LANGUAGE}, "language: a model of words needs a lexicon"),
        ({"word_bonus": 1.0}, "word_bonus=1.0, allowed: 0 without a lexicon"),
        ({"word_bonus": "1"}, "word_bonus='1', allowed: a number"),
        ({"word_bonus": math.nan}, "word_bonus=nan, allowed: a number"),
        (
            {"lexicon": LEXICON, "language_weight": 1.0},
            "language_weight=1.0, allowed: 0 without a language model",
        ),
        (
            {"lexicon": LEXICON, "language": LANGUAGE, "language_weight": -1.0},
            "language_weight=-1.0, allowed",
        ),
        ({"lexicon": prefix_search.lexicon([[1]], 5, 2)}, "lexicon.children: shape"),
        ({"lexicon": LEXICON._replace(word=LEXICON.word[1:])}, "lexicon.word: shape"),
        (
            {"lexicon": LEXICON, "language": prefix_search.bigram([[0]], 3)},
            r"language.log_p: shape \(4, 4\), expected \[5, 5\]",
        ),
        ({"lexicon": LEXICON, "language": Bigram(np.zeros(5))}, "language.log_p: shape"),
        (
            {"lexicon": LEXICON, "language": Bigram(np.full((5, 5), -np.inf))},
            "language.log_p: not finite",
        ),
    ],
)
def test_invalid_arguments_of_the_search(changed, message):
    arguments = {"log_probabilities": LOG_P, "lengths": LENGTHS, "beam": 2, "longest": 3}
    with pytest.raises(ValueError, match=message):
        prefix_search.search(**(arguments | changed))


@pytest.mark.parametrize(
    ("spellings", "labels", "space", "message"),
    [
        ([], 4, 3, "spellings: none"),
        ([[1], []], 4, 3, r"spellings\[1\]: empty"),
        ([[1], [2], [1]], 4, 3, r"spellings\[2\]: equal to spellings\[0\]"),
        ([[1, 0]], 4, 3, r"spellings\[0\]=0, allowed: labels 1 to 3 without the space, 3"),
        ([[1, 4]], 4, 3, r"spellings\[0\]=4"),
        ([[1, 3]], 4, 3, r"spellings\[0\]=3"),
        ([np.array([1.0])], 4, 3, r"spellings\[0\]=1.0"),
        ([[1]], 4, 0, "space=0, allowed: an integer, 1 to 3"),
        ([[1]], 4, 4, "space=4"),
        ([[1]], 2, 1, "labels=2"),
    ],
)
def test_invalid_arguments_of_a_lexicon(spellings, labels, space, message):
    with pytest.raises(ValueError, match=message):
        prefix_search.lexicon(spellings, labels, space)


@pytest.mark.parametrize(
    ("sentences", "words", "message"),
    [
        ([], 2, "sentences: none"),
        ([[0], [2]], 2, r"sentences\[1\]=2, allowed: an integer, 0 to 1"),
        ([[-1]], 2, r"sentences\[0\]=-1"),
        ([[0]], 0, "words=0"),
    ],
)
def test_invalid_arguments_of_a_bigram(sentences, words, message):
    with pytest.raises(ValueError, match=message):
        prefix_search.bigram(sentences, words)


def test_the_example_of_the_docstring_runs():
    source = prefix_search.search.__doc__
    assert source
    example = doctest.DocTestParser().get_doctest(source, {}, "search", None, None)
    results = doctest.DocTestRunner().run(example)
    assert results.attempted >= 4
    assert results.failed == 0
