"""Data in memory: the whole set lies on the device once, and a batch is a pure function of (seed, step)."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.dataset import as_many_of_each, as_table
from train.engine.parallel import Layout, Parallel
from train.engine.step import no_experience, stay
from zoo.base import Batch, Model, Params


class Scaling(NamedTuple):
    """inputs = (raw - shift) * scale, in float32; shift and scale broadcast over the example's axes."""

    shift: Any
    scale: Any

    def __call__(self, raw: Array) -> Array:
        """Raw inputs [batch, ...] of any type -> float32 [batch, ...]."""
        shift, scale = (
            jnp.broadcast_to(self.shift, raw.shape),
            jnp.broadcast_to(self.scale, raw.shape),
        )
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
    """Statistics of the training inputs ``raw``, an array [n, ...] or Images; None for endless data.

    kind: none, unit, standardize, zscore, imagenet (see Recipe.preprocess).  Raises ValueError for another one, for one that
    would have to decode all Images first, and for imagenet where there are no three colours.
    """
    if kind in MEASURED and not isinstance(raw, np.ndarray):
        raise not_streamed(kind)
    match kind:
        case "none":
            shift, scale = np.float32(0), np.float32(1)
        case "unit":
            low, high = input_range
            shift, scale = np.float32(low), np.float32(1 / (high - low) if high > low else 1)
        case "standardize":
            mean, deviation = _moments(raw, None)
            shift, scale = (
                np.float32(mean),
                np.float32(1 / deviation if raw.min() < raw.max() else 1),
            )
        case "zscore":
            # Asked of the values, as the deviation of a constant may be a rounding error instead of 0.
            mean, deviation = _moments(raw, 0)
            deviation = np.where(raw.min(axis=0) < raw.max(axis=0), deviation, 0)
            # An input that never varies in training says nothing: it becomes 0, also where a test example differs.
            scale = np.divide(
                1, deviation, out=np.zeros_like(deviation), where=deviation > 0
            ).astype(np.float32)
            shift = mean.astype(np.float32)
        case "imagenet":
            shape = () if raw is None else raw.shape
            if shape[-1:] != (3,):
                raise ValueError(
                    f"preprocess='imagenet': inputs {list(shape)}, allowed: [n, height, width, 3]"
                )
            low, high = input_range
            mean, deviation = (np.array(each, np.float32) for each in IMAGENET)
            shift, scale = low + mean * (high - low), 1 / (deviation * (high - low))
        case _:
            raise ValueError(
                f"preprocess={kind!r}, allowed: none, unit, standardize, zscore, imagenet"
            )
    return Scaling(shift, scale)


MOST_SHOWN = 300
"""Characters of a message that list shapes."""
PLANNED = 64
"""Steps whose rows are sent to the device at once."""


class Feed:
    """What steps are fed with: batches, each a pure function of (seed, step).

    Of a table (``Batches``, ``train.stream.Stream``), drawn on the device (``train.drawn``), or from an
    experience that the steps move on (``train.experience``).  Nothing is stored between steps, so
    resuming needs only the step and the state.
    """

    layout: Layout
    batch_size: int
    padded: int
    """Rows of a batch on the devices."""
    steps_per_epoch: int
    planned = PLANNED
    """Steps whose plans are sent to the devices at once."""
    scaling: Scaling | None

    def arrays(self, step: int) -> Any:
        """What ``load`` needs that is the same for many steps, on every device."""
        raise NotImplementedError

    def alike(self, step: int, count: int) -> int:
        """Of ``count`` steps from this one on, how many have the same ``arrays``."""
        return count

    def rows_of(self, first: int, count: int) -> np.ndarray:
        """What tells the batches of steps first .. first + count - 1 apart: [count, batch, ...]."""
        raise NotImplementedError

    def plan(self, first: int, count: int) -> Any:
        """The same on the devices, divided among them: what ``load`` needs to know of those steps."""
        return self.layout.shard_rows(self.rows_of(first, count), axis=1)

    def with_seed(self, seed: int) -> "Feed":
        """The same data, in another order."""
        raise NotImplementedError

    def load(self, source: Any) -> Batch:
        """(arrays, a step's part of the plan) -> a batch; pure, traced into the step."""
        raise NotImplementedError

    def example(self, rows: int) -> Any:
        """Shapes of what ``load`` receives for a batch of this many rows."""
        raise NotImplementedError

    def experience(self, module: Model, cfg: Any) -> Callable[[Params, Array], Any]:
        """(params, key) -> what the steps move on beside the parameters; () for most."""
        return no_experience

    def advance(self, module: Model, cfg: Any) -> Callable[..., tuple[Any, Any]]:
        """See ``train.engine.step.make_step``."""
        return stay

    def close(self) -> None:
        """Ends whatever reads ahead."""


class Batches(Feed):
    """Batches of a table of arrays that share their leading axis.

    Each epoch is a permutation by (seed, epoch); its last batch is padded and masked, never dropped.  Nothing is stored
    between steps: ``rows(step)`` is pure, so resuming needs only the step.

    The table's sampler says which rows make up each batch, see ``train.samplers``.
    """

    def __init__(
        self,
        table: Mapping[str, Any],
        batch_size: int,
        *,
        seed: int | None = 0,
        scaling: Scaling | None = None,
        layout: Layout | None = None,
        labels: int | None = None,
    ) -> None:
        """table: a ``train.dataset.Table``, or columns {"inputs": [n, ...], ...}, each an array or a dict of arrays.

        seed: None keeps the order (evaluation).  layout: of the devices; one unless given.
        labels: examples to draw by the seed, as many of each class; others are unseen.

        Raises ValueError when lengths differ, nothing is there, integers are too large for a device, or so many labels are not
        there.
        """
        shapes = {jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf)
                  for path, leaf in jax.tree_util.tree_leaves_with_path(dict(table))}  # fmt: skip
        sizes = {shape[:1] for shape in shapes.values()}
        if len(sizes) != 1 or not any(*sizes):
            raise ValueError(
                f"data: every array needs the same, positive number of examples; shapes are {_short(shapes)}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}, allowed: at least 1")
        self.size = next(iter(shapes.values()))[0]
        self.batch_size, self.layout = (
            batch_size,
            layout or Layout(Parallel(devices=1), devices=jax.local_devices()[:1]),
        )
        self.padded = self.layout.rows(batch_size)
        table = as_table(table)
        self.sampler, self.labels = table.sampler, labels
        pool = _pool(table, labels, seed)
        self.order = table.sampler.order(self.size, batch_size, self.padded, seed, pool)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.table, self.scaling = jax.tree.map(_portable, dict(table)), scaling

    @functools.cached_property
    def _arrays(self) -> dict[int, Any]:
        parts = self.order.parts(self.table)
        return {group: self.layout.replicate((part, self.scaling)) for group, part in parts.items()}

    def arrays(self, step: int) -> Any:
        """The table (that of the step's group) and the scaling on every device: what ``load`` reads."""
        return self._arrays[self.order.group(step)]

    def alike(self, step: int, count: int) -> int:
        """Of ``count`` steps from this one on, how many have the same ``arrays``, up to the first that does not."""
        if self.order.places is None:
            return count
        group = self.order.group(step)
        others = (index for index in range(1, count) if self.order.group(step + index) != group)
        return next(others, count)

    @property
    def seed(self) -> int | None:
        """That decides the order; None keeps it."""
        return self.order.seed

    def with_seed(self, seed: int) -> "Batches":
        """The same data, in another order."""
        other = copy.copy(self)
        if self.labels is None:
            other.order = self.order.with_seed(seed)
        else:  # the examples differ too
            pool = _pool(self.table, self.labels, seed)
            other.order = self.sampler.order(self.size, self.batch_size, self.padded, seed, pool)
        return other

    def rows(self, step: int) -> np.ndarray:
        """Rows of the table that make up batch ``step``: int32 [batch], or more where they are to be divided; -1 for padding."""
        return self.order.rows(step)

    def rows_of(self, first: int, count: int) -> np.ndarray:
        """Rows of steps first .. first + count - 1, as their ``arrays`` count them: int32 [count, batch]."""
        rows = np.stack([self.rows(first + index) for index in range(count)])
        places = self.order.places
        return rows if places is None else np.where(rows < 0, -1, places[rows])

    def batch(self, step: int) -> Batch:
        """Batch ``step``, on the devices."""
        return _load_jit((self.arrays(step), self.layout.shard_rows(self.rows_of(step, 1)[0])))

    def example(self, rows: int) -> Any:
        """Shapes of what ``load`` receives for a batch of so many rows; of the longest, where there are buckets."""
        return jax.eval_shape(lambda: ((self.table, self.scaling), jnp.zeros(rows, jnp.int32)))

    def load(self, source: Any) -> Batch:
        """((table, scaling), rows [batch]) -> a batch.  Rows of -1 are masked."""
        return load_rows(source)


def _short(shapes: dict[str, Any]) -> str:
    """Cut short, because nested lists have as many shapes as numbers."""
    text = str(shapes)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ... of {len(shapes)} arrays"


def _pool(table: Mapping[str, Any], labels: int | None, seed: int | None) -> np.ndarray | None:
    """The rows that are used; None for all."""
    if labels is None:
        return None
    classes = table.get("targets")
    if not isinstance(classes, np.ndarray) or classes.ndim != 1 or classes.dtype.kind not in "ui":
        raise ValueError(f"labels={labels}, allowed for data whose targets are no classes: None")
    return as_many_of_each(classes, labels, seed or 0)


def finish(batch: dict[str, Any], valid: Array, scaling: Scaling | None) -> Batch:
    """Raw columns {"inputs": [batch, ...], ...} -> a batch: inputs, or their "image", scaled; what is not ``valid`` masked."""
    batch = dict(batch)
    if scaling is not None:
        inputs = batch["inputs"]
        scaled = (
            {**inputs, "image": scaling(inputs["image"])}
            if isinstance(inputs, dict)
            else scaling(inputs)
        )
        batch["inputs"] = scaled
    mask = batch.get("mask")
    batch["mask"] = valid if mask is None else mask & valid.reshape(-1, *[1] * (mask.ndim - 1))
    return batch


def load_rows(source: Any) -> Batch:
    """((table, scaling), rows [batch]) -> a batch.  Rows of -1 are masked."""
    (table, scaling), rows = source
    batch = jax.tree.map(lambda leaf: jnp.take(leaf, jnp.maximum(rows, 0), axis=0), table)
    return finish(batch, rows >= 0, scaling)


_load_jit = jax.jit(load_rows)


def _portable(leaf: Any) -> Any:
    """In this machine's byte order, as jax takes no other; ValueError for integers that jax would cut off without a word."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    if leaf.dtype.kind in "OSUMm" or leaf.dtype.names:
        raise ValueError(f"data: an array of {leaf.dtype}, allowed: numbers")
    leaf = leaf if leaf.dtype.isnative else leaf.astype(leaf.dtype.newbyteorder("="))
    if leaf.dtype.kind in "iu":
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(leaf.dtype))
        if (
            leaf.itemsize > limits.dtype.itemsize
            and not limits.min <= leaf.min() <= leaf.max() <= limits.max
        ):
            raise ValueError(
                f"data: integers from {leaf.min()} to {leaf.max()}, allowed: those of {limits.dtype}"
            )
    return leaf
