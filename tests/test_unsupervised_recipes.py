"""Recipes of energy-based models and autoencoders: short trainings and their metrics."""

import dataclasses
import os
import pathlib
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

import train
from evals import labels
from evals.evaluation import evaluate
from evals.run import load_split, restore
from evals.tasks.density import binary
from tests.conftest import THOROUGH
from train.engine.trainer import run
from train.recipes import RECIPES
from zoo import rbm
from zoo.parts import likelihood

pytestmark = pytest.mark.slow

MNIST = pathlib.Path(os.environ.get("ZOO_DATA_DIR", "")) / "mnist" / "train-images-idx3-ubyte.gz"
needs_mnist = pytest.mark.skipif(not MNIST.is_file(), reason="needs ZOO_DATA_DIR with mnist/")


def _shorter(recipe, epochs, before=None):
    """before: epochs of earlier stages."""
    after = _shorter(recipe.after, before or epochs) if recipe.after else None
    return dataclasses.replace(
        recipe, epochs=epochs, eval_every=epochs, keep_every=None, after=after
    )


def test_rbm_likelihood_beats_independent_units(tmp_path, monkeypatch):
    """With few hidden units log Z is exact; the annealed estimate is close to it."""
    monkeypatch.setattr("evals.tasks.density.TEMPERATURES", 1000)
    recipe = _shorter(RECIPES["rbm-digits"], 20)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, hidden=10))
    run(recipe, tmp_path, quiet=True)
    evaluation = evaluate(tmp_path)
    restored = evaluation.run
    cfg, params = restored.recipe.model, restored.params
    assert restored.scaling is not None
    visible = jnp.asarray(binary(restored, evaluation.table["inputs"]))
    assert set(np.unique(visible)) == {0, 1}
    means = (
        restored.scaling(jnp.asarray(load_split(restored, "train", None)["inputs"]))
        .reshape(-1, 64)
        .mean(axis=0)
    )
    base = likelihood.base_rates(cfg, means)
    of_means = float(jnp.mean(visible @ base - jax.nn.softplus(base).sum()))
    measured = evaluation.metrics["test log-likelihood nats"]
    exact = likelihood.exact_log_partition(cfg, params)
    assert measured == pytest.approx(
        float(-rbm.free_energy(cfg, params, visible).mean() - exact), abs=1e-3
    )
    assert measured > of_means + 2
    assert abs(evaluation.metrics["test annealed error nats"]) < 0.5
    assert evaluation.metrics["test pseudo-likelihood nats"] < 0


def test_without_enumeration_the_annealed_estimate_comes_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr("evals.tasks.density.TEMPERATURES", 100)
    run(_shorter(RECIPES["rbm-digits"], 1), tmp_path, quiet=True)
    metrics = evaluate(tmp_path).metrics
    assert 0 < metrics["test log-likelihood standard error nats"] < 1
    assert "test annealed error nats" not in metrics


@pytest.mark.parametrize(
    ("name", "epochs", "metric", "bound"),
    [
        ("autoencoder-digits", 30, "reconstruction_error", 1.2),
        ("autoencoder-digits-deep", 20, "reconstruction_error", 3.0),
        ("conv-autoencoder-digits", 1, "reconstruction_error", 4.0),
        ("sae-digits", 15, "error %", 15.0),
        ("dbn-digits-gaussian", 15, "error %", 15.0),
    ],
)
def test_a_model_learns_the_digits_without_labels(name, epochs, metric, bound, tmp_path):
    """The recipes' stages fit together; the error of principal components is scikit-learn's."""
    run(_shorter(RECIPES[name], epochs, 4), tmp_path, quiet=True)
    evaluation = evaluate(tmp_path)
    assert evaluation.metrics[f"test {metric}"] < bound
    if name == "autoencoder-digits":
        training, inputs = (
            load_split(evaluation.run, split, None)["inputs"].reshape(-1, 64) / 16
            for split in ("train", "test")
        )
        pca = PCA(16).fit(training)
        error = np.square(inputs - pca.inverse_transform(pca.transform(inputs))).sum(axis=1).mean()
        assert evaluation.metrics["test reconstruction_error of PCA"] == pytest.approx(
            error, rel=1e-4
        )
    if name == "sae-digits":  # codes as wide as the inputs, and errors of hidden units
        stages = [evaluate(tmp_path / f"stage-{number}").metrics for number in (1, 2)]
        assert all(stage.keys() == {"test loss", "test reconstruction_error"} for stage in stages)


@pytest.fixture(name="pretrained", scope="module")
def _pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("dbn")
    run(_shorter(RECIPES["dbn-digits"], 10), out, quiet=True)
    return out


def test_mlp_is_fine_tuned_from_a_dbn(pretrained):
    assert evaluate(pretrained).metrics["test error %"] < 10
    first, second = (restore(pretrained / f"stage-{number}") for number in (1, 2))
    assert [len(each.recipe.model.sizes) for each in (first, second)] == [2, 3]
    jax.tree.map(
        np.testing.assert_array_equal, first.params["layer_0"], second.params["layer_0"]
    )  # for all its l2


def test_with_few_labels_the_experiment_trains_both_starts_on_the_same_examples(
    pretrained, tmp_path, capsys
):
    docs = tmp_path / "page.md"
    docs.write_text(f"before\n{labels.BEGIN}\nold\n{labels.END}\nafter\n")
    arguments = [
        str(pretrained),
        "--labels",
        "20",
        "40",
        "--replicas",
        "2",
        "--steps",
        "100",
        "--docs",
        str(docs),
    ]
    assert labels.main(arguments) == 0
    text = docs.read_text()
    assert text.startswith(f"before\n{labels.BEGIN}\n| labels |")
    assert text.endswith(f"{labels.END}\nafter\n")
    assert "<svg" in docs.with_suffix(".svg").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| 20 ", "| 40 "))]
    assert len(rows) == 2
    means = [float(cell.split("±")[0]) for cell in rows[1].split("|")[2:4]]
    assert all(0 < mean < 60 for mean in means)
    capsys.readouterr()
    docs.write_text("no markers")
    for wrong, message in (
        (
            [str(pretrained / "stage-1")],
            "stage-1: no run of a multilayer perceptron after other stages, allowed",
        ),
        (
            [str(pretrained / "stage-2")],
            "stage-2: no run of a multilayer perceptron after other stages, allowed",
        ),
        (
            [str(pretrained), "--machines", "3"],
            "machines=3, allowed: 1 to 2, the stages of dbn-digits",
        ),
        ([*arguments[:-1], str(tmp_path / "none.md")], "none.md"),
        (arguments, "page.md: no lines"),
    ):
        assert labels.main(wrong) == 1
        said = capsys.readouterr()
        assert message in said.err
        assert not said.out, "it trained first"


@needs_mnist
def test_first_epochs_of_the_toolbox_net_reconstruct_as_the_toolbox_does():
    """DeepLearnToolbox, test_example_DBN, repeated in numpy: 64.9 to 66.9, then about 10.8."""
    last = RECIPES["dbn-toolbox"].after
    assert last is not None
    errors = []
    params = None
    for stage in last.stages[: None if THOROUGH else 1]:
        settings = {
            field: getattr(stage, field)
            for field in ("optimizer", "batch_size", "train_on", "preprocess", "steps_per_dispatch")
        }
        module, start = zoo_module(stage), None
        if params is not None:
            start = train.transfer.matching(
                None, params, stage.model, module.init(stage.model, jax.random.key(1))
            )
        result = train.fit(
            module, stage.model, "mnist", epochs=1, eval_every=1, params=start, **settings
        )
        params = result.params
        errors.append(
            statistics.fmean(
                line["reconstruction_error"] for line in result.history if line["split"] == "train"
            )
        )
    assert 64.0 < errors[0] < 68.0
    assert all(10.3 < error < 11.5 for error in errors[1:])


def zoo_module(recipe):
    return train.recipe.module_of(recipe.model)
