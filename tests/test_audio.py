"""Recordings of digits: features against a direct transform, splits, and invalid files."""

import collections
import io
import os
import pathlib
import shutil
import struct
import wave

import numpy as np
import pytest

from tests.test_formats import bounded as bounded
from tests.test_formats import fuzz, write
from train.data import DataError, fsdd, load_data
from train.data.fsdd import (
    BANDS,
    FLOOR,
    FRAMES,
    HOP,
    RATE,
    SAMPLES,
    WINDOW,
    centred,
    log_mel,
    read_wav,
)
from zoo.parts import acoustics

RNG = np.random.default_rng(0)
SILENCE = np.float32(np.round(np.log(FLOOR) * 1024) / 1024)


def wav(samples, rate: int = RATE, channels: int = 1, width: int = 2) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setparams((channels, width, rate, 0, "NONE", ""))
        sound.writeframes(np.asarray(samples, {1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes())
    return stream.getvalue()


def noise(count: int, level: float = 1000) -> np.ndarray:
    return np.round(RNG.normal(0, level, count)).astype(np.int16)


def recordings(
    folder: pathlib.Path, speakers=("ann", "bob"), digits=range(2), indices=range(12)
) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for digit in digits:
        for speaker in speakers:
            for index in indices:
                (folder / f"{digit}_{speaker}_{index}.wav").write_bytes(wav(noise(900 + index)))
    return folder


# ---------------------------------------------------------------- features


def slow_log_mel(signal: np.ndarray) -> np.ndarray:
    """Computes features by their definition, without a fast transform."""

    def hertz(mel: float) -> float:
        return 700 * (10 ** (mel / 2595) - 1)

    top = 2595 * np.log10(1 + 4000 / 700)
    edges = [hertz(top * i / 41) for i in range(42)]
    power = np.zeros(((len(signal) - 200) // 80 + 1, 40))
    for frame in range(len(power)):
        part = [signal[80 * frame + t] * np.sin(np.pi * t / 200) ** 2 for t in range(200)]
        for k in range(129):
            total = sum(value * np.exp(-2j * np.pi * k * t / 256) for t, value in enumerate(part))
            frequency = k * 8000 / 256
            for band in range(40):
                low, centre, high = edges[band : band + 3]
                if low < frequency <= centre:
                    power[frame, band] += (frequency - low) / (centre - low) * abs(total) ** 2
                elif centre < frequency < high:
                    power[frame, band] += (high - frequency) / (high - centre) * abs(total) ** 2
    return np.log(power / power.max() + 1e-6)


def test_features_equal_a_direct_transform():
    signals = np.stack(
        [noise(480), np.round(3000 * np.sin(0.3 * np.arange(480))).astype(np.int16) + noise(480, 3)]
    )
    features = log_mel(signals)
    assert (features.dtype, features.shape) == (np.float32, (2, 4, BANDS))
    for signal, found in zip(signals, features, strict=True):
        np.testing.assert_allclose(found, slow_log_mel(signal), rtol=0, atol=0.5 / 1024 + 1e-6)


def test_filter_bank_triangles_are_at_their_frequencies():
    filters = acoustics.mel_filters(fsdd.FRONT_END)
    assert filters.shape == (129, BANDS)
    assert filters.min() == 0
    assert (filters.max(axis=0) > 0.4).all(), "no band falls between two frequencies"
    assert (np.diff(filters.argmax(axis=0)) > 0).all()
    assert (np.diff(filters.argmax(axis=0))[-5:] > np.diff(filters.argmax(axis=0))[:5]).all(), (
        "they widen with the frequency"
    )
    edges = (
        2595
        * np.log10(1 + np.arange(129) * RATE / 256 / 700)
        / (2595 * np.log10(1 + 4000 / 700) / 41)
    )
    inside = (edges >= 1) & (edges <= BANDS)
    np.testing.assert_allclose(filters.sum(axis=1)[inside], 1, err_msg="neighbours overlap to one")


@pytest.mark.parametrize("frequency", [200, 440, 1000, 2500, 3700])
def test_tone_has_its_peak_in_its_band(frequency):
    tone = np.round(10000 * np.sin(2 * np.pi * frequency / RATE * np.arange(SAMPLES))).astype(
        np.int16
    )
    position = np.log10(1 + frequency / 700) / np.log10(1 + 4000 / 700) * (BANDS + 1) - 1
    assert (np.abs(log_mel(tone[None])[0].argmax(axis=1) - position) < 1).all()


def test_features_ignore_the_level_and_silence_is_the_floor():
    quiet = noise(SAMPLES, 300)
    np.testing.assert_array_equal(log_mel(quiet[None]), log_mel(8 * quiet[None]))
    np.testing.assert_array_equal(
        log_mel(np.zeros((1, SAMPLES), np.int16)), np.full((1, FRAMES, BANDS), SILENCE)
    )
    features = log_mel(centred(noise(2000))[None])[0]
    assert features.max() == 0
    assert (features[[0, 30, -31, -1]] == SILENCE).all(), "before and after"
    assert (features[38:62] > SILENCE).all(), "in between"


def test_batch_of_recordings_equals_single_transforms(monkeypatch):
    signals = np.stack([noise(WINDOW + 3 * HOP) for _ in range(7)])
    whole = log_mel(signals)
    monkeypatch.setattr(fsdd, "BLOCK", 3)
    np.testing.assert_array_equal(log_mel(signals), whole)
    np.testing.assert_array_equal(log_mel(signals[5:6])[0], whole[5])


def test_recordings_are_centred():
    assert centred(np.array([1, 2, 3]), 7).tolist() == [0, 0, 1, 2, 3, 0, 0]
    assert centred(np.array([1, 2]), 5).tolist() == [0, 1, 2, 0, 0]
    assert centred(np.arange(9), 4).tolist() == [2, 3, 4, 5]
    assert centred(np.arange(4), 4).tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("place", ["", "recordings"])
def test_fsdd_split_is_by_recording_index(tmp_path, place):
    recordings(tmp_path / "spoken" / place, speakers=("bob", "ann", "c_d"))
    (tmp_path / "spoken" / place / "README.md").write_text("not a recording")
    (tmp_path / "spoken" / place / "Thumbs.db").write_text("nor this, but nobody put it there")
    dataset = load_data("fsdd:spoken", tmp_path)
    assert (dataset.name, dataset.task.labels) == ("fsdd:spoken", tuple("0123456789"))
    assert dataset.notes == (f"not read: {tmp_path / 'spoken' / place / 'README.md'}",)
    sizes = {"train": 2, "validation": 5, "test": 5}
    for split, table in dataset.splits.items():
        assert (table["inputs"].dtype, table["inputs"].shape) == (
            np.float32,
            (6 * sizes[split], FRAMES, BANDS),
        )
        assert table["targets"].dtype == np.int32
        pairs = sorted(zip(table["targets"].tolist(), table.extras["speakers"], strict=True))
        assert pairs == sorted(
            [(digit, speaker) for digit in range(2) for speaker in ("ann", "bob", "c_d")]
            * sizes[split]
        )
    inputs = dataset.splits["train"]["inputs"]
    assert dataset.input_range == (inputs.min(), inputs.max()) == (SILENCE, 0)
    file = next((tmp_path / "spoken").rglob("1_c_d_11.wav"))
    here = (dataset.splits["train"]["targets"] == 1) & (
        np.array(dataset.splits["train"].extras["speakers"]) == "c_d"
    )
    assert any(
        np.array_equal(each, log_mel(centred(read_wav(file))[None])[0]) for each in inputs[here]
    )
    assert load_data(f"fsdd:{tmp_path}/spoken").fingerprint == dataset.fingerprint


def test_file_endings_are_case_insensitive(tmp_path):
    recordings(tmp_path / "lower")
    shutil.copytree(tmp_path / "lower", tmp_path / "mixed")
    for number, file in enumerate(sorted((tmp_path / "mixed").iterdir())):
        file.rename(file.with_suffix((".wav", ".WAV", ".Wav")[number % 3]))
    assert load_data(f"fsdd:{tmp_path}/mixed").notes == ()
    assert (
        load_data(f"fsdd:{tmp_path}/mixed").fingerprint
        == load_data(f"fsdd:{tmp_path}/lower").fingerprint
    )


def test_held_out_speaker_is_the_test_split(tmp_path):
    recordings(tmp_path / "a@home" / "recordings")
    dataset = load_data("fsdd:a@home@bob", tmp_path)
    assert dataset.name == "fsdd:a@home@bob"
    found = {
        split: collections.Counter(table.extras["speakers"])
        for split, table in dataset.splits.items()
    }
    assert found == {"train": {"ann": 14}, "validation": {"ann": 10}, "test": {"bob": 24}}
    whole = load_data(f"fsdd:{tmp_path}/a@home/recordings")
    assert len(whole.splits["test"]["inputs"]) == 20, "an @ before a slash belongs to the path"
    with pytest.raises(DataError, match=r"a@home/recordings: no speaker 'eve'; known: ann, bob$"):
        load_data(f"fsdd:{tmp_path}/a@home@eve")


ROOT = pathlib.Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere").absolute()


@pytest.mark.skipif(
    not (ROOT / "fsdd").is_dir(),
    reason="needs the recordings in $ZOO_DATA_DIR/fsdd; ZOO_DATA_DIR is not set, or has none",
)
def test_fsdd_splits_have_documented_sizes_and_are_disjoint():
    speakers = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    whole, held_out = load_data("fsdd:fsdd", ROOT), load_data("fsdd:fsdd@lucas", ROOT)
    each = {"train": 40, "validation": 5, "test": 5}
    for split, table in whole.splits.items():
        assert table["inputs"].shape == (60 * each[split], FRAMES, BANDS)
        counts = collections.Counter(
            zip(table.extras["speakers"], table["targets"].tolist(), strict=True)
        )
        assert counts == {
            (speaker, digit): each[split] for speaker in speakers for digit in range(10)
        }
    others = [speaker for speaker in speakers if speaker != "lucas"]
    assert {
        split: collections.Counter(table.extras["speakers"])
        for split, table in held_out.splits.items()
    } == {
        "train": dict.fromkeys(others, 450),
        "validation": dict.fromkeys(others, 50),
        "test": {"lucas": 500},
    }
    for dataset in (whole, held_out):
        assert dataset.input_range == (SILENCE, 0)
        rows = {
            split: {x.tobytes() for x in table["inputs"]} for split, table in dataset.splits.items()
        }
        assert sum(map(len, rows.values())) == len(set.union(*rows.values())), (
            "no recording is in two splits"
        )
    train, test = whole.splits["train"], whole.splits["test"]
    means = np.stack(
        [train["inputs"][train["targets"] == digit].mean(axis=0) for digit in range(10)]
    )
    distance = ((test["inputs"][:, None] - means) ** 2).sum(axis=(2, 3))
    assert (distance.argmin(axis=1) == test["targets"]).mean() > 0.5, (
        "digits are told apart even by their means"
    )


# ---------------------------------------------------------------- faults


GOOD = wav(noise(1000))
FAULTS = {
    "another rate": (
        wav(noise(1000), rate=16000),
        r"16000 Hz, channels: 1, bits: 16; expected 8000 Hz, 1, 16$",
    ),
    "stereo": (wav(noise(1000), channels=2), "8000 Hz, channels: 2, bits: 16; expected"),
    "eight bits": (wav(np.full(1000, 128), width=1), "bits: 8; expected"),
    "32 bits": (wav(noise(1000), width=4), "bits: 32; expected"),
    "not a number of bits": (GOOD[:34] + b"\0\0" + GOOD[36:], "unreadable: bad sample width"),
    "not PCM": (GOOD[:20] + b"\3\0" + GOOD[22:], "unreadable: unknown format: 3"),
    "no samples": (wav([]), "announces 0 samples, allowed: 1 to 480000"),
    "too long": (wav(np.zeros(480_001)), "announces 480001 samples, allowed"),
    "a length of gigabytes": (
        GOOD[:40] + struct.pack("<I", 2**32 - 2) + GOOD[44:],
        "announces 2147483647 samples, allowed",
    ),
    "truncated": (GOOD[:-500], "truncated: 1500 of 2000 bytes for 1000 samples"),
    "one byte missing": (GOOD[:-1], "truncated: 1999 of 2000 bytes"),
    "truncated in its header": (GOOD[:30], "not a wav file, or truncated in its header"),
    "empty": (b"", "not a wav file, or truncated in its header"),
    "text": (
        b"Once upon a time, there was no recording.",
        "unreadable: file does not start with RIFF id",
    ),
}


@pytest.mark.parametrize(("data", "fault"), FAULTS.values(), ids=FAULTS)
def test_faults_of_recordings_are_named(tmp_path, data, fault):
    file = recordings(tmp_path) / "1_bob_3.wav"
    file.write_bytes(data)
    with pytest.raises(DataError, match=f"^{file}: .*{fault}"):
        load_data(f"fsdd:{tmp_path}")


@pytest.mark.parametrize(
    "name",
    ["bob_1_3.wav", "1_bob.wav", "10_bob_3.wav", "1_bob_x.wav", "1__3.wav", "1_bob_3.wav.wav"],
)
def test_file_name_without_label_is_refused(tmp_path, name):
    (recordings(tmp_path) / name).write_bytes(GOOD)
    with pytest.raises(
        DataError, match=f"^{tmp_path}/{name}: expected a name like 7_speaker_23.wav"
    ):
        load_data(f"fsdd:{tmp_path}")


def test_folder_without_a_required_split_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"^{tmp_path}/empty: no files DIGIT_SPEAKER_INDEX.wav$"):
        load_data(f"fsdd:{tmp_path}/empty")
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/few: no recordings for the train split among 40"
    ):
        load_data(f"fsdd:{recordings(tmp_path / 'few', indices=range(10))}")
    with pytest.raises(DataError, match="no recordings for the train split"):
        load_data(f"fsdd:{recordings(tmp_path / 'one', speakers=['ann'])}@ann")
    with pytest.raises(DataError, match="no recordings for the test split"):
        load_data(f"fsdd:{recordings(tmp_path / 'late', indices=range(5, 12))}")
    (tmp_path / "file").write_bytes(GOOD)
    with pytest.raises(DataError, match=rf"^{tmp_path}/file: not a folder$"):
        load_data(f"fsdd:{tmp_path}/file")
    (tmp_path / "few" / "1_ann_30.wav").mkdir()
    (tmp_path / "few" / "1_ann_31.wav").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"1_ann_30.wav: not a file$"):
        load_data(f"fsdd:{tmp_path}/few")


def test_faults_of_data_names_are_explained(tmp_path):
    for name in ("fsdd:", "fsdd:@bob"):
        with pytest.raises(DataError, match=f"data '{name}': a path must follow the colon"):
            load_data(name)
    with pytest.raises(DataError, match="data 'fsdd': expected fsdd:PATH"):
        load_data("fsdd")
    with pytest.raises(DataError, match=r"no such file or folder: /no/where$"):
        load_data("fsdd:/no/where@bob")


def test_damaged_recordings_are_refused_or_read(tmp_path, bounded):
    def check(samples, data):
        assert samples.dtype == np.int16
        assert 0 < len(samples) <= len(data) // 2
        assert samples.tobytes() in data

    header = [wav(noise(count)) for count in (1, 20, 60)]
    extra = GOOD[:36] + b"LIST" + struct.pack("<I", 6) + b"INFOab" + GOOD[36:]
    fuzz(
        tmp_path / "0_a_0.wav",
        [*header, extra[:4] + struct.pack("<I", len(extra) - 8) + extra[8:]],
        3_000,
        5,
        read_wav,
        check,
    )


def test_recordings_truncated_anywhere_are_refused(tmp_path):
    data = wav(noise(40))
    assert len(read_wav(write(tmp_path / "whole.wav", data))) == 40
    for end in range(len(data)):
        with pytest.raises(DataError, match=r"truncated|unreadable"):
            read_wav(write(tmp_path / "part.wav", data[:end]))
