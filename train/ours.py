"""The first lines of a program of ours: signals end it at once, and what hides one of our packages is named.

It imports nothing of ours: ``evals`` runs this file by its place, before it trusts ``train``.
"""

import os
import signal
import sys
from types import FrameType

PROGRAMS = ("zoo-train", "zoo-evals")
STOPPED, TERMINATED = 3, 128 + signal.SIGTERM
"""Exit statuses: Ctrl-C; SIGTERM, where no checkpoint was written because of it."""


def begin(*names: str) -> None:
    """Comes first of all when a package of ours is imported.  names: the packages of ours that it needs.

    Raises ImportError that names what hides one of them, which is not run; a program ends with that line.
    """
    program = is_program()
    if program:
        receive(leave)
    problem = hidden(*names)
    if problem and program:
        sys.exit(f"error: {problem}")
    if problem:
        raise ImportError(problem)


def is_program() -> bool:
    """Whether Python was told to run one of ours, and not another program or a worker that imports it."""
    told = sys.orig_argv[-len(sys.argv)] if 0 < len(sys.argv) <= len(sys.orig_argv) else ""
    if sys.argv[:1] == ["-m"]:  # until Python has found the module
        return told.removeprefix("-m").partition(".")[0] in ("train", "evals")
    return os.path.basename(told) in PROGRAMS


def receive(action: signal.Handlers | object) -> None:
    """Lets a handler receive Ctrl-C and SIGTERM, unless they are ignored, as by a job in the background."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, action)  # pyright: ignore[reportArgumentType]


def leave(number: int, _: FrameType | None = None, advice: str = "") -> None:
    """Ends this process, where there is nothing to tidy up."""
    say(number, advice)
    os._exit(status(number))


def say(number: int, advice: str = "") -> None:
    """The line that a signal leaves on standard error."""
    try:  # noqa: SIM105 (contextlib takes longer).  Not by print, in the middle of which the signal may have come
        os.write(
            2,
            f"stopped by {signal.Signals(number).name}{advice}\n".encode(errors="backslashreplace"),
        )
    except OSError:
        pass


def status(number: int) -> int:
    """The exit status after a signal."""
    return TERMINATED if number == signal.SIGTERM else STOPPED


def hidden(*names: str) -> str:
    """What hides one of these packages of ours, in a sentence; "" if nothing does."""
    import importlib.util

    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in names:
        loaded = sys.modules.get(name)
        spec = importlib.util.find_spec(name) if loaded is None else None
        places = [
            getattr(loaded, "__file__", None),
            spec and spec.origin,
            *((spec and spec.submodule_search_locations) or ()),
        ]
        there = next(filter(None, places), None)
        if there is None or os.path.dirname(os.path.realpath(there)) == os.path.join(root, name):
            continue  # of what is not there at all, the import that follows tells
        return f"{name} is {there}, not purezoo's package of that name: rename it, or run {' and '.join(PROGRAMS)} instead"
    return ""
