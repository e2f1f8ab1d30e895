"""Labels of pixels: how far what a model says of every pixel covers what is there, and where its boundaries are.

*Intersection over union* of a class: the pixels that are of it and are said to be, of those that are of it or are said to be,
counted over a whole split (Everingham et al. 2010, section 4.3; Pascal VOC).  Its mean is over classes that occur in either.
*Boundary accuracy*: of a pixel within BOUNDARY pixels of another label, along rows and columns (Kohli et al. 2009's trimap).
Pixels without a label count nowhere, but they are another label than any that has one.
"""

import dataclasses
import functools
import html
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evals import verbs
from evals.base import Evaluation, Measured, Subject
from evals.files import Failures, readable
from evals.metrics import confusion_matrix, is_whole
from evals.report.maps import feature_maps, first_weights
from evals.report.page import as_bytes, picture, titled
from evals.run import Run
from train import tasks
from train.formats import DataError, image_size, read_image
from zoo.base import Model, Params

TASK = tasks.Segmentation
BOUNDARY = 2
NOTE = f"boundary: within {BOUNDARY} pixels of another label"
SHOWN = 3
"""Images in the report, of the best and of the worst."""
ZOOM = 160
"""Pixels of a picture's side in the report, about."""
VOID = (224, 224, 192)
"""Colour of pixels without a label, which is Pascal VOC's."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Segmented(Measured):
    """labels: the most probable class of each pixel, uint8 [n, height, width]."""

    labels: np.ndarray


def segment(run: Run, images: np.ndarray) -> np.ndarray:
    """The most probable class of each pixel of raw images [n, height, width, channels]: uint8 [n, height, width].

    Images may be of any size that the model's trunk leaves something of, where their scaling does not differ from pixel to pixel.
    Raises DataError for a run of another task, ValueError naming the shape that is not allowed.
    """
    verbs.require(run, "segment", VERBS if isinstance(run.task, TASK) else {})
    if images.ndim != 4 or not images.size:
        raise ValueError(
            f"images: shape {images.shape}, allowed: [n, height, width, channels], at least one"
        )
    if (
        run.scaling is not None
        and np.ndim(run.scaling.shift) > 1
        and images.shape[1:] != run.data.input_shape
    ):
        why = f"preprocess={run.recipe.preprocess!r}, which knows each pixel"
        raise ValueError(
            f"inputs: shape {images.shape[1:]}, allowed for {why}: {run.data.input_shape}"
        )
    return run.map(_label, {"inputs": images}, rows=min(run.recipe.batch_size, len(images)))


@functools.partial(jax.jit, static_argnums=0)
def _label(module: Model, cfg: Any, params: Params, batch: Any) -> Any:
    return jnp.argmax(module.apply(cfg, params, batch["inputs"]), axis=-1).astype(jnp.uint8)


def measure(subject: Subject) -> Segmented:
    """The metrics of the loss, "mean IoU %" and "boundary accuracy %"; a label for each pixel."""
    run, table = subject.run, subject.table
    found, targets, mask = segment(run, table["inputs"]), table["targets"], table["mask"]
    near = (
        np.concatenate(
            [
                near_boundaries(each[None], there[None])
                for each, there in zip(targets, mask, strict=True)
            ]
        )
        & mask
    )
    named = {"mean IoU %": 100 * mean_overlap(counts(run, targets, found, mask))}
    if near.any():
        named["boundary accuracy %"] = 100 * float((found == targets)[near].mean())
    return Segmented(metrics=subject.losses | subject.named(named), note=NOTE, labels=found)


def counts(run: Run, targets: np.ndarray, found: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels [true class, class said], of those that ``mask`` holds."""
    classes = max(len(run.task.labels), 1 + int(found.max(initial=0)))
    return confusion_matrix(targets[mask].astype(np.int64), found[mask], classes)


def overlaps(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class from counts [true class, class said]; NaN of one that occurs in neither."""
    both, either = (
        np.diag(matrix).astype(float),
        matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix),
    )
    return np.divide(both, either, out=np.full(len(matrix), np.nan), where=either > 0)


def mean_overlap(matrix: np.ndarray) -> float:
    """Mean intersection over union of the classes that occur; NaN if none does."""
    found = overlaps(matrix)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def near_boundaries(targets: np.ndarray, mask: np.ndarray, distance: int = BOUNDARY) -> np.ndarray:
    """Which pixels of labels [n, height, width] have another label within this distance, along rows and columns at once.

    Raises ValueError for a distance below 1, within which there is no other pixel.
    """
    if not (is_whole(distance) and distance >= 1):
        raise ValueError(f"distance={distance!r}, allowed: a positive integer")
    labels = np.where(mask, targets.astype(np.int32), -1)
    least = most = labels
    for axis in (1, 2):
        pads = [(distance, distance) if each == axis else (0, 0) for each in range(3)]
        least, most = (
            reduce(
                np.lib.stride_tricks.sliding_window_view(
                    np.pad(each, pads, mode="edge"), 2 * distance + 1, axis
                ),
                axis=-1,
            )
            for reduce, each in ((np.min, least), (np.max, most))
        )
    return least != most


def palette(count: int) -> np.ndarray:
    """Pascal VOC's colours of classes, uint8 [count, 3]: bits of the number, in turn, are high bits of red, green and blue."""
    bits = (np.arange(count)[:, None, None] >> np.arange(24).reshape(8, 3)) & 1
    return (bits << np.arange(7, -1, -1)[:, None]).sum(axis=1).astype(np.uint8)


def overlay(pixels: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Bytes [height, width, channels] under the colours of labels [height, width]: bytes [height, width, 3].

    Class 0, the background, shows the image as it is.  mask: False where there is no label.
    """
    colours = palette(256)[labels].astype(np.float32)
    shown = np.broadcast_to(pixels[..., :3] if pixels.shape[-1] > 1 else pixels, colours.shape)
    parts = np.where(labels > 0, 0.6, 0)
    if mask is not None:
        colours, parts = np.where(mask[..., None], colours, VOID), np.where(mask, parts, 0.8)
    return np.round(shown + parts[..., None] * (colours - shown)).clip(0, 255).astype(np.uint8)


def shares(run: Run, labels: np.ndarray) -> str:
    """What is in an image, by how many pixels have each label: "background 81.3 %, seven 18.7 %"."""
    numbers, pixels = np.unique(labels, return_counts=True)
    order = np.argsort(-pixels, kind="stable")
    return ", ".join(
        f"{name_of(run, int(numbers[i]))} {100 * pixels[i] / labels.size:.1f} %" for i in order
    )


def name_of(run: Run, label: int) -> str:
    """Of a class; its number where the data name fewer than the model has."""
    names = run.task.labels
    return names[label] if label < len(names) else str(label)


def segmented(evaluation: Evaluation) -> str | None:
    """Intersection over union of each class; the chosen images, the best and the worst, under their labels."""
    assert isinstance(evaluation.measured, Segmented)
    found = evaluation.measured.labels
    run, table = evaluation.run, evaluation.table
    targets, mask = table["targets"], table["mask"]
    matrix = counts(run, targets, found, mask)
    each = np.array(
        [mean_overlap(counts(run, *one)) for one in zip(targets, found, mask, strict=True)]
    )
    order = [
        int(row) for row in np.argsort(each, kind="stable") if np.isfinite(each[row])
    ]  # NaNs are last
    chosen = range(evaluation.example, min(evaluation.example + SHOWN, len(found)))
    parts = [_classes(run, matrix)]
    for title, rows in (
        ("From the chosen example on", chosen),
        ("Best", order[::-1][:SHOWN]),
        ("Worst", order[:SHOWN]),
    ):
        parts.append(f"<h3>{title}</h3>")
        for row in rows:
            image = as_bytes(np.asarray(table["inputs"][row]), run.data.input_range)
            figures = (
                (image[..., 0] if image.shape[-1] == 1 else image, "image"),
                (
                    overlay(image, targets[row], mask[row]),
                    "true: " + shares(run, targets[row][mask[row]]),
                ),
                (overlay(image, found[row]), "said: " + shares(run, found[row])),
            )
            note = f'<p class="note">example {row}, mean IoU of its classes {100 * each[row]:.1f} %</p>'
            parts.append(note + strip(figures))
    intro = "Intersection over union counts, over the whole split, the pixels that are of a class and are said to be, of those that "
    intro += "are of it or are said to be.  <code>--example N</code> chooses others, <code>zoo-evals segment</code> labels your own."
    return titled("Labels of pixels", f"<p>{intro}</p>{''.join(parts)}")


def strip(figures: Sequence[tuple[np.ndarray, str]]) -> str:
    """Pictures side by side, each with what is below it."""
    shown = (
        f"<figure>{picture(each, text)}<figcaption>{html.escape(text)}</figcaption></figure>"
        for each, text in figures
    )
    return f'<div class="strips" style="--width: {ZOOM}px">{"".join(shown)}</div>'


def _classes(run: Run, matrix: np.ndarray) -> str:
    colours = palette(len(matrix))
    head = "<tr><th>class</th><th>IoU %</th><th>of its pixels found %</th><th>of all pixels %</th></tr>"
    lines = [head]
    for label, overlap in enumerate(overlaps(matrix)):
        if np.isnan(overlap):
            continue
        true = int(matrix[label].sum())
        recall = f"{100 * matrix[label, label] / true:.1f}" if true else ""
        dot = "background:rgb({},{},{})".format(*colours[label]) if label else "border:1px solid"
        name = f'<span class="legend"><span><i style="{dot}"></i>{html.escape(name_of(run, label))}</span></span>'
        cells = "".join(
            f"<td>{cell}</td>"
            for cell in (f"{100 * overlap:.1f}", recall, f"{100 * true / matrix.sum():.1f}")
        )
        lines.append(f"<tr><th>{name}</th>{cells}</tr>")
    return f'<div class="scroll"><table class="matrix">{"".join(lines)}</table></div>'


def segment_files(run: Run, options: verbs.Segment) -> int:
    """Prints what each image shows, and writes PNGs of its labels into the run's folder."""
    from PIL import Image

    assert run.data.input_shape is not None
    channels, failures = run.data.input_shape[-1], Failures()
    folder, done = run.folder.path / "segments", False

    def labelled(numbered: tuple[int, pathlib.Path]) -> tuple[np.ndarray, np.ndarray]:
        _, file = numbered
        image = read_image(file, (*image_size(file), channels))
        image = 255 - image if options.invert else image
        try:
            return image, segment(run, image[None])[0]
        except ValueError as error:  # the model refuses the size
            raise DataError(f"{file}: {error}") from error

    files = enumerate(options.files)
    for (number, file), (image, labels) in readable(files, labelled, failures):
        folder.mkdir(exist_ok=True)
        stem, done = f"{number}-{file.stem}", True
        shown = overlay(as_bytes(image, run.data.input_range), labels)
        Image.fromarray(shown).save(folder / f"{stem}.png")
        alone = Image.fromarray(labels, "P")
        alone.putpalette(np.ravel(palette(256)).tolist())
        alone.save(folder / f"{stem}-labels.png")
        print(f"{file}  {shares(run, labels)}")
    if done:
        print(f"overlays {folder}")
    return int(failures.any)


SECTIONS = (segmented, feature_maps, first_weights)
VERBS = {"segment": segment_files}
