"""A data set: arrays in splits, and what is known of them."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from train.formats import DataError, Images
from train.tasks import Task, task_of_arrays

Table = dict[str, Any]
T = TypeVar("T")
SPLITS = ("train", "validation", "test")
ALL_SPLITS = (*SPLITS, "one-shot")
SPLIT_OF = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What files, folders and arrays call a split, in letters of any case."""
WORDS = {split: tuple(word for word, of in SPLIT_OF.items() if of == split) for split in SPLITS}
"""The same by split."""
SPLIT_SEED = 2015


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, but for inputs that are ``Images``.

    splits: {"train": {"inputs": [n, ...], "targets": [n]}, "validation": ..., "test": ...}; where pixels are labelled,
        targets and mask are [n, height, width].
    task: what a model can learn from them, see ``train.tasks``; unless given, it follows from the targets.
    input_range: least and greatest raw value, for preprocess="unit".
    speakers: names, where a further column "speakers" [n] of each split is an index into them.
    widths: {path of a table's array: a length for each "bucket" [n]}, see ``train.batches``.
    sentences: {split: ((source, target), ...)}, which tokens were made of; sources are "" where there are none.
    references: {split: all that people said of each row, of which its target is one}, where they said several things.
    kinds: names, where a further column "pixels" [n, height, width] of each split is 0 or 1 + an index into them.
    notes: what a person should know of how it was read.

    Lists become arrays, and masks of 0 and 1 booleans.  Raises ValueError for splits that are not known or have no inputs, lists
    that are no array, masks of other values, and masks that hide everything.
    """

    name: str
    splits: Mapping[str, Table]
    task: Task = None  # pyright: ignore[reportAssignmentType] (set below)
    input_range: tuple[float, float] = (0.0, 1.0)
    speakers: tuple[str, ...] = ()
    widths: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    sentences: Mapping[str, tuple[tuple[str, str], ...]] = dataclasses.field(default_factory=dict)
    references: Mapping[str, tuple[tuple[str, ...], ...]] = dataclasses.field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError: see the class."""
        for split in self.splits:
            if split not in ALL_SPLITS:
                raise ValueError(f"data {self.name}: split {split!r}, allowed: {', '.join(ALL_SPLITS)}")
        splits = {split: _table(f"data {self.name}: {split}", table) for split, table in self.splits.items()}
        object.__setattr__(self, "splits", splits)
        if self.task is None:
            object.__setattr__(self, "task", task_of_arrays(next(iter(splits.values()))))

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Those that batches or evaluation read, whatever the model."""
        bucket, speakers = ("bucket",) if self.widths else (), ("speakers",) if self.speakers else ()
        return bucket + speakers + (("boxes", "phrases", "words", "pixels") if self.kinds else ())

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the content: a run is resumed only on the same data."""
        digest = hashlib.blake2b(digest_size=8)
        for split in sorted(self.splits):
            for path, leaf in jax.tree_util.tree_leaves_with_path(dict(self.splits[split])):
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                array = leaf if isinstance(leaf, Images) else np.ascontiguousarray(leaf)
                digest.update(f"{split} {name} {array.dtype} {array.shape}".encode())
                digest.update(array.digest() if isinstance(array, Images) else array.reshape(-1).view(np.uint8).data)
        if self.references:
            digest.update(repr(sorted(self.references.items())).encode())
        return digest.hexdigest()

    def joined(self, *names: str) -> Table:
        """Several splits as one table."""
        if len(names) == 1:
            return dict(self.splits[names[0]])
        for name in names[1:]:
            if different := self.splits[names[0]].keys() ^ self.splits[name].keys():
                raise ValueError(
                    f"data {self.name}: {', '.join(sorted(different))} in one of {', '.join(names)}, expected in all"
                )
        return jax.tree.map(_joined, *(dict(self.splits[name]) for name in names))


def map_targets(dataset: Dataset, change: Callable[[str, Table], np.ndarray]) -> Dataset:
    """The data with other targets: change(split, table) -> targets."""
    changed = {split: change(split, table) for split, table in dataset.splits.items() if "targets" in table}
    if all(targets is dataset.splits[split]["targets"] for split, targets in changed.items()):
        return dataset
    splits = {split: table | ({"targets": changed[split]} if split in changed else {}) for split, table in dataset.splits.items()}
    return dataclasses.replace(dataset, splits=splits)


def _table(where: str, table: Any) -> Table:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: {type(table).__name__}, allowed: arrays by name, such as inputs and targets")
    if "inputs" not in table:
        raise ValueError(f"{where} has no inputs; it has {', '.join(map(str, table)) or 'nothing'}")
    arrays = {name: _arrays(f"{where} {name}", column) for name, column in _named(where, table).items()}
    for name in ("mask", "reset"):
        if name in arrays:
            arrays[name] = _booleans(f"{where} {name}", arrays[name])
    if "mask" in arrays and arrays["mask"].size and not arrays["mask"].any():
        raise ValueError(f"{where} mask: False everywhere, allowed: True somewhere")
    return arrays


def _named(where: str, table: Mapping[Any, Any]) -> Mapping[str, Any]:
    for name in table:
        if not isinstance(name, str):
            raise ValueError(f"{where}: an array by the name {name!r}, allowed: texts, such as 'inputs'")
    return table


def _arrays(where: str, column: Any) -> Any:
    if isinstance(column, Images | np.ndarray):
        return column
    if isinstance(column, Mapping):
        return {name: _arrays(f"{where}.{name}", each) for name, each in _named(where, column).items()}
    try:
        array = np.asarray(column)
    except ValueError:  # numpy's names what it has seen, in many words
        raise ValueError(f"{where}: lists of different lengths, allowed: an array of numbers") from None
    if array.dtype == object:
        raise ValueError(f"{where}: {type(column).__name__}, allowed: an array of numbers")
    return array


def _booleans(where: str, column: Any) -> np.ndarray:
    if not isinstance(column, np.ndarray) or column.dtype.kind not in "buif":
        raise ValueError(f"{where}: {getattr(column, 'dtype', type(column).__name__)}, allowed: True and False")
    if column.dtype == bool:
        return column
    wrong = column[(column != 0) & (column != 1)]
    if wrong.size:
        raise ValueError(f"{where}={wrong[0]}, allowed: True and False, or 1 and 0")
    return column.astype(bool)


def stratified_split(targets: np.ndarray, sizes: tuple[int, ...], seed: int = SPLIT_SEED) -> list[np.ndarray]:
    """Index arrays of the given sizes (they sum to len(targets)), shuffled, each class spread evenly over them."""
    # Within its class an example has a rank in (0, 1); in the order of ranks every class is spread evenly.
    order = _by_rank(targets, seed, lambda count: (np.arange(count) + 0.5) / count)
    # Ranks run from first to last, so consecutive blocks are stratified; shuffle once more within each.
    again = np.random.default_rng([seed, 1])
    return [again.permutation(block) for block in np.split(order, np.cumsum(sizes)[:-1])]


def as_many_of_each(targets: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of ``count`` examples, shuffled: as many of each class, and of some that the seed draws one more.

    Raises ValueError when a class has too few.
    """
    labels, sizes = np.unique(targets, return_counts=True)
    most = len(labels) * int(sizes.min())
    if not 0 < count <= most:
        few = f"class {labels[sizes.argmin()]} has {sizes.min()} of the {len(targets)} examples"
        raise ValueError(f"labels={count}, allowed: 1 to {most}, as {few}, and there are {len(labels)} classes")
    drawn = _by_rank(targets, seed, np.arange)[:count]
    return np.random.default_rng([seed, 1]).permutation(drawn)


def _by_rank(targets: np.ndarray, seed: int, rank_of: Callable[[int], np.ndarray]) -> np.ndarray:
    """Indices in the order of the ranks that rank_of(examples of a class) gives them, in an order that the seed draws."""
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    rank = np.empty(len(targets))
    for label in np.unique(targets):
        members = shuffled[targets[shuffled] == label]
        rank[members] = rank_of(len(members))
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


def by_split(source: str, named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """{split: thing} of (word, thing), the words being those of SPLIT_OF.  Raises DataError for two things of one split."""
    found: dict[str, tuple[str, T]] = {}
    for word, thing in named:
        split = SPLIT_OF[word.lower()]
        if split in found:
            raise DataError(f"{source}: {found[split][0]} and {word} are both the {split} split, expected one of them")
        found[split] = (word, thing)
    return {split: found[split][1] for split in SPLITS if split in found}


def with_splits(source: str, tables: dict[str, Table], *, divide: bool = True) -> dict[str, Table]:
    """Makes the splits that are missing: 80/10/10 of everything, or a tenth of the training examples for validation.

    divide: else nothing is divided, and a table without splits tests as a whole.
    """
    if not divide:
        return {"test" if split == "all" else split: table for split, table in tables.items()}
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
    made = {part: {key: _chosen(value, rows) for key, value in table.items()} for part, rows in zip(parts, blocks, strict=True)}
    return {**made, **{split: value for split, value in tables.items() if split == "test"}}


def _chosen(column: Any, rows: np.ndarray) -> Any:
    return column.select(rows) if isinstance(column, Images) else column[rows]


def _joined(first: Any, *others: Any) -> Any:
    return first.followed_by(*others) if isinstance(first, Images) else np.concatenate([first, *others])
