"""Checkpoints: orbax, and what orbax does not check.

orbax writes atomically and asynchronously, but loads an array with a flipped bit, or of another dtype, without a word.  So each
checkpoint also records shape, dtype and checksum of every leaf, and loading verifies them.  Nothing else imports orbax.
"""

import contextlib
import gc
import logging
import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from orbax.checkpoint import v1 as ocp

FORMAT = 1
KEEP_LATEST = 2


class CheckpointError(RuntimeError):
    """No intact checkpoint, or one that does not fit the run."""


def checksum(leaf: Array) -> Array:
    """uint32: bits of each element times an odd function of its index, summed modulo 2^32.

    An odd factor makes any single flipped bit change the sum.  It is an integer reduction over the global array: the same
    however the array is sharded.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    size = jnp.dtype(leaf.dtype).itemsize
    words = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)).ravel().astype(jnp.uint32)
    index = jax.lax.iota(jnp.uint32, words.size)
    return jnp.sum(words * _mix(index), dtype=jnp.uint32)


def _mix(index: Array) -> Array:
    """An odd 32-bit hash of the index (Wellons' lowbias32), so that moved or zeroed blocks do not cancel."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        index = (index ^ (index >> shift)) * jnp.uint32(factor)
    return index ^ (index >> 15) | jnp.uint32(1)


@jax.jit
def checksums(state: Any) -> Array:
    """Checksum of every leaf [leaves]."""
    return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(state)])


def describe(state: Any) -> dict[str, str]:
    """{path: "dtype[shape]"} of every leaf of a real or abstract state, in the order of the leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


class _KeepBestAndLatest:
    """orbax preservation policy: the best checkpoint and the latest ones."""

    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        first_kept = len(checkpoints) - KEEP_LATEST
        return [index >= first_kept or info.step == self.best_step for index, info in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints of one run, in a folder.  A context manager: leaving it waits for the save under way."""

    def __init__(self, folder: str | pathlib.Path, *, read_only: bool = False) -> None:
        """folder is made unless ``read_only``, which also never deletes."""
        self.folder = pathlib.Path(folder).resolve()
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: no checkpoints here")
        self._policy = _KeepBestAndLatest()
        self._manager: Any = None
        self._pending: Any = None
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
            self._manager = ocp.training.Checkpointer(
                str(self.folder),
                save_decision_policy=always,
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save under way."""
        if self._manager is not None:
            self.wait()
            self._manager.close()
            self._manager = None

    def wait(self) -> None:
        """Until the save under way is on disk.  Raises CheckpointError naming the step if it failed."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:
            raise CheckpointError(f"{self.folder / str(step)}: saving step {step} failed: {error}") from error

    def save(self, state: Any, step: int, best_step: int) -> None:
        """Starts to write the state; returns when it is safe to go on training.

        best_step: the checkpoint to keep as the best one, named by the newest checkpoint.
        """
        self.wait()
        sums = [int(value) for value in jax.device_get(checksums(state))]
        self._policy.best_step = best_step
        leaves = {path: [kind, total] for (path, kind), total in zip(describe(state).items(), sums, strict=True)}
        response = self._manager.save_async(
            step,
            state,
            force=True,
            overwrite=True,
            custom_metadata={"format": FORMAT, "best_step": best_step, "leaves": leaves},
        )
        self._pending = (step, response)

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal())

    def restore(self, abstract: Any, *, best: bool = False, say: Callable[[str], None] = warnings.warn) -> tuple[Any, int] | None:
        """The newest intact state and its step, or with ``best`` the best one; None if there are no checkpoints.

        abstract: shapes, dtypes and structure that the run expects (``jax.eval_shape``).  Damaged checkpoints are named through
        ``say`` and passed over; if none is intact, CheckpointError names them all.
        """
        steps = self.steps()[::-1]
        if best and (best_step := self._best_step(steps)) in steps:
            steps = [best_step, *(step for step in steps if step != best_step)]
        problems = []
        for step in steps:
            try:
                return self._load(abstract, step), step
            except CheckpointError as problem:
                problems.append(str(problem))
                say(f"damaged checkpoint passed over: {problem}")
        if problems:
            raise CheckpointError(f"{self.folder}: no intact checkpoint: " + "; ".join(problems))
        return None

    def drop_after(self, step: int) -> None:
        """Deletes checkpoints of later steps: damaged ones, which the run is about to write again."""
        for later in [known for known in self.steps() if known > step]:
            shutil.rmtree(self.folder / str(later))
        self._manager.reload()

    def _best_step(self, steps: list[int]) -> int | None:
        for step in steps:
            try:
                return self._metadata(step)["best_step"]
            except CheckpointError:
                continue
        return None

    def _metadata(self, step: int) -> dict[str, Any]:
        folder = self.folder / str(step)
        with _reading(folder):
            metadata = ocp.metadata(str(folder)).custom_metadata
        if not isinstance(metadata, dict) or not {"format", "best_step", "leaves"} <= metadata.keys():
            raise CheckpointError(f"{folder}: metadata without checksums")
        if metadata["format"] != FORMAT:
            raise CheckpointError(f"{folder}: format {metadata['format']!r}, this version reads {FORMAT}")
        return metadata

    def _load(self, abstract: Any, step: int) -> Any:
        folder = self.folder / str(step)
        recorded, expected = self._metadata(step)["leaves"], describe(abstract)
        for path in recorded.keys() | expected.keys():
            have, want = recorded.get(path, ["nothing"])[0], expected.get(path, "nothing")
            if have != want:
                raise CheckpointError(f"{folder}: {path}: holds {have}, the run expects {want}")
        with _reading(folder):
            state = ocp.load(str(folder), _with_sharding(abstract))
        sums = jax.device_get(checksums(state))
        damaged = [path for path, total in zip(expected, sums, strict=True) if recorded[path][1] != int(total)]
        if damaged:
            raise CheckpointError(f"{folder}: checksum differs in {', '.join(damaged)}")
        return state


def _with_sharding(abstract: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
    """Turns whatever orbax raises for damaged files into one CheckpointError, without the pages that its tasks log besides."""
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except Exception as error:
                message = _first_line(error)
            else:
                return
            gc.collect()  # "Task exception was never retrieved" is said when the task is collected
        raise CheckpointError(f"{folder}: unreadable: {message}")
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
