"""Command line: ``zoo-train [RECIPE] [options]``.  ``--list`` shows the recipes, ``RECIPE --help`` every option."""

if __name__ == "__main__":  # python -m train; before what takes seconds to import
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
    """Where a run lives and what it says; none of this changes its result."""

    out: str | None = None
    """Run folder; runs/RECIPE unless given.  Starting again in the same folder resumes."""
    data_dir: str | None = None
    """Where data sets are looked up first (also $ZOO_DATA_DIR), before the download cache."""
    quiet: bool = False
    """Show nothing but errors."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run folder as well."""
    parallel: Literal["auto", "jit", "shard_map", "pmap"] = "auto"
    """How several devices share a batch: auto is jit."""
    devices: int | None = None
    """How many devices to use; all unless given."""
    accumulate: int = 1
    """Parts that a batch is worked through in, one after the other, where it does not fit into memory."""
    remat: bool = False
    """Keep less of a deep model for the backward pass, and compute it again: less memory, more time."""
    distributed: bool = False
    """One of several processes, as SLURM, Open MPI, Cloud TPU, GKE or Kubernetes started them."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no such environment says it; with --num-processes and --process-id."""
    num_processes: int | None = None
    process_id: int | None = None
    timeout: float = 300.0
    """Seconds that one of several processes waits for the others, without any progress, before it ends with an error."""
    on_save_failure: Literal["stop", "continue"] = "stop"
    """Where a checkpoint cannot be written, as on a full disk: stop, or say so and go on (a single process only)."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next start is faster."""


def main(arguments: list[str] | None = None) -> int:
    """Trains; returns the exit status: 0 complete or preempted (SIGTERM), 1 an error, 2 a wrong command line, 3 Ctrl-C.

    See ``train.entry`` for what else may end the program.
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
        print(f"no recipe {name!r}; {hint}", file=sys.stderr)
        return 2
    if message := _former(arguments):
        print(message, file=sys.stderr)
        return 2
    try:
        recipe, options = parse(RECIPES[name], arguments)
    except (ValueError, DataError) as error:  # a value that a Config refuses; no such data
        print(f"error: {error}", file=sys.stderr)
        return 2
    return train(recipe, options)


def parse(recipe: Recipe[Any, Any], arguments: list[str]) -> tuple[Recipe[Any, Any], RunOptions]:
    """The recipe with the command line's overrides.  Exits with status 2 at a wrong option.

    Raises ValueError for a value that a Config refuses, DataError for a kind of data that is none.
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
    """The recipe with the data that --data KIND names, and the other arguments.

    Taken out first, as the kind decides which options there are.
    """
    rest, data = [], recipe.data
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name != "--data":
            rest.append(argument)
            continue
        value = value if equals else next(given, "")
        if not value or value.startswith("--"):
            raise ValueError("--data: nothing after it, allowed: a kind of data such as folder:DIR")
        data = parse_data(value, like=recipe.data)
    return dataclasses.replace(recipe, data=data), rest


FORMER = ("--text.", "--pairs.", "--image-shape")
"""How options of earlier versions begin, which are settings of the data now."""


def _former(arguments: list[str]) -> str | None:
    """What to say to somebody who gives an option that has become one of the data's."""
    for argument in arguments:
        if argument.startswith(FORMER):
            option = argument.partition("=")[0]
            return f"error: {option} is --data.{option.lstrip('-').rpartition('.')[2]} now"
    return None


def train(recipe: Recipe[Any, Any], options: RunOptions) -> int:
    """Runs a recipe and says where its results lie."""
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
    """A table of the recipes with their targets."""
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
