"""mnist, fashion_mnist: digits and articles of clothing, 28x28.

55,000 train, 5,000 validation (the last ones of the training file) and 10,000 test examples.  Files
are searched for in DIR/mnist or DIR/fashion_mnist, then in the cache, and downloaded if not found.
"""

import dataclasses
import pathlib
from typing import Any, ClassVar, Literal

import numpy as np

from train.data.base import Finder, Form, Source, just
from train.dataset import Columns, Dataset
from train.formats import DataError, check_targets, read_idx, reading
from train.places import download
from train.tasks import Classification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """MNIST or Fashion-MNIST."""

    kind: ClassVar[str] = "mnist"
    identity: ClassVar[tuple[str, ...]] = ("name",)
    name: Literal["mnist", "fashion_mnist"] = "mnist"

    def __str__(self) -> str:
        return self.name


FORMS = {
    "mnist": Form("mnist", "handwritten digits 28x28", just(Config())),
    "fashion_mnist": Form(
        "fashion_mnist", "articles of clothing 28x28", just(Config(name="fashion_mnist"))
    ),
}

_FILES = {
    ("train", "inputs"): "train-images-idx3-ubyte.gz",
    ("train", "targets"): "train-labels-idx1-ubyte.gz",
    ("test", "inputs"): "t10k-images-idx3-ubyte.gz",
    ("test", "targets"): "t10k-labels-idx1-ubyte.gz",
}
_SETS: dict[str, dict[str, Any]] = {
    "mnist": {
        "classes": tuple("0123456789"),
        "mirrors": (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        "md5": (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    },
    "fashion_mnist": {
        "classes": (
            "T-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        "mirrors": (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        "md5": (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    },
}
_SIZES = {"train": 60_000, "test": 10_000}
_VALIDATION = 5_000


def load(cfg: Config, find: Finder) -> Dataset:
    """Inputs uint8 [n, 28, 28, 1], targets int32 [n]."""
    name, spec = cfg.name, _SETS[cfg.name]
    files = _find(name, find)
    if not files:
        files = [
            download(name, file, md5, spec["mirrors"], tuple(_FILES.values()))
            for file, md5 in zip(_FILES.values(), spec["md5"], strict=True)
        ]
    tables: dict[str, Columns] = {"train": {}, "test": {}}
    for (split, kind), file in zip(_FILES, files, strict=True):
        array, size = read_idx(file), _SIZES[split]
        expected = (size, 28, 28) if kind == "inputs" else (size,)
        if array.dtype != np.uint8 or array.shape != expected:
            raise DataError(
                f"{file}: holds {array.dtype} {list(array.shape)}, "
                f"expected {kind}: uint8 {list(expected)}"
            )
        if kind == "inputs":
            tables[split][kind] = array[..., None]
        else:
            tables[split][kind] = check_targets(
                str(file), "labels", array, size, len(spec["classes"])
            )
    splits = {
        "train": {key: value[:-_VALIDATION] for key, value in tables["train"].items()},
        "validation": {key: value[-_VALIDATION:] for key, value in tables["train"].items()},
        "test": tables["test"],
    }
    return Dataset(name, splits, Classification(spec["classes"]), (0.0, 255.0))


def _find(name: str, find: Finder) -> list[pathlib.Path]:
    """The files, gzipped or not, from the first directory that has them; [] if none has."""
    for root in find.roots():
        with reading(root / name):
            places = [
                (root / name / file, root / name / file.removesuffix(".gz"))
                for file in _FILES.values()
            ]
            matches = [next((place for place in pair if place.exists()), None) for pair in places]
        files = [file for file in matches if file]
        if 0 < len(files) < len(matches):
            missing = [
                zipped.name for (zipped, _), file in zip(places, matches, strict=True) if not file
            ]
            raise DataError(
                f"{root / name}: the set is not complete, missing: {', '.join(missing)}"
            )
        if files:
            return files
    return []
