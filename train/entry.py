"""Start and end of our programs: streams, signals, and the names of the commands.

Ctrl-C and SIGTERM print one line and set the exit status, from our first line of code on
(``train.ours``), whatever Python is doing:

- during imports there is nothing to clean up, and the handler ends the process: an exception could
  be swallowed or replaced by the module being imported;
- otherwise the handler raises KeyboardInterrupt, so that temporary files, workers and the terminal
  are cleaned up.  If it is swallowed, as in a callback of the garbage collector, it is raised
  again.  Whichever exception finally arrives, the signal is reported as the reason;
- ``train.engine.loop.Interrupts`` takes over from the first step until everything is saved;
- once the exit status is known, signals are ignored.

User programs that import ``train`` are not affected.
"""

import atexit
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from train import ours
from train.ours import PROGRAMS

PIPE_CLOSED = 128 + signal.SIGPIPE
"""Exit status if the reader of the output has gone."""
AGAIN = 0.5
"""Seconds after which a repeated signal counts as a second one.

A parent process often forwards a signal that the terminal has already sent to its child.
"""


class _Program:
    """The state of this process, if it is one of our programs."""

    def __init__(self) -> None:
        self.running = self.importing = self.lost = False
        self.received: int | None = None
        self.since = 0.0
        self.advice = ""

    def start(self) -> None:
        self.running = self.importing = True
        ours.receive(self.handle)
        sys.unraisablehook, self.previous_unraisable = self.unraisable, sys.unraisablehook
        sys.excepthook, self.previous_uncaught = self.uncaught, sys.excepthook

    def handle(self, number: int, _: Any) -> None:
        first = self.received is None
        if first:
            self.received, self.since = number, time.monotonic()
        again = not first and not self.lost and time.monotonic() - self.since >= AGAIN
        if self.importing or again:
            ours.leave(self.received or number, advice=self.advice)
        if first or self.lost:
            self.lost = False
            raise KeyboardInterrupt

    def unraisable(self, problem: Any) -> None:
        """Hook for exceptions in callbacks and destructors, which Python can only print."""
        if not isinstance(problem.exc_value, KeyboardInterrupt):
            self.previous_unraisable(problem)
            return
        self.lost = True
        again = threading.Timer(
            0.02,
            signal.pthread_kill,
            (threading.main_thread().ident, self.received or signal.SIGINT),
        )
        again.daemon = True
        again.start()

    def uncaught(self, kind: Any, error: Any, trace: Any) -> None:
        """Hides KeyboardInterrupt, also one that C code prints before raising another exception."""
        if not isinstance(error, KeyboardInterrupt):
            self.previous_uncaught(kind, error, trace)

    def explain(self, error: BaseException) -> int:
        """The exit status after an exception that ends the program."""
        if self.received is not None or isinstance(error, KeyboardInterrupt):
            ours.say(self.received or signal.SIGINT, self.advice)
            return ours.status(self.received or signal.SIGINT)
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        if isinstance(error, OSError):
            print(f"error: {error}", file=sys.stderr)
            return 1
        raise error


_program = _Program()


def run(name: str) -> Any:
    """Runs ``main`` of a module as the program of this process; returns the exit status."""
    _program.start()
    _mend_streams()
    try:
        main = importlib.import_module(name).main
        _program.importing = False
        try:
            status = main()
        except SystemExit as stop:
            status = (
                PIPE_CLOSED if isinstance(stop.__context__, BrokenPipeError) else stop.code
            )  # rich turns BrokenPipeError into SystemExit
        over()
    except BaseException as error:
        status = _program.explain(error)
        over()
        if isinstance(error, KeyboardInterrupt):
            _leave(status)
    if interrupted():
        _leave(status)
    return _flush(status)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Marks a block that only runs slow imports."""
    _program.importing = _program.running
    try:
        yield
    finally:
        _program.importing = False


def advise(text: str) -> None:
    """Sets the advice printed if the user stops the program from now on."""
    _program.advice = f"; {text}"


def check() -> None:
    """Raises KeyboardInterrupt if a signal has arrived whose exception was swallowed."""
    if _program.received is not None:
        raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether a signal has arrived, so that any error is only its consequence."""
    return _program.received is not None


def over() -> None:
    """Ignores signals from now on, because the exit status is known."""
    if _program.running:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def program(name: str) -> str:
    """The shell command for "train", "evals" or "evals.ledger".

    Has the form in which this program was called: zoo-train or python -m train.
    """
    import shlex
    import shutil

    script = f"zoo-{name}"
    if os.path.basename(sys.argv[0]) in PROGRAMS and script in PROGRAMS:
        sibling, on_path = os.path.join(os.path.dirname(sys.argv[0]), script), shutil.which(script)
        return (
            script
            if on_path and os.path.realpath(on_path) == os.path.realpath(sibling)
            else shlex.quote(sibling)
        )
    python = (
        sys.orig_argv[0] if os.path.basename(sys.orig_argv[0]).startswith("python") else "python"
    )
    return f"{shlex.quote(python)} -m {name}"


def _mend_streams() -> None:
    """Escapes output that a stream cannot encode, and replaces closed streams by /dev/null."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave(status: Any) -> None:
    """Ends the process without waiting for threads or finalising the interpreter.

    Threads print errors when Python removes objects they still use, and jaxlib's clean-up often
    crashes if the signal arrived during a compilation.
    """
    atexit._run_exitfuncs()
    _flush(status)
    os._exit(status if isinstance(status, int) else 1)


def _flush(status: Any) -> Any:
    """Flushes the output.  Returns the exit status, which is not 0 if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # because Python flushes again at exit
        return status or _program.explain(error)
    return status


def zoo_train() -> Any:
    """The command zoo-train."""
    return run("train.__main__")
