"""arrays: what is given to ``train.fit`` in memory.  A run on them is not repeated from its folder."""

import dataclasses
from typing import ClassVar

from train.data.base import Finder, Form, Source
from train.dataset import Dataset
from train.formats import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """name: what messages call the data."""

    kind: ClassVar[str] = "arrays"
    identity: ClassVar[tuple[str, ...]] = ("name",)
    name: str = "arrays"

    def __str__(self) -> str:
        return self.name


FORMS: dict[str, Form] = {}


def load(cfg: Config, find: Finder) -> Dataset:
    """Raises DataError: they were in memory only."""
    raise DataError(
        f"data {str(cfg)!r}: arrays in memory, which are gone; npz:FILE reads them from a file"
    )
