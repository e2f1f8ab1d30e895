"""Endless data without a table: examples drawn on the device, and an experience."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
import train.engine.loop
import zoo
from train.batches import fit_scaling
from train.dataset import Dataset
from train.drawn import Drawn, DrawnBatches
from train.engine.optimizer import Optimizer
from train.engine.parallel import Layout, Parallel
from train.engine.run_folder import RunFolder, restore_best
from train.experience import Experience, ExperienceBatches
from train.stream import make_batches
from zoo import mlp

CFG = mlp.Config(sizes=(3, 8, 1), output="linear")
SETTINGS = {"batch_size": 8, "steps": 30, "optimizer": Optimizer(learning_rate=0.05)}


def draw(key):
    """Numbers and their sum."""
    inputs = jax.random.normal(key, (3,))
    return {"inputs": inputs, "targets": jnp.sum(inputs, keepdims=True)}


def table(count=40):
    keys = jax.random.split(jax.random.key(9), count)
    return jax.tree.map(np.asarray, jax.vmap(draw)(keys))


def drawn(size=80):
    return Dataset("sums", {"train": Drawn(draw, size, "sums of 3"), "validation": table()})


class Walk(Experience):
    """A random walk: each step adds noise; the batch is drawn from the latest positions."""

    steps_per_epoch = 10
    identity = "walk"
    slots = 16

    def init(self, module, cfg, params, key):
        return {
            "place": jnp.zeros(3),
            "memory": {"seen": jnp.zeros((self.slots, 3)), "count": jnp.int32(0)},
        }

    def advance(self, module, cfg, params, experience, key, rows):
        move, choose = jax.random.split(key)
        place = 0.5 * experience["place"] + jax.random.normal(move, (3,))
        seen = (
            experience["memory"]["seen"].at[experience["memory"]["count"] % self.slots].set(place)
        )
        moved = {
            "place": place,
            "memory": {"seen": seen, "count": experience["memory"]["count"] + 1},
        }
        chosen = seen[jax.random.randint(choose, (rows,), 0, self.slots)]
        # Bootstrapped, as in Q-learning: targets depend on the parameters.
        estimate = jax.lax.stop_gradient(module.apply(cfg, params, chosen))
        return moved, {
            "inputs": chosen,
            "targets": jnp.sum(chosen, axis=1, keepdims=True) + 0.1 * estimate,
        }


def walk():
    return Dataset("walk", {"train": Walk(), "validation": table()})


KINDS = {"drawn": drawn, "experience": walk}


def leaves(result):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result.state.params)]


def fit(data, **settings):
    return train.fit(mlp, CFG, data, preprocess="none", select_by="loss", **(SETTINGS | settings))


@pytest.mark.parametrize("kind", KINDS)
def test_endless_training_learns_and_resumes_bit_for_bit(kind, tmp_path, monkeypatch):
    whole = fit(KINDS[kind](), out=tmp_path / "whole", eval_every=0.5)
    losses = [line["loss"] for line in whole.history if line["split"] == "validation"]
    assert losses[-1] < losses[0] / 2
    record, calls = train.engine.loop.Loop._record, []

    def stop(self, member, split, step, values):
        record(self, member, split, step, values)
        if split == "validation" and step == 10 and not calls:
            calls.append(step)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train.engine.loop.Loop, "_record", stop)
        part = fit(KINDS[kind](), out=tmp_path / "part", eval_every=0.5)
    assert not part.complete
    resumed = fit(KINDS[kind](), out=tmp_path / "part", eval_every=0.5)
    assert resumed.complete
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(
        *(jax.tree.leaves(each.state.experience) for each in (whole, resumed)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_dispatches_and_replicas_equal_separate_runs(kind):
    alone = fit(KINDS[kind](), seed=1)
    many = fit(KINDS[kind](), seed=1, steps_per_dispatch=7)
    for a, b in zip(leaves(alone), leaves(many), strict=True):
        np.testing.assert_array_equal(a, b)
    together = fit(KINDS[kind](), seed=0, replicas=2)
    for a, b in zip(leaves(alone), leaves(together.members["seed-1"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [3, 8])
def test_device_count_changes_only_rounding(kind, devices, monkeypatch):
    """3 devices do not divide the batch."""
    monkeypatch.undo()
    one, several = (
        fit(KINDS[kind](), parallel=Parallel(devices=count), steps=12) for count in (1, devices)
    )
    for a, b in zip(leaves(one), leaves(several), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_examples_are_drawn_by_seed_step_and_row_alone():
    batches = make_batches(drawn().splits["train"], 8, seed=3)
    assert isinstance(batches, DrawnBatches)
    batch = batches.batch(5)
    np.testing.assert_allclose(
        batch["inputs"].sum(axis=1, keepdims=True), batch["targets"], rtol=1e-6
    )
    np.testing.assert_array_equal(
        batch["inputs"], make_batches(drawn().splits["train"], 8, seed=3).batch(5)["inputs"]
    )
    first = make_batches(drawn().splits["train"], 4, seed=3).batch(5)
    np.testing.assert_array_equal(first["inputs"], batch["inputs"][:4])
    others = [batches.batch(6), batches.with_seed(4).batch(5)]
    for other in others:
        assert not np.any(np.asarray(other["inputs"]) == np.asarray(batch["inputs"]))
    layout = Layout(Parallel(devices=3), devices=jax.devices())
    padded = make_batches(drawn().splits["train"], 8, seed=3, layout=layout).batch(5)
    assert padded["mask"].tolist() == [True] * 8 + [False]
    np.testing.assert_array_equal(padded["inputs"][:8], batch["inputs"])


def test_a_model_is_read_from_a_checkpoint_with_an_experience(tmp_path):
    """Even by code that does not know the data."""
    result = fit(walk(), out=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    state, _ = restore_best(folder, folder.recipe())
    assert state.experience["memory"]["seen"].shape == (16, 3)
    np.testing.assert_array_equal(
        jax.tree.leaves(state.params)[0], np.asarray(jax.tree.leaves(result.params)[0])
    )
    module, cfg, params = train.load(tmp_path / "run")
    assert cfg == CFG
    assert module.apply(cfg, params, jnp.zeros((1, 3))).shape == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_need_a_table_are_refused(kind):
    data = KINDS[kind]()
    with pytest.raises(ValueError, match="labels=5, allowed"):
        fit(data, labels=5)
    with pytest.raises(ValueError, match="joined, allowed for endless data: one"):
        data.joined("train", "validation")
    with pytest.raises(ValueError, match="preprocess='zscore', allowed"):
        fit_scaling("zscore", None, (0.0, 1.0))
    assert data.fingerprint == KINDS[kind]().fingerprint
    other = dataclasses.replace(data, splits={**data.splits, "train": Drawn(draw, 7, "others")})
    assert other.fingerprint != data.fingerprint


def test_experience_with_shard_map_is_refused():
    layout = Layout(Parallel(strategy="shard_map", devices=2), devices=jax.devices())
    with pytest.raises(
        ValueError, match="parallel='shard_map', allowed with an experience: auto, jit"
    ):
        ExperienceBatches(Walk(), 8, layout=layout)
    assert zoo.mlp is mlp
