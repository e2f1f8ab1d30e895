"""Tasks: what a model learns from data and can be used for.

A task is a value.  Each dataset has one, a run stores it in data.json, and ``evals.tasks`` has a
module per task class that evaluates such runs.  It holds everything needed to use the model without
its data: names of classes, a vocabulary, tokenizers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from train.tokens import Tokenizer
from zoo.base import Outputs
from zoo.parts import acoustics

Units = Literal["characters", "words", "phones"]
"""What a label of a transcript stands for."""
Normalise = Literal["speaker", "utterance", "global"]
"""The frames whose mean and deviation normalise a frame: those of its speaker, of its utterance, or
of the training split."""
MOST_LISTED = 5
"""Maximum number of classes listed in a message."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Base class of all tasks.

    name: the task's name in run folders and messages, and of its module in ``evals.tasks``.
    """

    name: ClassVar[str]

    @property
    def sizes(self) -> dict[str, int]:
        """Fields of a model's Config that depend on the data: {"vocabulary": 8000}."""
        return {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of classes by number; () if there are no classes or the data do not name them."""
        return ()

    def __str__(self) -> str:
        """For messages: "classification into 3 classes: cat, dog, owl"."""
        return self.name


@dataclasses.dataclass(frozen=True)
class _WithClasses(Task):
    """classes: names by number; () if the data do not name them."""

    classes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    def __str__(self) -> str:
        return self.name + _listed("classes", self.classes)


@dataclasses.dataclass(frozen=True)
class Classification(_WithClasses):
    """One class per example: targets are integers [n]."""

    name = "classification"


@dataclasses.dataclass(frozen=True)
class Segmentation(_WithClasses):
    """One class per pixel: targets and mask are [n, height, width]."""

    name = "segmentation"


@dataclasses.dataclass(frozen=True)
class Reconstruction(_WithClasses):
    """Reconstruction of the inputs.  The classes, where known, are used only in the report."""

    name = "reconstruction"


@dataclasses.dataclass(frozen=True)
class Density(_WithClasses):
    """The distribution of the inputs.  classes: see ``Reconstruction``."""

    name = "density"


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Numbers per example, or per time step of an example."""

    name = "regression"


@dataclasses.dataclass(frozen=True)
class Algorithm(Task):
    """Sequences of symbols computed from other sequences by a rule.  vocabulary: the symbols."""

    name = "algorithm"
    vocabulary: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The model's vocabulary."""
        return {"vocabulary": len(self.vocabulary)}


@dataclasses.dataclass(frozen=True)
class Language(Task):
    """The next token of a text, see ``train.data.text``.

    vocabulary: characters or words, depending on ``tokens``.
    """

    name = "language"
    vocabulary: tuple[str, ...]
    tokens: Literal["characters", "words"]

    @property
    def sizes(self) -> dict[str, int]:
        """The model's vocabulary."""
        return {"vocabulary": len(self.vocabulary)}

    def __str__(self) -> str:
        return f"language of {len(self.vocabulary):,} {self.tokens}"


@dataclasses.dataclass(frozen=True)
class Translation(Task):
    """A target sentence for each source sentence."""

    name = "translation"
    source: Tokenizer
    target: Tokenizer

    @property
    def sizes(self) -> dict[str, int]:
        """The model's vocabularies."""
        sides = {"vocabulary": self.target, "source_vocabulary": self.source}
        return {field: len(tokenizer.vocabulary) for field, tokenizer in sides.items()}


@dataclasses.dataclass(frozen=True)
class Captioning(Task):
    """A sentence for each image.  max_length: tokens of the longest caption, without its end."""

    name = "captioning"
    target: Tokenizer
    max_length: int

    @property
    def sizes(self) -> dict[str, int]:
        """The model's vocabulary."""
        return {"vocabulary": len(self.target.vocabulary)}


@dataclasses.dataclass(frozen=True)
class Transcription(Task):
    """The labels of an utterance, see ``train.acoustic``.

    vocabulary: what each label stands for; "" for the blank, label 0.  Labels of characters include
        the space between words.
    units: what the labels are.
    features: of the frames.
    normalise: the frames that mean and deviation of each value are of.
    moments: mean and deviation of each value, for normalise="global"; else ().
    words: the words that may occur, if that is known.
    scored: the label that each counts as in error rates, "" for none; () for itself.
    """

    name = "transcription"
    vocabulary: tuple[str, ...]
    units: Units
    features: acoustics.Config
    normalise: Normalise
    moments: tuple[tuple[float, ...], ...] = ()
    words: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """The model's vocabulary and values per frame."""
        return {"vocabulary": len(self.vocabulary), "features": self.features.values}

    def __str__(self) -> str:
        return f"transcription into {len(self.vocabulary) - 1:,} {self.units}"


@dataclasses.dataclass(frozen=True)
class States(Task):
    """The state of a hidden Markov model at each frame of speech, see ``train.data.states``.

    phones: names by number; each has ``states`` states, and target p * states + s is state s of
        phone p.
    silence: the phone that may occur between words, which is not part of a transcript; None if
        there is none.
    features, normalise, moments, scored: as of ``Transcription``; scored is by phone.
    context: frames that the model sees at once, the middle one of which is in that state.
    means, variances: [states of all phones][values], Gaussians of frames in each state.
    log_stay, log_bigram, log_prior: see ``train.alignment.Transitions``.
    """

    name = "states"
    phones: tuple[str, ...]
    silence: int | None
    states: int
    features: acoustics.Config
    normalise: Normalise
    context: int
    means: tuple[tuple[float, ...], ...]
    variances: tuple[tuple[float, ...], ...]
    log_stay: tuple[tuple[float, ...], ...]
    log_bigram: tuple[tuple[float, ...], ...]
    log_prior: tuple[float, ...]
    moments: tuple[tuple[float, ...], ...] = ()
    scored: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the states: "AH 1", "AH 2", ..."""
        parts = range(1, self.states + 1)
        return tuple(f"{phone} {part}" for phone in self.phones for part in parts)

    def __str__(self) -> str:
        return f"states of {len(self.phones)} phones, {self.states} each"


TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Classification,
        Regression,
        Segmentation,
        Reconstruction,
        Density,
        Language,
        Algorithm,
        Translation,
        Captioning,
        Transcription,
        States,
    )
}
"""Every task by name."""


def task_of_arrays(table: Mapping[str, Any]) -> Task:
    """The task of plain arrays, derived from their targets, if they have any."""
    if "targets" not in table:
        return Reconstruction()
    targets = table["targets"]
    classes = isinstance(targets, np.ndarray) and targets.ndim == 1 and targets.dtype.kind in "bui"
    return Classification() if classes else Regression()


def learned(outputs: Outputs, task: Task) -> Task:
    """The task that a model with these outputs learns from data with ``task``.

    Unsupervised models learn from the inputs only, whatever the targets are.
    """
    classes = task.classes if isinstance(task, Classification) else ()
    unsupervised = Reconstruction(classes)
    return {"targets": task, "density": Density(classes)}.get(outputs.of, unsupervised)


def to_dict(task: Task) -> dict[str, Any]:
    """The task's name and fields as plain JSON types."""
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return {"name": task.name} | {name: _plain(value) for name, value in fields.items()}


def from_dict(fields: Mapping[str, Any]) -> Task:
    """The inverse of ``to_dict``.  Raises KeyError, TypeError or ValueError for other values."""
    task = TASKS[fields["name"]]
    kinds = {field.name: field.type for field in dataclasses.fields(task)}
    values = {name: _value(kinds[name], value) for name, value in fields.items() if name != "name"}
    return task(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Tokenizer):
        return value.to_dict()
    return dataclasses.asdict(value) if isinstance(value, acoustics.Config) else value


def _value(kind: Any, value: Any) -> Any:
    """The value of a field.  kind: its annotation."""
    if isinstance(value, dict):
        return Tokenizer.from_dict(value) if kind is Tokenizer else kind(**value)
    return _frozen(value)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _listed(what: str, names: tuple[str, ...]) -> str:
    more = ", ..." if len(names) > MOST_LISTED else ""
    return f" into {len(names)} {what}: {', '.join(names[:MOST_LISTED])}{more}" if names else ""
