"""Start and end of programs: signals, streams, and user files that shadow the packages."""

import os
import pathlib
import signal
import subprocess
import sys
import tomllib
from typing import Any

import pytest

from train import entry, ours

ROOT = pathlib.Path(__file__).parent.parent
FOREIGN = 'open("was-run", "w").close()\n'
"""A user's file that must not be run."""


def python(*arguments, cwd, environment=None, before=(), **how: Any):
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment = (
        inherited | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | (environment or {})
    )
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    command = [*before, sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, text=True, encoding="utf-8", **how)


@pytest.fixture(autouse=True)
def _interruptible():
    """A background job and its children ignore interrupts unless they handle them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def script(folder, name):
    """The console script, as an installer writes it from pyproject.toml."""
    module, function = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "scripts"
    ][name].split(":")
    folder.mkdir(exist_ok=True)
    lines = (
        "import sys",
        f"from {module} import {function}",
        "if __name__ == '__main__':",
        f"    sys.exit({function}())",
    )
    (folder / name).write_text("\n".join(lines), "utf-8")
    return folder / name


@pytest.fixture
def hide(tmp_path):
    """Makes a user's folder with a module, package or plain folder of a given name."""

    def make(name, kind):
        folder = tmp_path / f"{name}-{kind}"
        place = (
            folder / f"{name}.py"
            if kind == "module"
            else folder / name / ("__init__.py" if kind == "package" else "a.py")
        )
        place.parent.mkdir(parents=True)
        place.write_text(FOREIGN, "utf-8")
        return folder, place

    return make


@pytest.mark.parametrize("kind", ["module", "package"])
@pytest.mark.parametrize(
    ("ours", "hidden"), [("train", "zoo"), ("evals", "zoo"), ("evals", "train")]
)
def test_shadowing_user_files_are_named_and_not_run(hide, ours, hidden, kind):
    folder, place = hide(hidden, kind)
    done = python("-m", ours, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: {hidden} is {place}, not purezoo's package of that name: rename it, or run "
        "zoo-train"
    )
    assert len(done.stderr.splitlines()) == 1
    imported = python("-c", f"import {ours}", cwd=folder)
    assert (
        imported.stderr.splitlines()[-1]
        == f"ImportError: {done.stderr.strip().removeprefix('error: ')}"
    )
    assert not (folder / "was-run").exists()


def test_folder_without_init_shadows_no_package(hide):
    for name in ("zoo", "train", "evals"):
        folder, _ = hide(name, "folder")
        shown = python(
            "-c",
            "import train, evals; print(train.__file__, evals.__file__)",
            cwd=folder,
            check=True,
        ).stdout
        assert shown.split() == [str(ROOT / "train/__init__.py"), str(ROOT / "evals/__init__.py")]


@pytest.mark.parametrize("program", ["zoo-train", "zoo-evals"])
def test_console_scripts_do_not_look_into_the_users_folder(hide, tmp_path, program):
    for name in ("zoo", "train", "evals"):
        hide(name, "module")[1].rename(tmp_path / f"{name}.py")
    file = script(tmp_path / "bin", program)
    done = python(
        file,
        *(["mlp-digts"] if program == "zoo-train" else ["no-run", "--no-report"]),
        cwd=tmp_path,
    )
    said = {
        "zoo-train": (2, "error: no recipe 'mlp-digts'; did you mean mlp-digits"),
        "zoo-evals": (1, "error: no-run: no run here"),
    }
    assert (done.returncode, done.stdout) == (said[program][0], "")
    assert done.stderr.startswith(said[program][1])
    assert not (tmp_path / "was-run").exists()


def test_commands_are_printed_as_this_program_was_called(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["a folder/python3", "-m", "train"])
    assert entry.program("evals") == "'a folder/python3' -m evals"
    monkeypatch.setattr(sys, "orig_argv", ["uwsgi"])
    assert entry.program("evals.ledger") == "python -m evals.ledger"
    monkeypatch.setattr(sys, "argv", [str(script(tmp_path / "bin folder", "zoo-train"))])
    assert entry.program("evals") == f"'{tmp_path}/bin folder/zoo-evals'"
    assert entry.program("evals.ledger") == "python -m evals.ledger"
    script(tmp_path / "bin folder", "zoo-evals").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin folder"))
    assert entry.program("evals") == "zoo-evals"


PROGRAM = """
import contextlib, gc, os, pathlib, signal, sys, threading, time, weakref

def receive(number=signal.{signal}):
    os.kill(os.getpid(), number)
    for _ in range(100):  # the handler runs between two instructions
        pass

class Dying:
    def __del__(self):
        receive()

def collected(*_):
    gc.callbacks.remove(collected)
    receive()

def awaited():
    for _ in range(1000):
        time.sleep(0.01)
    print("never interrupted")

{body}
"""

ENDINGS = {
    "while it is imported": "receive()",
    "in its first line": "def main(): receive()",
    "while it imports more": (
        "from train import entry\ndef main():\n  with entry.importing(): receive()"
    ),
    "in a callback of the collector": (
        "def main():\n  gc.callbacks.append(collected)\n  gc.collect()\n  awaited()"
    ),
    "in a destructor": "def main():\n  Dying()\n  awaited()",
    "where it becomes another error": (
        "def main():\n  try: receive()\n  except BaseException: raise ImportError('no') from None"
    ),
    "twice, passed on": "def main():\n  try: receive()\n  finally: receive()",
}


def program(folder, body, number="SIGINT", **how):
    (folder / "prog.py").write_text(PROGRAM.format(body=body, signal=number), "utf-8")
    return python(
        "-c", "import sys; from train.entry import run; sys.exit(run('prog'))", cwd=folder, **how
    )


@pytest.mark.parametrize("moment", ENDINGS)
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 3), ("SIGTERM", 143)])
def test_a_signal_at_any_moment_is_one_line_and_an_exit_status(tmp_path, moment, number, status):
    done = program(tmp_path, ENDINGS[moment], number)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"stopped by {number}\n")


def test_cleanup_runs_after_a_signal(tmp_path):
    body = """
from train import entry, ours
def main():
    entry.advise("the same command resumes")
    try: receive()
    finally: print("tidied up")
"""
    done = program(tmp_path, body)
    assert (done.returncode, done.stdout) == (3, "tidied up\n")
    assert done.stderr == "stopped by SIGINT; the same command resumes\n"


def test_running_threads_print_nothing_at_exit(tmp_path):
    body = """
import atexit, concurrent.futures
def work(pool):
    while True: pool.submit(time.sleep, 0.001).result()
def main():
    atexit.register(print, "left in order")
    threading.Thread(target=work, args=(concurrent.futures.ThreadPoolExecutor(),)).start()
    receive()
"""
    done = program(tmp_path, body)
    assert (done.returncode, done.stdout, done.stderr) == (
        3,
        "left in order\n",
        "stopped by SIGINT\n",
    )


def test_late_signal_has_no_effect(tmp_path):
    done = program(
        tmp_path,
        "import atexit\natexit.register(receive)\ndef main():\n  print('all of it')\n  return 0",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "all of it\n", "")


def test_a_lost_signal_stops_the_run_before_its_first_step(tmp_path):
    body = """
from train import entry, ours
def main():
    try: receive()
    except KeyboardInterrupt: pass
    entry.check()
    print("a step")
"""
    done = program(tmp_path, body)
    assert (done.returncode, done.stdout) == (3, "")


STREAMS = "def main():\n  print('line one \\u2212 \\udcff')\n  print('line two')\n  return 0"


def test_output_that_cannot_be_encoded_is_escaped(tmp_path):
    for environment in (
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        done = program(tmp_path, STREAMS, environment=environment)
        assert (done.returncode, done.stdout, done.stderr) == (
            0,
            "line one \\u2212 \\udcff\nline two\n",
            "",
        )


def test_broken_pipe_ends_the_program_quietly(tmp_path):
    table = "from rich.console import Console\ndef main():\n  Console().print('line')\n  return 0"
    for body in (STREAMS, table, STREAMS.replace("print('line two')", "sys.stdout.flush()")):
        reader, writer = os.pipe()
        os.close(reader)
        done = program(tmp_path, body, stdout=writer)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")


def test_full_device_on_output_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        done = program(tmp_path, STREAMS, stdout=full)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_closed_streams_are_treated_as_empty(tmp_path):
    body = """
def main():
    print("out"), print("err", file=sys.stderr)
    return 4 if sys.stdin.read() or sys.stdout.isatty() else 0
"""
    assert (
        program(
            tmp_path,
            body,
            before=("sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-'),
            stdout=None,
            stderr=None,
        ).returncode
        == 0
    )


WATCH = """
import os, signal, sys

class Watch:
    def find_spec(self, name, *_):
        if name == os.environ.get("AWAITED"):
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Watch())
"""


@pytest.mark.parametrize(
    ("module", "command"),
    [
        (
            "zoo",
            ("-m", "train", "mlp-digits", "--out", "run"),
        ),  # its first line is searched for
        ("tyro", ("-m", "train", "mlp-digits", "--out", "run")),
        ("jax._src.core", ("-m", "train", "mlp-digits", "--out", "run")),
        ("train.engine.trainer", ("-m", "train", "mlp-digits", "--out", "run")),
        ("zoo", ("zoo-train", "mlp-digits", "--out", "run")),
        ("train", ("-m", "evals", "run")),
        ("tyro", ("-m", "evals", "run")),
        ("orbax.checkpoint", ("zoo-evals", "run")),
        ("jax", ("-m", "evals.speed")),
    ],
)
def test_ctrl_c_while_a_program_starts(tmp_path, module, command):
    (tmp_path / "sitecustomize.py").write_text(WATCH, "utf-8")
    if command[0] in ours.PROGRAMS:
        command = (script(tmp_path / "bin", command[0]), *command[1:])
    (tmp_path / "here").mkdir()
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "AWAITED": module}
    done = python(*command, cwd=tmp_path / "here", environment=environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "stopped by SIGINT\n")
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("told", "arguments", "expected"),
    [
        (["python", "-X", "dev", "-m", "train", "a"], ["-m", "a"], True),
        (["python", "-mevals.speed"], ["-m"], True),
        (
            ["python", "-m", "other", "train"],
            ["-m", "train"],
            False,
        ),  # a program of the user's, which imports train
        (["python", "/bin/zoo-train", "-m"], ["/bin/zoo-train", "-m"], True),
        (["python", "mine.py", "zoo-train"], ["mine.py", "zoo-train"], False),
        (
            ["python", "-c", "from multiprocessing..."],
            ["/bin/zoo-train"],
            False,
        ),  # a worker, which gets its parent's name
        (["python"], [""], False),
        (["program"], [], False),
    ],
)
def test_signals_are_handled_on_import_only_in_our_programs(monkeypatch, told, arguments, expected):
    monkeypatch.setattr(sys, "orig_argv", told)
    monkeypatch.setattr(sys, "argv", arguments)
    assert ours.is_program() == expected
