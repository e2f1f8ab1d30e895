"""Data sets, one module per kind; ``train.data.base`` defines the protocol.

A data set is described by the Config of its kind, or in one word, such as "mnist" or "folder:DIR"
(``parse``); ``load_data`` takes both.  Files are searched for in DIR/mnist etc., where DIR is
``data_dir`` or $ZOO_DATA_DIR, then in the cache, and downloaded if not found.  A relative PATH is
searched for in the current directory, then in each DIR.

A set without splits is split 80/10/10, stratified, with a fixed seed.  If only the validation
split is missing, it is a tenth of the training examples.  Splits may be named train or training;
validation, valid, val or dev; test or testing.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from typing import Any

from train.data import (
    arrays,
    captions,
    digits,
    folder,
    fsdd,
    masks,
    mnist,
    moving_digits,
    npz,
    pairs,
    pixels,
    scenes,
    sequences,
    speech,
    spoken_digits,
    states,
    synthetic,
    text,
    timit,
)
from train.data.base import Finder, Form, KindModule, Source
from train.dataset import Dataset
from train.formats import DataError
from train.tasks import Task

__all__ = [
    "KINDS",
    "DataError",
    "Finder",
    "Source",
    "arrays",
    "forms",
    "load",
    "load_data",
    "parse",
]

KINDS: dict[str, KindModule] = {
    "digits": digits,
    "mnist": mnist,
    "npz": npz,
    "folder": folder,
    "fsdd": fsdd,
    "spoken_digits": spoken_digits,
    "speech": speech,
    "timit": timit,
    "states": states,
    "moving_digits": moving_digits,
    "text": text,
    "sequences": sequences,
    "pairs": pairs,
    "scenes": scenes,
    "pixels": pixels,
    "masks": masks,
    "captions": captions,
    "synthetic": synthetic,
    "arrays": arrays,
}
"""All kinds by name."""


def forms() -> dict[str, Form]:
    """All one-word forms by their first word."""
    return {word: form for kind in KINDS.values() for word, form in kind.FORMS.items()}


def parse(name: str, like: Source | None = None) -> Source:
    """The Config that a one-word form describes.

    like: a source whose settings carry over, see ``Source.like``.
    Raises DataError for an unknown form, suggesting the closest one or listing all.

    Example::

        >>> from train import data
        >>> source = data.parse("text:book.txt")
        >>> source
        Config(corpus='', path='book.txt', tokens='characters', window=64, min_count=1)
        >>> str(source)
        'text:book.txt'
    """
    known = forms()
    match = re.match(r"[A-Za-z0-9_]+", name)
    word = match[0] if match else ""
    if word not in known:
        shown = [form.shown for form in known.values()]
        near = difflib.get_close_matches(name, [*known, *shown], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(shown)
        raise DataError(f"data {name!r}: no such set; {hint}")
    form, rest = known[word], name[len(word) :]
    try:
        source = form.parse(rest)
    except ValueError as error:
        raise DataError(f"data {name!r}: {error if rest else f'expected {form.shown}'}") from error
    return source if like is None else source.like(like)


def load(source: Source, find: Finder) -> Dataset:
    """Loads the data that a Config describes.  Raises DataError for wrong or missing files."""
    return dataclasses.replace(KINDS[source.kind].load(source, find), source=source)


def load_data(
    data: str | Source,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    task: Task | None = None,
    **settings: Any,
) -> Dataset:
    """Loads a data set by its Config or one-word form.

    data_dir: where to search for files.  task: see ``Finder``.
    settings: fields of the kind's Config, such as window=32 for a text.
    Raises DataError naming the file and its fault, or where to put it; ValueError for an unknown
    setting or a wrong value.

    Example::

        >>> from train import data
        >>> digits = data.load_data("digits")
        >>> {name: table.size for name, table in digits.splits.items()}
        {'train': 1397, 'validation': 100, 'test': 300}
        >>> digits.splits["train"]["inputs"].shape
        (1397, 8, 8, 1)
    """
    source = parse(data) if isinstance(data, str) else data
    return load(with_settings(source, settings), Finder(data_dir, task))


def with_settings(source: Source, settings: Mapping[str, Any]) -> Source:
    """The source with other settings.  Raises ValueError for an unknown setting."""
    names = [field.name for field in dataclasses.fields(source)]
    for name in settings:
        if name not in names:
            has = ", ".join(names) or "none"
            raise ValueError(f"data {source}: no setting {name!r}; it has {has}")
    return dataclasses.replace(source, **settings)


def to_dict(source: Source) -> dict[str, Any]:
    """The source's kind and fields as plain JSON types."""
    return {"kind": source.kind} | dataclasses.asdict(source)


def from_dict(fields: Mapping[str, Any]) -> Source:
    """The inverse of ``to_dict``.  Raises KeyError, TypeError or ValueError for anything else."""
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
        if name != "kind"
    }
    return KINDS[fields["kind"]].Config(**values)
