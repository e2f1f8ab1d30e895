"""digits: 1,797 handwritten digits 8x8 (UCI), included in the package.

1,397 train, 100 validation and 300 test examples, stratified.  The same writers occur in all three
splits, so accuracies do not measure generalization to new writers.
"""

import dataclasses
import pathlib
from typing import ClassVar

import numpy as np

from train.data.base import Finder, Form, Source, just
from train.dataset import SPLITS, Dataset
from train.formats import read_npz
from train.tasks import Classification

CLASSES = tuple("0123456789")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """No options."""

    kind: ClassVar[str] = "digits"

    def __str__(self) -> str:
        return "digits"


FORMS = {"digits": Form("digits", "handwritten digits 8x8, embedded", just(Config()))}


def load(cfg: Config, find: Finder) -> Dataset:
    """Inputs uint8 [n, 8, 8, 1] of 0..16, targets int32 [n]."""
    arrays = read_npz(pathlib.Path(__file__).parent.parent / "assets" / "digits.npz")
    splits, start = {}, 0
    for split, size in zip(SPLITS, arrays["sizes"], strict=True):
        rows = slice(start, start + int(size))
        targets = arrays["targets"][rows].astype(np.int32)
        splits[split] = {"inputs": arrays["inputs"][rows, :, :, None], "targets": targets}
        start += int(size)
    return Dataset(str(cfg), splits, Classification(CLASSES), (0.0, 16.0))
