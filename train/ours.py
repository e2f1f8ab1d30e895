"""The first code of our programs: handles signals, and detects modules that shadow our packages.

It imports none of our modules, because ``evals`` runs this file by path before it trusts ``train``.
"""

import os
import signal
import sys
from types import FrameType

PROGRAMS = ("zoo-train", "zoo-evals")
STOPPED, TERMINATED = 3, 128 + signal.SIGTERM
"""Exit statuses after Ctrl-C, and after SIGTERM without a final checkpoint."""


def begin(*names: str) -> None:
    """Must run first when one of our packages is imported.

    names: our packages that it needs.
    Raises ImportError naming the module that shadows one of them, without running that module; our
    programs exit with that message.
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
    """Whether Python runs one of our programs, not another program or a worker importing us."""
    target = sys.orig_argv[-len(sys.argv)] if 0 < len(sys.argv) <= len(sys.orig_argv) else ""
    if sys.argv[:1] == ["-m"]:  # until Python has found the module
        return target.removeprefix("-m").partition(".")[0] in ("train", "evals")
    return os.path.basename(target) in PROGRAMS


def receive(action: signal.Handlers | object) -> None:
    """Installs a handler for Ctrl-C and SIGTERM unless they are ignored, as in background jobs."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, action)  # pyright: ignore[reportArgumentType]


def leave(number: int, _: FrameType | None = None, advice: str = "") -> None:
    """Ends this process without any clean-up."""
    say(number, advice)
    os._exit(status(number))


def say(number: int, advice: str = "") -> None:
    """Prints a line about a signal on standard error."""
    # Not with print, because the signal may have interrupted one.
    try:  # noqa: SIM105 (contextlib takes longer)
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
    """An error message if another module shadows one of these packages; otherwise ""."""
    import importlib.util

    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in names:
        loaded = sys.modules.get(name)
        spec = importlib.util.find_spec(name) if loaded is None else None
        paths = [
            getattr(loaded, "__file__", None),
            spec and spec.origin,
            *((spec and spec.submodule_search_locations) or ()),
        ]
        path = next(filter(None, paths), None)
        if path is None or os.path.dirname(os.path.realpath(path)) == os.path.join(root, name):
            continue  # if the package is missing, the import that follows raises an error
        return (
            f"{name} is {path}, not purezoo's package of that name: "
            f"rename it, or run {' and '.join(PROGRAMS)} instead"
        )
    return ""
