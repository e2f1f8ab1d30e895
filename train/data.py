"""Data sets by name, and their fixed splits.

    digits         1,797 handwritten digits 8x8 (UCI), embedded: 1,397 train, 100 validation, 300 test, stratified.
                   The same writers occur in all three, so accuracies are those of known hands
    mnist          28x28 digits: 55,000 train, the last 5,000 of the training file validation, 10,000 test
    fashion_mnist  28x28 articles of clothing, split alike
    npz:PATH       arrays "inputs" [n, ...] and "targets" [n]; or x_train, y_train, x_val, ...; or train_inputs, ...; no others
    folder:PATH    one sub-folder of images a class (or train/, val/, test/ with such sub-folders), upright and resized
    stream:PATH    the same examples, decoded while they are needed (see train.stream): for more than fits in memory
    fsdd:PATH      spoken digits as log-mel frames [100, 40], from files DIGIT_SPEAKER_INDEX.wav (see train.audio): 0-4 of each
                   digit and speaker test, 5-9 validation, the others train.  fsdd:PATH@SPEAKER tests on all of that speaker, and
                   of the others 0-4 validate
    moving_digits  clips [8, 16, 16, 1] of the digits above, four of each, moving in one of 8 directions, which is the class; a
                   digit stays in its split: 5,588 train, 400 validation, 1,200 test
    topics, brown, tinyshakespeare, text:PATH
                   text, as windows of characters or words (see train.text)
    adding:STEPS   sequences of numbers, two of them marked, and the sum of these; copy:STEPS: symbols that are to be said again
                   so many steps later (see train.generated)
    numbers-en-fr, multi30k-en-fr, pairs:SRC,TGT, pairs:FILE.tsv
                   pairs of sentences (see train.pairs)
    digit_scenes, digit_scenes:COUNT, stamps:PATH, stamps:PATH@fr, stamps:PATH@COUNT, stamps:PATH@fr,COUNT
                   images of scenes with captions, and where their objects are (see train.scenes)
    digit_pixels, digit_pixels:COUNT, stamp_pixels:PATH, stamp_pixels:PATH@COUNT
                   the same images, in which each pixel has a class: background, or its digit; or its stamp's category
    masks:PATH     images, resized, and PNG masks whose values are classes (see train.masks), as Pascal VOC has them
    captions:PATH  images with captions of Karpathy's JSON (Flickr8k, Flickr30k, COCO) or COCO's own, resized (see train.captions)
    synthetic:COUNTxHEIGHTxWIDTHxCHANNELS/CLASSES
                   generated images of any shape, such as 512x224x224x3/1000: a noisy mosaic of colours for each class

A set without splits of its own is split 80/10/10, stratified, by a fixed seed; one with a test but no validation split gives a
tenth of its training examples.  Splits are called train or training; validation, valid, val or dev; test or testing.

Files are looked up in DIR/mnist or DIR/fashion_mnist, DIR being ``data_dir`` or $ZOO_DATA_DIR, then in the cache; then
downloaded.  A relative PATH is looked up in the current directory, then in each DIR.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from train import captions
from train import pairs as sentences
from train import text as texts
from train.audio import read_fsdd
from train.captions import Captions
from train.dataset import SPLIT_OF, SPLITS, Dataset, Table, by_split, with_splits
from train.formats import (
    DataError,
    Images,
    Mapped,
    check_image_shape,
    check_inputs,
    check_targets,
    map_images,
    not_read,
    read_idx,
    read_npz,
    reading,
    visible,
)
from train.generated import COPY_SYMBOLS, DIRECTIONS, EXPECTED, MOST, adding, copy_memory, moving_digits, synthetic
from train.masks import VOID, read_masks
from train.pairs import Pairs
from train.places import NO_CACHE, ProgressBar, cache, download, locate, roots
from train.scenes import SCENES, Scenes, digit_scenes
from train.stamps import categories, read_stamps
from train.tasks import (
    Algorithm,
    Captioning,
    Classification,
    Language,
    Regression,
    Segmentation,
    Task,
    Translation,
    task_of_arrays,
)
from train.text import Text
from train.tokens import Tokenizer

__all__ = ["DataError", "load_data"]


def load_data(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_shape: tuple[int, int, int] = (28, 28, 1),
    text: Text = Text(),  # noqa: B008 (frozen)
    pairs: Pairs = Pairs(),  # noqa: B008 (frozen)
    task: Task | None = None,
) -> Dataset:
    """The data set of that name (see the module).

    task: of a trained model that is only measured on the data.  They are then encoded with its
    vocabulary, and a set without splits is not divided: all of it is the test split.
    Raises DataError that names the file and what is wrong, or where to put it.
    """
    kind, colon, path = name.partition(":")
    if name in _TEXTS or (colon and path and kind == "text"):
        return _text(name, path, data_dir, text, task)
    numbers = re.fullmatch(r"numbers-([^-]+)-([^-]+)", name)
    if numbers or name == "multi30k-en-fr" or (colon and path and kind == "pairs"):
        return _pairs(name, path, data_dir, pairs, numbers.groups() if numbers else None, task)
    if colon and path and kind == "captions":
        return _captions(name, path, data_dir, image_shape, pairs, task)
    if kind in _SEQUENCES and colon:
        return _sequences(name, kind, path)
    if colon and kind in _FROM_PATH:
        path = _AT_END.sub("", path) if kind in ("fsdd", "stamps", "stamp_pixels") else path
        if not path:
            raise DataError(f"data {name!r}: a path must follow the colon")
        return _FROM_PATH[kind](name, locate(path, data_dir), How(image_shape, pairs, task))
    if kind == "synthetic":
        return _synthetic(name, path)
    if name == "digits":
        return _digits()
    if kind in ("digit_scenes", "digit_pixels"):
        return _digit_scenes(name, kind, path if colon else str(SCENES), How(image_shape, pairs, task))
    if name == "moving_digits":
        return Dataset(name, moving_digits(_digits().splits), Classification(tuple(DIRECTIONS)), (0.0, float(MOST)))
    if name in _IDX_SETS:
        return _idx_set(name, data_dir)
    paths = (*(f"{prefix}:PATH" for prefix in (*_FROM_PATH, "text", "captions")), "pairs:SRC,TGT")
    lengths = (f"{kind}:STEPS" for kind in _SEQUENCES)
    known = ["digits", *_IDX_SETS, *paths, *_TEXTS, *_PAIRS, *lengths, "digit_scenes", "digit_pixels", "moving_digits", EXPECTED]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(known)
    raise DataError(f"data {name!r}: no such set; {hint}")


class How(NamedTuple):
    """How data are read from a path: see ``load_data``."""

    image_shape: tuple[int, int, int]
    pairs: Pairs
    task: Task | None

    @property
    def divide(self) -> bool:
        """Whether a set without splits is divided."""
        return self.task is None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What captions are encoded with; None fits one."""
        return _tokenizer(self.task)


def _require_task(name: str, task: Task | None, kind: type[Task]) -> None:
    """Raises DataError unless data for tasks of a kind are for this one, or for any.

    Without the task's vocabulary such data could not be read, as there may be no training split.
    """
    if task is not None and not isinstance(task, kind):
        raise DataError(f"data {name!r}: {kind.name}; allowed for this run: {task}")


def _tokenizer(task: Task | None) -> Tokenizer | None:
    return task.target if isinstance(task, Captioning) else None


def _digits() -> Dataset:
    file = pathlib.Path(__file__).parent / "assets" / "digits.npz"
    arrays = read_npz(file)
    splits, start = {}, 0
    for split, size in zip(SPLITS, arrays["sizes"], strict=True):
        rows = slice(start, start + int(size))
        splits[split] = {"inputs": arrays["inputs"][rows, :, :, None], "targets": arrays["targets"][rows].astype(np.int32)}
        start += int(size)
    return Dataset("digits", splits, Classification(tuple("0123456789")), (0.0, 16.0))


_IDX_FILES = {
    ("train", "inputs"): "train-images-idx3-ubyte.gz",
    ("train", "targets"): "train-labels-idx1-ubyte.gz",
    ("test", "inputs"): "t10k-images-idx3-ubyte.gz",
    ("test", "targets"): "t10k-labels-idx1-ubyte.gz",
}
_IDX_SETS: dict[str, dict[str, Any]] = {
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
        "classes": ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
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
_IDX_SIZES = {"train": 60_000, "test": 10_000}
_IDX_VALIDATION = 5_000


def _idx_set(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    spec = _IDX_SETS[name]
    files = _find(name, data_dir)
    if not files:
        files = [
            download(name, file, md5, spec["mirrors"], tuple(_IDX_FILES.values()))
            for file, md5 in zip(_IDX_FILES.values(), spec["md5"], strict=True)
        ]
    tables: dict[str, Table] = {"train": {}, "test": {}}
    for (split, kind), file in zip(_IDX_FILES, files, strict=True):
        array, size = read_idx(file), _IDX_SIZES[split]
        expected = (size, 28, 28) if kind == "inputs" else (size,)
        if array.dtype != np.uint8 or array.shape != expected:
            raise DataError(f"{file}: holds {array.dtype} {list(array.shape)}, expected {kind}: uint8 {list(expected)}")
        if kind == "inputs":
            tables[split][kind] = array[..., None]
        else:
            tables[split][kind] = check_targets(str(file), "labels", array, size, len(spec["classes"]))
    splits = {
        "train": {key: value[:-_IDX_VALIDATION] for key, value in tables["train"].items()},
        "validation": {key: value[-_IDX_VALIDATION:] for key, value in tables["train"].items()},
        "test": tables["test"],
    }
    return Dataset(name, splits, Classification(spec["classes"]), (0.0, 255.0))


def _find(name: str, data_dir: str | os.PathLike[str] | None) -> list[pathlib.Path]:
    """The set's files, gzipped or not, from the first directory that has them; none if none has."""
    for root in roots(data_dir):
        with reading(root / name):
            places = [(root / name / file, root / name / file.removesuffix(".gz")) for file in _IDX_FILES.values()]
            found = [next((place for place in pair if place.exists()), None) for pair in places]
        files = [file for file in found if file]
        if 0 < len(files) < len(found):
            missing = [zipped.name for (zipped, _), file in zip(places, found, strict=True) if not file]
            raise DataError(f"{root / name}: the set is not complete, missing: {', '.join(missing)}")
        if files:
            return files
    return []


_ROLES = {"x": "inputs", "inputs": "inputs", "y": "targets", "targets": "targets"}
_NAMES = "inputs and targets, or x_train, y_train, x_test, y_test, or train_inputs, train_targets, ..."


def _role(array: str) -> tuple[str, str] | None:
    """(split or "all", "inputs" or "targets") by an array's name; None for one that nobody reads."""
    name = array.lower()
    if name in ("inputs", "targets"):
        return "all", name
    for word, separator, role in (name.partition("_")[::-1], name.rpartition("_")):
        if separator and word in SPLIT_OF and role in _ROLES:
            return SPLIT_OF[word], _ROLES[role]
    return None


def _from_npz(name: str, file: pathlib.Path, how: How) -> Dataset:
    arrays = read_npz(file)
    named: dict[tuple[str, str], str] = {}
    for array in sorted(arrays):
        role = _role(array)
        if role is None:
            raise DataError(f"{file}: holds {array}, which is not read; expected {_NAMES}")
        if role in named:
            raise DataError(f"{file}: {named[role]} and {array} are both {role[1]} of one split, expected one of them")
        named[role] = array
    found = {split for split, _ in named}
    if found != {"all"} and ("all" in found or (how.divide and "train" not in found)):
        raise DataError(f"{file}: holds {', '.join(sorted(arrays)) or 'nothing'}; expected {_NAMES}")
    tables = {split: _pair(file, arrays, named, split) for split in ("all", *SPLITS) if split in found}
    kinds = {split: [(str(array.dtype), array.shape[1:]) for array in table.values()] for split, table in tables.items()}
    if any(kind != next(iter(kinds.values())) for kind in kinds.values()):
        raise DataError(f"{file}: inputs or targets differ between the splits in type or shape: {kinds}")
    splits = with_splits(str(file), tables, divide=how.divide)
    first = next(iter(splits.values()))
    task = task_of_arrays(first)
    if isinstance(task, Classification):
        count = 1 + max(int(table["targets"].max()) for table in splits.values())
        task = Classification(tuple(map(str, range(count))))
    inputs = first["inputs"]
    low, high = (0.0, 255.0) if inputs.dtype == np.uint8 else (float(inputs.min()), float(inputs.max()))
    return Dataset(name, splits, task, (low, high))


def _pair(file: pathlib.Path, arrays: dict[str, np.ndarray], named: dict[tuple[str, str], str], split: str) -> Table:
    inputs, targets = (named.get((split, role)) for role in ("inputs", "targets"))
    if inputs is None or targets is None:
        missing, of = ("targets", inputs) if targets is None else ("inputs", targets)
        raise DataError(f"{file}: {of} without {missing}" + (f" of the {split} split" if split != "all" else ""))
    checked = check_inputs(str(file), inputs, arrays[inputs])
    return {"inputs": checked, "targets": check_targets(str(file), targets, arrays[targets], len(checked))}


def _from_folder(name: str, folder: pathlib.Path, how: How) -> Dataset:
    streamed = _streamed_folder(name, folder, how)
    splits = {split: {**table, "inputs": table["inputs"][:]} for split, table in streamed.splits.items()}
    return dataclasses.replace(streamed, splits=splits)


def _streamed_folder(name: str, folder: pathlib.Path, how: How) -> Dataset:
    """An index of the files in their splits, of which none is opened."""
    shape = how.image_shape
    check_image_shape(shape)
    with reading(folder):
        entries = visible(folder)
        folders = [entry for entry in entries if entry.is_dir()]
        parts = {"all": folder}
        trains = any(SPLIT_OF.get(entry.name.lower()) == "train" for entry in folders) or not how.divide
        if folders and trains and all(map(_is_split, folders)):
            parts = by_split(str(folder), ((entry.name, entry) for entry in folders))
            entries += [entry for part in parts.values() for entry in visible(part)]
        names = {entry.name for part in parts.values() for entry in visible(part) if entry.is_dir()}
        if len(names) < 2:
            raise DataError(f"{folder}: {len(names)} sub-folders, expected one for each of two or more classes")
        classes = tuple(sorted(names))
        tables = {split: _index(folder, part, classes, shape) for split, part in parts.items()}
    notes = not_read([entry for entry in entries if not entry.is_dir()])
    splits = with_splits(str(folder), tables, divide=how.divide)
    return Dataset(name, splits, Classification(classes), (0.0, 255.0), notes=notes)


def _is_split(folder: pathlib.Path) -> bool:
    return folder.name.lower() in SPLIT_OF


def _index(root: pathlib.Path, part: pathlib.Path, classes: tuple[str, ...], shape: tuple[int, int, int]) -> Table:
    files, targets = [], []
    for label, name in enumerate(classes):
        found = visible(part / name) if (part / name).is_dir() else []
        if not found:
            raise DataError(f"{part / name}: no images of this class")
        for file in found:
            if file.is_dir():
                raise DataError(f"{file}: a folder among the images of a class (splits are called {', '.join(SPLIT_OF)})")
        files += found
        targets += [label] * len(found)
    return {"inputs": Images.find(root, files, shape), "targets": np.asarray(targets, np.int32)}


_AT_END = re.compile(r"@([^/@]+)\Z")


def _from_fsdd(name: str, folder: pathlib.Path, _: How) -> Dataset:
    held_out = _AT_END.search(name)
    splits, speakers, notes = read_fsdd(folder, held_out[1] if held_out else "")
    inputs = splits["train"]["inputs"]
    input_range = (float(inputs.min()), float(inputs.max()))
    return Dataset(name, splits, Classification(tuple("0123456789")), input_range, speakers, notes=notes)


def _from_stamps(name: str, folder: pathlib.Path, how: How) -> Dataset:
    options = _AT_END.search(name)
    language, comma, count = options[1].rpartition(",") if options else ("", "", "")
    if count and not comma and not count.isdecimal():
        language, count = count, ""
    scenes = _count(name, count) if comma or count else 0
    return _of_scenes(name, read_stamps(folder, language or "en", scenes, how.tokenizer), how.pairs)


def _from_stamp_pixels(name: str, folder: pathlib.Path, _: How) -> Dataset:
    count = _AT_END.search(name)
    found = read_stamps(folder, scenes=_count(name, count[1]) if count else 0)
    of_kinds = categories(folder, found.kinds)
    classes = sorted(set(of_kinds))
    return _of_pixels(name, found, classes, [classes.index(category) for category in of_kinds])


def _count(name: str, scenes: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{,5}", scenes):
        raise DataError(f"data {name!r}: {scenes!r} scenes, allowed: a number from 1 to 999999")
    return int(scenes)


def _digit_scenes(name: str, kind: str, count: str, how: How) -> Dataset:
    found = digit_scenes(_digits().splits, _count(name, count), how.tokenizer)
    return (
        _of_scenes(name, found, how.pairs)
        if kind == "digit_scenes"
        else _of_pixels(name, found, found.kinds, range(len(found.kinds)))
    )


def _captions(
    name: str,
    path: str,
    data_dir: str | os.PathLike[str] | None,
    shape: tuple[int, int, int],
    how: Pairs,
    task: Task | None,
) -> Dataset:
    _require_task(name, task, Captioning)

    def decode(files: Sequence[pathlib.Path]) -> Mapped:
        folder = cache("captions")
        if folder is None:
            raise DataError(f"data {name!r}: images are decoded into a file: {NO_CACHE}")
        with contextlib.closing(ProgressBar("decoding")) as bar:
            size = math.prod(shape)

            def decoded(count: int) -> None:
                bar.total = size * len(files)
                bar.update(size * count)

            return map_images(files, shape, folder, decoded)

    find = functools.partial(locate, data_dir=data_dir)
    found = captions.read(f"data {name!r}", path, how, shape, find, decode, _tokenizer(task))
    return _of_scenes(name, found, how)


def _of_scenes(name: str, found: Scenes | Captions, how: Pairs) -> Dataset:
    fields = found._asdict()
    task = Captioning(fields.pop("tokenizer"), how.max_length)
    return Dataset(name, task=task, input_range=(0.0, 255.0), **fields)


def _of_pixels(name: str, found: Scenes, classes: Sequence[str], of_kinds: Sequence[int]) -> Dataset:
    """Scenes whose pixels are labelled.  of_kinds: the class of each kind."""
    if len(classes) >= VOID:
        raise DataError(f"{name}: {len(classes)} classes of pixels, allowed: {VOID - 1} at most")
    labels = np.array([0, *(1 + index for index in of_kinds)], np.uint8)
    splits = {
        split: {
            "inputs": table["inputs"]["image"],
            "targets": labels[table["pixels"]],
            "mask": np.ones(table["pixels"].shape, bool),
        }
        for split, table in found.splits.items()
    }
    return Dataset(name, splits, Segmentation(("background", *classes)), (0.0, 255.0), notes=found.notes)


def _from_masks(name: str, folder: pathlib.Path, how: How) -> Dataset:
    tables, classes, notes = read_masks(folder, how.image_shape)
    return Dataset(name, with_splits(str(folder), tables, divide=how.divide), Segmentation(classes), (0.0, 255.0), notes=notes)


_FROM_PATH = {
    "npz": _from_npz,
    "folder": _from_folder,
    "stream": _streamed_folder,
    "fsdd": _from_fsdd,
    "stamps": _from_stamps,
    "stamp_pixels": _from_stamp_pixels,
    "masks": _from_masks,
}


_TEXTS = ("topics", "brown", "tinyshakespeare")
_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
_SHAKESPEARE_MD5 = "6fb458f1232090904fb40fe944165e91"


def _text(name: str, path: str, data_dir: str | os.PathLike[str] | None, how: Text, task: Task | None) -> Dataset:
    """Text by name or at a path, as windows."""
    _require_task(name, task, Language)
    divide, known = task is None, task.vocabulary if isinstance(task, Language) else ()
    notes: tuple[str, ...] = ()
    if name == "topics":
        documents = texts.topics()
    elif name == "brown":
        places = [root / name for root in roots(data_dir) if (root / name).exists()]
        if not places:
            raise DataError(
                "data 'brown': not found.  Put the 500 files ca01 ... cr09 of the Brown corpus (nltk_data's corpora/brown.zip) "
                "into DIR/brown/ and give --data-dir DIR or set ZOO_DATA_DIR=DIR"
            )
        documents = texts.brown(places[0])
    elif name == "tinyshakespeare":
        places = [root / name / "input.txt" for root in roots(data_dir) if (root / name / "input.txt").exists()]
        file = places[0] if places else download(name, "input.txt", _SHAKESPEARE_MD5, (_SHAKESPEARE,))
        documents, _ = texts.from_path(file, how, divide=divide)
    else:
        documents, notes = texts.from_path(locate(path, data_dir), how, divide=divide)
    splits, vocabulary = texts.tables(f"data {name!r}", documents, how, known)
    if divide:
        tokens = {split: table["targets"][table["mask"]] for split, table in splits.items()}
        unknown = 100 * (np.concatenate([tokens["validation"], tokens["test"]]) == texts.UNKNOWN).mean()
        said = f"{len(vocabulary):,} {how.tokens}, {len(tokens['train']):,} tokens in training"
        notes = (f"{said}, {unknown:.2f} % of the held-out ones unknown", *notes)
    return Dataset(name, splits, Language(vocabulary, how.tokens), notes=notes)


_PAIRS = ("numbers-en-fr", "multi30k-en-fr")
_MULTI30K = ("multi30k/{split}.en.gz", "multi30k/{split}.fr.gz")


def _pairs(
    name: str,
    path: str,
    data_dir: str | os.PathLike[str] | None,
    how: Pairs,
    languages: tuple[str, ...] | None,
    task: Task | None,
) -> Dataset:
    """Pairs of sentences by name or from files, as tokens."""
    _require_task(name, task, Translation)
    bad = sentences.Bad()
    if languages:
        splits = sentences.numbers(name, languages)
    else:
        source, _, target = path.partition(",")
        if name == "multi30k-en-fr":
            source, target = _MULTI30K
            if not any((root / "multi30k").is_dir() for root in roots(data_dir)):
                raise DataError(
                    f"data {name!r}: not found.  Put train, val and test_2016_flickr of the WMT multimodal task, such as "
                    "train.en.gz and train.fr.gz, into DIR/multi30k/ and give --data-dir DIR or set ZOO_DATA_DIR=DIR"
                )
        find = functools.partial(locate, data_dir=data_dir)
        splits = sentences.from_files(name, source, target or None, find, bad, divide=task is None)
    known = task if isinstance(task, Translation) else None
    return Dataset(name, **sentences.encode(f"data {name!r}", splits, how, bad, known)._asdict())


_SEQUENCES = {"adding": adding, "copy": copy_memory}


def _sequences(name: str, kind: str, steps: str) -> Dataset:
    if not re.fullmatch(r"[1-9][0-9]{,3}", steps) or int(steps) < 2:
        raise DataError(f"data {name!r}: {steps!r} steps, allowed: a number from 2 to 9999")
    return Dataset(name, _SEQUENCES[kind](int(steps)), Algorithm(COPY_SYMBOLS) if kind == "copy" else Regression())


def _synthetic(name: str, form: str) -> Dataset:
    table, classes = synthetic(name, form)
    task = Classification(tuple(map(str, range(classes))))
    return Dataset(name, with_splits(f"data {name!r}", {"all": table}), task, (0.0, 255.0))
