"""Tries purezoo as a stranger has it: an environment made from the wheel alone, an empty home, warnings as errors.

    python .ci/clean_room.py [PYTHON]     builds the wheel, and installs it for PYTHON (the one that runs this unless given)

It trains, is killed, resumes, evaluates and predicts.  Nothing may be written to standard error, the second start must find its
programs, and what needs an optional package must say so.  Prints what it measured; exits with status 1 at the first problem.
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
print(status, *(events.count(f"/jax/compilation_cache/cache_{kind}") for kind in ("hits", "misses")))
"""
"""A start up to the first step: prints its status, and how many programs it found and how many it compiled."""


def main(interpreter: str) -> None:
    """Everything, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="purezoo-clean-") as folder:
        room = Room(pathlib.Path(folder), interpreter)
        check_packages(room)
        check_training(room)
        check_cache(room)
        check_translation(room)
        left = sorted(path.name for path in room.work.iterdir())
        require(left == ["digit.png", "runs"], f"left in the folder: {left}")
    print("clean room: passed")


class Room:
    """An environment with the wheel, an empty home, and an empty folder to work in."""

    def __init__(self, folder: pathlib.Path, interpreter: str) -> None:
        quiet = ["--quiet", "--disable-pip-version-check"]
        wheels = folder / "wheels"
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
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
        """A command of the environment, started."""
        environment = {
            "HOME": str(self.home),
            "PATH": "/usr/bin:/bin",
            "PYTHONWARNINGS": "error",
            "LANG": "C.UTF-8",
        }
        return subprocess.Popen([self.bin / command, *arguments], env=environment, cwd=self.work, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def run(self, command: str, *arguments: str) -> str:
        """What a command prints, which must succeed without a word on standard error."""
        process = self.start(command, *arguments)
        out, err = process.communicate(timeout=600)
        problem = f"{command} {' '.join(arguments)}: status {process.returncode}, standard error: {err!r}, output: {out}"
        require(process.returncode == 0 and err == "", problem)
        return out


def check_packages(room: Room) -> None:
    """Nothing of the extras is there, so that what they bring along cannot be needed by accident."""
    code = f"import importlib.util; print([name for name in {EXTRAS} if importlib.util.find_spec(name)])"
    require(room.run("python", "-c", code).strip() == "[]", "an optional package is installed")
    said = room.run(
        "python",
        "-c",
        "import sys, jax, zoo; print(sys.version.split()[0], jax.__version__, zoo.__version__)",
    )
    python, jax, zoo = said.split()
    print(f"clean room: Python {python}, jax {jax}, purezoo {zoo}")


def check_training(room: Room) -> None:
    """Trains, is killed, resumes, evaluates and predicts."""
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
    """The second start finds all programs of the first one."""
    seconds, found = [], []
    for name in ("first", "second"):
        began = time.monotonic()
        status, hits, misses = map(
            int, room.run("python", "-c", START, f"runs/{name}").splitlines()[-1].split()
        )
        require(status == 0, f"status {status}")
        seconds.append(time.monotonic() - began)
        found.append((hits, misses))
    require(
        found[1][0] > 0 and found[1][1] == 0,
        f"the second start found {found[1][0]} programs, compiled {found[1][1]}",
    )
    print(f"clean room: first start {seconds[0]:.1f} s, second {seconds[1]:.1f} s, ratio {seconds[1] / seconds[0]:.2f}; "
          f"programs found {found[0][0]} and {found[1][0]}, compiled {found[0][1]} and {found[1][1]}")  # fmt: skip


def check_translation(room: Room) -> None:
    """Measures a translation model, all but the score that needs an extra."""
    room.run("zoo-train", "numbers-en-fr", "--epochs", "1", "--quiet", "--out", "runs/numbers")
    out = room.run("zoo-evals", "runs/numbers")
    require(
        re.search(r"BLEU.*purezoo\[evals\]", out) is not None,
        f"it does not say that BLEU needs an extra: {out}",
    )


def require(condition: bool, problem: str) -> None:
    """Ends the process with the problem unless the condition holds."""
    if not condition:
        sys.exit(f"clean room: {problem}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sys.executable)
