"""A new system is added through the registries: data, task, verb, model and recipe."""

import json

import pytest

import evals.__main__
import evals.tasks
import evals.verbs
import train.__main__
import train.data
import train.tasks
import zoo
from tests.plugin import coins, counter, measuring
from tests.plugin.task import Bias
from train.engine.optimizer import Optimizer
from train.recipe import Recipe, Target
from train.recipes import RECIPES

RECIPE = Recipe(
    name="coins",
    about="how often coins show heads",
    model=counter.PRESETS["tiny"],
    data=coins.Config(),
    preprocess="none",
    select_by="squared_error",
    optimizer=Optimizer(learning_rate=0.5),
    epochs=30,
    targets=(Target(metric="test near %", at_least=70),),
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "counter", counter)
    monkeypatch.setitem(train.data.KINDS, "coins", coins)
    monkeypatch.setitem(train.tasks.TASKS, "bias", Bias)
    monkeypatch.setitem(evals.tasks.TASKS, Bias, measuring)
    monkeypatch.setitem(evals.verbs.VERBS, "guess", measuring.Guess)
    monkeypatch.setitem(RECIPES, "coins", RECIPE)


def test_a_new_system_is_trained_measured_and_used(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train.__main__.main(["coins", "--out", run, "--quiet"]) == 0
    assert evals.__main__.main([run]) == 0
    out = capsys.readouterr().out
    assert "coins, seed 0, step " in out
    assert "test near " in out
    assert f"guess {run} 1 0 1   guesses the bias of your own coin" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Guesses</h2><p>coin 0: " in page
    assert "test near % &gt;= 70: reached" in page
    assert evals.__main__.main(["guess", run, *"11111111"]) == 0
    name, guess = capsys.readouterr().out.split()
    assert name == "bias"
    assert 0.75 < float(guess) < 1.1
    assert evals.__main__.main([run, "--data", "coins:9"]) == 0
    (file,) = (tmp_path / "run").glob("eval-on-*.json")
    record = json.loads(file.read_text())
    assert (record["data"], record["count"]) == ("coins:9", 9)
    assert evals.__main__.main(["predict", run, "a.png"]) == 1
    assert "predict is not for a model of bias; its verbs: guess" in capsys.readouterr().err


def test_plugin_options_and_data(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.__main__.main(["coins", "--help"])
    shown = capsys.readouterr().out
    assert "--data.flips" in shown
    assert "--data.window" not in shown
    assert "coins:COUNT" in shown
    run = str(tmp_path / "run")
    options = ["--data", "coins:20", "--data.flips", "5", "--epochs", "1", "--out", run, "--quiet"]
    assert train.__main__.main(["coins", *options]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert config["data"] == {"kind": "coins", "count": 20, "flips": 5}
    assert config["model"]["flips"] == 5, "the model takes the shape of the data"
    assert train.__main__.main(["coins", "--data", "coins:0", "--out", run]) == 2
    assert "'0' coins, allowed: a number from 1 to 10000" in capsys.readouterr().err
