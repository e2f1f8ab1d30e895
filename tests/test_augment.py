"""Deformations: exact for whole pixels, right on average, per example, never in evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from train.augment import Augment, _places, _resample
from train.augment import deform as deform_now
from train.engine.step import init_state, make_evaluate, make_step
from zoo import convnet, mlp

deform = jax.jit(deform_now, static_argnums=0)
KEYS = jax.random.split(jax.random.key(0), 64)
IMAGES = jax.random.uniform(jax.random.key(1), (64, 9, 8, 2))


def test_disabled_augmentation_is_the_identity():
    assert deform_now(Augment(), IMAGES, KEYS) is IMAGES


def test_flips_and_crops_move_whole_pixels_exactly():
    image = np.asarray(IMAGES[0])
    same = jnp.broadcast_to(IMAGES[0], IMAGES.shape)
    flipped = np.asarray(deform(Augment(flip_horizontal=True), same, KEYS))
    kinds = [
        next(
            name
            for name, each in (("as it was", image), ("flipped", image[:, ::-1]))
            if np.allclose(out, each)
        )
        for out in flipped
    ]
    assert 16 < kinds.count("flipped") < 48
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    windows = {(i, j): padded[i : i + 9, j : j + 8] for i in range(3) for j in range(3)}
    found = set()
    for out in np.asarray(deform(Augment(crop=1), same, KEYS)):
        (place,) = [
            place for place, window in windows.items() if np.allclose(out, window, atol=1e-6)
        ]
        found.add(place)
    assert len(found) == 9


def test_resampling_equals_bilinear_interpolation_by_hand():
    image = np.asarray(IMAGES[0])
    places = np.random.default_rng(0).uniform(-2, 11, (2, 9, 8)).astype(np.float32)
    actual = _resample(IMAGES[0], jnp.asarray(places))
    for i, j in np.ndindex(9, 8):
        y, x = np.clip(places[0, i, j], 0, 8), np.clip(places[1, i, j], 0, 7)
        top, left = int(y), int(x)
        expected = 0
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            expected = expected + weight * image[min(row, 8), min(column, 7)]
        np.testing.assert_allclose(actual[i, j], expected, rtol=1e-4, atol=1e-5)


def test_affine_maps_are_affine_and_within_their_ranges():
    """The centre is fixed without a shift; angles, factors and shifts fill exactly their ranges."""
    augment = Augment(rotate=30)
    places = np.asarray(jax.vmap(lambda key: _places(augment, (9, 9), key))(KEYS))
    np.testing.assert_allclose(places[:, :, 4, 4], 4, atol=1e-5)
    down = (places[:, :, 8, 4] - places[:, :, 0, 4]) / 8
    np.testing.assert_allclose(np.linalg.norm(down, axis=1), 1, rtol=1e-5)
    angles = np.degrees(np.arctan2(down[:, 1], down[:, 0]))
    assert 25 < np.abs(angles).max() <= 30.01
    assert angles.min() < 0 < angles.max()
    grown = np.asarray(
        jax.vmap(lambda key: _places(Augment(scale=0.2, shift=2), (9, 9), key))(KEYS)
    )
    factors = (grown[:, 0, 8, 4] - grown[:, 0, 0, 4]) / 8
    assert np.exp(-0.2) - 1e-5 <= factors.min() < 0.9
    assert 1.1 < factors.max() <= np.exp(0.2) + 1e-5
    assert 1.5 < np.abs(grown[:, :, 4, 4] - 4).max() <= 2


def test_elastic_displacements_have_the_stated_size_and_are_smooth():
    keys = jax.random.split(jax.random.key(3), 2000)
    places = np.asarray(
        jax.vmap(lambda key: _places(Augment(elastic=1.4, smoothness=3.0), (12, 10), key))(keys)
    )
    displaced = places - np.stack(np.meshgrid(range(12), range(10), indexing="ij"))
    np.testing.assert_allclose(displaced.std(axis=0), 1.4, rtol=0.08)
    np.testing.assert_allclose(displaced.mean(axis=0), 0, atol=0.15)
    # A field smoothed by a Gaussian of deviation s has correlation exp(-(d / 2 s)^2) at distance d.
    for distance in (1, 3, 6):
        correlation = np.mean(displaced[:, 0, :-distance] * displaced[:, 0, distance:]) / 1.4**2
        assert abs(correlation - np.exp(-((distance / 6) ** 2))) < 0.06


def test_signals_move_along_time_only():
    signals = jax.random.uniform(jax.random.key(2), (64, 11, 3))
    moved = np.asarray(deform(Augment(crop=2), signals, KEYS))
    padded = np.pad(np.asarray(signals), ((0, 0), (2, 2), (0, 0)), mode="edge")
    starts = [
        next(s for s in range(5) if np.allclose(out, pad[s : s + 11], atol=1e-6))
        for out, pad in zip(moved, padded, strict=True)
    ]
    assert set(starts) == set(range(5))
    with pytest.raises(
        ValueError, match=r"augment: rotate=3, allowed for signals .*: scale, shift and crop"
    ):
        deform(Augment(rotate=3), signals, KEYS)


def test_deformation_depends_on_the_examples_own_key_only():
    augment = Augment(
        rotate=20, scale=0.2, shear=10, shift=2, crop=1, elastic=1.0, flip_vertical=True
    )
    together = deform(augment, IMAGES, KEYS)
    alone = deform(augment, IMAGES[5:6], KEYS[5:6])
    np.testing.assert_allclose(together[5:6], alone, rtol=1e-5, atol=1e-6)
    again = deform(augment, jnp.broadcast_to(IMAGES[0], IMAGES.shape), KEYS)
    assert len(np.unique(np.asarray(again).reshape(64, -1), axis=0)) == 64


def test_augmentation_applies_in_training_not_in_evaluation():
    cfg = dataclasses.replace(
        convnet.PRESETS["tiny"],
        dropout=0.0,
        stages=tuple(
            dataclasses.replace(stage, dropout=0.0) for stage in convnet.PRESETS["tiny"].stages
        ),
    )
    batch = convnet.example_batch(cfg, jax.random.key(0), 8)
    optimizer = train.Optimizer().build(10, 10)
    key = jax.random.key(5)
    state = init_state(convnet, cfg, optimizer, key, 8)
    losses = {}
    for augment in (Augment(), Augment(shift=2)):
        step = jax.jit(make_step(convnet, cfg, optimizer, augment))
        losses[augment] = [
            float(step(state._replace(step=jnp.int32(number)), batch, key)[1]["loss"][0])
            for number in range(2)
        ]
    assert losses[Augment()][0] == losses[Augment()][1]
    assert len({*losses[Augment()], *losses[Augment(shift=2)]}) == 3
    _, metrics = make_evaluate(convnet, cfg)(state.params, (), batch)
    np.testing.assert_allclose(metrics["loss"][0], losses[Augment()][0], rtol=1e-5)


def test_bad_settings_are_refused_before_anything_is_run(tmp_path):
    for field, value in [
        ("rotate", -1),
        ("scale", 3),
        ("elastic", float("nan")),
        ("smoothness", 0.1),
        ("crop", -1),
    ]:
        with pytest.raises(ValueError, match=f"augment: {field}=.*allowed"):
            Augment(**{field: value})
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"augment: inputs \(6,\), allowed: images"):
        train.fit(
            mlp,
            mlp.PRESETS["tiny"],
            mlp.example_batch(mlp.PRESETS["tiny"], KEYS[0], 20),
            augment=Augment(shift=1.0),
            steps=1,
            out=out,
        )
    assert not out.exists()
