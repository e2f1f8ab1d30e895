"""npz:PATH: arrays "inputs" [n, ...] and "targets" [n]; or x_train, y_train, x_val, ....

Names such as train_inputs and train_targets work too.  ``train.dataset.with_splits`` adds missing
splits.  Other arrays are an error.
"""

import dataclasses
import pathlib
from typing import ClassVar

import numpy as np

from train.data.base import Finder, Form, Source, path_after
from train.dataset import SPLIT_OF, SPLITS, Columns, Dataset, with_splits
from train.formats import DataError, check_inputs, check_targets, read_npz
from train.tasks import Classification, task_of_arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Source):
    """A file of arrays."""

    kind: ClassVar[str] = "npz"
    identity: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""
    """The npz file."""

    def __str__(self) -> str:
        return f"npz:{self.path}"


FORMS = {"npz": Form("npz:PATH", "arrays of a file", path_after(lambda path: Config(path=path)))}

_ROLES = {"x": "inputs", "inputs": "inputs", "y": "targets", "targets": "targets"}
_NAMES = (
    "inputs and targets, or x_train, y_train, x_test, y_test, or train_inputs, train_targets, ..."
)


def _role(array: str) -> tuple[str, str] | None:
    """(split or "all", "inputs" or "targets") of an array name; None for an unknown name."""
    name = array.lower()
    if name in ("inputs", "targets"):
        return "all", name
    for word, separator, role in (name.partition("_")[::-1], name.rpartition("_")):
        if separator and word in SPLIT_OF and role in _ROLES:
            return SPLIT_OF[word], _ROLES[role]
    return None


def load(cfg: Config, find: Finder) -> Dataset:
    """Inputs and targets as stored; integer targets [n] are classes 0 to the largest value."""
    name, file = str(cfg), find(cfg.path)
    arrays = read_npz(file)
    named: dict[tuple[str, str], str] = {}
    for array in sorted(arrays):
        role = _role(array)
        if role is None:
            raise DataError(f"{file}: holds {array}, which is not read; expected {_NAMES}")
        if role in named:
            raise DataError(
                f"{file}: {named[role]} and {array} are both {role[1]} of one split, "
                "expected one of them"
            )
        named[role] = array
    present = {split for split, _ in named}
    if present != {"all"} and ("all" in present or (find.divide and "train" not in present)):
        raise DataError(
            f"{file}: holds {', '.join(sorted(arrays)) or 'nothing'}; expected {_NAMES}"
        )
    tables = {
        split: _pair(file, arrays, named, split) for split in ("all", *SPLITS) if split in present
    }
    kinds = {
        split: [(str(array.dtype), array.shape[1:]) for array in table.values()]
        for split, table in tables.items()
    }
    if any(kind != next(iter(kinds.values())) for kind in kinds.values()):
        raise DataError(
            f"{file}: inputs or targets differ between the splits in type or shape: {kinds}"
        )
    splits = with_splits(str(file), tables, divide=find.divide)
    first = next(iter(splits.values()))
    task = task_of_arrays(first)
    if isinstance(task, Classification):
        count = 1 + max(int(table["targets"].max()) for table in splits.values())
        task = Classification(tuple(map(str, range(count))))
    inputs = first["inputs"]
    low, high = (
        (0.0, 255.0) if inputs.dtype == np.uint8 else (float(inputs.min()), float(inputs.max()))
    )
    return Dataset(name, splits, task, (low, high))


def _pair(
    file: pathlib.Path, arrays: dict[str, np.ndarray], named: dict[tuple[str, str], str], split: str
) -> Columns:
    inputs, targets = (named.get((split, role)) for role in ("inputs", "targets"))
    if inputs is None or targets is None:
        missing, of = ("targets", inputs) if targets is None else ("inputs", targets)
        raise DataError(
            f"{file}: {of} without {missing}" + (f" of the {split} split" if split != "all" else "")
        )
    checked = check_inputs(str(file), inputs, arrays[inputs])
    return {
        "inputs": checked,
        "targets": check_targets(str(file), targets, arrays[targets], len(checked)),
    }
