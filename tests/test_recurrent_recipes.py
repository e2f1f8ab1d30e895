"""Recipes of recurrent networks and language models on built-in data: learning, resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from evals import gradients, ngrams
from train.data import load_data
from train.engine.optimizer import Optimizer
from train.recipes import RECIPES
from zoo import rnn

pytestmark = pytest.mark.slow


def test_rows_of_digits_are_read_one_after_the_other():
    recipe = dataclasses.replace(RECIPES["rnn-digits"], epochs=10, eval_every=10)
    result = train.run(recipe, quiet=True)
    assert result.history[-1]["accuracy"] > 0.85


def test_language_model_beats_unigrams_and_resumes_bit_for_bit(
    tmp_path,
):
    recipe = RECIPES["rnnlm-topics"]
    model = dataclasses.replace(recipe.model, units=(64,), features=16)
    optimizer = Optimizer(name="adam", learning_rate=0.01)
    recipe = dataclasses.replace(
        recipe, model=model, steps=120, eval_every=60 / 207, optimizer=optimizer
    )
    whole = train.run(recipe, tmp_path, quiet=True)
    splits = load_data(recipe.data).splits
    tokens = {name: table["targets"][table["mask"]] for name, table in splits.items()}
    unigrams = ngrams.fit([tokens["train"]], whole.cfg.vocabulary, 1)
    frequencies = -np.log(ngrams.probabilities(unigrams, tokens["validation"])).mean()
    assert whole.history[-1]["loss"] < frequencies - 0.3
    for file in (tmp_path / "checkpoints" / "120").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    again = train.run(recipe, tmp_path, quiet=True)
    for expected, leaf in zip(
        jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected)
    assert jax.tree.leaves(again.state.carry)[0].any()


@pytest.fixture(scope="module")
def sums() -> train.Result:
    """The adding problem over 20 steps."""
    recipe = dataclasses.replace(
        RECIPES["adding-lstm"], data="adding:20", steps=700, eval_every=0.35
    )
    model = dataclasses.replace(recipe.model, units=(32,))
    recipe = dataclasses.replace(
        recipe, model=model, optimizer=Optimizer(name="adam", learning_rate=0.01)
    )
    return train.run(recipe, quiet=True)


def test_lstm_learns_the_adding_problem(sums):
    assert sums.history[-1]["squared_error"] < 0.02, "who always says 1 is wrong by 1/6"


def test_gradient_norms_are_those_of_the_states(sums):
    """Against the gradient of the remaining sequence with respect to its initial carry."""
    table = load_data("adding:20").splits["test"]
    inputs, targets = jnp.asarray(table["inputs"][:3]), jnp.asarray(table["targets"][:3])
    found = gradients.norms(rnn, sums.cfg, sums.params, inputs, targets)
    for time in (0, 7, 19):
        unroll = jax.jit(rnn.unroll)
        carry, _ = unroll(
            sums.cfg, sums.params, rnn.initial_carry(sums.cfg, sums.params, 3), inputs[:, :time]
        )

        @jax.jit
        def rest(carry, time=time):
            return (
                0.5
                * (
                    (rnn.unroll(sums.cfg, sums.params, carry, inputs[:, time:])[1] - targets) ** 2
                ).sum()
            )

        (gradient,) = jax.grad(rest)(carry)
        assert found[time] == pytest.approx(np.linalg.norm(gradient, axis=1).mean(), rel=1e-3)
