"""Command line: ``python -m evals.aot [RECIPE ...] --topology v5e:16x16``; see ``evals.aot``."""

if __name__ == "__main__":  # before the slow imports
    import sys

    from train.entry import run

    sys.exit(run("evals.aot.__main__"))

import dataclasses
import difflib
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from evals.aot.chips import CHIPS, Chip, Scaling, scaling, step_seconds
from evals.aot.operations import total
from evals.aot.program import (
    ONCE,
    OVERLAP,
    MissingCompilerError,
    Platform,
    Program,
    compile_step,
    devices_of,
    make,
    reduced,
    reductions,
    volumes,
    with_type,
)
from evals.hlo import Collective
from train import entry
from train.recipe import Recipe
from train.recipes import RECIPES

TOPOLOGIES: dict[str, str] = {"tpu": "v5e:16x16", "cuda": "1x32x8"}
GATES = {"convnet-alexnet": 256, "convnet-vgg16": 64}
"""{recipe: examples per TPU that must fit and scale to the largest slice with EFFICIENCY}."""
EFFICIENCY = 0.9
COLUMNS = (
    "recipe",
    "batch a chip",
    "type",
    "memory",
    "collectives",
    "gradients",
    "TFLOP",
    "GB",
    "step ms",
    "all-reduce ms",
)
BEGIN, END = "<!-- aot:begin -->", "<!-- aot:end -->"


@dataclasses.dataclass(frozen=True)
class Command:
    """Compiles training steps for accelerators that need not be present; predicts their scaling."""

    recipes: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE ...]")
    ] = ()
    """Recipes to compile; by default all."""
    topology: str | None = None
    """Chips, by default v5e:16x16 (also v4, v5p, v6e); for cuda slices x machines x GPUs per
    machine, by default 1x32x8."""
    platform: Platform = "tpu"
    target: pathlib.Path | None = None
    """For cuda: text file that describes the GPU (XLA's GpuTargetConfigProto)."""
    per_chip: int | None = None
    """Examples per chip; by default the recipe's batch size, but 256 for convnet-alexnet and 64 for
    convnet-vgg16."""
    global_batch: tuple[int, ...] = ()
    """Total examples on all chips instead; one row for each value."""
    length: int | None = None
    """Steps per sequence, frames per recording, or tokens per text, sentence or caption; by default
    the few of the model's example batch."""
    labels: int | None = None
    """Labels per recording; by default in the proportion of the model's example batch."""
    compute_dtype: Literal["bfloat16"] | None = None
    """Type to compute in; by default the recipe's."""
    compile: bool = True
    """--no-compile: only operations, times and scaling, which need no compiler."""
    overlap: bool = True
    """--no-overlap: omit the compiler options that overlap communication with computation."""
    docs: pathlib.Path | None = None
    """Put the rows into this Markdown file's table; they replace rows of the same recipe, batch and
    type."""


class Row(NamedTuple):
    """A row of the table.  failed: why it counts as an error, or ""."""

    cells: tuple[str, ...]
    failed: str


def main(arguments: list[str] | None = None) -> int:
    """Compiles and prints; returns the exit status.

    0 all fit and scale, 1 an error or one does not, 2 a wrong command line.
    """
    command = tyro.cli(
        Command,
        prog=entry.program("evals.aot"),
        description=f"Recipes: {', '.join(RECIPES)}.",
        args=arguments,
    )
    topology = command.topology or TOPOLOGIES[command.platform]
    problem = _problem(command, topology)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    jax.config.update("jax_platforms", "cpu")  # local devices are not the target
    chip = CHIPS["h100" if command.platform == "cuda" else topology.partition(":")[0]]
    try:
        devices = (
            devices_of(command.platform, topology, command.target) if command.compile else None
        )
    except MissingCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    chips = len(devices) if devices else math.prod(chip.slices[-1])
    header = (*COLUMNS, *(f"efficiency at {math.prod(slice_)}" for slice_ in chip.slices))
    table = [
        header,
        ["---"] * 3
        + [
            "--:" if name.endswith("ms") or name in ("TFLOP", "GB") else "---"
            for name in header[3:]
        ],
    ]
    print(f"{topology}, {chips} chips ({chip.kind}), jax {jax.__version__}\n", flush=True)
    print("\n".join(_line(cells) for cells in table), flush=True)
    rows = []
    for name in command.recipes or RECIPES:
        recipe = with_type(RECIPES[name], command.compute_dtype)
        per_chip = command.per_chip or GATES.get(name, recipe.batch_size)
        for batch in command.global_batch or (per_chip * chips,):
            rows.append(measure(command, recipe, batch, chips, devices, chip))
            print(_line(rows[-1].cells), flush=True)
    for row in rows:
        if row.failed:
            print(f"{row.cells[0]}, {row.cells[1]} a chip: {row.failed}", file=sys.stderr)
    if command.docs is not None:
        command.docs.write_text(
            merged(command.docs.read_text("utf-8"), table, [row.cells for row in rows]), "utf-8"
        )
    return 1 if any(row.failed for row in rows) else 0


def _problem(command: Command, topology: str) -> str:
    """The problem with the command line, or ""."""
    for name in command.recipes:
        if name not in RECIPES:
            near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0)[0]
            return f"no recipe {name!r}; did you mean {near}?  All: {', '.join(RECIPES)}"
    for value in (command.per_chip, command.length, command.labels, *command.global_batch):
        if value is not None and value < 1:
            return (
                "error: --per-chip, --length, --labels and --global-batch, "
                "allowed: positive integers"
            )
    if command.per_chip and command.global_batch:
        return "error: --per-chip, allowed without --global-batch only"
    kind = topology.partition(":")[0]
    if command.platform == "tpu" and (kind not in CHIPS or kind == "h100"):
        return (
            f"error: --topology {topology}, allowed: v4, v5e, v5p or v6e and sizes, "
            "such as v5e:16x16"
        )
    if command.platform == "tpu" and command.target is not None:
        return "error: --target, allowed with --platform cuda only"
    if command.platform == "cuda" and command.compile and command.target is None:
        return "error: --platform cuda needs --target FILE, which describes the GPU"
    if command.docs is not None and not (
        command.docs.is_file() and BEGIN in command.docs.read_text("utf-8")
    ):
        return f"error: --docs {command.docs}, allowed: a file with a line {BEGIN}"
    return ""


def measure(
    command: Command,
    recipe: Recipe[Any, Any],
    batch: int,
    chips: int,
    devices: Sequence[Any] | None,
    chip: Chip,
) -> Row:
    """A recipe's row.  batch: total examples on all chips.  devices: to compile for, or None."""
    share = math.ceil(batch / chips)
    step = make(
        recipe,
        batch if devices else share,
        devices or jax.devices()[:1],
        command.platform,
        command.length,
        command.labels,
    )
    seconds = step_seconds(step.operations, step.moved, chip)
    backward = step_seconds(step.operations, 0, chip) - step_seconds(step.forward, 0, chip)
    program, memory, gradients, failed = None, "", "", ""
    if devices:
        try:
            program = compile_step(
                step, command.platform, OVERLAP[command.platform] if command.overlap else None
            )
            memory = f"{program.memory / 1e9:.3g} of {chip.memory / 1e9:.0f} GB"
            gradients = reduced(program.collectives, step.params, step.metrics)
            failed = (
                memory
                if program.memory > chip.memory
                else ""
                if gradients == ONCE
                else f"gradients: {gradients}"
            )
        except RuntimeError as error:
            memory, failed = "does not compile", f"does not compile: {str(error).splitlines()[0]}"
    operations = program.collectives if program else []
    volume = sum(reductions(operations).values()) or float(step.params)
    scales = scaling(
        seconds,
        backward,
        volume,
        sum(reductions(operations, asynchronous=True).values()),
        chip,
        chip.slices,
    )
    gated = (
        command.platform == "tpu" and not command.global_batch and share == GATES.get(recipe.name)
    )
    if program and gated and not failed:
        reached = scales[-1].compiled
        failed = (
            ""
            if reached >= EFFICIENCY
            else f"efficiency {reached:.3f} at {scales[-1].chips}, expected {EFFICIENCY}"
        )
    sums = total(step.operations)
    cells = (
        recipe.name,
        f"{share:,}",
        getattr(recipe.model, "compute_dtype", None) or "float32",
        memory,
        _collectives(operations),
        gradients,
        f"{sums.products / 1e12:.3g}",
        f"{(sums.bytes + step.moved) / 1e9:.3g}",
        f"{1e3 * seconds:.3g}",
        f"{1e3 * scales[-1].all_reduce:.3g}",
        *(_efficiency(scale, program) for scale in scales),
    )
    return Row(cells, failed)


def _collectives(operations: Sequence[Collective]) -> str:
    """Such as "9 all-reduce, 244.4 MB f32, 240.1 MB overlap", for one iteration of step loops."""
    parts = []
    for kind in dict.fromkeys(operation.kind for operation in operations):
        same_kind = [operation for operation in operations if operation.kind == kind]
        sizes = [f"{volume / 1e6:,.1f} MB {dtype}" for dtype, volume in volumes(same_kind).items()]
        overlapped = sum(operation.bytes for operation in same_kind if operation.asynchronous)
        parts += [
            f"{len(same_kind)} {kind}",
            *sizes,
            *([f"{overlapped / 1e6:,.1f} MB overlap"] if overlapped else []),
        ]
    return ", ".join(parts)


def _efficiency(scale: Scaling, program: Program | None) -> str:
    """Efficiency without overlap / as compiled / with as much overlap as possible."""
    values = (scale.apart, scale.compiled, scale.hidden) if program else (scale.apart, scale.hidden)
    return " / ".join(f"{value:.2f}" for value in values)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def merged(text: str, header: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> str:
    """The document with these rows in its table; they replace rows with the same first 3 cells."""
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    lines = [_line(cells) for cells in header]
    old = [line for line in table.strip().splitlines() if line not in lines]
    kept = {
        tuple(line.split(" | ")[:3]): line for line in (*old, *(_line(cells) for cells in rows))
    }
    return "\n".join([before + BEGIN, *lines, *kept.values(), END + after])
