"""Data that do not fit in memory: worker processes decode the images of the next batches.

A stream's batches equal those of the same images in memory bit for bit: the same rows in the same
order, a pure function of (seed, step).  So the step, which every checkpoint stores, is the position
in the data: a resumed run continues with the next batch, even with another number of processes or
workers.  With several processes, each decodes only the rows of its own devices.

Augmentation remains part of the step, on the device, with one key per example (``train.augment``).
In the workers, it would depend on their number, and it would be slower.
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
"""Environment variable: number of decoding processes.

The default is one per processor core, at most MOST_WORKERS, and none for ``Mapped`` images.
"""
AHEAD = 2
"""Batches prefetched to the devices.  Each worker also has one ready and one in progress."""
Entry = tuple[dict[str, Any], Any]


@functools.singledispatch
def make_batches(split: Any, batch_size: int, **settings: Any) -> Any:
    """The ``Feed`` of a split.

    For tables, a ``Stream`` if inputs contain ``Images``, else ``Batches``; settings are their
    arguments.  Other kinds of splits register here.
    """
    return (Stream if _images(split) else Batches)(split, batch_size, **settings)


def _images(table: Mapping[str, Any]) -> list[Images]:
    return [leaf for leaf in jax.tree.leaves(table["inputs"]) if isinstance(leaf, Images)]


class Stream(Batches):
    """Batches of a table {"inputs": Images [n, ...], "targets": [n], ...}, decoded ahead of use.

    Inputs may also be a dict of arrays [n, ...] and ``Images``.
    Steps should be requested in order; any other step restarts the workers.  The workers end with
    ``close``, and whenever this process ends.
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
        """See ``Batches``.

        workers: number of decoding processes; 0 for a thread of this process; None for
            $ZOO_STREAM_WORKERS or its default.
        Raises ValueError like ``Batches``, if grain is not installed, and for replicas, because
        their orders differ.
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
        """The scaling, replicated; the examples are in the plan."""
        return self._scaling

    def with_seed(self, seed: int) -> "Stream":
        """The same data, in another order."""
        other: Any = super().with_seed(seed)
        other._forget()
        return other

    def plan(self, first: int, count: int) -> Entry:
        """Examples of steps first .. first + count - 1, sharded over the devices.

        Returns ({"inputs": uint8 [count, batch, ...], ...}, valid bool [count, batch]).
        Raises DataError naming a damaged file.
        """
        # Plans may overlap: steps that a dispatch planned but could not run are requested again.
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
        """Shapes of the argument of ``load`` for this many rows."""
        columns = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), self.table
        )
        return jax.eval_shape(lambda: self.scaling), (columns, jax.ShapeDtypeStruct((rows,), bool))

    def load(self, source: Any) -> Batch:
        """(scaling, (columns, valid [batch])) -> a batch."""
        return load_columns(source)

    def close(self) -> None:
        """Ends the workers; the next plan starts new ones."""
        if self._close is not None:
            self._close()
        self._forget()

    def _place(self, step: int) -> int:
        """Identifies the batch of a step.  Without a seed, all epochs are the same."""
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
        """Starts the workers at a step, and a thread that puts their batches on the devices."""
        grain, local_rows = _grain(), self.layout.local_rows(self.padded)
        # An element is a whole batch, so that its content does not depend on the number of workers,
        # and one message transfers it.
        source = _Decoded(dict(self.table), self.order, local_rows, self._place(step))
        examples = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
        examples = examples.mp_prefetch(
            grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=1), _live_with_parent
        )
        sharded = examples.map(functools.partial(_shard, self.layout, self.padded))
        iterator = grain.experimental.ThreadPrefetchIterDataset(
            sharded, prefetch_buffer_size=AHEAD
        ).__iter__()
        self._reading, self._next = [iterator], self._place(step)
        # Ends the workers without ``close`` too, at the latest at the end of the program.
        self._close = weakref.finalize(self, _end, self._reading)
        with _signals_blocked():
            iterator.start_prefetch()


class _Decoded:
    """The workers' data source: element i is batch first + i, without end.

    mine: rows of a batch on the devices of this process.
    """

    def __init__(self, table: dict[str, Any], order: Order, mine: slice, first: int) -> None:
        self.table, self.order, self.mine, self.first = table, order, mine, first

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, index: int) -> Entry:
        rows = self.order.rows(self.first + index)[self.mine]
        valid = rows >= 0
        # Padding repeats the first row of the table, as in memory, so it is decoded only once.
        distinct, where = np.unique(np.maximum(rows, 0), return_inverse=True)
        return jax.tree.map(lambda column: column[distinct][where], self.table), valid


def _end(reading: list[Any]) -> None:
    # Remove them from the list: deleting grain's iterators fails during interpreter shutdown.
    while reading:
        reading.pop().close()


def _shard(layout: Layout, padded: int, entry: Entry) -> Entry:
    """A batch, or this process's part of it -> [1, batch, ...] on the devices."""
    # Copies, because grain controls the lifetime of the memory shared with a worker.
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
    # Grain reads absl's flags, which only absl programs parse.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain


def _default_workers(images: list[Images]) -> int:
    given = os.environ.get(WORKERS)
    if given is None:
        # Mapped images are read, not decoded; a thread is fast enough.
        if all(isinstance(image, Mapped) for image in images):
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
    """Blocks Ctrl-C and SIGTERM in threads and processes started within.

    Terminals and some schedulers send these signals to workers too, but the main process handles
    them, and it still needs the workers for the steps until the final checkpoint.
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
    """In a worker: exits when the parent process ends, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
