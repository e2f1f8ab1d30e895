"""Evaluation of a run: measures its best checkpoint on a split of its data or of other data."""

import contextlib
import os
import shlex
from typing import Any

import jax

import train.engine.loop
from evals import tasks
from evals.base import Evaluation, Subject
from evals.metrics import is_whole
from evals.run import load_dataset, load_other, restore, split_of
from train.engine.run_folder import RunFolder, hardware, read_json, today, versions, write_json
from train.engine.stage import evaluation_batches
from train.engine.step import make_evaluate

FORMAT = 1


def evaluate(
    run_dir: str | os.PathLike[str],
    split: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    data: str | None = None,
    example: int = 0,
) -> Evaluation:
    """Measures a run's best checkpoint on a split ("test", "validation", "train") of its data.

    data: another data set of the run's task, named as in ``train.data``: "pairs:a.en,a.fr".  A data
        set without splits is measured as a whole.
    example: index of the example that the report shows in detail.
    Raises RunError, CheckpointError (see ``evals.run.restore``), DataError if the data are missing
    or do not fit the run, ValueError if the example does not exist.
    """
    run = restore(run_dir)
    own_data = data is None or data == str(run.recipe.data)
    dataset = load_dataset(run, data_dir) if own_data else load_other(run, str(data), data_dir)
    table = split_of(dataset, split)
    count = table.examples
    if not (is_whole(example) and 0 <= example < count):
        has = f"as the {split} split has {count:,} examples"
        raise ValueError(f"example={example!r}, allowed: 0 to {count - 1}, {has}")
    cfg = run.recipe.model
    batches = evaluation_batches(table, run.recipe.batch_size, run.scaling)
    with contextlib.closing(batches):
        function = jax.jit(make_evaluate(run.module, cfg))
        means = train.engine.loop.evaluate(function, run.module, cfg, run.params, batches)
    subject = Subject(run, dataset, split, table, means, own_data)
    measured = tasks.module_of(run.task).measure(subject)
    return Evaluation(subject, measured, example, data_dir)


def write_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Writes eval.json (or eval-validation.json, ...) to the run folder and returns its content."""
    run = evaluation.run
    arguments = [str(run.folder.path), "--split", evaluation.split]
    if not evaluation.subject.own:
        arguments += ["--data", evaluation.subject.dataset.name]
    record = {
        "format": FORMAT,
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "step": run.step,
        "data": evaluation.subject.dataset.name,
        "split": evaluation.split,
        "count": evaluation.count,
        "metrics": evaluation.metrics,
        "intervals": {name: list(ends) for name, ends in evaluation.intervals.items()},
        "note": evaluation.note,
        "command": "python -m evals " + shlex.join(arguments),
        "hardware": hardware(),
        "date": today(),
        "versions": versions(),
        "training": training(run.folder),
    }
    write_json(evaluation.file, record)
    return record


def training(folder: RunFolder) -> dict[str, Any]:
    """How the run was trained: complete, seconds, hardware, date, versions.

    Seconds are the sum of all stages.  The last three are None if the run is not complete.
    """
    keys = ("hardware", "date", "versions")
    if not folder.summary.exists():
        history = folder.history()
        return {
            "complete": False,
            "seconds": history[-1]["seconds"] if history else 0.0,
        } | dict.fromkeys(keys)
    summaries = [
        read_json(file) for file in (folder.summary, *folder.path.glob("stage-*/summary.json"))
    ]
    seconds = round(sum(summary["seconds"] for summary in summaries), 2)
    return {"complete": True, "seconds": seconds} | {key: summaries[0][key] for key in keys}
