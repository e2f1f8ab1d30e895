"""Acoustic features against python_speech_features and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import python_speech_features
import python_speech_features.base

from zoo.parts import acoustics

RANDOM = np.random.default_rng(0)
SPEECH = (RANDOM.normal(size=9000) * np.hanning(9000) * 0.1).astype(np.float32)
features = jax.jit(acoustics.static_features)


@pytest.mark.parametrize("kind", ["mfcc", "log_mel"])
@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_features_equal_those_of_python_speech_features(kind, rate, monkeypatch):
    """With our filters: theirs have edges at whole bins of the Fourier transform."""
    cfg = acoustics.Config(kind=kind, rate=rate, bands=26)
    monkeypatch.setattr(
        python_speech_features.base, "get_filterbanks", lambda *_: acoustics.mel_filters(cfg).T
    )
    options = {"nfft": cfg.fft, "winfunc": np.hamming}
    samples = SPEECH.astype(np.float64) * 32768
    if kind == "mfcc":
        expected = python_speech_features.mfcc(samples, rate, appendEnergy=False, **options)
    else:
        expected = np.log(python_speech_features.fbank(samples, rate, **options)[0])
    found = features(cfg, acoustics.windows(cfg, SPEECH))
    # They pad an incomplete last window with zeros; here, it is left out.
    assert len(found) == cfg.frames(len(SPEECH)) >= len(expected) - 1
    np.testing.assert_allclose(found, expected[: len(found)], atol=2e-3)


def test_filters_approach_those_of_python_speech_features_for_fine_spectra():
    cfg = acoustics.Config(bands=26, window=1.0)
    theirs = python_speech_features.base.get_filterbanks(26, cfg.fft, cfg.rate)
    np.testing.assert_allclose(acoustics.mel_filters(cfg).T, theirs, atol=0.03)


def test_deltas_equal_those_of_python_speech_features():
    frames = RANDOM.normal(size=(2, 12, 3)).astype(np.float32)
    cfg = acoustics.Config(deltas=2)
    lengths = jnp.array([12, 7])
    found = jax.jit(acoustics.with_deltas)(cfg, frames, lengths)
    for row, length in enumerate(lengths):
        first = python_speech_features.delta(frames[row, :length], 2)
        second = python_speech_features.delta(first, 2)
        expected = np.concatenate([frames[row, :length], first, second], axis=1)
        np.testing.assert_allclose(found[row, :length], expected, atol=1e-6)


def test_splicing_repeats_the_ends_of_each_recording():
    frames = RANDOM.normal(size=(2, 6, 2)).astype(np.float32)
    lengths = jnp.array([6, 3])
    found = jax.jit(acoustics.splice, static_argnums=2)(frames, lengths, 2)
    assert found.shape == (2, 6, 10)
    for row, length in enumerate(lengths):
        for t in range(length):
            around = [frames[row, min(max(t + k, 0), length - 1)] for k in range(-2, 3)]
            np.testing.assert_array_equal(found[row, t], np.concatenate(around))


def test_stacking_joins_frames_and_completes_the_last_group():
    frames = jnp.arange(14.0).reshape(1, 7, 2)
    stacked = acoustics.stack(frames, 3)
    assert stacked.shape == (1, 3, 6)
    np.testing.assert_array_equal(stacked[0, 2], [12, 13, 0, 0, 0, 0])


def test_silence_and_short_recordings():
    cfg = acoustics.Config()
    silent = features(cfg, acoustics.windows(cfg, np.zeros(1000, np.float32)))
    np.testing.assert_allclose(silent, np.log(acoustics.FLOOR), rtol=1e-6)
    assert acoustics.windows(cfg, np.zeros(399, np.float32)).shape == (0, 401)
    assert (cfg.frames(399), cfg.frames(400), cfg.frames(559), cfg.frames(560)) == (0, 1, 1, 2)


def test_features_are_framewise():
    """So that recordings may be computed in blocks, and while someone is speaking."""
    cfg = acoustics.Config()
    windows = acoustics.windows(cfg, SPEECH)
    whole = features(cfg, windows)
    np.testing.assert_allclose(features(cfg, windows[10:20]), whole[10:20], atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "mfcc", "coefficients": 41}, "coefficients=41, allowed: 1 to bands=40"),
        ({"rate": 40}, "window=0.025, allowed: 2 samples or more at rate=40"),
        ({"deltas": 3}, "deltas=3, allowed: 0, 1 or 2"),
        ({"kind": "mel"}, "kind='mel', allowed: one of 'log_mel', 'mfcc'"),
    ],
)
def test_invalid_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        acoustics.Config(**fields)
