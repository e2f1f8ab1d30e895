"""Feature maps, filters and shifts in the report: decoded images against the model and numpy."""

import base64
import dataclasses
import html.parser
import io
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import evals
import evals.__main__
import evals.report.document
import evals.report.maps
import evals.report.shifts
import evals.tasks.classification
import train
import zoo
from tests.helpers.evaluations import changed
from zoo.convnet import Config, Stage

# One process makes all the runs.


class Parts(html.parser.HTMLParser):
    """Images {caption: pixels}, texts of <b>, texts of table rows, and the whole page."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.bold, self.lines, self.text, self.open = {}, [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            named = dict(attrs)
            data = base64.b64decode(str(named["src"]).removeprefix("data:image/png;base64,"))
            assert named["alt"] not in self.pictures
            self.pictures[named["alt"]] = np.asarray(Image.open(io.BytesIO(data)))
        else:
            self.open.append(tag)
        if tag == "tr":
            self.lines.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1] == "b":
            self.bold.append(data)
        if "tr" in self.open:
            self.lines[-1].append(data)


def fitted(folder, data, **fields):
    """Evaluation of a convolutional network after two steps."""
    settings = {"steps": 2, "batch_size": 32, "optimizer": train.Optimizer(learning_rate=0.05)}
    train.fit(zoo.convnet, Config(**fields), data, out=folder, **settings)
    return evals.evaluate(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    stages = (Stage(features=20, pool="max"), Stage(features=3, kernel=(2,), pool="mean"))
    return fitted(
        tmp_path_factory.mktemp("images") / "run",
        "digits",
        shape=(8, 8, 1),
        stages=stages,
        activation="tanh",
    )


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(100, 12, 5)).astype(np.float32), np.arange(100) % 3
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    stages = (Stage(features=18, pool="max"), Stage(features=4))
    return fitted(
        folder / "run",
        f"npz:{folder / 'data.npz'}",
        shape=(12, 5),
        stages=stages,
        global_pool="mean",
        classes=3,
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    table = train.load_data("moving_digits").splits["validation"]
    np.savez(folder / "data.npz", **table)
    stages = (Stage(features=3, kernel=(2,), pool="max", pool_size=(2, 4, 4)),)
    return fitted(
        folder / "run",
        f"npz:{folder / 'data.npz'}",
        shape=(8, 16, 16, 1),
        stages=stages,
        global_pool="max",
        classes=8,
    )


@pytest.fixture(scope="module")
def dense(classifier):
    return evals.evaluate(classifier)


def traced(evaluation, example=0):
    """{name: [*space, features]}, inputs scaled by numpy."""
    run, raw = evaluation.run, evaluation.table["inputs"][[example]]
    inputs = (raw.astype(np.float32) - np.asarray(run.data.scaling.shift)) * np.asarray(
        run.data.scaling.scale
    )
    _, seen = zoo.convnet.trace(run.recipe.model, run.params, jnp.asarray(inputs, jnp.float32))
    return {name: np.asarray(leaf)[0] for name, leaf in seen.items()}


def grey(values, low, high):
    return np.round(255 * (values.astype(np.float64) - low) / (high - low))


def close(pixels, expected):
    np.testing.assert_allclose(
        pixels.astype(float), expected, atol=1
    )  # rounding in single precision


def frames_of(pixels, count):
    """A strip of grey and opacity -> frames [count, height, width]; gaps are transparent."""
    width = (pixels.shape[1] + 1) // count
    starts = np.arange(count) * width
    frames = np.stack([pixels[:, start : start + width - 1] for start in starts])
    assert (frames[..., 1] == 255).all()
    assert (pixels[:, starts[1:] - 1, 1] == 0).all()
    return frames[..., 0]


def test_maps_are_the_values_of_the_trace_in_its_order(images):
    page = Parts(evals.tasks.classification.feature_maps(images))
    assert [text for text in page.bold if text in ("input", *traced(images))] == [
        "input",
        "conv_0",
        "pool_0",
        "conv_1",
        "pool_1",
    ]
    close(page.pictures["input, map 0"], grey(images.table["inputs"][0, :, :, 0], 0, 16))
    counts = {}
    for name, pixels in page.pictures.items():
        layer, _, index = name.partition(", map ")
        counts[layer] = counts.get(layer, 0) + 1
        if layer != "input":
            values = traced(images)[layer]
            close(pixels, grey(values[..., int(index)], values.min(), values.max()))
    assert counts == {"input": 1, "conv_0": 16, "pool_0": 16, "conv_1": 3, "pool_1": 3}


def test_maps_with_the_most_contrast_are_shown(images):
    page = Parts(evals.tasks.classification.feature_maps(images))
    contrast = traced(images)["conv_0"].reshape(64, 20).std(axis=0)
    shown = [int(name.split()[-1]) for name in page.pictures if name.startswith("conv_0")]
    assert shown == sorted(np.argsort(-contrast)[:16])
    assert page.text.count("the 16 with most contrast") == 2


def test_scores_are_the_five_highest_probabilities_in_order(images):
    for example in (0, 7, images.count - 1):
        chosen = dataclasses.replace(images, example=example)
        page = Parts(evals.tasks.classification.feature_maps(chosen))
        outputs = images.measured.predictions.outputs[example]
        best = np.argsort(-outputs)[:5]
        assert [line[0] for line in page.lines] == [str(index) for index in best]
        shown = [float(line[1].removesuffix("\xa0%")) for line in page.lines]
        assert shown == pytest.approx(100 * outputs[best], abs=0.051)
        np.testing.assert_allclose(outputs, traced(images, example)["outputs"], atol=1e-5)
        close(page.pictures["input, map 0"], grey(images.table["inputs"][example, :, :, 0], 0, 16))
        assert f"Example {example} of the test split" in page.text


def test_signals_are_drawn_with_time_to_the_right_and_channels_upwards(signals):
    page = Parts(evals.tasks.classification.feature_maps(signals))
    assert list(page.pictures) == ["input", "conv_0", "pool_0", "conv_1"]
    values = traced(signals)
    ranges = {name: (leaf.min(), leaf.max()) for name, leaf in values.items()}
    values["input"], ranges["input"] = signals.table["inputs"][0], signals.run.data.input_range
    for name, pixels in page.pictures.items():
        steps, channels = values[name].shape
        expected = grey(values[name], *ranges[name])
        for step, channel in np.ndindex(steps, channels):
            assert pixels[channels - 1 - channel, step] == pytest.approx(
                expected[step, channel], abs=1
            )


def test_clips_are_drawn_frame_by_frame(clips):
    page = Parts(evals.tasks.classification.feature_maps(clips))
    names = [f"{layer}, map {index}" for layer in ("conv_0", "pool_0") for index in range(3)]
    assert list(page.pictures) == ["input, map 0", *names]
    close(
        frames_of(page.pictures["input, map 0"], 8), clips.table["inputs"][0, ..., 0]
    )  # bytes as they are
    for layer, count in (("conv_0", 8), ("pool_0", 4)):
        values = traced(clips)[layer]
        for index in range(3):
            frames = frames_of(page.pictures[f"{layer}, map {index}"], count)
            close(frames, grey(values[..., index], values.min(), values.max()))


@given(st.sampled_from([1, 3, 4]), st.integers(1, 20))
def test_strips_of_frames_keep_colours_and_show_at_most_eight(channels, count):
    frames = np.random.default_rng(0).integers(0, 256, (count, 2, 3, channels), np.uint8)
    strip = evals.report.maps.draw(frames)
    shown = min(count, 8)
    assert strip.shape == (2, 4 * shown - 1, {1: 2, 3: 4, 4: 4}[channels])
    np.testing.assert_array_equal(strip[:, :3, :channels], frames[0])
    if count > 1:
        np.testing.assert_array_equal(strip[:, -3:, :channels], frames[-1])


def centred(weights):
    largest = abs(weights).max()
    return grey(weights, -largest, largest)


def test_filters_of_images_are_pictures_grey_at_zero(images):
    kernel = np.asarray(images.run.params["conv_0"]["kernel"])
    page = Parts(evals.report.maps.first_weights(images))
    assert "conv_0.kernel" in page.text
    assert len(page.pictures) == 20
    energies = [np.square(kernel[..., int(name.split()[1])]).sum() for name in page.pictures]
    assert energies == sorted(energies, reverse=True)
    for name, pixels in page.pictures.items():
        close(pixels, centred(kernel[..., 0, int(name.split()[1])]))


def test_filters_of_signals_and_clips(signals, clips):
    kernel = np.asarray(signals.run.params["conv_0"]["kernel"])
    for name, pixels in Parts(evals.report.maps.first_weights(signals)).pictures.items():
        close(pixels, centred(kernel[..., int(name.split()[1])]).T[::-1])
    kernel = np.asarray(clips.run.params["conv_0"]["kernel"])
    pictures = Parts(evals.report.maps.first_weights(clips)).pictures
    assert len(pictures) == 3
    for name, pixels in pictures.items():
        close(frames_of(pixels, 2), centred(kernel[..., 0, int(name.split()[1])]))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_filters_of_colours_are_coloured_and_of_other_channels_side_by_side(images, channels):
    kernel = np.random.default_rng(0).normal(size=(5, 4, channels, 6)).astype(np.float32)
    data = images.run.data._replace(input_shape=(8, 8, channels))
    run = images.run._replace(data=data, params={"conv_0": {"kernel": kernel, "bias": np.zeros(6)}})
    pictures = Parts(evals.report.maps.first_weights(changed(images, run=run))).pictures
    assert len(pictures) == 6
    for name, pixels in pictures.items():
        expected = centred(kernel[..., int(name.split()[1])])
        close(
            pixels if channels == 3 else frames_of(pixels, channels),
            expected if channels == 3 else np.moveaxis(expected, -1, 0),
        )


def test_dense_models_have_shifts_and_filters_but_no_maps(dense):
    assert evals.tasks.classification.feature_maps(dense) is None
    kernel = np.asarray(dense.run.params["layer_0"]["kernel"])
    pictures = Parts(evals.report.maps.first_weights(dense)).pictures
    assert len(pictures) == evals.report.maps.UNITS_SHOWN
    for name, pixels in pictures.items():
        close(pixels, centred(kernel[:, int(name.split()[1])].reshape(8, 8)))
    assert len(shift_table(dense)) == 5


def shift_table(evaluation):
    page = Parts(
        re.sub(
            "<svg.*</svg>",
            "",
            evals.tasks.classification.small_shifts(evaluation) or "",
            flags=re.DOTALL,
        )
    )
    return {int(shift): float(accuracy) for shift, accuracy in page.lines[1:]}


@pytest.mark.parametrize("kind", ["images", "signals", "clips", "dense"])
def test_unshifted_accuracy_is_the_measured_one(kind, request):
    evaluation = request.getfixturevalue(kind)
    table = shift_table(evaluation)
    assert list(table) == [0, 1, 2, 3, 4]
    assert table[0] == pytest.approx(evaluation.metrics["test accuracy %"], abs=0.051)


def test_shifted_accuracy_is_that_of_the_moved_digits(dense):
    """Against the network written out in numpy."""
    x, targets = dense.table["inputs"], dense.table["targets"]

    def classify(raw):
        x = raw.reshape(len(raw), 64).astype(np.float64) / 16
        for layer in ("layer_0", "layer_1", "layer_2"):
            weights = dense.run.params[layer]
            x = np.maximum(x, 0) @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
        return x.argmax(axis=1)

    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    moved = [
        padded[:, 1 + row : 9 + row, 1 + column : 9 + column]
        for row, column in ((0, 1), (0, -1), (1, 0), (-1, 0))
    ]
    expected = np.mean([(classify(each) == targets).mean() for each in moved])
    assert shift_table(dense)[1] == pytest.approx(100 * expected, abs=0.1)


def test_large_splits_are_measured_on_evenly_spaced_examples(dense, monkeypatch):
    monkeypatch.setattr(evals.report.shifts, "EXAMPLES", 100)
    assert "100 of 300 examples" in (evals.tasks.classification.small_shifts(dense) or "")
    correct = dense.measured.predictions.classes == dense.measured.predictions.targets
    assert shift_table(dense)[0] == pytest.approx(100 * correct[::3].mean(), abs=0.051)


@given(st.integers(1, 3), st.integers(-4, 4), st.sampled_from([np.uint8, np.float32]))
def test_shifted_is_rolled_with_the_border_replaced(axis, by, dtype):
    inputs = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 7)).astype(dtype)
    expected = np.roll(inputs, by, axis)
    border = range(by) if by >= 0 else range(inputs.shape[axis] + by, inputs.shape[axis])
    np.moveaxis(expected, axis, 0)[list(border)] = 3
    moved = evals.report.shifts.shifted(inputs, axis, by, 3.0)
    np.testing.assert_array_equal(moved, expected)
    assert moved.dtype == dtype


def test_shift_invariant_model_keeps_its_accuracy():
    """A bright inner pixel of one of two kinds, given by its brightness and its position."""
    targets = np.arange(40) % 2
    inputs = np.zeros((40, 16, 16, 1), np.uint8)
    inputs[np.arange(40), 6 + targets, 7] = 100 + 100 * targets[:, None]

    def brightest(inputs):
        return (inputs.max(axis=(1, 2, 3)) > 150).astype(int)

    def place(inputs):
        return (inputs[:, 7].sum(axis=(1, 2)) > 0).astype(int)

    def measure(classify):
        return evals.report.shifts.accuracies(classify, inputs, targets, (1, 2), 3, 0.0)

    assert measure(brightest) == [1.0] * 4
    # Horizontal shifts change nothing; one pixel vertically confuses one kind, more only kind 1.
    assert measure(place) == [1.0, (1 + 1 + 0 + 0.5) / 4, 0.75, 0.75]


def test_example_out_of_range_is_one_clear_line(images, capsys):
    folder = str(images.run.folder.path)
    for example in (images.count, -1):
        assert evals.__main__.main([folder, "--example", str(example)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert (
            captured.err
            == f"error: example={example}, allowed: 0 to 299, as the test split has 300 examples\n"
        )


def test_command_draws_the_chosen_example(images, capsys):
    assert evals.__main__.main([str(images.run.folder.path), "--example", "299"]) == 0
    text = images.report.read_text()
    assert "Example 299 of the test split" in text
    for heading in ("Feature maps", "First-layer weights", "Small shifts"):
        assert f"<h2>{heading}</h2>" in text
    capsys.readouterr()
