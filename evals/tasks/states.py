"""States of speech: phones decoded from a hybrid of a network and a hidden Markov model.

The network's log p(state | frame) - power log p(state) takes the place of log p(frame | state)
(Bourlard and Morgan 1994), and the best path through a loop of phones with bigrams is the
transcript.  The weight of the bigrams and the power of the prior are chosen on the validation
split.  Beside it is the Gaussian model that aligned the data, with a weight of its own.
"""

import dataclasses
import functools

import numpy as np

from evals import hybrid, verbs
from evals.base import Subject
from evals.error_rates import (
    NEEDS_JIWER,
    NORMALISED,
    Labels,
    count_errors,
    described_errors,
    described_rates,
    has_jiwer,
    new_sentences,
    rates,
)
from evals.files import Failures, readable
from evals.hybrid import Transcribe, Weights
from evals.recordings import Transcribed, heard
from evals.report.utterances import by_speaker_and_length, example_utterance, worst_utterances
from evals.run import Run
from train import alignment, tasks
from train.dataset import Table
from train.formats import DataError

TASK = tasks.States
GAUSSIANS = " of the Gaussian model"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Decoded(Transcribed):
    """weights: of the decoding."""

    weights: Weights


def measure(subject: Subject) -> Decoded:
    """The metrics of the loss and the error rates of phones.

    "frame accuracy %": frames in the state of the Gaussian model's alignment.
    "PER %", and "PER % of the Gaussian model".
    "... of new sentences": of recordings whose sentence does not occur in training, if some does.
    """
    run, table = subject.run, subject.table
    task = hybrid.task_of(run)
    metrics = {
        name.replace(" accuracy", " frame accuracy"): value
        for name, value in subject.losses.items()
        if name != f"{subject.split} error %"
    }
    speakers = table.extras.get("speakers", ())
    validation = subject.dataset.splits.get("validation")
    held_out = "validation" not in run.recipe.train_on
    tuning = validation if held_out and subject.own and has_jiwer() else None
    weights, gaussian_weights = Weights(), Weights(prior=0.0)
    if tuning is not None:
        weights = hybrid.chosen(_network(subject, tuning), _references(task, tuning))
        gaussian_weights = hybrid.chosen(
            _gaussians(subject, tuning), _references(task, tuning), (0.0,)
        )
    references = _references(task, table)
    found = _network(subject, table)(weights)
    if not has_jiwer():
        return Decoded(
            metrics=metrics, note=NEEDS_JIWER, references=references, transcripts=found,
            counts=None, units="phones", speakers=speakers, features=task.features,
            pictures=hybrid.pictures(run, weights), weights=weights,
        )  # fmt: skip
    new, _ = new_sentences(subject)
    ours = {"PER": count_errors(references, found)}
    gaussians = {"PER": count_errors(references, _gaussians(subject, table)(gaussian_weights))}
    both = rates(ours, speakers, new), rates(gaussians, speakers, new, GAUSSIANS)
    where = "on the validation split" if tuning is not None else "without a validation split"
    notes = [
        described_errors(ours),
        *described_rates(ours, both[0], speakers, new),
        f"{weights}, chosen {where}",
        f"Gaussian model: {described_errors(gaussians)}, {gaussian_weights}",
        f"frames normalised {NORMALISED[task.normalise]}",
    ]
    for each in both:
        metrics |= subject.named(each.metrics)
    return Decoded(
        metrics=metrics,
        note=";\n".join(notes),
        intervals={k: v for each in both for k, v in subject.named(each.intervals).items()},
        references=references,
        transcripts=found,
        counts=ours["PER"],
        units="phones",
        speakers=speakers,
        features=task.features,
        pictures=hybrid.pictures(run, weights),
        weights=weights,
    )


def _references(task: tasks.States, table: Table) -> list[Labels]:
    return [hybrid.scored(task, phones) for phones in table.extras["phones"]]


def _network(subject: Subject, table: Table) -> Transcribe:
    """Transcripts of a split by the network, with any weights."""
    task = hybrid.task_of(subject.run)
    log_p = hybrid.log_posteriors(subject.run, table)
    parts = hybrid.by_recording(log_p, table.parts)
    return functools.partial(hybrid.transcripts, task, parts)


def _gaussians(subject: Subject, table: Table) -> Transcribe:
    """Transcripts of a split by the Gaussian model, with any weight of the bigram."""
    task = subject.dataset.task  # of the Gaussians' alignment; the run's may be of the network's
    assert isinstance(task, TASK)
    gaussians = alignment.Gaussians(np.array(task.means), np.array(task.variances))
    frames = np.asarray(table["inputs"][:, task.context // 2])
    log_p = gaussians.log_p(hybrid.by_recording(frames, table.parts))
    return functools.partial(hybrid.transcripts, task, log_p)


def print_transcripts(run: Run, options: verbs.Transcribe) -> int:
    """Prints a line for each file: its name, a tab, and the phones."""
    if (options.beam, options.lexicon) != (verbs.Transcribe.beam, verbs.Transcribe.lexicon):
        raise DataError(f"{run.folder.path}: --beam and --lexicon are for models of zoo.ctc")
    failures, task = Failures(), hybrid.task_of(run)
    read = functools.partial(heard, task.features)
    recordings = list(readable(options.files, read, failures))
    found = hybrid.transcribe(
        run,
        [samples for _, samples in recordings],
        speakers=[str(index if options.each else 0) for index in range(len(recordings))],
    )
    for (file, _), phones in zip(recordings, found, strict=True):
        print(f"{file}\t{' '.join(phones)}")
    return int(failures.any)


SECTIONS = (example_utterance, worst_utterances, by_speaker_and_length)
VERBS = {"transcribe": print_transcripts}
