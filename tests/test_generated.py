"""Generated data: moving digits, synthetic images and sequences are correct and deterministic."""

import re
import time

import numpy as np
import pytest

from train.data import DataError, load_data
from train.data import moving_digits as clips
from train.data import synthetic as mosaics
from train.data.moving_digits import CLIPS, DIRECTIONS, FRAMES, MOST, SIZE, moving_digits
from train.data.synthetic import synthetic
from train.tasks import Algorithm, Classification, Regression

# ---------------------------------------------------------------- moving digits

STEPS = list(DIRECTIONS.values())


@pytest.fixture(scope="module")
def clean() -> dict[str, dict[str, np.ndarray]]:
    """Without noise."""
    return moving_digits(load_data("digits").splits, noise=0)


def starts(table: dict[str, np.ndarray], split: str) -> np.ndarray:
    """Position of each clip's digit in its first frame [n, 2], by trying all positions."""
    digits = np.repeat(load_data("digits").splits[split]["inputs"][..., 0], CLIPS, axis=0)
    canvas = np.zeros((len(digits), SIZE, SIZE), np.uint8)
    canvas[:, :8, :8] = digits
    found = np.full((len(digits), 2), -1)
    for row in range(SIZE):
        for column in range(SIZE):
            found[
                (table["inputs"][:, 0, ..., 0] == np.roll(canvas, (row, column), (1, 2))).all(
                    axis=(1, 2)
                )
            ] = row, column
    return found


def test_clips_have_the_documented_sizes_and_classes():
    dataset, digits = load_data("moving_digits"), load_data("digits")
    documented = re.search(
        r"directions: ([\d,]+) train, (\d+) validation and ([\d,]+)\s+test", clips.__doc__ or ""
    )
    assert documented
    sizes = [int(size.replace(",", "")) for size in documented.groups()]
    assert dataset.task.labels == ("E", "NE", "N", "NW", "W", "SW", "S", "SE")
    assert dataset.input_range == (0.0, 16.0)
    for (split, table), size in zip(dataset.splits.items(), sizes, strict=True):
        assert size == CLIPS * len(digits.splits[split]["inputs"])
        assert (table["inputs"].dtype, table["inputs"].shape) == (
            np.uint8,
            (size, FRAMES, SIZE, SIZE, 1),
        )
        assert (table["targets"].dtype, table["targets"].shape) == (np.int32, (size,))
        assert (table["inputs"].min(), table["inputs"].max()) == (0, MOST)
        assert np.ptp(np.bincount(table["targets"], minlength=8)) <= 1


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_frames_are_the_previous_frame_rolled_by_the_direction(clean, split):
    table = clean[split]
    for label, step in enumerate(STEPS):
        clips = table["inputs"][table["targets"] == label]
        np.testing.assert_array_equal(clips[:, 1:], np.roll(clips[:, :-1], step, (2, 3)))
    names = dict(zip(DIRECTIONS, STEPS, strict=True))
    assert names["E"] == (0, 1), "to the right"
    assert names["N"] == (-1, 0), "up"
    assert len(set(STEPS)) == 8


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_digits_are_those_of_the_same_split(clean, split):
    assert (starts(clean[split], split) >= 0).all(), "each clip shows its digit, whole"
    shown = {
        split: {np.sort(clip[0].ravel()).tobytes() for clip in table["inputs"]}
        for split, table in clean.items()
    }
    assert not shown["test"] & shown["train"], "not even another digit with the same values"


def test_single_frame_is_independent_of_the_direction(clean):
    places, targets = starts(clean["train"], "train"), clean["train"]["targets"]
    for frame in range(FRAMES):
        now = (places + np.array(STEPS)[targets] * frame) % SIZE
        for axis in range(2):
            counts = np.zeros((len(STEPS), SIZE))
            np.add.at(counts, (targets, now[:, axis]), 1)
            expected = counts.sum(axis=1, keepdims=True) / SIZE
            # 120 degrees of freedom for each: beyond 200 with a probability of 1e-5.
            assert ((counts - expected) ** 2 / expected).sum() < 200


def test_noise_is_even_and_clipped():
    digits = load_data("digits").splits
    bare, noisy = (moving_digits(digits, noise)["validation"] for noise in (0, 5))
    np.testing.assert_array_equal(bare["targets"], noisy["targets"])
    added = noisy["inputs"].astype(int) - bare["inputs"]
    inner = (bare["inputs"] >= 5) & (bare["inputs"] <= MOST - 5)
    counts = np.bincount(added[inner] + 5)
    assert len(counts) == 11
    assert np.abs(counts / counts.mean() - 1).max() < 0.05
    assert set(added[bare["inputs"] == 0]) == set(range(6))
    assert set(added[bare["inputs"] == MOST]) == set(range(-5, 1))


def test_the_noise_hides_the_direction_from_two_frames_but_not_from_eight():
    table = load_data("moving_digits").splits["test"]
    clips = table["inputs"][..., 0] - table["inputs"].mean()
    pairs = np.stack(
        [(np.roll(clips[:, :-1], step, (2, 3)) * clips[:, 1:]).sum(axis=(2, 3)) for step in STEPS],
        axis=-1,
    )
    one, every = (pairs[:, 0].argmax(axis=-1), pairs.sum(axis=1).argmax(axis=-1))
    assert 0.5 < (one == table["targets"]).mean() < 0.8
    assert (every == table["targets"]).mean() > 0.95


def test_clips_are_deterministic():
    first, second = load_data("moving_digits"), load_data("moving_digits")
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint == "04570332ce1f8b29", (
        "on every machine, so that runs can be resumed and evaluated"
    )


# ---------------------------------------------------------------- synthetic


def test_images_have_the_requested_shape():
    dataset = load_data("synthetic:40x6x5x3/4")
    assert dataset.task == Classification(tuple("0123"))
    assert (dataset.name, dataset.input_range) == ("synthetic:40x6x5x3/4", (0.0, 255.0))
    for split, size in {"train": 32, "validation": 4, "test": 4}.items():
        table = dataset.splits[split]
        assert (table["inputs"].dtype, table["inputs"].shape) == (np.uint8, (size, 6, 5, 3))
        assert (table["targets"].dtype, np.bincount(table["targets"]).tolist()) == (
            np.int32,
            [size // 4] * 4,
        )
    assert dataset.fingerprint == "85553ab49aa7d90d", "always the same"


def test_images_are_a_mosaic_of_their_class_and_noise(monkeypatch):
    table, classes = synthetic("", "300x16x8x2/3")
    assert classes == 3
    for label in range(classes):
        images = table["inputs"][table["targets"] == label].astype(int)
        mosaic = images.min(axis=0)
        patches = mosaic.reshape(4, 4, 4, 2, 2).min(axis=(1, 3))
        mosaic = patches.repeat(4, axis=0).repeat(2, axis=1)
        assert patches.max() < 192
        assert len(np.unique(patches)) > 16
        added = images - mosaic
        assert (added.min(), added.max()) == (0, 63)
        assert np.abs(np.bincount(added.ravel()) / (added.size / 64) - 1).max() < 0.25
    monkeypatch.setattr(mosaics, "BLOCK_BYTES", 1000)
    np.testing.assert_array_equal(synthetic("", "300x16x8x2/3")[0]["inputs"], table["inputs"])


def test_classes_are_learned_from_the_training_images():
    dataset = load_data("synthetic:400x12x12x3/20")
    train, test = dataset.splits["train"], dataset.splits["test"]
    means = np.stack(
        [train["inputs"][train["targets"] == label].mean(axis=0) for label in range(20)]
    )
    distance = ((test["inputs"][:, None] - means) ** 2).sum(axis=(2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(axis=1), test["targets"])


@pytest.mark.parametrize("form", ["10x1x1x1/2", "13x3x2x1/5", "20x1x9x4/1000", "11x2x2x7/11"])
def test_synthetic_images_of_any_rank(form):
    dataset = load_data(f"synthetic:{form}")
    shape = tuple(map(int, form.split("/")[0].split("x")))
    joined = dataset.joined("train", "validation", "test")
    assert joined["inputs"].shape == shape
    counts = np.bincount(joined["targets"], minlength=len(dataset.task.labels))
    assert len(counts) == len(dataset.task.labels) == int(form.split("/")[1])
    assert np.ptp(counts) <= 1


def test_imagenet_sized_images_are_generated_fast():
    start = time.process_time()
    dataset = load_data("synthetic:512x224x224x3/1000")
    assert time.process_time() - start < 10
    assert dataset.splits["train"]["inputs"].shape == (410, 224, 224, 3)
    assert len(dataset.task.labels) == 1000


EXPECTED = "expected synthetic:COUNTxHEIGHTxWIDTHxCHANNELS/CLASSES"
FAULTS = {
    "synthetic": EXPECTED + "$",
    "synthetic:": EXPECTED + ", such as synthetic:512x224x224x3/1000$",
    "synthetic:512x224x224x3": EXPECTED,
    "synthetic:512x224x224/10": EXPECTED,
    "synthetic:512x224x224x3/": EXPECTED,
    "synthetic:512x224x224x3/10/2": EXPECTED,
    "synthetic:512x224x0x3/10": EXPECTED,
    "synthetic:0x224x224x3/10": EXPECTED,
    "synthetic:-5x224x224x3/10": EXPECTED,
    "synthetic: 512x224x224x3/10": EXPECTED,
    "synthetic:512x224x224x3/10\n": EXPECTED,
    "synthetic:512X224X224X3/10": EXPECTED,
    "synthetic:٥١٢x224x224x3/10": EXPECTED,
    "synthetic:" + "9" * 5000 + "x1x1x1/2": EXPECTED,
    "synthetic:1000000x1000x1000x3/10": r"3000000000000 bytes, allowed: 8589934592; " + EXPECTED,
    "synthetic:20x4x4x1/1": r"1 classes, allowed: 2 to 1048576; " + EXPECTED,
    "synthetic:20x4x4x1/2000000": r"2000000 classes, allowed: 2 to 1048576; " + EXPECTED,
    "synthetic:9x4x4x1/2": "9 examples, expected at least 10 to split$",
}


@pytest.mark.parametrize(("name", "fault"), FAULTS.items(), ids=[name[:40] for name in FAULTS])
def test_invalid_synthetic_names_are_explained(name, fault):
    with pytest.raises(DataError, match=f"^data {re.escape(repr(name))}: {fault}"):
        load_data(name)


def test_generated_sets_are_among_the_known():
    with pytest.raises(
        DataError, match=r"moving_digits, .*synthetic:COUNTxHEIGHTxWIDTHxCHANNELS/CLASSES$"
    ):
        load_data("")
    with pytest.raises(DataError, match="did you mean 'moving_digits'"):
        load_data("moving-digits")


# ---------------------------------------------------------------- sequences


def test_the_adding_problem_is_the_sum_of_one_marked_number_in_each_half():
    dataset = load_data("adding:11")
    assert dataset.task == Regression()
    table = dataset.splits["validation"]
    inputs, targets = table["inputs"], table["targets"]
    assert inputs.shape == (1000, 11, 2)
    marks = inputs[..., 1]
    assert set(np.unique(marks)) == {0.0, 1.0}
    assert (marks[:, :5].sum(axis=1) == 1).all()
    assert (marks[:, 5:].sum(axis=1) == 1).all()
    np.testing.assert_array_equal(targets[:, 0], (inputs[..., 0] * marks).sum(axis=1))
    assert np.var(targets) == pytest.approx(1 / 6, abs=0.02)


def test_copy_task_recalls_after_the_delay():
    dataset = load_data("copy:7")
    table = dataset.splits["test"]
    inputs, targets = table["inputs"], table["targets"]
    assert inputs.shape == targets.shape == (5000, 27)
    np.testing.assert_array_equal(targets[:, -10:], inputs[:, :10])
    assert set(np.unique(inputs[:, :10])) == set(range(2, 10))
    assert isinstance(dataset.task, Algorithm)
    assert (inputs[:, 16] == dataset.task.vocabulary.index("recall")).all()
    assert not inputs[:, 10:16].any()
    assert not inputs[:, 17:].any()
    assert not targets[:, :17].any()


def test_splits_of_sequences_differ_and_lengths_are_checked():
    splits = load_data("adding:5").splits
    assert not np.array_equal(splits["train"]["inputs"][:1000], splits["validation"]["inputs"])
    for bad in ("adding:1", "copy:0", "adding:", "copy:many"):
        with pytest.raises(DataError, match="allowed: a number from 2"):
            load_data(bad)
