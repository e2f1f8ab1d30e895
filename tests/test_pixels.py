"""Labels of pixels, measured and shown, of a model that has only begun to learn."""

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

import evals
import evals.__main__
import evals.report.document
import train
from evals.tasks import segmentation as pixels
from train import tasks
from train.batches import fit_scaling
from train.data.pixels import labelled
from train.formats import DataError
from train.recipes.pixels import RECIPES
from zoo import convnet, fcn

TRUNK = convnet.Config(
    shape=(16, 16, 1),
    stages=(convnet.Stage(features=6, kernel=(4,), stride=(4,), padding="valid"),),
    dense=(8,),
)


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    recipe = train.Recipe(
        name="tiny-pixels",
        model=fcn.Config(shape=(48, 48, 1), trunk=TRUNK, classes=11),
        data="digit_pixels:60",
        optimizer=train.Optimizer(name="adam", learning_rate=0.02),
        batch_size=20,
        steps=40,
        eval_every=100,
        select_by="loss",
        select_mode="min",
    )
    folder = tmp_path_factory.mktemp("pixels") / "run"
    train.run(recipe, folder, quiet=True)
    return folder


@pytest.fixture(scope="module", name="evaluation")
def _evaluation(folder):
    return evals.evaluate(folder, "validation")


def _random(seed, shape=(3, 9, 11), classes=4):
    """Labels in blocks, mostly agreeing predictions, and the mask of labelled pixels."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, shape).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    found = np.where(
        rng.random(targets.shape) < 0.7, targets, rng.integers(0, classes, targets.shape)
    ).astype(np.uint8)
    return targets, found, rng.random(targets.shape) < 0.9


def _jaccard(targets, found, labels):
    score: Any = metrics.jaccard_score
    return score(targets, found, labels=labels, average=None, zero_division=0)


def test_metrics_are_those_of_the_labels(evaluation):
    """By sklearn, and a loop over pixels."""
    table, found = evaluation.table, evaluation.measured.labels
    assert found.shape == table["targets"].shape
    targets, measured = table["targets"], evaluation.metrics
    assert measured["validation accuracy %"] == pytest.approx(
        100 * (found == targets).mean(), rel=1e-4
    )
    occur = np.union1d(targets, found)
    expected = _jaccard(targets.ravel(), found.ravel(), occur).mean()
    assert measured["validation mean IoU %"] == pytest.approx(100 * expected)
    near = pixels.near_boundaries(targets, table["mask"])
    assert measured["validation boundary accuracy %"] == pytest.approx(
        100 * (found == targets)[near].mean()
    )
    assert measured["validation loss nats"] < np.log(11) / 2
    assert measured["validation accuracy %"] > measured["validation boundary accuracy %"]


def test_iou_equals_sklearn_and_ignores_unlabelled_pixels(evaluation):
    targets, found, mask = _random(0)
    matrix = pixels.counts(evaluation.run, targets, found, mask)
    assert matrix.shape == (11, 11)
    expected = _jaccard(targets[mask], found[mask], range(4))
    np.testing.assert_allclose(pixels.overlaps(matrix)[:4], expected)
    assert np.isnan(pixels.overlaps(matrix)[4:]).all()
    assert pixels.mean_overlap(matrix) == pytest.approx(expected.mean())
    other = np.where(mask, found, 9).astype(np.uint8)
    np.testing.assert_array_equal(pixels.counts(evaluation.run, targets, other, mask), matrix)
    # A predicted class that does not occur has none.
    found[0, 0, 0], mask[0, 0, 0] = 7, True
    assert pixels.overlaps(pixels.counts(evaluation.run, targets, found, mask))[7] == 0
    assert np.isnan(pixels.mean_overlap(np.zeros((2, 2))))


@pytest.mark.parametrize("distance", [1, 2])
def test_boundary_pixels_are_near_another_label(distance):
    targets, _, mask = _random(1, (2, 6, 5), 2)
    mask[0, 3:, 3:] = True
    expected = np.zeros(mask.shape, bool)
    labels = np.where(mask, targets.astype(int), 99)
    for image, row, column in np.ndindex(*mask.shape):
        around = itertools.product(
            range(row - distance, row + distance + 1),
            range(column - distance, column + distance + 1),
        )
        inside = [
            place
            for place in around
            if 0 <= place[0] < mask.shape[1] and 0 <= place[1] < mask.shape[2]
        ]
        expected[image, row, column] = any(
            labels[image][place] != labels[image, row, column] for place in inside
        )
    np.testing.assert_array_equal(pixels.near_boundaries(targets, mask, distance), expected)
    assert not pixels.near_boundaries(np.ones((1, 5, 5), np.uint8), np.ones((1, 5, 5), bool)).any()


def test_colours_equal_the_pascal_voc_palette():
    colours = [tuple(colour) for colour in pixels.palette(256).tolist()]
    assert colours[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert (colours[15], colours[20], colours[255]) == (
        (192, 128, 128),
        (0, 64, 128),
        (224, 224, 192),
    )
    assert colours[255] == pixels.VOID
    assert len(set(colours)) == 256


def test_overlay_shows_the_image_at_background():
    image = np.full((2, 3, 1), 100, np.uint8)
    labels, mask = (
        np.array([[0, 1, 0], [2, 0, 1]]),
        np.array([[True, True, False], [True, True, True]]),
    )
    shown = pixels.overlay(image, labels, mask)
    assert shown.shape == (2, 3, 3)
    assert (shown[0, 0] == 100).all()
    assert shown[0, 1].tolist() == [round(0.4 * 100 + 0.6 * 128), 40, 40]
    assert (shown[0, 2] > 170).all()
    assert (pixels.overlay(np.repeat(image, 3, axis=2), labels, mask) == shown).all()


def test_the_report_shows_classes_and_overlays(evaluation):
    shown = pixels.segmented(evaluation)
    assert shown is not None
    assert shown.count("<img") == 3 * 3 * pixels.SHOWN
    assert "<h3>Worst</h3>" in shown
    assert "background" in shown
    table = evaluation.table
    overlap = pixels.overlaps(
        pixels.counts(evaluation.run, table["targets"], evaluation.measured.labels, table["mask"])
    )
    assert f"<td>{100 * overlap[0]:.1f}</td>" in shown
    evals.report.document.write_report(evaluation)
    assert "<h2>Segmentation</h2>" in evaluation.report.read_text()


def test_the_command_labels_images_of_any_size(folder, tmp_path, capsys):
    none = str(tmp_path / "none.png")
    assert evals.__main__.main(["segment", str(folder), none]) == 1
    assert none in capsys.readouterr().err
    assert not (folder / "segments").exists()
    label: Any = pixels._label
    label.clear_cache()
    files = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    sizes = [(70, 40), (33, 52), (70, 40)]
    for file, size in zip(files, sizes, strict=True):
        Image.new("L", size, 50).save(file)
    assert evals.__main__.main(["segment", str(folder), files[0], none, *files[1:]]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {none}: ")
    lines = captured.out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == files
    assert "background" in lines[0]
    assert label._cache_size() == 2  # each size once
    for name, size in zip(("0-a", "2-b", "3-c"), sizes, strict=True):
        for kind, mode in (("", "RGB"), ("-labels", "P")):
            with Image.open(folder / "segments" / f"{name}{kind}.png") as shown:
                assert (shown.size, shown.mode) == (size, mode)
                assert mode == "RGB" or np.asarray(shown).max() < 11
    small = str(tmp_path / "small.png")
    Image.new("L", (1, 1), 50).save(small)
    assert evals.__main__.main(["segment", str(folder), small]) == 1
    assert f"error: {small}: inputs: shape" in capsys.readouterr().err
    assert evals.__main__.main(["predict", str(folder), files[0]]) == 1
    assert (
        "predict is not for a model of segmentation; its verbs: segment" in capsys.readouterr().err
    )


def test_pixel_metrics_have_no_confidence_interval(evaluation):
    shown = evals.report.document.headline(evaluation)
    assert "accuracy" in shown
    assert "interval" not in shown
    assert evaluation.intervals == {}


def test_more_classes_than_a_byte_holds_are_refused():
    with pytest.raises(DataError, match="mine: 255 classes of pixels, allowed: 254 at most"):
        labelled("mine", None, ["thing"] * 255, range(255))  # pyright: ignore[reportArgumentType]


def test_model_without_pixel_labels_is_refused(evaluation):
    other = evaluation.run._replace(data=evaluation.run.data._replace(task=tasks.Classification()))
    with pytest.raises(DataError, match="segment is not for a model of classification"):
        pixels.segment(other, evaluation.table["inputs"][:1])


def test_per_pixel_scaling_requires_the_training_size(evaluation):
    run, inputs = evaluation.run, evaluation.table["inputs"][:2]
    each = run._replace(data=run.data._replace(scaling=fit_scaling("zscore", inputs, (0.0, 255.0))))
    assert pixels.segment(each, inputs).shape == inputs.shape[:-1]
    with pytest.raises(
        ValueError, match=r"inputs: shape \(24, 48, 1\), allowed for preprocess=.*: \(48, 48, 1\)"
    ):
        pixels.segment(each, inputs[:, ::2])


def test_labels_do_not_depend_on_the_other_images(evaluation):
    images = evaluation.table["inputs"][:3]
    np.testing.assert_array_equal(
        pixels.segment(evaluation.run, images[1:2])[0], pixels.segment(evaluation.run, images)[1]
    )


def test_recipes_have_a_class_for_every_label():
    classes = {recipe.name: recipe.model.classes for recipe in RECIPES}
    assert classes["pixels-digits"] == 11
    assert classes["pixels-voc"] == len(train.data.masks.VOC_CLASSES)
    assert {
        name.removesuffix("-no-skips") for name in classes if name.endswith("-no-skips")
    } < classes.keys()
