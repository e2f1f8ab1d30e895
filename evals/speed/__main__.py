"""Command line: ``python -m evals.speed [ROW ...]``; see ``evals.speed``."""

import dataclasses
import difflib
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from evals.speed.contenders import has_torch
from evals.speed.rows import ROWS, Line, Options, Others
from train.memory import keep_memory
from train.run_folder import hardware, today, versions

OTHERS_AT_MOST = 0.05
"""Share of the processors' time that other programs may take before we warn."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Times training steps of the zoo and of its peers: flax, and torch where it is installed."""

    rows: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[ROW ...]")] = ()
    """Which rows; all unless given."""
    rounds: int = 20
    """Blocks of steps of each contender; their times are paired by round."""
    seconds: float = 0.2
    """Length of a block, about."""
    own_size: bool = False
    """Steps at the rows' own sizes only: no doubled sizes, no compilation, which take most of the time."""
    compilation: bool = False
    """Of rows of steps only compilation and the time to the first step."""
    json: pathlib.Path | None = None
    """Write the comparisons to this file too: a list with an object for each."""


def main(arguments: list[str] | None = None) -> int:
    """Times the rows; returns the exit status: 0 done, 1 an error, 2 a wrong command line."""
    command = tyro.cli(Command, prog="python -m evals.speed", description=f"Rows: {', '.join(ROWS)}.", args=arguments)
    for row in command.rows:
        if row not in ROWS:
            near = difflib.get_close_matches(row, ROWS, n=1, cutoff=0)[0]
            print(f"no row {row!r}; did you mean {near}?  All: {', '.join(ROWS)}", file=sys.stderr)
            return 2
    if command.rounds < 1 or not command.seconds > 0:
        print("error: --rounds and --seconds, allowed: positive numbers", file=sys.stderr)
        return 2
    if command.own_size and command.compilation:
        print("error: --own-size and --compilation: give one of them", file=sys.stderr)
        return 2
    if command.json is not None and not command.json.parent.is_dir():
        print(f"error: --json {command.json}: no folder {command.json.parent}", file=sys.stderr)
        return 2
    keep_memory()  # as when training, and for all contenders alike
    if not has_torch():
        print("torch is not installed, its comparisons are skipped: pip install 'purezoo[torch]'")
    made: dict[str, Any] = {
        "date": today(),
        "hardware": hardware(),
        "versions": versions() | ({"torch": importlib.metadata.version("torch")} if has_torch() else {}),
        "rounds": command.rounds,
        "seconds": command.seconds,
    }
    lines, others = [], Others()
    for row in command.rows or ROWS:
        lines += ROWS[row](Options(command.rounds, command.seconds, command.own_size, command.compilation))
    made["others"] = others.share()
    show(lines, f"{made['hardware']}, {made['date']}")
    if made["others"] is not None and made["others"] > OTHERS_AT_MOST:
        print(
            f"other programs took {made['others']:.0%} of the processors' time: these numbers hold for a busy machine only, "
            "where torch, whose threads wait for each other, loses most"
        )
    if command.json is not None:
        rows = [{name: value for name, value in dataclasses.asdict(line).items() if value is not None} | made for line in lines]
        try:
            command.json.write_text(json.dumps(rows, indent=2) + "\n")
        except OSError as error:
            print(f"error: --json {command.json}: {error}", file=sys.stderr)
            return 1
    return 0


def show(lines: Sequence[Line], title: str) -> None:
    """Prints the comparisons as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("row", "peer", title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("zoo ms", "peer ms", "ratio", "least", "greatest", "best"):
        table.add_column(column, justify="right")
    table.add_column("")
    for line in lines:
        times = f"{line.zoo_ms:.3f}", f"{line.peer_ms:.3f}"
        ratios = line.ratio, line.ratio_min, line.ratio_max, line.zoo_ms_best / line.peer_ms_best
        table.add_row(line.row, line.peer, *times, *(f"{ratio:.3f}" for ratio in ratios), _note(line))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


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
    if line.zoo_bytes is not None and line.peer_bytes is not None:
        notes.append(f"{line.zoo_bytes / 1e6:.1f} MB (peer {line.peer_bytes / 1e6:.1f})")
    if line.chosen is not None and line.measured_ms and line.estimated_ms:
        each = (f"{name} {line.measured_ms[name]:.2f} ({cost:.2f})" for name, cost in line.estimated_ms.items())
        notes.append(f"chose {line.chosen} of {', '.join(each)}")
    if line.at_most is not None:
        verdict = "ok" if measured <= line.at_most else "[red]above[/red]"
        notes.append(f"{verdict}: at most {line.at_most:g}{unit}")
    return ", ".join(notes)


if __name__ == "__main__":
    sys.exit(main())
