"""synthetic:COUNTxHEIGHTxWIDTHxCHANNELS/CLASSES: generated images of any shape.

Example: 512x224x224x3/1000.  Each class is a noisy mosaic of colours.
"""

import dataclasses
import math
import re
from typing import ClassVar

import numpy as np

from train.data.base import Finder, Form, Source, named
from train.dataset import Columns, Dataset, with_splits
from train.formats import MAX_BYTES, MAX_CLASSES, DataError
from train.tasks import Classification

SEED = 2015
FORM = re.compile(
    r"([1-9][0-9]{,11})x([1-9][0-9]{,11})x([1-9][0-9]{,11})x([1-9][0-9]{,11})/([1-9][0-9]{,11})"
)
EXPECTED = "synthetic:COUNTxHEIGHTxWIDTHxCHANNELS/CLASSES"
EXAMPLE = "synthetic:512x224x224x3/1000"
PATCHES, BRIGHTEST = 4, 192
BLOCK_BYTES = 2**22


def synthetic(name: str, form: str) -> tuple[Columns, int]:
    """Generates images.  form: COUNTxHEIGHTxWIDTHxCHANNELS/CLASSES.  name: for error messages.

    Returns {"inputs": uint8 [count, height, width, channels], "targets": int32 [count]} and the
    number of classes.  A class is a mosaic of PATCHES x PATCHES random colours below BRIGHTEST; its
    images add noise below 256 - BRIGHTEST.  Class sizes differ by at most one.
    Raises DataError for another form, or one that is too large.
    """
    match = FORM.fullmatch(form)
    if not match:
        raise DataError(f"data {name!r}: expected {EXPECTED}, such as {EXAMPLE}")
    count, height, width, channels, classes = map(int, match.groups())
    size = math.prod((count, height, width, channels))
    if size > MAX_BYTES:
        raise DataError(f"data {name!r}: {size} bytes, allowed: {MAX_BYTES}; expected {EXPECTED}")
    if not 2 <= classes <= MAX_CLASSES:
        raise DataError(
            f"data {name!r}: {classes} classes, allowed: 2 to {MAX_CLASSES}; expected {EXPECTED}"
        )
    rng = np.random.default_rng(SEED)
    targets = np.arange(count) * classes // count
    colours = rng.integers(0, BRIGHTEST, (classes, PATCHES, PATCHES, channels), np.uint8)
    images = rng.integers(0, 256 - BRIGHTEST, (count, height, width, channels), np.uint8)
    row, column = (np.arange(length) * PATCHES // length for length in (height, width))
    block = max(BLOCK_BYTES * count // size, 1)
    for start in range(0, count, block):
        images[start : start + block] += colours[targets[start : start + block]][:, row][
            :, :, column
        ]
    return {"inputs": images, "targets": targets.astype(np.int32)}, classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """Generated images."""

    kind: ClassVar[str] = "synthetic"
    identity: ClassVar[tuple[str, ...]] = ("form",)
    form: str = "512x32x32x3/10"
    """COUNTxHEIGHTxWIDTHxCHANNELS/CLASSES."""

    def __str__(self) -> str:
        return f"synthetic:{self.form}"


def _parse(rest: str) -> Config:
    if not FORM.fullmatch(rest.removeprefix(":")):
        raise ValueError(f"expected {EXPECTED}, such as {EXAMPLE}")
    return Config(form=rest.removeprefix(":"))


FORMS = {"synthetic": Form(EXPECTED, "generated images", _parse)}


def load(cfg: Config, find: Finder) -> Dataset:
    """See ``synthetic``."""
    columns, classes = synthetic(str(cfg), cfg.form)
    splits = with_splits(named(cfg), {"all": columns}, divide=find.divide)
    return Dataset(str(cfg), splits, Classification(tuple(map(str, range(classes)))), (0.0, 255.0))
