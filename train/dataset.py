"""A data set: arrays in splits, with their task and metadata."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from train.formats import DataError, Images
from train.samplers import Contiguous, Sampler, Shuffled
from train.tasks import Task, task_of_arrays

Columns = dict[str, Any]
T = TypeVar("T")
SPLITS = ("train", "validation", "test")
ALL_SPLITS = (*SPLITS, "one-shot")
SPLIT_OF = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Split by the words that file, folder and array names use for it, in any case."""
WORDS = {split: tuple(word for word, of in SPLIT_OF.items() if of == split) for split in SPLITS}
"""The words for each split."""
SPLIT_SEED = 2015


@dataclasses.dataclass(frozen=True, eq=False)
class Table(Mapping[str, Any]):
    """Rows of examples: a mapping from names to columns, whose first axis is [n].

    columns: inputs, targets, mask, reset, as in batches, see ``zoo.base``.
    sampler: selects the rows of each batch.
    extras: {name: [n]}: arrays or tuples that only the evaluation reads.
    parts: rows of each example that the evaluation shows, such as the frames of a recording, whose
        extras are then by example; () if each row is an example.
    """

    columns: Mapping[str, Any]
    sampler: Sampler = Shuffled()  # noqa: RUF009 (frozen)
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parts: tuple[int, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(jax.tree.leaves(dict(self.columns))[0])

    @property
    def examples(self) -> int:
        """Number of examples that the evaluation shows, see ``parts``."""
        return len(self.parts) or self.size

    def having(self, **columns: Any) -> "Table":
        """The same rows with these columns replaced or added."""
        return dataclasses.replace(self, columns={**self.columns, **columns})

    def joined(self, others: Sequence["Table"]) -> "Table":
        """These rows followed by those of other tables with the same columns."""
        columns = jax.tree.map(
            _joined, dict(self.columns), *(dict(other.columns) for other in others)
        )
        extras = {
            name: _joined(value, *(other.extras[name] for other in others))
            for name, value in self.extras.items()
            if all(name in other.extras for other in others)
        }
        sampler = self.sampler.joined([other.sampler for other in others])
        parts = tuple(part for table in (self, *others) for part in table.parts)
        return Table(columns, sampler, extras, parts)

    def content(self) -> Iterator[tuple[str, Any]]:
        """Names and values of everything that affects a run, for the fingerprint."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(dict(self.columns)):
            yield jax.tree_util.keystr(path, simple=True, separator="."), leaf
        yield from sorted(self.sampler.arrays().items())
        yield from sorted(self.extras.items())
        if self.parts:
            yield "parts", self.parts


Outputs = Callable[[Table], np.ndarray]
"""The outputs of a model for every row of a table."""


def as_table(table: Mapping[str, Any]) -> Table:
    """Columns as a Table.  Rows are read in order with a column "reset", else shuffled."""
    if isinstance(table, Table):
        return table
    return Table(dict(table), Contiguous() if "reset" in table else Shuffled())


MOST_NAMED = 5
"""Number of items that a message lists."""


class Bad:
    """Collects unusable lines, images and recordings by their fault."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, what: str, place: str) -> None:
        """Records an item with this fault."""
        self.places.setdefault(what, []).append(place)

    def check(self, name: str, cfg: Any) -> None:
        """Raises DataError listing some of the items, unless the user chose to skip them."""
        if cfg.on_bad == "skip" or not self.places:
            return
        messages = []
        for what, places in self.places.items():
            more = f" and {len(places) - MOST_NAMED} more" if len(places) > MOST_NAMED else ""
            messages.append(f"{what}: {', '.join(places[:MOST_NAMED])}{more}")
        raise DataError(f"{name}: {'; '.join(messages)}; data.on_bad=skip leaves them out")


class Endless:
    """A training split that is not a table: see ``train.drawn`` and ``train.experience``."""

    def content(self) -> Iterator[tuple[str, Any]]:
        """See ``Table.content``."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, except for inputs that are ``Images``.

    splits: {"train": {"inputs": [n, ...], "targets": [n]}, "validation": ..., "test": ...}, each a
        Table or a mapping of columns.  For labelled pixels, targets and mask are
        [n, height, width].  The training split may be ``Endless``.
    task: the task that the data define, see ``train.tasks``; inferred from the targets by default.
    input_range: smallest and largest raw input value, for preprocess="unit".
    notes: information for the user on how the data were read.
    source: the Config that describes the data, see ``train.data``; None for arrays in memory.
    identity: the fingerprint, if the content does not determine it: columns that were computed may
        differ in their last bits from machine to machine, and a recipe may relabel the data.
    relabel: for data whose targets a model can improve: (outputs) -> the data with those targets,
        where outputs(table) [n, ...] are a model's; see ``Recipe.relabel``.

    Lists become arrays, and masks of 0 and 1 become boolean.  Raises ValueError for unknown splits,
    splits without inputs, ragged lists, and masks with other values or False everywhere.
    """

    name: str
    splits: Mapping[str, Any]
    task: Task = None  # pyright: ignore[reportAssignmentType] (set below)
    input_range: tuple[float, float] = (0.0, 1.0)
    notes: tuple[str, ...] = ()
    source: Any = None
    identity: str = ""
    relabel: "Callable[[Outputs], Dataset] | None" = None

    def __post_init__(self) -> None:
        """Raises ValueError: see the class."""
        for split in self.splits:
            if split not in ALL_SPLITS:
                raise ValueError(
                    f"data {self.name}: split {split!r}, allowed: {', '.join(ALL_SPLITS)}"
                )
        splits = {
            split: _table(f"data {self.name}: {split}", table)
            for split, table in self.splits.items()
        }
        object.__setattr__(self, "splits", splits)
        if self.task is None:
            object.__setattr__(self, "task", task_of_arrays(next(iter(self.tables.values()))))

    @property
    def tables(self) -> dict[str, Table]:
        """The splits that are Tables."""
        return {split: table for split, table in self.splits.items() if isinstance(table, Table)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the content.  A run resumes only on data with the same fingerprint."""
        if self.identity:
            return self.identity
        digest = hashlib.blake2b(digest_size=8)
        for split in sorted(self.splits):
            for name, value in self.splits[split].content():
                if isinstance(value, Images):
                    digest.update(f"{split} {name} {value.dtype} {value.shape}".encode())
                    digest.update(value.digest())
                elif isinstance(value, tuple):
                    digest.update(f"{split} {name} {value!r}".encode())
                else:
                    array = np.ascontiguousarray(value)
                    digest.update(f"{split} {name} {array.dtype} {array.shape}".encode())
                    digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def joined(self, *names: str) -> Table:
        """Several splits as one table."""
        first, *others = (self.splits[name] for name in names)
        if others and any(isinstance(table, Endless) for table in (first, *others)):
            raise ValueError(
                f"data {self.name}: {' and '.join(names)} joined, allowed for endless data: one"
            )
        for other in others:
            if different := first.keys() ^ other.keys():
                what = ", ".join(sorted(different))
                raise ValueError(
                    f"data {self.name}: {what} in one of {', '.join(names)}, expected in all"
                )
        return first.joined(others) if others else first


def map_targets(dataset: Dataset, change: Callable[[str, Table], np.ndarray]) -> Dataset:
    """The data with new targets.  change: (split, table) -> targets."""
    splits: dict[str, Any] = dict(dataset.splits)
    for split, table in dataset.tables.items():
        if "targets" in table:
            targets = change(split, table)
            splits[split] = table if targets is table["targets"] else table.having(targets=targets)
    same = all(splits[split] is table for split, table in dataset.splits.items())
    return dataset if same else dataclasses.replace(dataset, splits=splits)


def _table(where: str, table: Any) -> Table | Endless:
    if isinstance(table, Endless):
        return table
    if not isinstance(table, Mapping):
        raise ValueError(
            f"{where}: {type(table).__name__}, allowed: arrays by name, such as inputs and targets"
        )
    if "inputs" not in table:
        raise ValueError(f"{where} has no inputs; it has {', '.join(map(str, table)) or 'nothing'}")
    arrays = {
        name: _arrays(f"{where} {name}", column) for name, column in _named(where, table).items()
    }
    for name in ("mask", "reset"):
        if name in arrays:
            arrays[name] = _booleans(f"{where} {name}", arrays[name])
    if "mask" in arrays and arrays["mask"].size and not arrays["mask"].any():
        raise ValueError(f"{where} mask: False everywhere, allowed: True somewhere")
    original = as_table(table)
    return dataclasses.replace(original, columns=arrays)


def _named(where: str, table: Mapping[Any, Any]) -> Mapping[str, Any]:
    for name in table:
        if not isinstance(name, str):
            raise ValueError(
                f"{where}: an array by the name {name!r}, allowed: texts, such as 'inputs'"
            )
    return table


def _arrays(where: str, column: Any) -> Any:
    if isinstance(column, Images | np.ndarray):
        return column
    if isinstance(column, Mapping):
        return {
            name: _arrays(f"{where}.{name}", value) for name, value in _named(where, column).items()
        }
    try:
        array = np.asarray(column)
    except ValueError:  # numpy's own message is long and technical
        raise ValueError(
            f"{where}: lists of different lengths, allowed: an array of numbers"
        ) from None
    if array.dtype == object:
        raise ValueError(f"{where}: {type(column).__name__}, allowed: an array of numbers")
    return array


def _booleans(where: str, column: Any) -> np.ndarray:
    if not isinstance(column, np.ndarray) or column.dtype.kind not in "buif":
        raise ValueError(
            f"{where}: {getattr(column, 'dtype', type(column).__name__)}, allowed: True and False"
        )
    if column.dtype == bool:
        return column
    wrong = column[(column != 0) & (column != 1)]
    if wrong.size:
        raise ValueError(f"{where}={wrong[0]}, allowed: True and False, or 1 and 0")
    return column.astype(bool)


def stratified_split(
    targets: np.ndarray, sizes: tuple[int, ...], seed: int = SPLIT_SEED
) -> list[np.ndarray]:
    """Shuffled index arrays with the same class balance.  sizes: they sum to len(targets)."""
    # Each example gets a rank in (0, 1) within its class.  Sorting by rank spreads classes evenly.
    order = _by_rank(targets, seed, lambda count: (np.arange(count) + 0.5) / count)
    # So consecutive blocks are stratified; shuffling removes the order within each block.
    rng = np.random.default_rng([seed, 1])
    return [rng.permutation(block) for block in np.split(order, np.cumsum(sizes)[:-1])]


def as_many_of_each(targets: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of ``count`` examples, shuffled and balanced over classes.

    If ``count`` is not a multiple of the classes, some drawn by the seed get one example more.
    Raises ValueError if a class has too few examples.
    """
    labels, sizes = np.unique(targets, return_counts=True)
    most = len(labels) * int(sizes.min())
    if not 0 < count <= most:
        few = f"class {labels[sizes.argmin()]} has {sizes.min()} of the {len(targets)} examples"
        raise ValueError(
            f"labels={count}, allowed: 1 to {most}, because {few}, with {len(labels)} classes"
        )
    drawn = _by_rank(targets, seed, np.arange)[:count]
    return np.random.default_rng([seed, 1]).permutation(drawn)


def _by_rank(targets: np.ndarray, seed: int, rank_of: Callable[[int], np.ndarray]) -> np.ndarray:
    """Indices sorted by rank.  rank_of: (size of a class) -> ranks of its shuffled examples."""
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    rank = np.empty(len(targets))
    for label in np.unique(targets):
        members = shuffled[targets[shuffled] == label]
        rank[members] = rank_of(len(members))
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


def by_split(source: str, named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """{split: item} from pairs (word of SPLIT_OF, item).  Raises DataError for duplicate splits."""
    items: dict[str, tuple[str, T]] = {}
    for word, item in named:
        split = SPLIT_OF[word.lower()]
        if split in items:
            raise DataError(
                f"{source}: {items[split][0]} and {word} are both the {split} split, "
                "expected one of them"
            )
        items[split] = (word, item)
    return {split: items[split][1] for split in SPLITS if split in items}


def with_splits(
    source: str, tables: dict[str, Columns], *, divide: bool = True
) -> dict[str, Columns]:
    """Adds missing splits.

    A table "all" is split 80/10/10; a missing validation split is a tenth of the training examples.
    divide: if False, nothing is divided, and a table "all" becomes the test split.
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
    divided = {
        part: {key: _chosen(value, rows) for key, value in table.items()}
        for part, rows in zip(parts, blocks, strict=True)
    }
    return {**divided, **{split: value for split, value in tables.items() if split == "test"}}


def _chosen(column: Any, rows: np.ndarray) -> Any:
    return column.select(rows) if isinstance(column, Images) else column[rows]


def _joined(first: Any, *others: Any) -> Any:
    if isinstance(first, Images):
        return first.followed_by(*others)
    return sum(others, first) if isinstance(first, tuple) else np.concatenate([first, *others])
