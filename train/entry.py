"""How a program of ours begins and ends: its streams, what a signal does to it, and how the other programs are called.

Ctrl-C and SIGTERM are one line and an exit status, from the first line of ours on (``train.ours``), whatever Python is doing:

- while modules are imported there is nothing to tidy up, and the process ends in the handler: an exception would get lost in what
  is being imported, or become another one;
- otherwise the handler raises KeyboardInterrupt, so that temporary files, workers and the terminal are tidied up.  Where it gets
  lost, as in a callback of the garbage collector, it is raised again; and whatever exception arrives in the end, the signal was
  the reason;
- ``train.engine.loop.Interrupts`` takes over from the first step until everything is saved;
- once the exit status is known, signals change nothing.

None of this touches a program of the user's that imports ``train``.
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
"""Exit status: nobody reads the output any more."""
AGAIN = 0.5
"""Seconds after which a signal is another one: what starts a program often passes on what the terminal has sent it already."""


class _Program:
    """The state of this process, if it is a program of ours."""

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
        """Handles exceptions in callbacks and destructors, which Python can only print."""
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
        """Also of exceptions that C code shows before it raises another one."""
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
    """Runs ``main`` of a module as the program of this process, and returns what to exit with."""
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
            )  # it is rich's way
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
    """Marks a block that does nothing but slow imports."""
    _program.importing = _program.running
    try:
        yield
    finally:
        _program.importing = False


def advise(text: str) -> None:
    """What to say to the person who stops the program from here on."""
    _program.advice = f"; {text}"


def check() -> None:
    """Raises KeyboardInterrupt if a signal has come already: whoever received the exception has dropped it."""
    if _program.received is not None:
        raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether a signal has come, so that any error is only its consequence."""
    return _program.received is not None


def over() -> None:
    """The exit status is known: signals change nothing any more."""
    if _program.running:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def program(name: str) -> str:
    """How to call "train", "evals" or "evals.ledger" in a shell, as this program was called: zoo-train or python -m train."""
    import shlex
    import shutil

    script = f"zoo-{name}"
    if os.path.basename(sys.argv[0]) in PROGRAMS and script in PROGRAMS:
        beside, found = os.path.join(os.path.dirname(sys.argv[0]), script), shutil.which(script)
        return (
            script
            if found and os.path.realpath(found) == os.path.realpath(beside)
            else shlex.quote(beside)
        )
    python = (
        sys.orig_argv[0] if os.path.basename(sys.orig_argv[0]).startswith("python") else "python"
    )
    return f"{shlex.quote(python)} -m {name}"


def _mend_streams() -> None:
    """Output that a stream cannot encode is escaped; a stream that is closed is as good as /dev/null."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave(status: Any) -> None:
    """Ends the process without waiting for threads, which complain when Python takes away what they are still using.

    Nor does it tidy up jaxlib, which often crashes if the signal came in the middle of a compilation.
    """
    atexit._run_exitfuncs()
    _flush(status)
    os._exit(status if isinstance(status, int) else 1)


def _flush(status: Any) -> Any:
    """Writes what is still buffered.  Returns the exit status, which is another one than 0 if that is impossible."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # where Python writes it once more
        return status or _program.explain(error)
    return status


def zoo_train() -> Any:
    """The command zoo-train."""
    return run("train.__main__")
