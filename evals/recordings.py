"""Recordings: those of a user, and the transcripts of a split as the report shows them."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from evals.base import Measured
from evals.error_rates import ErrorCounts, Labels
from train.acoustic import frames_of, normalised
from train.dataset import Table
from train.formats import DataError
from train.formats.audio import read_audio, read_audio_bytes
from train.tasks import States, Transcription, Units
from zoo.parts import acoustics

MOST_CLIPPED = 0.01
"""Share of clipped samples that is not worth a message."""


class Spike(NamedTuple):
    """A label of a transcript, and the step at which it is shown."""

    step: int
    label: int


class Heard(NamedTuple):
    """A recording as the model heard it.

    frames: normalised, without deltas, [time, values].
    outputs: probabilities [steps, labels].
    found: the transcript.
    reference: the labels of the reference, int [n].
    places: int [steps], which label of the reference each step belongs to, or -1 for none; None if
        the recording is too short for its reference.
    """

    frames: np.ndarray
    outputs: np.ndarray
    found: Sequence[Spike]
    reference: Sequence[int]
    places: np.ndarray | None


class Pictures(NamedTuple):
    """How the report draws recordings.

    hear: (table, rows) -> what the model heard.
    about: what the picture shows, a sentence for each part below the features.
    names: of the labels, and ``counted``, whether they count.
    background: the label that is no part of a transcript, such as the blank.
    step: seconds of a step.
    """

    hear: Callable[[Table, Sequence[int]], list[Heard]]
    about: str
    names: Sequence[str]
    counted: Sequence[bool]
    background: int | None
    step: float


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Transcribed(Measured):
    """The references and transcripts of a split, and what the sections show of them.

    references, transcripts: the labels that count, of each recording.  counts: their errors; None
    without jiwer.  units: what the labels are.
    features: of the frames.  speakers: of the recordings; () if that is not known.
    """

    references: list[Labels]
    transcripts: list[Labels]
    counts: ErrorCounts | None
    units: Units
    features: acoustics.Config
    pictures: Pictures
    speakers: Sequence[str] = ()


def heard(features: acoustics.Config, file: pathlib.Path) -> np.ndarray:
    """The samples of a sound file, or of standard input for "-", at the rate of the features.

    Prints a message if many are clipped.
    Raises DataError naming the file if it is unreadable, silent, or shorter than a frame.
    """
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


def frames_for(
    task: States | Transcription,
    recordings: Sequence[np.ndarray],
    speakers: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Normalised frames of recordings: samples [n] in -1..1, at the rate of the features.

    speakers: of each recording, for frames normalised over those of a speaker; default: one.
    Raises ValueError for a recording that is shorter than a frame.
    """
    raw = frames_of(task.features, recordings) if len(recordings) else []
    if short := [index for index, frames in enumerate(raw) if not len(frames)]:
        least = task.features.window_samples
        raise ValueError(f"recordings[{short[0]}]: shorter than a frame, {least} samples")
    return normalised(raw, speakers or [""] * len(raw), task.normalise, task.moments)
