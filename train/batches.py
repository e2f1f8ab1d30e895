"""Data in memory: the whole set lies on the device once, and a batch is a pure function of (seed, step)."""

import copy
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.dataset import as_many_of_each
from train.formats import Images
from train.parallel import Layout, Parallel
from zoo.base import Batch


class Scaling(NamedTuple):
    """inputs = (raw - shift) * scale, in float32; shift and scale broadcast over the example's axes."""

    shift: Any
    scale: Any

    def __call__(self, raw: Array) -> Array:
        """Raw inputs [batch, ...] of any type -> float32 [batch, ...]."""
        shift, scale = jnp.broadcast_to(self.shift, raw.shape), jnp.broadcast_to(self.scale, raw.shape)
        return (raw.astype(jnp.float32) - shift) * scale


def _moments(raw: np.ndarray, axis: int | None) -> tuple[Any, Any]:
    """Mean and standard deviation in float64, a few examples at a time: numpy's own has all of them in float64 at once."""
    mean = raw.mean(axis=axis, dtype=np.float64)
    pieces = np.array_split(raw, max(raw.size >> 22, 1))
    squares = sum(np.square(piece - mean).sum(axis=axis) for piece in pieces)
    return mean, np.sqrt(squares / (len(raw) if axis == 0 else raw.size))


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of red, green and blue, from 0 to 1, in the images that torchvision's weights were trained on."""


MEASURED = ("standardize", "zscore")
"""Ways to preprocess for which all of the training inputs have to be there."""


def not_streamed(kind: str) -> ValueError:
    """What is wrong with these where images are decoded one after the other."""
    return ValueError(f"preprocess={kind!r}, allowed for streamed data: none, unit, imagenet")


def fit_scaling(kind: str, raw: Any, input_range: tuple[float, float]) -> Scaling:
    """Statistics of the training inputs ``raw``, an array [n, ...] or Images.

    kind: none, unit, standardize, zscore, imagenet (see Recipe.preprocess).  Raises ValueError for another one, for one that
    would have to decode all Images first, and for imagenet where there are no three colours.
    """
    if kind in MEASURED and isinstance(raw, Images):
        raise not_streamed(kind)
    match kind:
        case "none":
            shift, scale = np.float32(0), np.float32(1)
        case "unit":
            low, high = input_range
            shift, scale = np.float32(low), np.float32(1 / (high - low) if high > low else 1)
        case "standardize":
            mean, deviation = _moments(raw, None)
            shift, scale = np.float32(mean), np.float32(1 / deviation if raw.min() < raw.max() else 1)
        case "zscore":
            # Asked of the values, as the deviation of a constant may be a rounding error instead of 0.
            mean, deviation = _moments(raw, 0)
            deviation = np.where(raw.min(axis=0) < raw.max(axis=0), deviation, 0)
            # An input that never varies in training says nothing: it becomes 0, also where a test example differs.
            scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0).astype(np.float32)
            shift = mean.astype(np.float32)
        case "imagenet":
            if raw.shape[-1] != 3:
                raise ValueError(f"preprocess='imagenet': inputs {list(raw.shape)}, allowed: [n, height, width, 3]")
            low, high = input_range
            mean, deviation = (np.array(each, np.float32) for each in IMAGENET)
            shift, scale = low + mean * (high - low), 1 / (deviation * (high - low))
        case _:
            raise ValueError(f"preprocess={kind!r}, allowed: none, unit, standardize, zscore, imagenet")
    return Scaling(shift, scale)


class Order:
    """Which rows make up each batch: a pure function of the step, where every epoch is a permutation by (seed, epoch).

    Of rows that go on from one another (text) every row of a batch has a stretch of the table of its own instead, which it goes
    through from batch to batch, the same in every epoch.

    Of rows in buckets, all of a batch are of one; which one each step has depends on the epoch only, so that the steps of runs
    that differ in their seeds have the same shapes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        padded: int,
        seed: int | None,
        labels: tuple[np.ndarray, int] | None = None,
        continued: bool = False,
        buckets: np.ndarray | None = None,
    ) -> None:
        """size: rows of the table.  padded: of a batch after padding.  seed: None keeps the order.

        labels: (classes [size], number): an epoch has only so many rows, as many of each class, drawn by the seed.
        continued: each row of the table goes on from the one before.  buckets: int [size], that each row is in.
        """
        self.buckets = buckets
        self.batch_size, self.padded, self.seed, self.labels = batch_size, padded, seed, labels
        self.stretches = np.arange(batch_size + 1) * size // batch_size if continued else None
        self.table_size = size
        if labels is None:
            self.pool = np.arange(size, dtype=np.int32)
        else:
            classes, count = labels
            self.pool = as_many_of_each(classes, count, seed or 0).astype(np.int32)
        if buckets is None:
            self.in_bucket = {0: self.pool}
        else:
            self.in_bucket = {int(b): np.flatnonzero(buckets == b).astype(np.int32) for b in np.unique(buckets)}
        self.steps_per_epoch = sum(math.ceil(len(rows) / batch_size) for rows in self.in_bucket.values())
        self._epoch: tuple[int | None, list[tuple[int, np.ndarray]]] = (None, [])

    def with_seed(self, seed: int) -> "Order":
        """The same, drawn anew."""
        return Order(self.table_size, self.batch_size, self.padded, seed, self.labels, self.stretches is not None, self.buckets)

    def rows(self, step: int) -> np.ndarray:
        """Rows of the table that make up batch ``step``: int32 [padded]; -1 for padding."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self.stretches is not None:
            rows = np.full(self.padded, -1, np.int32)
            rows[: self.batch_size] = self.stretches[:-1] + within
            rows[: self.batch_size][rows[: self.batch_size] >= self.stretches[1:]] = -1
            return rows
        order = self._batches(epoch)[within][1]
        missing = self.padded - len(order)
        return np.pad(order, (0, missing), constant_values=-1) if missing else order.copy()

    def bucket(self, step: int) -> int:
        """That all rows of batch ``step`` are in; 0 where there are none."""
        if self.buckets is None:
            return 0
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._batches(epoch)[within][0]

    def _batches(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Bucket and rows of each batch of an epoch."""
        if self._epoch[0] != epoch:
            batches = []
            for bucket, order in self.in_bucket.items():
                if self.seed is not None:
                    words = [self.seed, epoch] if self.buckets is None else [self.seed, epoch, bucket]
                    order = order[np.random.default_rng(words).permutation(len(order))]
                starts = range(0, len(order), self.batch_size)
                batches += [(bucket, order[start : start + self.batch_size]) for start in starts]
            if self.seed is not None and self.buckets is not None:
                batches = [batches[index] for index in np.random.default_rng(epoch).permutation(len(batches))]
            self._epoch = (epoch, batches)
        return self._epoch[1]


MOST_SHOWN = 300
"""Characters of a message that list shapes."""
PLANNED = 64
"""Steps whose rows are sent to the device at once."""


class Batches:
    """Batches of a table of arrays that share their leading axis.

    Each epoch is a permutation by (seed, epoch); its last batch is padded and masked, never dropped.  Nothing is stored
    between steps: ``rows(step)`` is pure, so resuming needs only the step.

    A column "reset" [n], False, says that a row goes on from the row before: each row of a batch then goes on from that of the
    batch before, wherever it is False (see ``Order``).
    """

    planned = PLANNED

    def __init__(
        self,
        table: Mapping[str, Any],
        batch_size: int,
        *,
        seed: int | None = 0,
        scaling: Scaling | None = None,
        layout: Layout | None = None,
        labels: int | None = None,
        widths: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """table: {"inputs": [n, ...], ...}, each an array or a dict of arrays.  seed: None keeps the order (evaluation).

        layout: of the devices; one unless given.  labels: examples to draw by the seed, as many of each class; others are unseen.
        widths: {"inputs.source": (10, 20, 43), ...}: what the second axes of arrays in buckets 0, 1, ... are cut down to.

        Raises ValueError when lengths differ, nothing is there, integers are too large for a device, or so many labels are not
        there.
        """
        shapes = {jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf)
                  for path, leaf in jax.tree_util.tree_leaves_with_path(dict(table))}  # fmt: skip
        sizes = {shape[:1] for shape in shapes.values()}
        if len(sizes) != 1 or not any(*sizes):
            raise ValueError(f"data: every array needs the same, positive number of examples; shapes are {_short(shapes)}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}, allowed: at least 1")
        self.size = next(iter(shapes.values()))[0]
        self.batch_size, self.layout = batch_size, layout or Layout(Parallel(devices=1), devices=jax.local_devices()[:1])
        self.padded = self.layout.rows(batch_size)
        table = dict(table)
        buckets, self.widths = table.pop("bucket", None), widths or {}
        chosen = _labels(table, labels)
        self.order = Order(self.size, batch_size, self.padded, seed, chosen, "reset" in table, buckets)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.table, self.scaling = jax.tree.map(_portable, dict(table)), scaling
        if self.order.stretches is not None:
            starts = self.order.stretches[:-1]
            self.table["reset"] = self.table["reset"] | np.isin(np.arange(self.size), starts)

    @functools.cached_property
    def _arrays(self) -> dict[int, Any]:
        if self.order.buckets is None:
            return {0: self.layout.share((self.table, self.scaling))}
        return {
            bucket: self.layout.share((self._cut(bucket, rows), self.scaling)) for bucket, rows in self.order.in_bucket.items()
        }

    def _cut(self, bucket: int, rows: Any) -> dict[str, Any]:
        def cut(path: Any, leaf: np.ndarray) -> np.ndarray:
            widths = self.widths.get(jax.tree_util.keystr(path, simple=True, separator="."))
            return np.ascontiguousarray(leaf[rows] if widths is None else leaf[rows, : widths[bucket]])

        return jax.tree_util.tree_map_with_path(cut, self.table)

    def arrays(self, step: int) -> Any:
        """The table (of the step's bucket) and the scaling on every device: what ``load`` reads."""
        return self._arrays[self.order.bucket(step)]

    def alike(self, step: int, count: int) -> int:
        """Of ``count`` steps from this one on, how many have the same ``arrays``, up to the first that does not."""
        bucket = self.order.bucket(step)
        others = (index for index in range(1, count) if self.order.bucket(step + index) != bucket)
        return count if self.order.buckets is None else next(others, count)

    @property
    def seed(self) -> int | None:
        """That decides the order; None keeps it."""
        return self.order.seed

    def with_seed(self, seed: int) -> "Batches":
        """The same data, in another order."""
        other = copy.copy(self)
        other.order = self.order.with_seed(seed)
        return other

    def rows(self, step: int) -> np.ndarray:
        """Rows of the table that make up batch ``step``: int32 [batch], or more where they are to be divided; -1 for padding."""
        return self.order.rows(step)

    def rows_of(self, first: int, count: int) -> np.ndarray:
        """Rows of steps first .. first + count - 1, as their ``arrays`` count them: int32 [count, batch]."""
        rows = np.stack([self.rows(first + index) for index in range(count)])
        return rows if self._places is None else np.where(rows < 0, -1, self._places[rows])

    @functools.cached_property
    def _places(self) -> np.ndarray | None:
        """Of each row in its bucket."""
        if self.order.buckets is None:
            return None
        places = np.empty(self.size, np.int32)
        for rows in self.order.in_bucket.values():
            places[rows] = np.arange(len(rows))
        return places

    def plan(self, first: int, count: int) -> Any:
        """The same on the devices, divided among them: what ``load`` needs to know of those steps."""
        return self.layout.deal_rows(self.rows_of(first, count), axis=1)

    def batch(self, step: int) -> Batch:
        """Batch ``step``, on the devices."""
        return _load_jit((self.arrays(step), self.layout.deal_rows(self.rows_of(step, 1)[0])))

    def close(self) -> None:
        """Ends whatever reads ahead: nothing, as all is in memory."""

    def example(self, rows: int) -> Any:
        """Shapes of what ``load`` receives for a batch of so many rows; of the longest, where there are buckets."""
        return jax.eval_shape(lambda: ((self.table, self.scaling), jnp.zeros(rows, jnp.int32)))

    @staticmethod
    def load(source: Any) -> Batch:
        """((table, scaling), rows [batch]) -> a batch; pure, traced into the step.  Rows of -1 are masked."""
        (table, scaling), rows = source
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, jnp.maximum(rows, 0), axis=0), table)
        return finish(batch, rows >= 0, scaling)


def _short(shapes: dict[str, Any]) -> str:
    """Cut short, because nested lists have as many shapes as numbers."""
    text = str(shapes)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ... of {len(shapes)} arrays"


def _labels(table: Mapping[str, Any], labels: int | None) -> tuple[np.ndarray, int] | None:
    if labels is None:
        return None
    classes = table.get("targets")
    if not isinstance(classes, np.ndarray) or classes.ndim != 1 or classes.dtype.kind not in "ui":
        raise ValueError(f"labels={labels}, allowed for data whose targets are no classes: None")
    return classes, labels


def finish(batch: dict[str, Any], valid: Array, scaling: Scaling | None) -> Batch:
    """Raw columns {"inputs": [batch, ...], ...} -> a batch: inputs, or their "image", scaled; what is not ``valid`` masked."""
    batch = dict(batch)
    if scaling is not None:
        inputs = batch["inputs"]
        scaled = {**inputs, "image": scaling(inputs["image"])} if isinstance(inputs, dict) else scaling(inputs)
        batch["inputs"] = scaled
    mask = batch.get("mask")
    batch["mask"] = valid if mask is None else mask & valid.reshape(-1, *[1] * (mask.ndim - 1))
    return batch


_load_jit = jax.jit(Batches.load)


def _portable(leaf: Any) -> Any:
    """In this machine's byte order, as jax takes no other; ValueError for integers that jax would cut off without a word."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    if leaf.dtype.kind in "OSUMm" or leaf.dtype.names:
        raise ValueError(f"data: an array of {leaf.dtype}, allowed: numbers")
    leaf = leaf if leaf.dtype.isnative else leaf.astype(leaf.dtype.newbyteorder("="))
    if leaf.dtype.kind in "iu":
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(leaf.dtype))
        if leaf.itemsize > limits.dtype.itemsize and not limits.min <= leaf.min() <= leaf.max() <= limits.max:
            raise ValueError(f"data: integers from {leaf.min()} to {leaf.max()}, allowed: those of {limits.dtype}")
    return leaf
