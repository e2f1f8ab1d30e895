"""Data in device memory; a batch is a pure function of (seed, step)."""

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
    """inputs = (raw - shift) * scale in float32; shift and scale broadcast over examples."""

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
    """Mean and standard deviation in float64."""
    # In pieces, because np.std would convert all examples to float64 at once.
    mean = raw.mean(axis=axis, dtype=np.float64)
    pieces = np.array_split(raw, max(raw.size >> 22, 1))
    squares = sum(np.square(piece - mean).sum(axis=axis) for piece in pieces)
    return mean, np.sqrt(squares / (len(raw) if axis == 0 else raw.size))


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green, blue in 0..1, as torchvision's weights expect."""

MEASURED = ("standardize", "zscore")
"""Kinds of preprocessing that need statistics of all training inputs."""


def not_streamed(kind: str) -> ValueError:
    """The error for a kind that needs statistics, when images are streamed."""
    return ValueError(f"preprocess={kind!r}, allowed for streamed data: none, unit, imagenet")


def fit_scaling(kind: str, raw: Any, input_range: tuple[float, float]) -> Scaling:
    """The scaling of the inputs.

    kind: none, unit, standardize, zscore, imagenet (see Recipe.preprocess).
    raw: training inputs, an array [n, ...] or Images; None for endless data.
    Raises ValueError for another kind, for one that has to decode all Images first, and for
    imagenet unless inputs have three channels.
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
            # Compare values, because rounding can make the deviation of a constant nonzero.
            mean, deviation = _moments(raw, 0)
            deviation = np.where(raw.min(axis=0) < raw.max(axis=0), deviation, 0)
            # An input that is constant in training becomes 0, even if it differs in a test example.
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
            mean, deviation = (np.array(values, np.float32) for values in IMAGENET)
            shift, scale = low + mean * (high - low), 1 / (deviation * (high - low))
        case _:
            raise ValueError(
                f"preprocess={kind!r}, allowed: none, unit, standardize, zscore, imagenet"
            )
    return Scaling(shift, scale)


MOST_SHOWN = 300
"""Longest list of shapes in a message, in characters."""
PLANNED = 64
"""Default of ``Feed.planned``."""


class Feed:
    """Supplies batches to the training steps; each is a pure function of (seed, step).

    Batches come from a table (``Batches``, ``train.stream.Stream``), are drawn on the device
    (``train.drawn``), or come from an experience that the steps update (``train.experience``).
    Nothing is stored between steps, so resuming needs only the step and the training state.
    """

    layout: Layout
    batch_size: int
    padded: int
    """Rows of a batch after padding to a multiple of the devices."""
    steps_per_epoch: int
    planned = PLANNED
    """Number of steps whose index batches are sent to the devices at once."""
    scaling: Scaling | None

    def arrays(self, step: int) -> Any:
        """Replicated input of ``load`` that many steps have in common."""
        raise NotImplementedError

    def alike(self, step: int, count: int) -> int:
        """How many of the ``count`` steps from ``step`` on have the same ``arrays``."""
        return count

    def rows_of(self, first: int, count: int) -> np.ndarray:
        """Indices for the batches of steps first .. first + count - 1: [count, batch, ...]."""
        raise NotImplementedError

    def plan(self, first: int, count: int) -> Any:
        """The indices of ``rows_of``, sharded over the devices: the per-step input of ``load``."""
        return self.layout.shard_rows(self.rows_of(first, count), axis=1)

    def with_seed(self, seed: int) -> "Feed":
        """The same data, in another order."""
        raise NotImplementedError

    def load(self, source: Any) -> Batch:
        """(arrays, one step of the plan) -> a batch.  Pure; traced as part of the training step."""
        raise NotImplementedError

    def example(self, rows: int) -> Any:
        """Shapes of the argument of ``load`` for a batch with this many rows."""
        raise NotImplementedError

    def experience(self, module: Model, cfg: Any) -> Callable[[Params, Array], Any]:
        """(params, key) -> state that steps update in addition to the parameters; () by default."""
        return no_experience

    def advance(self, module: Model, cfg: Any) -> Callable[..., tuple[Any, Any]]:
        """See ``train.engine.step.make_step``."""
        return stay

    def close(self) -> None:
        """Stops prefetching."""


class Batches(Feed):
    """Batches of a table of arrays that share their leading axis.

    The table's sampler selects the rows of each batch, see ``train.samplers``.  An incomplete last
    batch is padded and masked, never dropped.  ``rows(step)`` is pure, so resuming needs only the
    step.
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
        """Creates the batches.

        table: a ``train.dataset.Table``, or columns {"inputs": [n, ...], ...}, each an array or a
            dict of arrays.
        seed: None keeps the order of the table (evaluation).
        layout: of the devices; one device by default.
        labels: use only this many examples, drawn by the seed and balanced over classes.
        Raises ValueError for columns of different lengths, an empty table, integers too large for a
        device, and more labels than available.
        """
        shapes = {
            jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(dict(table))
        }
        sizes = {shape[:1] for shape in shapes.values()}
        if len(sizes) != 1 or not any(*sizes):
            raise ValueError(
                "data: every array needs the same, positive number of examples; "
                f"shapes are {_short(shapes)}"
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
        """The table of the step's group and the scaling, replicated."""
        return self._arrays[self.order.group(step)]

    def close(self) -> None:
        """Frees the copy of the table on the devices; it is made again when needed."""
        self.__dict__.pop("_arrays", None)

    def alike(self, step: int, count: int) -> int:
        """How many of the ``count`` steps from ``step`` on have the same ``arrays``."""
        if self.order.places is None:
            return count
        group = self.order.group(step)
        others = (index for index in range(1, count) if self.order.group(step + index) != group)
        return next(others, count)

    @property
    def seed(self) -> int | None:
        """The seed of the order; None keeps the order of the table."""
        return self.order.seed

    def with_seed(self, seed: int) -> "Batches":
        """The same data, in another order."""
        other = copy.copy(self)
        if self.labels is None:
            other.order = self.order.with_seed(seed)
        else:  # the seed also selects the examples
            pool = _pool(self.table, self.labels, seed)
            other.order = self.sampler.order(self.size, self.batch_size, self.padded, seed, pool)
        return other

    def rows(self, step: int) -> np.ndarray:
        """Row indices of batch ``step``: int32 [padded], -1 for padding."""
        return self.order.rows(step)

    def rows_of(self, first: int, count: int) -> np.ndarray:
        """Rows of ``count`` steps from ``first`` on in their ``arrays``: int32 [count, batch]."""
        rows = np.stack([self.rows(first + index) for index in range(count)])
        places = self.order.places
        return rows if places is None else np.where(rows < 0, -1, places[rows])

    def batch(self, step: int) -> Batch:
        """Batch ``step``, on the devices."""
        return _load_jit((self.arrays(step), self.layout.shard_rows(self.rows_of(step, 1)[0])))

    def example(self, rows: int) -> Any:
        """Shapes of the argument of ``load`` for this many rows; for the longest bucket, if any."""
        return jax.eval_shape(lambda: ((self.table, self.scaling), jnp.zeros(rows, jnp.int32)))

    def load(self, source: Any) -> Batch:
        """((table, scaling), rows [batch]) -> a batch.  Rows of -1 are masked."""
        return load_rows(source)


def _short(shapes: dict[str, Any]) -> str:
    """The shapes as text, truncated, because every number in nested lists has a shape."""
    text = str(shapes)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ... of {len(shapes)} arrays"


def _pool(table: Mapping[str, Any], labels: int | None, seed: int | None) -> np.ndarray | None:
    """The rows to use; None for all."""
    if labels is None:
        return None
    classes = table.get("targets")
    if not isinstance(classes, np.ndarray) or classes.ndim != 1 or classes.dtype.kind not in "ui":
        raise ValueError(f"labels={labels}, allowed for data whose targets are not classes: None")
    return as_many_of_each(classes, labels, seed or 0)


def finish(batch: dict[str, Any], valid: Array, scaling: Scaling | None) -> Batch:
    """Raw columns {"inputs": [batch, ...], ...} -> a batch.

    Scales the inputs, or their "image", and masks rows that are not ``valid``.
    """
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
    """The array in native byte order, which jax requires.

    Raises ValueError for integers that jax would silently truncate, and non-numeric arrays.
    """
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
                f"data: integers from {leaf.min()} to {leaf.max()}, "
                f"allowed: those of {limits.dtype}"
            )
    return leaf
