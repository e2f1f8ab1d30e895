"""Semantic segmentation: overlap of predicted and true labels, and accuracy near boundaries.

*Intersection over union* (IoU) of a class: the number of pixels whose true and predicted labels are
both the class, divided by the number where at least one is, counted over the whole split
(Everingham et al. 2010, section 4.3; Pascal VOC).  The mean is over classes that occur in either.
*Boundary accuracy*: accuracy on pixels within BOUNDARY pixels of another label, along rows and
columns (the trimap of Kohli et al. 2009).
Unlabelled pixels are never counted, but they differ from every label, so they create boundaries.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evals import verbs
from evals.base import Evaluation, Measured, Subject
from evals.files import Failures, readable
from evals.metrics import confusion_matrix, is_whole
from evals.report.maps import feature_maps, first_weights
from evals.report.page import as_bytes, picture, render, strip, titled
from evals.run import Run
from train import tasks
from train.formats import DataError, image_size, read_image
from zoo.base import Model, Params

TASK = tasks.Segmentation
BOUNDARY = 2
NOTE = f"boundary: within {BOUNDARY} pixels of another label"
SHOWN = 3
"""Images in each group of the report."""
VOID = (224, 224, 192)
"""Colour of unlabelled pixels, as in Pascal VOC."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Segmented(Measured):
    """labels: the most probable class of each pixel, uint8 [n, height, width]."""

    labels: np.ndarray


def segment(run: Run, images: np.ndarray) -> np.ndarray:
    """The most probable class of each pixel, uint8 [n, height, width].

    images: raw, [n, height, width, channels].  They may have any size that the model's trunk does
        not reduce to nothing, unless the scaling differs from pixel to pixel.
    Raises DataError for a run of another task, ValueError naming a shape that is not allowed.
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
    """The metrics of the loss, "mean IoU %", "boundary accuracy %", and a label for each pixel."""
    run, table = subject.run, subject.table
    predicted, targets, mask = segment(run, table["inputs"]), table["targets"], table["mask"]
    near = (
        np.concatenate(
            [
                near_boundaries(image_targets[None], image_mask[None])
                for image_targets, image_mask in zip(targets, mask, strict=True)
            ]
        )
        & mask
    )
    named = {"mean IoU %": 100 * mean_overlap(counts(run, targets, predicted, mask))}
    if near.any():
        named["boundary accuracy %"] = 100 * float((predicted == targets)[near].mean())
    return Segmented(metrics=subject.losses | subject.named(named), note=NOTE, labels=predicted)


def counts(run: Run, targets: np.ndarray, found: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Numbers of pixels [true class, predicted class], where ``mask`` is True."""
    classes = max(len(run.task.labels), 1 + int(found.max(initial=0)))
    return confusion_matrix(targets[mask].astype(np.int64), found[mask], classes)


def overlaps(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class from counts [true class, predicted class].

    NaN for a class that occurs in neither.
    """
    both, either = (
        np.diag(matrix).astype(float),
        matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix),
    )
    return np.divide(both, either, out=np.full(len(matrix), np.nan), where=either > 0)


def mean_overlap(matrix: np.ndarray) -> float:
    """Mean intersection over union of the classes that occur; NaN if there are none."""
    ious = overlaps(matrix)
    return float(np.nanmean(ious)) if np.isfinite(ious).any() else float("nan")


def near_boundaries(targets: np.ndarray, mask: np.ndarray, distance: int = BOUNDARY) -> np.ndarray:
    """Which pixels of labels [n, height, width] have another label nearby.

    Nearby means within a square window, ``distance`` pixels in each direction.
    Raises ValueError for a distance below 1.
    """
    if not (is_whole(distance) and distance >= 1):
        raise ValueError(f"distance={distance!r}, allowed: a positive integer")
    labels = np.where(mask, targets.astype(np.int32), -1)
    # A pixel is near a boundary where the minimum and the maximum label of its window differ; both
    # are separable, so they are computed one axis at a time.
    least = most = labels
    for axis in (1, 2):
        pads = [(distance, distance) if dimension == axis else (0, 0) for dimension in range(3)]
        least, most = (
            reduce(
                np.lib.stride_tricks.sliding_window_view(
                    np.pad(values, pads, mode="edge"), 2 * distance + 1, axis
                ),
                axis=-1,
            )
            for reduce, values in ((np.min, least), (np.max, most))
        )
    return least != most


def palette(count: int) -> np.ndarray:
    """The class colours of Pascal VOC, uint8 [count, 3].

    The bits of the class index become, in turn, the high bits of red, green and blue.
    """
    bits = (np.arange(count)[:, None, None] >> np.arange(24).reshape(8, 3)) & 1
    return (bits << np.arange(7, -1, -1)[:, None]).sum(axis=1).astype(np.uint8)


def overlay(pixels: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Overlays an image with the colours of its labels [height, width].

    Bytes [height, width, channels] -> bytes [height, width, 3].  Class 0, the background, leaves
    the image unchanged.  mask: False for unlabelled pixels.
    """
    colours = palette(256)[labels].astype(np.float32)
    shown = np.broadcast_to(pixels[..., :3] if pixels.shape[-1] > 1 else pixels, colours.shape)
    parts = np.where(labels > 0, 0.6, 0)
    if mask is not None:
        colours, parts = np.where(mask[..., None], colours, VOID), np.where(mask, parts, 0.8)
    return np.round(shown + parts[..., None] * (colours - shown)).clip(0, 255).astype(np.uint8)


def shares(run: Run, labels: np.ndarray) -> str:
    """The share of pixels with each label: "background 81.3 %, seven 18.7 %"."""
    numbers, pixels = np.unique(labels, return_counts=True)
    order = np.argsort(-pixels, kind="stable")
    return ", ".join(
        f"{name_of(run, int(numbers[i]))} {100 * pixels[i] / labels.size:.1f} %" for i in order
    )


def name_of(run: Run, label: int) -> str:
    """The name of a class; its index if the data have no name for it."""
    names = run.task.labels
    return names[label] if label < len(names) else str(label)


def segmented(evaluation: Evaluation) -> str | None:
    """IoU of each class; overlays of the chosen images, the best and the worst ones."""
    assert isinstance(evaluation.measured, Segmented)
    predicted = evaluation.measured.labels
    run, table = evaluation.run, evaluation.table
    targets, mask = table["targets"], table["mask"]
    matrix = counts(run, targets, predicted, mask)
    ious = np.array(
        [mean_overlap(counts(run, *one)) for one in zip(targets, predicted, mask, strict=True)]
    )
    order = [
        int(row) for row in np.argsort(ious, kind="stable") if np.isfinite(ious[row])
    ]  # NaNs are last
    chosen = range(evaluation.example, min(evaluation.example + SHOWN, len(predicted)))
    groups = {"From the chosen example on": chosen}
    groups |= {"Best": order[::-1][:SHOWN], "Worst": order[:SHOWN]}

    def shown(row: int) -> dict[str, Any]:
        image = as_bytes(np.asarray(table["inputs"][row]), run.data.input_range)
        figures = (
            (image[..., 0] if image.shape[-1] == 1 else image, "image"),
            (
                overlay(image, targets[row], mask[row]),
                "true: " + shares(run, targets[row][mask[row]]),
            ),
            (overlay(image, predicted[row]), "predicted: " + shares(run, predicted[row])),
        )
        pictures = strip((picture(pixels, text), text) for pixels, text in figures)
        return {"example": row, "iou": f"{100 * ious[row]:.1f}", "strip": pictures}

    body = render(
        "segmentation.html",
        classes=_classes(run, matrix),
        groups={title: map(shown, rows) for title, rows in groups.items()},
    )
    return titled("Segmentation", body)


def _classes(run: Run, matrix: np.ndarray) -> list[dict[str, Any]]:
    """A row of the report's table for each class that occurs."""
    colours, rows = palette(len(matrix)), []
    for label, overlap in enumerate(overlaps(matrix)):
        if np.isnan(overlap):
            continue
        true = int(matrix[label].sum())
        numbers = (
            f"{100 * overlap:.1f}",
            f"{100 * matrix[label, label] / true:.1f}" if true else "",
            f"{100 * true / matrix.sum():.1f}",
        )
        dot = "background:rgb({},{},{})".format(*colours[label]) if label else "border:1px solid"
        rows.append({"name": name_of(run, label), "dot": dot, "numbers": numbers})
    return rows


def segment_files(run: Run, options: verbs.Segment) -> int:
    """Prints the shares of labels in each image, and writes PNGs of them to the run folder."""
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
