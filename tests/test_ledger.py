"""The ledger: its rows hold together, documents agree with it, and only proper runs enter it."""

import dataclasses
import json
import pathlib
import statistics
import tomllib

import pytest

from evals import ledger
from train.engine.run_folder import RunFolder, write_json
from train.recipe import Recipe, Target
from train.recipes import RECIPES
from zoo import mlp

ROOT = pathlib.Path(__file__).parent.parent
KEYS = {
    "recipe",
    "metric",
    "published",
    "published_kind",
    "reached",
    "value",
    "spread",
    "seeds",
    "command",
    "seconds",
    "hardware",
}
TOY = Recipe(
    name="toy",
    model=mlp.PRESETS["tiny"],
    targets=(
        Target(metric="test error %", published=1.5, at_most=2.0),
        Target(metric="test loss nats"),
    ),
)


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """make_run(seed, error): the files of a complete, evaluated run of a registered toy recipe."""
    monkeypatch.setitem(RECIPES, "toy", TOY)

    def make(
        seed, error, *, recipe=TOY, seconds=10.0, date="2026-01-02", version="0.1.0", best_step=7
    ):
        folder = RunFolder.create(
            tmp_path / f"run-{seed}", dataclasses.replace(recipe, seed=seed), "fingerprint"
        )
        facts = {
            "seconds": seconds,
            "hardware": f"made on {date}",
            "date": date,
            "versions": {"purezoo": version},
        }
        write_json(folder.summary, {"complete": True, "best_step": best_step, **facts})
        record = {
            "format": 1,
            "recipe": recipe.name,
            "seed": seed,
            "step": 7,
            "training": {"complete": True, **facts},
        }
        metrics = {"test error %": error, "test loss nats": error / 10}
        write_json(folder.path / "eval.json", record | {"metrics": metrics})
        return folder.path

    return make


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results.json"


def test_rows_of_the_ledger_hold_together():
    rows = ledger.read()
    assert len({(row["recipe"], row["metric"]) for row in rows}) == len(rows)
    for row in rows:
        assert row.keys() == KEYS | {"values", "times", "date", "version"}
        assert row["recipe"] in RECIPES
        targets = {target.metric: target for target in RECIPES[row["recipe"]].targets}
        assert row["metric"] in targets
        target = targets[row["metric"]]
        assert row["published"] == target.published
        assert row["published_kind"] == (
            None if target.published is None else target.published_kind
        )
        assert row["reached"] is target.as_published(row["value"])
        assert (row["reached"] is None) == (row["published"] is None), (
            "at_most or at_least says which way is better"
        )
        assert (
            len(row["seeds"])
            == len(set(row["seeds"]))
            == len(row["values"])
            == len(row["times"])
            >= 1
        )
        assert row["value"] == pytest.approx(statistics.median(row["values"]), abs=1e-6)
        assert row["spread"] == [min(row["values"]), max(row["values"])]
        assert row["spread"][0] <= row["value"] <= row["spread"][1]
        assert row["seconds"] == pytest.approx(statistics.median(row["times"]), abs=0.01)


def test_readme_and_package_agree_with_the_ledger():
    assert ledger.main(["markdown", str(ROOT / "README.md"), "--check"]) == 0
    claim = ledger.claim(ledger.read())
    description = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["description"]
    assert ledger.CLAIM.findall(description) == [claim]
    assert ledger.CLAIM.findall((ROOT / "README.md").read_text().split("\n\n")[1]) == [claim]


def test_bounds_are_those_of_the_toolboxs_tests_and_results_are_counted_apart():
    rows = {(row["recipe"], row["metric"]): row for row in ledger.read()}
    bounds = {recipe for (recipe, _), row in rows.items() if row["published_kind"] == "bound"}
    toolbox = {f"mlp-toolbox{kind}" for kind in ("", "-l2", "-dropout", "-logistic", "-softmax")}
    assert bounds == toolbox | {"convnet-toolbox", "dbn-toolbox", "sae-toolbox"}
    assert ledger.count([*rows.values()], "bound") == (8, 8)
    reached = {
        (recipe, metric): row["reached"]
        for (recipe, metric), row in rows.items()
        if row["published_kind"] == "result"
    }
    assert ledger.count([*rows.values()], "result") == (sum(reached.values()), len(reached))
    # Read off the table by eye.
    assert not reached["mlp-dropout", "test error %"]  # 1.24 for 1.06
    assert not reached["sae-mnist", "test error %"]  # 1.37 for 1.3
    assert not reached["autoencoder-deep", "test reconstruction_error"]  # 3.135 for 3
    assert reached["mlp-tanh500", "test error %"]  # 1.65 for 1.65
    assert reached["rbm500-cd1", "test log-likelihood nats"]  # -118.1 for -125.53: more is better


def test_as_published_depends_on_the_direction_of_the_metric():
    error, score = (
        Target(metric="m", published=2.0, at_most=9.0),
        Target(metric="m", published=2.0, at_least=1.0),
    )
    assert [error.as_published(value) for value in (1.9, 2.0, 2.1)] == [True, True, False]
    assert [score.as_published(value) for value in (1.9, 2.0, 2.1)] == [False, True, True]
    bound = dataclasses.replace(error, published_kind="bound", source="tests")
    assert [bound.as_published(value) for value in (1.9, 2.0, 2.1)] == [True, False, False]
    assert str(bound) == "m <= 9 (asserted < 2, tests)"
    assert str(error) == "m <= 9 (published 2)"
    unknown = (
        Target(metric="m", published=2.0),
        Target(metric="m", published=2.0, at_most=3.0, at_least=1.0),
    )
    assert [target.as_published(2.0) for target in (*unknown, Target(metric="m", at_most=1.0))] == [
        None
    ] * 3
    for target, kind in (
        (error, "rumour"),
        (score, "bound"),
        (dataclasses.replace(error, published=None), "bound"),
    ):
        with pytest.raises(ValueError, match=f"target m: published_kind='{kind}', allowed"):
            dataclasses.replace(target, published_kind=kind)


def test_seeds_merge_into_one_row_for_each_metric(make_run, file):
    errors = {3: 1.75, 0: 1.25, 8: 3.5, 1: 1.5}
    for number, (seed, error) in enumerate(errors.items()):
        ledger.add(
            make_run(
                seed,
                error,
                seconds=10.0 + number,
                date=f"2026-01-0{4 - number}",
                version=f"0.1.{number}",
            ),
            file,
        )
    row, other = json.loads(file.read_text())
    assert row == {
        "recipe": "toy",
        "metric": "test error %",
        "published": 1.5,
        "published_kind": "result",
        "reached": False,
        "value": statistics.median(errors.values()),
        "spread": [1.25, 3.5],
        "seeds": [0, 1, 3, 8],
        "values": [1.25, 1.5, 1.75, 3.5],
        "times": [11.0, 13.0, 10.0, 12.0],
        "command": "python -m train toy && python -m evals runs/toy",
        "seconds": 11.5,
        "hardware": "made on 2026-01-04",
        "date": "2026-01-04",
        "version": "0.1.0",
    }
    assert other["metric"] == "test loss nats"
    assert [other[key] for key in ("published", "published_kind", "reached")] == [None] * 3


def test_same_seed_again_replaces(make_run, file):
    ledger.add(make_run(0, 1.0), file)
    said = ledger.add(make_run(0, 1.4), file)
    assert "replaces" in said[0]
    assert ledger.read(file)[0]["values"] == [1.4]


def refusal(run_dir, file, capsys):
    before = file.read_text() if file.exists() else None
    assert ledger.main(["add", str(run_dir), "--file", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run_dir}")
    assert error.count("\n") == 1
    assert (file.read_text() if file.exists() else None) == before
    return error


def test_only_complete_evaluated_runs_of_registered_recipes_enter(make_run, file, tmp_path, capsys):
    other = dataclasses.replace(
        TOY, batch_size=64, optimizer=dataclasses.replace(TOY.optimizer, learning_rate=0.5)
    )
    error = refusal(make_run(1, 1.0, recipe=other), file, capsys)
    assert "batch_size is 64" in error
    assert "optimizer.learning_rate is 0.5" in error
    assert "not a registered recipe" in refusal(
        make_run(2, 1.0, recipe=dataclasses.replace(TOY, name="mine")), file, capsys
    )
    incomplete = make_run(3, 1.0)
    (incomplete / "summary.json").unlink()
    assert "not complete" in refusal(incomplete, file, capsys)
    unmeasured = make_run(4, 1.0)
    (unmeasured / "eval.json").unlink()
    assert f"python -m evals {unmeasured}" in refusal(unmeasured, file, capsys)
    assert "step 7" in refusal(make_run(5, 1.0, best_step=9), file, capsys)
    nameless = make_run(6, 1.0)
    record = json.loads((nameless / "eval.json").read_text())
    write_json(nameless / "eval.json", record | {"metrics": {"test accuracy %": 99.0}})
    assert "no 'test error %'" in refusal(nameless, file, capsys)
    assert "no run here" in refusal(tmp_path / "nowhere", file, capsys)


def test_targets_and_descriptions_may_change_after_a_run(make_run, file):
    run_dir = make_run(0, 1.0, recipe=dataclasses.replace(TOY, about="other words", targets=()))
    ledger.add(run_dir, file)
    assert ledger.read(file)[0]["published"] == 1.5


def test_markdown_replaces_the_table_and_nothing_else(make_run, file, tmp_path, capsys):
    document = tmp_path / "README.md"
    before, after = "# Title: {} published results\n\ntext | with | bars\n", "\nmore\n"
    document.write_text(
        f"{before.format('5 of 6')}<!-- ledger:begin -->\nold\n<!-- ledger:end -->{after}"
    )
    for seed, error in ((0, 1.0), (1, 1.25), (2, 9.0)):
        ledger.add(make_run(seed, error, seconds=300), file)
    command = ["markdown", str(document), "--file", str(file)]
    assert ledger.main([*command, "--check"]) == 1
    assert "old" in document.read_text()
    assert ledger.main(command) == 0
    assert ledger.main([*command, "--check"]) == 0
    text = document.read_text()
    assert text.startswith(before.format("1 of 1"))
    assert text.endswith(after)
    assert "| `toy` | test error % | 1.5 | 1.25 (1.00 to 9.00) | yes | 3 | 5 min |" in text
    assert "1 of 1 results and 0 of 0 bounds are" in text
    ledger.add(make_run(1, 1.75), file)
    assert ledger.main([*command, "--check"]) == 1
    assert ledger.main(command) == 0
    assert (
        "| `toy` | test error % | 1.5 | 1.75 (1.00 to 9.00) | **no** | 3 | 5 min |"
        in document.read_text()
    )
    assert document.read_text().startswith(before.format("0 of 1"))
    document.write_text("no markers")
    assert ledger.main(command) == 1
    assert "ledger:begin" in capsys.readouterr().err


def test_printed_table_shows_reached_missed_and_unmeasured(make_run, file, capsys):
    ledger.main(["add", str(make_run(0, 1.0)), "--file", str(file)])
    capsys.readouterr()
    assert ledger.main(["show", "--file", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("toy" in line and "ok" in line for line in lines)
    assert any("mlp-tanh500" in line and "not measured" in line for line in lines)
    assert any("mlp-toolbox-l2" in line and "< 10" in line for line in lines)
    assert any("toy" in line and "yes" in line for line in lines)
    assert (
        lines[-1]
        == "1 of 1 published results and 0 of 0 bounds that their tests assert are reached"
    )
    ledger.main(["add", str(make_run(0, 2.5)), "--file", str(file)])
    capsys.readouterr()
    ledger.main(["show", "--file", str(file)])
    assert any(
        "toy" in line and "missed" in line and " no " in line
        for line in capsys.readouterr().out.splitlines()
    )


def test_damaged_ledger_is_named(file, capsys):
    file.write_text("[")
    assert ledger.main(["show", "--file", str(file)]) == 1
    assert str(file) in capsys.readouterr().err
