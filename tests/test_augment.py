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
        ValueError, match=r"augment: rotate=3, allowed for signals .*: scale, shift, crop and masks"
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


FRAMES = jax.random.normal(jax.random.key(3), (64, 30, 8))
LENGTHS = jnp.asarray(np.random.default_rng(0).integers(5, 31, 64))
recordings = jax.jit(train.augment.deform_recordings, static_argnums=0)


def test_the_speed_of_a_recording_changes_its_length():
    frames, lengths = recordings(Augment(scale=0.5), FRAMES, LENGTHS, KEYS)
    assert frames.shape == FRAMES.shape
    ratio = np.asarray(lengths) / np.asarray(LENGTHS)
    assert np.all(lengths <= 30)
    assert 0.55 < ratio.min() < 0.75
    assert 1.3 < ratio.max() < 1.7
    # A ramp stays a ramp from the first to the last frame, of another slope.
    ramp = jnp.broadcast_to(jnp.arange(30.0)[None, :, None], FRAMES.shape)
    frames, lengths = recordings(Augment(scale=0.5), ramp, LENGTHS, KEYS)
    for row, (before, after) in enumerate(zip(LENGTHS.tolist(), lengths.tolist(), strict=True)):
        expected = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
        np.testing.assert_allclose(frames[row, :after, 3], expected, atol=1e-4)


def test_a_deformed_recording_does_not_depend_on_its_padding():
    augment = Augment(scale=0.2, shift_bands=1.5, mask_bands=3, mask_frames=4)
    valid = np.arange(30)[None, :, None] < np.asarray(LENGTHS)[:, None, None]
    found = recordings(augment, FRAMES, LENGTHS, KEYS)
    others = recordings(augment, jnp.where(valid, FRAMES, 1e6), LENGTHS, KEYS)
    np.testing.assert_array_equal(found[1], others[1])
    for row, length in enumerate(found[1].tolist()):
        np.testing.assert_array_equal(found[0][row, :length], others[0][row, :length])


def test_masks_hide_ranges_of_bands_and_of_time():
    long = jnp.full(64, 30)
    hidden = []
    for augment in (Augment(mask_bands=3, masks=1), Augment(mask_frames=9, masks=1)):
        frames, lengths = recordings(augment, FRAMES, long, KEYS)
        np.testing.assert_array_equal(lengths, long)
        changed = np.asarray(frames != FRAMES)
        hidden.append(changed)
        means = np.broadcast_to(np.asarray(FRAMES).mean(axis=(1, 2))[:, None, None], FRAMES.shape)
        np.testing.assert_allclose(np.asarray(frames)[changed], means[changed], atol=1e-5)
    bands, times = hidden[0].any(axis=1), hidden[1].any(axis=2)
    np.testing.assert_array_equal(hidden[0], np.repeat(bands[:, None], 30, axis=1))
    np.testing.assert_array_equal(hidden[1], np.repeat(times[:, :, None], 8, axis=2))
    for ranges, most in ((bands, 3), (times, 9)):
        assert set(ranges.sum(axis=1)) == set(range(most + 1))
        assert np.all(
            np.abs(np.diff(np.pad(ranges, ((0, 0), (1, 1))).astype(int))).sum(axis=1) <= 2
        )


def test_spectra_move_by_bands():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None], FRAMES.shape)
    frames, _ = recordings(Augment(shift_bands=2.0), ramp, jnp.full(64, 30), KEYS)
    moved = np.asarray(frames - ramp)
    np.testing.assert_allclose(
        moved[:, :, 3:5], np.broadcast_to(moved[:, :1, 3:4], (64, 30, 2)), atol=1e-5
    )
    assert -2 <= moved[:, 0, 3].min() < -1.5
    assert 1.5 < moved[:, 0, 3].max() <= 2


def test_other_deformations_of_recordings_are_refused():
    with pytest.raises(ValueError, match="augment: crop=2, allowed for recordings: scale, shift_b"):
        recordings(Augment(crop=2), FRAMES, LENGTHS, KEYS)
    with pytest.raises(ValueError, match=r"mask_frames=2, allowed for images .*: anything but mas"):
        deform(Augment(mask_frames=2), IMAGES, KEYS)
