"""The benefit of unsupervised pre-training when labels are few (LeCun, Bengio, Hinton 2015).

    python -m train dbn-mnist --out runs/dbn-mnist
    python -m evals.labels runs/dbn-mnist --docs docs/pretraining.md

Fine-tunes a run's recipe from its unsupervised stages, and trains the same network from random
kernels, on several numbers of labelled examples.  Several seeds train at once; each draws its own
examples (equally many per class), output layer and order.  All seeds start from the same
pre-trained RBMs.  No checkpoint is selected, the last one counts: with few labels none can be
spared for validation.
"""

if __name__ == "__main__":  # before the slow imports
    import sys

    from train.entry import run

    sys.exit(run("evals.labels"))

import dataclasses
import json
import pathlib
import statistics
import sys
from typing import Annotated, Any

import tyro

from train import entry

BEGIN, END = "<!-- labels:begin -->", "<!-- labels:end -->"


@dataclasses.dataclass(frozen=True)
class Options:
    """Test error with and without unsupervised pre-training, for several numbers of labels."""

    run_dir: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """A complete run of a recipe with stages, the last of them supervised, such as dbn-mnist."""
    labels: tuple[int, ...] = (100, 300, 1000, 3000)
    """Numbers of labelled training examples."""
    replicas: int = 5
    """Number of seeds, trained at once."""
    machines: int | None = None
    """Number of pre-trained layers to keep, from the bottom; by default all."""
    steps: int = 1000
    """Steps of each training, whatever the number of labels."""
    gain: float = 4.0
    """Factor on all kernels of the random start: logistic networks as deep as dbn-mnist's hardly
    learn from smaller ones.  The pre-trained start draws only its output layer, without the
    factor."""
    seed: int = 0
    """The first seed."""
    docs: pathlib.Path | None = None
    """Write the table between the markers of this Markdown file, and the plot next to it."""
    data_dir: str | None = None
    """Folder to search first for data sets (also $ZOO_DATA_DIR)."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 an error, 2 a wrong command line."""
    options = tyro.cli(Options, prog=entry.program("evals.labels"), args=arguments)
    from train.engine.checkpoint import CheckpointError
    from train.engine.run_folder import RunError
    from train.formats import DataError

    try:
        if options.docs is not None:
            parts(options.docs)  # fail before training, not after
        results = measure(options)
        print(table(results))
        if options.docs is not None:
            write(options, options.docs, results)
    except (DataError, RunError, CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(options: Options) -> list[dict[str, Any]]:
    """A row per number of labels and start: {"labels", "start", "errors" [seeds] in percent}."""
    from train.data import load_data
    from train.engine.run_folder import RunFolder
    from zoo import mlp
    from zoo.parts import config

    folder = RunFolder.open(options.run_dir)
    recipe = folder.recipe()
    machines = len(recipe.stages) - 1 if options.machines is None else options.machines
    earlier, allowed = (
        options.run_dir / f"stage-{machines}",
        "allowed: one such as dbn-mnist, with its stage folders",
    )
    if recipe.after is None or not isinstance(recipe.model, mlp.Config):
        raise ValueError(
            f"{options.run_dir}: no run of a multilayer perceptron after other stages, {allowed}"
        )
    if not 1 <= machines < len(recipe.stages):
        raise ValueError(
            f"machines={machines}, allowed: 1 to {len(recipe.stages) - 1}, "
            f"the stages of {recipe.name}"
        )
    if not earlier.is_dir():
        raise ValueError(f"{earlier}: no such folder, {allowed}")
    sizes = recipe.model.sizes
    recipe = dataclasses.replace(
        recipe, model=config.replace(recipe.model, sizes=(*sizes[: machines + 1], sizes[-1]))
    )
    dataset = load_data(recipe.data, options.data_dir)
    most = len(dataset.joined("train", "validation")["targets"])
    invalid = [count for count in options.labels if not 1 <= count <= most]
    if invalid or not options.labels or len(set(options.labels)) < len(options.labels):
        raise ValueError(
            f"labels={options.labels}, allowed: different numbers from 1 to {most}, "
            "the number of training examples"
        )
    if options.replicas < 1:
        raise ValueError(f"replicas={options.replicas}, allowed: a positive number")
    rows = []
    for count in options.labels:
        for start, source in (("random", None), ("pre-trained", str(earlier))):
            errors = train_and_test(recipe, dataset, count, source, options)
            rows.append({"labels": count, "start": start, "errors": errors})
            print(f"{count} labels, {start}: {_figures(errors)} %", flush=True)
    return rows


def train_and_test(
    recipe: Any, dataset: Any, count: int, source: str | None, options: Options
) -> list[float]:
    """Test error in percent of each seed, trained on ``count`` labels.

    source: folder of the run to start from; None starts from random parameters.
    """
    import jax

    import train
    import train.engine.loop
    from train.batches import fit_scaling
    from train.engine.stage import evaluation_batches
    from train.engine.step import make_evaluate
    from train.engine.trainer import fit
    from train.recipe import module_of
    from zoo.parts import config

    module, cfg = module_of(recipe.model), recipe.model
    if source is None:
        cfg = config.replace(cfg, gain=options.gain)
    result = fit(
        module,
        cfg,
        dataset,
        init_from=source,
        labels=count,
        replicas=options.replicas,
        seed=options.seed,
        steps=options.steps,
        batch_size=min(recipe.batch_size, count),
        steps_per_dispatch=recipe.steps_per_dispatch,
        preprocess=recipe.preprocess,
        optimizer=recipe.optimizer,
        train_on="train+validation",
    )
    if not result.complete:
        raise InterruptedError(f"stopped by {result.stopped_by}; nothing is written")
    scaling = fit_scaling(
        recipe.preprocess, dataset.joined("train", "validation")["inputs"], dataset.input_range
    )
    batches = evaluation_batches(dataset.splits["test"], recipe.batch_size, scaling)
    function = jax.jit(make_evaluate(module, cfg))
    errors = []
    for member in result.members.values() if result.members else (result,):
        means = train.engine.loop.evaluate(function, module, cfg, member.params, batches)
        errors.append(round(100 - 100 * means["accuracy"], 4))
    return errors


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of mean and standard deviation over seeds, a line per number of labels."""
    lines = [
        "| labels | random | pre-trained | difference of means |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for count in dict.fromkeys(row["labels"] for row in rows):
        random, pretrained = (
            next(row["errors"] for row in rows if (row["labels"], row["start"]) == (count, start))
            for start in ("random", "pre-trained")
        )
        difference = statistics.fmean(pretrained) - statistics.fmean(random)
        lines.append(
            f"| {count:,} | {_figures(random)} | {_figures(pretrained)} | {difference:+.2f} |"
        )
    return "\n".join(lines)


def _figures(errors: list[float]) -> str:
    deviation = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return f"{statistics.fmean(errors):.2f}{deviation}"


def parts(docs: pathlib.Path) -> tuple[str, str]:
    """The text before and after the markers.

    Raises ValueError if there are no markers, OSError if there is no file.
    """
    before, begin, rest = docs.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{docs}: no lines {BEGIN} and {END} to put the table between")
    return before, after


def write(options: Options, docs: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Writes the table, a note on how it was measured, and the plot."""
    from train.engine.run_folder import RunFolder, hardware, today, write_text

    before, after = parts(docs)
    picture = docs.with_suffix(".svg")
    write_text(picture, draw(rows))
    recipe = RunFolder.open(options.run_dir).recipe()
    sizes = (
        recipe.model.sizes
        if options.machines is None
        else (*recipe.model.sizes[: options.machines + 1], recipe.model.sizes[-1])
    )
    seeds = (
        f"mean ± deviation of {options.replicas} seeds" if options.replicas > 1 else "of one seed"
    )
    note = f"Test error in per cent, {seeds}, {options.steps:,} steps each, of "
    note += f"{'-'.join(map(str, sizes))} from `{recipe.name}` (seed {recipe.seed}).  "
    note += f"Measured on {hardware()}, {today()}."
    note += f"\n\n![test error against labels]({picture.name})"
    values = "<!-- " + json.dumps(rows) + " -->"
    write_text(docs, f"{before}{BEGIN}\n{table(rows)}\n\n{note}\n\n{values}\n{END}{after}")
    print(f"{docs}, {picture}: written")


def draw(rows: list[dict[str, Any]]) -> str:
    """SVG of the mean error against the number of labels; bars show the deviation over seeds."""
    from evals.report.page import COLORS, plot

    def draw_lines(axes: Any) -> None:
        for start, color in zip(("random", "pre-trained"), COLORS.values(), strict=True):
            selected = [row for row in rows if row["start"] == start]
            means = [statistics.fmean(row["errors"]) for row in selected]
            bars = [
                statistics.stdev(row["errors"]) if len(row["errors"]) > 1 else 0 for row in selected
            ]
            axes.errorbar(
                [row["labels"] for row in selected],
                means,
                bars,
                label=start,
                color=color,
                marker="o",
                capsize=4,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        counts = sorted({row["labels"] for row in rows})
        axes.set_xticks(counts, [f"{count:,}" for count in counts], minor=False)
        axes.set_xticks([], minor=True)
        ticks = [
            tick
            for tick in (1, 2, 3, 5, 10, 20, 30, 50)
            if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]
        ]
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.set_yticks([], minor=True)
        axes.set_xlabel("labelled examples")
        axes.set_ylabel("test error %")
        axes.legend()

    return plot("pre-trained against random", draw_lines)
