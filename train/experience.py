"""Training data that the steps themselves move on: environments, a replay memory.

The experience is a part of the training state: checkpointed with the parameters, and moved on inside
the compiled step, so that everything is a pure function of (state, step) and resumes bit for bit.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.batches import Feed, Scaling, finish
from train.dataset import Endless
from train.engine.parallel import Layout, Parallel
from train.stream import make_batches
from zoo.base import Batch, Model, Params


class Experience(Endless):
    """A training split that steps move on.  A subclass says how.

    steps_per_epoch: steps between evaluations.
    identity: says what it is; a run is resumed only on the same.
    """

    steps_per_epoch: int
    identity: str

    def init(self, module: Model, cfg: Any, params: Params, key: Array) -> dict[str, Any]:
        """The experience before the first step: nested dicts of arrays, without typed keys."""
        raise NotImplementedError

    def advance(
        self, module: Model, cfg: Any, params: Params, experience: Any, key: Array, rows: int
    ) -> tuple[Any, dict[str, Any]]:
        """The experience after one more step, and the columns [rows, ...] of a batch from it.

        params: before the step's update.  key: of this step.
        """
        raise NotImplementedError

    def content(self) -> Iterator[tuple[str, Any]]:
        """See ``train.dataset.Table.content``."""
        yield "experience", (self.identity, self.steps_per_epoch)


class ExperienceBatches(Feed):
    """Batches from an ``Experience``."""

    def __init__(
        self,
        split: Experience,
        batch_size: int,
        *,
        seed: int | None = 0,
        scaling: Scaling | None = None,
        layout: Layout | None = None,
        labels: int | None = None,
    ) -> None:
        """See ``train.batches.Batches``.

        Raises ValueError for labels, which need a table, and for devices that would each move the
        whole experience on.
        """
        if labels is not None:
            raise ValueError(f"labels={labels}, allowed with an experience: None")
        self.split, self.batch_size, self.scaling = split, batch_size, scaling
        self.layout = layout or Layout(Parallel(devices=1), devices=jax.local_devices()[:1])
        strategy = self.layout.parallel.strategy
        if strategy not in ("auto", "jit") and not self.layout.single:
            raise ValueError(f"parallel={strategy!r}, allowed with an experience: auto, jit")
        self.padded = self.layout.rows(batch_size)
        self.steps_per_epoch = split.steps_per_epoch
        self._shared = self.layout.replicate(scaling)

    def arrays(self, step: int) -> Any:
        """The scaling."""
        return self._shared

    def rows_of(self, first: int, count: int) -> np.ndarray:
        """Whether each row of the batches is there, rather than padding: bool [count, batch]."""
        there = np.arange(self.padded) < self.batch_size
        return np.broadcast_to(there, (count, self.padded)).copy()

    def with_seed(self, seed: int) -> "ExperienceBatches":
        """The same: the state holds what depends on the seed."""
        return copy.copy(self)

    def experience(self, module: Model, cfg: Any) -> Callable[[Params, Array], Any]:
        """(params, key) -> the experience before the first step."""
        return lambda params, key: self.split.init(module, cfg, params, key)

    def advance(self, module: Model, cfg: Any) -> Callable[..., tuple[Any, Any]]:
        """Moves the experience on, and puts the batch's columns beside the step's plan."""

        def advance(
            experience: Any, params: Params, source: Any, key: Array, step: Array
        ) -> tuple[Any, Any]:
            arrays, there = source
            experience, columns = self.split.advance(
                module, cfg, params, experience, key, self.batch_size
            )
            return experience, (arrays, (there, _padded(columns, there.shape[0])))

        return advance

    def load(self, source: Any) -> Batch:
        """(scaling, (there [batch], columns)) -> a batch."""
        scaling, (there, columns) = source
        return finish(columns, there, scaling)

    def example(self, rows: int) -> Any:
        """Shapes of what ``advance`` receives."""
        return jax.eval_shape(lambda: self.scaling), jax.ShapeDtypeStruct((rows,), bool)


def _padded(columns: Any, rows: int) -> Any:
    """Columns [batch, ...] with zeros up to this many rows."""

    def pad(leaf: Array) -> Array:
        missing = rows - leaf.shape[0]
        return jnp.pad(leaf, [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]) if missing else leaf

    return jax.tree.map(pad, columns)


make_batches.register(Experience, ExperienceBatches)
