"""Data in memory: the whole set lies on the device once, and a batch is a pure function of (seed, step)."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zoo.base import Batch


class Scaling(NamedTuple):
    """inputs = (raw - shift) * scale, in float32; shift and scale broadcast over the example's axes."""

    shift: Any
    scale: Any

    def __call__(self, raw: Array) -> Array:
        """Raw inputs [batch, ...] of any type -> float32 [batch, ...]."""
        shift, scale = jnp.broadcast_to(self.shift, raw.shape), jnp.broadcast_to(self.scale, raw.shape)
        return (raw.astype(jnp.float32) - shift) * scale


def fit_scaling(kind: str, raw: np.ndarray, input_range: tuple[float, float]) -> Scaling:
    """Statistics of the training inputs ``raw`` [n, ...].  kind: none, unit, standardize, zscore (see Recipe.preprocess)."""
    match kind:
        case "none":
            shift, scale = np.float32(0), np.float32(1)
        case "unit":
            low, high = input_range
            shift, scale = np.float32(low), np.float32(1 / (high - low) if high > low else 1)
        case "standardize":
            deviation = raw.std(dtype=np.float64) if raw.min() < raw.max() else 0
            shift, scale = np.float32(raw.mean(dtype=np.float64)), np.float32(1 / deviation if deviation else 1)
        case "zscore":
            # Asked of the values, as the deviation of a constant may be a rounding error instead of 0.
            deviation = np.where(raw.min(axis=0) < raw.max(axis=0), raw.std(axis=0, dtype=np.float64), 0)
            # An input that never varies in training says nothing: it becomes 0, also where a test example differs.
            scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0).astype(np.float32)
            shift = raw.mean(axis=0, dtype=np.float64).astype(np.float32)
        case _:
            raise ValueError(f"preprocess={kind!r}, allowed: none, unit, standardize, zscore")
    return Scaling(shift, scale)


class Batches:
    """Batches of a table of arrays that share their leading axis.

    Each epoch is a permutation by (seed, epoch); its last batch is padded and masked, never dropped.  Nothing is stored
    between steps: ``rows(step)`` is pure, so resuming needs only the step.
    """

    def __init__(
        self, table: Mapping[str, Any], batch_size: int, *, seed: int | None = 0, scaling: Scaling | None = None
    ) -> None:
        """table: {"inputs": [n, ...], ...}, each an array or a dict of arrays.  seed: None keeps the order (evaluation).

        Raises ValueError when lengths differ, nothing is there, or integers are too large for a device.
        """
        shapes = {jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf)
                  for path, leaf in jax.tree_util.tree_leaves_with_path(dict(table))}  # fmt: skip
        sizes = {shape[:1] for shape in shapes.values()}
        if len(sizes) != 1 or not any(*sizes):
            raise ValueError(f"data: every array needs the same, positive number of examples; shapes are {shapes}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}, allowed: at least 1")
        self.size = next(iter(shapes.values()))[0]
        self.batch_size = batch_size
        self.steps_per_epoch = math.ceil(self.size / batch_size)
        self.seed = seed
        self.table, self.scaling = jax.tree.map(_portable, dict(table)), scaling
        self._epoch: tuple[int | None, np.ndarray] = (None, np.empty(0, np.int32))

    @functools.cached_property
    def arrays(self) -> tuple[dict[str, Any], Scaling | None]:
        """The table and the scaling on the device: what ``fetch`` reads."""
        return jax.device_put((self.table, self.scaling))

    def rows(self, step: int) -> np.ndarray:
        """Rows of the table that make up batch ``step``: int32 [batch], -1 for padding."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)[within * self.batch_size : (within + 1) * self.batch_size]
        missing = self.batch_size - len(order)
        return np.pad(order, (0, missing), constant_values=-1) if missing else order.copy()

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            if self.seed is None:
                order = np.arange(self.size)
            else:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            self._epoch = (epoch, order.astype(np.int32))
        return self._epoch[1]

    def plan(self, first: int, count: int) -> np.ndarray:
        """Rows of steps first .. first + count - 1, int32 [count, batch]."""
        return np.stack([self.rows(first + index) for index in range(count)])

    def batch(self, step: int) -> Batch:
        """Batch ``step``, on the device."""
        return _fetch_jit(self.arrays, self.rows(step))

    @staticmethod
    def fetch(arrays: tuple[dict[str, Any], Scaling | None], rows: Array) -> Batch:
        """The rows [batch] of the table as a batch; pure, traced into the step.  Rows of -1 are masked."""
        table, scaling = arrays
        valid = rows >= 0
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, jnp.maximum(rows, 0), axis=0), table)
        if scaling is not None:
            batch["inputs"] = scaling(batch["inputs"])
        mask = batch.get("mask")
        batch["mask"] = valid if mask is None else mask & valid.reshape(-1, *[1] * (mask.ndim - 1))
        return batch


_fetch_jit = jax.jit(Batches.fetch)


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
