"""Starting from parameters of a run or file: matching, messages, resuming without the source."""

import dataclasses
import os
import shutil
import signal
from typing import Any

import jax
import numpy as np
import pytest

import train
from train.__main__ import main
from train.engine.member import Member
from train.engine.run_folder import RunError, read_json, write_json
from train.transfer import matching
from zoo import captioner, convnet, interop, mlp
from zoo.interop import torchvision
from zoo.parts.parameters import shared

CFG = mlp.Config(sizes=(6, 8, 5, 3), dropout=0.2)
WIDER = mlp.Config(sizes=(6, 8, 5, 4))
"""The same except for the outputs."""
STAGES = (convnet.Stage(features=4, pool="max"), convnet.Stage(features=5, pool="max"))
LAST = "layer_2.bias, layer_2.kernel"
TINY = train.Optimizer(learning_rate=1e-30)
"""A rate so small that float32 parameters other than zeros do not change."""


def _data(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.normal(size=(count, 6)).astype(np.float32),
        "targets": rng.integers(0, 3, count),
    }


def _fit(out=None, cfg=CFG, **settings):
    defaults: dict[str, Any] = {"batch_size": 16, "steps": 12, "eval_every": 2}
    return train.fit(mlp, cfg, _data(), validation=_data(seed=1), out=out, **defaults | settings)


def _start(cfg=CFG, **settings):
    """The initial parameters of a run, except for one tiny step."""
    return _fit(cfg=cfg, steps=1, optimizer=TINY, seed=7, **settings).state.params


def _assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=0, atol=1e-25),
        actual,
        expected,
    )


def _bits(state):
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))


@pytest.fixture
def file(tmp_path):
    """A safetensors file of random parameters, including biases, for ``CFG``."""
    params = jax.tree.map(lambda leaf: leaf + 0.5, mlp.init(CFG, jax.random.key(9)))
    interop.save_safetensors(tmp_path / "mlp.safetensors", params, CFG)
    return tmp_path / "mlp.safetensors"


def test_from_a_run_folder_its_best_checkpoint(tmp_path):
    first = _fit(
        tmp_path / "first", optimizer=train.Optimizer(learning_rate=0.5), steps=30, eval_every=1
    )
    assert int(first.state.control.best_step) < 30, (
        "the last checkpoint is the best one: nothing is tested"
    )
    _assert_equal(_start(init_from=tmp_path / "first"), first.params)


def test_from_a_safetensors_file(file):
    _assert_equal(_start(init_from=str(file)), interop.load_safetensors(file))


def test_leaves_that_do_not_fit_stay_fresh_and_are_named(file, capsys):
    started, fresh = _start(WIDER, init_from=file, quiet=False), _start(WIDER)
    assert f"starting from {file}: 4 of 6 parameters; fresh: {LAST}\n" in capsys.readouterr().out
    known = interop.load_safetensors(file)
    _assert_equal(
        started,
        {"layer_0": known["layer_0"], "layer_1": known["layer_1"], "layer_2": fresh["layer_2"]},
    )


def test_restore_matching_reports_what_it_takes():
    earlier = {"a": {"x": np.ones((2, 3)), "y": np.ones(2)}, "z": np.ones(1)}
    fresh = {"a": {"x": np.zeros((2, 3), np.float32), "y": np.zeros(3)}, "b": np.zeros(1)}
    assert shared(earlier, fresh) == {"a.x": True, "a.y": False, "b": False}
    params = matching(None, earlier, None, fresh)
    assert params["a"]["x"].dtype == np.float32
    assert jax.tree.map(np.sum, params) == {"a": {"x": 6, "y": 0}, "b": 0}
    with pytest.raises(
        ValueError,
        match=r"transfer: no earlier parameter has .* of the model's; there are z \[1\]$",
    ):
        matching(None, {"z": np.ones(1)}, None, {"z": np.ones(2)})


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_torchvision_weights_with_another_number_of_classes(ending, tmp_path, capsys):
    cfg = dataclasses.replace(
        convnet.PRESETS["vgg16"],
        shape=(8, 8, 1),
        stages=STAGES,
        dense=(7, 6),
        classes=12,
    )
    params = jax.tree.map(lambda leaf: leaf + 0.5, jax.jit(convnet.init)(cfg, jax.random.key(9)))
    path = tmp_path / f"vgg.{ending}"
    if ending == "safetensors":
        torchvision.save_torchvision(path, params, cfg)
    else:
        torch = pytest.importorskip("torch")
        torch.save(
            {
                name: torch.tensor(array)
                for name, array in torchvision.to_torchvision(cfg, params).items()
            },
            path,
        )
    few = dataclasses.replace(cfg, classes=10)
    rng = np.random.default_rng(0)
    data = {
        "inputs": rng.normal(size=(16, 8, 8, 1)).astype(np.float32),
        "targets": rng.integers(0, 10, 16),
    }
    settings: dict[str, Any] = {"steps": 1, "batch_size": 16, "optimizer": TINY}
    started = train.fit(convnet, few, data, init_from=path, quiet=False, **settings).state.params
    assert (
        f"starting from {path}: 8 of 10 parameters; fresh: dense_2.bias, dense_2.kernel\n"
        in capsys.readouterr().out
    )
    fresh = jax.jit(lambda key: train.init_state(convnet, few, TINY.build(1, 1), key, 16).params)(
        jax.random.key(0)
    )
    _assert_equal(started, {**params, "dense_2": fresh["dense_2"]})


def test_captioner_with_frozen_torchvision_encoder(tmp_path, capsys):
    """The decoder learns, the encoder is frozen."""
    classifier = convnet.Config(shape=(8, 8, 1), stages=STAGES, dense=(7,), classes=12)
    params = jax.tree.map(
        lambda leaf: leaf + 0.5, jax.jit(convnet.init)(classifier, jax.random.key(9))
    )
    torchvision.save_torchvision(tmp_path / "vgg.safetensors", params, classifier)
    cfg = captioner.Config(
        encoder=classifier, vocabulary=5, features=3, units=4, attention="none", places=False
    )
    data = jax.tree.map(
        np.asarray, jax.jit(captioner.example_batch, static_argnums=2)(cfg, jax.random.key(1), 12)
    )
    optimizer = train.Optimizer(learning_rate=0.5, only=("!conv_*",))
    settings: dict[str, Any] = {"steps": 2, "batch_size": 6, "optimizer": optimizer}
    train.fit(captioner, cfg, data, quiet=False, **settings)
    assert "frozen at random initialisation: conv_0, conv_1; --init-from" in capsys.readouterr().out
    result = train.fit(
        captioner, cfg, data, init_from=tmp_path / "vgg.safetensors", quiet=False, **settings
    )
    assert "starting from" in (said := capsys.readouterr().out)
    assert "4 of 14 parameters; fresh: bridge." in said
    for name in ("conv_0", "conv_1"):
        jax.tree.map(np.testing.assert_array_equal, result.params[name], params[name])
    fresh = jax.jit(lambda key: train.init_state(captioner, cfg, TINY.build(1, 1), key, 6).params)(
        jax.random.key(0)
    )
    assert np.abs(result.params["output"]["kernel"] - fresh["output"]["kernel"]).max() > 1e-3


def test_init_from_applies_to_the_first_stage(tmp_path):
    base = dataclasses.replace(
        train.RECIPES["mlp-digits"], model=mlp.Config(sizes=(64, 6, 10)), optimizer=TINY, steps=1
    )
    params = jax.tree.map(lambda leaf: leaf + 0.5, mlp.init(base.model, jax.random.key(9)))
    interop.save_safetensors(tmp_path / "file", params)
    recipe = dataclasses.replace(
        base,
        name="fine",
        after=dataclasses.replace(base, name="pre"),
        init_from=str(tmp_path / "file"),
    )
    result = train.run(recipe, tmp_path / "run", quiet=True)
    _assert_equal(train.load(tmp_path / "run" / "stage-1")[2], params)
    _assert_equal(result.params, params)
    (tmp_path / "file").unlink()
    assert _bits(train.run(recipe, tmp_path / "run", quiet=True).state) == _bits(result.state)
    with pytest.raises(RunError, match=r"init_from is '.*file' there and not set here"):
        train.run(dataclasses.replace(recipe, init_from=None), tmp_path / "run", quiet=True)


def test_interrupted_and_resumed_without_the_file_equals_uninterrupted(file, tmp_path, monkeypatch):
    expected = _fit(init_from=str(file))
    recorded = Member.record

    def record(self, line):
        recorded(self, line)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Member, "record", record)
    assert not _fit(tmp_path / "run", init_from=str(file)).complete
    monkeypatch.undo()
    file.unlink()
    resumed = _fit(tmp_path / "run", init_from=str(file))
    assert resumed.complete
    assert _bits(resumed.state) == _bits(expected.state)


def test_resuming_with_another_source_is_refused(file, tmp_path):
    _fit(tmp_path / "run", init_from=file)
    _fit(tmp_path / "plain")
    shutil.copy(file, tmp_path / "other")
    for folder, source, message in (
        ("run", tmp_path / "other", r"init_from is '.*mlp\.safetensors' there and '.*other' here"),
        ("run", None, r"init_from is '.*mlp\.safetensors' there and not set here"),
        ("plain", file, r"init_from is not set there and '.*mlp\.safetensors' here"),
    ):
        with pytest.raises(RunError, match=message):
            _fit(tmp_path / folder, init_from=source)


def test_run_folders_from_before_the_option_resume(tmp_path):
    _fit(tmp_path / "run")
    config = read_json(tmp_path / "run" / "config.json")
    for later in ("init_from", "replicas", "sweep", "on_nonfinite"):
        del config["recipe"][later]
    write_json(tmp_path / "run" / "config.json", config)
    assert _fit(tmp_path / "run").complete


def test_parameters_from_two_sources_are_refused_and_callers_arrays_are_kept(file):
    params = mlp.init(CFG, jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"init_from='.*mlp\.safetensors', allowed with params: None"
    ):
        _fit(params=params, init_from=file)
    before = _bits(params)
    _fit(params=params)
    assert _bits(params) == before


def _faults(tmp_path):
    """Sources that cannot be used: {what the error says: source}."""
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "empty").mkdir()
    interop.save_safetensors(
        tmp_path / "foreign.safetensors", {"conv_0": {"bias": np.ones(2, np.float32)}}
    )
    vgg = dataclasses.replace(
        convnet.PRESETS["vgg16"],
        shape=(2, 2, 1),
        stages=(convnet.Stage(features=2),),
        dense=(),
        classes=3,
    )
    torchvision.save_torchvision(
        tmp_path / "vgg.safetensors", convnet.init(vgg, jax.random.key(0)), vgg
    )
    return {
        "absent.safetensors: no such run folder or file": "absent.safetensors",
        "text.safetensors: not a safetensors file": "text.safetensors",
        "empty: no run here (config.json is missing)": "empty",
        "foreign.safetensors': transfer: no earlier parameter has": "foreign.safetensors",
        "vgg.safetensors: torchvision's weights and zoo.mlp.Config, "
        "allowed: zoo.convnet.Config": "vgg.safetensors",
    }


def test_sources_that_cannot_be_used_are_one_line_and_no_folder_is_made(tmp_path, capsys):
    for message, source in _faults(tmp_path).items():
        assert (
            main(
                [
                    "mlp-digits",
                    "--steps",
                    "1",
                    "--out",
                    str(tmp_path / "run"),
                    "--init-from",
                    str(tmp_path / source),
                ]
            )
            == 1
        )
        said = capsys.readouterr().err
        assert message in said
        assert source in said
        assert said.count("\n") == 1
        assert said.startswith("error: ")
        assert not (tmp_path / "run").exists()


def test_command_line_init_from_reports_what_was_taken(classifier, tmp_path, capsys):
    options = ("mlp-digits", "--steps", "2", "--devices", "1")
    again = [*options, "--model.sizes", "64", "512", "512", "11", "--out", str(tmp_path / "second")]
    assert main([*again, "--init-from", str(classifier)]) == 0
    assert (
        f"starting from {classifier}: 4 of 6 parameters; fresh: {LAST}" in capsys.readouterr().out
    )
    assert main(again) == 1
    assert "init_from is" in capsys.readouterr().err
