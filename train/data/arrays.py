"""arrays: data given to ``train.fit`` in memory.  Such a run cannot be repeated from its folder."""

import dataclasses
from typing import ClassVar

from train.data.base import Finder, Form, Source
from train.dataset import Dataset
from train.formats import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """Arrays in memory.  name: the name of the data in messages."""

    kind: ClassVar[str] = "arrays"
    identity: ClassVar[tuple[str, ...]] = ("name",)
    name: str = "arrays"

    def __str__(self) -> str:
        return self.name


FORMS: dict[str, Form] = {}


def load(cfg: Config, find: Finder) -> Dataset:
    """Raises DataError: the arrays existed in memory only."""
    raise DataError(
        f"data {str(cfg)!r}: arrays in memory, which are gone; npz:FILE reads them from a file"
    )
