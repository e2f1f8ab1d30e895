"""Evaluation, report and prediction against scikit-learn and numpy, on a short digits run."""

import dataclasses
import html.parser
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import evals
import evals.__main__
import evals.evaluation
import evals.gradients
import evals.ledger
import evals.lengths
import evals.report.document
import evals.report.page
import evals.tasks.classification
import train
import zoo
from evals.base import Measured
from evals.files import read_inputs
from evals.generation import bleu
from evals.intervals import wilson
from evals.metrics import confusion_matrix, name_metrics, other_task, show_metric
from evals.report.points import neighbour_error
from evals.report.shifts import accuracies
from evals.runs import named
from evals.tasks import classification
from evals.tasks.captioning import named_objects
from evals.tasks.segmentation import near_boundaries
from evals.tasks.translation import by_length
from train.dataset import Table
from train.engine.optimizer import Optimizer
from train.engine.run_folder import read_json, write_json
from train.formats import DataError
from train.recipe import Target
from train.recipes import RECIPES
from train.tasks import Classification
from zoo import mlp

# When a checkpoint file is damaged, orbax closes its event loop with reads still in progress.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def run_dir(classifier, tmp_path_factory):
    """A copy of the shared run, because commands write there."""
    return shutil.copytree(classifier, tmp_path_factory.mktemp("evals") / "digits")


@pytest.fixture(scope="module")
def evaluation(run_dir):
    return evals.evaluate(run_dir)


@pytest.fixture(scope="module")
def regression_dir(tmp_path_factory):
    """A complete run of a linear model on real targets, from an npz file: no classes, no images."""
    folder = tmp_path_factory.mktemp("regression")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 4)).astype(np.float32)
    np.savez(
        folder / "data.npz",
        inputs=inputs,
        targets=inputs @ rng.normal(size=(4, 2)).astype(np.float32),
    )
    cfg = mlp.Config(sizes=(4, 2), output="linear")
    settings = {"select_by": "loss", "select_mode": "min", "preprocess": "none", "epochs": 2}
    recipe = train.Recipe(
        name="regression", model=cfg, data=f"npz:{folder / 'data.npz'}", **settings
    )
    train.run(recipe, folder / "run", quiet=True)
    return folder / "run"


def test_metrics_agree_with_numpy_and_scikit_learn(run_dir, evaluation):
    """The network in numpy, with metrics from scikit-learn."""
    _, _, params = train.load(run_dir)
    test = train.load_data("digits").splits["test"]
    x = test["inputs"].reshape(300, 64).astype(np.float64) / 16
    for layer in ("layer_0", "layer_1", "layer_2"):
        x = np.maximum(x, 0) @ np.asarray(params[layer]["kernel"]) + np.asarray(
            params[layer]["bias"]
        )
    probabilities = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    accuracy = 100 * sklearn.metrics.accuracy_score(test["targets"], probabilities.argmax(axis=1))
    nats = sklearn.metrics.log_loss(test["targets"], probabilities)
    assert evaluation.metrics == pytest.approx(
        {"test accuracy %": accuracy, "test error %": 100 - accuracy, "test loss nats": nats},
        rel=1e-4,
    )
    np.testing.assert_allclose(evaluation.measured.predictions.outputs, probabilities, atol=1e-4)
    of_true = probabilities[np.arange(300), test["targets"]]
    np.testing.assert_allclose(
        evaluation.measured.predictions.losses, -np.log(of_true), rtol=1e-3, atol=1e-4
    )
    assert evaluation.measured.predictions.losses.mean() == pytest.approx(
        evaluation.metrics["test loss nats"], rel=1e-5
    )


def test_best_checkpoint_is_the_one_that_validation_chose(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    validation = evals.evaluate(run_dir, "validation")
    assert validation.run.step == summary["best_step"]
    assert validation.count == 100
    assert validation.metrics["validation loss nats"] == pytest.approx(
        summary["best"]["loss"], rel=1e-5
    )


@given(st.integers(2, 6), st.data())
@settings(deadline=None)
def test_confusion_matrix_agrees_with_scikit_learn(classes, data):
    labels = st.lists(st.integers(0, classes - 1), min_size=1, max_size=30)
    targets = np.array(data.draw(labels))
    predicted = np.array(
        data.draw(
            st.lists(st.integers(0, classes - 1), min_size=len(targets), max_size=len(targets))
        )
    )
    expected = sklearn.metrics.confusion_matrix(targets, predicted, labels=range(classes))
    np.testing.assert_array_equal(confusion_matrix(targets, predicted, classes), expected)


def test_names_and_units_of_metrics():
    assert name_metrics("test", {"loss": 2.0, "accuracy": 0.25, "perplexity": 9.0}, nats=True) == {
        "test loss nats": 2.0,
        "test accuracy %": 25.0,
        "test error %": 75.0,
        "test perplexity": 9.0,
    }
    assert show_metric("test accuracy %", 98.6666, 300) == "test accuracy 98.7 %"
    assert show_metric("test error %", 1.65, 10_000) == "test error 1.65 %"
    assert (
        show_metric("test accuracy %", 100.0, 300, (98.7357, 100.0))
        == "test accuracy 100 %, 95 % interval 98.7 to 100"
    )
    assert show_metric("test loss nats", 0.05, 300) == "test loss 0.0500 nats"
    assert show_metric("test perplexity", float("inf"), 300) == "test perplexity inf"


def test_wilson_intervals_are_the_published_ones():
    """Newcombe 1998, table I, method 3; for 0 and n of n by hand: z^2 / (n + z^2)."""
    for (hits, count), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(hits / count, count) == pytest.approx(expected, abs=5e-5)
        assert wilson(1 - hits / count, count) == pytest.approx(
            (1 - expected[1], 1 - expected[0]), abs=5e-5
        )
    assert wilson(0, 10) == (0.0, pytest.approx(3.8414588 / 13.8414588))
    assert wilson(1, 300) == (pytest.approx(300 / 303.8414588), 1.0)
    for share, count in ((-0.1, 10), (1.1, 10), (float("nan"), 10), (0.5, 0)):
        with pytest.raises(ValueError, match="allowed"):
            wilson(share, count)


@given(st.integers(1, 10**7), st.data())
def test_a_wilson_interval_holds_the_shares_that_a_score_test_accepts(count, data):
    share = data.draw(st.integers(0, count)) / count
    low, high = wilson(share, count)
    assert 0 <= low <= share <= high <= 1
    for end in {low, high} - {0, 1}:
        assert abs(share - end) == pytest.approx(
            1.959964 * math.sqrt(end * (1 - end) / count), rel=1e-3
        )


def test_percentages_have_significant_decimals():
    for value, count, expected in (
        (98.6666, 300, "98.7"),
        (1.65, 10_000, "1.65"),
        (76.1304, 50_000, "76.13"),
        (12.34567, 10**7, "12.35"),
        (99.9995, 10**6, "99.9995"),
        (0.01234, 10**6, "0.012"),
        (100.0, 10**6, "100"),
        (0.0, 300, "0"),
        (50.0, 2, "50.0"),
        (float("nan"), 10, "nan"),
    ):
        assert evals.metrics.format_percent(value, count) == expected


def test_only_proportions_have_confidence_intervals(evaluation):
    value = evaluation.metrics["test accuracy %"]
    low, high = (100 * end for end in wilson(value / 100, 300))
    assert evaluation.intervals == {
        "test accuracy %": pytest.approx((low, high)),
        "test error %": pytest.approx((100 - high, 100 - low)),
    }
    page = Page(evals.report.document.headline(evaluation))
    assert f"95 % interval {low:.1f} to {high:.1f}" in page.data
    assert page.data.count(f"95 % interval {100 - high:.1f} to {100 - low:.1f}") == 1
    masked = evaluation.table.having(mask=np.arange(300) < 50)
    some = classification.measure(evaluation.subject._replace(table=masked))
    assert some.shares == {"test accuracy %": 50, "test error %": 50}
    metrics = {"test exact %": 10.0, "test mean IoU %": 30.0, "test boundary accuracy %": 90.0}
    sentences = dataclasses.replace(
        evaluation, measured=Measured(metrics=metrics, shares={"test exact %": 300})
    )
    assert sentences.intervals == {
        "test exact %": pytest.approx([100 * end for end in wilson(0.1, 300)])
    }
    assert dataclasses.replace(evaluation, measured=Measured(metrics=metrics)).intervals == {}


def test_targets_are_checked_on_the_recipes_own_data_only(evaluation):
    def shown(**changed):
        run = evaluation.run._replace(recipe=dataclasses.replace(evaluation.run.recipe, **changed))
        subject = evaluation.subject._replace(run=run)
        return " ".join(
            Page(
                evals.report.document.headline(dataclasses.replace(evaluation, subject=subject))
            ).data
        )

    own = dataclasses.replace(
        RECIPES["mlp-digits"], batch_size=32, optimizer=Optimizer(learning_rate=0.01)
    )
    assert re.search("test error % <= 2: (reached|missed)", shown())
    for changed in (
        {"batch_size": 32},
        {"optimizer": own.optimizer},
        {"name": "mine", "data": "npz:mine.npz"},
    ):
        assert re.search("test error % <= 2: (reached|missed)", shown(**changed))
    for name, value in {
        "data": "npz:mine.npz",
        "labels": 100,
        "train_on": "train+validation",
        "preprocess": "zscore",
    }.items():
        text = shown(**{name: value})
        instead = "digits" if name == "data" else getattr(own, name)
        assert not re.search("reached|missed|measured:", text)
        assert f"its own data; this run has {name} {value!r} instead of {instead!r}" in text
    brown = RECIPES["rnnlm-brown"]
    assert other_task(
        dataclasses.replace(brown, data=dataclasses.replace(brown.data, window=5))
    ) == ["data.window 5 instead of 35"]
    assert "Expected" not in shown(data="npz:mine.npz", targets=())
    other = dataclasses.replace(evaluation, subject=evaluation.subject._replace(own=False))
    text = " ".join(Page(evals.report.document.headline(other)).data)
    assert "nothing: the targets of mlp-digits are for its own data" in text


def test_command_writes_metrics_and_report_and_prints_paths(run_dir, capsys):
    assert evals.__main__.main([str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads((run_dir / "eval.json").read_text())
    low, high = record["intervals"]["test accuracy %"]
    assert (
        f"test accuracy {record['metrics']['test accuracy %']:.1f} %, 95 % interval {low:.1f} to "
        f"{high:.1f}" in lines
    )
    assert record["intervals"].keys() == {"test accuracy %", "test error %"}
    assert f"checkpoint {run_dir}/checkpoints/{record['step']}" in lines
    assert f"report {run_dir}/report.html" in lines
    assert any(" predict " in line for line in lines[-2:])
    assert any("train --list" in line for line in lines[-2:])
    assert record["training"]["complete"]
    assert record["training"]["seconds"] > 0
    assert {key: record[key] for key in ("format", "recipe", "seed", "split", "count")} == {
        "format": 1,
        "recipe": "mlp-digits",
        "seed": 0,
        "split": "test",
        "count": 300,
    }
    assert (run_dir / "report.html").is_file()


def test_results_are_printed_if_files_cannot_be_written(run_dir, tmp_path, capsys):
    folder = tmp_path / "a run"
    shutil.copytree(run_dir, folder)
    for name in ("eval.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
    (folder / "eval.json.tmp").mkdir()  # in the way
    assert evals.__main__.main([str(folder)]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: could not save the results: [Errno 21] Is a directory")
    assert len(shown.err.splitlines()) == 1
    assert "test accuracy" in shown.out
    assert "report.html" not in shown.out
    assert f"evals predict '{folder}' FILE" in shown.out
    assert not (folder / "eval.json").exists()


def test_a_split_that_the_data_do_not_have_is_named_with_those_that_they_have(run_dir, capsys):
    assert evals.__main__.main([str(run_dir), "--split", "one-shot", "--no-report"]) == 1
    assert (
        "data 'digits': no one-shot split; it has train, validation, test"
        in capsys.readouterr().err
    )


def test_another_split_does_not_overwrite_the_test_numbers(run_dir, capsys):
    assert evals.__main__.main([str(run_dir), "--split", "train", "--no-report"]) == 0
    assert "train accuracy" in capsys.readouterr().out
    assert json.loads((run_dir / "eval-train.json").read_text())["count"] == 1397
    assert not (run_dir / "report-train.html").exists()


class Page(html.parser.HTMLParser):
    """Tags, what they refer to, headings and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.open, self.data = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action", "data")
        ]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def test_report_is_self_contained_and_escapes_names(evaluation):
    text = evals.report.document.render(evaluation)
    page = Page(text)
    assert not page.open
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.references
    assert all(
        reference.startswith(("#", "data:image/png;base64,")) for reference in page.references
    )
    assert "url(http" not in text
    assert "@import" not in text
    assert any("<script>alert(1)</script>" in data for data in page.data)  # as text
    for heading in (
        "Learning curves",
        "Confusion matrix",
        "Worst mistakes",
        "First-layer weights",
        "Small shifts",
        "Configuration",
    ):
        assert heading in page.data
    assert page.tags.count("svg") == 3  # loss, accuracy, accuracy of shifted inputs
    for field in dataclasses.fields(evaluation.run.recipe.optimizer):
        assert f"optimizer.{field.name}" in page.data


def test_confusion_section_holds_the_counts(evaluation):
    page = Page(evals.tasks.classification.confusions(evaluation))
    predictions = evaluation.measured.predictions
    expected = sklearn.metrics.confusion_matrix(
        predictions.targets, predictions.outputs.argmax(axis=1)
    )
    cells = [data for data in page.data if data.isdecimal()]
    shown = [int(cell) for cell in cells[10:]]  # after the heading
    wanted = [number for label, row in enumerate(expected) for number in (label, *row[row > 0])]
    assert shown == wanted


def test_many_classes_list_the_most_frequent_confusions(evaluation):
    names = tuple(f"class <{index}>" for index in range(30))
    outputs = np.eye(30)[[1, 1, 2, 3]]
    predictions = evals.tasks.classification.Predictions(
        outputs, np.ones(4), np.array([0, 0, 2, 4])
    )
    run = evaluation.run._replace(data=evaluation.run.data._replace(task=Classification(names)))
    measured = dataclasses.replace(evaluation.measured, predictions=predictions)
    many = dataclasses.replace(
        evaluation, subject=evaluation.subject._replace(run=run), measured=measured
    )
    page = Page(evals.tasks.classification.confusions(many))
    assert page.data[-4:] == ["class <0>, class <1>", "2 of 2", "class <4>, class <3>", "1 of 1"]


def test_worst_mistakes_are_ordered_by_loss(evaluation):
    page = Page(evals.tasks.classification.mistakes(evaluation))
    losses = [float(data.rpartition(" ")[2]) for data in page.data if "loss " in data]
    wrong = (
        evaluation.measured.predictions.outputs.argmax(axis=1)
        != evaluation.measured.predictions.targets
    )
    worst = np.sort(evaluation.measured.predictions.losses[wrong])[::-1][
        : evals.tasks.classification.MISTAKES
    ]
    assert losses == pytest.approx(worst, abs=0.006)
    assert page.tags.count("img") == len(worst) > 0


def test_images_round_trip_and_other_shapes_are_none():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        evals.report.page.as_images(pixels / np.float32(255), (0.0, 1.0)), pixels
    )
    np.testing.assert_array_equal(
        evals.report.page.as_images(pixels[..., :1], (0.0, 255.0)), pixels[..., 0]
    )
    np.testing.assert_array_equal(
        evals.report.page.as_images(pixels[..., 0], (0.0, 255.0)), pixels[..., 0]
    )
    for inputs in (pixels[..., 0] / 255, pixels[:, 0, :, 0], pixels[..., :2], {"tokens": pixels}):
        assert evals.report.page.as_images(inputs, (0.0, 1.0)) is None


def test_without_report_packages_only_numbers_are_written(run_dir, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run, ignore=shutil.ignore_patterns("report*.html", "eval*.json"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert evals.__main__.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "no page: it needs jinja2, matplotlib" in out
    assert "pip install 'purezoo[evals]'" in out
    assert "test accuracy" in out
    assert json.loads((run / "eval.json").read_text())["metrics"].keys() >= {
        "test accuracy %",
        "test error %",
    }
    assert not (run / "report.html").exists()


def test_unclassified_outputs_have_no_classification_extras(regression_dir, capsys):
    assert evals.__main__.main([str(regression_dir)]) == 0
    out = capsys.readouterr().out
    assert "accuracy" not in out
    assert " predict " not in out
    assert "test loss" in out
    text = (regression_dir / "report.html").read_text()
    assert "Confusion matrix" not in text
    assert "First-layer weights" not in text
    evaluation = evals.evaluate(regression_dir)
    _, _, params = train.load(regression_dir)
    inputs, targets = evaluation.table["inputs"], evaluation.table["targets"]
    residual = (
        inputs @ np.asarray(params["layer_0"]["kernel"])
        + np.asarray(params["layer_0"]["bias"])
        - targets
    )
    expected = np.square(residual).sum(axis=1).mean()
    assert evaluation.metrics == pytest.approx(
        {"test loss": 0.5 * expected, "test squared_error": expected}, rel=1e-5
    )


def test_changed_data_are_refused(regression_dir, tmp_path, capsys):
    copy = tmp_path / "run"
    copy.mkdir()
    write_json(
        copy / "config.json",
        read_json(regression_dir / "config.json") | {"data_fingerprint": "0123"},
    )
    (copy / "data.json").write_text((regression_dir / "data.json").read_text())
    (copy / "checkpoints").symlink_to(regression_dir / "checkpoints")
    assert evals.__main__.main([str(copy)]) == 1
    assert "content has changed" in capsys.readouterr().err


def test_run_on_in_memory_arrays_cannot_be_evaluated(tmp_path, capsys):
    data = {"inputs": np.eye(4, dtype=np.float32), "targets": np.arange(4) % 2}
    train.fit(
        *zoo.create("mlp/tiny", sizes=(4, 2)), data, out=tmp_path / "run", epochs=1, batch_size=4
    )
    assert evals.__main__.main([str(tmp_path / "run")]) == 1
    assert "arrays in memory" in capsys.readouterr().err
    np.savez(tmp_path / "mine.npz", inputs=data["inputs"])
    assert len(evals.predict(tmp_path / "run", [tmp_path / "mine.npz"])) == 4


@pytest.mark.parametrize("content", [None, "folder", "damaged"])
def test_wrong_run_folder_is_one_clear_line(tmp_path, capsys, content):
    folder = tmp_path / "run"
    if content:
        folder.mkdir()
    if content == "damaged":
        (folder / "config.json").write_text("{")
    assert evals.__main__.main([str(folder)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert str(folder) in captured.err
    assert captured.err.count("\n") == 1


def test_predictions_of_files_equal_the_evaluation(run_dir, evaluation, tmp_path, monkeypatch):
    """From npz exactly, from images up to 256 levels; with or without data set or channel axis."""
    monkeypatch.setattr(evals.run, "load_data", None)
    raw = evaluation.table["inputs"]
    np.savez(tmp_path / "all.npz", inputs=raw[..., 0])
    (tmp_path / "all.npz").rename(tmp_path / "all.NPZ")
    items = evals.predict(run_dir, [tmp_path / "all.NPZ"])
    assert items[7][0] == f"{tmp_path / 'all.NPZ'}[7]"
    np.testing.assert_allclose(
        np.stack([outputs for _, outputs in items]),
        evaluation.measured.predictions.outputs,
        atol=1e-6,
    )
    pixels = np.round(raw[3, :, :, 0] * (255 / 16)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "three.png")
    Image.fromarray(255 - pixels).convert("RGB").save(tmp_path / "inverted.bmp")
    ((label, upright),) = evals.predict(run_dir, [tmp_path / "three.png"])
    ((_, inverted),) = evals.predict(run_dir, [tmp_path / "inverted.bmp"], invert=True)
    assert label == str(tmp_path / "three.png")
    np.testing.assert_allclose(upright, evaluation.measured.predictions.outputs[3], atol=0.02)
    np.testing.assert_allclose(upright, inverted, atol=1e-5)


def test_the_model_is_compiled_once_for_all_files(
    run_dir, evaluation, tmp_path, monkeypatch, capsys
):
    """For files of any content, in order."""
    function: Any = classification._outputs
    function.clear_cache()
    raw, files = evaluation.table["inputs"], []
    for number, (first, last) in enumerate([(0, 3), (3, 4), (4, 105), (105, 107)]):
        files += [tmp_path / f"{number}.npz", tmp_path / f"{number}.png"]
        np.savez(files[-2], inputs=raw[first:last])
        Image.fromarray(np.round(raw[first, :, :, 0] * (255 / 16)).astype(np.uint8)).save(files[-1])
    files.insert(3, tmp_path / "none.png")
    assert evals.__main__.main(["predict", str(run_dir), *map(str, files)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path / 'none.png'}: ")
    labels = [line.partition("  ")[0] for line in captured.out.splitlines()]
    arrays, images = (
        [str(file) for file in files if file.suffix == suffix and file.exists()]
        for suffix in (".npz", ".png")
    )
    counts = (3, 1, 101, 2)
    assert labels == [
        label
        for array, image, count in zip(arrays, images, counts, strict=True)
        for label in [*(f"{array}[{index}]" for index in range(count)), image]
    ]
    assert function._cache_size() == 1
    items = evals.predict(run_dir, arrays)
    np.testing.assert_allclose(
        np.stack([outputs for _, outputs in items]),
        evaluation.measured.predictions.outputs[:107],
        atol=1e-6,
    )
    assert function._cache_size() == 1
    assert len(evals.predict(run_dir, images)) == 4
    assert function._cache_size() == 2  # four rows are enough for four images
    assert evals.predict(run_dir, []) == []


def run_on(*shape: int) -> Any:
    """The properties of a run that ``read_inputs`` uses."""
    return types.SimpleNamespace(
        data=types.SimpleNamespace(input_range=(0.0, 255.0), input_shape=shape)
    )


@pytest.mark.parametrize(
    ("trained", "given"),
    [
        ((6, 4, 3), (6, 4, 3)),
        ((6, 4, 3), (72,)),
        ((6, 4, 1), (6, 4)),
        ((6, 4, 1), (24,)),
        ((6, 4), (24,)),
        ((3, 6, 3), (3, 6, 3)),
    ],
)
def test_arrays_to_label_may_be_flat_or_without_a_channel(tmp_path, trained, given):
    values = np.arange(2 * np.prod(given), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", inputs=values.reshape(2, *given))
    np.testing.assert_array_equal(
        read_inputs(run_on(*trained), tmp_path / "x.npz"), values.reshape(2, *trained)
    )


@pytest.mark.parametrize(
    ("trained", "given", "hint"),
    [
        ((8, 8, 3), (3, 8, 8), "; channels come last: numpy.moveaxis(inputs, 1, -1)"),
        ((8, 8, 1), (1, 8, 8), "; channels come last: numpy.moveaxis(inputs, 1, -1)"),
        ((6, 4, 3), (4, 6, 3), ""),
        ((192,), (3, 8, 8), ""),
        ((192,), (8, 8, 3), ""),
        ((8, 8, 3), (191,), ""),
    ],
)
def test_arrays_to_label_of_the_same_size_but_other_axes_are_refused(
    tmp_path, trained, given, hint
):
    np.savez(tmp_path / "x.npz", inputs=np.zeros((2, *given), np.uint8))
    said = (
        f"{tmp_path}/x.npz: inputs have shape {(2, *given)}, expected [n, "
        f"{', '.join(map(str, trained))}]{hint}"
    )
    with pytest.raises(DataError, match=re.escape(said) + "$"):
        read_inputs(run_on(*trained), tmp_path / "x.npz")


def test_predict_command_labels_and_names_the_broken_file(run_dir, evaluation, tmp_path, capsys):
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "large.jpg")
    np.savez(tmp_path / "two.npz", inputs=evaluation.table["inputs"][:2])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    np.savez(tmp_path / "wrong.npz", inputs=np.zeros((2, 3, 3)))
    np.savez(tmp_path / "empty.npz", other=np.zeros(3))
    good = [str(tmp_path / name) for name in ("large.jpg", "two.npz")]
    assert evals.__main__.main(["predict", str(run_dir), *good]) == 0
    captured = capsys.readouterr()
    assert "--invert" in captured.err
    lines = captured.out.splitlines()
    assert len(lines) == 3
    outputs = evaluation.measured.predictions.outputs[0]
    best = np.argsort(-outputs)[:3]
    assert lines[1].split() == [
        f"{tmp_path}/two.npz[0]",
        *" ".join(f"{k} {100 * outputs[k]:.1f} %" for k in best).split(),
    ]
    for name in ("broken.png", "wrong.npz", "empty.npz", "missing.png"):
        assert evals.__main__.main(["predict", str(run_dir), str(tmp_path / name), good[1]]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith(f"error: {tmp_path / name}: ")
        assert captured.err.count("\n") == 1
        assert len(captured.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--example", "300"),
            "example=300, allowed: 0 to 299, as the test split has 300 examples",
        ),
        (("--example", "-1"), "example=-1, allowed: 0 to 299"),
        (("--split", "dev"), "data 'digits': no dev split; it has train, validation, test"),
        (
            ("--data", "topics"),
            "data .topics.: language; allowed for this run: classification into 10 classes: 0, 1,",
        ),
        (
            ("--data", "moving_digits"),
            "data 'moving_digits': classification into 8 classes: E, NE,",
        ),
    ],
)
def test_failed_evaluation_is_one_line_without_files(run_dir, capsys, options, message):
    before = sorted(run_dir.iterdir())
    assert evals.__main__.main([str(run_dir), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(f"error: {message}", captured.err)
    assert captured.err.count("\n") == 1
    assert sorted(run_dir.iterdir()) == before


def test_a_run_is_measured_on_other_data_of_its_task(run_dir, evaluation, tmp_path, capsys):
    """A set without splits is not divided; the run's own results are not changed."""
    test = evaluation.table
    np.savez(
        tmp_path / "mine.npz", inputs=test["inputs"][:7], targets=np.append(test["targets"][:6], 9)
    )
    before = (run_dir / "eval.json").read_bytes() if (run_dir / "eval.json").exists() else None
    assert evals.__main__.main([str(run_dir), "--data", f"npz:{tmp_path / 'mine.npz'}"]) == 0
    assert "7 test examples of npz:" in capsys.readouterr().out
    (file,) = run_dir.glob("eval-on-npz-*.json")
    record = json.loads(file.read_text())
    assert record["data"] == f"npz:{tmp_path / 'mine.npz'}"
    assert record["command"].endswith(f"--split test --data npz:{tmp_path / 'mine.npz'}")
    right = evaluation.measured.predictions.classes[:7] == np.append(test["targets"][:6], 9)
    assert record["metrics"]["test accuracy %"] == pytest.approx(100 * right.mean())
    assert before is None or (run_dir / "eval.json").read_bytes() == before
    (page,) = run_dir.glob("report-on-npz-*.html")
    assert "not for npz:" in page.read_text()
    file.unlink()
    page.unlink()


def _of_phrases(phrases):
    return Table({}, extras={"phrases": phrases})


POINTS, CLASSES = np.zeros((3, 2)), np.zeros(3, int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: confusion_matrix(np.array([0, 1]), np.array([0]), 3),
            r"targets \(2,\) and predicted \(1,\), allowed: the same",
        ),
        (
            lambda: confusion_matrix(np.array([0, 1]), np.array([0, 3]), 3),
            "predicted: 0 to 3, allowed: 0 to 2",
        ),
        (
            lambda: confusion_matrix(np.array([0, 1]), np.array([-1, 0]), 3),
            "predicted: -1 to 0, allowed: 0 to 2",
        ),
        (
            lambda: confusion_matrix(np.array([5]), np.array([0]), 3),
            "targets: 5 to 5, allowed: 0 to 2",
        ),
        (lambda: evals.predict("run", "seven.png"), r"files='seven.png', allowed: a list of files"),
        (
            lambda: neighbour_error(POINTS[:1], CLASSES[:1]),
            "1 points, 1 targets, allowed: the same number, at least two",
        ),
        (
            lambda: neighbour_error(POINTS, CLASSES[:2]),
            "3 points, 2 targets, allowed: the same number",
        ),
        (
            lambda: accuracies(lambda x: x, POINTS[:0], CLASSES[:0], (1,), 1, 0.0),
            "0 inputs, 0 targets, allowed: the same number, at least one",
        ),
        (
            lambda: accuracies(lambda x: x, POINTS, CLASSES, (1,), -1, 0.0),
            "farthest=-1, allowed: 0 or more",
        ),
        (
            lambda: accuracies(lambda x: x, POINTS, CLASSES, (1,), 2, 0.0),
            "farthest=2, allowed: 0 or more, less than",
        ),
        (
            lambda: near_boundaries(np.zeros((1, 3, 3)), np.ones((1, 3, 3), bool), 0),
            "distance=0, allowed: a positive integer",
        ),
        (
            lambda: near_boundaries(np.zeros((1, 3, 3)), np.ones((1, 3, 3), bool), -1),
            "distance=-1, allowed: a positive",
        ),
        (
            lambda: named_objects(_of_phrases(np.zeros((1, 2, 2), int)), [CLASSES]),
            "1 captions, allowed: one for each of 1 rows",
        ),
        (
            lambda: named_objects(_of_phrases(np.ones((2, 1, 2), int)), [CLASSES]),
            "1 captions, allowed: one for each of 2 rows",
        ),
        (lambda: named([]), "0 runs, allowed: 1 to 4"),
        (
            lambda: bleu([], []),
            "0 translations and 0 targets, allowed: the same number, at least one",
        ),
        (lambda: bleu(["a"], ["a", "b"]), "1 translations and 2 targets"),
        (
            lambda: by_length([("a", "b")], []),
            "0 translations of 1 sentences, allowed: the same number",
        ),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("example", [-1, 300, 1.5, True])
def test_example_index_out_of_range_is_refused(run_dir, example):
    with pytest.raises(ValueError, match=f"example={example}, allowed: 0 to 299"):
        evals.evaluate(run_dir, example=example)


def test_commands_without_a_run_are_one_clear_error(tmp_path, capsys):
    plot = tmp_path / "plot.svg"
    for main, arguments in (
        (evals.lengths.main, ["--plot", str(plot)]),
        (evals.gradients.main, ["--plot", str(plot)]),
        (evals.ledger.main, ["add"]),
    ):
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert "allowed: " in captured.err
        assert captured.out == ""
    assert not plot.exists()


def test_help_is_fast_because_it_does_not_load_jax():
    program = (
        "import sys, evals.__main__ as m; assert 'jax' not in sys.modules; "
        "sys.exit(m.main(sys.argv[1:]))"
    )
    root = pathlib.Path(__file__).parent.parent
    for arguments, shown in {
        ("--help",): (
            "RUN_DIR",
            "--split",
            "--data",
            "predict",
            "sample",
            "--data-dir",
            "--no-report",
            "--example",
        ),
        ("predict", "--help"): ("RUN_DIR", "FILE", "--invert"),
    }.items():
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)
        assert done.returncode == 0, done.stderr
        for option in shown:
            assert option in done.stdout


def test_a_target_without_a_bound_is_measured_and_not_reached():
    verdicts = {
        "measured": Target(metric="error %", published=1.0),
        "reached": Target(metric="error %", at_most=2),
        "missed": Target(metric="error %", at_least=3),
        "not measured here": Target(metric="BLEU"),
    }
    assert [
        evals.report.document._verdict(target, {"error %": 2.0}) for target in verdicts.values()
    ] == list(verdicts)
