"""masks:PATH: images with a class label per pixel, from a folder of images and one of PNG masks.

    images/NAME.jpg, masks/NAME.png                  images in any format; or as in Pascal VOC:
    JPEGImages/NAME.jpg, SegmentationClass/NAME.png
    classes.txt                                      names of classes 0, 1, ..., one per line;
                                                     optional if all classes occur
    ImageSets/Segmentation/{train,val,test}.txt      names of the images in each split, one per
                                                     line; optional

The palette indices or grey values of a mask are the classes; 255 is VOID, no label.  The colours
of the palette do not matter.  Images and masks are rotated upright, each by its own EXIF data.

Without lists, images are split 80/10/10.  With only train.txt and val.txt, as in VOC, val is the
test split, and a tenth of train becomes the validation split.
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
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "tv monitor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """A folder of images and segmentation masks."""

    kind: ClassVar[str] = "masks"
    identity: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""
    """The folder."""
    image_shape: ImageShape | None = None
    """Height, width and channels (1 grey, 3 or 4) to resize images to; by default, the common shape
    of all images."""

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
    """Reads tables "train" and "test" (and "validation" if all are listed), or "all".

    shape: height, width and channels to resize to: images bilinearly, masks to the nearest pixel.
    Returns the tables, the names of the classes, and a note on files that were not read.  A table
    has inputs uint8 [n, *shape], targets uint8 and mask bool [n, height, width]; targets are 0
    where mask is False.  Raises DataError naming the file and its fault.
    """
    with reading(folder):
        folders = next(
            (
                (folder / images, folder / masks)
                for images, masks in PLACES
                if (folder / images).is_dir()
            ),
            None,
        )
        if folders is None or not folders[1].is_dir():
            expected = ", or ".join(f"{images}/ and {masks}/" for images, masks in PLACES)
            raise DataError(f"{folder}: expected folders {expected}")
        images, (mask_files, notes) = _images(folders[0]), _masks(folders[1])
    names, lists = _class_names(folder, folders[0].name), _lists(folder)
    splits = lists or {"all": sorted(images)}
    masks = {
        name: mask_files.get(name, folders[1] / f"{name}.png")
        for listed in splits.values()
        for name in listed
    }
    for name, mask in masks.items():
        if name not in images:
            raise DataError(
                f"{folder}: no image {name!r} in {folders[0].name}/, which a list names"
            )
        if not mask.is_file():
            raise DataError(f"{mask}: no such file, the mask of {images[name].name}")
    if not lists and (orphans := mask_files.keys() - images.keys()):
        raise DataError(
            f"{mask_files[min(orphans)]}: a mask without an image in {folders[0].name}/"
        )
    shape = shape or common_shape(folder, [images[name] for name in masks])
    check_image_shape(shape)
    first: dict[int, pathlib.Path] = {}
    tables = {
        split: _table(images, masks, listed, shape, names, first)
        for split, listed in splits.items()
    }
    values = sorted(first)
    # A stray value must not imply classes that never occur.
    if not names and values != list(range(len(values))):
        absent = next(number for number, value in enumerate(values) if number != value)
        where = f"{first[values[-1]]}: value {values[-1]}, while no mask has {absent}"
        raise DataError(
            f"{where}; allowed without {folder / 'classes.txt'}: "
            f"0, 1, ..., without gaps, and {VOID}, void"
        )
    return tables, names or tuple(map(str, values)), notes


def _images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """{stem: file}."""
    files: dict[str, pathlib.Path] = {}
    for file in visible(folder):
        if file.stem in files:
            raise DataError(
                f"{file}: the same name as {files[file.stem].name}, "
                "so both would have the same mask"
            )
        files[file.stem] = file
    if not files:
        raise DataError(f"{folder}: no images")
    return files


def _lines(file: pathlib.Path) -> list[str]:
    lines = [line.strip() for line in read_lines(file) if line.strip()]
    if not lines:
        raise DataError(f"{file}: empty")
    return lines


def _masks(folder: pathlib.Path) -> tuple[dict[str, pathlib.Path], tuple[str, ...]]:
    """{stem: file}, and a note on files that are not masks."""
    entries = visible(folder)
    return {file.stem: file for file in entries if _is_png(file)}, not_read(
        [file for file in entries if not _is_png(file)]
    )


def _is_png(file: pathlib.Path) -> bool:
    return file.suffix.lower() == ".png"


def _class_names(folder: pathlib.Path, images: str) -> tuple[str, ...]:
    """The names of the classes; () if unknown."""
    file = named(folder, "classes.txt")
    if not file.exists():
        return VOC_CLASSES if images == PLACES[1][0] else ()
    names = _lines(file)
    if len(set(names)) < len(names) or not 2 <= len(names) <= VOID:
        raise DataError(f"{file}: {len(names)} names, expected 2 to {VOID} different ones")
    return tuple(names)


def _lists(folder: pathlib.Path) -> dict[str, list[str]]:
    """Names of images by split; {} without lists."""
    place = folder / "ImageSets" / "Segmentation"
    texts = (
        [file for file in visible(place) if file.suffix.lower() == ".txt"] if place.is_dir() else []
    )
    files = by_split(
        str(place), ((file.stem, file) for file in texts if file.stem.lower() in SPLIT_OF)
    )
    listed = {split: _lines(file) for split, file in files.items()}
    if texts and ("train" not in listed or len(listed) < 2):
        names = ", ".join(file.name for file in texts)
        raise DataError(f"{place}: {names}, expected train.txt and val.txt, or test.txt too")
    if not listed:
        return {}
    for split, names in listed.items():
        for name in names:
            if pathlib.PurePath(name).name != name:
                raise DataError(
                    f"{files[split]}: {name!r}, "
                    "expected the name of an image without its folder and ending"
                )
    (name, times), *_ = collections.Counter(
        name for names in listed.values() for name in names
    ).most_common(1)
    if times > 1:
        raise DataError(f"{place}: {name!r} is listed twice")
    return (
        listed
        if len(listed) == 3
        else {"train": listed["train"], "test": listed.get("validation") or listed["test"]}
    )


def _table(
    images: dict[str, pathlib.Path],
    masks: dict[str, pathlib.Path],
    listed: list[str],
    shape: tuple[int, int, int],
    names: tuple[str, ...],
    first: dict[int, pathlib.Path],
) -> Columns:
    """A table of the listed images.  first: {value: first mask with it}, is extended."""
    inputs = np.empty((len(listed), *shape), np.uint8)
    values = np.empty(inputs.shape[:-1], np.uint8)
    for row, name in enumerate(listed):
        mask = read_mask(masks[name])
        inputs[row], size = read_sized_image(images[name], shape)
        if mask.shape != size:
            raise DataError(
                f"{masks[name]}: {_by(mask.shape)} pixels, "
                f"its image {images[name].name} has {_by(size)}"
            )
        for value in np.setdiff1d(mask, [*first, VOID]).tolist():
            first[value] = masks[name]
        unknown = np.setdiff1d(mask, [*range(len(names) or VOID), VOID])
        if unknown.size:
            raise DataError(
                f"{masks[name]}: value {unknown[0]}, "
                f"allowed: 0 to {len(names) - 1}, the classes, and {VOID}, void"
            )
        values[row] = np.asarray(
            Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
        )
    labelled = values != VOID
    return {"inputs": inputs, "targets": np.where(labelled, values, np.uint8(0)), "mask": labelled}


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, reversed(size)))
