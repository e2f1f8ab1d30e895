"""Transcripts of recordings: the best path, and the prefix beam search with a lexicon."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from evals import verbs
from evals.error_rates import Labels
from evals.metrics import is_whole
from evals.recordings import Heard, Pictures, Spike, frames_for
from evals.run import Run
from train import tasks
from train.dataset import Table
from zoo.base import Model, Params
from zoo.parts import labelling, prefix_search

SPACE = " "
"""The label between words."""
BEAM = 25
LANGUAGE_WEIGHT, WORD_BONUS = 0.0, 1.0
"""Settings of the search with a lexicon, see ``zoo.parts.prefix_search``.

Chosen on AN4's validation split (WER 8.8 %; 9.2 with weight 0.25, 9.7 with 0.5, 10.6 with 1), with
a model trained on the training split alone.  Spelled names and numbers are hardly predictable, so
bigrams do not help there.
"""
MOST_WORDS = 5000
"""Most words of a bigram model, whose table has an entry for each pair of words."""
ROWS, STEP = 16, 64
"""Recordings transcribed at a time; padded lengths are multiples of STEP frames."""


class Labeller(Model, Protocol):
    """A model whose outputs are logits of labels and the blank at every step."""

    def steps_of(self, cfg: Any, lengths: Any) -> Any:
        """Steps of recordings with these numbers of frames."""
        ...


class Dictionary(NamedTuple):
    """The words that a search may find.  language: of these words, if there is a model."""

    words: tuple[str, ...]
    lexicon: prefix_search.Lexicon
    language: prefix_search.Bigram | None


def task_of(run: Run) -> tasks.Transcription:
    """The run's task.  Raises DataError if it is not transcription."""
    if not isinstance(run.task, tasks.Transcription):
        verbs.require(run, "transcribe", {})
    assert isinstance(run.task, tasks.Transcription)
    return run.task


def dictionary_of(task: tasks.Transcription, texts: Iterable[str] = ()) -> Dictionary | None:
    """The words of a task, spelled in its characters.

    None if the task has no words, or if its labels are not characters that a space separates.
    texts: of training, for the language model.  There is none without texts, for more than
        MOST_WORDS words, or if its weight is 0.
    """
    ids = {label: index for index, label in enumerate(task.vocabulary) if label}
    words = tuple(word for word in task.words if word and all(letter in ids for letter in word))
    if task.units != "characters" or SPACE not in ids or not words:
        return None
    spellings = [[ids[letter] for letter in word] for word in words]
    lexicon = prefix_search.lexicon(spellings, len(task.vocabulary), ids[SPACE])
    numbers = {word: number for number, word in enumerate(words)}
    sentences = [
        [numbers[word] for word in text.split()]
        for text in texts
        if all(word in numbers for word in text.split())
    ]
    fitted = sentences and LANGUAGE_WEIGHT > 0 and len(words) <= MOST_WORDS
    language = prefix_search.bigram(sentences, len(words)) if fitted else None
    return Dictionary(words, lexicon, language)


def decode(
    run: Run,
    table: Mapping[str, Any],
    beam: int = 1,
    dictionary: Dictionary | None = None,
    *,
    rows: int | None = None,
) -> list[np.ndarray]:
    """Labels, int [length], of each recording of a table with normalised frames.

    beam: 1 for the best path, which uses no dictionary; more for a prefix beam search.
    rows: see ``Run.map``.
    """
    if not (is_whole(beam) and beam >= 1):
        raise ValueError(f"beam={beam!r}, allowed: a positive integer")
    inputs = {"inputs": table["inputs"]} if rows is not None else table
    # Buckets have different numbers of steps, but their labels are collected in one array.
    longest = _steps_of(run, table["inputs"]["frames"].shape[1])
    function = _best_path if beam == 1 else functools.partial(_search, beam, dictionary)

    def padded(module: Any, cfg: Any, params: Params, batch: Any) -> Any:
        labels, counts = function(module, cfg, params, batch["inputs"])
        return np.pad(labels, ((0, 0), (0, longest - labels.shape[1]))), counts

    labels, counts = run.map(padded, inputs, rows=rows)
    return [row[:count] for row, count in zip(labels, counts, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _best_path(module: Labeller, cfg: Any, params: Params, inputs: Any) -> Any:
    return labelling.best_path(
        module.apply(cfg, params, inputs), module.steps_of(cfg, inputs["lengths"])
    )


def _search(
    beam: int, known: Dictionary | None, module: Any, cfg: Any, params: Params, inputs: Any
) -> Any:
    log_p, steps = _log_p(module, cfg, params, inputs)
    settings: dict[str, Any] = {}
    if known is not None:
        settings = {"lexicon": known.lexicon, "word_bonus": WORD_BONUS}
    if known is not None and known.language is not None:
        settings |= {"language": known.language, "language_weight": LANGUAGE_WEIGHT}
    found = prefix_search.search(log_p, steps, beam=beam, longest=log_p.shape[1], **settings)
    return found.labels[:, 0], found.lengths[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _log_p(module: Labeller, cfg: Any, params: Params, inputs: Any) -> Any:
    logits = module.apply(cfg, params, inputs)
    return jax.nn.log_softmax(logits), module.steps_of(cfg, inputs["lengths"])


def pictures(run: Run) -> Pictures:
    """How the report draws the recordings of a run."""
    task, many = task_of(run), 10**6
    return Pictures(
        functools.partial(aligned, run),
        "Below: the probability of the blank (grey) and of the labels of the transcript and the "
        "reference at every step, as in figure 1 of Graves et al. (2006); each label of the "
        "transcript stands where its probability is greatest. Bottom: where each label of the "
        "reference lies, on the reference's most probable path",
        task.vocabulary,
        [bool(name) for name in task.scored or task.vocabulary],
        labelling.BLANK,
        task.features.hop * many / _steps_of(run, many),
    )


def aligned(run: Run, table: Table, rows: Sequence[int]) -> list[Heard]:
    """What the model heard in some rows of a table, and the alignments of their references.

    All are as wide as the table and taken one by one, so the model is compiled only once.
    """
    chosen = np.asarray(rows, int)
    columns = {"inputs": table["inputs"], "targets": table["targets"], "mask": table["mask"]}
    columns = jax.tree.map(lambda column: np.asarray(column[chosen]), columns)
    found = zip(*run.map(_aligned, columns, rows=1), strict=True)
    heard = []
    for row, (outputs, places, fits) in enumerate(found):
        length = int(columns["inputs"]["lengths"][row])
        steps = _steps_of(run, length)
        frames = columns["inputs"]["frames"][row, :length]
        heard.append(
            Heard(
                frames[:, : frames.shape[1] // (1 + task_of(run).features.deltas)],
                outputs[:steps],
                spikes(outputs[:steps]),
                columns["targets"][row][columns["mask"][row]].tolist(),
                places[:steps] if fits else None,
            )
        )
    return heard


@functools.partial(jax.jit, static_argnums=0)
def _aligned(module: Labeller, cfg: Any, params: Params, batch: Any) -> Any:
    log_p, steps = _log_p(module, cfg, params, batch["inputs"])
    counts = jnp.sum(batch["mask"], axis=1, dtype=jnp.int32)
    found = labelling.forced_alignment(log_p, steps, batch["targets"], counts)
    return jnp.exp(log_p), found.places, jnp.isfinite(found.log_probability)


def spikes(outputs: np.ndarray) -> list[Spike]:
    """The labels of the best path through probabilities [steps, labels].

    Each is at the step of its run where its probability is greatest.
    """
    found, first = [], 0
    for label, run in itertools.groupby(outputs.argmax(axis=1).tolist()):
        after = first + len(list(run))
        if label != labelling.BLANK:
            found.append(Spike(first + int(outputs[first:after, label].argmax()), label))
        first = after
    return found


def transcribe(
    run: Run,
    recordings: Sequence[np.ndarray],
    *,
    speakers: Sequence[str] | None = None,
    beam: int = BEAM,
    dictionary: Dictionary | None = None,
) -> list[str]:
    """The transcript of each recording: samples [n] in -1..1, at the rate of the features.

    speakers: of each recording, for a model whose frames are normalised over those of a speaker;
        default: one speaker.
    beam, dictionary: see ``decode``.
    Raises DataError naming the run's folder unless its model transcribes, ValueError for a
    recording that is shorter than a frame, and for what is out of range.
    """
    task = task_of(run)
    scaled = frames_for(task, recordings, speakers)
    order = sorted(range(len(scaled)), key=lambda index: len(scaled[index]))
    texts, rows = [""] * len(scaled), min(ROWS, max(len(scaled), 1))
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        lengths = np.array([len(scaled[index]) for index in chosen], np.int32)
        width = -(-int(lengths.max()) // STEP) * STEP
        frames = np.zeros((len(chosen), width, task.features.values), np.float32)
        for row, index in enumerate(chosen):
            frames[row, : lengths[row]] = scaled[index]
        table = {"inputs": {"frames": frames, "lengths": lengths}}
        for index, ids in zip(chosen, decode(run, table, beam, dictionary, rows=rows), strict=True):
            texts[index] = text_of(task, [task.vocabulary[label] for label in ids])
    return texts


def text_of(task: tasks.Transcription, labels: Iterable[str]) -> str:
    """Labels as a text with single spaces."""
    joined = ("" if task.units == "characters" else " ").join(labels)
    return " ".join(joined.split())


def scored(task: tasks.Transcription, ids: Iterable[int]) -> Labels:
    """The labels that count in error rates, under the names that count: see the task."""
    names = task.scored or task.vocabulary
    return tuple(names[label] for label in ids if names[label])


def _steps_of(run: Run, frames: int) -> int:
    return int(cast(Labeller, run.module).steps_of(run.recipe.model, jnp.asarray(frames)))
