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
        hint = f"did you mean {' or '.join(near)}?" if near else f"{entry.program('train')} --list shows them"
        print(f"no recipe {name!r}; {hint}", file=sys.stderr)
        return 2
    try:
        recipe, options = parse(RECIPES[name], arguments)
    except ValueError as error:  # a field's value that a Config refuses
        print(f"error: {error}", file=sys.stderr)
        return 2
    return train(recipe, options)


def parse(recipe: Recipe[Any], arguments: list[str]) -> tuple[Recipe[Any], RunOptions]:
    """The recipe with the command line's overrides.  Exits with status 2 at a wrong option."""

    def command(
        recipe: Annotated[Recipe[type(recipe.model)], tyro.conf.arg(name="")] = recipe,  # pyright: ignore
        run: Annotated[RunOptions, tyro.conf.arg(name="")] = RunOptions(),
    ) -> tuple[Recipe[Any], RunOptions]:
        return with_data_in_stages(recipe, known), run

    known = recipe
    description = f"{recipe.name}: {recipe.about}.\n\nOther recipes: {entry.program('train')} --list"
    return tyro.cli(command, prog=f"{entry.program('train')} {recipe.name}", description=description, args=arguments)


def train(recipe: Recipe[Any], options: RunOptions) -> int:
    """Runs a recipe and says where its results lie."""
    with entry.importing():
        from train import cluster
        from train.checkpoint import CheckpointError
        from train.formats import DataError
        from train.loop import Diverged
        from train.memory import keep_memory
        from train.parallel import Parallel
        from train.programs import keep_programs
        from train.run_folder import RunError
        from train.trainer import run

    several = options.distributed or any(
        value is not None for value in (options.coordinator, options.num_processes, options.process_id)
    )
    joined = False
    keep_memory()
    if options.compilation_cache:
        keep_programs()
    out = options.out or str(pathlib.Path("runs") / recipe.name)
    entry.advise(f"the same command resumes {out} from its last checkpoint")
    try:
        parallel = Parallel(
            strategy=options.parallel, devices=options.devices, accumulate=options.accumulate, remat=options.remat
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
    except (DataError, RunError, CheckpointError, Diverged, cluster.ClusterError, ValueError, OSError, RuntimeError) as error:
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

    table = Table("recipe", "what", "data", "expected", box=None, pad_edge=False, header_style="bold")
    for recipe in RECIPES.values():
        table.add_row(recipe.name, recipe.about, recipe.data, "\n".join(str(target) for target in recipe.targets))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
