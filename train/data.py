"""Data sets by name, and their fixed splits.

    digits         1,797 handwritten digits 8x8 (UCI), embedded: 1,297 train, 200 validation, 300 test, stratified.
                   The same writers occur in all three, so accuracies are those of known hands
    mnist          28x28 digits: 55,000 train, the last 5,000 of the training file validation, 10,000 test
    fashion_mnist  28x28 articles of clothing, split alike
    npz:PATH       arrays "inputs" [n, ...] and "targets" [n]; or x_train, y_train, x_test, y_test; or train_inputs, ...
    folder:PATH    one sub-folder of images a class (or train/, validation/, test/ with such sub-folders), resized

A set without splits of its own is split 80/10/10, stratified, by a fixed seed; one with a test but no validation split gives a
tenth of its training examples.  Files are looked up in ``data_dir``, in $ZOO_DATA_DIR, in the cache; then downloaded.
"""

import dataclasses
import difflib
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.formats import DataError, check_inputs, check_targets, read_idx, read_image, read_npz

__all__ = ["DataError", "Dataset", "load_data", "stratified_split"]

Table = dict[str, Any]
SPLITS = ("train", "validation", "test")
SPLIT_SEED = 2015


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    splits: {"train": {"inputs": [n, ...], "targets": [n]}, "validation": ..., "test": ...}.
    classes: names, () if targets are not classes.  input_range: least and greatest raw value, for preprocess="unit".
    """

    name: str
    splits: Mapping[str, Table]
    classes: tuple[str, ...] = ()
    input_range: tuple[float, float] = (0.0, 1.0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the content: a run is resumed only on the same data."""
        digest = hashlib.blake2b(digest_size=8)
        for split in sorted(self.splits):
            for name in sorted(self.splits[split]):
                array = np.ascontiguousarray(self.splits[split][name])
                digest.update(f"{split} {name} {array.dtype} {array.shape}".encode())
                digest.update(memoryview(array.reshape(-1).view(np.uint8)))
        return digest.hexdigest()

    def joined(self, *names: str) -> Table:
        """Several splits as one table."""
        if len(names) == 1:
            return dict(self.splits[names[0]])
        tables = [self.splits[name] for name in names]
        return {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}


def load_data(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, image_shape: tuple[int, int, int] = (28, 28, 1)
) -> Dataset:
    """The data set of that name (see the module).  Raises DataError that names the file and what is wrong, or where to put it."""
    kind, colon, path = name.partition(":")
    if colon and kind in _FROM_PATH:
        if not path:
            raise DataError(f"data {name!r}: a path must follow the colon")
        return _FROM_PATH[kind](pathlib.Path(path).expanduser(), image_shape)
    if name == "digits":
        return _digits()
    if name in _IDX_SETS:
        return _idx_set(name, data_dir)
    known = ["digits", *_IDX_SETS, *(f"{prefix}:PATH" for prefix in _FROM_PATH)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(known)
    raise DataError(f"data {name!r}: no such set; {hint}")


def stratified_split(targets: np.ndarray, sizes: tuple[int, ...], seed: int = SPLIT_SEED) -> list[np.ndarray]:
    """Index arrays of the given sizes (they sum to len(targets)), shuffled, each class spread evenly over them."""
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    # Within its class an example has a rank in (0, 1); in the order of ranks every class is spread evenly.
    rank = np.empty(len(targets))
    for label in np.unique(targets):
        members = shuffled[targets[shuffled] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = shuffled[np.argsort(rank[shuffled], kind="stable")]
    # Ranks run from first to last, so consecutive blocks are stratified; shuffle once more within each.
    again = np.random.default_rng([seed, 1])
    return [again.permutation(block) for block in np.split(order, np.cumsum(sizes)[:-1])]


def _digits() -> Dataset:
    file = pathlib.Path(__file__).parent / "assets" / "digits.npz"
    arrays = read_npz(file)
    splits, start = {}, 0
    for split, size in zip(SPLITS, arrays["sizes"], strict=True):
        rows = slice(start, start + int(size))
        splits[split] = {"inputs": arrays["inputs"][rows, :, :, None], "targets": arrays["targets"][rows].astype(np.int32)}
        start += int(size)
    return Dataset("digits", splits, tuple("0123456789"), (0.0, 16.0))


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
_IDX_VALIDATION = 5_000


def _idx_set(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    spec = _IDX_SETS[name]
    files = [_find(name, file, data_dir) for file in _IDX_FILES.values()]
    if None in files:
        files = [_download(name, file, md5) for file, md5 in zip(_IDX_FILES.values(), spec["md5"], strict=True)]
    tables: dict[str, Table] = {"train": {}, "test": {}}
    for (split, kind), file in zip(_IDX_FILES, files, strict=True):
        assert file is not None
        array = read_idx(file)
        if kind == "inputs":
            if array.dtype != np.uint8 or array.shape[1:] != (28, 28):
                raise DataError(f"{file}: {array.dtype} {list(array.shape)}, expected uint8 images [n, 28, 28]")
            tables[split][kind] = array[..., None]
        else:
            images = len(tables[split]["inputs"])
            if array.dtype != np.uint8 or array.ndim != 1:
                raise DataError(f"{file}: {array.dtype} {list(array.shape)}, expected uint8 labels [n]")
            tables[split][kind] = check_targets(str(file), "labels", array, images, len(spec["classes"]))
    train, held_out = tables["train"], _IDX_VALIDATION
    if len(train["inputs"]) <= held_out:
        raise DataError(f"{files[0]}: {len(train['inputs'])} images, expected more than the {held_out} that validate")
    splits = {
        "train": {key: value[:-held_out] for key, value in train.items()},
        "validation": {key: value[-held_out:] for key, value in train.items()},
        "test": tables["test"],
    }
    return Dataset(name, splits, spec["classes"], (0.0, 255.0))


def _find(name: str, file: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """A file, gzipped or not, in the places where data may lie; the first that has it."""
    for root in (data_dir, os.environ.get("ZOO_DATA_DIR")):
        if not root:
            continue
        if not pathlib.Path(root).is_dir():
            raise DataError(f"data directory {root}: no such directory (from --data-dir or ZOO_DATA_DIR)")
        for candidate in (pathlib.Path(root) / name / file, pathlib.Path(root) / name / file.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
    return None


def _download(name: str, file: str, md5: str) -> pathlib.Path:
    import pooch

    spec = _IDX_SETS[name]
    cache = pathlib.Path(pooch.os_cache("purezoo")) / name
    pooch.get_logger().setLevel("WARNING")
    failures = []
    for mirror in spec["mirrors"]:
        try:
            downloader = pooch.HTTPDownloader(progressbar=_progress_bar(file), timeout=20)
            return pathlib.Path(pooch.retrieve(mirror + file, f"md5:{md5}", file, cache, downloader=downloader))
        except Exception as error:  # no network, a mirror that is gone, a checksum that differs: try the next one
            failures.append(f"{mirror}: {type(error).__name__}")
    raise DataError(
        f"data {name!r}: {file} is neither here nor could it be downloaded ({'; '.join(failures)}).  Put "
        f"{', '.join(_IDX_FILES.values())} into DIR/{name}/ and give --data-dir DIR or set ZOO_DATA_DIR=DIR, or into {cache}"
    )


class _progress_bar:  # noqa: N801 (pooch wants an object with total, update, reset, close)
    """What pooch draws while it downloads, with rich."""

    def __init__(self, label: str) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(TextColumn(label), BarColumn(), DownloadColumn(), TimeRemainingColumn(), transient=True)
        self._task = self._progress.add_task(label, total=None)
        self._progress.start()

    @property
    def total(self) -> float | None:
        """Bytes expected."""
        return self._progress.tasks[0].total

    @total.setter
    def total(self, value: float) -> None:
        self._progress.update(self._task, total=value)

    def update(self, amount: float) -> None:
        """More bytes have come."""
        self._progress.advance(self._task, amount)

    def reset(self) -> None:
        """Begins again."""
        self._progress.reset(self._task, start=True)

    def close(self) -> None:
        """Takes the bar away."""
        self._progress.stop()


def _from_npz(file: pathlib.Path, _: tuple[int, int, int]) -> Dataset:
    arrays = read_npz(file)
    tables: dict[str, Table] = {}
    for split in SPLITS:
        short = {"validation": "val"}.get(split, split)
        for inputs, targets in ((f"{split}_inputs", f"{split}_targets"), (f"x_{split}", f"y_{split}"), (f"x_{short}", f"y_{short}")):
            if inputs in arrays:
                tables[split] = _pair(file, arrays, inputs, targets)
                break
    if not tables and "inputs" in arrays:
        tables["all"] = _pair(file, arrays, "inputs", "targets")
    if not tables or ("all" not in tables and "train" not in tables):
        raise DataError(
            f"{file}: holds {', '.join(sorted(arrays)) or 'nothing'}; expected inputs and targets, or x_train, y_train, x_test, "
            "y_test, or train_inputs, train_targets, ..."
        )
    shapes = {split: table["inputs"].shape[1:] for split, table in tables.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{file}: the splits' inputs differ in shape: {shapes}")
    splits = _with_splits(str(file), tables)
    first = splits["train"]
    classes = ()
    if first["targets"].dtype == np.int32:
        count = 1 + max(int(table["targets"].max()) for table in splits.values())
        classes = tuple(str(label) for label in range(count))
    inputs = first["inputs"]
    low, high = (0.0, 255.0) if inputs.dtype == np.uint8 else (float(inputs.min()), float(inputs.max()))
    return Dataset(f"npz:{file}", splits, classes, (low, high))


def _pair(file: pathlib.Path, arrays: dict[str, np.ndarray], inputs: str, targets: str) -> Table:
    if targets not in arrays:
        raise DataError(f"{file}: {inputs} without {targets}")
    checked = check_inputs(str(file), inputs, arrays[inputs])
    return {"inputs": checked, "targets": check_targets(str(file), targets, arrays[targets], len(checked))}


def _from_folder(folder: pathlib.Path, shape: tuple[int, int, int]) -> Dataset:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    parts = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    if "train" not in parts:
        parts = {"all": folder}
    names = {split: {entry.name for entry in _visible(part) if entry.is_dir()} for split, part in parts.items()}
    classes = tuple(sorted(set().union(*names.values())))
    if len(classes) < 2:
        raise DataError(f"{folder}: {len(classes)} sub-folders, expected one for each of two or more classes")
    tables = {split: _read_folder(part, classes, shape) for split, part in parts.items()}
    return Dataset(f"folder:{folder}", _with_splits(str(folder), tables), classes, (0.0, 255.0))


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _read_folder(folder: pathlib.Path, classes: tuple[str, ...], shape: tuple[int, int, int]) -> Table:
    inputs, targets = [], []
    for label, name in enumerate(classes):
        files = _visible(folder / name) if (folder / name).is_dir() else []
        if not files:
            raise DataError(f"{folder / name}: no images of this class")
        inputs += [read_image(file, shape) for file in files]
        targets += [label] * len(files)
    return {"inputs": np.stack(inputs), "targets": np.asarray(targets, np.int32)}


_FROM_PATH = {"npz": _from_npz, "folder": _from_folder}


def _with_splits(source: str, tables: dict[str, Table]) -> dict[str, Table]:
    """Makes the splits that are missing: 80/10/10 of everything, or a tenth of the training examples for validation."""
    if "all" in tables:
        table, parts = tables["all"], ("train", "validation", "test")
    elif "validation" not in tables:
        table, parts = tables["train"], ("train", "validation")
    else:
        return tables
    count = len(table["inputs"])
    if count < 10:
        raise DataError(f"{source}: {count} examples, expected at least 10 to split")
    tenth = count // 10
    labels = table["targets"] if table["targets"].ndim == 1 else np.zeros(count, np.int32)
    sizes = (count - tenth * (len(parts) - 1), *[tenth] * (len(parts) - 1))
    blocks = stratified_split(labels, sizes)
    made = {part: {key: value[rows] for key, value in table.items()} for part, rows in zip(parts, blocks, strict=True)}
    return {**made, **{split: value for split, value in tables.items() if split == "test"}}
