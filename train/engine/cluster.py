"""Several processes that train one model together: JAX's distributed runtime, with time-outs.

The processes may be on one or several machines.  If one fails, the others end with an error as soon
as they notice.  After all of them are started again, the run resumes from its last checkpoint.
"""

import contextlib
import dataclasses
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


class ClusterError(RuntimeError):
    """Another process failed, is missing, or has another run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """How the processes connect.

    coordinator: HOST:PORT of process 0.  processes: their number.  process: the index of this one.
    If all three are None, the environment provides them: SLURM, Open MPI, Cloud TPU, GKE,
    Kubernetes.
    timeout: seconds that a process waits for others.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    timeout: float = 300.0

    def __post_init__(self) -> None:
        """Raises ValueError naming the option, its value and what is allowed."""
        given = (self.coordinator, self.processes, self.process)
        if any(value is not None for value in given) and any(value is None for value in given):
            raise ValueError(
                "coordinator, num-processes, process-id: "
                "give all three, or none of them and distributed"
            )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise ValueError(f"coordinator={self.coordinator!r}, allowed: HOST:PORT")
        if (
            self.processes is not None
            and self.process is not None
            and not 0 <= self.process < self.processes
        ):
            raise ValueError(
                f"process-id={self.process}, "
                f"allowed: 0 to {self.processes - 1}, as num-processes={self.processes}"
            )
        if not self.timeout >= 1:
            raise ValueError(f"timeout={self.timeout!r}, allowed: at least 1 second")

    def join(self) -> None:
        """Connects to the other processes; must precede any use of JAX.

        Raises ClusterError if that fails.  If not all processes connect in time, this process exits
        with an error, because JAX's runtime cannot recover from that.
        """
        if self.process == 0:
            self._check_port()
        names = (
            {}
            if self.coordinator is None
            else {
                "coordinator_address": self.coordinator,
                "num_processes": self.processes,
                "process_id": self.process,
            }
        )
        where = (
            f"at {self.coordinator}" if self.coordinator else "as this cluster's environment says"
        )
        all_of_them = (
            f"not all {self.processes} processes" if self.processes else "not all processes"
        )
        missing = (
            f"{all_of_them} met {where} within {self.timeout:g} s: "
            "is one missing, or the address wrong?"
        )
        seconds = round(self.timeout)
        with deadline(self.timeout, missing):
            try:
                # JAX's time-outs abort the process with a stack trace, so ours must come first.
                jax.distributed.initialize(
                    **names,
                    initialization_timeout=seconds + 30,
                    heartbeat_timeout_seconds=2 * seconds + 30,
                    shutdown_timeout_seconds=60,
                )
            except (ValueError, RuntimeError) as error:
                raise ClusterError(f"cannot meet the other processes {where}: {error}") from error
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    def _check_port(self) -> None:
        assert self.coordinator is not None
        port = int(self.coordinator.rpartition(":")[2])
        with socket.socket(
            socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        ) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise ClusterError(
                    f"coordinator={self.coordinator}: "
                    f"cannot listen on port {port}: {error.strerror}"
                ) from error


def several() -> bool:
    """Whether the run has several processes."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the first process, which writes logs and files."""
    return jax.process_index() == 0


def exchange(text: str) -> list[str]:
    """The texts of all processes, in the order of their indices."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)])).reshape(-1)
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def together(action: Callable[[], T]) -> T:
    """Runs ``action`` in all processes and returns its result once all have succeeded.

    If it fails anywhere, raises its error in the processes where it failed and ClusterError in the
    others.
    """
    if not several():
        return action()
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    messages = exchange("" if failure is None else f"{failure}" or type(failure).__name__)
    if failure is not None:
        raise failure
    for process, message in enumerate(messages):
        if message:
            raise ClusterError(f"process {process}: {message}")
    return result  # pyright: ignore[reportReturnType]


def stop_requested(calls: int) -> bool:
    """Whether to stop now because a process received SIGTERM or Ctrl-C; the same in all processes.

    calls: the number of earlier calls, which must be the same in all processes.
    """
    # JAX's runtime handles SIGTERM.  The processes agree on a future number that none has passed
    # yet, so every number must be passed.
    return multihost_utils.reached_preemption_sync_point(calls)


def pass_on_interrupt() -> None:
    """Turns Ctrl-C into SIGTERM, so that all processes stop at the same step."""
    os.kill(os.getpid(), signal.SIGTERM)


def explain(error: Exception) -> str:
    """The error message; if another process has ended, one that explains it."""
    if not any(sign in str(error) for sign in ("Gloo", "coordination", "UNAVAILABLE")):
        return str(error)
    detail = str(error).splitlines()[0][:300]
    return (
        "another process is gone: "
        f"start all processes again to resume from the last checkpoint ({detail})"
    )


def fail(message: str) -> NoReturn:
    """Ends this process with an error, without waiting for others."""
    print(f"error: process {jax.process_index()}: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


@contextlib.contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with an error if the block takes longer."""

    def give_up() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


PATIENCE = 10
"""Multiple of the time-out allowed before the first steps, for reading data and compiling."""


class Watchdog:
    """Ends this process if it reports no progress for too long, e.g. because another one is stuck.

    A context manager; does nothing with a single process.
    """

    def __init__(self, timeout: float = math.inf) -> None:
        self.timeout, self.limit = timeout, PATIENCE * timeout
        self._last, self._what, self._done = time.monotonic(), "starting", threading.Event()

    def beat(self, what: str) -> None:
        """Reports progress.  what: the action just completed, for the error message."""
        self._last, self._what, self.limit = time.monotonic(), what, self.timeout

    def __enter__(self) -> "Watchdog":
        if several() and self.timeout < math.inf:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(self.timeout / 10, 1.0)):
            if time.monotonic() - self._last > self.limit:
                fail(
                    f"nothing happened for {self.limit:g} s after {self._what}: "
                    "this or another process is stuck or gone.  "
                    "Start all processes again to resume from the last checkpoint; "
                    "--timeout sets the time"
                )
