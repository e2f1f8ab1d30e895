"""Meaningless runs are refused in one line before any work; equivalent settings are accepted."""

import dataclasses
import functools
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from train.augment import Augment
from train.data import captions, load_data, pairs, parse, spoken_digits, text
from train.dataset import Dataset
from train.engine.checks import READ, check_columns, check_read, require_declared, with_targets
from train.engine.optimizer import Optimizer
from train.engine.parallel import Parallel
from train.engine.run_folder import RunFolder
from train.engine.stage import prepare
from train.recipe import BETTER, Recipe, Target, from_dict, module_of, to_dict, written_out
from train.recipes import RECIPES
from zoo import MODELS, Outputs, autoencoder, ctc, fcn, mlp, rbm, rnn, rnnlm, seq2seq

RNG = np.random.default_rng(0)
N = 12
X = RNG.normal(size=(N, 4)).astype(np.float32)
CLASSES = np.arange(N) % 3
ROWS = np.full((N, 3), 1 / 3, np.float32)
TIMES = RNG.normal(size=(N, 5, 2)).astype(np.float32)
STEPS = np.arange(N * 5).reshape(N, 5) % 2
SHORTER = np.arange(5) < 2 + np.arange(N)[:, None] % 4
TOKENS = np.arange(N * 5).reshape(N, 5) % 7

SOFTMAX = mlp.Config(sizes=(4, 5, 3))
LOGISTIC = mlp.Config(sizes=(4, 5, 3), output="logistic")
LINEAR = mlp.Config(sizes=(4, 5, 3), output="linear")
ONE = mlp.Config(sizes=(4, 1), output="logistic")
SEQUENCES = rnn.Config(inputs=2, units=(3,), output_units=2)
WRITER = rnnlm.Config(vocabulary=7, features=4, units=(4,))


def _fit(module, cfg, data, **settings) -> train.Result:
    return train.fit(module, cfg, data, **{"batch_size": 6, "steps": 2, **settings})


def _bits(tree) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def _refused(tmp_path, words, make) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        make(tmp_path / "run")
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message) < 400
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- data

DATA: dict[str, tuple[Any, Any, Any, tuple[str, ...]]] = {
    "a class too many": (
        mlp,
        SOFTMAX,
        {"targets": CLASSES + 1},
        ("train targets", "class 3", "allowed: 0 to 2"),
    ),
    "a negative class": (mlp, SOFTMAX, {"targets": CLASSES - 1}, ("class -1", "allowed: 0 to 2")),
    "a class too many of logistic outputs": (
        mlp,
        LOGISTIC,
        {"targets": CLASSES + 1},
        ("class 3", "allowed: 0 to 2"),
    ),
    "classes as floats": (
        mlp,
        SOFTMAX,
        {"targets": CLASSES * 1.0},
        ("float64 [12]", "integers from 0 to 2", ".astype(int)"),
    ),
    "classes in a column": (
        mlp,
        SOFTMAX,
        {"targets": CLASSES[:, None]},
        ("int64 [12, 1]", "integers from 0 to 2", "[..., 0]"),
    ),
    "real numbers for classes": (
        mlp,
        SOFTMAX,
        {"targets": X[:, 0]},
        ("float32 [12]", "integers from 0 to 2"),
    ),
    "words": (
        mlp,
        SOFTMAX,
        {"targets": np.array(["cat"] * N)},
        ("train targets", "<U3", "integers from 0 to 2"),
    ),
    "objects": (
        mlp,
        SOFTMAX,
        {"targets": np.array([None] * N)},
        ("train targets", "object", "integers from 0 to 2"),
    ),
    "one softmax unit": (
        mlp,
        mlp.Config(sizes=(4, 1)),
        {"targets": 0 * CLASSES},
        ("softmax of 1 output", "2 outputs or more"),
    ),
    "one softmax unit for each step": (
        rnn,
        dataclasses.replace(SEQUENCES, output_units=1),
        {"inputs": TIMES, "targets": 0 * STEPS},
        ("softmax of 1 output",),
    ),
    "rows of another length": (
        mlp,
        SOFTMAX,
        {"targets": ROWS[:, :2]},
        ("float32 [12, 2]", "sum to 1 [12, 3]"),
    ),
    "no distribution": (mlp, SOFTMAX, {"targets": 2 * ROWS}, ("sum is 2", "allowed", "sum is 1")),
    "a negative share": (
        mlp,
        SOFTMAX,
        {"targets": ROWS + np.array([-1, 0, 1])},
        ("from -0.66", "allowed: 0 to 1"),
    ),
    "several of one kind": (mlp, SOFTMAX, {"targets": np.ones((N, 3), int)}, ("sum is 3",)),
    "logistic targets of -1": (
        mlp,
        LOGISTIC,
        {"targets": -ROWS},
        ("train targets", "from -0.33", "allowed: 0 to 1"),
    ),
    "logistic targets of 255": (
        mlp,
        LOGISTIC,
        {"targets": 255 * np.eye(3)[CLASSES]},
        ("from 0 to 255", "allowed: 0 to 1"),
    ),
    "integers of 0 and 2": (
        mlp,
        LOGISTIC,
        {"targets": 2 * np.eye(3, dtype=int)[CLASSES]},
        ("from 0 to 2", "allowed: 0 to 1"),
    ),
    "one logistic unit": (
        mlp,
        ONE,
        {"targets": CLASSES % 2},
        ("int64 [12]", "[12, 1]", "[..., None]"),
    ),
    "one linear unit": (
        mlp,
        dataclasses.replace(ONE, output="linear"),
        {"targets": X[:, 0]},
        ("[12, 1]", "[..., None]"),
    ),
    "not a number": (
        mlp,
        LINEAR,
        {"targets": np.where(ROWS > 0, np.nan, 0)},
        ("train targets", "nan", "finite numbers"),
    ),
    "infinite": (
        mlp,
        LINEAR,
        {"targets": np.where(np.eye(N, 3) > 0, np.inf, 0)},
        ("train targets", "inf", "finite numbers"),
    ),
    "classes of steps": (
        rnn,
        SEQUENCES,
        {"inputs": TIMES, "targets": STEPS + 1},
        ("class 2", "allowed: 0 to 1"),
    ),
    "no target": (mlp, SOFTMAX, {"targets": None}, ("train has no targets", "inputs")),
    "no input": (mlp, SOFTMAX, {"inputs": None}, ("train has no inputs", "targets")),
    "nothing": (
        mlp,
        SOFTMAX,
        {"inputs": None, "targets": None},
        ("train has no inputs", "nothing"),
    ),
    "another name of a mask": (
        rnn,
        SEQUENCES,
        {"inputs": TIMES, "targets": STEPS, "masks": SHORTER},
        ("'masks'", "mean mask?"),
    ),
    "a mask in capitals": (
        mlp,
        SOFTMAX,
        {"Mask": CLASSES > 0},
        ("'Mask'", "did you mean mask?", "inputs, targets, mask, reset"),
    ),
    "weights": (
        mlp,
        SOFTMAX,
        {"sample_weight": X[:, 0]},
        ("'sample_weight'", "allowed: inputs, targets, mask, reset"),
    ),
    "a number for a name": (mlp, SOFTMAX, {1: CLASSES}, ("by the name 1", "allowed: texts")),
    "a mask of 0 and 2": (
        mlp,
        SOFTMAX,
        {"mask": 2 * (CLASSES > 0)},
        ("train mask=2", "allowed: True and False, or 1 and 0"),
    ),
    "a mask of halves": (
        mlp,
        SOFTMAX,
        {"mask": (CLASSES > 0) / 2},
        ("train mask=0.5", "allowed: True and False"),
    ),
    "a mask of nothing known": (
        mlp,
        SOFTMAX,
        {"mask": np.full(N, np.nan)},
        ("train mask=nan", "allowed: True and False"),
    ),
    "a mask of words": (
        mlp,
        SOFTMAX,
        {"mask": ["yes"] * N},
        ("train mask: <U3", "allowed: True and False"),
    ),
    "a mask that hides everything": (
        mlp,
        SOFTMAX,
        {"mask": CLASSES < 0},
        ("train mask: False everywhere",),
    ),
    "a mask of another shape": (
        rnn,
        SEQUENCES,
        {"inputs": TIMES, "targets": STEPS, "mask": SHORTER[:, :4]},
        ("mask: shape",),
    ),
    "a mask for each number": (mlp, SOFTMAX, {"mask": X > 0}, ("mask: shape", "expected")),
    "resets of 0 and 3": (
        rnnlm,
        WRITER,
        {"inputs": TOKENS, "targets": TOKENS, "reset": 3 * CLASSES},
        ("train reset=3",),
    ),
    "lists of different lengths": (
        mlp,
        SOFTMAX,
        {"inputs": [[1.0], [1.0, 2.0]] * 6},
        ("train inputs", "different lengths"),
    ),
    "a token too many": (
        rnnlm,
        WRITER,
        {"inputs": TOKENS, "targets": TOKENS + 1},
        ("train targets", "class 7", "0 to 6"),
    ),
    "a token that is none": (
        rnnlm,
        WRITER,
        {"inputs": TOKENS + 1, "targets": TOKENS},
        ("inputs", "from 1 to 7", "0 to 6"),
    ),
    "a negative token": (
        rnnlm,
        WRITER,
        {"inputs": TOKENS - 1, "targets": TOKENS},
        ("inputs", "from -1 to 5", "0 to 6"),
    ),
    "tokens as floats": (
        rnnlm,
        WRITER,
        {"inputs": TOKENS * 1.0, "targets": TOKENS},
        ("inputs: float32", "integers"),
    ),
    "target tokens as floats": (
        rnnlm,
        WRITER,
        {"inputs": TOKENS, "targets": TOKENS * 1.0},
        ("targets: float64", "0 to 6"),
    ),
    "pixels beyond 1": (
        rbm,
        rbm.Config(visible=4, hidden=2),
        {"inputs": 2 * np.abs(X)},
        ("inputs", "allowed: 0 to 1"),
    ),
    "not a pixel": (
        autoencoder,
        autoencoder.Config(sizes=(4, 2)),
        {"inputs": X * np.nan},
        ("from nan", "allowed: 0 to 1"),
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_data_invalid_for_the_loss_are_refused(tmp_path, case):
    module, cfg, change, words = DATA[case]
    data = {
        name: column
        for name, column in ({"inputs": X, "targets": CLASSES} | change).items()
        if column is not None
    }
    _refused(tmp_path, words, lambda out: _fit(module, cfg, data, out=out))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": CLASSES + 1}, ("validation targets", "class 3")),
        ({"weights": CLASSES}, ("validation column 'weights'",)),
        ({"mask": CLASSES < 0}, ("validation mask: False everywhere",)),
        ({"inputs": X[:, :3]}, ("validation split: inputs: shape", "4 values")),
        ({"targets": X[:, 0]}, ("validation targets", "float32 [12]")),
    ],
)
def test_validation_data_are_checked_before_the_first_step(tmp_path, change, words):
    data = {"inputs": X, "targets": CLASSES}
    _refused(
        tmp_path, words, lambda out: _fit(mlp, SOFTMAX, data, validation=data | change, out=out)
    )


def test_data_from_files_are_checked_equally(tmp_path):
    arrays: dict[str, Any] = {"inputs": X, "targets": 255 * np.eye(3, dtype=np.float32)[CLASSES]}
    np.savez(tmp_path / "arrays.npz", **arrays)
    data, settings = f"npz:{tmp_path / 'arrays.npz'}", {"preprocess": "none"}
    _refused(
        tmp_path,
        ("targets", "allowed: 0 to 1"),
        lambda out: _fit(mlp, LOGISTIC, data, out=out, **settings),
    )
    arrays["targets"] = CLASSES
    np.savez(tmp_path / "arrays.npz", **arrays)
    one = mlp.Config(sizes=(4, 2))
    _refused(
        tmp_path,
        ("class 2", "allowed: 0 to 1"),
        lambda out: _fit(mlp, one, data, out=out, **settings),
    )


def test_unused_splits_are_refused(tmp_path):
    table = {"inputs": X, "targets": CLASSES}
    _refused(
        tmp_path,
        ("'valid'", "train, validation, test"),
        lambda _: Dataset("mine", {"train": table, "valid": table}),
    )
    _refused(
        tmp_path,
        ("train: list", "arrays by name"),
        lambda _: Dataset("mine", {"train": [X, CLASSES]}),
    )  # pyright: ignore
    whole = {"train": table, "validation": table | {"mask": CLASSES > 0}}
    words = ("mask in one of train, validation",)
    how: Any = {"train_on": "train+validation"}
    _refused(
        tmp_path, words, lambda out: _fit(mlp, SOFTMAX, Dataset("mine", whole), out=out, **how)
    )
    other = {"validation": table, "preprocess": "none"}
    _refused(
        tmp_path,
        ("validation", "its own splits"),
        lambda out: _fit(mlp, SOFTMAX, "digits", out=out, **other),
    )
    _refused(
        tmp_path,
        ("train_on='train'", "only test"),
        lambda out: _fit(mlp, SOFTMAX, Dataset("mine", {"test": table}), out=out),
    )


class Undeclared:
    """A Config of a user's model without declarations."""


class Counting(Undeclared):
    """Its outputs are a number of units."""

    outputs = 3
    input_range = None


class Ranged(Undeclared):
    """It does not declare its inputs."""

    outputs = Outputs("targets")


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (Undeclared(), ("Undeclared has no property 'outputs'",)),
        (Ranged(), ("Ranged has no property 'input_range'",)),
        (Counting(), ("Counting: outputs=3, allowed: a zoo.base.Outputs",)),
    ],
)
def test_config_without_declarations_is_refused(tmp_path, cfg, words):
    words = (*words, "tests.test_refused.", "zoo.base.Model")
    _refused(tmp_path, words, lambda out: _fit(mlp, cfg, {"inputs": X, "oddity": X}, out=out))


def test_declared_configs_pass():
    for module in MODELS.values():
        require_declared(module.PRESETS["tiny"])


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize(
    ("cfg", "targets", "same"),
    [
        (LOGISTIC, np.eye(3, dtype=np.float32)[CLASSES], [int, bool, np.uint8]),
        (SOFTMAX, np.eye(3, dtype=np.float32)[CLASSES], [int, bool]),
        (LINEAR, np.arange(N * 3, dtype=np.float32).reshape(N, 3), [int, np.uint8]),
        (ONE, (CLASSES % 2).astype(np.float32)[:, None], [int, bool]),
        (mlp.Config(sizes=(4, 2)), CLASSES % 2, [bool, np.uint8]),
    ],
)
def test_targets_of_another_kind_are_the_same_targets(cfg, targets, same):
    expected = _fit(mlp, cfg, {"inputs": X, "targets": targets})
    for kind in same:
        assert _bits(_fit(mlp, cfg, {"inputs": X, "targets": targets.astype(kind)}).state) == _bits(
            expected.state
        )


def test_masks_of_another_kind_and_lists_are_the_same_data():
    data = {"inputs": TIMES, "targets": STEPS}
    expected = _bits(_fit(rnn, SEQUENCES, data | {"mask": SHORTER}).state)
    assert expected != _bits(_fit(rnn, SEQUENCES, data).state)
    for mask in (
        SHORTER.astype(int),
        SHORTER.astype(np.float32),
        SHORTER.tolist(),
        jnp.asarray(SHORTER),
    ):
        assert _bits(_fit(rnn, SEQUENCES, data | {"mask": mask}).state) == expected
    lists = {"inputs": TIMES.tolist(), "targets": STEPS.tolist(), "mask": SHORTER}
    assert _bits(_fit(rnn, SEQUENCES, lists).state) == expected


@pytest.mark.parametrize("hidden", [-100, 99])
def test_masked_values_are_not_checked(hidden):
    data = {"inputs": TOKENS, "targets": TOKENS, "mask": SHORTER}
    padded = data | {name: np.where(SHORTER, TOKENS, hidden) for name in ("inputs", "targets")}
    assert np.isfinite(_fit(rnnlm, WRITER, padded).history[-1]["loss"])
    rows = CLASSES > 0
    classes = {"inputs": X, "targets": np.where(rows, CLASSES, hidden), "mask": rows}
    assert np.isfinite(_fit(mlp, SOFTMAX, classes).history[-1]["loss"])


@pytest.mark.parametrize("name", MODELS)
def test_models_declare_their_examples(name):
    module = MODELS[name]
    for cfg in (module.PRESETS["tiny"], *([LINEAR, LOGISTIC] if module is mlp else [])):
        batch = module.example_batch(cfg, jax.random.key(0), 5)
        dataset = Dataset("example", {"train": batch})
        check_columns(dataset, batch)
        checked = with_targets(dataset, cfg, batch)
        if "targets" in batch:
            np.testing.assert_array_equal(checked.splits["train"]["targets"], batch["targets"])
            with pytest.raises(ValueError, match="targets"):
                with_targets(
                    Dataset("example", {"train": {**batch, "targets": batch["targets"] + np.inf}}),
                    cfg,
                    batch,
                )


@pytest.mark.parametrize(
    "data",
    [
        "digits",
        "digit_scenes:20",
        "digit_pixels:20",
        "moving_digits",
        "adding:5",
        "copy:5",
        "topics",
    ],
)
def test_sets_of_the_package_have_known_columns_and_right_targets(data):
    """From the first recipe of each data set."""
    recipe = next(
        recipe
        for recipe in RECIPES.values()
        if str(recipe.data).partition(":")[0] == data.partition(":")[0]
    )
    source = parse(data, like=recipe.data)
    dataset = load_data(source)
    stage = prepare(
        dataclasses.replace(recipe, data=source),
        dataset,
        module_of(recipe.model),
        Parallel(devices=1),
    )
    assert stage.dataset is dataset, "their targets are as the loss takes them"
    assert stage.recipe.select_by
    assert stage.recipe.select_mode


def test_augmentation_of_tokens_is_refused(tmp_path):
    shift = {"augment": Augment(shift=1)}
    batch = seq2seq.example_batch(seq2seq.PRESETS["tiny"], jax.random.key(0), 6)
    words = ("augment: inputs are lengths, source, target", "allowed: one array of images")
    _refused(
        tmp_path, words, lambda out: _fit(seq2seq, seq2seq.PRESETS["tiny"], batch, out=out, **shift)
    )
    tokens = {"inputs": TOKENS, "targets": TOKENS}
    _refused(
        tmp_path,
        ("augment: inputs (5,)", "images"),
        lambda out: _fit(rnnlm, WRITER, tokens, out=out, **shift),
    )


def test_pairs_and_labels_of_pixels_are_checked_too():
    for module, name in ((seq2seq, "source"), (seq2seq, "target")):
        cfg = module.PRESETS["tiny"]
        batch = jax.tree.map(np.array, module.example_batch(cfg, jax.random.key(0), 6))
        batch["inputs"][name][2, 1] = 1000
        with pytest.raises(
            ValueError, match=rf"train inputs.{name}: values from . to 1000, allowed: 0 to"
        ):
            _fit(module, cfg, batch)
    cfg = fcn.PRESETS["tiny"]
    batch = jax.tree.map(np.array, fcn.example_batch(cfg, jax.random.key(0), 6))
    batch["targets"][~batch["mask"]] = 255
    with_targets(Dataset("void", {"train": batch}), cfg, batch)
    with pytest.raises(ValueError, match="class 255"):
        with_targets(
            Dataset("void", {"train": {**batch, "mask": np.ones_like(batch["mask"])}}), cfg, batch
        )


# ---------------------------------------------------------------- settings

GOOD = {"inputs": X, "targets": CLASSES}
IDLE: dict[str, dict[str, Any]] = {
    "patience": {"patience": 3},
    "optimizer.plateau_factor": {"optimizer": Optimizer(plateau_factor=0.5)},
    "optimizer.plateau_patience": {"optimizer": Optimizer(plateau_patience=2)},
    "select_by": {"select_by": "loss"},
    "select_mode": {"select_mode": "min"},
    "keep_every": {"keep_every": 1, "out": None},
    "transfer": {"transfer": "unroll"},
    "optimizer.decay": {"optimizer": Optimizer(decay=0.5)},
    "optimizer.decay_every": {"optimizer": Optimizer(schedule="cosine", decay_every=3)},
    "optimizer.momentum_epochs": {"optimizer": Optimizer(momentum_epochs=2)},
    "optimizer.nesterov": {"optimizer": Optimizer(momentum=0, nesterov=True)},
    "augment.smoothness": {"augment": Augment(smoothness=2)},
    "augment.masks": {"augment": Augment(masks=3)},
}


def test_the_table_has_every_setting_that_may_be_idle():
    of_data = {"data.subwords", "data.min_count", "data.coefficients"}  # see SETTINGS
    assert IDLE.keys() | of_data == READ.keys()


@pytest.mark.parametrize("setting", IDLE)
def test_unused_settings_are_refused(tmp_path, setting):
    how = dict(IDLE[setting])
    words = (f"{setting}=", "allowed without")
    if "transfer" in how:
        recipe = Recipe(name="mine", model=SOFTMAX, **how)
        _refused(tmp_path, words, lambda _: check_read(recipe, validates=True, kept=True))
    else:
        _refused(tmp_path, words, lambda out: _fit(mlp, SOFTMAX, GOOD, **{"out": out, **how}))


@pytest.mark.parametrize("setting", ["patience", "optimizer.plateau_factor"])
def test_training_on_both_splits_is_training_without_validation(tmp_path, setting):
    recipe = dataclasses.replace(
        RECIPES["mlp-digits"], train_on="train+validation", **IDLE[setting]
    )
    _refused(
        tmp_path,
        (f"mlp-digits: {setting}=", "validation split"),
        lambda out: train.run(recipe, out, quiet=True),
    )
    several = dataclasses.replace(
        recipe,
        patience=None,
        optimizer=Optimizer(),
        sweep=("optimizer.plateau-factor", "0.5", "0.1"),
    )
    _refused(tmp_path, ("plateau_factor=0.5",), lambda out: train.run(several, out, quiet=True))


def test_registered_recipes_read_all_that_their_authors_set():
    for recipe in RECIPES.values():
        for stage in recipe.stages:
            validates = "+" not in stage.train_on
            check_read(stage, validates=validates, kept=True)
            assert stage.select_by is None or stage.select_by in BETTER
            changed = dataclasses.replace(
                stage, optimizer=dataclasses.replace(stage.optimizer, decay_every=123.0)
            )
            with pytest.raises(
                ValueError,
                match=r"optimizer.decay_every=123.0, allowed without schedule='step': 10.0",
            ):
                check_read(changed, validates=validates, kept=True)
    whole = dataclasses.replace(RECIPES["mlp-digits"], train_on="train+validation")
    check_read(whole, validates=False, kept=True)  # its select_by waits for a validation split
    constant = dataclasses.replace(
        RECIPES["mlp-dropout"].optimizer, schedule="constant"
    )  # so does its decay for a schedule
    check_read(
        dataclasses.replace(RECIPES["mlp-dropout"], optimizer=constant), validates=False, kept=True
    )


def _read(data, model: Any = seq2seq.PRESETS["tiny"]):
    recipe = Recipe(name="mine", model=model, data=data)
    check_read(recipe, validates=True, kept=True)


SETTINGS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a text for a number": (
        lambda: _fit(mlp, SOFTMAX, GOOD, batch_size="20"),
        ("batch_size='20'", "an integer"),
    ),
    "a truth for a number": (
        lambda: _fit(mlp, SOFTMAX, GOOD, batch_size=True),
        ("batch_size=True", "an integer"),
    ),
    "a fraction for a count": (
        lambda: _fit(mlp, SOFTMAX, GOOD, batch_size=20.0),
        ("batch_size=20.0", "an integer"),
    ),
    "numpy's fraction": (
        lambda: _fit(mlp, SOFTMAX, GOOD, steps=np.float64(2)),
        ("steps=2.0", "an integer"),
    ),
    "a name for devices": (
        lambda: _fit(mlp, SOFTMAX, GOOD, parallel="jit"),
        ("parallel='jit'", "Parallel"),
    ),
    "an array": (
        lambda: _fit(mlp, SOFTMAX, GOOD, steps=np.zeros(1000)),
        ("steps=array", "an integer"),
    ),
    "an unknown way": (
        lambda: _fit(mlp, SOFTMAX, GOOD, preprocess="whiten"),
        ("preprocess='whiten'", "none, unit,"),
    ),
    "an unknown direction": (
        lambda: _fit(mlp, SOFTMAX, GOOD, select_mode="least"),
        ("select_mode='least'", "max, min"),
    ),
    "a name for an optimizer": (
        lambda: _fit(mlp, SOFTMAX, GOOD, optimizer="adam"),
        ("optimizer='adam'", "Optimizer"),
    ),
    "a text for a rate": (
        lambda: Optimizer(learning_rate="0.1"),  # pyright: ignore
        ("optimizer: learning_rate='0.1'", "a number"),
    ),
    "an unknown schedule": (
        lambda: Optimizer(schedule="cos"),  # pyright: ignore
        ("schedule='cos'", "constant, step,"),
    ),
    "a pattern alone": (lambda: Optimizer(only="layer_*"), ("only='layer_*'", "a tuple")),  # pyright: ignore
    "half a pixel": (lambda: Augment(crop=0.5), ("augment: crop=0.5", "an integer")),  # pyright: ignore
    "a window of truth": (lambda: text.Config(window=True), ("data.window=True", "an integer")),
    "subwords of words": (
        lambda: _read(pairs.Config(source="a", tokens="words", subwords=7)),
        ("data.subwords=7", "without tokens='subwords': 8000"),
    ),
    "rare subwords": (
        lambda: _read(pairs.Config(source="a", min_count=7)),
        ("data.min_count=7", "without tokens 'words' or 'characters': 1"),
    ),
    "coefficients without cepstra": (
        lambda: _read(spoken_digits.Config(coefficients=7), ctc.PRESETS["tiny"]),
        ("data.coefficients=7", "without features='mfcc': 13"),
    ),
    "a bound in words": (
        lambda: Target(metric="test error %", at_most="8"),  # pyright: ignore
        ("target test error %: at_most='8'", "a number"),
    ),
    "one and a half devices": (lambda: Parallel(devices=1.5), ("devices=1.5", "an integer")),  # pyright: ignore
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_of_another_type(tmp_path, case):
    make, words = SETTINGS[case]
    _refused(tmp_path, (*words, "allowed"), lambda _: make())


@pytest.mark.parametrize("integer", [np.int64, np.int32, jnp.int32])
@pytest.mark.parametrize("real", [np.float32, np.float64, jnp.float32])
def test_numbers_of_numpy_and_jax_are_the_same_settings_also_in_files(tmp_path, integer, real):
    def recipe(count, number, truth) -> Recipe:
        return Recipe(
            name="numbers",
            model=SOFTMAX,
            batch_size=count(6),
            seed=count(3),
            steps=count(2),
            patience=count(9),
            data=captions.Config(image_shape=[count(4), count(5), count(1)], subwords=count(50)),  # pyright: ignore
            eval_every=number(0.5),
            optimizer=Optimizer(
                learning_rate=number(0.25),
                nesterov=truth(True),
                only=["layer_0.*"],  # pyright: ignore
            ),
            augment=Augment(crop=count(1), rotate=number(0.5), flip_vertical=truth(True)),
            sweep=("optimizer.learning-rate", number(0.5), number(0.25)),  # pyright: ignore
            targets=(Target(metric="test error %", at_most=number(0.5)),),
        )

    mine, plain = recipe(integer, real, np.bool_), recipe(int, float, bool)
    assert mine == plain
    assert json.dumps(to_dict(mine)) == json.dumps(to_dict(plain))
    assert from_dict(json.loads(json.dumps(to_dict(mine)))) == plain
    assert hash(mine.optimizer) == hash(plain.optimizer)
    assert Parallel(devices=integer(1), accumulate=integer(2)) == Parallel(devices=1, accumulate=2)
    out = tmp_path / "run"
    settings = {
        "optimizer": Optimizer(learning_rate=real(0.25)),
        "batch_size": integer(6),
        "eval_every": real(0.5),
    }
    result = train.fit(mlp, SOFTMAX, GOOD, out=out, steps=integer(2), seed=integer(3), **settings)
    _fit(
        mlp, SOFTMAX, GOOD, out=out, seed=3, optimizer=Optimizer(learning_rate=0.25), eval_every=0.5
    )  # resumes, as it is equal
    assert _bits(train.load(out)[2]) == _bits(result.params)


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize(("select_by", "best"), [("loss", min), ("accuracy", max), (None, max)])
def test_a_metric_is_selected_in_its_own_direction(select_by, best):
    """Random labels, memorised: the validation loss soon rises, and accuracy fluctuates."""
    rng = np.random.default_rng(1)
    data, held_out = (
        {"inputs": rng.normal(size=(20, 4)), "targets": rng.integers(0, 3, 20)} for _ in range(2)
    )
    settings: dict[str, Any] = {
        "batch_size": 20,
        "epochs": 12,
        "eval_every": 1,
        "optimizer": Optimizer(learning_rate=1.0),
    }
    result = train.fit(mlp, SOFTMAX, data, validation=held_out, select_by=select_by, **settings)
    values = {
        line["step"]: np.float32(line[select_by or "accuracy"])
        for line in result.history
        if line["split"] == "validation"
    }
    assert int(result.state.control.best_step) == best(values, key=values.__getitem__)
    assert len(set(values.values())) > 2


def test_a_metric_without_a_direction_needs_one(tmp_path):
    cfg, pixels = rbm.Config(visible=4, hidden=2), {"inputs": np.abs(np.tanh(X))}

    def fit(out, **settings):
        return _fit(
            rbm, cfg, pixels, validation=pixels, out=out, select_by="free_energy", **settings
        )

    _refused(tmp_path, ("select_by='free_energy'", "select_mode", "max, min"), fit)
    assert fit(tmp_path / "run", select_mode="min").complete


def test_earlier_stages_keep_their_json_format():
    """dbn-digits: RBMs by reconstruction error, the network by loss, each with a direction."""
    recipe = RECIPES["dbn-digits"]
    stage = prepare(recipe, load_data("digits"), mlp, Parallel(devices=1))
    written = [(each.select_by, each.select_mode) for each in stage.recipe.stages]
    assert written == [
        ("reconstruction_error", "min"),
        ("reconstruction_error", "min"),
        ("loss", "min"),
    ]
    assert stage.recipe == written_out(recipe), (
        "the ledger compares a run with its registered recipe"
    )
    by_accuracy = [
        each
        for each in RECIPES.values()
        if each.select_by is None and "+" not in each.train_on  # validates
    ]
    for each in by_accuracy:
        module, cfg = module_of(each.model), each.model
        batch = jax.eval_shape(
            lambda module=module, cfg=cfg: module.example_batch(cfg, jax.random.key(0), 2)
        )
        params = jax.eval_shape(lambda module=module, cfg=cfg: module.init(cfg, jax.random.key(0)))
        assert (
            "accuracy"
            in jax.eval_shape(functools.partial(module.loss, cfg), params, batch)[1].metrics
        )


@pytest.mark.parametrize(
    ("module", "cfg", "data", "validates", "earlier"),
    [
        (mlp, SOFTMAX, GOOD, True, ("accuracy", "max")),
        (mlp, SOFTMAX, GOOD, False, ("accuracy", "max")),
        (mlp, LINEAR, {"inputs": X, "targets": ROWS}, True, ("loss", "min")),
        (mlp, LINEAR, {"inputs": X, "targets": ROWS}, False, ("accuracy", "max")),
    ],
)
def test_run_folders_of_earlier_versions_resume(tmp_path, module, cfg, data, validates, earlier):
    """They always contain a metric and a direction, max by default."""
    validation = data if validates else None
    _fit(module, cfg, data, validation=validation, out=tmp_path)
    written = RunFolder.open(tmp_path).config()["recipe"]
    assert (written["select_by"], written["select_mode"]) == earlier
    assert _fit(module, cfg, data, validation=validation, out=tmp_path).complete
