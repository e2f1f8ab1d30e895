"""Report sections on word vectors: nearest neighbours, analogies, and a map.

All vectors are normalised to length 1; similarity is the cosine.
"""

import itertools

import numpy as np

from evals.base import Evaluation
from evals.report.page import render, titled
from evals.report.points import labelled_map, tsne
from train.data.text import UNKNOWN
from train.tasks import Language

ASKED, NEAREST, AMONG = 12, 8, 3000
"""Number of query words, of neighbours for each, and of the most frequent words to search.

The vectors of rare words are noise."""
FREQUENT = slice(500, 1500)
"""Ranks of query words: lower ranks are function words, higher ranks are too rare to be learned."""
MAPPED = 300
PAIRS = {
    "he to she": "man woman, he she, his her, himself herself, father mother, brother sister, "
    "son daughter, boy girl, husband wife, king queen, uncle aunt, men women",
    "plural": "year years, day days, man men, hand hands, eye eyes, thing things, "
    "problem problems, house houses, child children, word words, student students, city cities",
    "past tense": "go went, see saw, come came, take took, know knew, make made, give gave, "
    "get got, say said, find found, think thought, tell told",
    "comparative": "good better, great greater, large larger, long longer, high higher, "
    "small smaller, old older, young younger, strong stronger, low lower",
    "capital": "France Paris, Italy Rome, England London, Germany Berlin, Russia Moscow, "
    "Japan Tokyo, Cuba Havana, Spain Madrid",
}
"""Any two pairs a b, c d of the same kind form a question, a : b = c : ? (Mikolov et al. 2013)."""
SHOWN = 3
"""Example answers of each kind."""


def vectors(evaluation: Evaluation) -> np.ndarray | None:
    """Normalised word vectors, float64 [vocabulary, features].

    None unless the model has an embedding and the tokens are words.
    """
    run = evaluation.run
    embedding = run.params.get("embedding", {}).get("embedding")
    if embedding is None or _task(evaluation).tokens != "words":
        return None
    embedding = np.asarray(embedding, np.float64)
    return embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-30)


def _task(evaluation: Evaluation) -> Language:
    assert isinstance(evaluation.run.task, Language)
    return evaluation.run.task


def neighbours(evaluation: Evaluation) -> str | None:
    """The nearest neighbours of ASKED frequent words."""
    units, vocabulary = vectors(evaluation), _task(evaluation).vocabulary
    if units is None or not (asked := content_words(vocabulary)):
        return None
    cosines = units[asked] @ units[:AMONG].T
    cosines[np.arange(len(asked)), asked] = -np.inf
    cosines[:, UNKNOWN] = -np.inf  # stands for many words
    rows = []
    for index, row in zip(asked, cosines, strict=True):
        nearest = np.argsort(-row, kind="stable")[: min(NEAREST, len(row) - 2)]
        found = [(vocabulary[neighbour], f"{row[neighbour]:.2f}") for neighbour in nearest]
        rows.append((vocabulary[index], found))
    intro = (
        f"Frequent words of more than three letters, evenly spaced by rank, and the {NEAREST} "
        "words whose vectors have the largest cosine with theirs, among the "
        f"{min(AMONG, len(vocabulary)):,} most frequent words."
    )
    return titled("Nearest words", render("nearest.html", intro=intro, rows=rows))


def content_words(vocabulary: tuple[str, ...]) -> list[int]:
    """ASKED words, evenly spaced among FREQUENT ranks; if these are too few, among AMONG ranks."""
    long = [
        index for index, word in enumerate(vocabulary[:AMONG]) if word.isalpha() and len(word) > 3
    ]
    among = [index for index in long if FREQUENT.start <= index < FREQUENT.stop]
    among = among if len(among) >= ASKED else long
    return [
        among[index]
        for index in np.linspace(0, len(among) - 1, min(ASKED, len(among))).round().astype(int)
    ]


def analogies(evaluation: Evaluation) -> str | None:
    """How many analogy questions a : b = c : ? are answered by vector differences."""
    units, vocabulary = vectors(evaluation), _task(evaluation).vocabulary
    if units is None:
        return None
    index = {word: number for number, word in enumerate(vocabulary)}
    rows, right, alone, total = [], 0, 0, 0
    for name, listed in PAIRS.items():
        pairs = [tuple(pair.split()) for pair in listed.split(", ")]
        known = [(index[a], index[b]) for a, b in pairs if a in index and b in index]
        questions = np.array(
            [(*first, *second) for first, second in itertools.permutations(known, 2)]
        ).reshape(-1, 4)
        if not len(questions):
            continue
        predicted, nearest = (
            answers(units, questions[:, :3]),
            answers(units, questions[:, :3], alone=True),
        )
        hits, trivial_hits = (
            int((predicted == questions[:, 3]).sum()),
            int((nearest == questions[:, 3]).sum()),
        )
        right, alone, total = right + hits, alone + trivial_hits, total + len(questions)
        shown = np.linspace(0, len(questions) - 1, min(SHOWN, len(questions))).round().astype(int)
        examples = [
            [vocabulary[word] for word in (*questions[number], predicted[number])]
            for number in shown
        ]
        rows.append((name, (len(questions), hits, trivial_hits), examples))
    if not total:
        return None
    intro = (
        f"{right} of {total} questions a : b = c : ? are answered correctly by the word whose "
        "vector is nearest to b - a + c, among the whole vocabulary except a, b and c; "
        f"{alone} by the one nearest to c.  The questions come from a short list; those with words "
        "outside of the vocabulary are left out."
    )
    return titled("Analogies", render("analogies.html", intro=intro, rows=rows))


def answers(units: np.ndarray, questions: np.ndarray, *, alone: bool = False) -> np.ndarray:
    """Answers [n] to questions a, b, c [n, 3]: the word whose unit vector is nearest to b - a + c.

    a, b, c and <unk> are excluded.  alone: nearest to c instead.
    """
    a, b, c = (units[column] for column in questions.T)
    cosines = (c if alone else b - a + c) @ units.T
    np.put_along_axis(cosines, questions, -np.inf, axis=1)
    cosines[:, UNKNOWN] = -np.inf
    return cosines.argmax(axis=1)


def word_map(evaluation: Evaluation) -> str | None:
    """2D map of the most frequent words, as in figure 4 of LeCun, Bengio, Hinton (2015)."""
    units, vocabulary = vectors(evaluation), _task(evaluation).vocabulary
    words = [index for index, word in enumerate(vocabulary) if word.isalpha()][:MAPPED]
    if units is None or len(words) < 10:  # too few for t-SNE's neighbourhoods
        return None
    names = [vocabulary[index] for index in words]
    svg, bare = labelled_map(tsne(units[words].astype(np.float32)), names, "Map of words")
    intro = (
        f"t-SNE of the vectors of the {len(words)} most frequent words, as in figure 4 of LeCun, "
        "Bengio, Hinton (2015).  It keeps near neighbours together; large distances and the axes "
        f"have no meaning.{bare}"
    )
    return titled("Map of words", render("map.html", intro=intro, svg=svg))
