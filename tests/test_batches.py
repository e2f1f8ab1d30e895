"""Batches: the sampler's rows, masked padding, and inputs scaled by training statistics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from train.batches import Batches, Scaling, fit_scaling
from train.dataset import as_many_of_each, stratified_split
from zoo import mlp


def table(count: int) -> dict:
    """Inputs that identify their row."""
    return {
        "inputs": np.arange(count, dtype=np.float32)[:, None] * [1, 10],
        "targets": np.arange(count, dtype=np.int32),
    }


def epoch_of(batches: Batches, epoch: int) -> np.ndarray:
    first = epoch * batches.steps_per_epoch
    return np.concatenate(
        [batches.rows(step) for step in range(first, first + batches.steps_per_epoch)]
    )


def test_a_batch_holds_its_rows_and_masks_the_padding():
    batches = Batches(table(5), 3, seed=2)
    for step in range(4):
        rows, batch = batches.rows(step), batches.batch(step)
        np.testing.assert_array_equal(batch["mask"], rows >= 0)
        valid = rows >= 0
        np.testing.assert_array_equal(batch["targets"][valid], rows[valid])
        np.testing.assert_array_equal(batch["inputs"][valid], rows[valid, None] * [1.0, 10.0])
        assert np.isfinite(batch["inputs"]).all(), (
            "padding holds valid values, or gradients of masked rows would be NaN"
        )


def test_a_mask_of_the_data_is_kept_under_the_padding():
    for mask in (
        np.array([True, False, True]),
        np.array([[True, False], [True, True], [False, False]]),
    ):
        batches = Batches({"inputs": np.zeros((3, 2)), "mask": mask}, 4, seed=None)
        found = np.asarray(batches.batch(0)["mask"])
        np.testing.assert_array_equal(found[:3], mask)
        assert not found[3].any()


def test_inputs_of_several_arrays():
    data = {"inputs": {"tokens": np.arange(8).reshape(4, 2), "lengths": np.array([2, 1, 2, 1])}}
    batch = Batches(data, 4, seed=1).batch(0)
    order = np.asarray(batch["inputs"]["tokens"])[:, 0] // 2
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_array_equal(batch["inputs"]["lengths"], np.array([2, 1, 2, 1])[order])


@pytest.mark.parametrize("count", [1, 3, 9])
def test_plan_contains_the_rows_of_its_steps(count):
    batches = Batches({"inputs": np.zeros((7, 1)), "targets": np.zeros(7)}, 2)
    plan = batches.plan(first=2, count=count)
    assert (plan.shape, plan.dtype) == ((count, 2), np.int32)
    for index in range(count):
        np.testing.assert_array_equal(plan[index], batches.rows(2 + index))


def test_fetch_is_traceable_and_equals_the_batch():
    batches = Batches(table(5), 2, seed=3, scaling=Scaling(np.float32(1), np.float32(2)))
    traced = jax.jit(batches.load)((batches.arrays(0), jnp.asarray(batches.rows(2))))
    jax.tree.map(np.testing.assert_array_equal, traced, batches.batch(2))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({}, "same, positive number"),
        ({"inputs": np.zeros((0, 2))}, "same, positive number"),
        ({"inputs": np.zeros((3, 2)), "targets": np.zeros(2)}, "'targets': \\(2,\\)"),
        ({"inputs": {"a": np.zeros(3), "b": np.zeros(2)}}, "'inputs.b': \\(2,\\)"),
        ({"inputs": np.float32(1)}, "same, positive number"),
        ({"inputs": [[0.0, 1.0]] * 1000}, r"same, positive number.{,400} of 2000 arrays$"),
        ({"inputs": np.zeros((3, 2)), "targets": np.array(["a", "b", "c"])}, "allowed: numbers"),
        ({"inputs": np.zeros((3, 2)), "targets": np.array([None] * 3)}, "allowed: numbers"),
        ({"inputs": np.zeros((3, 2), [("a", "f4")])}, "allowed: numbers"),
        (
            {"inputs": np.zeros((3, 2)), "targets": np.array([0, 1, 2**31])},
            "from 0 to 2147483648, allowed: those of int32",
        ),
        (
            {"inputs": np.zeros((3, 2)), "targets": np.array([0, 1, 2**63], np.uint64)},
            "allowed: those of uint32",
        ),
    ],
)
def test_faults_of_tables_are_named(data, fault):
    with pytest.raises(ValueError, match=fault):
        Batches(data, 2)


@pytest.mark.parametrize("size", [0, -1])
def test_invalid_batch_size_is_refused(size):
    with pytest.raises(ValueError, match=f"batch_size={size}, allowed: at least 1"):
        Batches(table(3), size)


@pytest.mark.parametrize("dtype", ["?", "u1", ">u2", ">i4", "<i8", ">f2", ">f4", ">f8"])
def test_byte_order_does_not_change_values(dtype):
    values = np.array([[0, 1], [1, 1], [1, 0]])
    batch = Batches({"inputs": values.astype(dtype)}, 3, seed=None).batch(0)
    np.testing.assert_array_equal(batch["inputs"], values)


def test_device_arrays_keep_their_dtype():
    data = {"inputs": jnp.ones((3, 2), jnp.bfloat16), "targets": np.ones((3, 1), jnp.bfloat16)}
    batch = Batches(data, 3).batch(0)
    assert batch["inputs"].dtype == batch["targets"].dtype == jnp.bfloat16


# ---------------------------------------------------------------- a few labels


def labelled(count: int = 200, seed: int = 0) -> dict:
    """Four classes with different frequencies."""
    targets = np.random.default_rng(seed).choice(4, count, p=[0.4, 0.3, 0.2, 0.1]).astype(np.int32)
    return {"inputs": np.arange(count, dtype=np.float32)[:, None], "targets": targets}


def rows_with_labels(batches: Batches, epoch: int = 0) -> list[int]:
    rows = epoch_of(batches, epoch)
    return sorted(rows[rows >= 0].tolist())


@pytest.mark.parametrize("labels", [1, 4, 20, 41, 120])
@pytest.mark.parametrize("seed", [0, 3])
def test_labels_are_balanced_over_classes(labels, seed):
    data = labelled()
    batches = Batches(data, 8, seed=seed, labels=labels)
    assert batches.steps_per_epoch == -(-labels // 8)
    rows = rows_with_labels(batches)
    assert len(set(rows)) == labels
    found = np.bincount(data["targets"][rows], minlength=4)
    assert found.max() - found.min() <= 1


def test_seed_selects_the_classes_with_one_more_label():
    data = labelled()
    more = {
        int(data["targets"][rows_with_labels(Batches(data, 8, seed=seed, labels=1))[0]])
        for seed in range(40)
    }
    assert more == {0, 1, 2, 3}


def test_class_with_too_few_examples_is_named():
    few = "class 3 has 30 of the 200 examples, with 4 classes"
    for labels in (0, -1, 121):
        with pytest.raises(ValueError, match=f"labels={labels}, allowed: 1 to 120, because {few}"):
            Batches(labelled(), 8, labels=labels)


def test_balanced_classes_match_a_stratified_split():
    targets = np.tile(np.arange(4), 50)
    for labels in (6, 41, 200):
        drawn = stratified_split(targets, (labels, 200 - labels), 7)[0]
        np.testing.assert_array_equal(as_many_of_each(targets, labels, 7), drawn)


def test_every_epoch_has_the_same_labels_in_another_order():
    batches = Batches(labelled(), 8, seed=3, labels=20)
    epochs = [epoch_of(batches, epoch) for epoch in range(3)]
    assert all(
        (rows[20:] == -1).all() and sorted(rows[:20]) == sorted(epochs[0][:20]) for rows in epochs
    )
    assert len({tuple(rows) for rows in epochs}) == 3
    for step in (0, 2, 5):
        batch, rows = batches.batch(step), batches.rows(step)
        valid = rows >= 0
        np.testing.assert_array_equal(batch["inputs"][valid, 0], rows[valid])
        np.testing.assert_array_equal(batch["mask"], valid)


def test_seed_selects_the_labelled_examples():
    drawn = [
        rows_with_labels(Batches(labelled(), 8, seed=seed, labels=20)) for seed in (3, 3, 4, 5)
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(rows) for rows in drawn}) == 3
    # Replicas draw their own labels, as in single runs.
    first = Batches(labelled(), 8, seed=3, labels=20)
    for seed, expected in ((4, drawn[2]), (5, drawn[3])):
        other = first.with_seed(seed)
        assert rows_with_labels(other) == expected
        alone = Batches(labelled(), 8, seed=seed, labels=20)
        np.testing.assert_array_equal(other.rows_of(0, 9), alone.rows_of(0, 9))
    assert rows_with_labels(first) == drawn[0]


def test_replicas_draw_their_own_labels(monkeypatch):
    seen = {}
    recorded = Batches.rows_of

    def rows_of(self, first, count):
        rows = recorded(self, first, count)
        seen.setdefault(self.seed, set()).update(rows[rows >= 0].tolist())
        return rows

    monkeypatch.setattr(Batches, "rows_of", rows_of)
    data = labelled()
    fit: dict[str, Any] = {"batch_size": 8, "epochs": 2, "labels": 12, "seed": 3}
    together = train.fit(mlp, mlp.Config(sizes=(1, 4)), data, replicas=2, **fit)
    assert {seed: len(rows) for seed, rows in seen.items() if seed in (3, 4)} == {3: 12, 4: 12}
    assert seen[3] != seen[4]
    for seed in (3, 4):
        assert sorted(seen[seed]) == rows_with_labels(Batches(data, 8, seed=seed, labels=12))
        assert int(together.members[f"seed-{seed}"].state.step) == 4, (
            "two epochs of 12 examples, not of 200"
        )


def test_selecting_all_labels_is_the_full_data():
    data = {**labelled(), "targets": np.repeat(np.arange(4), 50)}
    batches = Batches(data, 8, seed=3, labels=200)
    assert rows_with_labels(batches) == list(range(200))
    assert batches.steps_per_epoch == Batches(data, 8, seed=3).steps_per_epoch


@pytest.mark.parametrize(
    ("change", "labels", "fault"),
    [
        (
            {"targets": np.zeros(200, np.float32)},
            4,
            "labels=4, allowed for data whose targets are not classes: None",
        ),
        (
            {"targets": np.zeros((200, 2), np.int32)},
            4,
            "labels=4, allowed for data whose targets are not classes: None",
        ),
        (
            {"targets": {"a": np.zeros(200, np.int32)}},
            4,
            "labels=4, allowed for data whose targets are not classes: None",
        ),
    ],
)
def test_more_labels_than_examples_are_refused(change, labels, fault):
    with pytest.raises(ValueError, match=fault):
        Batches({**labelled(), **change}, 8, labels=labels)
    with pytest.raises(
        ValueError, match="labels=4, allowed for data whose targets are not classes: None"
    ):
        Batches({"inputs": labelled()["inputs"]}, 8, labels=4)


# ---------------------------------------------------------------- scaling


RAW = np.random.default_rng(0).integers(0, 200, (50, 4, 3), dtype=np.uint8)
EXPECTED = {
    "none": lambda raw: raw,
    "unit": lambda raw: raw / 255,
    "standardize": lambda raw: (raw - RAW.astype(float).mean()) / RAW.astype(float).std(),
    "zscore": lambda raw: (raw - RAW.astype(float).mean(0)) / RAW.astype(float).std(0),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_scaling_equals_numpy_in_double_precision(kind):
    scaling = fit_scaling(kind, RAW, (0.0, 255.0))
    other = np.random.default_rng(1).integers(0, 256, (7, 4, 3), dtype=np.uint8)
    for raw in (RAW, other):
        found = scaling(jnp.asarray(raw))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, EXPECTED[kind](raw.astype(float)), rtol=2e-6, atol=2e-6)


def test_scaled_training_inputs_have_the_promised_statistics():
    batches = {
        kind: np.asarray(
            Batches(
                {"inputs": RAW}, 50, seed=None, scaling=fit_scaling(kind, RAW, (0.0, 199.0))
            ).batch(0)["inputs"]
        )
        for kind in EXPECTED
    }
    assert (batches["unit"].min(), batches["unit"].max()) == (0, 1)
    assert abs(batches["standardize"].mean()) < 1e-5
    assert abs(batches["standardize"].std() - 1) < 1e-5
    assert np.abs(batches["zscore"].mean(0)).max() < 1e-5
    assert np.abs(batches["zscore"].std(0) - 1).max() < 1e-5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, -1e6])
def test_constant_training_inputs_stay_bounded_in_the_test(value, dtype):
    raw = np.full((999, 2), value, dtype)
    raw[:, 1] = np.arange(999)
    scaled = np.asarray(
        fit_scaling("zscore", raw, (0.0, 1.0))(
            jnp.asarray([[value + 1, 3.0], [value, 4.0]], jnp.float32)
        )
    )
    assert (scaled[:, 0] == 0).all()
    assert np.isfinite(scaled).all()
    for kind, size in (("standardize", 999), ("standardize", 100), ("unit", 100)):
        scaling = fit_scaling(kind, raw[:size, :1], (value, value))
        assert np.abs(scaling(jnp.asarray([[value], [value + 1]], jnp.float32))).max() <= 1.1


@pytest.mark.parametrize("kind", ["unit", "standardize", "zscore"])
def test_boolean_inputs_are_scaled(kind):
    raw = np.array([[True, False], [False, True], [True, True]])
    found = fit_scaling(kind, raw, (0.0, 1.0))(jnp.asarray(raw))
    expected = fit_scaling(kind, raw.astype(np.float32), (0.0, 1.0))(jnp.asarray(raw, jnp.float32))
    np.testing.assert_array_equal(found, expected)


def test_unknown_scaling_is_refused():
    with pytest.raises(
        ValueError, match="preprocess='whiten', allowed: none, unit, standardize, zscore"
    ):
        fit_scaling("whiten", RAW, (0.0, 1.0))


@pytest.mark.parametrize("kind", ["standardize", "zscore"])
def test_chunked_statistics_equal_numpy(kind):
    raw = (
        np.random.default_rng(0).integers(0, 256, (3, 2**11 + 1, 1000), np.uint8).swapaxes(0, 1)
    )  # more than one piece
    axis = None if kind == "standardize" else 0
    scaling = fit_scaling(kind, raw, (0.0, 255.0))
    np.testing.assert_allclose(scaling.shift, raw.mean(axis, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(scaling.scale, 1 / raw.std(axis, dtype=np.float64), rtol=1e-6)


def test_imagenet_scaling_equals_torchvision_normalize():
    """As torchvision's transforms.Normalize on an image with values from 0 to 1."""
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), np.uint8)
    scaled = fit_scaling("imagenet", images, (0.0, 255.0))(jnp.asarray(images))
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    with pytest.raises(
        ValueError,
        match=r"preprocess='imagenet': inputs \[5, 4, 3, 1\], allowed: \[n, height, width, 3\]",
    ):
        fit_scaling("imagenet", images[..., :1], (0.0, 255.0))
