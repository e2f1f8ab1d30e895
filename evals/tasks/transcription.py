"""Transcription: the transcripts of a model, their error rates, and what it heard when.

Rates (``evals.error_rates``) are of characters, with the space between words, and words (CER, WER),
or of phones (PER).  The transcript is that of the most probable path.  "With lexicon", a prefix
beam search finds it among the task's words, with a bigram model of the training text if that is at
hand.  Recordings of one speaker resemble each other, so intervals are from a bootstrap over
speakers.
"""

import functools
from collections.abc import Sequence

import numpy as np

from evals import verbs
from evals.base import Subject
from evals.error_rates import (
    NEEDS_JIWER,
    NORMALISED,
    RATES,
    ErrorCounts,
    Labels,
    count_errors,
    described_errors,
    described_rates,
    has_jiwer,
    new_sentences,
    rates,
)
from evals.files import Failures, readable
from evals.recordings import Transcribed, heard
from evals.report.utterances import by_speaker_and_length, example_utterance, worst_utterances
from evals.run import Run
from evals.transcripts import (
    BEAM,
    LANGUAGE_WEIGHT,
    Dictionary,
    decode,
    dictionary_of,
    pictures,
    scored,
    task_of,
    transcribe,
)
from train import tasks

TASK = tasks.Transcription
LEXICON = " with lexicon"


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
    speakers = table.extras.get("speakers", ())
    if not has_jiwer():
        return Transcribed(
            metrics=metrics, note=NEEDS_JIWER, shares=shares, references=references,
            transcripts=transcripts, counts=None, units=task.units, speakers=speakers,
            features=task.features, pictures=pictures(run),
        )  # fmt: skip
    new, training = new_sentences(subject)
    best = _counts(task, references, transcripts)
    found, notes = [rates(best, speakers, new)], [described_errors(best)]
    known = dictionary_of(task, training)
    if known is not None:
        searched = [scored(task, row.tolist()) for row in decode(run, table, BEAM, known)]
        counts = _counts(task, references, searched)
        found.append(rates(counts, speakers, new, LEXICON))
        notes.append(f"with lexicon, {_described(known)}: {described_errors(counts)}")
    notes += described_rates(best, found[0], speakers, new)
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
        counts=best[RATES[task.units]],
        units=task.units,
        speakers=speakers,
        features=task.features,
        pictures=pictures(run),
    )


def _counts(
    task: tasks.Transcription, references: Sequence[Labels], transcripts: Sequence[Labels]
) -> dict[str, ErrorCounts]:
    """Errors by the name of their rate."""
    counts = {RATES[task.units]: count_errors(references, transcripts)}
    if task.units == "characters":
        words = [
            [tuple("".join(row).split()) for row in each] for each in (references, transcripts)
        ]
        counts["WER"] = count_errors(*words)
    return counts


def _described(known: Dictionary) -> str:
    language = "no language model"
    if known.language is not None:
        language = f"bigrams of the training text, weight {LANGUAGE_WEIGHT:g}"
    return f"{len(known.words):,} words, {language}, beam {BEAM}"


def print_transcripts(run: Run, options: verbs.Transcribe) -> int:
    """Prints a line for each file: its name, a tab, and the transcript."""
    failures, task = Failures(), task_of(run)
    recordings = list(readable(options.files, functools.partial(heard, task.features), failures))
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
