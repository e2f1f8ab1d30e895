"""Endless training data, generated on the device; a batch is a pure function of (seed, step)."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.batches import Feed, Scaling, finish
from train.dataset import Endless
from train.engine.parallel import Layout, Parallel
from train.engine.step import root_key
from train.stream import make_batches
from zoo.base import Batch

LAST = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn(Endless):
    """A training split of generated examples, which never repeat.

    draw: key -> the columns of one example, such as {"inputs": [...], "targets": []}; pure.
    size: examples per epoch, and thus between evaluations.
    identity: identifies the generator; a run resumes only with the same one.
    """

    draw: Callable[[Array], dict[str, Any]]
    size: int
    identity: str

    def content(self) -> Iterator[tuple[str, Any]]:
        """See ``train.dataset.Table.content``."""
        yield "drawn", (self.identity, self.size)


class DrawnBatches(Feed):
    """Batches of a ``Drawn`` split.

    The key of an example is derived from (seed, step, row), independent of the number of devices.
    """

    def __init__(
        self,
        drawn: Drawn,
        batch_size: int,
        *,
        seed: int | None = 0,
        scaling: Scaling | None = None,
        layout: Layout | None = None,
        labels: int | None = None,
    ) -> None:
        """See ``train.batches.Batches``.  Raises ValueError for labels, which need a table."""
        if labels is not None:
            raise ValueError(f"labels={labels}, allowed for examples without end: None")
        self.drawn, self.batch_size, self.seed, self.scaling = drawn, batch_size, seed or 0, scaling
        self.layout = layout or Layout(Parallel(devices=1), devices=jax.local_devices()[:1])
        self.padded = self.layout.rows(batch_size)
        self.steps_per_epoch = -(-drawn.size // batch_size)
        self._shared = self.layout.replicate(scaling)

    def arrays(self, step: int) -> Any:
        """The scaling."""
        return self._shared

    def rows_of(self, first: int, count: int) -> np.ndarray:
        """(seed, step, row) of each example: int32 [count, batch, 3]; row -1 is padding."""
        rows = np.arange(self.padded)
        rows[self.batch_size :] = -1
        steps = np.arange(first, first + count) % LAST
        columns = np.broadcast_arrays(self.seed, steps[:, None], rows)
        return np.stack(columns, axis=-1).astype(np.int32)

    def with_seed(self, seed: int) -> "DrawnBatches":
        """The same generator with another seed."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def load(self, source: Any) -> Batch:
        """(scaling, (seed, step, row) [batch, 3]) -> a batch."""
        scaling, entries = source

        def one(entry: Array) -> dict[str, Any]:
            key = root_key(0)
            for word in entry:
                key = jax.random.fold_in(key, word)
            return self.drawn.draw(key)

        return finish(jax.vmap(one)(jnp.maximum(entries, 0)), entries[:, 2] >= 0, scaling)

    def batch(self, step: int) -> Batch:
        """Batch ``step``, on the devices."""
        return jax.jit(self.load)(
            (self.arrays(step), self.layout.shard_rows(self.rows_of(step, 1)[0]))
        )

    def example(self, rows: int) -> Any:
        """Shapes of the argument of ``load``."""
        entries = jax.ShapeDtypeStruct((rows, 3), jnp.int32)
        return jax.eval_shape(lambda: self.scaling), entries


make_batches.register(Drawn, DrawnBatches)
