"""Data that do not fit in memory: worker processes decode the images of the next batches while a step runs.

A stream's batches are those of the same images in memory, bit for bit: the same rows in the same order, a pure function of
(seed, step).  So the step, which every checkpoint holds, is the position in the data: a run that is resumed, also with another
number of processes or workers, goes on with the very next batch.  Of several processes each decodes its own devices' rows only.

Augmentation stays in the step, on the device, with one key for each example (``train.augment``): done by the workers it would
depend on their number, and be slower than where the pixels have to go anyway.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.batches import Batches, Scaling, finish
from train.engine.parallel import Layout
from train.formats import DataError, Images, Mapped
from train.samplers import Order
from zoo.base import Batch

MOST_WORKERS = 8
WORKERS = "ZOO_STREAM_WORKERS"
"""Environment variable: how many processes decode, instead of one for each processor core, at most MOST_WORKERS; none are needed
for images that are ``Mapped``."""
AHEAD = 2
"""Batches that wait on the devices; besides, each worker has one that is ready, and one that it works on."""
Entry = tuple[dict[str, Any], Any]


@functools.singledispatch
def make_batches(split: Any, batch_size: int, **settings: Any) -> Any:
    """What feeds steps from a split.

    A ``Stream`` for a table with ``Images`` among its inputs, ``Batches`` for others; settings are theirs.
    Other kinds of splits register themselves.
    """
    return (Stream if _images(split) else Batches)(split, batch_size, **settings)


def _images(table: Mapping[str, Any]) -> list[Images]:
    return [leaf for leaf in jax.tree.leaves(table["inputs"]) if isinstance(leaf, Images)]


class Stream(Batches):
    """Batches of a table {"inputs": Images [n, ...], "targets": [n], ...} that are decoded when their step is near.

    Inputs may also be a dict of arrays [n, ...] and ``Images``.
    Steps are to be asked for one after the other; another one is found as well, but workers start anew for it.  ``close`` ends
    them, as does the end of this process, whatever it is.
    """

    planned = 1

    def __init__(
        self,
        table: Mapping[str, Any],
        batch_size: int,
        *,
        seed: int | None = 0,
        scaling: Scaling | None = None,
        layout: Layout | None = None,
        labels: int | None = None,
        workers: int | None = None,
    ) -> None:
        """See ``Batches``.  workers: processes that decode, 0 for a thread here, None for $ZOO_STREAM_WORKERS or its default.

        Raises ValueError as ``Batches`` does, when grain is not installed, and for runs side by side, whose orders differ.
        """
        super().__init__(
            table, batch_size, seed=seed, scaling=scaling, layout=layout, labels=labels
        )
        if self.layout.replicas > 1:
            raise ValueError(f"replicas: {self.layout.replicas}, allowed for streamed data: 1")
        _grain()
        self.workers = _default_workers(_images(table)) if workers is None else workers
        self._forget()

    def _forget(self) -> None:
        self._close: Any = None
        self._reading: list[Any] = []
        self._next = 0
        self._recent: dict[int, Entry] = {}

    @functools.cached_property
    def _scaling(self) -> Any:
        return self.layout.replicate(self.scaling)

    def arrays(self, step: int) -> Any:
        """The scaling on every device; examples come with the plan."""
        return self._scaling

    def with_seed(self, seed: int) -> "Stream":
        """The same data, in another order."""
        other: Any = super().with_seed(seed)
        other._forget()
        return other

    def plan(self, first: int, count: int) -> Entry:
        """Examples of steps first .. first + count - 1: ({"inputs": uint8 [count, batch, ...], ...}, valid bool [count, batch]).

        They lie on the devices, divided among them.  Raises DataError that names the file that is damaged.
        """
        # Plans may overlap: what is planned for more steps than a dispatch was allowed comes again.
        entries = {}
        for step in range(first, first + count):
            known = self._recent.get(self._place(step))
            entries[self._place(step)] = self._read(step) if known is None else known
        self._recent = entries
        steps = [entries[self._place(step)] for step in range(first, first + count)]
        return steps[0] if count == 1 else _joined(*steps)

    def batch(self, step: int) -> Batch:
        """Batch ``step``, on the devices."""
        return _load_first(self.arrays(step), self.plan(step, 1))

    def example(self, rows: int) -> Any:
        """Shapes of what ``load`` receives for a batch of so many rows."""
        columns = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), self.table
        )
        return jax.eval_shape(lambda: self.scaling), (columns, jax.ShapeDtypeStruct((rows,), bool))

    def load(self, source: Any) -> Batch:
        """(scaling, (columns, valid [batch])) -> a batch."""
        return load_columns(source)

    def close(self) -> None:
        """Ends the workers; a plan starts new ones."""
        if self._close is not None:
            self._close()
        self._forget()

    def _place(self, step: int) -> int:
        """Steps of the same place are the same: without a seed every epoch is."""
        return step % self.steps_per_epoch if self.seed is None else step

    def _read(self, step: int) -> Entry:
        if not self._reading or self._next != self._place(step):
            self.close()
            self._start(step)
        try:
            entry = next(self._reading[0])
        except DataError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise DataError(
                f"{_images(self.table)[0].root}: the workers that decode it failed: {error}"
            ) from error
        self._next = self._place(step + 1)
        return entry

    def _start(self, step: int) -> None:
        """Starts the workers at a step, and a thread that puts on the devices what they have ready."""
        grain, mine = _grain(), self.layout.local_rows(self.padded)
        # An element is a batch: the number of workers does not change what it holds, and one message brings all of it.
        source = _Decoded(dict(self.table), self.order, mine, self._place(step))
        examples = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
        examples = examples.mp_prefetch(
            grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=1), _live_with_parent
        )
        dealt = examples.map(functools.partial(_shard, self.layout, self.padded))
        iterator = grain.experimental.ThreadPrefetchIterDataset(
            dealt, prefetch_buffer_size=AHEAD
        ).__iter__()
        self._reading, self._next = [iterator], self._place(step)
        # Also when nobody closes it, at the end of the program at the latest.
        self._close = weakref.finalize(self, _end, self._reading)
        with _signals_blocked():
            iterator.start_prefetch()


class _Decoded:
    """What the workers have of a stream: the columns of batch first, first + 1, ..., without end, by index."""

    def __init__(self, table: dict[str, Any], order: Order, mine: slice, first: int) -> None:
        self.table, self.order, self.mine, self.first = table, order, mine, first

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, index: int) -> Entry:
        rows = self.order.rows(self.first + index)[self.mine]
        valid = rows >= 0
        # Padding holds the first row, as in memory; it is decoded once.
        distinct, where = np.unique(np.maximum(rows, 0), return_inverse=True)
        return jax.tree.map(lambda column: column[distinct][where], self.table), valid


def _end(reading: list[Any]) -> None:
    # Out of the list, as grain's iterators cannot be deleted any more when the interpreter takes modules apart.
    while reading:
        reading.pop().close()


def _shard(layout: Layout, padded: int, entry: Entry) -> Entry:
    """A batch, of several processes this one's part -> [1, batch, ...] on the devices."""
    # Copies: the arrays lie in memory shared with a worker, whose lifetime is grain's.
    return layout.from_process_local(jax.tree.map(lambda leaf: np.array(leaf)[None], entry), padded)


@jax.jit
def _joined(*entries: Entry) -> Entry:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *entries)


def load_columns(source: Any) -> Batch:
    """(scaling, (columns, valid [batch])) -> a batch."""
    scaling, (columns, valid) = source
    return finish(columns, valid, scaling)


@jax.jit
def _load_first(scaling: Scaling | None, plan: Entry) -> dict[str, Array]:
    return load_columns((scaling, jax.tree.map(lambda leaf: leaf[0], plan)))


def _grain() -> Any:
    try:
        import grain
        from absl import flags
    except ImportError:
        raise ValueError("streamed data need grain: pip install 'purezoo[stream]'") from None
    # Grain reads absl's flags, which a program that is not absl's never parses.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain


def _default_workers(images: list[Images]) -> int:
    given = os.environ.get(WORKERS)
    if given is None:
        if all(
            isinstance(each, Mapped) for each in images
        ):  # which are read, not decoded: a thread keeps up with that
            return 0
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        return min(cores, MOST_WORKERS)
    if not given.isdecimal():
        raise ValueError(f"{WORKERS}={given!r}, allowed: a number of processes, 0 for none")
    return int(given)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Threads and processes that are started within do not see Ctrl-C and SIGTERM: what they mean is for this process to decide.

    A terminal and some schedulers send them to workers as well, which the steps until the checkpoint still need.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live_with_parent(*_: int) -> None:
    """In a worker: ends it when the process that started it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
