"""Recordings as tables: features, normalisation, labels, buckets, and what cannot be used."""

import dataclasses

import jax
import numpy as np
import pytest

from train import acoustic, tasks
from train.acoustic import Moments, Sounds, Spoken, encode, frames_of, normalised
from train.data import load_data
from train.data.base import Utterances
from train.dataset import Bad, Dataset
from train.formats import DataError
from zoo.parts import acoustics

RATE = 8000
CFG = Utterances(rate=RATE, bands=8, buckets=2)
RANDOM = np.random.default_rng(0)


def _tone(seconds, pitch, loudness=0.3):
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(int(pitch)).normal(0, 0.03, len(time))
    return ((loudness * np.sin(2 * np.pi * pitch * time) + noise) * (0.1 + time)).astype(np.float32)


def _spoken(name, text, seconds=0.5, speaker="ann", pitch=300.0):
    samples = _tone(seconds, pitch)
    return Spoken(name, speaker, text, list(text), lambda: samples)


def _splits():
    train = [
        _spoken("a", "ab", 0.3), _spoken("b", "b a", 0.9, "bob", 500.0),
        _spoken("c", "aab", 0.4, "bob", 700.0),
    ]  # fmt: skip
    test = [_spoken("d", "ba", 0.6, "eve", 400.0), _spoken("e", "b", 0.2, "eve", 900.0)]
    return {"train": train, "test": test}


def test_a_table_has_frames_labels_and_their_lengths():
    tables, task, notes = encode("data", _splits(), CFG, Bad())
    assert task.vocabulary == ("", " ", "a", "b")
    assert task.words == ("a", "aab", "ab", "b")
    assert task.sizes == {"vocabulary": 4, "features": 8}
    table = tables["train"]
    assert table["inputs"]["frames"].dtype == np.float32
    expected = [CFG.front_end.frames(round(seconds * RATE)) for seconds in (0.3, 0.9, 0.4)]
    assert table["inputs"]["lengths"].tolist() == expected
    assert table["targets"].tolist() == [[2, 3, 0], [3, 1, 2], [2, 2, 3]]
    assert table["mask"].sum(axis=1).tolist() == [2, 3, 3]
    assert table.extras["texts"] == ("ab", "b a", "aab")
    assert table.extras["speakers"] == ("ann", "bob", "bob")
    np.testing.assert_array_equal(table.extras["recordings"].read(1), _tone(0.9, 500.0))
    assert "train: 3 recordings, 2 speakers, 0.0 minutes" in notes
    padding = table["inputs"]["frames"][0, expected[0] :]
    assert padding.size
    assert not padding.any()


def test_names_of_recordings_are_content_but_where_they_are_is_not():
    first, second = (
        Dataset("data", *encode("data", splits, CFG, Bad())[:2])
        for splits in (_splits(), _splits())
    )
    assert first.fingerprint == second.fingerprint
    renamed = _splits()
    renamed["test"][0] = renamed["test"][0]._replace(name="other")
    other = Dataset("data", *encode("data", renamed, CFG, Bad())[:2])
    assert other.fingerprint != first.fingerprint


def test_a_recording_has_the_same_features_alone_as_with_others(monkeypatch):
    front_end = dataclasses.replace(CFG, features="mfcc", coefficients=5, deltas=2).front_end
    recordings = [_tone(seconds, 300.0) for seconds in (0.3, 0.01, 1.7, 0.5)]
    together = frames_of(front_end, recordings)
    assert [len(each) for each in together] == [front_end.frames(len(each)) for each in recordings]
    monkeypatch.setattr(acoustic, "BLOCK", 64)
    for recording, expected in zip(recordings, together, strict=True):
        np.testing.assert_allclose(frames_of(front_end, [recording])[0], expected, atol=1.1e-3)
    whole = jax.jit(acoustics.static_features)(
        front_end, acoustics.windows(front_end, recordings[2])
    )
    np.testing.assert_allclose(together[2][:, :5], whole, atol=1e-3)


@pytest.mark.parametrize("normalise", ["speaker", "utterance", "global"])
def test_frames_are_normalised_over_the_chosen_recordings(normalise):
    cfg = dataclasses.replace(CFG, normalise=normalise)
    splits = _splits()
    tables, task, notes = encode("data", splits, cfg, Bad())
    assert bool(task.moments) == (normalise == "global")
    assert any(f"normalised over {normalise}" in n or "the speaker's rec" in n for n in notes)
    raw = {
        split: frames_of(cfg.front_end, [e.read() for e in each]) for split, each in splits.items()
    }
    groups = {
        "speaker": [("train", [0]), ("train", [1, 2]), ("test", [0, 1])],
        "utterance": [("train", [0]), ("train", [1]), ("train", [2]), ("test", [0]), ("test", [1])],
        "global": [("train", [0, 1, 2])],
    }[normalise]
    for split, rows in groups:
        inputs = tables[split]["inputs"]
        frames = np.concatenate(
            [inputs["frames"][row, : inputs["lengths"][row]] for row in rows]
        ).astype(np.float64)
        np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(frames.std(axis=0), 1, atol=2e-3)
    if normalise == "global":
        moments = Moments.of(raw["train"])
        expected = (raw["test"][0] - moments.mean) / moments.deviation
        length = len(expected)
        np.testing.assert_allclose(
            tables["test"]["inputs"]["frames"][0, :length], expected, atol=1e-3
        )


def test_a_constant_value_is_not_blown_up():
    frames = np.zeros((5, 2), np.float32)
    frames[:, 1] = np.arange(5)
    (scaled,) = normalised([frames], ["ann"], _task().normalise, _task().moments)
    assert not scaled[:, 0].any()
    assert scaled[:, 1].std() == pytest.approx(1, abs=1e-3)


def _task(**fields):
    values = {
        "vocabulary": ("", "a"), "units": "characters", "features": CFG.front_end,
        "normalise": "speaker",
    }  # fmt: skip
    return tasks.Transcription(**{**values, **fields})


def test_a_task_survives_storage():
    task = _task(moments=((0.5, 1.0), (2.0, 3.0)), words=("a",), scored=("", "b"))
    assert tasks.from_dict(tasks.to_dict(task)) == task


def test_other_data_are_encoded_as_a_trained_model_needs_them():
    cfg = dataclasses.replace(CFG, normalise="global")
    _, task, _ = encode("data", _splits(), cfg, Bad())
    other = Utterances(bands=30, normalise="utterance", units="words")
    tables, again, _ = encode("other", {"test": _splits()["test"]}, other, Bad(), task)
    assert again is task
    np.testing.assert_array_equal(
        tables["test"]["targets"][0, :2], [task.vocabulary.index(letter) for letter in "ba"]
    )
    assert tables["test"]["inputs"]["frames"].shape[-1] == 8


def _broken():
    raise DataError("/data/x.wav: not audio")


FAULTS = {
    "not audio: x": _spoken("x", "ab")._replace(read=_broken),
    "an empty transcript: x": _spoken("x", ""),
    "fewer frames than its labels need: x": _spoken("x", "aaaa" * 5, 0.2),
}


@pytest.mark.parametrize("message", FAULTS)
def test_unusable_recordings_are_an_error_or_skipped_and_counted(message):
    splits = _splits()
    splits["train"].append(FAULTS[message])
    with pytest.raises(DataError, match=f"data: {message}; data.on_bad=skip leaves them out"):
        encode("data", splits, CFG, Bad())
    skipping = dataclasses.replace(CFG, on_bad="skip")
    tables, _, notes = encode("data", splits, skipping, Bad())
    assert tables["train"].size == 3
    assert notes[0] == f"left out: 1 recordings, {message.rpartition(':')[0]}"


def test_a_label_that_training_lacks_is_an_error_or_skipped():
    splits = _splits()
    splits["test"].append(_spoken("f", "azb"))
    with pytest.raises(DataError, match=r"characters that the model does not know \('z'\): f"):
        encode("data", splits, CFG, Bad())
    tables, _, _ = encode("data", splits, dataclasses.replace(CFG, on_bad="skip"), Bad())
    assert tables["test"].size == 2


def test_a_split_without_usable_recordings_is_an_error():
    splits = {"train": [_spoken("x", "")]}
    with pytest.raises(DataError, match="data: no usable recording in train"):
        encode("data", splits, dataclasses.replace(CFG, on_bad="skip"), Bad())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": "mfcc", "coefficients": 41}, "coefficients=41, allowed: 1 to bands=40"),
        ({"normalise": "all"}, "data.normalise='all', allowed: speaker, utterance, global"),
        ({"deltas": 3}, "data.deltas=3, allowed: 0, 1, 2"),
    ],
)
def test_invalid_options_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Utterances(**fields)


def test_sounds_are_names_with_samples():
    sounds = Sounds.of(_splits()["test"])
    assert sounds == ("d", "e")
    np.testing.assert_array_equal(sounds.read(1), _tone(0.2, 900.0))


# ---------------------------------------------------------------- strings of digits


def _of(data: Dataset) -> tasks.Transcription:
    assert isinstance(data.task, tasks.Transcription)
    return data.task


def test_strings_of_embedded_digits():
    digits = load_data("spoken-digits", count=60)
    sizes = {split: table.size for split, table in digits.splits.items()}
    assert sizes == {"train": 60, "validation": 200, "test": 400}
    texts = {split: table.extras["texts"] for split, table in digits.splits.items()}
    assert {len(text.split()) for text in texts["train"]} == set(range(1, 6))
    assert {len(text.split()) for text in texts["test"]} == set(range(1, 8))
    assert len(set(digits.splits["train"].extras["speakers"])) == 6
    table = digits.splits["train"]
    spelled = [
        " ".join(_of(digits).vocabulary[label] for label in row if label)
        for row in table["targets"]
    ]
    assert tuple(spelled) == texts["train"]
    samples = table.extras["recordings"].read(0)
    assert samples.dtype == np.float32
    assert np.abs(samples).max() <= 1
    front_end = _of(digits).features
    assert table["inputs"]["lengths"][0] == front_end.frames(len(samples))


def test_digit_strings_of_characters():
    digits = load_data("spoken-digits", count=60, units="characters")
    assert set(_of(digits).vocabulary) >= {"", " ", "e", "z"}


@pytest.mark.parametrize(
    ("form", "fields", "message"),
    [
        ("spoken", {}, "expected spoken-digits"),
        ("spoken-digits:", {}, "expected spoken-digits or spoken-digits:PATH"),
        (
            "spoken-digits",
            {"units": "phones"},
            "data.units='phones', allowed: 'words', 'characters",
        ),
        ("spoken-digits", {"rate": 16_000}, "data.rate=16000, allowed: 8000"),
        ("spoken-digits", {"count": 0}, "data.count=0, allowed: a positive integer"),
    ],
)
def test_invalid_forms_and_options_of_digit_strings_are_named(form, fields, message):
    with pytest.raises(ValueError, match=message):
        load_data(form, **fields)
