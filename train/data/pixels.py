"""digit_pixels, stamp_pixels:PATH: the scenes of ``train.data.scenes`` with a class per pixel.

The classes are the background and the digits or the categories of the stamps.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from train.data.base import Finder, Form, Source, path_after, split_options
from train.data.masks import VOID
from train.data.scenes import Scenes, make, scenes_count
from train.dataset import Dataset
from train.formats import DataError
from train.stamps import categories
from train.tasks import Segmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """Scenes with labelled pixels."""

    kind: ClassVar[str] = "pixels"
    identity: ClassVar[tuple[str, ...]] = ("path", "count")
    counts: ClassVar[tuple[str, ...]] = ("count",)
    language: ClassVar[str] = "en"
    path: str = ""
    """Folder of cut-out pictures, see ``train.stamps``; "" for the embedded digits."""
    count: int | None = None
    """Number of training scenes; the default depends on the kind of scenes."""

    def __str__(self) -> str:
        if not self.path:
            return "digit_pixels" + (f":{self.count}" if self.count else "")
        return f"stamp_pixels:{self.path}" + (f"@{self.count}" if self.count else "")


def _digits(rest: str) -> Config:
    return Config(count=scenes_count(rest.removeprefix(":"))) if rest else Config()


def _stamps(path: str) -> Config:
    folder, count = split_options(path)
    return Config(path=folder, count=scenes_count(count) if count else None)


FORMS = {
    "digit_pixels": Form("digit_pixels[:COUNT]", "labelled pixels of digits, embedded", _digits),
    "stamp_pixels": Form(
        "stamp_pixels:PATH[@COUNT]", "labelled pixels of pictures", path_after(_stamps)
    ),
}


def load(cfg: Config, find: Finder) -> Dataset:
    """Inputs uint8 [n, height, width, channels]; targets and mask [n, height, width]."""
    scenes = make(cfg, find)
    if not cfg.path:
        return labelled(str(cfg), scenes, scenes.kinds, range(len(scenes.kinds)))
    of_kinds = categories(find(cfg.path), scenes.kinds)
    classes = sorted(set(of_kinds))
    return labelled(str(cfg), scenes, classes, [classes.index(category) for category in of_kinds])


def labelled(name: str, scenes: Scenes, classes: Sequence[str], of_kinds: Sequence[int]) -> Dataset:
    """Scenes with labelled pixels.  of_kinds: the class of each kind of object."""
    if len(classes) >= VOID:
        raise DataError(f"{name}: {len(classes)} classes of pixels, allowed: {VOID - 1} at most")
    labels = np.array([0, *(1 + index for index in of_kinds)], np.uint8)
    splits = {
        split: {
            "inputs": table["inputs"]["image"],
            "targets": labels[table["pixels"]],
            "mask": np.ones(table["pixels"].shape, bool),
        }
        for split, table in scenes.splits.items()
    }
    task = Segmentation(("background", *classes))
    return Dataset(name, splits, task, (0.0, 255.0), scenes.notes)
