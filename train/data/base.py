"""The protocol of the data kinds, and the code they share.

A kind is a module of this package that defines three names:

    Config   a frozen dataclass derived from ``Source``; its fields are the options --data.*
    load     (Config, Finder) -> Dataset
    FORMS    {word: Form}: the one-word forms of the kind, such as folder:DIR

``train.data.KINDS`` lists the kinds.  A recipe's ``data`` is such a Config.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

from train.dataset import Dataset
from train.formats import DataError
from train.places import locate, roots
from train.settings import settle
from train.tasks import Normalise, Task, Units
from train.tokens import Kind
from zoo.parts import acoustics

NO_PATH = "a path must follow the colon"
S = TypeVar("S", bound="Source")
T = TypeVar("T", bound=Task)
ImageShape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Base class of the Configs.  ``str(config)``, the one-word form, is also the data's name.

    kind: name of the module.
    identity: the fields in the one-word form.  The others are settings, which carry over when the
        user switches to another kind with the same settings.
    counts: fields that must be positive.
    """

    kind: ClassVar[str]
    identity: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        settle(self, "data.")
        for field in self.counts:
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"data.{field}={value!r}, allowed: a positive integer")

    def check(self, model: Any, preprocess: str) -> None:
        """Raises ValueError for a model or scaling that cannot use the data.

        Called before the data are loaded.
        """

    def like(self: S, other: "Source") -> S:
        """A copy with the other's settings, as far as both have the same fields.

        Returns self if it does not allow their values, such as subwords for a text.
        """
        own_names, other_names = (
            {field.name for field in dataclasses.fields(source)} for source in (self, other)
        )
        shared = own_names & other_names - {*self.identity, *other.identity}
        try:
            return dataclasses.replace(self, **{name: getattr(other, name) for name in shared})
        except ValueError:
            return self

    def _require_one(self, corpus: str, *others: str) -> None:
        """Raises ValueError if other fields are set along with the corpus, which ignores them."""
        for name in others:
            if getattr(self, corpus) and getattr(self, name):
                only = f"allowed with data.{corpus}={getattr(self, corpus)!r}: ''"
                raise ValueError(f"data.{name}={getattr(self, name)!r}, {only}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentences(Source):
    """Options for reading sentences and captions."""

    counts: ClassVar[tuple[str, ...]] = ("subwords", "min_count", "max_length")
    tokens: Kind = "subwords"
    subwords: int = 8000
    """Size of the subword vocabulary of each language."""
    min_count: int = 1
    """Words and characters that occur less often in the training sentences become <unk>."""
    max_length: int = 100
    """Most tokens in a sentence, not counting the end token."""
    on_bad: Literal["error", "skip"] = "error"
    """How to handle lines and captions that are empty, too long or not UTF-8: report an error, or
    skip and count them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recordings(Source):
    """Options for the frames of recordings with transcripts."""

    counts: ClassVar[tuple[str, ...]] = ("rate", "bands", "coefficients")
    units: Units = "characters"
    """What a label stands for."""
    features: Literal["log_mel", "mfcc"] = "log_mel"
    """Of a frame: log-mel spectra, or cepstral coefficients."""
    rate: int = 16_000
    """Samples a second; recordings with another rate are resampled."""
    bands: int = 40
    """Mel bands."""
    coefficients: int = 13
    """Cepstral coefficients of features=mfcc."""
    deltas: Literal[0, 1, 2] = 0
    """1 appends the change of each value over time, 2 also the change of that."""
    normalise: Normalise = "speaker"
    """Scale each value to mean 0 and deviation 1 over the recordings of a speaker, over the
    utterance, or over all training recordings (global)."""
    on_bad: Literal["error", "skip"] = "error"
    """How to handle recordings and transcripts that cannot be used: report an error, or skip and
    count them."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        super().__post_init__()
        try:
            self.front_end  # noqa: B018 (checks its fields)
        except ValueError as error:
            raise ValueError(f"data: {error}") from None

    @property
    def front_end(self) -> acoustics.Config:
        """The features of a frame."""
        return acoustics.Config(
            kind=self.features,
            rate=self.rate,
            bands=self.bands,
            coefficients=self.coefficients,
            deltas=self.deltas,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterances(Recordings):
    """Options for recordings as sequences."""

    counts: ClassVar[tuple[str, ...]] = (*Recordings.counts, "buckets")
    buckets: int = 5
    """Number of length buckets: fewer compile faster, more need less padding."""


@dataclasses.dataclass(frozen=True)
class Finder:
    """Finds the files of a data set.

    data_dir: searched after the current directory and before $ZOO_DATA_DIR and the cache.
    task: the task of a trained model to evaluate; None while training.  The data are then encoded
        with its vocabulary, and a set without splits becomes the test split as a whole.
    """

    data_dir: str | os.PathLike[str] | None = None
    task: Task | None = None

    def __call__(self, path: str) -> pathlib.Path:
        """The location of a path.  Raises DataError naming the places searched."""
        if not path:
            raise DataError("data.path='', allowed: a file or folder")
        return locate(path, self.data_dir)

    def roots(self) -> Iterator[pathlib.Path]:
        """The directories to search for data sets."""
        return roots(self.data_dir)

    def within(self, *parts: str) -> pathlib.Path | None:
        """The first match for a file or folder in the data directories; None without a match."""
        places = (root.joinpath(*parts) for root in self.roots())
        return next((place for place in places if place.exists()), None)

    @property
    def divide(self) -> bool:
        """Whether to divide a set that has no splits."""
        return self.task is None

    def task_of(self, kind: type[T], config: Source) -> T | None:
        """The task of the trained model, whose vocabulary encodes the data; None while training.

        Raises DataError if the model's task is not of the kind that the data need.
        """
        if self.task is None or isinstance(self.task, kind):
            return self.task
        raise DataError(f"{named(config)}: {kind.name}; allowed for this run: {self.task}")


class Form(NamedTuple):
    """A one-word form.

    shown: its syntax, such as "folder:DIR".  about: a one-line description.
    parse: (the rest after the word, from ":" or "-" on) -> Config; raises ValueError for a rest
        that it does not accept.
    """

    shown: str
    about: str
    parse: Callable[[str], Source]


class KindModule(Protocol):
    """The names that a module of this package defines: see above."""

    @property
    def Config(self) -> type[Source]:  # noqa: N802 (a class, in the module's namespace)
        """The class that describes the data."""
        ...

    @property
    def FORMS(self) -> Mapping[str, Form]:  # noqa: N802
        """The one-word forms by their first word."""
        ...

    def load(self, cfg: Any, find: Finder) -> Dataset:
        """Loads the data.  Raises DataError naming the file and its fault, or where to put it."""
        ...


def just(config: Source) -> Callable[[str], Source]:
    """``Form.parse`` for a word without arguments."""

    def parse(rest: str) -> Source:
        if rest:
            raise ValueError(f"nothing follows {str(config)!r}")
        return config

    return parse


def path_after(build: Callable[[str], Source]) -> Callable[[str], Source]:
    """``Form.parse`` for a word followed by a colon and a path."""

    def parse(rest: str) -> Source:
        if not rest.startswith(":") or not rest[1:]:
            raise ValueError(NO_PATH)
        return build(rest[1:])

    return parse


def split_options(path: str) -> tuple[str, str]:
    """Splits PATH@OPTIONS into (path, options); options are "" if absent.

    Raises ValueError for options without a path.
    """
    match = re.fullmatch(r"(.*)@([^/@]+)", path, re.DOTALL)
    if match and not match[1]:
        raise ValueError(NO_PATH)
    return (match[1], match[2]) if match else (path, "")


def number(text: str, least: int, most: int, what: str) -> int:
    """A number in a one-word form.  Raises ValueError unless it is an integer in this range."""
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and least <= int(text) <= most):
        raise ValueError(f"{text!r} {what}, allowed: a number from {least} to {most}")
    return int(text)


def named(config: Source) -> str:
    """The name of the data in messages: "data 'digits'"."""
    return f"data {str(config)!r}"


def missing(config: Source, put: str) -> DataError:
    """The error for missing files.  put: what to put where."""
    return DataError(
        f"{named(config)}: not found.  Put {put} and give --data-dir DIR or set ZOO_DATA_DIR=DIR"
    )
