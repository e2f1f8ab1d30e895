"""The trainer: early errors, selection and stopping, and lossless resumption."""

import dataclasses
import errno
import functools
import json
import os
import pathlib
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
import train.engine.run_folder
import train.engine.trainer
from tests.conftest import THOROUGH
from train import entry
from train.engine.loop import Interrupts
from train.engine.member import Member
from train.engine.run_folder import RunError, RunFolder, write_text
from train.recipe import from_dict, module_of, to_dict
from zoo import mlp, rnn

# When a checkpoint file is damaged, orbax closes its event loop with reads still in progress.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CFG = mlp.Config(sizes=(6, 8, 3), dropout=0.2)
ROOT = pathlib.Path(__file__).parent.parent


def _data(count=40, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, count)
    inputs = rng.normal(size=(count, 6)).astype(np.float32)
    inputs[np.arange(count), targets] += 3
    return {"inputs": inputs, "targets": targets}


def _fit(out=None, **settings):
    defaults: dict[str, Any] = {
        "batch_size": 16,
        "steps": 24,
        "eval_every": 2,
        "steps_per_dispatch": 4,
    }
    return train.fit(mlp, CFG, _data(), validation=_data(seed=1), out=out, **defaults | settings)


def _bits(state):
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))


def test_fit_learns_and_gives_back_the_best_parameters():
    result = _fit(steps=60)
    lines = [line for line in result.history if line["split"] == "validation"]
    best = max(lines, key=lambda line: line["accuracy"])
    assert best["accuracy"] > 0.8
    assert int(result.state.control.best_step) == best["step"]
    held_out = _data(seed=1)
    predicted = jnp.argmax(mlp.apply(CFG, result.params, jnp.asarray(held_out["inputs"])), -1)
    assert np.mean(predicted == held_out["targets"]) == pytest.approx(best["accuracy"])


def test_result_is_shown_without_its_arrays():
    shown = repr(_fit(steps=4))
    assert "complete=True" in shown
    assert len(shown) < 500


def test_a_run_in_memory_equals_a_run_in_a_folder_and_loads_again(tmp_path):
    in_memory, in_folder = _fit(), _fit(tmp_path / "run")
    assert _bits(in_memory.state) == _bits(in_folder.state)
    assert _bits(in_memory.params) == _bits(in_folder.params)
    module, cfg, params = train.load(tmp_path / "run")
    assert module is mlp
    assert cfg == CFG
    assert _bits(params) == _bits(in_folder.params)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["complete"]
    assert summary["step"] == 24


def test_runs_are_determined_by_the_seed():
    same, again, other = _fit(seed=3), _fit(seed=3), _fit(seed=4)
    assert _bits(same.state) == _bits(again.state) != _bits(other.state)


@pytest.mark.parametrize("at", [1, 7, 14])
def test_stopped_by_a_signal_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, at):
    """SIGTERM ends the run at the next step with a checkpoint; the same call resumes exactly."""
    expected = _fit()
    recorded = Member.record

    def record(self, line):
        recorded(self, line)
        if line["step"] >= at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Member, "record", record)
    stopped = _fit(tmp_path)
    assert not stopped.complete
    assert at <= int(stopped.state.step) < at + 8
    monkeypatch.undo()
    resumed = _fit(tmp_path)
    assert resumed.complete
    assert _bits(resumed.state) == _bits(expected.state)
    assert _bits(resumed.params) == _bits(expected.params)

    def validation(result):
        return [{**line, "seconds": 0} for line in result.history if line["split"] == "validation"]

    assert validation(resumed) == validation(expected)
    assert [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ] == resumed.history


def _two_stages():
    cfg, data = mlp.Config(sizes=(64, 6, 10)), "digits"
    base = dataclasses.replace(train.RECIPES["mlp-digits"], model=cfg, data=data, steps=3)
    return dataclasses.replace(base, name="second", after=dataclasses.replace(base, name="first"))


def test_a_signal_after_the_last_step_of_a_stage_stops_before_the_next_one(tmp_path, monkeypatch):
    recipe, summarised = _two_stages(), train.engine.trainer._summarise
    expected = train.run(recipe, tmp_path / "whole", quiet=True)

    def summarise(loop, folder, progress):
        if folder.path.name == last:
            signal.raise_signal(signal.SIGINT)
        summarised(loop, folder, progress)

    monkeypatch.setattr(train.engine.trainer, "_summarise", summarise)
    last = "stage-1"
    stopped = train.run(recipe, tmp_path / "run", quiet=True)
    assert (stopped.complete, stopped.stopped_by) == (False, "SIGINT")
    assert RunFolder.open(tmp_path / "run" / "stage-1").summary.exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
    last = "run"
    complete = train.run(
        recipe, tmp_path / "run", quiet=True
    )  # while a complete run is saved, a signal changes nothing
    assert complete.complete
    assert RunFolder.open(tmp_path / "run").summary.exists()
    assert _bits(complete.state) == _bits(expected.state)


def test_signal_handlers_are_restored(tmp_path, monkeypatch):
    def mine(*_):
        raise AssertionError("not while it trains")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, mine) for number in numbers]
    try:
        _fit(tmp_path / "one")
        monkeypatch.setattr(
            Member, "record", lambda self, line: signal.raise_signal(signal.SIGTERM)
        )
        assert _fit(tmp_path / "two").stopped_by == "SIGTERM"
        assert [signal.getsignal(number) for number in numbers] == [mine, mine]
        monkeypatch.setattr(Member, "record", lambda self, line: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _fit(tmp_path / "three")
        assert [signal.getsignal(number) for number in numbers] == [mine, mine]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_a_second_ctrl_c_stops_at_once_unless_it_is_the_first_one_passed_on(monkeypatch):
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received == signal.SIGINT
        monkeypatch.setattr(entry, "AGAIN", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_folder_that_cannot_be_written_is_refused_before_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: pathlib.Path(place) != tmp_path)
    monkeypatch.setattr(
        train.engine.trainer, "load_data", lambda *_, **__: pytest.fail("data were read")
    )
    for start in (
        lambda out: train.run(_two_stages(), out),
        lambda out: train.fit(mlp, CFG, "digits", out=out),
    ):
        with pytest.raises(
            RunError, match=r"a/run: no right to write here; choose another folder with --out"
        ):
            start(tmp_path / "a" / "run")
    assert not list(tmp_path.iterdir())


def test_unwritable_run_folder_is_not_created(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train.engine.run_folder, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        _fit(tmp_path / "a" / "run")
    assert not list(tmp_path.iterdir())


def test_files_are_written_atomically_in_utf_8(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_text(
        file, "\u2212 \udcff"
    )  # a minus sign, and a surrogate as in an undecodable file name
    assert file.read_bytes() == b"\xe2\x88\x92 \\udcff"

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "other")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def trainer_state(folder):
    from train.engine.checkpoint import Checkpoints
    from train.engine.run_folder import abstract_state

    recipe = RunFolder.open(folder).recipe()
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.restore(abstract_state(recipe))
    assert found is not None
    return found[0]


def test_damaged_newest_checkpoint_falls_back_to_the_previous(tmp_path):
    expected = _fit(tmp_path / "whole")
    _fit(tmp_path / "damaged", steps=24)
    newest = max(
        (tmp_path / "damaged" / "checkpoints").iterdir(), key=lambda entry: int(entry.name)
    )
    assert newest.name == "24"
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:5])
    resumed = _fit(tmp_path / "damaged", steps=24)
    assert _bits(resumed.state) == _bits(expected.state)
    assert resumed.history[-1]["step"] == 24


def test_starting_a_complete_run_again_changes_nothing(tmp_path, capsys):
    first = _fit(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text(), (tmp_path / "summary.json").read_text()
    again = _fit(tmp_path, quiet=False)
    assert "the run is complete: 24 steps" in capsys.readouterr().out
    assert _bits(first.params) == _bits(again.params)
    assert before == (
        (tmp_path / "metrics.jsonl").read_text(),
        (tmp_path / "summary.json").read_text(),
    )


def test_another_configuration_or_data_in_the_folder_says_what_differs(tmp_path):
    _fit(tmp_path)
    with pytest.raises(RunError, match=r"batch_size is 16 there and 8 here"):
        _fit(tmp_path, batch_size=8)
    with pytest.raises(RunError, match=r"optimizer.learning_rate is 0.1 there and 0.2 here"):
        _fit(tmp_path, optimizer=train.Optimizer(learning_rate=0.2))
    with pytest.raises(RunError, match="data_fingerprint"):
        train.fit(
            mlp,
            CFG,
            _data(seed=9),
            validation=_data(seed=1),
            out=tmp_path,
            batch_size=16,
            steps=24,
            eval_every=2,
            steps_per_dispatch=4,
        )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="not empty"):
        _fit(tmp_path / "other")


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    _fit(tmp_path)
    with RunFolder(tmp_path).locked(), pytest.raises(RunError, match="another process"):
        _fit(tmp_path)
    _fit(tmp_path)


def test_config_json_of_another_format_or_damaged_is_one_clear_error(tmp_path):
    _fit(tmp_path)
    config = RunFolder(tmp_path).config()
    for text, message in (
        (json.dumps({**config, "format": 99}), "format 99, this version reads"),
        ("{", "unreadable"),
        (
            json.dumps({**config, "recipe": {**config["recipe"], "batch_size": "many"}}),
            "not a recipe of this version",
        ),
        (
            json.dumps({**config, "recipe": {**config["recipe"], "surprise": 1}}),
            "not a recipe of this version",
        ),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RunError, match=message):
            train.load(tmp_path)
    with pytest.raises(RunError, match=r"no run here \(config.json is missing\)"):
        train.load(tmp_path / "nowhere")


def test_early_stopping_keeps_the_best(tmp_path):
    rng = np.random.default_rng(0)
    noise = {
        "inputs": rng.normal(size=(40, 6)).astype(np.float32),
        "targets": rng.integers(0, 3, 40),
    }
    other = {
        "inputs": rng.normal(size=(40, 6)).astype(np.float32),
        "targets": rng.integers(0, 3, 40),
    }
    settings: dict[str, Any] = {
        "batch_size": 20,
        "steps": 400,
        "eval_every": 1,
        "patience": 3,
        "select_by": "loss",
        "select_mode": "min",
    }
    result = train.fit(mlp, CFG, noise, validation=other, out=tmp_path, **settings)
    losses = [line["loss"] for line in result.history if line["split"] == "validation"]
    assert result.complete
    assert int(result.state.step) < 400
    assert np.argmin(losses) == len(losses) - 4
    assert json.loads((tmp_path / "summary.json").read_text())["stopped_early"]
    again = train.fit(mlp, CFG, noise, validation=other, out=tmp_path, **settings)
    assert _bits(again.params) == _bits(result.params)


def test_divergence_is_an_error_that_keeps_the_last_good_checkpoint(tmp_path):
    cfg = dataclasses.replace(CFG, output="linear", dropout=0.0)
    rng = np.random.default_rng(0)
    data = {"inputs": rng.normal(size=(32, 6)), "targets": rng.normal(size=(32, 3))}
    optimizer = train.Optimizer(learning_rate=1e4, warmup=8)
    with pytest.raises(
        train.Diverged,
        match=r"loss is (nan|inf).*gradient norm .* at step \d+; last good checkpoint: step \d+",
    ):
        train.fit(
            mlp,
            cfg,
            data,
            out=tmp_path,
            optimizer=optimizer,
            batch_size=16,
            steps=100,
            eval_every=1,
        )
    _, _, params = train.load(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0, allowed: a positive number"),
        ({"epochs": float("inf"), "steps": None}, "epochs=inf"),
        ({"select_by": "bleu"}, "select_by='bleu', allowed: accuracy, loss"),
        (
            {"train_on": "train+validation+test"},
            "train_on='train+validation+test', allowed: train, train+validation",
        ),
    ],
)
def test_bad_settings_are_refused_before_a_folder_is_made(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        _fit(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_bad_data_is_refused_before_a_folder_is_made(tmp_path):
    data = _data()
    for wrong, message in (
        ({**data, "inputs": data["inputs"][:, :5]}, r"inputs: shape \(16, 5\)"),
        (
            {**data, "targets": data["targets"] + 5},
            "train targets hold class 7, the model has 3 outputs",
        ),
        ({**data, "targets": data["targets"][:-1]}, "same, positive number of examples"),
        (
            {"inputs": data["inputs"][:0], "targets": data["targets"][:0]},
            "positive number of examples",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train.fit(mlp, CFG, wrong, out=tmp_path / "run", batch_size=16, steps=2)
    with pytest.raises(TypeError, match=r"no setting 'epoch'; settings:.*epochs"):
        train.fit(mlp, CFG, data, epoch=3)
    assert not (tmp_path / "run").exists()


def test_regression_selects_by_loss():
    cfg = dataclasses.replace(CFG, output="linear")
    rng = np.random.default_rng(0)
    data = {"inputs": rng.normal(size=(32, 6)), "targets": rng.normal(size=(32, 3))}
    result = train.fit(mlp, cfg, data, validation=data, steps=20, eval_every=1)
    best = min(line["loss"] for line in result.history if line["split"] == "validation")
    assert float(result.state.control.best) == pytest.approx(best)


def test_a_model_with_a_carry_resumes_bit_for_bit(tmp_path):
    cfg = rnn.PRESETS["tiny"]
    batch = jax.tree.map(np.asarray, rnn.example_batch(cfg, jax.random.key(0), 24))
    settings: dict[str, Any] = {"batch_size": 8, "eval_every": 1, "steps_per_dispatch": 2}
    whole = train.fit(rnn, cfg, batch, out=tmp_path / "whole", steps=12, **settings)
    assert np.any(whole.state.carry)
    optimizer = train.Optimizer().build(12, 3)
    state = train.init_state(rnn, cfg, optimizer, jax.random.key(0), 8)
    assert jax.tree.structure(state) == jax.tree.structure(whole.state)
    for folder in (tmp_path / "whole" / "checkpoints").iterdir():
        if int(folder.name) > 9:
            for file in folder.rglob("*"):
                if file.is_file():
                    file.write_bytes(b"")
    resumed = train.fit(rnn, cfg, batch, out=tmp_path / "whole", steps=12, **settings)
    assert _bits(resumed.state) == _bits(whole.state)


def test_stages_that_do_not_fit_are_refused_before_the_first_one_is_trained(tmp_path):
    first = dataclasses.replace(train.RECIPES["mlp-digits"], name="pre", steps=20)
    second = dataclasses.replace(
        first, name="fine", model=mlp.Config(sizes=(64, 7, 10)), after=first
    )
    other = dataclasses.replace(second, model=mlp.Config(sizes=(64, 9, 8, 10)))
    with pytest.raises(ValueError, match="no earlier parameter has the path and shape"):
        train.run(dataclasses.replace(other, after=second), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_stages_pass_parameters_on_and_resume(tmp_path):
    """A pre-training stage on other targets, then fine-tuning from its parameters."""
    first = dataclasses.replace(
        train.RECIPES["mlp-digits"],
        name="pre",
        model=mlp.Config(sizes=(64, 12, 10)),
        steps=20,
        steps_per_dispatch=5,
    )
    second = dataclasses.replace(
        first,
        name="fine",
        model=mlp.Config(sizes=(64, 12, 10), dropout=0.5),
        steps=1,
        after=first,
        seed=5,
    )
    assert [stage.name for stage in second.stages] == ["pre", "fine"]
    result = train.run(second, tmp_path / "run", quiet=True)
    alone = train.run(dataclasses.replace(first, seed=5), tmp_path / "alone", quiet=True)
    _, cfg, earlier = train.load(tmp_path / "run" / "stage-1")
    assert cfg == first.model
    assert _bits(earlier) == _bits(alone.params)
    moved = np.abs(
        np.asarray(result.state.params["layer_0"]["kernel"])
        - np.asarray(earlier["layer_0"]["kernel"])
    ).max()
    assert moved < 0.1, "the second stage did not start from the first one's parameters"
    again = train.run(second, tmp_path / "run", quiet=True)
    assert _bits(again.state) == _bits(result.state)


def test_recipes_survive_their_json():
    for recipe in train.RECIPES.values():
        staged = dataclasses.replace(recipe, after=recipe, transfer="matching")
        assert from_dict(json.loads(json.dumps(to_dict(staged)))) == staged


def test_every_recipe_builds_and_fits_its_model():
    """Shapes only.  In short runs, each model's loss, and the whole step for one of each kind."""
    losses, steps = set(), set()
    for recipe in train.RECIPES.values():
        module = module_of(recipe.model)
        optimizer = recipe.optimizer.build(10, 5)
        state = jax.eval_shape(
            lambda recipe=recipe, module=module, optimizer=optimizer: train.init_state(
                module, recipe.model, optimizer, jax.random.key(0), recipe.batch_size
            )
        )
        batch = jax.eval_shape(
            lambda recipe=recipe, module=module: module.example_batch(
                recipe.model, jax.random.key(0), recipe.batch_size
            )
        )
        if THOROUGH or module not in steps:
            jax.eval_shape(
                train.make_step(module, recipe.model, optimizer), state, batch, jax.random.key(0)
            )
        elif recipe.model not in losses:
            jax.eval_shape(
                functools.partial(module.loss, recipe.model), state.params, batch, carry=state.carry
            )
        steps.add(module)
        losses.add(recipe.model)
        assert recipe.targets
        assert recipe.about
