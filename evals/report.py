"""The report of an evaluation: one self-contained HTML file.

A section is a function of the evaluation that returns its HTML, or None where it does not apply.  A new kind of model brings more
sections; none of them asks which model it is.
"""

import html
import importlib.util
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from evals.captions import captioned
from evals.checkpoints import free_energies, histograms
from evals.evaluation import (
    Evaluation,
    class_names,
    confusion_matrix,
    format_metric,
    other_task,
    reached,
    show_interval,
    training,
)
from evals.gradients import through_time
from evals.language import passage, samples
from evals.maps import feature_maps, first_weights
from evals.page import COLORS, INK, PAGE, STYLE, as_images, listing, picture, plot, titled, unbroken
from evals.pixels import segmented
from evals.shifts import shifts
from evals.translation import alignments, lengths, phrases, translations
from evals.unsupervised import codes, fantasies, reconstructions
from evals.words import analogies, neighbours, word_map
from train.recipe import Target, to_dict
from train.run_folder import write_text

MISTAKES = 24
MATRIX_CLASSES = 20
"""More classes than this are too many for a matrix on a screen: the most frequent confusions are listed instead."""


def write_report(evaluation: Evaluation) -> None:
    """Writes report.html into the run folder (report-validation.html for another split)."""
    write_text(evaluation.report, render(evaluation))


def render(evaluation: Evaluation) -> str:
    """The whole page."""
    sections = "\n".join(part for part in (section(evaluation) for section in SECTIONS) if part)
    title = html.escape(f"{evaluation.run.recipe.name}, {evaluation.split}")
    return PAGE.replace("{title}", title).replace("{style}", STYLE).replace("{sections}", sections)


def headline(evaluation: Evaluation) -> str:
    """What was measured on what, and whether the recipe's targets are reached, where they are of the same task."""
    run, trained = evaluation.run, training(evaluation.run.folder)
    intervals = evaluation.intervals
    tiles = [_tile(name, value, evaluation.items, intervals.get(name)) for name, value in evaluation.metrics.items()]
    facts = {
        "Recipe": run.recipe.name + (f": {run.recipe.about}" if run.recipe.about else ""),
        "Measured on": f"{evaluation.measured_on} of {run.data.name}",
        "Checkpoint": f"step {run.step}" + ("" if trained["complete"] else ", the best so far: the run is not complete"),
        "Seed": run.recipe.seed,
        "Training": " ".join([_duration(trained["seconds"]), *([f"on {trained['hardware']}"] if trained["hardware"] else [])]),
        "Parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(run.params)):,}",
    }
    rows = listing([*facts.items(), *_expected(evaluation)])
    return f'<h1>{html.escape(run.recipe.name)}</h1><div class="tiles">{"".join(tiles)}</div>{rows}'


def curves(evaluation: Evaluation) -> str | None:
    """Each metric of the training history over the epochs, one plot each."""
    history = evaluation.run.folder.history()
    metrics = sorted({name for line in history for name in line} - {"step", "epoch", "split", "seconds"}, reverse=True)
    if not metrics:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        return titled("Learning curves", "<p>Drawn with matplotlib: <code>pip install 'purezoo[evals]'</code></p>")
    plots = "".join(f"<figure>{_curve(history, name, evaluation.run.step)}</figure>" for name in metrics)
    note = "Training values are means over the steps since the point before, with dropout and the like at work."
    alone = ' style="max-width: 32rem"' if len(metrics) == 1 else ""
    return titled("Learning curves", f'<div class="plots"{alone}>{plots}</div><p class="note">{note}</p>')


def confusions(evaluation: Evaluation) -> str | None:
    """True against predicted classes, of classifiers."""
    predictions = evaluation.predictions
    if predictions is None:
        return None
    names = class_names(evaluation.run, predictions.outputs.shape[1])
    counts = confusion_matrix(predictions.targets, predictions.classes, len(names))
    return titled("Confusion matrix", _matrix(counts, names) if len(names) <= MATRIX_CLASSES else _pairs(counts, names))


def mistakes(evaluation: Evaluation) -> str | None:
    """The wrongly classified examples with the highest loss."""
    predictions = evaluation.predictions
    if predictions is None:
        return None
    names = class_names(evaluation.run, predictions.outputs.shape[1])
    wrong = np.flatnonzero(predictions.classes != predictions.targets)
    worst = wrong[np.argsort(-predictions.losses[wrong], kind="stable")][:MISTAKES]
    inputs = evaluation.table["inputs"]
    images = as_images(inputs[worst], evaluation.run.data.input_range) if hasattr(inputs, "shape") else None
    cards = []
    for number, index in enumerate(worst):
        image = picture(images[number], f"example {index}") if images is not None else ""
        said, true = predictions.classes[index], predictions.targets[index]
        lines = [
            f"said <b>{html.escape(names[said])}</b> {unbroken(predictions.outputs[index, said])}",
            f"true <b>{html.escape(names[true])}</b> {unbroken(predictions.outputs[index, true])}",
            f'<span class="note">loss {predictions.losses[index]:.2f}<br>example {index}</span>',
        ]
        cards.append(f"<figure>{image}<figcaption>{'<br>'.join(lines)}</figcaption></figure>")
    intro = f"{len(wrong):,} of {evaluation.count:,} examples are labelled wrongly"
    intro += f"; these {len(worst)} have the highest loss." if len(worst) < len(wrong) else "." if len(wrong) else ": none."
    return titled("Worst mistakes", f'<p>{intro}</p><div class="cards">{"".join(cards)}</div>')


def configuration(evaluation: Evaluation) -> str:
    """Everything that decided the result."""
    config = evaluation.run.folder.config()
    trained = {key: value for key, value in training(evaluation.run.folder).items() if value is not None}
    facts = {"data_fingerprint": config["data_fingerprint"], "trained": trained, "versions": config["versions"]}
    rows = listing(_flat(to_dict(evaluation.run.recipe) | facts))
    return titled("Configuration", f"<details open><summary>config.json</summary>{rows}</details>")


SECTIONS: tuple[Callable[[Evaluation], str | None], ...] = (
    headline,
    curves,
    confusions,
    mistakes,
    reconstructions,
    fantasies,
    codes,
    samples,
    passage,
    neighbours,
    analogies,
    word_map,
    translations,
    alignments,
    lengths,
    phrases,
    captioned,
    segmented,
    feature_maps,
    first_weights,
    histograms,
    free_energies,
    shifts,
    through_time,
    configuration,
)


def _curve(history: list[dict[str, Any]], name: str, best_step: int) -> str:
    """One metric as SVG; the dotted line marks the checkpoint."""
    percent = name == "accuracy"

    def draw(axes: Any) -> None:
        values = []
        for split, color in COLORS.items():
            lines = [line for line in history if line["split"] == split and name in line]
            if lines:
                y = [(100 if percent else 1) * line[name] for line in lines]
                few = "o" if len(lines) < 20 else ""
                axes.plot([line["epoch"] for line in lines], y, color=color, label=split, linewidth=1.8, marker=few, markersize=4)
                values += y
        best = [line["epoch"] for line in history if line["step"] == best_step]
        if best:
            axes.axvline(best[0], color=INK, linewidth=1, linestyle=":", label="checkpoint")
        _limit(axes, values, percent)
        axes.set_xlabel("epoch")
        axes.legend(fontsize=10)

    return plot(f"{name} %" if percent else name, draw)


def _limit(axes: Any, values: list[float], percent: bool) -> None:
    """Of many per cents the lowest twentieth is cut off; what falls by more than a factor of ten is logarithmic."""
    if percent:
        axes.set_ylim(bottom=max(np.quantile(values, 0.05 if len(values) > 40 else 0) - 1, 0), top=100)
    elif min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


def _matrix(counts: np.ndarray, names: list[str]) -> str:
    cells = [f"<tr><th></th>{''.join(f'<th>{html.escape(name)}</th>' for name in names)}<th>error %</th></tr>"]
    for true, row in enumerate(counts):
        total = max(int(row.sum()), 1)
        line = f"<th>{html.escape(names[true])}</th>"
        for predicted, count in enumerate(row):
            # A single mistake must be visible beside hundreds of hits: the square root spreads the small shares.
            shade = f"{math.sqrt(count / total) * 0.75:.2f}" if count else "0"
            kind = "hit" if true == predicted else "miss"
            line += f'<td class="{kind}" style="--shade:{shade}">{count or ""}</td>'
        cells.append(f'<tr>{line}<td class="note">{100 - 100 * row[true] / total:.1f}</td></tr>')
    caption = "<caption>rows: true class; columns: predicted class</caption>"
    return f'<div class="scroll"><table class="matrix">{caption}{"".join(cells)}</table></div>'


def _pairs(counts: np.ndarray, names: list[str]) -> str:
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = [index for index in np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES] if wrong.flat[index]]
    pairs = [divmod(int(index), len(counts)) for index in order]
    return "<p>The most frequent confusions (true, predicted):</p>" + listing(
        (f"{names[true]}, {names[predicted]}", f"{wrong[true, predicted]} of {counts[true].sum()}") for true, predicted in pairs
    )


def _expected(evaluation: Evaluation) -> list[tuple[str, str]]:
    recipe = evaluation.run.recipe
    other = other_task(recipe)
    if recipe.targets and other:
        return [("Expected", f"nothing: the targets of {recipe.name} are of its own data; this run has {', '.join(other)}")]
    return [("Expected", f"{target}: {_verdict(target, evaluation.metrics)}") for target in recipe.targets]


def _verdict(target: Target, metrics: dict[str, float]) -> str:
    if target.metric not in metrics:
        return "not measured here"
    if target.at_least is None and target.at_most is None:
        return "measured"
    return "reached" if reached(target, metrics[target.metric]) else "missed"


def _tile(name: str, value: float, count: int, interval: tuple[float, float] | None) -> str:
    label, number, unit = format_metric(name, value, count)
    note = "" if interval is None else f'<span class="note">{show_interval(interval, count)}</span>'
    return f"<div><span>{html.escape(label)}</span><b>{number}<small> {html.escape(unit)}</small></b>{note}</div>"


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
