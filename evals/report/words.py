"""Sections of the report on the vectors of words: who is near whom, what their differences say, and a map of them.

All of them are about directions: vectors are divided by their lengths, and what is near has a large cosine.
"""

import html
import itertools
from typing import Any

import numpy as np

from evals.base import Evaluation
from evals.report.page import titled
from evals.report.points import labelled_map, tsne
from train.data.text import UNKNOWN
from train.tasks import Language

ASKED, NEAREST, AMONG = 12, 8, 3000
"""Words asked for, neighbours of each, and the most frequent words among which these are: rare ones' vectors are still noise."""
FREQUENT = slice(500, 1500)
"""Ranks of words that are asked for: below are function words, above what was seen too rarely to be learned."""
MAPPED = 300
PAIRS = {
    "he to she": "man woman, he she, his her, himself herself, father mother, brother sister, son daughter, boy girl, "
    "husband wife, king queen, uncle aunt, men women",
    "plural": "year years, day days, man men, hand hands, eye eyes, thing things, problem problems, house houses, "
    "child children, word words, student students, city cities",
    "past tense": "go went, see saw, come came, take took, know knew, make made, give gave, get got, say said, find found, "
    "think thought, tell told",
    "comparative": "good better, great greater, large larger, long longer, high higher, small smaller, old older, "
    "young younger, strong stronger, low lower",
    "capital": "France Paris, Italy Rome, England London, Germany Berlin, Russia Moscow, Japan Tokyo, Cuba Havana, Spain Madrid",
}
"""Of each kind any two pairs a b, c d make a question, a : b = c : ?, as in Mikolov et al. (2013)."""
SHOWN = 3
"""Answers of each kind."""


def vectors(evaluation: Evaluation) -> np.ndarray | None:
    """Each word's vector, of length 1: float64 [vocabulary, features]; None unless the model has vectors of a text's words."""
    run = evaluation.run
    found = run.params.get("embedding", {}).get("embedding")
    if found is None or _task(evaluation).tokens != "words":
        return None
    found = np.asarray(found, np.float64)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-30)


def _task(evaluation: Evaluation) -> Language:
    assert isinstance(evaluation.run.task, Language)
    return evaluation.run.task


def neighbours(evaluation: Evaluation) -> str | None:
    """The nearest words of a dozen frequent ones."""
    units, vocabulary = vectors(evaluation), _task(evaluation).vocabulary
    if units is None or not (asked := content_words(vocabulary)):
        return None
    cosines = units[asked] @ units[:AMONG].T
    cosines[np.arange(len(asked)), asked] = -np.inf
    cosines[:, UNKNOWN] = -np.inf  # which is many words
    lines = []
    for index, row in zip(asked, cosines, strict=True):
        nearest = np.argsort(-row, kind="stable")[: min(NEAREST, len(row) - 2)]
        words = ", ".join(
            f'{_word(vocabulary[each])}&nbsp;<span class="note">{row[each]:.2f}</span>'
            for each in nearest
        )
        lines.append(f"<tr><th>{_word(vocabulary[index])}</th><td>{words}</td></tr>")
    intro = f"Words evenly chosen among frequent ones of more than three letters, and the {NEAREST} whose vectors have the "
    intro += f"largest cosine with theirs, among the {min(AMONG, len(vocabulary)):,} most frequent words."
    return titled("Nearest words", f'<p>{intro}</p><table class="facts">{"".join(lines)}</table>')


def content_words(vocabulary: tuple[str, ...]) -> list[int]:
    """ASKED words, evenly spaced among those of FREQUENT ranks; where these are too few, among the first AMONG."""
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
    """How many questions a : b = c : ? the differences of vectors answer."""
    units, vocabulary = vectors(evaluation), _task(evaluation).vocabulary
    if units is None:
        return None
    index = {word: number for number, word in enumerate(vocabulary)}
    lines, right, alone, total = [], 0, 0, 0
    for name, listed in PAIRS.items():
        pairs = [tuple(pair.split()) for pair in listed.split(", ")]
        known = [(index[a], index[b]) for a, b in pairs if a in index and b in index]
        questions = np.array(
            [(*first, *second) for first, second in itertools.permutations(known, 2)]
        ).reshape(-1, 4)
        if not len(questions):
            continue
        said, nearest = (
            answers(units, questions[:, :3]),
            answers(units, questions[:, :3], alone=True),
        )
        hits, lazy = int((said == questions[:, 3]).sum()), int((nearest == questions[:, 3]).sum())
        right, alone, total = right + hits, alone + lazy, total + len(questions)
        examples = []
        for number in (
            np.linspace(0, len(questions) - 1, min(SHOWN, len(questions))).round().astype(int)
        ):
            a, b, c, d = (_word(vocabulary[each]) for each in questions[number])
            answer = _word(vocabulary[said[number]])
            verdict = (
                f"<b>{answer}</b>" if said[number] == questions[number, 3] else f"{answer}, not {d}"
            )
            examples.append(f"{a} : {b} = {c} : {verdict}")
        numbers = f"<td>{len(questions)}</td><td>{hits}</td><td>{lazy}</td>"
        lines.append(
            f'<tr><th>{name}</th>{numbers}<td style="text-align: left">{"<br>".join(examples)}</td></tr>'
        )
    if not total:
        return None
    head = "<tr><th></th><th>asked</th><th>right</th><th>right by c alone</th><th>for example</th></tr>"
    intro = f"{right} of {total} questions a : b = c : ? are answered rightly by the word whose vector is nearest to b - a + c, "
    intro += f"of the whole vocabulary but a, b and c; {alone} by the one that is nearest to c.  Asked are all of a short list "
    intro += "whose words are in the vocabulary."
    return titled(
        "Analogies",
        f'<p>{intro}</p><div class="scroll"><table class="matrix">{head}{"".join(lines)}</table></div>',
    )


def answers(units: np.ndarray, questions: np.ndarray, *, alone: bool = False) -> np.ndarray:
    """To questions a, b, c [n, 3] the word [n] whose unit vector is nearest to b - a + c; alone: to c.  None of the three."""
    a, b, c = (units[column] for column in questions.T)
    cosines = (c if alone else b - a + c) @ units.T
    np.put_along_axis(cosines, questions, -np.inf, axis=1)
    cosines[:, UNKNOWN] = -np.inf
    return cosines.argmax(axis=1)


def word_map(evaluation: Evaluation) -> str | None:
    """The most frequent words in the plane, near ones side by side (figure 4 of the review)."""
    units, vocabulary = vectors(evaluation), _task(evaluation).vocabulary
    words = [index for index, word in enumerate(vocabulary) if word.isalpha()][:MAPPED]
    if units is None or len(words) < 10:  # too few for t-SNE's neighbourhoods
        return None
    names = [vocabulary[index] for index in words]
    svg, bare = labelled_map(tsne(units[words].astype(np.float32)), names, "Map of words")
    intro = f"The {len(words)} most frequent words by t-SNE of their vectors, which keeps near ones together, as in figure 4 of "
    intro += f"LeCun, Bengio, Hinton (2015); distances of far ones and the axes mean nothing.{bare}"
    return titled("Map of words", f'<p>{intro}</p><div class="scroll">{svg}</div>')


def _word(text: Any) -> str:
    return html.escape(text)
