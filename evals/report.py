"""The report of an evaluation: one self-contained HTML file.

A section is a function of the evaluation that returns its HTML, or None where it does not apply.  A new kind of model brings more
sections; none of them asks which model it is.
"""

import base64
import html
import importlib.util
import io
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from evals.evaluation import Evaluation, class_names, confusion_matrix, format_metric, reached, training
from evals.prediction import show_output
from train.recipe import Target, to_dict
from train.run_folder import write_text

MISTAKES = 24
UNITS_SHOWN = 64
MATRIX_CLASSES = 20
"""More classes than this are too many for a matrix on a screen: the most frequent confusions are listed instead."""
COLORS = {"train": "#4c8dff", "validation": "#e8743b"}
INK = "#010203"
"""What matplotlib draws in this colour takes the colour of the text, light or dark."""


def write_report(evaluation: Evaluation) -> None:
    """Writes report.html into the run folder (report-validation.html for another split)."""
    write_text(evaluation.report, render(evaluation))


def render(evaluation: Evaluation) -> str:
    """The whole page."""
    sections = "\n".join(part for part in (section(evaluation) for section in SECTIONS) if part)
    title = html.escape(f"{evaluation.run.recipe.name}, {evaluation.split}")
    return _PAGE.replace("{title}", title).replace("{style}", _STYLE).replace("{sections}", sections)


def headline(evaluation: Evaluation) -> str:
    """What was measured on what, and whether the recipe's targets are reached."""
    run, trained = evaluation.run, training(evaluation.run.folder)
    tiles = [_tile(name, value, evaluation.count) for name, value in evaluation.metrics.items()]
    facts = {
        "Recipe": run.recipe.name + (f": {run.recipe.about}" if run.recipe.about else ""),
        "Measured on": f"{evaluation.count:,} {evaluation.split} examples of {run.data.name}",
        "Checkpoint": f"step {run.step}" + ("" if trained["complete"] else ", the best so far: the run is not complete"),
        "Seed": run.recipe.seed,
        "Training": " ".join([_duration(trained["seconds"]), *([f"on {trained['hardware']}"] if trained["hardware"] else [])]),
        "Parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(run.params)):,}",
    }
    targets = [("Expected", f"{target}: {_verdict(target, evaluation.metrics)}") for target in run.recipe.targets]
    rows = _rows([*facts.items(), *targets])
    return f'<h1>{html.escape(run.recipe.name)}</h1><div class="tiles">{"".join(tiles)}</div>{rows}'


def curves(evaluation: Evaluation) -> str | None:
    """Each metric of the training history over the epochs, one plot each."""
    history = evaluation.run.folder.history()
    metrics = sorted({name for line in history for name in line} - {"step", "epoch", "split", "seconds"}, reverse=True)
    if not metrics:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        return _section("Learning curves", "<p>Drawn with matplotlib: <code>pip install 'purezoo[evals]'</code></p>")
    plots = "".join(f"<figure>{_curve(history, name, evaluation.run.step)}</figure>" for name in metrics)
    note = "Training values are means over the steps since the point before, with dropout and the like at work."
    return _section("Learning curves", f'<div class="plots">{plots}</div><p class="note">{note}</p>')


def confusions(evaluation: Evaluation) -> str | None:
    """True against predicted classes, of classifiers."""
    predictions = evaluation.predictions
    if predictions is None:
        return None
    names = class_names(evaluation.run, predictions.outputs.shape[1])
    counts = confusion_matrix(predictions.targets, predictions.classes, len(names))
    return _section("Confusion matrix", _matrix(counts, names) if len(names) <= MATRIX_CLASSES else _pairs(counts, names))


def mistakes(evaluation: Evaluation) -> str | None:
    """The wrongly classified examples with the highest loss."""
    predictions = evaluation.predictions
    if predictions is None:
        return None
    names = class_names(evaluation.run, predictions.outputs.shape[1])
    wrong = np.flatnonzero(predictions.classes != predictions.targets)
    worst = wrong[np.argsort(-predictions.losses[wrong], kind="stable")][:MISTAKES]
    images = as_images(evaluation.table["inputs"], evaluation.run.data.input_range)
    cards = []
    for index in worst:
        picture = _picture(images[index], f"example {index}") if images is not None else ""
        said, true = predictions.classes[index], predictions.targets[index]
        lines = [
            f"said <b>{html.escape(names[said])}</b> {_unbroken(predictions.outputs[index, said])}",
            f"true <b>{html.escape(names[true])}</b> {_unbroken(predictions.outputs[index, true])}",
            f'<span class="note">loss {predictions.losses[index]:.2f}<br>example {index}</span>',
        ]
        cards.append(f"<figure>{picture}<figcaption>{'<br>'.join(lines)}</figcaption></figure>")
    intro = f"{len(wrong):,} of {evaluation.count:,} examples are labelled wrongly"
    intro += f"; these {len(worst)} have the highest loss." if len(worst) < len(wrong) else "." if len(wrong) else ": none."
    return _section("Worst mistakes", f'<p>{intro}</p><div class="cards">{"".join(cards)}</div>')


def first_weights(evaluation: Evaluation) -> str | None:
    """Kernels of units that see the whole image, as images."""
    shape = evaluation.run.data.input_shape
    if shape is None or not _is_image_shape(shape):
        return None
    leaves = jax.tree_util.tree_leaves_with_path(evaluation.run.params)
    found = [(path, leaf) for path, leaf in leaves if leaf.ndim == 2 and leaf.shape[0] == math.prod(shape)]
    if not found:
        return None
    path, leaf = found[0]
    kernel = np.asarray(leaf, np.float32)
    # Units that never learned look like noise: the largest come first.
    shown = np.argsort(-np.square(kernel).sum(axis=0), kind="stable")[:UNITS_SHOWN]
    pictures = []
    for unit in shown:
        weights = kernel[:, unit].reshape(shape)
        image = as_images(weights[None], (-float(abs(weights).max()), float(abs(weights).max())))
        assert image is not None
        pictures.append(_picture(image[0], f"unit {unit}"))
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    which = f"the {len(shown)} largest of {kernel.shape[1]}" if len(shown) < kernel.shape[1] else f"all {kernel.shape[1]}"
    intro = f"<p>Units of <code>{html.escape(name)}</code>, {which}: white excites, black inhibits, grey is zero.</p>"
    return _section("First-layer weights", f'{intro}<div class="weights">{"".join(pictures)}</div>')


def configuration(evaluation: Evaluation) -> str:
    """Everything that decided the result."""
    config = evaluation.run.folder.config()
    trained = {key: value for key, value in training(evaluation.run.folder).items() if value is not None}
    facts = {"data_fingerprint": config["data_fingerprint"], "trained": trained, "versions": config["versions"]}
    rows = _rows(_flat(to_dict(evaluation.run.recipe) | facts))
    return _section("Configuration", f"<details open><summary>config.json</summary>{rows}</details>")


SECTIONS: tuple[Callable[[Evaluation], str | None], ...] = (headline, curves, confusions, mistakes, first_weights, configuration)


def as_images(inputs: Any, input_range: tuple[float, float]) -> np.ndarray | None:
    """Raw inputs [n, height, width(, channels)] -> uint8 [n, height, width] or [n, height, width, 3 or 4]; None if no images.

    Without a channel axis only bytes are images: other matrices are as likely sequences.
    """
    if not isinstance(inputs, np.ndarray):
        return None
    if not _is_image_shape(inputs.shape[1:]) and not (inputs.ndim == 3 and inputs.dtype == np.uint8):
        return None
    low, high = input_range
    pixels = (inputs.astype(np.float32) - low) * (255 / (high - low) if high > low else 0)
    pixels = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return pixels[..., 0] if pixels.ndim == 4 and pixels.shape[-1] == 1 else pixels


def _is_image_shape(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[-1] in (1, 3, 4)


def _picture(pixels: np.ndarray, alt: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" title="{html.escape(alt)}">'


def _curve(history: list[dict[str, Any]], name: str, best_step: int) -> str:
    """One metric as SVG; the dotted line marks the checkpoint."""
    import matplotlib
    from matplotlib.figure import Figure

    percent = name == "accuracy"
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 11, "legend.frameon": False}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK)
    buffer = io.StringIO()
    with matplotlib.rc_context(style):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.add_subplot()
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
        axes.set_title(f"{name} %" if percent else name, loc="left", fontsize=12)
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=10)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


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
    return "<p>The most frequent confusions (true, predicted):</p>" + _rows(
        (f"{names[true]}, {names[predicted]}", f"{wrong[true, predicted]} of {counts[true].sum()}") for true, predicted in pairs
    )


def _verdict(target: Target, metrics: dict[str, float]) -> str:
    if target.metric not in metrics:
        return "not measured here"
    return "reached" if reached(target, metrics[target.metric]) else "missed"


def _tile(name: str, value: float, count: int) -> str:
    label, number, unit = format_metric(name, value, count)
    # The standard error of a share says how much of it another test set of this size would change.
    spread = 100 * math.sqrt(value / 100 * (1 - value / 100) / count) if unit == "%" and 0 <= value <= 100 else None
    note = f'<span class="note">&plusmn; {spread:.2f} (standard error)</span>' if spread is not None else ""
    return f"<div><span>{html.escape(label)}</span><b>{number}<small> {html.escape(unit)}</small></b>{note}</div>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _unbroken(output: Any) -> str:
    return show_output(float(output)).replace(" ", "&nbsp;")


def _rows(items: Iterable[tuple[Any, Any]]) -> str:
    lines = "".join(f"<tr><th>{html.escape(str(key))}</th><td>{html.escape(str(value))}</td></tr>" for key, value in items)
    return f'<table class="facts">{lines}</table>'


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


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #626a73; --page: #fff; --box: #f3f5f7; --line: #dde1e5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #9aa3ad; --page: #16191d; --box: #20252b; --line: #343b43; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: .5rem 0 1rem; } h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin-bottom: 1rem; }
.tiles div { background: var(--box); border-radius: .5rem; padding: .75rem 1rem; }
.tiles div > span { color: var(--soft); font-size: .875rem; } .tiles b { display: block; font-size: 1.75rem; line-height: 1.3; }
small { font-weight: normal; font-size: 1rem; } .note { color: var(--soft); font-size: .8125rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
.facts { width: 100%; } .facts th { text-align: left; font-weight: normal; color: var(--soft); width: 34%; }
.facts th, .facts td { padding: .25rem .75rem .25rem 0; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
figure { margin: 0; } svg { width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif !important; }
.matrix th { font-weight: normal; color: var(--soft); padding: .25rem .5rem; }
.matrix td { text-align: center; padding: .25rem; min-width: 2.4rem; border: 1px solid var(--line); }
.matrix td.note { border: 0; padding-left: .75rem; }
.matrix caption { text-align: left; color: var(--soft); font-size: .8125rem; }
.hit { background: rgb(76 141 255 / var(--shade)); } .miss { background: rgb(232 116 59 / var(--shade)); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(8rem, 30%), 1fr)); gap: .75rem; }
.cards figure { background: var(--box); border-radius: .5rem; padding: .5rem; font-size: .8125rem; }
.weights { display: grid; grid-template-columns: repeat(auto-fill, minmax(3.5rem, 1fr)); gap: .25rem; }
img { width: 100%; image-rendering: pixelated; border-radius: .25rem; display: block; }
.cards img { margin-bottom: .25rem; } summary { cursor: pointer; color: var(--soft); }
@media (max-width: 32rem) { .matrix { font-size: .6875rem; } .matrix td, .matrix th { min-width: 0; padding: .25rem .2rem; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{sections}
</body>
</html>
"""
