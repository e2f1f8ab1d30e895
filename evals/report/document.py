"""The report of an evaluation: one self-contained HTML file.

A section is a function of the evaluation that returns its HTML, or None if there is nothing to
show.  Each task adds its own sections: see ``evals.base``.
"""

import json
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from evals import tasks
from evals.base import Evaluation, Section
from evals.evaluation import training
from evals.metrics import format_metric, other_task, reached, show_interval
from evals.report import page
from evals.report.page import COLORS, INK, plot, titled
from train.engine.run_folder import write_text
from train.recipe import Target, to_dict


def write_report(evaluation: Evaluation) -> None:
    """Writes report.html (or report-validation.html, ...) to the run folder."""
    write_text(evaluation.report, render(evaluation))


def render(evaluation: Evaluation) -> str:
    """The HTML of the report."""
    parts = (section(evaluation) for section in sections_of(evaluation))
    title = f"{evaluation.run.recipe.name}, {evaluation.split}"
    return page.page(title, (part for part in parts if part))


def headline(evaluation: Evaluation) -> str:
    """The metrics, what they were measured on, and whether the recipe's targets are reached."""
    run, trained = evaluation.run, training(evaluation.run.folder)
    count, intervals = evaluation.items, evaluation.intervals
    tiles = [
        (
            *format_metric(name, value, count),
            show_interval(intervals[name], count) if name in intervals else "",
        )
        for name, value in evaluation.metrics.items()
    ]
    facts = {
        "Recipe": run.recipe.name + (f": {run.recipe.about}" if run.recipe.about else ""),
        "Measured on": f"{evaluation.measured_on} of {evaluation.subject.dataset.name}",
        "Checkpoint": f"step {run.step}"
        + ("" if trained["complete"] else ", the best so far: the run is not complete"),
        "Seed": run.recipe.seed,
        "Training": " ".join(
            [
                _duration(trained["seconds"]),
                *([f"on {trained['hardware']}"] if trained["hardware"] else []),
            ]
        ),
        "Parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(run.params)):,}",
    }
    items = [*facts.items(), *_expected(evaluation)]
    return page.render("headline.html", name=run.recipe.name, tiles=tiles, items=items)


def curves(evaluation: Evaluation) -> str | None:
    """One plot over the epochs for each metric of the training history."""
    history = evaluation.run.folder.history()
    metrics = sorted(
        {name for line in history for name in line} - {"step", "epoch", "split", "seconds"},
        reverse=True,
    )
    if not metrics:
        return None
    plots = [_curve(history, name, evaluation.run.step) for name in metrics]
    return titled("Learning curves", page.render("curves.html", plots=plots))


def configuration(evaluation: Evaluation) -> str:
    """All settings that determine the result."""
    config = evaluation.run.folder.config()
    trained = {
        key: value for key, value in training(evaluation.run.folder).items() if value is not None
    }
    facts = {
        "data_fingerprint": config["data_fingerprint"],
        "trained": trained,
        "versions": config["versions"],
    }
    items = _flat(to_dict(evaluation.run.recipe) | facts)
    return titled("Configuration", page.render("configuration.html", items=items))


def sections_of(evaluation: Evaluation) -> tuple[Section, ...]:
    """The sections of the report: those that all runs share, and those of the run's task."""
    task_sections = tasks.module_of(evaluation.run.task).SECTIONS
    return (headline, curves, *task_sections, configuration)


def _curve(history: list[dict[str, Any]], name: str, best_step: int) -> str:
    """SVG of one metric; the dotted line marks the checkpoint."""
    percent = name == "accuracy"

    def draw(axes: Any) -> None:
        values = []
        for split, color in COLORS.items():
            lines = [line for line in history if line["split"] == split and name in line]
            if lines:
                y = [(100 if percent else 1) * line[name] for line in lines]
                few = "o" if len(lines) < 20 else ""
                axes.plot(
                    [line["epoch"] for line in lines],
                    y,
                    color=color,
                    label=split,
                    linewidth=1.8,
                    marker=few,
                    markersize=4,
                )
                values += y
        best = [line["epoch"] for line in history if line["step"] == best_step]
        if best:
            axes.axvline(best[0], color=INK, linewidth=1, linestyle=":", label="checkpoint")
        _limit(axes, values, percent)
        axes.set_xlabel("epoch")
        axes.legend(fontsize=10)

    return plot(f"{name} %" if percent else name, draw)


def _limit(axes: Any, values: list[float], percent: bool) -> None:
    """Sets the y axis: cuts off the lowest 5 % of many percentages; wide ranges are logarithmic."""
    if percent:
        axes.set_ylim(
            bottom=max(np.quantile(values, 0.05 if len(values) > 40 else 0) - 1, 0), top=100
        )
    elif min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


def _expected(evaluation: Evaluation) -> list[tuple[str, str]]:
    recipe, name = evaluation.run.recipe, evaluation.subject.dataset.name
    other = other_task(recipe)
    if recipe.targets and not evaluation.subject.own:
        return [
            (
                "Expected",
                f"nothing: the targets of {recipe.name} are for its own data, not for {name}",
            )
        ]
    if recipe.targets and other:
        return [
            (
                "Expected",
                f"nothing: the targets of {recipe.name} are for its own data; "
                f"this run has {', '.join(other)}",
            )
        ]
    return [
        ("Expected", f"{target}: {_verdict(target, evaluation.metrics)}")
        for target in recipe.targets
    ]


def _verdict(target: Target, metrics: dict[str, float]) -> str:
    if target.metric not in metrics:
        return "not measured here"
    if target.at_least is None and target.at_most is None:
        return "measured"
    return "reached" if reached(target, metrics[target.metric]) else "missed"


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{index}]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    return f"{minutes // 60} h {minutes % 60} min"
