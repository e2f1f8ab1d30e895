"""folder:PATH, stream:PATH: images, one sub-folder per class.

The class folders may also be within train/, val/ and test/.  Images are rotated upright and
resized.  stream decodes them during training (see ``train.stream``), for data that do not fit in
memory.
"""

import dataclasses
import pathlib
from typing import Any, ClassVar

import numpy as np

from train.batches import MEASURED, not_streamed
from train.data.base import Finder, Form, ImageShape, Source, path_after
from train.dataset import SPLIT_OF, Columns, Dataset, by_split, with_splits
from train.formats import (
    DataError,
    Images,
    check_image_shape,
    common_shape,
    not_read,
    reading,
    visible,
)
from train.tasks import Classification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """A folder of images."""

    kind: ClassVar[str] = "folder"
    identity: ClassVar[tuple[str, ...]] = ("path", "stream")
    path: str = ""
    """The folder."""
    stream: bool = False
    """Decode images during training, in several processes, instead of loading them at the start."""
    image_shape: ImageShape | None = None
    """Height, width and channels (1 grey, 3 or 4) to resize images to; by default, the common shape
    of all images."""

    def __str__(self) -> str:
        return f"{'stream' if self.stream else 'folder'}:{self.path}"

    def check(self, model: Any, preprocess: str) -> None:
        """Raises ValueError for a scaling that has to decode all images first."""
        if self.stream and preprocess in MEASURED:
            raise not_streamed(preprocess)


FORMS = {
    "folder": Form(
        "folder:PATH", "images by class, in memory", path_after(lambda path: Config(path=path))
    ),
    "stream": Form(
        "stream:PATH",
        "the same, decoded while they are needed",
        path_after(lambda path: Config(path=path, stream=True)),
    ),
}


def load(cfg: Config, find: Finder) -> Dataset:
    """Inputs uint8 [n, height, width, channels] or ``Images`` of that shape, targets int32 [n]."""
    folder = find(cfg.path)
    if cfg.image_shape is not None:
        check_image_shape(cfg.image_shape)
    with reading(folder):
        entries, parts = _parts(folder, find.divide)
        names = {entry.name for part in parts.values() for entry in visible(part) if entry.is_dir()}
        if len(names) < 2:
            expected = "expected one for each of two or more classes"
            raise DataError(f"{folder}: {len(names)} sub-folders, {expected}")
        classes = tuple(sorted(names))
        listed = {split: _listed(part, classes) for split, part in parts.items()}
    every = [file for files, _ in listed.values() for file in files]
    shape = cfg.image_shape or common_shape(folder, every)
    tables: dict[str, Columns] = {
        split: {"inputs": Images.find(folder, files, shape), "targets": targets}
        for split, (files, targets) in listed.items()
    }
    splits = with_splits(str(folder), tables, divide=find.divide)
    if not cfg.stream:
        splits = {split: {**table, "inputs": table["inputs"][:]} for split, table in splits.items()}
    notes = not_read([entry for entry in entries if not entry.is_dir()])
    return Dataset(str(cfg), splits, Classification(classes), (0.0, 255.0), notes=notes)


def _parts(
    folder: pathlib.Path, divide: bool
) -> tuple[list[pathlib.Path], dict[str, pathlib.Path]]:
    """Entries of the folder and its splits, and {split: its folder} or {"all": the folder}."""
    entries = visible(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    splits = [SPLIT_OF.get(entry.name.lower()) for entry in folders]
    if not folders or None in splits or (divide and "train" not in splits):
        return entries, {"all": folder}
    parts = by_split(str(folder), ((entry.name, entry) for entry in folders))
    return entries + [entry for part in parts.values() for entry in visible(part)], parts


def _listed(part: pathlib.Path, classes: tuple[str, ...]) -> tuple[list[pathlib.Path], np.ndarray]:
    """The files of a split and their classes."""
    files, targets = [], []
    for label, name in enumerate(classes):
        images = visible(part / name) if (part / name).is_dir() else []
        if not images:
            raise DataError(f"{part / name}: no images of this class")
        for file in images:
            if file.is_dir():
                splits = ", ".join(SPLIT_OF)
                raise DataError(
                    f"{file}: a folder among the images of a class (splits are called {splits})"
                )
        files += images
        targets += [label] * len(images)
    return files, np.asarray(targets, np.int32)
