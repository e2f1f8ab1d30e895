"""Transcription: the transcripts of a model, their error rates, and what it heard when.

Rates (``evals.error_rates``) are of characters, with the space between words, and words (CER, WER),
or of phones (PER).  The transcript is that of the most probable path.  "With lexicon", a prefix
beam search finds it among the task's words, with a bigram model of the training text if that is at
hand.  Recordings of one speaker resemble each other, so intervals are from a bootstrap over
speakers.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evals import verbs
from evals.base import Subject
from evals.error_rates import NEEDS_JIWER, ErrorCounts, Labels, count_errors, has_jiwer
from evals.files import Failures, readable
from evals.intervals import DRAWS, bootstrap
from evals.report.utterances import by_speaker_and_length, example_utterance, worst_utterances
from evals.run import Run
from evals.transcripts import (
    BEAM,
    LANGUAGE_WEIGHT,
    Dictionary,
    Transcribed,
    decode,
    dictionary_of,
    scored,
    task_of,
    transcribe,
)
from train import tasks
from train.formats import DataError
from train.formats.audio import read_audio, read_audio_bytes

TASK = tasks.Transcription
RATES = {"characters": "CER", "words": "WER", "phones": "PER"}
"""The error rate of each unit."""
LEXICON, NEW = " with lexicon", " of new sentences"
MOST_CLIPPED = 0.01
"""Share of clipped samples that is not worth a message."""
NORMALISED = {
    "speaker": "over the speaker's recordings in the split (transductive)",
    "utterance": "over the recording",
    "global": "over the training split",
}


class _Rates(NamedTuple):
    """Metrics and their intervals, by name without the split; counts: {"CER": ...}."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, ErrorCounts]


def measure(subject: Subject) -> Transcribed:
    """The metrics of the loss, "exact %" and the error rates.

    "exact %": transcripts equal to the reference.
    "unaligned %", unless it is 0: recordings that are too short for their labels.
    "CER %" and "WER %" of characters, or "WER %" of words, or "PER %" of phones.
    "CER % with lexicon" and "WER % with lexicon" of characters, if the task has words.
    "... of new sentences": of recordings whose sentence does not occur in training, if some does.
    """
    run, table = subject.run, subject.table
    task, ids = task_of(run), decode(run, table)
    references = [
        scored(task, row[mask].tolist())
        for row, mask in zip(table["targets"], table["mask"], strict=True)
    ]
    transcripts = [scored(task, row.tolist()) for row in ids]
    exact = np.mean([a == b for a, b in zip(references, transcripts, strict=True)])
    metrics = subject.losses | subject.named({"exact %": 100 * float(exact)})
    # The rate of these errors follows.
    metrics.pop(f"{subject.split} label_error", None)
    unaligned = metrics.pop(f"{subject.split} unaligned", 0.0)
    metrics |= subject.named({"unaligned %": 100 * unaligned}) if unaligned else {}
    shares = dict.fromkeys(subject.named({"exact %": 0.0}), len(references))
    rate, speakers = RATES[task.units], table.extras.get("speakers", ())
    if not has_jiwer():
        return Transcribed(
            metrics=metrics, note=NEEDS_JIWER, shares=shares, references=references,
            transcripts=transcripts, counts=None, rate=rate, speakers=speakers,
        )  # fmt: skip
    new, training = _new_sentences(subject)
    best = _rates(task, references, transcripts, speakers, new, "")
    found, notes = [best], [_errors(task, best.counts)]
    known = dictionary_of(task, training)
    if known is not None:
        searched = [scored(task, row.tolist()) for row in decode(run, table, BEAM, known)]
        found.append(_rates(task, references, searched, speakers, new, LEXICON))
        notes.append(f"with lexicon, {_described(known)}: {_errors(task, found[-1].counts)}")
    if 0 < len(new) < len(references):
        of = {name: counts.of(new) for name, counts in best.counts.items()}
        notes.append(f"new sentences, {len(new):,} of {len(references):,}: {_errors(task, of)}")
    if any(each.intervals for each in found):
        notes.append(f"intervals: bootstrap of {len(set(speakers))} speakers, {DRAWS:,} draws")
    notes.append(f"frames normalised {NORMALISED[task.normalise]}")
    for each in found:
        metrics |= subject.named(each.metrics)
    return Transcribed(
        metrics=metrics,
        note=";\n".join(notes),
        shares=shares,
        intervals={k: v for each in found for k, v in subject.named(each.intervals).items()},
        references=references,
        transcripts=transcripts,
        counts=best.counts[rate],
        rate=rate,
        speakers=speakers,
    )


def _rates(
    task: tasks.Transcription,
    references: Sequence[Labels],
    transcripts: Sequence[Labels],
    speakers: Sequence[str],
    new: np.ndarray,
    suffix: str,
) -> _Rates:
    """The rates of all recordings and of the ``new`` ones, unless these are all or none."""
    counts = {RATES[task.units]: count_errors(references, transcripts)}
    if task.units == "characters":
        words = [
            [tuple("".join(row).split()) for row in each] for each in (references, transcripts)
        ]
        counts["WER"] = count_errors(*words)
    groups = {suffix: np.arange(len(references))}
    if 0 < len(new) < len(references):
        groups[suffix + NEW] = new
    metrics, intervals = {}, {}
    for group, rows in groups.items():
        for name, each in counts.items():
            chosen, full = each.of(rows), f"{name} %{group}"
            if not chosen.labels.any():  # none of them counts
                continue
            metrics[full] = chosen.rate
            if not len(speakers):
                continue
            of_rows = [speakers[row] for row in rows.tolist()]
            ends = bootstrap(chosen.errors, chosen.labels, of_rows)
            if ends is not None:
                intervals[full] = 100 * ends[0], 100 * ends[1]
    return _Rates(metrics, intervals, counts)


def _new_sentences(subject: Subject) -> tuple[np.ndarray, Sequence[str]]:
    """The recordings whose sentences do not occur in training, and the training sentences.

    All recordings, and (), if the texts are not known.
    """
    splits, texts = subject.dataset.splits, subject.table.extras.get("texts", ())
    training = [
        text
        for split in subject.run.recipe.train_on.split("+")
        if split in splits
        for text in splits[split].extras.get("texts", ())
    ]
    known = {" ".join(text.split()) for text in training}
    rows = [row for row, text in enumerate(texts) if " ".join(text.split()) not in known]
    return np.array(rows, int), training


def _errors(task: tasks.Transcription, counts: dict[str, ErrorCounts]) -> str:
    """For display: "CER: 285 errors in 2,565 characters, WER: 196 errors in 773 words"."""
    of = {name: units for units, name in RATES.items()}
    return ", ".join(
        f"{name}: {each.errors.sum():,} errors in {each.labels.sum():,} {of[name]}"
        for name, each in counts.items()
    )


def _described(known: Dictionary) -> str:
    language = "no language model"
    if known.language is not None:
        language = f"bigrams of the training text, weight {LANGUAGE_WEIGHT:g}"
    return f"{len(known.words):,} words, {language}, beam {BEAM}"


def heard(run: Run, file: pathlib.Path) -> np.ndarray:
    """The samples of a sound file, or of standard input for "-".

    Prints a message if many are clipped.
    Raises DataError naming the file if it is unreadable, silent, or shorter than a frame.
    """
    features = task_of(run).features
    if file == pathlib.Path("-"):
        audio = read_audio_bytes(sys.stdin.buffer.read(), "-", features.rate)
    else:
        audio = read_audio(file, features.rate)
    samples = audio.samples
    if not features.frames(len(samples)):
        length = f"{len(samples) / features.rate:.3f} s"
        raise DataError(f"{file}: {length}, allowed: at least {features.window:g} s")
    if audio.clipped > MOST_CLIPPED:
        print(f"{file}: {100 * audio.clipped:.1f} % of the samples are clipped", file=sys.stderr)
    return samples


def print_transcripts(run: Run, options: verbs.Transcribe) -> int:
    """Prints a line for each file: its name, a tab, and the transcript."""
    failures, task = Failures(), task_of(run)
    recordings = list(readable(options.files, lambda file: heard(run, file), failures))
    texts = transcribe(
        run,
        [samples for _, samples in recordings],
        speakers=[str(index if options.each else 0) for index in range(len(recordings))],
        beam=options.beam,
        dictionary=dictionary_of(task) if options.lexicon else None,
    )
    for (file, _), text in zip(recordings, texts, strict=True):
        print(f"{file}\t{text}")
    return int(failures.any)


SECTIONS = (example_utterance, worst_utterances, by_speaker_and_length)
VERBS = {"transcribe": print_transcripts}
