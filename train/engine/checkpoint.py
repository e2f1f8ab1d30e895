"""Checkpoints: orbax, plus checksums.

orbax writes atomically and asynchronously, but silently loads arrays with flipped bits or another
dtype.  Each checkpoint therefore also records shape, dtype and checksum of every leaf, and loading
verifies them.  No other module imports orbax.
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
    """No intact checkpoint, a checkpoint that does not fit the run, or a failed write."""


class MisfitError(CheckpointError):
    """A possibly intact checkpoint with another structure than the run's state.

    The run's other checkpoints would not fit either.
    """


def checksum(leaf: Array) -> Array:
    """uint32 sum modulo 2^32 of each element's bits times an odd hash of its index.

    Because the factors are odd, any single flipped bit changes the sum.  As an integer reduction
    over the global array, it does not depend on the sharding.
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
    """An odd 32-bit hash of the index (Wellons' lowbias32), so that moved blocks do not cancel."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        index = (index ^ (index >> shift)) * jnp.uint32(factor)
    return index ^ (index >> 15) | jnp.uint32(1)


@jax.jit
def checksums(state: Any) -> Array:
    """Checksum of every leaf [leaves]."""
    return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(state)])


def describe(state: Any) -> dict[str, str]:
    """{path: "dtype[shape]"} of every leaf of a concrete or abstract state, in leaf order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


class _KeepBestAndLatest:
    """orbax preservation policy: keeps the best, the latest, and every ``keep_every``-th step."""

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
    """The checkpoints of one run, in a folder.  A context manager that waits for pending saves."""

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        read_only: bool = False,
        on_failure: Callable[[CheckpointError], None] | None = None,
        keep_every: int | None = None,
    ) -> None:
        """Opens the folder.

        folder: created unless ``read_only``, which also never deletes anything.
        on_failure: called with the error if a checkpoint cannot be written, instead of raising it,
            so that the run continues.  With several processes, whose disks may fill up at different
            steps, errors are always raised.
        keep_every: also keep checkpoints at multiples of this many steps.
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
        """orbax's manager of the folder; opening it removes unfinished checkpoints."""
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
        """Waits for a pending save.  Raises CheckpointError naming the step if it failed."""
        with self._silence:
            try:
                self.wait()
            finally:
                if self._manager is not None:
                    self._manager.close()
                    self._manager = None

    def wait(self) -> None:
        """Waits until a pending save is on disk.  Raises CheckpointError if it failed."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
            if cluster.first():
                self._metadata(step)  # orbax ignores failed metadata writes
        except Exception as error:
            self._fail(step, error)

    def _fail(self, step: int, error: Exception) -> None:
        """Removes the failed checkpoint, enables the next save, and raises or reports the error."""
        several = cluster.several()
        manager, self._manager = self._manager, None
        if not several:
            with contextlib.suppress(Exception):  # orbax raises the same error again
                manager.close()
            for partial in (
                self.folder / str(step),
                *self.folder.glob("*.orbax-checkpoint-tmp*"),
            ):  # orbax would remove these only later
                shutil.rmtree(partial, ignore_errors=True)
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
        """Starts writing the state; returns once training may continue.

        best_step: step of the checkpoint to keep as the best one, recorded in this checkpoint.
        Raises CheckpointError if this save or the previous one failed; a failure often becomes
        known only at the next call.
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
        """The newest intact state (or the best one) and its step; None if there are no checkpoints.

        abstract: the expected structure, shapes and dtypes (``jax.eval_shape``).
        Damaged checkpoints are reported through ``say`` and skipped.  Raises CheckpointError naming
        all of them if none is intact, and MisfitError for a checkpoint with another structure.
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
                f"{self.folder}: the best checkpoint, of step {best_step}, is not there; "
                "the newest one is used instead"
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
        """Deletes later checkpoints, which the run will write again; call in all processes."""

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
        """The best step recorded in the newest checkpoint with intact metadata."""
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
        try:  # not ocp.metadata, which takes as long as loading; this runs after every save
            metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{folder}: unreadable: {_first_line(error)}") from error
        if (
            not isinstance(metadata, dict)
            or not {"format", "best_step", "leaves"} <= metadata.keys()
        ):
            raise CheckpointError(f"{folder}: metadata without checksums")
        recorded = metadata.pop("crc32", None)  # protects best_step
        if recorded not in (None, _crc32(metadata)):
            raise CheckpointError(f"{folder}: checksum differs in the metadata")
        if metadata["format"] != FORMAT:
            raise MisfitError(
                f"{folder}: format {metadata['format']!r}, this version reads {FORMAT}"
            )
        return metadata

    def load(self, abstract: Any, step: int) -> Any:
        """The state of that step, read by this process alone.

        Raises CheckpointError if it is damaged, MisfitError if it has another structure.
        """
        folder = self.folder / str(step)
        recorded = self._metadata(step)["leaves"]
        abstract = _with_experience(abstract, {path: kind for path, (kind, _) in recorded.items()})
        expected = describe(abstract)
        _check_fit(folder, {path: kind for path, (kind, _) in recorded.items()}, expected)
        with _reading(folder), _alone():
            state = ocp.load(str(folder), _with_sharding(abstract))
        read = describe(state)
        if any(kind != read[path] == kind.replace("64[", "32[") for path, kind in expected.items()):
            why = (
                "with jax.enable_x64(True) does not reach the threads that read; "
                "set JAX_ENABLE_X64=1 instead"
            )
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
    """Adds the experience recorded in a checkpoint to an abstract state without one.

    So the parameters can be loaded without knowing the data.  An experience consists of nested
    dicts of arrays, so its structure follows from the recorded paths.
    """
    if getattr(abstract, "experience", None) != ():
        return abstract
    tree: dict[str, Any] = {}
    for path, kind in recorded.items():
        first, *names = path.split(".")
        if first == "experience" and names:
            dtype, _, shape = kind.rstrip("]").partition("[")
            *parents, last = names
            node = functools.reduce(lambda node, name: node.setdefault(name, {}), parents, tree)
            lengths = tuple(map(int, shape.split(","))) if shape else ()
            node[last] = jax.ShapeDtypeStruct(lengths, jnp.dtype(dtype))
    return abstract._replace(experience=tree) if tree else abstract


def _check_fit(folder: pathlib.Path, recorded: dict[str, str], expected: dict[str, str]) -> None:
    """Raises MisfitError naming the first differing leaf, or the precision if only that differs."""
    kinds = [
        (path, recorded.get(path, "nothing"), expected.get(path, "nothing"))
        for path in expected | recorded
    ]
    different = [kind for kind in kinds if kind[1] != kind[2]]
    if not different:
        return
    (path, have, want), *others = different
    message = f"{folder}: {path}: holds {have}, the run expects {want}"
    message += f", and {len(others)} more leaves differ" if others else ""
    if all(have.replace("64[", "32[") == want.replace("64[", "32[") for _, have, want in different):
        was, now = (int("64[" in kind) for kind in (have, want))
        message += (
            f"; JAX_ENABLE_X64 was {was} when the run was begun, and is {now} here; "
            "set it as it was"
        )
    raise MisfitError(message)


def _crc32(metadata: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _with_sharding(abstract: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )


def _alone() -> contextlib.AbstractContextManager[Any]:
    """Makes each process read alone, so that none waits for another that finds damage.

    The processes agree afterwards on whether all succeeded.
    """
    if not cluster.several():
        return contextlib.nullcontext()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"read-{me}"
    )
    return ocp.Context(multiprocessing_options=options)


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
    """Turns any error of orbax about damaged files into one CheckpointError, without logs."""
    with _silent():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except Exception as error:
                message = _first_line(error)
            else:
                return
            # While silent: collecting the task logs "Task exception was never retrieved".
            gc.collect()
        raise CheckpointError(f"{folder}: unreadable: {message}")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppresses the long logs of orbax's threads about errors that they also raise."""

    def nothing(_: logging.LogRecord) -> bool:
        return False

    def unraisable(problem: Any) -> None:
        if str(problem.exc_value) != "Event loop is closed":  # from pending reads and writes
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
    """The system's message for a failed write, such as "No space left on device"."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
    return os.strerror(int(code[1])) if code else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
