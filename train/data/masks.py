"""Images whose every pixel has a label: a folder of images, and one of PNG masks whose values, of a palette or grey, are classes.

    images/NAME.jpg, masks/NAME.png                     any format of image; or, as Pascal VOC calls them,
    JPEGImages/NAME.jpg, SegmentationClass/NAME.png
    classes.txt                                         names of classes 0, 1, ..., one a line; may be absent where all occur
    ImageSets/Segmentation/train.txt, val.txt, test.txt names of what is in each split, one a line; may be absent

A mask is turned upright as its own EXIF says, as images are.

Value 255 is VOID: no label.  Colours of a palette do not matter, only its indices.  Without lists all images are split 80/10/10.
With a train and a val list only, as VOC has them, val tests, and a tenth of train validates.
"""

import collections
import dataclasses
import pathlib
from typing import ClassVar

import numpy as np
from PIL import Image

from train.data.base import Finder, Form, ImageShape, Source, path_after
from train.dataset import SPLIT_OF, Columns, Dataset, by_split, with_splits
from train.formats import (
    DataError,
    check_image_shape,
    common_shape,
    named,
    not_read,
    read_lines,
    read_mask,
    read_sized_image,
    reading,
    visible,
)
from train.tasks import Segmentation

VOID = 255
PLACES = (("images", "masks"), ("JPEGImages", "SegmentationClass"))
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """A folder of images and masks."""

    kind: ClassVar[str] = "masks"
    identity: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""
    """The folder."""
    image_shape: ImageShape | None = None
    """Height, width and channels (1 grey, 3 or 4) that images are resized to; unless given, the
    shape that all images have."""

    def __str__(self) -> str:
        return f"masks:{self.path}"


FORMS = {
    "masks": Form(
        "masks:PATH", "images and masks of classes", path_after(lambda path: Config(path=path))
    )
}


def load(cfg: Config, find: Finder) -> Dataset:
    """Inputs uint8 [n, height, width, channels]; targets and mask [n, height, width]."""
    folder = find(cfg.path)
    tables, classes, notes = read_masks(folder, cfg.image_shape)
    splits = with_splits(str(folder), tables, divide=find.divide)
    return Dataset(str(cfg), splits, Segmentation(classes), (0.0, 255.0), notes)


def read_masks(
    folder: pathlib.Path, shape: ImageShape | None
) -> tuple[dict[str, Columns], tuple[str, ...], tuple[str, ...]]:
    """Tables "train" and "test" (and "validation" where all three are listed), or "all"; the names of classes; a note of files.

    Images are resized to ``shape`` (height, width, channels), bilinearly, and masks alike, to the nearest pixel.  Of a table,
    inputs are uint8 [n, *shape], targets uint8 and mask bool [n, height, width]; targets are 0 where mask is False.
    Raises DataError that names the file and what is wrong with it.
    """
    with reading(folder):
        found = next(
            (
                (folder / images, folder / masks)
                for images, masks in PLACES
                if (folder / images).is_dir()
            ),
            None,
        )
        if found is None or not found[1].is_dir():
            expected = ", or ".join(f"{images}/ and {masks}/" for images, masks in PLACES)
            raise DataError(f"{folder}: expected folders {expected}")
        images, (there, notes) = _images(found[0]), _masks(found[1])
    names, lists = _class_names(folder, found[0].name), _lists(folder)
    splits = lists or {"all": sorted(images)}
    masks = {
        name: there.get(name, found[1] / f"{name}.png")
        for listed in splits.values()
        for name in listed
    }
    for name, mask in masks.items():
        if name not in images:
            raise DataError(f"{folder}: no image {name!r} in {found[0].name}/, which a list names")
        if not mask.is_file():
            raise DataError(f"{mask}: no such file, the mask of {images[name].name}")
    if not lists and (more := there.keys() - images.keys()):
        raise DataError(f"{there[min(more)]}: a mask without an image in {found[0].name}/")
    shape = shape or common_shape(folder, [images[name] for name in masks])
    check_image_shape(shape)
    first: dict[int, pathlib.Path] = {}
    tables = {
        split: _table(images, masks, listed, shape, names, first)
        for split, listed in splits.items()
    }
    values = sorted(first)
    if not names and values != list(
        range(len(values))
    ):  # a stray one must not announce classes that are nowhere
        absent = next(number for number, value in enumerate(values) if number != value)
        where = f"{first[values[-1]]}: value {values[-1]}, while no mask has {absent}"
        raise DataError(
            f"{where}; allowed without {folder / 'classes.txt'}: 0, 1, ..., all of which occur, and {VOID}, void"
        )
    return tables, names or tuple(map(str, values)), notes


def _images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """{stem: file}."""
    found: dict[str, pathlib.Path] = {}
    for file in visible(folder):
        if file.stem in found:
            raise DataError(
                f"{file}: the same name as {found[file.stem].name}, so that their masks would be one"
            )
        found[file.stem] = file
    if not found:
        raise DataError(f"{folder}: no images")
    return found


def _lines(file: pathlib.Path) -> list[str]:
    lines = [line.strip() for line in read_lines(file) if line.strip()]
    if not lines:
        raise DataError(f"{file}: nothing in it")
    return lines


def _masks(folder: pathlib.Path) -> tuple[dict[str, pathlib.Path], tuple[str, ...]]:
    """{stem: file}, and a note of files that are no masks."""
    entries = visible(folder)
    return {file.stem: file for file in entries if _is_png(file)}, not_read(
        [file for file in entries if not _is_png(file)]
    )


def _is_png(file: pathlib.Path) -> bool:
    return file.suffix.lower() == ".png"


def _class_names(folder: pathlib.Path, images: str) -> tuple[str, ...]:
    """() where nothing says what classes are called."""
    file = named(folder, "classes.txt")
    if not file.exists():
        return VOC_CLASSES if images == PLACES[1][0] else ()
    names = _lines(file)
    if len(set(names)) < len(names) or not 2 <= len(names) <= VOID:
        raise DataError(f"{file}: {len(names)} names, expected 2 to {VOID} different ones")
    return tuple(names)


def _lists(folder: pathlib.Path) -> dict[str, list[str]]:
    """Names by split; {} without a list of those to train on."""
    place = folder / "ImageSets" / "Segmentation"
    texts = (
        [file for file in visible(place) if file.suffix.lower() == ".txt"] if place.is_dir() else []
    )
    files = by_split(
        str(place), ((file.stem, file) for file in texts if file.stem.lower() in SPLIT_OF)
    )
    found = {split: _lines(file) for split, file in files.items()}
    if texts and ("train" not in found or len(found) < 2):
        names = ", ".join(file.name for file in texts)
        raise DataError(f"{place}: {names}, expected train.txt and val.txt, or test.txt too")
    if not found:
        return {}
    for split, names in found.items():
        for name in names:
            if pathlib.PurePath(name).name != name:
                raise DataError(
                    f"{files[split]}: {name!r}, expected the name of an image without its folder and ending"
                )
    (name, times), *_ = collections.Counter(
        name for names in found.values() for name in names
    ).most_common(1)
    if times > 1:
        raise DataError(f"{place}: {name!r} is listed twice")
    return (
        found
        if len(found) == 3
        else {"train": found["train"], "test": found.get("validation") or found["test"]}
    )


def _table(
    images: dict[str, pathlib.Path],
    masks: dict[str, pathlib.Path],
    listed: list[str],
    shape: tuple[int, int, int],
    names: tuple[str, ...],
    first: dict[int, pathlib.Path],
) -> Columns:
    """first: gets the first mask of each value that was not met before."""
    inputs = np.empty((len(listed), *shape), np.uint8)
    values = np.empty(inputs.shape[:-1], np.uint8)
    for row, name in enumerate(listed):
        mask = read_mask(masks[name])
        inputs[row], size = read_sized_image(images[name], shape)
        if mask.shape != size:
            raise DataError(
                f"{masks[name]}: {_by(mask.shape)} pixels, its image {images[name].name} has {_by(size)}"
            )
        for value in np.setdiff1d(mask, [*first, VOID]).tolist():
            first[value] = masks[name]
        unknown = np.setdiff1d(mask, [*range(len(names) or VOID), VOID])
        if unknown.size:
            raise DataError(
                f"{masks[name]}: value {unknown[0]}, allowed: 0 to {len(names) - 1}, the classes, and {VOID}, void"
            )
        values[row] = np.asarray(
            Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
        )
    there = values != VOID
    return {"inputs": inputs, "targets": np.where(there, values, np.uint8(0)), "mask": there}


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, reversed(size)))
