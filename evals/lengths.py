"""Translation quality as a function of sentence length.

    python -m evals.lengths RUN [RUN ...] --plot docs/lengths.svg

Bahdanau, Cho, Bengio (2014, figure 2) claim that a single vector cannot represent a long sentence,
and that attention removes this limitation.
"""

if __name__ == "__main__":  # before the slow imports
    import sys

    from train.entry import run

    sys.exit(run("evals.lengths"))

import dataclasses
import pathlib
import sys
from typing import Annotated

import tyro

from evals.run import load_split
from evals.runs import named
from evals.tasks.translation import FEWEST, by_length, lengths_plot, translate
from train import entry
from train.engine.run_folder import write_text


@dataclasses.dataclass(frozen=True)
class Options:
    """Plots BLEU against source length for runs that translate the same sentences."""

    run_dirs: Annotated[
        tuple[pathlib.Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]"),
    ]
    """Run folders."""
    plot: pathlib.Path
    """SVG file to write."""
    data_dir: str | None = None
    """Folder searched for data sets first (also $ZOO_DATA_DIR)."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 success, 1 error, 2 invalid command line."""
    options = tyro.cli(Options, prog=entry.program("evals.lengths"), args=arguments)
    from train.engine.checkpoint import CheckpointError
    from train.engine.run_folder import RunError
    from train.formats import DataError

    try:
        runs = {}
        for name, run in named(options.run_dirs).items():
            sentences = load_split(run, "test", options.data_dir).extras.get("sentences", ())
            runs[name] = by_length(sentences, translate(run, [source for source, _ in sentences]))
            if not runs[name]:
                raise ValueError(
                    f"{run.folder.path}: {len(sentences)} test sentences, "
                    f"allowed: at least {FEWEST} in one of the length bins"
                )
        write_text(options.plot, lengths_plot(runs))
    except (DataError, RunError, CheckpointError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, bins in runs.items():
        print(
            f"{name}: "
            + ", ".join(
                f"{words} words {score:.1f} ({count})" for words, (count, score) in bins.items()
            )
        )
    print(f"plot {options.plot}")
    return 0
