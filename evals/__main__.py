"""Command line: ``zoo-evals RUN_DIR`` measures a run, ``zoo-evals predict RUN_DIR FILE`` uses it.

``evals.verbs`` defines the verbs.
"""

if __name__ == "__main__":  # python -m evals; comes before the slow imports
    import sys

    from evals.entry import zoo_evals

    sys.exit(zoo_evals())

import dataclasses
import difflib
import itertools
import logging
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING

import tyro

from evals.verbs import FORMER, VERBS, RunDir, Verb, require
from train import entry

if TYPE_CHECKING:
    from evals.base import Evaluation


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures a finished run: prints metrics, and writes eval.json and the report report.html."""

    run_dir: RunDir
    """Run folder, written by zoo-train."""
    split: str = "test"
    """Split to measure on: test, validation, train, or any other split of the data set."""
    data: str | None = None
    """Measure on this data set of the same task instead of the run's own, e.g.
    pairs:other.en,other.fr or folder:DIR.  A data set without splits is measured as a whole.
    Results go to eval-on-... and report-on-... and are not added to the ledger."""
    data_dir: str | None = None
    """Folder searched for data sets before the download cache (also $ZOO_DATA_DIR)."""
    report: bool = True
    """Write report.html."""
    example: int = 0
    """Index of the example that the report shows in detail: its feature maps and scores, or the
    passage that starts there."""


def main(arguments: list[str] | None = None) -> int:
    """Measures a run, or executes a verb.

    Returns the exit status: 0 success, 1 error, 2 invalid command line, 3 Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    program = entry.program("evals")
    if message := _former(program, arguments) or _mistyped(program, arguments):
        print(message, file=sys.stderr)
        return 2
    options: Options | Verb
    if arguments and arguments[0] in VERBS:
        verb, *rest = arguments
        options = tyro.cli(VERBS[verb], prog=f"{program} {verb}", args=rest)
    else:
        verb = None
        options = tyro.cli(Options, prog=program, args=arguments, description=_description(program))
    # Hides matplotlib's warning that the home folder is read-only, which is harmless.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with entry.importing():
        import evals.evaluation
        from train.engine.checkpoint import CheckpointError
        from train.engine.run_folder import RunError
        from train.formats import DataError

    try:
        if isinstance(options, Options):
            return measure(options)
        run = evals.evaluation.restore(options.run_dir)
        assert verb is not None
        verbs = evals.evaluation.tasks.module_of(run.task).VERBS
        require(run, verb, verbs)
        return verbs[verb](run, options)
    except (DataError, RunError, CheckpointError, ValueError, OSError) as error:
        if entry.interrupted() or isinstance(error, BrokenPipeError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def _description(program: str) -> str:
    examples = (f"{verb} RUN_DIR {VERBS[verb].usage} ({VERBS[verb].does})" for verb in VERBS)
    return f"{Options.__doc__}\n\nVerbs use a run: {program} {'; '.join(examples)}."


def _former(program: str, arguments: list[str]) -> str | None:
    """Error message if an option has become a verb, else None."""
    for argument in arguments if not arguments or arguments[0] not in VERBS else ():
        if argument.partition("=")[0] in FORMER:
            option = argument.partition("=")[0]
            return f"error: {option} is a verb now: {program} {FORMER[option]}"
    return None


def _mistyped(program: str, arguments: list[str]) -> str | None:
    """Error message if the verb is unknown or follows the run folder, else None."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    if not words or words[0] in VERBS:
        return None
    if pathlib.Path(words[0]).exists():
        if len(words) > 1 and words[1] in VERBS:
            call = shlex.join([words[1], words[0], *words[2:]])
            return f"error: the verb comes before the run folder: {program} {call}"
        return None
    near = difflib.get_close_matches(words[0], VERBS, n=1, cutoff=0.5)
    if len(words) < 2 and not near:
        return None
    hint = f"did you mean {near[0]}?" if near else f"verbs: {', '.join(VERBS)}"
    return f"error: neither a verb nor a run folder: {arguments[0]!r}; {hint}"


def measure(options: Options) -> int:
    """Measures a run, writes eval.json and report.html, and prints where they are.

    If the folder holds several runs, measures each of them and compares them.
    """
    from evals.evaluation import evaluate, training
    from evals.report.page import REPORT_NEEDS, can_render
    from train.engine.run_folder import RunFolder

    members = RunFolder.open(options.run_dir).recipe().members
    if len(members) > 1:
        return measure_members(options, list(members))
    evaluation = evaluate(
        options.run_dir,
        options.split,
        options.data_dir,
        data=options.data,
        example=options.example,
    )
    report = options.report and can_render()
    kept = keep(evaluation, report)
    if not training(evaluation.run.folder)["complete"]:
        print("the run is not complete: these are results of its best checkpoint so far")
    if report < options.report:
        print(REPORT_NEEDS)
    print_results(evaluation, report, kept)
    return 0 if kept else 1


def keep(evaluation: "Evaluation", report: bool) -> bool:
    """Writes eval.json and, if ``report``, report.html; returns whether this worked.

    A failure is printed, not raised: the caller still prints the metrics.
    """
    from evals.evaluation import write_evaluation

    try:
        write_evaluation(evaluation)
        if report:
            from evals.report.document import write_report

            write_report(evaluation)
    except OSError as error:
        print(f"error: could not save the results: {error}", file=sys.stderr)
        return False
    return True


def measure_members(options: Options, labels: list[str]) -> int:
    """Measures every run of a folder with several runs; prints a table with mean and spread."""
    from evals.evaluation import evaluate
    from evals.report.page import can_render
    from train.engine.member import compare_members
    from train.engine.run_folder import read_json

    rows, files, kept = {}, [], True
    for label in labels:
        folder = options.run_dir / label
        evaluation = evaluate(
            folder, options.split, options.data_dir, data=options.data, example=options.example
        )
        if keep(evaluation, options.report and can_render()):
            files.append(str(evaluation.file))
        else:
            kept = False
        summary = folder / "summary.json"
        diverged = read_json(summary).get("diverged") if summary.exists() else None
        rows[label] = {"diverged": diverged, **evaluation.metrics}
    print("\n".join(compare_members(rows)))
    if files:
        print(f"numbers {', '.join(files)}")
    return 0 if kept else 1


def print_results(evaluation: "Evaluation", report: bool, kept: bool) -> None:
    """Prints the metrics, the paths of the files that were written, and what to try next."""
    from evals import tasks
    from evals.metrics import show_metric

    run = evaluation.run
    where = "" if evaluation.subject.own else f" of {evaluation.subject.dataset.name}"
    name = f"{run.recipe.name}, seed {run.recipe.seed}, step {run.step}"
    print(f"{name}, {evaluation.measured_on}{where}")
    for name, value in evaluation.metrics.items():
        print(show_metric(name, value, evaluation.items, evaluation.intervals.get(name)))
    if evaluation.note:
        print(evaluation.note)
    print(f"checkpoint {run.folder.checkpoints / str(run.step)}")
    if kept:
        print(f"report {evaluation.report}" if report else f"numbers {evaluation.file}")
    program, folder = entry.program("evals"), shlex.quote(str(run.folder.path))
    for verb in tasks.module_of(run.task).VERBS:
        print(f"next: {program} {verb} {folder} {VERBS[verb].usage}   {VERBS[verb].does}")
    print(f"next: {entry.program('train')} --list   shows the other recipes")
