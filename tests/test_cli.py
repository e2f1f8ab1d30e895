"""The command line as a person meets it: help, typos, missing files, one clear line each."""

import os
import pathlib
import subprocess
import sys

import pytest

import evals.__main__
from evals import gradients
from train import entry
from train.__main__ import main, parse
from train.progress import Progress
from train.recipes import RECIPES

ROOT = pathlib.Path(__file__).parent.parent


def _main(*arguments):
    try:
        return main(list(arguments))
    except SystemExit as stop:
        return stop.code


def _no_traceback(captured):
    assert "Traceback" not in captured.err + captured.out
    return captured


def test_data_on_the_command_line_are_those_of_every_stage():
    recipe, _ = parse(RECIPES["dbn-digits"], ["--data", "npz:mine.npz", "--preprocess", "none", "--epochs", "3"])
    assert {(stage.data, stage.preprocess) for stage in recipe.stages} == {("npz:mine.npz", "none")}
    assert [stage.epochs for stage in recipe.stages] == [50, 50, 3]
    assert parse(RECIPES["dbn-digits"], [])[0] == RECIPES["dbn-digits"]


def test_list_shows_every_recipe_with_its_expected_result(capsys):
    assert _main("--list") == 0
    shown = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert name in shown
        assert recipe.targets[0].metric in shown


def test_an_unknown_recipe_or_option_suggests_the_nearest(capsys):
    assert _main("mlp-digts") == 2
    assert "no recipe 'mlp-digts'; did you mean mlp-digits" in _no_traceback(capsys.readouterr()).err
    assert _main("mlp-digits", "--optimizer.learnig-rate", "1") == 2
    assert "--optimizer.learning-rate" in _no_traceback(capsys.readouterr()).err


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--data", "mnits"), 1, "did you mean 'mnist'?"),
        (("--data", "npz:/no/such.npz"), 1, "no such file or folder: /no/such.npz"),
        (("--data", "folder:/no/such"), 1, "no such file or folder: /no/such"),
        (("--data", "mnist", "--data-dir", "/no/such"), 1, "/no/such: no such directory"),
        (("--model.sizes", "64", "5"), 1, "train targets hold class 9, the model has 5 outputs"),
        (("--model.sizes", "60", "10"), 1, "sizes[0]=60"),
        (("--model.dropout", "2"), 2, "dropout=2.0, allowed: a probability of dropping"),
        (("--optimizer.momentum", "1"), 2, "momentum=1.0, allowed: 0 <= momentum < 1"),
        (("--batch-size", "0"), 2, "batch_size=0, allowed: a positive number"),
        (("--select-by", "bleu"), 1, "select_by='bleu', allowed: accuracy, loss"),
        (("--seed", "-1"), 2, "seed=-1, allowed"),
        (("--parallel", "threads"), 2, "invalid choice 'threads'"),
        (("--devices", "99"), 1, "devices=99, allowed: 1 to 8, as many as there are"),
        (("--accumulate", "0"), 1, "accumulate=0, allowed: a positive integer"),
        (("--parallel", "pmap", "--replicas", "2"), 1, "replicas: 2, allowed with parallel='pmap': 1"),
        (("--coordinator", "localhost:1234"), 1, "coordinator, num-processes, process-id: give all three"),
        (("--replicas", "0"), 2, "replicas=0, allowed: a positive number"),
        (("--sweep", "seed", "1", "2"), 2, "sweep of 'seed', allowed: optimizer.learning-rate"),
    ],
)
def test_bad_input_is_one_clear_error_before_any_work(tmp_path, capsys, options, status, message):
    assert _main("mlp-digits", "--out", str(tmp_path / "run"), *options) == status
    captured = _no_traceback(capsys.readouterr())
    assert message in " ".join(captured.err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_a_run_says_where_it_is_and_starting_again_says_it_is_complete(tmp_path, capsys):
    options = ("mlp-digits", "--steps", "42", "--out", str(tmp_path / "run"))
    assert _main(*options) == 0
    first = capsys.readouterr().out
    assert f"next: {entry.program('evals')} {tmp_path / 'run'}" in first
    assert "step 42/42" in first
    assert "validation accuracy" in first
    assert _main(*options) == 0
    assert "the run is complete: 42 steps" in capsys.readouterr().out
    assert _main(*options, "--batch-size", "32") == 1
    assert "batch_size is 64 there and 32 here" in capsys.readouterr().err


def test_tensorboard_files_are_written_when_asked_for(tmp_path):
    pytest.importorskip("tensorboardX")
    assert _main("mlp-digits", "--steps", "21", "--quiet", "--tensorboard", "--out", str(tmp_path / "run")) == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_what_tensorboard_needs_is_said_before_a_folder_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert _main("mlp-digits", "--tensorboard", "--out", str(tmp_path / "run")) == 1
    assert capsys.readouterr().err == "error: --tensorboard needs tensorboardX: pip install 'purezoo[tensorboard]'\n"
    assert not (tmp_path / "run").exists()


def test_a_terminal_that_cannot_draw_has_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with Progress("name", 4, 2) as progress:
        progress.update({"step": 3, "split": "train", "loss": 0.5}, 8)
    assert capsys.readouterr().out == "name  step 3/4  epoch 1.5  loss 0.5000\n"


@pytest.mark.parametrize("other", ["--predict", "--translate", "--translate-file", "--caption", "--segment"])
def test_who_lets_a_model_write_asks_for_nothing_else(capsys, other):
    assert evals.__main__.main(["nowhere", "--sample", "5", other, "x.png"]) == 1
    assert capsys.readouterr().err == f"error: {other} and --sample: give one of them\n"


def test_gradients_without_matplotlib_are_one_clear_error(tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    assert _main("adding-lstm", "--data", "adding:5", "--steps", "1", "--quiet", "--out", run) == 0
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert gradients.main([run, "--plot", str(tmp_path / "plot.svg")]) == 1
    assert "error: import of matplotlib" in _no_traceback(capsys.readouterr()).err


def test_packages_import_fast_and_one_way():
    """zoo needs neither train nor evals nor flax; train does not need evals."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for package, absent in (
        ("zoo", ("train", "evals", "flax", "orbax", "matplotlib")),
        ("train.trainer", ("evals", "matplotlib", "torch")),
    ):
        script = f"import sys, {package}; print([name for name in {absent!r} if name in sys.modules])"
        shown = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
        assert shown.strip() == "[]"
