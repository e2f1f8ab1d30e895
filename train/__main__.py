"""Command line: ``zoo-train [RECIPE] [options]``.

``--list`` shows the recipes, ``RECIPE --help`` all options of one.
"""

if __name__ == "__main__":  # python -m train; before the slow imports below
    import sys

    from train.entry import zoo_train

    sys.exit(zoo_train())

import dataclasses
import difflib
import pathlib
import shlex
import sys
from typing import Annotated, Any, Literal

import tyro

from train import entry, ours
from train.data import DataError, forms
from train.data import parse as parse_data
from train.recipe import Recipe, with_data_in_stages
from train.recipes import DEFAULT, RECIPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that do not change a run's result: output folder, console output, devices."""

    out: str | None = None
    """Run folder; runs/RECIPE by default.  Repeating the command with the same folder resumes."""
    data_dir: str | None = None
    """Folder searched for data sets before the download cache (also $ZOO_DATA_DIR)."""
    quiet: bool = False
    """Print only errors."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run folder."""
    parallel: Literal["auto", "jit", "shard_map", "pmap"] = "auto"
    """How several devices share a batch; auto means jit."""
    devices: int | None = None
    """Number of devices to use; all by default."""
    accumulate: int = 1
    """Gradient accumulation: compute each batch in this many parts, to save memory."""
    remat: bool = False
    """Recompute activations of deep models in the backward pass: less memory, more time."""
    distributed: bool = False
    """One of several processes, started by SLURM, Open MPI, Cloud TPU, GKE or Kubernetes."""
    coordinator: str | None = None
    """HOST:PORT of process 0, outside such environments; also give the two options below."""
    num_processes: int | None = None
    process_id: int | None = None
    timeout: float = 300.0
    """Seconds without progress after which one of several processes ends with an error."""
    on_save_failure: Literal["stop", "continue"] = "stop"
    """If a checkpoint cannot be written: stop, or warn and continue (single process only)."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, which makes the next start faster."""


def main(arguments: list[str] | None = None) -> int:
    """Trains a recipe and returns the exit status.

    0: complete or preempted (SIGTERM).  1: error.  2: invalid command line.  3: Ctrl-C.
    ``train.entry`` describes the other ways in which the program may end.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--list" in arguments:
        print_recipes()
        return 0
    name = DEFAULT
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"{entry.program('train')} --list shows them"
        )
        print(f"error: no recipe {name!r}; {hint}", file=sys.stderr)
        return 2
    if message := _former(arguments):
        print(message, file=sys.stderr)
        return 2
    try:
        recipe, options = parse(RECIPES[name], arguments)
    except (ValueError, DataError) as error:  # invalid Config value; unknown data
        print(f"error: {error}", file=sys.stderr)
        return 2
    return train(recipe, options)


def parse(recipe: Recipe[Any, Any], arguments: list[str]) -> tuple[Recipe[Any, Any], RunOptions]:
    """The recipe with the command line's overrides.  Exits with status 2 for an invalid option.

    Raises ValueError for a value that a Config rejects, DataError for an unknown kind of data.
    """
    known = recipe
    chosen, arguments = _chosen_data(recipe, arguments)

    def command(
        recipe: Annotated[
            Recipe[type(chosen.model), type(chosen.data)],  # pyright: ignore
            tyro.conf.arg(name=""),
        ] = chosen,
        run: Annotated[RunOptions, tyro.conf.arg(name="")] = RunOptions(),
    ) -> tuple[Recipe[Any, Any], RunOptions]:
        return with_data_in_stages(recipe, known), run

    program = entry.program("train")
    description = f"{recipe.name}: {recipe.about}.\n\nOther recipes: {program} --list.  "
    description += (
        f"Other data: --data KIND; kinds: {', '.join(form.shown for form in forms().values())}"
    )
    return tyro.cli(
        command, prog=f"{program} {recipe.name}", description=description, args=arguments
    )


def _chosen_data(
    recipe: Recipe[Any, Any], arguments: list[str]
) -> tuple[Recipe[Any, Any], list[str]]:
    """Applies --data KIND; returns the recipe with that data and the remaining arguments.

    --data is handled before tyro parses, because the kind of data determines the valid options.
    """
    rest, data = [], recipe.data
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name != "--data":
            rest.append(argument)
            continue
        value = value if equals else next(remaining, "")
        if not value or value.startswith("--"):
            raise ValueError("--data: no value, allowed: a kind of data such as folder:DIR")
        data = parse_data(value, like=recipe.data)
    return dataclasses.replace(recipe, data=data), rest


FORMER = ("--text.", "--pairs.", "--image-shape")
"""Prefixes of options from earlier versions, which are now --data.* options."""


def _former(arguments: list[str]) -> str | None:
    """The error message for an option of an earlier version; None if there is none."""
    for argument in arguments:
        if argument.startswith(FORMER):
            option = argument.partition("=")[0]
            return f"error: {option} is --data.{option.lstrip('-').rpartition('.')[2]} now"
    return None


def train(recipe: Recipe[Any, Any], options: RunOptions) -> int:
    """Runs a recipe and prints the path of its results."""
    with entry.importing():
        from train.engine import cluster
        from train.engine.checkpoint import CheckpointError
        from train.engine.loop import Diverged
        from train.engine.memory import keep_memory
        from train.engine.parallel import Parallel
        from train.engine.run_folder import RunError
        from train.engine.trainer import run
        from train.programs import keep_programs

    several = options.distributed or any(
        value is not None
        for value in (options.coordinator, options.num_processes, options.process_id)
    )
    joined = False
    keep_memory()
    if options.compilation_cache:
        keep_programs()
    out = options.out or str(pathlib.Path("runs") / recipe.name)
    entry.advise(f"the same command resumes {out} from its last checkpoint")
    try:
        parallel = Parallel(
            strategy=options.parallel,
            devices=options.devices,
            accumulate=options.accumulate,
            remat=options.remat,
        )
        if several:
            meeting = cluster.Cluster(
                coordinator=options.coordinator,
                processes=options.num_processes,
                process=options.process_id,
                timeout=options.timeout,
            )
            meeting.join()
            joined = True
        result = run(
            recipe,
            out,
            data_dir=options.data_dir,
            quiet=options.quiet,
            tensorboard=options.tensorboard,
            parallel=parallel,
            timeout=options.timeout,
            on_save_failure=options.on_save_failure,
        )
    except (
        DataError,
        RunError,
        CheckpointError,
        Diverged,
        cluster.ClusterError,
        ValueError,
        OSError,
        RuntimeError,
    ) as error:
        if entry.interrupted() or isinstance(error, BrokenPipeError):
            raise
        if joined:
            cluster.fail(cluster.explain(error))
        if type(error) is RuntimeError:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    entry.over()
    if not result.complete:
        return 0 if result.stopped_by == "SIGTERM" else ours.STOPPED
    if not options.quiet and cluster.first():
        print(f"run folder {out}; next: {entry.program('evals')} {shlex.quote(out)}")
    return 0


def print_recipes() -> None:
    """Prints a table of the recipes and their targets."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "recipe", "what", "data", "expected", box=None, pad_edge=False, header_style="bold"
    )
    for recipe in RECIPES.values():
        table.add_row(
            recipe.name,
            recipe.about,
            str(recipe.data),
            "\n".join(str(target) for target in recipe.targets),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
