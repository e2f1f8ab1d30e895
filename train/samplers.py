"""Samplers select the rows of each batch as a pure function of (seed, step).

A sampler is a value, a field of ``train.dataset.Table``.  Given the batch size, it makes an
``Order``, which has no state: a resumed run needs only its step.

    Shuffled     every epoch is a permutation of the rows
    Contiguous   each row of a batch reads its own segment of the table, one row per step (text)
    Bucketed     the rows of a batch have similar lengths (sentences)
"""

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np


class Order:
    """The row indices of batches.  A group is a set of rows whose batches have the same shapes."""

    def __init__(self, batch_size: int, padded: int, seed: int | None) -> None:
        """padded: rows of a batch after padding.  seed: None keeps the order of the table."""
        self.batch_size, self.padded, self.seed = batch_size, padded, seed
        self.steps_per_epoch = 0
        self.places: np.ndarray | None = None
        """The position of each row within its group; None for a single group."""

    def with_seed(self, seed: int) -> "Order":
        """The same rows, ordered by another seed."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def rows(self, step: int) -> np.ndarray:
        """Row indices of batch ``step``: int32 [padded], -1 for padding."""
        raise NotImplementedError

    def group(self, step: int) -> int:
        """The group of the rows of batch ``step``."""
        return 0

    def parts(self, columns: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
        """The columns of each group, in the shapes of its batches."""
        return {0: columns}


class Sampler(Protocol):
    """Selects the rows of batches."""

    def order(
        self, size: int, batch_size: int, padded: int, seed: int | None, pool: np.ndarray | None
    ) -> Order:
        """The order of a table of ``size`` rows.  pool: the rows to use; None for all."""
        ...

    def joined(self, others: Sequence[Any]) -> "Sampler":
        """The sampler for this table followed by tables with these samplers of the same kind."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays that are part of the content of the data, for the fingerprint."""
        ...


class _Permuted(Order):
    """The rows of each group, permuted by (seed, epoch)."""

    def __init__(
        self, groups: dict[int, np.ndarray], batch_size: int, padded: int, seed: int | None
    ) -> None:
        super().__init__(batch_size, padded, seed)
        self.groups = groups
        sizes = map(len, groups.values())
        self.steps_per_epoch = sum(math.ceil(size / batch_size) for size in sizes)
        self._epoch: tuple[Any, list[tuple[int, np.ndarray]]] = (None, [])

    def rows(self, step: int) -> np.ndarray:
        epoch, within = divmod(step, self.steps_per_epoch)
        rows = self._batches(epoch)[within][1]
        missing = self.padded - len(rows)
        return np.pad(rows, (0, missing), constant_values=-1) if missing else rows.copy()

    def _batches(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Group and rows of each batch of an epoch."""
        # Kept for the next steps, which are mostly of the same epoch.
        if self._epoch[0] != (self.seed, epoch):
            batches = []
            for group, rows in self.groups.items():
                if self.seed is not None:
                    generator = np.random.default_rng([self.seed, epoch, *self._words(group)])
                    rows = rows[generator.permutation(len(rows))]
                starts = range(0, len(rows), self.batch_size)
                batches += [(group, rows[start : start + self.batch_size]) for start in starts]
            self._epoch = ((self.seed, epoch), self._arranged(batches, epoch))
        return self._epoch[1]

    def _words(self, group: int) -> list[int]:
        """Additional words of the seed for the permutation of a group."""
        return []

    def _arranged(self, batches: list[Any], epoch: int) -> list[Any]:
        """The batches of all groups in the order of the epoch."""
        return batches


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Every epoch permutes the rows by (seed, epoch)."""

    def order(
        self, size: int, batch_size: int, padded: int, seed: int | None, pool: np.ndarray | None
    ) -> Order:
        """See ``Sampler``."""
        rows = np.arange(size, dtype=np.int32) if pool is None else pool.astype(np.int32)
        return _Permuted({0: rows}, batch_size, padded, seed)

    def joined(self, others: Sequence[Any]) -> "Shuffled":
        """See ``Sampler``."""
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}


def _require_all(pool: np.ndarray | None) -> None:
    if pool is not None:
        raise ValueError(f"labels={len(pool)}, allowed for rows that are not shuffled: None")


class _Segments(Order):
    """Row i of a batch reads the table from bounds[i] to bounds[i + 1], one row per step."""

    def __init__(self, size: int, batch_size: int, padded: int, seed: int | None) -> None:
        super().__init__(batch_size, padded, seed)
        self.bounds = np.arange(batch_size + 1) * size // batch_size
        self.steps_per_epoch = math.ceil(size / batch_size)

    def rows(self, step: int) -> np.ndarray:
        rows = np.full(self.padded, -1, np.int32)
        rows[: self.batch_size] = self.bounds[:-1] + step % self.steps_per_epoch
        rows[: self.batch_size][rows[: self.batch_size] >= self.bounds[1:]] = -1
        return rows

    def parts(self, columns: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
        # A segment may begin within a document; the row before it belongs to another batch row.
        first = np.isin(np.arange(len(columns["reset"])), self.bounds[:-1])
        return {0: {**columns, "reset": columns["reset"] | first}}


@dataclasses.dataclass(frozen=True)
class Contiguous:
    """Each batch row reads its own contiguous segment of the table, the same in every epoch.

    The table has a column "reset" [n]: True if a row begins a new document, False if it continues
    the row before.  In batches, it is also True for the first row of a segment.
    """

    def order(
        self, size: int, batch_size: int, padded: int, seed: int | None, pool: np.ndarray | None
    ) -> Order:
        """See ``Sampler``.  Raises ValueError for a pool, because it would break segments."""
        _require_all(pool)
        return _Segments(size, batch_size, padded, seed)

    def joined(self, others: Sequence[Any]) -> "Contiguous":
        """See ``Sampler``."""
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """Nothing, because "reset" is a column."""
        return {}


class _ByBucket(_Permuted):
    """The groups are the buckets."""

    def __init__(
        self, buckets: np.ndarray, widths: Mapping[str, Any], *sizes_and_seed: Any
    ) -> None:
        groups = {
            int(bucket): np.flatnonzero(buckets == bucket).astype(np.int32)
            for bucket in np.unique(buckets)
        }
        super().__init__(groups, *sizes_and_seed)
        self.widths = widths
        self.places = np.empty(len(buckets), np.int32)
        for rows in groups.values():
            self.places[rows] = np.arange(len(rows))

    def group(self, step: int) -> int:
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._batches(epoch)[within][0]

    def parts(self, columns: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
        return {group: self._cut(columns, group, rows) for group, rows in self.groups.items()}

    def _cut(self, columns: Mapping[str, Any], group: int, rows: np.ndarray) -> Mapping[str, Any]:
        def cut(path: Any, leaf: np.ndarray) -> np.ndarray:
            widths = self.widths.get(jax.tree_util.keystr(path, simple=True, separator="."))
            return np.ascontiguousarray(
                leaf[rows] if widths is None else leaf[rows, : widths[group]]
            )

        return jax.tree_util.tree_map_with_path(cut, dict(columns))

    def _words(self, group: int) -> list[int]:
        return [group]

    def _arranged(self, batches: list[Any], epoch: int) -> list[Any]:
        # Independent of the seed, so runs with different seeds have the same shapes at each step.
        if self.seed is None:
            return batches
        order = np.random.default_rng(epoch).permutation(len(batches))
        return [batches[index] for index in order]


@dataclasses.dataclass(frozen=True, eq=False)
class Bucketed:
    """All rows of a batch are in the same bucket, and its arrays are cut to the bucket's widths.

    buckets: the bucket of each row, int [n].
    widths: {"inputs.source": (10, 20, 43), ...}: lengths of the second axes of arrays in buckets 0,
        1, ...
    The buckets of an epoch's steps do not depend on the seed, so runs with different seeds have the
    same shapes at each step.
    """

    buckets: np.ndarray
    widths: Mapping[str, tuple[int, ...]]

    def order(
        self, size: int, batch_size: int, padded: int, seed: int | None, pool: np.ndarray | None
    ) -> Order:
        """See ``Sampler``.  Raises ValueError for a pool."""
        _require_all(pool)
        return _ByBucket(self.buckets, self.widths, batch_size, padded, seed)

    def joined(self, others: Sequence[Any]) -> "Bucketed":
        """See ``Sampler``."""
        return Bucketed(
            np.concatenate([self.buckets, *(other.buckets for other in others)]), self.widths
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The buckets."""
        return {"bucket": self.buckets}


def bucket_of(lengths: np.ndarray, edges: Sequence[tuple[int, ...]]) -> np.ndarray:
    """The bucket of each row, int32 [n], by the lengths [n, sequences] of its sequences."""
    sides = [np.searchsorted(edge, lengths[:, side]) for side, edge in enumerate(edges)]
    return np.max(sides, axis=0).astype(np.int32)


def bucket_edges(
    lengths: np.ndarray, most: np.ndarray, buckets: int
) -> tuple[tuple[int, ...], ...]:
    """Widths of the buckets for each sequence of a row, the same number for all.

    lengths [n, sequences].  most [sequences]: the last widths.  The widths of each sequence
    minimize the padding of that sequence alone.
    """
    candidates = [
        sorted({*side.tolist(), int(last)}) for side, last in zip(lengths.T, most, strict=True)
    ]
    count = min([buckets, *map(len, candidates)])
    return tuple(
        _fewest_places(side, edges, count)
        for side, edges in zip(lengths.T, candidates, strict=True)
    )


def _fewest_places(lengths: np.ndarray, edges: list[int], count: int) -> tuple[int, ...]:
    """The ``count`` of these edges, with the last, that need the fewest places for all rows."""
    # below[j]: number of rows up to the length of edge j - 1.
    below = [0, *(int(np.sum(lengths <= edge)) for edge in edges)]
    # Dynamic programming over the number of buckets.  best[j]: the fewest places for all rows up
    # to edge j, and the edges that achieve it; one more bucket per pass.
    best = [(below[j + 1] * edge, (edge,)) for j, edge in enumerate(edges)]
    for _ in range(count - 1):
        best = [
            min(
                (places + (below[j + 1] - below[i + 1]) * edge, (*taken, edge))
                for i, (places, taken) in enumerate(best[:j] or best[:1])
            )
            for j, edge in enumerate(edges)
        ]
    return best[-1][1]
