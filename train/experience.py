"""Training data that the training steps generate: environments, a replay memory.

The experience is part of the training state: it is checkpointed with the parameters and updated
inside the compiled step.  So a step is a pure function of (state, step), and runs resume bit for
bit.
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
    """A training split that the steps update.  Subclasses define how.

    steps_per_epoch: steps between evaluations.
    identity: identifies the split; a run resumes only with the same one.
    """

    steps_per_epoch: int
    identity: str

    def init(self, module: Model, cfg: Any, params: Params, key: Array) -> dict[str, Any]:
        """The experience before the first step: nested dicts of arrays, without typed keys."""
        raise NotImplementedError

    def advance(
        self, module: Model, cfg: Any, params: Params, experience: Any, key: Array, rows: int
    ) -> tuple[Any, dict[str, Any]]:
        """The experience after a step, and the columns [rows, ...] of a batch drawn from it.

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

        Raises ValueError for labels, which need a table, and for strategies with which each device
        would update the whole experience.
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
        """False for padding: bool [count, batch]."""
        valid = np.arange(self.padded) < self.batch_size
        return np.broadcast_to(valid, (count, self.padded)).copy()

    def with_seed(self, seed: int) -> "ExperienceBatches":
        """A copy: only the training state depends on the seed."""
        return copy.copy(self)

    def experience(self, module: Model, cfg: Any) -> Callable[[Params, Array], Any]:
        """(params, key) -> the experience before the first step."""
        return lambda params, key: self.split.init(module, cfg, params, key)

    def advance(self, module: Model, cfg: Any) -> Callable[..., tuple[Any, Any]]:
        """Updates the experience and adds the batch's columns to the input of ``load``."""

        def advance(
            experience: Any, params: Params, source: Any, key: Array, step: Array
        ) -> tuple[Any, Any]:
            arrays, valid = source
            experience, columns = self.split.advance(
                module, cfg, params, experience, key, self.batch_size
            )
            return experience, (arrays, (valid, _padded(columns, valid.shape[0])))

        return advance

    def load(self, source: Any) -> Batch:
        """(scaling, (valid [batch], columns)) -> a batch."""
        scaling, (valid, columns) = source
        return finish(columns, valid, scaling)

    def example(self, rows: int) -> Any:
        """Shapes of the argument ``source`` of ``advance``."""
        return jax.eval_shape(lambda: self.scaling), jax.ShapeDtypeStruct((rows,), bool)


def _padded(columns: Any, rows: int) -> Any:
    """Columns [batch, ...], padded with zeros to this many rows."""

    def pad(leaf: Array) -> Array:
        missing = rows - leaf.shape[0]
        return jnp.pad(leaf, [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]) if missing else leaf

    return jax.tree.map(pad, columns)


make_batches.register(Experience, ExperienceBatches)
