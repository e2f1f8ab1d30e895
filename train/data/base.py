"""The protocol that every kind of data follows, and what the kinds share.

A kind is a module of this package with the same three names:

    Config   a frozen dataclass, a ``Source``: its fields are the options --data.*
    load     (Config, Finder) -> Dataset
    FORMS    {word: Form}: how the kind is spelled in one word, such as folder:DIR

``train.data.KINDS`` lists them.  A recipe's ``data`` is such a Config, as its ``model`` is.
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
from train.tasks import Task
from train.tokens import Kind

NO_PATH = "a path must follow the colon"
S = TypeVar("S", bound="Source")
T = TypeVar("T", bound=Task)
ImageShape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Base class of the Configs.  ``str(config)`` is its one-word form, which is the data's name.

    kind: name of the module.  identity: the fields that the one-word form spells; the others are
    settings, which carry over to another kind that has them too.
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
        """Raises ValueError for a model or scaling that does not take the data.

        Called before they are loaded.
        """

    def like(self: S, other: "Source") -> S:
        """The source with the other's settings, where it has them too.

        As it is where it does not allow them, such as subwords for a text.
        """
        mine, theirs = (
            {field.name for field in dataclasses.fields(each)} for each in (self, other)
        )
        shared = mine & theirs - {*self.identity, *other.identity}
        try:
            return dataclasses.replace(self, **{name: getattr(other, name) for name in shared})
        except ValueError:
            return self

    def _require_one(self, corpus: str, *others: str) -> None:
        """Raises ValueError where fields say something beside the corpus, which then nothing reads."""
        for name in others:
            if getattr(self, corpus) and getattr(self, name):
                only = f"allowed with data.{corpus}={getattr(self, corpus)!r}: ''"
                raise ValueError(f"data.{name}={getattr(self, name)!r}, {only}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentences(Source):
    """How sentences are read, also those of captions."""

    counts: ClassVar[tuple[str, ...]] = ("subwords", "min_count", "max_length")
    tokens: Kind = "subwords"
    subwords: int = 8000
    """Size of each language's vocabulary of subwords."""
    min_count: int = 1
    """Words and characters that occur less often in the training sentences are <unk>."""
    max_length: int = 100
    """Tokens of a sentence, its end not counted."""
    on_bad: Literal["error", "skip"] = "error"
    """What happens to a line that is empty, too long or not UTF-8, or to such a caption: an error
    that names it, or it is left out and counted."""


@dataclasses.dataclass(frozen=True)
class Finder:
    """Where a kind finds its files.

    data_dir: looked up after the current directory, and before $ZOO_DATA_DIR and the cache.
    task: of a trained model that is only measured on the data.  They are then encoded with its
        vocabulary, and a set without splits is not divided: all of it is the test split.
    """

    data_dir: str | os.PathLike[str] | None = None
    task: Task | None = None

    def __call__(self, path: str) -> pathlib.Path:
        """Where a path is.  Raises DataError that names the places where it is not."""
        if not path:
            raise DataError("data.path='', allowed: a file or folder")
        return locate(path, self.data_dir)

    def roots(self) -> Iterator[pathlib.Path]:
        """The directories where data sets may lie."""
        return roots(self.data_dir)

    def within(self, *parts: str) -> pathlib.Path | None:
        """The first place of a file or folder in the data directories; None where there is none."""
        places = (root.joinpath(*parts) for root in self.roots())
        return next((place for place in places if place.exists()), None)

    @property
    def divide(self) -> bool:
        """Whether a set without splits is divided into them."""
        return self.task is None

    def task_of(self, kind: type[T], config: Source) -> T | None:
        """The task of the trained model, whose vocabulary encodes the data; None while training.

        Raises DataError unless it is of this kind, the data's.
        """
        if self.task is None or isinstance(self.task, kind):
            return self.task
        raise DataError(f"{named(config)}: {kind.name}; allowed for this run: {self.task}")


class Form(NamedTuple):
    """A one-word form.

    shown: such as "folder:DIR".  about: a line for lists.
    parse: (what follows the word, from ":" or "-" on) -> Config; raises ValueError for anything
        that it does not take.
    """

    shown: str
    about: str
    parse: Callable[[str], Source]


class KindModule(Protocol):
    """The names in a module of this package: see above."""

    @property
    def Config(self) -> type[Source]:  # noqa: N802 (a class, in the module's namespace)
        """What describes the data."""
        ...

    @property
    def FORMS(self) -> Mapping[str, Form]:  # noqa: N802
        """Its one-word forms by their first word."""
        ...

    def load(self, cfg: Any, find: Finder) -> Dataset:
        """The data.  Raises DataError naming the file and what is wrong, or where to put it."""
        ...


def just(config: Source) -> Callable[[str], Source]:
    """``Form.parse`` of a word that nothing follows."""

    def parse(rest: str) -> Source:
        if rest:
            raise ValueError(f"nothing follows {str(config)!r}")
        return config

    return parse


def path_after(build: Callable[[str], Source]) -> Callable[[str], Source]:
    """``Form.parse`` of a word that a colon and a path follow."""

    def parse(rest: str) -> Source:
        if not rest.startswith(":") or not rest[1:]:
            raise ValueError(NO_PATH)
        return build(rest[1:])

    return parse


def split_options(path: str) -> tuple[str, str]:
    """PATH@OPTIONS as (path, options); options are "" where there are none.

    Raises ValueError where options stand alone.
    """
    match = re.fullmatch(r"(.*)@([^/@]+)", path, re.DOTALL)
    if match and not match[1]:
        raise ValueError(NO_PATH)
    return (match[1], match[2]) if match else (path, "")


def number(text: str, least: int, most: int, what: str) -> int:
    """A number in a one-word form.  Raises ValueError unless it is an integer of this range."""
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and least <= int(text) <= most):
        raise ValueError(f"{text!r} {what}, allowed: a number from {least} to {most}")
    return int(text)


def named(config: Source) -> str:
    """How messages call the data: "data 'digits'"."""
    return f"data {str(config)!r}"


def missing(config: Source, put: str) -> DataError:
    """For files that are not there.  put: what to put where."""
    return DataError(
        f"{named(config)}: not found.  Put {put} and give --data-dir DIR or set ZOO_DATA_DIR=DIR"
    )
