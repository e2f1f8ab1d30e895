"""Checkpoints: orbax, and what orbax does not check.

orbax writes atomically and asynchronously, but loads an array with a flipped bit, or of another dtype, without a word.  So each
checkpoint also records shape, dtype and checksum of every leaf, and loading verifies them.  Nothing else imports orbax.
"""

import contextlib
import functools
import gc
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from orbax.checkpoint import v1 as ocp

from train.engine import cluster

FORMAT = 3
KEEP_LATEST = 2


class CheckpointError(RuntimeError):
    """No intact checkpoint, one that does not fit the run, or one that could not be written."""


class MisfitError(CheckpointError):
    """A checkpoint that may be intact, of another state than the run's: no other one of the run would fit."""


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
    words = (
        jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
        .ravel()
        .astype(jnp.uint32)
    )
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
    """orbax preservation policy: the best checkpoint, the latest ones, and those at multiples of ``keep_every`` steps."""

    best_step: int | None = None
    keep_every: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        first_kept = len(checkpoints) - KEEP_LATEST

        def forever(step: int) -> bool:
            return step == self.best_step or (
                self.keep_every is not None and step % self.keep_every == 0
            )

        return [index >= first_kept or forever(info.step) for index, info in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints of one run, in a folder.  A context manager: leaving it waits for the save under way."""

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        read_only: bool = False,
        on_failure: Callable[[CheckpointError], None] | None = None,
        keep_every: int | None = None,
    ) -> None:
        """folder is made unless ``read_only``, which also never deletes.

        on_failure: is given what ``save`` and ``wait`` would raise when a checkpoint cannot be written, for a run that goes on
        without it.  Of several processes, whose disks need not be full at the same step, a failure is always raised.
        keep_every: checkpoints at multiples of so many steps stay, beside the best and the latest ones.
        """
        self.folder = pathlib.Path(folder).resolve()
        self._on_failure = on_failure
        self._silence = contextlib.ExitStack()
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: no checkpoints here")
        self._policy = _KeepBestAndLatest()
        self._policy.keep_every = keep_every
        self._manager: Any = None
        self._pending: Any = None
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()
            self._silence.enter_context(_silent())

    def _open(self) -> Any:
        """orbax's manager of the folder, in which it removes what an earlier one has not finished."""
        always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        return ocp.training.Checkpointer(
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
        """Waits for the save under way.  Raises CheckpointError naming the step if it failed."""
        with self._silence:
            try:
                self.wait()
            finally:
                if self._manager is not None:
                    self._manager.close()
                    self._manager = None

    def wait(self) -> None:
        """Until the save under way is on disk.  Raises CheckpointError naming the step if it failed."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
            if cluster.first():
                self._metadata(
                    step
                )  # orbax finishes a checkpoint whose metadata it could not write
        except Exception as error:
            self._fail(step, error)

    def _fail(self, step: int, error: Exception) -> None:
        """Removes what was written of the step, makes the next save possible, and raises or reports CheckpointError."""
        several = cluster.several()
        manager, self._manager = self._manager, None
        if not several:
            with contextlib.suppress(Exception):  # orbax raises the same error once more
                manager.close()
            for left in (
                self.folder / str(step),
                *self.folder.glob("*.orbax-checkpoint-tmp*"),
            ):  # orbax would only later
                shutil.rmtree(left, ignore_errors=True)
            self._manager = self._open()
        kept = self.steps()
        newest = (
            f"the newest checkpoint is that of step {kept[-1]}"
            if kept
            else "there is no earlier checkpoint"
        )
        failure = CheckpointError(
            f"{self.folder / str(step)}: saving step {step} failed: {_reason(error)}; {newest}"
        )
        if several or self._on_failure is None:
            raise failure from error
        self._on_failure(failure)

    def save(self, state: Any, step: int, best_step: int) -> None:
        """Starts to write the state; returns when it is safe to go on training.

        best_step: the checkpoint to keep as the best one, named by the newest checkpoint.
        Raises CheckpointError if this save or the one before failed: often that is known at the next call only.
        """
        self.wait()
        sums = [int(value) for value in jax.device_get(checksums(state))]
        self._policy.best_step = best_step
        leaves = {
            path: [kind, total]
            for (path, kind), total in zip(describe(state).items(), sums, strict=True)
        }
        metadata = {"format": FORMAT, "best_step": best_step, "leaves": leaves}
        try:
            response = self._manager.save_async(
                step,
                state,
                force=True,
                overwrite=True,
                custom_metadata={**metadata, "crc32": _crc32(metadata)},
            )
        except Exception as error:
            self._fail(step, error)
        else:
            self._pending = (step, response)

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal())

    def restore(
        self, abstract: Any, *, best: bool = False, say: Callable[[str], None] = warnings.warn
    ) -> tuple[Any, int] | None:
        """The newest intact state and its step, or with ``best`` the best one; None if there are no checkpoints.

        abstract: shapes, dtypes and structure that the run expects (``jax.eval_shape``).  Damaged checkpoints are named through
        ``say`` and passed over; if none is intact, CheckpointError names them all.  Raises MisfitError for one that is of another
        state.
        """
        steps = self.steps()[::-1]
        problems: dict[int, str] = {}

        def passed_over(step: int, problem: CheckpointError) -> None:
            if step not in problems:
                problems[step] = str(problem)
                say(f"damaged checkpoint passed over: {problem}")

        best_step = self._best_step(steps, passed_over) if best else None
        if best_step in steps:
            steps = [best_step, *(step for step in steps if step != best_step)]
        elif best_step is not None:
            say(
                f"{self.folder}: the best checkpoint, of step {best_step}, is not there; the newest one is used instead"
            )
        for step in steps:
            try:
                return self.load(abstract, step), step
            except MisfitError:
                raise
            except CheckpointError as problem:
                passed_over(step, problem)
        if problems:
            raise CheckpointError(
                f"{self.folder}: no intact checkpoint: " + "; ".join(problems.values())
            )
        return None

    def drop_after(self, step: int) -> None:
        """Deletes checkpoints of later steps, which the run is about to write again; all processes together."""

        def drop() -> None:
            for later in (
                [known for known in self.steps() if known > step] if cluster.first() else []
            ):
                shutil.rmtree(self.folder / str(later))

        cluster.together(drop)
        self._manager.reload()

    def _best_step(
        self, steps: list[int], passed_over: Callable[[int, CheckpointError], None]
    ) -> int | None:
        """As the newest checkpoint whose metadata is intact names it."""
        for step in steps:
            try:
                return self._metadata(step)["best_step"]
            except MisfitError:
                raise
            except CheckpointError as problem:
                passed_over(step, problem)
        return None

    def _metadata(self, step: int) -> dict[str, Any]:
        folder = self.folder / str(step)
        try:  # ocp.metadata takes as long as loading, and this is read after every save
            metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{folder}: unreadable: {_first_line(error)}") from error
        if (
            not isinstance(metadata, dict)
            or not {"format", "best_step", "leaves"} <= metadata.keys()
        ):
            raise CheckpointError(f"{folder}: metadata without checksums")
        recorded = metadata.pop(
            "crc32", None
        )  # without which best_step might silently be another one
        if recorded not in (None, _crc32(metadata)):
            raise CheckpointError(f"{folder}: checksum differs in the metadata")
        if metadata["format"] != FORMAT:
            raise MisfitError(
                f"{folder}: format {metadata['format']!r}, this version reads {FORMAT}"
            )
        return metadata

    def load(self, abstract: Any, step: int) -> Any:
        """The state of that step, for this process alone.  Raises CheckpointError if damaged, MisfitError if of another state."""
        folder = self.folder / str(step)
        recorded = self._metadata(step)["leaves"]
        abstract = _with_experience(abstract, {path: kind for path, (kind, _) in recorded.items()})
        expected = describe(abstract)
        _check_fit(folder, {path: kind for path, (kind, _) in recorded.items()}, expected)
        with _reading(folder), _alone():
            state = ocp.load(str(folder), _with_sharding(abstract))
        read = describe(state)
        if any(kind != read[path] == kind.replace("64[", "32[") for path, kind in expected.items()):
            why = "with jax.enable_x64(True) does not reach the threads that read; set JAX_ENABLE_X64=1 instead"
            raise MisfitError(f"{folder}: its 64-bit numbers were read as 32-bit ones: {why}")
        sums = jax.device_get(checksums(state))
        damaged = [
            path
            for path, total in zip(expected, sums, strict=True)
            if recorded[path][1] != int(total)
        ]
        if damaged:
            raise CheckpointError(f"{folder}: checksum differs in {', '.join(damaged)}")
        return state


def _with_experience(abstract: Any, recorded: dict[str, str]) -> Any:
    """The abstract state with the experience that a checkpoint holds, unless it says what it expects.

    Who only wants the parameters need not know what the data are.  An experience is nested dicts of
    arrays, so paths say all of it.
    """
    if getattr(abstract, "experience", None) != ():
        return abstract
    tree: dict[str, Any] = {}
    for path, kind in recorded.items():
        first, *names = path.split(".")
        if first == "experience" and names:
            dtype, _, shape = kind.rstrip("]").partition("[")
            *above, last = names
            place = functools.reduce(lambda node, name: node.setdefault(name, {}), above, tree)
            lengths = tuple(map(int, shape.split(","))) if shape else ()
            place[last] = jax.ShapeDtypeStruct(lengths, jnp.dtype(dtype))
    return abstract._replace(experience=tree) if tree else abstract


def _check_fit(folder: pathlib.Path, recorded: dict[str, str], expected: dict[str, str]) -> None:
    """Raises MisfitError that names the first leaf that differs, and the precision where that is all that does."""
    kinds = [
        (path, recorded.get(path, "nothing"), expected.get(path, "nothing"))
        for path in expected | recorded
    ]
    different = [kind for kind in kinds if kind[1] != kind[2]]
    if not different:
        return
    (path, have, want), *more = different
    message = f"{folder}: {path}: holds {have}, the run expects {want}"
    message += f", and {len(more)} more leaves differ" if more else ""
    if all(have.replace("64[", "32[") == want.replace("64[", "32[") for _, have, want in different):
        was, now = (int("64[" in kind) for kind in (have, want))
        message += f"; JAX_ENABLE_X64 was {was} when the run was begun, and is {now} here; set it as it was"
    raise MisfitError(message)


def _crc32(metadata: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _with_sharding(abstract: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )


def _alone() -> contextlib.AbstractContextManager[Any]:
    """Each process reads by itself: whether all could is agreed on afterwards, and none waits for another that found damage."""
    if not cluster.several():
        return contextlib.nullcontext()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"read-{me}"
    )
    return ocp.Context(multiprocessing_options=options)


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
    """Turns whatever orbax raises for damaged files into one CheckpointError, without the pages that its tasks log besides."""
    with _silent():
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


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the pages that orbax's threads and tasks log about an error which they raise as well."""

    def nothing(_: logging.LogRecord) -> bool:
        return False

    def unraisable(problem: Any) -> None:
        if (
            str(problem.exc_value) != "Event loop is closed"
        ):  # of reads and writes that were still under way
            previous(problem)

    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    for logger in loggers:
        logger.addFilter(nothing)
    previous, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(nothing)
        if sys.unraisablehook is unraisable:
            sys.unraisablehook = previous


def _reason(error: BaseException) -> str:
    """The system's words where a file could not be written, such as "No space left on device"."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
    return os.strerror(int(code[1])) if code else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
