"""Tests purezoo as a new user gets it: the wheel alone, an empty home, warnings as errors.

    python .ci/clean_room.py [PYTHON]   builds the wheel, installs it for PYTHON (default: this one)

It trains, kills the run, resumes, evaluates and predicts.  Nothing may be written to standard
error, the second start must find its compiled programs, and features that need an optional
package must say so.
Prints its measurements; exits with status 1 at the first problem.
"""

import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXTRAS = (
    "torch",
    "pytest",
    "jinja2",
    "matplotlib",
    "sklearn",
    "sacrebleu",
    "jiwer",
    "grain",
    "tensorboardX",
    "beartype",
    "filelock",
)
START = """
import sys
import jax
from train.__main__ import main

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
status = main(["convnet-digits", "--steps", "1", "--quiet", "--out", sys.argv[1]])
caches = [f"/jax/compilation_cache/cache_{kind}" for kind in ("hits", "misses")]
print(status, *map(events.count, caches))
"""
"""Trains one step; prints the status and the numbers of cached and of compiled programs."""


def main(interpreter: str) -> None:
    """Runs all checks in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="purezoo-clean-") as folder:
        room = Room(pathlib.Path(folder), interpreter)
        check_packages(room)
        check_training(room)
        check_cache(room)
        check_translation(room)
        files = sorted(path.name for path in room.work.iterdir())
        require(files == ["digit.png", "runs"], f"left in the folder: {files}")
    print("clean room: passed")


class Room:
    """An environment with the wheel, an empty home, and an empty working folder."""

    def __init__(self, folder: pathlib.Path, interpreter: str) -> None:
        quiet = ["--quiet", "--disable-pip-version-check"]
        wheels = folder / "wheels"
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels]
        subprocess.run([*build, ROOT], check=True, stdout=subprocess.DEVNULL)
        (wheel,) = wheels.glob("*.whl")
        subprocess.run([interpreter, "-m", "venv", folder / "env"], check=True)
        self.bin, self.home, self.work = (
            folder / "env" / "bin",
            folder / "home",
            folder / "a folder",
        )
        self.home.mkdir()
        self.work.mkdir()
        pins = self.run(
            "python", "-c", "import sys; print('-py311' * (sys.version_info < (3, 12)))"
        ).strip()
        install = [
            self.bin / "python",
            "-m",
            "pip",
            "install",
            *quiet,
            "-c",
            ROOT / f"constraints{pins}.txt",
            wheel,
        ]
        subprocess.run(install, check=True)

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts a command of the environment."""
        environment = {
            "HOME": str(self.home),
            "PATH": "/usr/bin:/bin",
            "PYTHONWARNINGS": "error",
            "LANG": "C.UTF-8",
        }
        return subprocess.Popen(
            [self.bin / command, *arguments],
            env=environment,
            cwd=self.work,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, command: str, *arguments: str) -> str:
        """Returns a command's output; it must succeed and write nothing to standard error."""
        process = self.start(command, *arguments)
        out, err = process.communicate(timeout=600)
        call = f"{command} {' '.join(arguments)}"
        problem = f"{call}: status {process.returncode}, standard error: {err!r}, output: {out}"
        require(process.returncode == 0 and err == "", problem)
        return out


def check_packages(room: Room) -> None:
    """No extra is installed, so nothing can depend on one, or on its dependencies, by accident."""
    installed = f"[name for name in {EXTRAS} if importlib.util.find_spec(name)]"
    code = f"import importlib.util; print({installed})"
    require(room.run("python", "-c", code).strip() == "[]", "an optional package is installed")
    versions = room.run(
        "python",
        "-c",
        "import sys, jax, zoo; print(sys.version.split()[0], jax.__version__, zoo.__version__)",
    )
    python, jax, zoo = versions.split()
    print(f"clean room: Python {python}, jax {jax}, purezoo {zoo}")


def check_training(room: Room) -> None:
    """Trains, kills the run, resumes, evaluates and predicts."""
    options = ("mlp-digits", "--epochs", "40", "--out", "runs/digits")
    process = room.start("zoo-train", *options)
    checkpoints = room.work / "runs" / "digits" / "checkpoints"
    deadline = time.monotonic() + 300
    while not (
        checkpoints.is_dir() and any(entry.name.isdecimal() for entry in checkpoints.iterdir())
    ):
        require(process.poll() is None and time.monotonic() < deadline, "no checkpoint was written")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    require("resuming at step" in room.run("zoo-train", *options), "the run was not resumed")
    out = room.run("zoo-evals", "runs/digits")
    require("test accuracy" in out, f"no accuracy: {out}")
    require(
        "purezoo[evals]" in out and "no page" in out,
        f"it does not say that the report needs an extra: {out}",
    )
    image = "from PIL import Image; Image.linear_gradient('L').resize((40, 40)).save('digit.png')"
    room.run("python", "-c", image)
    require(
        "digit.png" in room.run("zoo-evals", "predict", "runs/digits", "digit.png", "--invert"),
        "no prediction",
    )


def check_cache(room: Room) -> None:
    """The second start finds all compiled programs of the first one."""
    seconds, programs = [], []
    for name in ("first", "second"):
        began = time.monotonic()
        status, hits, misses = map(
            int, room.run("python", "-c", START, f"runs/{name}").splitlines()[-1].split()
        )
        require(status == 0, f"status {status}")
        seconds.append(time.monotonic() - began)
        programs.append((hits, misses))
    require(
        programs[1][0] > 0 and programs[1][1] == 0,
        f"the second start found {programs[1][0]} programs, compiled {programs[1][1]}",
    )
    (first_hits, first_misses), (second_hits, second_misses) = programs
    print(
        f"clean room: first start {seconds[0]:.1f} s, second {seconds[1]:.1f} s, "
        f"ratio {seconds[1] / seconds[0]:.2f}; programs found {first_hits} and {second_hits}, "
        f"compiled {first_misses} and {second_misses}"
    )


def check_translation(room: Room) -> None:
    """Measures a translation model, except the score that needs an extra."""
    room.run("zoo-train", "numbers-en-fr", "--epochs", "1", "--quiet", "--out", "runs/numbers")
    out = room.run("zoo-evals", "runs/numbers")
    require(
        re.search(r"BLEU.*purezoo\[evals\]", out) is not None,
        f"it does not say that BLEU needs an extra: {out}",
    )


def require(condition: bool, problem: str) -> None:
    """Exits with the problem unless the condition holds."""
    if not condition:
        sys.exit(f"clean room: {problem}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sys.executable)
