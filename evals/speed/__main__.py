"""Command line: ``python -m evals.speed [ROW ...]``; see ``evals.speed``."""

if __name__ == "__main__":  # before the slow imports
    import sys

    from train.entry import run

    sys.exit(run("evals.speed.__main__"))

import dataclasses
import difflib
import importlib.metadata
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro

from evals.speed.contenders import has_torch
from evals.speed.rows import ROWS, Line, Options, Others
from train import entry, ours
from train.engine.memory import keep_memory
from train.engine.run_folder import hardware, today, versions, write_text

OTHERS_AT_MOST = 0.05
"""Fraction of processor time that other programs may take before a warning."""
WIDTHS = 34, 11
"""Widths of the columns of rows and peers; longer names shift the following columns."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Times training steps of the zoo and of its peers: flax, and torch where it is installed.

    Comparisons appear as they are measured; Ctrl-C keeps the finished ones.
    """

    rows: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[ROW ...]")] = ()
    """Rows to measure; by default all."""
    rounds: int = 20
    """Blocks of steps per contender; times are compared within a round."""
    seconds: float = 0.2
    """Approximate length of a block."""
    own_size: bool = False
    """Only time steps at the rows' own sizes; doubling and compiling take most of the time."""
    compilation: bool = False
    """For rows of steps, only time compilation and the time to the first step."""
    json: pathlib.Path | None = None
    """Also write the comparisons to this file, as they are measured: a list of objects."""


def main(arguments: list[str] | None = None) -> int:
    """Times the rows; returns the exit status.

    0 done, 1 an error, 2 a wrong command line, 3 stopped by Ctrl-C.
    """
    command = tyro.cli(
        Command,
        prog=entry.program("evals.speed"),
        description=f"Rows: {', '.join(ROWS)}.",
        args=arguments,
    )
    for row in command.rows:
        if row not in ROWS:
            near = difflib.get_close_matches(row, ROWS, n=1, cutoff=0)[0]
            print(f"no row {row!r}; did you mean {near}?  All: {', '.join(ROWS)}", file=sys.stderr)
            return 2
    if command.rounds < 1 or not 0 < command.seconds < math.inf:
        print("error: --rounds and --seconds, allowed: positive numbers", file=sys.stderr)
        return 2
    if command.own_size and command.compilation:
        print("error: --own-size and --compilation: give one of them", file=sys.stderr)
        return 2
    if command.json is not None and not command.json.parent.is_dir():
        print(f"error: --json {command.json}: no folder {command.json.parent}", file=sys.stderr)
        return 2
    if command.json is not None and (
        command.json.is_dir() or not os.access(command.json.parent, os.W_OK)
    ):
        print(f"error: --json {command.json}: cannot be written", file=sys.stderr)
        return 2
    keep_memory()  # as in training, for all contenders alike
    if not has_torch():
        print("torch is not installed, its comparisons are skipped: pip install 'purezoo[torch]'")
    setup: dict[str, Any] = {
        "date": today(),
        "hardware": hardware(),
        "versions": versions()
        | ({"torch": importlib.metadata.version("torch")} if has_torch() else {}),
        "rounds": command.rounds,
        "seconds": command.seconds,
    }
    lines, others, stopped = [], Others(), False
    show_header(f"{setup['hardware']}, {setup['date']}")
    try:
        for line in measure(command):
            lines.append(line)
            show(line)
            write(command.json, lines, setup | {"others": others.share()})
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        stopped = True
    share = others.share()
    if share is not None and share > OTHERS_AT_MOST:
        print(
            f"other programs took {share:.0%} of the processors' time: these numbers hold for a "
            "busy machine only, where torch, whose threads wait for each other, loses most"
        )
    if stopped:
        kept = f"; they are in {command.json}" if command.json is not None and lines else ""
        print(f"stopped after {len(lines)} comparisons{kept}", file=sys.stderr)
    return ours.STOPPED if stopped else 0


def measure(command: Command) -> Iterator[Line]:
    """Yields the requested comparisons as they are measured."""
    options = Options(command.rounds, command.seconds, command.own_size, command.compilation)
    for row in command.rows or ROWS:
        yield from ROWS[row](options)


def write(file: pathlib.Path | None, lines: Sequence[Line], made: dict[str, Any]) -> None:
    """Writes all comparisons so far, atomically; does nothing without a file.  Raises OSError.

    made: date, hardware and other fields of every comparison.
    """
    if file is not None:
        rows = [
            {name: value for name, value in dataclasses.asdict(line).items() if value is not None}
            | made
            for line in lines
        ]
        write_text(file, json.dumps(rows, indent=2) + "\n")


def show_header(title: str) -> None:
    """Prints the title and the column names."""
    _print(
        f"{title}\n[bold]{'row':<{WIDTHS[0]}} {'peer':<{WIDTHS[1]}} "
        f"{'zoo ms':>10} {'peer ms':>10} ",
        end="",
    )
    _print("[bold]" + " ".join(f"{name:>8}" for name in ("ratio", "least", "greatest", "best")))


def show(line: Line) -> None:
    """Prints a line for a comparison."""
    times = f"{line.zoo_ms:10.3f} {line.peer_ms:10.3f}"
    ratios = line.ratio, line.ratio_min, line.ratio_max, line.zoo_ms_best / line.peer_ms_best
    shown = " ".join(f"{ratio:8.3f}" for ratio in ratios)
    _print(
        f"{line.row:<{WIDTHS[0]}} {line.peer:<{WIDTHS[1]}} {times} {shown}  {_note(line)}".rstrip()
    )


def _print(text: str, end: str = "\n") -> None:
    from rich.console import Console

    Console(highlight=False).print(text, end=end, soft_wrap=True)


def _note(line: Line) -> str:
    notes, measured, unit = [], line.ratio, ""
    if line.zoo_growth is not None:
        notes.append(f"cost x{line.zoo_growth:.2f} (peer x{line.peer_growth:.2f})")
    if line.overhead_us is not None:
        measured, unit = line.overhead_us, " us"
        notes.append(f"{line.overhead_us:+.0f} us a step (best {line.overhead_us_best:+.0f})")
    if line.images_per_second is not None:
        notes.append(f"{line.images_per_second:,.0f} images/s")
    if line.tokens_per_second is not None:
        notes.append(f"{line.tokens_per_second:,.0f} tokens/s")
    if line.sentences_per_second is not None:
        notes.append(f"{line.sentences_per_second:,.0f} sentences/s")
    if line.utterances_per_second is not None:
        notes.append(f"{line.utterances_per_second:,.0f} utterances/s")
    if line.zoo_bytes is not None and line.peer_bytes is not None:
        notes.append(f"{line.zoo_bytes / 1e6:.1f} MB (peer {line.peer_bytes / 1e6:.1f})")
    if line.chosen is not None and line.measured_ms and line.estimated_ms:
        costs = (
            f"{name} {line.measured_ms[name]:.2f} ({cost:.2f})"
            for name, cost in line.estimated_ms.items()
        )
        notes.append(f"chose {line.chosen} of {', '.join(costs)}")
    if line.at_most is not None:
        verdict = "ok" if measured <= line.at_most else "[red]above[/red]"
        notes.append(f"{verdict}: at most {line.at_most:g}{unit}")
    return ", ".join(notes)
