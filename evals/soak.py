"""Soak test: ``python -m evals.soak`` kills training runs at random moments, ``--kills`` times.

Each run is killed (SIGKILL) and restarted until it is complete.  Some kills are aimed at a save:
they come shortly after the temporary folder of a checkpoint appears.  The others come at any moment
between the start and the end of a process.  In a run of two processes either or both are killed; a
survivor must end by itself, with an error, within the timeout.  The test checks

- at every kill, that the newest finished checkpoint is no older than at the previous kill, and that
  at most two checkpoint intervals of steps are lost: the steps since the last save began, and those
  of the save in progress;
- at every start, that the run resumes from exactly that checkpoint and finds none damaged;
- at the end, that every leaf of every kept checkpoint, and metrics.jsonl except for its times,
  equal those of an uninterrupted run with the same number of processes, bit for bit.
"""

if __name__ == "__main__":  # before the slow imports
    import sys

    from train.entry import run

    sys.exit(run("evals.soak"))

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import tyro

from train import entry

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS_PER_EPOCH, EVALUATIONS_PER_EPOCH = 22, 4  # for the recipe below
INTERVAL = round(STEPS_PER_EPOCH / EVALUATIONS_PER_EPOCH)
"""Steps between two checkpoints."""
SAVE_SECONDS = 0.1
"""Approximate duration of a save."""
GRACE = 15.0
"""Seconds beyond the timeout that a surviving process has to notice and end."""
HANGS = 300.0
"""Seconds after which a run that is not killed counts as hanging."""
FAILURES_AT_MOST = 5
BEGIN, END = "<!-- soak:begin -->", "<!-- soak:end -->"


@dataclasses.dataclass(frozen=True)
class Command:
    """Kills training runs at random moments and compares their results, bit for bit.

    The exit status is 1 if anything differs.
    """

    kills: int = 100
    """Number of kills."""
    two: float = 0.2
    """Fraction of the kills in runs of two processes."""
    aimed: float = 0.7
    """Fraction of the kills aimed at a save; some of the others hit one by chance."""
    epochs: float = 4
    """Length of a run; an epoch has 22 steps and 4 checkpoints."""
    timeout: float = 20
    """Seconds that one of two processes waits for the other before it fails."""
    seed: int = 0
    """Seed of the random moments, which also depend on the machine's speed."""
    keep: pathlib.Path | None = None
    """Keep all runs in this empty or new folder; by default only failed runs are kept."""
    document: pathlib.Path | None = None
    """Also write the counts between <!-- soak:begin --> and <!-- soak:end --> in this file."""

    def problem(self) -> str | None:
        """What is wrong with the options, or None."""
        if self.kills < 1 or not self.epochs > 0 or not self.timeout >= 1:
            return "--kills, --epochs and --timeout, allowed: positive numbers"
        if not (0 <= self.two <= 1 and 0 <= self.aimed <= 1):
            return "--two and --aimed, allowed: 0 to 1"
        if (
            self.keep is not None
            and self.keep.exists()
            and (not self.keep.is_dir() or any(self.keep.iterdir()))
        ):
            return f"--keep {self.keep}: not an empty folder"
        if self.document is not None and not (
            self.document.is_file() and _around(self.document.read_text("utf-8"))
        ):
            return f"--document {self.document}: no file with the lines {BEGIN} and {END}"
        return None


@dataclasses.dataclass
class Tally:
    """Counts of events.

    kills: {victim: number}.  lost: most steps lost by a kill.  waited: seconds until the slowest
    surviving process ended.
    """

    kills: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("one process", *VICTIMS), 0)
    )
    in_saves: int = 0
    before_saves: int = 0
    starts: int = 0
    resumed: int = 0
    compared: int = 0
    leaves: int = 0
    lost: int = 0
    left: int = 0
    waited: float = 0.0
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def killed(self) -> int:
        """Kills so far."""
        return sum(self.kills.values())

    @property
    def killed_of_two(self) -> int:
        """Kills so far in runs of two processes."""
        return self.killed - self.kills["one process"]

    def rows(self) -> dict[str, str]:
        """The counts, for a table."""
        of_two = ", ".join(f"{self.kills[name]} {name}" for name in VICTIMS)
        return {
            "kills (SIGKILL)": f"{self.killed}",
            "of the only process": f"{self.kills['one process']}",
            "in runs of two processes": f"{self.killed_of_two} ({of_two})",
            "during a save, whose unfinished folder was left": f"{self.in_saves}",
            "before the first save of that start": f"{self.before_saves}",
            "starts": f"{self.starts}, {self.resumed} of them seen to resume from the newest "
            "finished checkpoint",
            "processes that were left and ended by themselves": f"{self.left}, "
            f"within {self.waited:.0f} s",
            "complete runs compared with an uninterrupted one": f"{self.compared} "
            f"({self.leaves} leaves)",
            "steps lost by a kill, at most": f"{self.lost} ({INTERVAL} between checkpoints)",
            "failures": f"{len(self.failures)}",
        }


VICTIMS = {"the first": (0,), "the second": (1,), "both": (0, 1)}


class Failure(Exception):  # noqa: N818
    """A run that violated a requirement of the test."""


class Run:
    """A run folder whose one or two processes are started repeatedly."""

    def __init__(
        self, folder: pathlib.Path, processes: int, command: Command, timeout: float | None = None
    ) -> None:
        """timeout: seconds that one process waits for the other; by default the command's."""
        self.folder, self.count, self.command, self.timeout = (
            folder,
            processes,
            command,
            timeout or command.timeout,
        )
        self.checkpoints = folder / "checkpoints"
        self.started: list[subprocess.Popen[bytes]] = []
        self._logs: list[pathlib.Path] = []
        self._starts = 0

    def start(self) -> None:
        """Starts all processes; their output goes to log files next to the folder."""
        options = [
            "--epochs",
            f"{self.command.epochs:g}",
            "--eval-every",
            f"{1 / EVALUATIONS_PER_EPOCH:g}",
        ]
        program = [
            sys.executable,
            "-m",
            "train",
            "mlp-digits",
            "--model.sizes",
            "64",
            "16",
            "10",
            "--steps-per-dispatch",
            "3",
        ]
        program += [*options, "--out", str(self.folder)]
        if self.count > 1:
            meeting = [
                "--coordinator",
                f"127.0.0.1:{_free_port()}",
                "--num-processes",
                f"{self.count}",
            ]
            program += [*meeting, "--timeout", f"{self.timeout:g}"]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        self._starts += 1
        self.started, self._logs = [], []
        for index in range(self.count):
            log = self.folder.with_name(
                f"{self.folder.name}-start{self._starts}-process{index}.log"
            )
            extra = ["--process-id", f"{index}"] if self.count > 1 else []
            with log.open("wb") as file:
                self.started.append(
                    subprocess.Popen([*program, *extra], env=environment, stdout=file, stderr=file)
                )
            self._logs.append(log)

    def running(self) -> bool:
        """Whether any process is running."""
        return any(process.poll() is None for process in self.started)

    def wait(self, seconds: float) -> None:
        """Waits until all processes have ended; raises Failure if they do not."""
        deadline = time.monotonic() + seconds
        for process in self.started:
            try:
                process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                raise Failure(
                    f"process {process.args[-1]} did not end within {seconds:g} s"  # pyright: ignore
                ) from None

    def stop(self) -> None:
        """Kills all remaining processes."""
        for process in self.started:
            process.kill()
            process.wait()

    def said(self, index: int = 0) -> str:
        """The output of a process since the last start."""
        return self._logs[index].read_text("utf-8", "replace")

    def finished(self) -> list[int]:
        """Steps with a finished checkpoint."""
        return sorted(int(name) for name in _names(self.checkpoints) if name.isdecimal())

    def unfinished(self) -> dict[str, int]:
        """{name: time of last change} of temporary checkpoint folders; names may be reused."""
        changed = {}
        for name in _names(self.checkpoints):
            if "orbax-checkpoint-tmp" in name:
                with contextlib.suppress(OSError):  # renamed in the meantime
                    changed[name] = (self.checkpoints / name).stat().st_mtime_ns
        return changed

    def history(self) -> list[dict[str, Any]]:
        """metrics.jsonl without its times."""
        from train.engine.run_folder import RunFolder

        return [{**line, "seconds": 0} for line in RunFolder(self.folder).history()]

    def states(self) -> dict[int, list[tuple[str, bytes]]]:
        """Dtype and bytes of every leaf, by step; raises CheckpointError if one is damaged."""
        import jax
        import numpy as np

        from train.engine.checkpoint import Checkpoints
        from train.engine.run_folder import RunFolder, abstract_state

        abstract = abstract_state(RunFolder.open(self.folder).recipe())
        with Checkpoints(self.checkpoints, read_only=True) as checkpoints:
            states = {
                step: jax.tree.leaves(checkpoints.load(abstract, step))
                for step in checkpoints.steps()
            }
        return {
            step: [(str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in leaves]
            for step, leaves in states.items()
        }


@dataclasses.dataclass
class Whole:
    """Results of an uninterrupted run.  seconds: its duration."""

    seconds: float
    history: list[dict[str, Any]]
    states: dict[int, list[tuple[str, bytes]]]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 success, 1 a difference or failure, 2 a wrong command line."""
    command = tyro.cli(Command, prog=entry.program("evals.soak"), args=arguments)
    if problem := command.problem():
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from train.engine.run_folder import hardware, today, versions, write_text

    folder = command.keep or pathlib.Path(tempfile.mkdtemp(prefix="purezoo-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    tally = soak(command, folder, lambda line: print(line, flush=True))
    minutes = (time.monotonic() - start) / 60
    lines = [
        "| | |",
        "| --- | ---: |",
        *(f"| {name} | {value} |" for name, value in tally.rows().items()),
    ]
    setup = f"{hardware()}, {today()}, purezoo {versions()['purezoo']}"
    options = (
        f"--kills {command.kills} --two {command.two:g} --epochs {command.epochs:g} "
        f"--seed {command.seed}"
    )
    lines += ["", f"`python -m evals.soak {options}`: {minutes:.0f} min on {setup}."]
    print("\n".join(lines))
    for failure in tally.failures:
        print(f"error: {failure}", file=sys.stderr)
    if command.document is not None and (around := _around(command.document.read_text("utf-8"))):
        before, after = around
        write_text(command.document, "\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"]))
    if command.keep is None and not tally.failures:
        shutil.rmtree(folder)
    return 1 if tally.failures else 0


def soak(command: Command, folder: pathlib.Path, say: Callable[[str], None]) -> Tally:
    """Starts and kills runs in the folder until the number of kills is reached.

    Stops early after FAILURES_AT_MOST failures.
    """
    chance, tally, wholes, number = random.Random(command.seed), Tally(), {}, 0
    while tally.killed < command.kills and len(tally.failures) < FAILURES_AT_MOST:
        processes = 2 if tally.killed_of_two < command.two * (tally.killed + 1) else 1
        number += 1
        run = Run(folder / f"run-{number}", processes, command)
        try:
            if processes not in wholes:
                wholes[processes] = whole(folder, processes, command)
                say(f"{processes} process(es), uninterrupted: {wholes[processes].seconds:.1f} s")
            kill_until_complete(run, wholes[processes], chance, tally)
        except Failure as failure:
            tally.failures.append(f"{run.folder}: {failure}")
            say(f"FAILURE {tally.failures[-1]}")
        else:
            if command.keep is None:
                for path in folder.glob(f"{run.folder.name}*"):
                    if path == run.folder or path.name.startswith(f"{run.folder.name}-"):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            run.stop()
        say(
            f"{tally.killed} kills, {tally.in_saves} during saves; "
            f"{tally.compared} complete runs compared"
        )
    return tally


def whole(folder: pathlib.Path, processes: int, command: Command) -> Whole:
    """An uninterrupted run, which also fills the compilation cache.  Raises Failure."""
    run = Run(folder / f"whole-{processes}", processes, command, HANGS)
    start = time.monotonic()
    try:
        run.start()
        run.wait(HANGS)
    finally:
        run.stop()
    seconds = time.monotonic() - start
    _check_complete(run)
    return Whole(seconds, run.history(), run.states())


def kill_until_complete(run: Run, expected: Whole, chance: random.Random, tally: Tally) -> None:
    """Starts and kills the run until it is complete, then compares it.  Raises Failure."""
    newest = -1
    while True:
        before = run.unfinished()
        run.start()
        tally.starts += 1
        if tally.killed < run.command.kills:
            _await_moment(run, expected.seconds, chance)
        else:
            run.wait(HANGS)
        name = "one process" if run.count == 1 else chance.choice(list(VICTIMS))
        victims = [run.started[index] for index in (VICTIMS[name] if run.count > 1 else (0,))]
        alive = [victim for victim in victims if victim.poll() is None]
        if any(process.poll() for process in run.started):
            raise Failure(
                "; ".join(
                    f"process {index} failed: {run.said(index)[-500:]!r}"
                    for index in range(run.count)
                )
            )
        for victim in alive:
            victim.send_signal(signal.SIGKILL)
        for victim in alive:
            victim.wait()
        hit = any(victim.returncode == -signal.SIGKILL for victim in alive)
        unfinished = {
            name for name, changed in run.unfinished().items() if before.get(name) != changed
        }
        if hit:
            tally.kills[name] += 1
            tally.in_saves += bool(unfinished)
            _await_survivors(run, victims, tally)
        else:
            run.wait(HANGS)
        _check_start(run, newest, tally)
        finished = run.finished()
        if max(finished, default=-1) < newest:
            raise Failure(f"the checkpoint of step {newest} is gone; steps left: {finished}")
        tally.before_saves += hit and not unfinished and max(finished, default=-1) == newest
        newest = max(finished, default=-1)
        if not hit:
            break
        reached = max((line["step"] for line in run.history()), default=0)
        lost = reached - max(newest, 0)
        tally.lost = max(tally.lost, lost)
        if lost > 2 * INTERVAL:
            raise Failure(
                f"killed at step {reached}, but the newest finished checkpoint is that of step "
                f"{newest}"
            )
    _check_complete(run)
    _compare(run, expected, tally)


def _await_moment(run: Run, seconds: float, chance: random.Random) -> None:
    """Waits for the random moment of a kill, or for the end of the run."""
    if chance.random() >= run.command.aimed:
        deadline = time.monotonic() + chance.uniform(0, seconds)
        while run.running() and time.monotonic() < deadline:
            time.sleep(0.001)
        return
    saves, known = chance.randint(1, 5), set(run.unfinished())
    deadline = time.monotonic() + HANGS
    while run.running() and saves > 0:
        if time.monotonic() > deadline:
            raise Failure(f"no save within {HANGS:g} s")
        earlier, known = known, set(run.unfinished())
        saves -= len(known - earlier)
        time.sleep(0.001)
    time.sleep(chance.uniform(0, SAVE_SECONDS))


def _await_survivors(run: Run, victims: list[subprocess.Popen[bytes]], tally: Tally) -> None:
    """Raises Failure unless survivors end in time, with an error if the run is incomplete."""
    start = time.monotonic()
    survivors = [process for process in run.started if process not in victims]
    if survivors:
        run.wait(run.timeout + GRACE)
        tally.left += len(survivors)
        tally.waited = max(tally.waited, time.monotonic() - start)
    for process in survivors:
        if process.returncode == 0 and not (run.folder / "summary.json").exists():
            raise Failure(
                "a process whose partner was killed ended with status 0, "
                "but the run is not complete"
            )


def _check_start(run: Run, newest: int, tally: Tally) -> None:
    """Raises Failure unless the last start, if it got that far, resumed from step ``newest``."""
    output = run.said()
    if "passed over" in output or "no intact checkpoint" in output:
        raise Failure(f"a checkpoint is damaged: {output[:500]!r}")
    resumed = re.search(r"resuming at step (\d+)", output)
    if resumed and int(resumed[1]) != newest:
        raise Failure(
            f"resumed at step {resumed[1]} although the checkpoint of step {newest} was finished"
        )
    if (
        not resumed
        and newest >= 0
        and re.search(r"step \d+/\d+", output)
        and "the run is complete" not in output
    ):
        raise Failure(
            f"trained from the beginning although the checkpoint of step {newest} was finished"
        )
    tally.resumed += resumed is not None


def _check_complete(run: Run) -> None:
    """Raises Failure unless every process ended with status 0 and the run is complete."""
    for index, process in enumerate(run.started):
        if process.returncode:
            raise Failure(
                f"process {index} ended with status {process.returncode}: "
                f"{run.said(index)[-500:]!r}"
            )
    if not (run.folder / "summary.json").exists():
        raise Failure("the run is not complete although all processes ended with status 0")


def _compare(run: Run, expected: Whole, tally: Tally) -> None:
    """Raises Failure if checkpoints or metrics differ from those of the uninterrupted run."""
    from train.engine.checkpoint import CheckpointError

    try:
        states = run.states()
    except CheckpointError as error:
        raise Failure(str(error)) from error
    tally.compared += 1
    if states.keys() != expected.states.keys():
        raise Failure(
            f"checkpoints of steps {sorted(states)}; the uninterrupted run has "
            f"{sorted(expected.states)}"
        )
    for step, leaves in states.items():
        different = sum(
            leaf != other for leaf, other in zip(leaves, expected.states[step], strict=True)
        )
        if different:
            raise Failure(
                f"step {step}: {different} of {len(leaves)} leaves differ "
                "from the uninterrupted run's"
            )
        tally.leaves += len(leaves)
    if run.history() != expected.history:
        raise Failure("metrics.jsonl differs from the uninterrupted run's")


def _names(folder: pathlib.Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _around(text: str) -> tuple[str, str] | None:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return (before, after) if begin and end else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
