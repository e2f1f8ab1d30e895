"""Recordings and speech corpora: every format and layout, splits by speaker, and invalid files."""

import gzip
import io
import json
import os
import pathlib
import re
import struct
import wave

import numpy as np
import pytest
import soundfile

from tests.test_formats import bounded as bounded
from tests.test_formats import fuzz, write
from train.formats import Audio, DataError, read_audio, read_audio_bytes
from train.utterances import (
    PHONES_61,
    TIMIT_TEST,
    TIMIT_VALIDATION,
    Utterance,
    by_speaker,
    fold_phones,
    manifest_splits,
    read_an4,
    read_librispeech,
    read_manifest,
    read_pronunciations,
    read_timit,
    shared_speakers,
)

RATE = 16000


def tone(rate: int = RATE, seconds: float = 0.5, hertz: float = 440, level: float = 0.5):
    return level * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def sound(
    samples, rate: int = RATE, kind: str = "WAV", subtype: str | None = "PCM_16", **options
) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype, **options)
    return stream.getvalue()


def read(data: bytes, rate: int = RATE) -> Audio:
    return read_audio_bytes(data, "x", rate)


# ---------------------------------------------------------------- recordings

KINDS = (
    ("WAV", "PCM_U8", 8), ("WAV", "PCM_16", 16), ("WAV", "PCM_24", 24), ("WAV", "PCM_32", 25),
    ("WAV", "FLOAT", 25), ("WAV", "DOUBLE", 25), ("WAVEX", "PCM_24", 24), ("RF64", "PCM_16", 16),
    ("FLAC", "PCM_S8", 8), ("FLAC", "PCM_16", 16), ("FLAC", "PCM_24", 24), ("NIST", "PCM_16", 16),
    ("AIFF", "PCM_16", 16), ("AU", "PCM_16", 16),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "subtype", "bits"), KINDS)
def test_every_width_is_read_to_within_its_steps(kind, subtype, bits):
    audio = read(sound(tone(), kind=kind, subtype=subtype))
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (8000,)
    np.testing.assert_allclose(audio.samples, tone(), rtol=0, atol=2.0 ** (1 - bits))
    assert audio[1:] == (0, RATE, 1)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 44101])
def test_any_rate_is_resampled(rate):
    audio = read(sound(tone(rate), rate, subtype="FLOAT"))
    assert audio.samples.dtype == np.float32
    assert audio.recorded_rate == rate
    assert len(audio.samples) == -(-len(tone(rate)) * RATE // rate)
    inner = slice(400, 7600)  # the filter sees zeros outside
    np.testing.assert_allclose(audio.samples[inner], tone()[inner], atol=2e-3)


def test_what_the_rate_cannot_carry_is_filtered_out():
    high = read(sound(tone(44100, hertz=12000), 44100))
    assert np.abs(high.samples[400:-400]).max() < 0.005, "12 kHz would alias to 4 kHz"


def test_channels_are_averaged():
    left, right = tone(), tone(hertz=1000, level=0.25)
    audio = read(sound(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(audio.samples, (left + right) / 2, atol=1e-6)
    assert audio.channels == 2
    many = read(sound(np.stack([left] * 3 + [right] * 3, axis=1), kind="FLAC"))
    np.testing.assert_allclose(many.samples, (left + right) / 2, atol=1e-4)


def test_the_standard_library_writes_the_same():
    stream = io.BytesIO()
    with wave.open(stream, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes(np.array([0, 16384, -16384, 8192], "<i2").tobytes())
    np.testing.assert_array_equal(read(stream.getvalue()).samples, [0, 0.5, -0.5, 0.25])


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("FLAC", "PCM_24"), ("WAV", "PCM_32"),
     ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "ALAW")],
)  # fmt: skip
def test_the_share_of_clipped_values(kind, subtype):
    loud = tone(level=2)
    share = np.mean(np.abs(loud) >= 1)
    audio = read(sound(loud if subtype == "FLOAT" else np.clip(loud, -1, 1), 16000, kind, subtype))
    assert share > 0.6
    assert audio.clipped == pytest.approx(share, abs=0.02)
    assert np.abs(audio.samples).max() <= 1
    assert np.abs(audio.samples).max() > 0.97
    assert read(sound(tone(level=0.9), 16000, kind, subtype)).clipped == 0


def test_resampled_samples_stay_within_1():
    square = np.sign(tone(44100)) * 0.999
    assert np.abs(read(sound(square, 44100)).samples).max() == 1


def test_files_gzipped_files_and_streams_from_pipes(tmp_path):
    data = sound(tone())
    expected = read(data).samples
    file = tmp_path / "any name.raw"
    file.write_bytes(data)
    np.testing.assert_array_equal(read_audio(file, RATE).samples, expected)
    write(tmp_path / "x.wav.gz", gzip.compress(data))
    np.testing.assert_array_equal(read_audio(tmp_path / "x.wav.gz", RATE).samples, expected)
    for size in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000):  # ffmpeg, sox, sox
        streamed = data[:40] + struct.pack("<I", size) + data[44:]
        np.testing.assert_array_equal(read(streamed).samples, expected)


def test_long_recordings_are_decoded_in_blocks(monkeypatch):
    monkeypatch.setattr("train.formats.audio.BLOCK", 1000)
    stereo = np.stack([tone(), tone(hertz=1000)], axis=1)
    for kind in ("WAV", "FLAC"):
        audio = read(sound(stereo, kind=kind))
        np.testing.assert_allclose(audio.samples, stereo.mean(axis=1), atol=1e-4)


NOISE = np.random.default_rng(0).normal(0, 0.1, 8000)
WAV, FLAC, SPHERE = (sound(NOISE, kind=kind) for kind in ("WAV", "FLAC", "NIST"))
BAD_FLOATS = NOISE.astype(np.float32)
BAD_FLOATS[17] = np.nan
LOUD = (NOISE * 32768).astype(np.float32)


def flac_of_length(samples: int) -> bytes:
    """The announced number of samples has 36 bits, from the middle of byte 21 on."""
    return (
        FLAC[:21] + bytes([FLAC[21] & 0xF0 | samples >> 32])
        + (samples & 0xFFFFFFFF).to_bytes(4, "big") + FLAC[26:]
    )  # fmt: skip


FAULTS = {
    "empty": (b"", "empty"),
    "no samples": (sound(NOISE[:0]), "no samples"),
    "text": (
        b"Not a recording.\n" * 99,
        "not an audio file, or damaged: Format not recognised",
    ),
    "zeros": (bytes(4096), "not an audio file, or damaged: Format not recognised"),
    "header only": (
        WAV[:30],
        "not an audio file, or damaged: Error in WAV file. No 'data' chunk marker",
    ),
    "wav cut": (WAV[:8000], "truncated: 7,956 of 16,000 bytes of samples"),
    "wav cut by a byte": (WAV[:-1], "truncated: 15,999 of 16,000 bytes of samples"),
    "aiff cut": (
        sound(NOISE, kind="AIFF")[:8000],
        "truncated: 7,954 of 16,008 bytes of samples",
    ),
    "sphere cut": (SPHERE[:9024], "truncated: 4,000 of 8,000 samples"),
    "flac cut": (FLAC[:5000], "damaged: flac decoder lost sync"),
    "flac damaged": (
        FLAC[:5000] + bytes([FLAC[5000] ^ 16]) + FLAC[5001:],
        "damaged: flac decoder lost sync",
    ),
    "flac of other length": (flac_of_length(9000), None),
    "flac without length": (
        flac_of_length(0),
        "announces no length, as if written to a pipe; encode it into a file",
    ),
    "absurd length": (flac_of_length(2**36 - 1), "announces 4,294,967 s, allowed: up to 3,600"),
    "absurd rate": (sound(NOISE, 7), "7 Hz, allowed: 1,000 to 384,000"),
    "not a number": (sound(BAD_FLOATS, subtype="FLOAT"), "holds values that are not finite"),
    "infinite": (sound(NOISE * 1e39, subtype="DOUBLE"), "holds values that are not finite"),
    "another scale": (
        sound(LOUD, subtype="FLOAT"),
        f"values up to {np.abs(LOUD).max():.6g}, expected -1 to 1",
    ),
    "silent": (sound(np.zeros(8000)), "silent: all samples are equal (8,000)"),
    "constant": (sound(np.full(800, 0.3)), "silent: all samples are equal (800)"),
    "channels cancel": (
        sound(np.stack([NOISE, -NOISE], axis=1), subtype="FLOAT"),
        "silent: all samples are equal (8,000)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_recordings_are_one_line(tmp_path, fault, capfd):
    data, message = FAULTS[fault]
    file = tmp_path / "a.wav"
    file.write_bytes(data)
    for name, call in (
        (str(file), lambda: read_audio(file, RATE)),
        ("standard input", lambda: read_audio_bytes(data, "standard input", RATE)),
    ):
        with pytest.raises(DataError) as caught:
            call()
        said = str(caught.value)
        if message is None:
            assert said.startswith(name)
            assert re.search("damaged|truncated", said)
        else:
            assert said == f"{name}: {message}"
    assert capfd.readouterr() == ("", "")


def test_what_is_no_file(tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}/none.wav: no such file$"):
        read_audio(tmp_path / "none.wav", RATE)
    with pytest.raises(DataError, match=f"^{tmp_path}: not a file$"):
        read_audio(tmp_path, RATE)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(DataError, match=f"^{tmp_path}/pipe.wav: not a file$"):
        read_audio(tmp_path / "pipe.wav", RATE)
    with pytest.raises(DataError, match=r"^/dev/zero: not a file$"):
        read_audio(pathlib.Path("/dev/zero"), RATE)


@pytest.mark.usefixtures("bounded")
def test_damaged_recordings_are_read_or_one_line(tmp_path, capfd):
    stereo = np.stack([NOISE, NOISE / 2], axis=1)[:2000]
    kinds = (*KINDS, ("WAV", "IMA_ADPCM", 4))
    valid = [sound(stereo, 11025, kind, subtype) for kind, subtype, _ in kinds]

    def check(audio, data):
        assert audio.samples.dtype == np.float32
        assert len(audio.samples)
        assert np.abs(audio.samples).max() <= 1
        assert 0 <= audio.clipped <= 1

    fuzz(tmp_path / "a.wav", valid, 400, 0, lambda file: read_audio(file, RATE), check)
    assert "Traceback" not in capfd.readouterr().err


# ---------------------------------------------------------------- manifests


def manifest(file: pathlib.Path, text: str | bytes) -> pathlib.Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize("head", ["", "path\tspeaker\ttext\n", "Path\tSpeaker\tText\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_manifests(tmp_path, head, end, mark):
    text = mark + (head + "wav/a.wav\tann\tHELLO WORLD\n/b.flac\tbob\tDÉJÀ VU\n\n").replace(
        "\n", end
    )
    file = manifest(tmp_path / "m.tsv", text)
    first = 2 if head else 1
    assert read_manifest(file) == [
        Utterance(f"{file}:{first}", tmp_path / "wav/a.wav", "ann", "HELLO WORLD"),
        Utterance(f"{file}:{first + 1}", pathlib.Path("/b.flac"), "bob", "DÉJÀ VU"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": no utterances"),
        ("path\tspeaker\ttext\n", ": no utterances"),
        ("a.wav\tann\tX\nb.wav\tX\n", ":2: columns: 2, expected path, speaker and text, with tabs"),
        ("a.wav,ann,X\n", ":1: columns: 1, expected path, speaker and text, with tabs"),
        (
            "a.wav\tann\tX\tY\n",
            ":1: columns: 4, expected path, speaker and text, with tabs",
        ),
        ("\tann\tX\n", ":1: path is empty"),
        ("a.wav\t \tX\n", ":1: speaker is empty"),
        ("a.wav\tann\t\n", ":1: text is empty"),
        ("a.wav\tann\tX\nb.wav\tann\tX\na.wav\tbob\tY\n", ":3: a.wav is already in line 1"),
        (
            b"a.wav\tann\tX\nb.wav\tann\t\xff\n",
            ":2: not UTF-8 text: 'utf-8' codec can't decode byte 0xff in position 10: "
            "invalid start byte",
        ),
    ],
)
def test_faults_of_manifests(tmp_path, text, message):
    file = manifest(tmp_path / "m.tsv", text)
    with pytest.raises(DataError) as caught:
        read_manifest(file)
    assert str(caught.value) == f"{file}{message}"


def test_splits_of_manifests(tmp_path):
    for name in ("train.tsv", "Dev.TSV", "other.tsv", "test.txt"):
        manifest(tmp_path / name, f"{name}.wav\tann\tX\n")
    write(tmp_path / "test.tsv.gz", gzip.compress(b"z.wav\tbob\tY\n"))
    found = manifest_splits(tmp_path)
    assert {split: [u.file.name for u in rows] for split, rows in found.items()} == {
        "train": ["train.tsv.wav"], "validation": ["Dev.TSV.wav"], "test": ["z.wav"],
    }  # fmt: skip
    assert shared_speakers(found) == ["ann"]
    assert list(manifest_splits(tmp_path / "other.tsv")) == ["all"]
    manifest(tmp_path / "valid.tsv", "a.wav\tann\tX\n")
    with pytest.raises(
        DataError, match=r"Dev and valid are both the validation split, expected one of them$"
    ):
        manifest_splits(tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"/bare: no train.tsv, validation.tsv or test.tsv$"):
        manifest_splits(tmp_path / "bare")
    with pytest.raises(DataError, match=r"/none: no such file$"):
        manifest_splits(tmp_path / "none")


def test_an4_needs_both_manifests(tmp_path):
    manifest(tmp_path / "train.tsv", "train/a.flac\tfash\tYES\n")
    with pytest.raises(DataError, match=f"^{tmp_path}/test.tsv: no such file$"):
        read_an4(tmp_path)
    with pytest.raises(DataError, match=f"^{tmp_path}/none: no such folder$"):
        read_an4(tmp_path / "none")
    manifest(tmp_path / "test.tsv", "test/b.flac\tmjwl\tNO\n")
    assert {split: [u.text for u in rows] for split, rows in read_an4(tmp_path).items()} == {
        "train": ["YES"], "test": ["NO"],
    }  # fmt: skip


ROOT = pathlib.Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere").absolute()


@pytest.mark.skipif(
    not (ROOT / "an4").is_dir(),
    reason="needs $ZOO_DATA_DIR/an4; ZOO_DATA_DIR is not set, or has none",
)
def test_an4_as_published():
    splits = read_an4(ROOT / "an4")
    speakers = {split: {u.speaker for u in rows} for split, rows in splits.items()}
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 948, "test": 130}
    assert {split: len(names) for split, names in speakers.items()} == {"train": 74, "test": 10}
    assert shared_speakers(splits) == []
    kept, held = by_speaker(splits["train"])
    assert (len(kept), len(held)) == (850, 98)
    assert len(" ".join(u.text for u in splits["test"]).split()) == 773
    assert sum(len(u.text) for u in splits["test"]) == 2565
    whole = read_pronunciations(ROOT / "an4" / "an4.dic")
    canon = read_pronunciations(ROOT / "an4" / "an4_canon.json")
    assert whole["A"] == [("AH",), ("EY",)]
    assert canon["A"] == [("EY",)]
    phones = [canon[word][0] for u in splits["test"] for word in u.text.split()]
    assert sum(map(len, phones)) == 2018
    for rows in splits.values():
        for utterance in rows:
            assert all(word in whole for word in utterance.text.split())
    for utterance in splits["test"][::13]:
        audio = read_audio(utterance.file, RATE)
        assert audio[1:] == (0, RATE, 1)
        assert 0.5 < len(audio.samples) / RATE < 20
    seconds = sum(soundfile.info(u.file).duration for u in splits["test"])
    assert seconds / 60 == pytest.approx(5.95, abs=0.01)


# ---------------------------------------------------------------- LibriSpeech


def librispeech(root: pathlib.Path, subset: str, speaker: str, chapter: str, texts) -> pathlib.Path:
    folder = root / subset / speaker / chapter
    lines = [f"{speaker}-{chapter}-{i:04} {text}\n" for i, text in enumerate(texts)]
    manifest(folder / f"{speaker}-{chapter}.trans.txt", "".join(lines))
    for index in range(len(texts)):
        name = f"{speaker}-{chapter}-{index:04}.flac"
        (folder / name).write_bytes(FLAC)
    return folder


def test_librispeech(tmp_path):
    root = tmp_path / "LibriSpeech"
    librispeech(root, "train-clean-100", "103", "1240", ["CHAPTER ONE", "THAT'S ALL"])
    librispeech(root, "train-clean-100", "19", "198", ["NO"])
    librispeech(root, "train-clean-360", "14", "208", ["SO"])
    librispeech(root, "dev-clean", "84", "121123", ["GO ON"])
    folder = librispeech(root, "test-clean", "61", "70968", ["HE BEGAN"])
    (root / "SPEAKERS.TXT").write_text("; a list")
    found = read_librispeech(root)
    assert {split: [(u.speaker, u.text) for u in rows] for split, rows in found.items()} == {
        "train": [("103", "CHAPTER ONE"), ("103", "THAT'S ALL"), ("19", "NO")],
        "validation": [("84", "GO ON")],
        "test": [("61", "HE BEGAN")],
    }
    assert found["test"][0].place == f"{folder}/61-70968.trans.txt:1"
    assert len(read_audio(found["test"][0].file, RATE).samples) == 8000
    assert read_librispeech(tmp_path) == found
    more = read_librispeech(root, train=("train-clean-100", "train-clean-360"))
    assert len(more["train"]) == 4

    with pytest.raises(DataError, match=f"^{root}/test-other: no such folder$"):
        read_librispeech(root, test=("test-other",))
    extra = folder / "61-70968-0007.flac"
    extra.write_bytes(FLAC)
    with pytest.raises(DataError, match=f"^{extra}: not in 61-70968.trans.txt$"):
        read_librispeech(root)
    transcript = folder / "61-70968.trans.txt"
    transcript.write_text("61-70968-0000 HE\n61-70968-0007\n")
    with pytest.raises(DataError, match=f"^{transcript}:2: expected 61-70968-NUMBER and the text$"):
        read_librispeech(root)
    transcript.unlink()
    with pytest.raises(DataError, match=f"^{transcript}: no such file$"):
        read_librispeech(root)
    (root / "empty").mkdir()
    with pytest.raises(
        DataError, match=f"^{root}/empty: no folders of speakers and their recordings$"
    ):
        read_librispeech(root, train=("empty",))


# ---------------------------------------------------------------- TIMIT


def timit_speaker(folder: pathlib.Path, sentences=("SA1", "SX1"), lower: bool = False):
    for sentence in sentences:
        files = {
            "WAV": SPHERE,
            "PHN": b"0 2000 h#\n2000 4000 dcl\n4000 5000 d\n5000 6000 ow\n6000 8000 h#\n",
            "TXT": b'0 8000 "Don\'t ask," he said; go-carts.\n',
            "WRD": b"2000 6000 don't\n",
        }
        for ending, data in files.items():
            name = f"{sentence}.{ending}"
            path = folder / (name.lower() if lower else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def timit(root: pathlib.Path, *, lower: bool = False) -> pathlib.Path:
    def put(*parts: str, **options) -> None:
        place = "/".join(parts)
        timit_speaker(root / (place.lower() if lower else place), lower=lower, **options)

    put("TRAIN", "DR1", "FCJF0", sentences=("SA1", "SI648", "SX37"))
    put("TRAIN", "DR8", "MTCS0")
    put("TEST", "DR1", "MDAB0", sentences=("SA2", "SX139", "SI1039"))
    put("TEST", "DR1", "FAKS0")
    put("TEST", "DR2", "MABW0")
    return root


@pytest.mark.parametrize(
    ("inner", "lower"), [("", False), ("TIMIT", False), ("timit/timit", True), ("data", False)]
)
def test_timit(tmp_path, inner, lower):
    root = timit(tmp_path / inner, lower=lower)
    if inner == "data":  # this copy has each recording twice
        (root / "TRAIN/DR1/FCJF0/SX37.WAV.wav").write_bytes(WAV)
        (root / "TRAIN/DR1/FCJF0/SA1.WAV.wav").write_bytes(WAV)
    found = read_timit(tmp_path)
    assert {
        split: [(u.speaker, u.file.stem.upper()) for u in rows] for split, rows in found.items()
    } == {
        "train": [("FCJF0", "SI648"), ("FCJF0", "SX37"), ("MTCS0", "SX1")],
        "validation": [("FAKS0", "SX1")],
        "test": [("MDAB0", "SI1039"), ("MDAB0", "SX139")],
    }
    assert shared_speakers(found) == []
    first = found["train"][0]
    assert first.place == str(first.file)
    assert first.text == "DON'T ASK HE SAID GO CARTS"
    assert first.phones == ("h#", "dcl", "d", "ow", "h#")
    assert len(read_audio(first.file, RATE).samples) == 8000


def test_faults_of_timit(tmp_path):
    def fails(message: str) -> None:
        with pytest.raises(DataError) as caught:
            read_timit(tmp_path)
        assert str(caught.value) == message

    fails(f"{tmp_path}/TRAIN: no such folder")
    timit(tmp_path)
    place = tmp_path / "TRAIN/DR1/FCJF0"
    phones = place / "SI648.PHN"
    for content, message in (
        ("0 10 h#\n10 20 zz\n", f":2: phone 'zz', allowed: {' '.join(PHONES_61)}"),
        ("0 10\n", ":1: expected first sample, last sample and phone"),
        ("0 x h#\n", ":1: expected first sample, last sample and phone"),
        ("", ": no phones"),
    ):
        phones.write_text(content)
        fails(f"{phones}{message}")
    phones.unlink()
    fails(f"{place}: no SI648.PHN")
    phones.write_text("0 10 h#\n")
    text = place / "SI648.TXT"
    for content in ("", "She had\n", "0 100 ...\n"):
        text.write_text(content)
        fails(f"{text}: expected first sample, last sample and text")
    text.write_text("0 100 She had.\n")
    (place / "SI648.WAV").unlink()
    fails(f"{place}: no SI648.WAV")
    (place / "SI648.WAV").write_bytes(SPHERE)
    (tmp_path / "TEST/DR1/FAKS0").rename(tmp_path / "TEST/DR1/FXXX0")
    fails(f"{tmp_path}/TEST: no recordings of the 50 speakers of the development set")
    (tmp_path / "TEST/DR1/FXXX0").rename(tmp_path / "TEST/DR1/FAKS0")
    (tmp_path / "TEST/DR1/MDAB0").rename(tmp_path / "TEST/DR1/MXXX0")
    fails(f"{tmp_path}/TEST: no recordings of the 24 speakers of the core test set")


def test_timit_speakers_and_phones_have_the_published_numbers():
    assert (len(TIMIT_TEST), len(TIMIT_VALIDATION), len(PHONES_61)) == (24, 50, 61)
    assert not TIMIT_TEST & TIMIT_VALIDATION
    assert sum(name.startswith("F") for name in TIMIT_TEST) == 8
    assert len(set(fold_phones(PHONES_61, 48))) == 48
    assert len(set(fold_phones(PHONES_61, 39))) == 39


def test_phones_are_folded_as_lee_and_hon_did():
    groups = {  # what each of the 39 stands for, where that is not itself alone
        "aa": "aa ao", "ah": "ah ax ax-h", "er": "er axr", "hh": "hh hv", "ih": "ih ix",
        "l": "l el", "m": "m em", "n": "n en nx", "ng": "ng eng", "sh": "sh zh", "uw": "uw ux",
        "sil": "h# pau epi pcl tcl kcl bcl dcl gcl",
    }  # fmt: skip
    expected = {phone: folded for folded, phones in groups.items() for phone in phones.split()}
    for phone in PHONES_61:
        after = () if phone == "q" else (expected.get(phone, phone),)
        assert fold_phones([phone]) == after
        assert fold_phones(fold_phones([phone], 48)) == after, "in two steps"
    assert fold_phones(("h#", "q", "pcl", "p", "ao", "bcl", "zh", "h#"), 48) == (
        "sil", "cl", "p", "ao", "vcl", "zh", "sil",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^phone 'xx', allowed: aa ae"):
        fold_phones(["xx"])
    with pytest.raises(ValueError, match=r"^size=61, allowed: 48, 39$"):
        fold_phones(["aa"], 61)


# ---------------------------------------------------------------- speakers


def said(*speakers: str) -> list[Utterance]:
    return [Utterance(f"m:{i}", pathlib.Path(f"{i}.wav"), s, "X") for i, s in enumerate(speakers)]


def test_held_out_speakers_are_every_tenth():
    names = [f"s{index:02}" for index in range(25)]
    rows = said(*names[::-1], *names)
    kept, held = by_speaker(rows)
    assert {u.speaker for u in held} == {"s00", "s10", "s20"}
    assert len(held) == 6
    assert [u for u in rows if u in kept] == kept
    assert sorted([*kept, *held]) == sorted(rows)
    assert not {u.speaker for u in kept} & {u.speaker for u in held}
    assert by_speaker(said("b", "a"))[1] == said("b", "a")[1:]
    assert {u.speaker for u in by_speaker(rows, 5)[1]} == set(names[::5])
    with pytest.raises(DataError, match=r"^only speaker 'a', expected at least two speakers"):
        by_speaker(said("a", "a"))
    with pytest.raises(DataError, match=r"^no utterances, expected at least two speakers"):
        by_speaker([])
    with pytest.raises(ValueError, match=r"^share=1, allowed: 2 or more$"):
        by_speaker(rows, 1)


def test_shared_speakers():
    splits = {"train": said("d", "a", "b"), "validation": said("c", "b"), "test": said("d", "c")}
    assert shared_speakers(splits) == ["b", "c", "d"]
    assert shared_speakers({"all": said("a", "a")}) == []


# ---------------------------------------------------------------- pronunciations


def test_pronunciations(tmp_path):
    text = (
        ";;; comment\n\nA                    AH0\nA(2)  EY1\n"
        "{BRACE  B R EY1 S\nD\u00c9J\u00c0  D EY2 ZH AA1\n"
        "READ\tR IY D # verb\nREAD\tR EH D\nREAD\tR IY D\n(PAREN  P ER EH1 N\n"
    )
    expected = {
        "A": [("AH0",), ("EY1",)], "D\u00c9J\u00c0": [("D", "EY2", "ZH", "AA1")],
        "{BRACE": [("B", "R", "EY1", "S")], "READ": [("R", "IY", "D"), ("R", "EH", "D")],
        "(PAREN": [("P", "ER", "EH1", "N")],
    }  # fmt: skip
    for encoding in ("utf-8", "latin-1"):
        assert read_pronunciations(manifest(tmp_path / "d", text.encode(encoding))) == expected
    content = {"A": ["AH", "EY"], "ONE": "W AH N"}
    for indent in (None, 0, 2):
        file = manifest(tmp_path / "d.json", json.dumps(content, indent=indent))
        assert read_pronunciations(file) == {"A": [("AH",), ("EY",)], "ONE": [("W", "AH", "N")]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": no words"),
        (";;; A  AH\n", ": no words"),
        ("A  AH\nB\n", ":2: 'B' has no phones"),
        ("{}", ": no words"),
        ('{"A": ""}', ": 'A' has no phones"),
        ('{"A": []}', ": 'A' has no phones"),
        ('{"A": 3}', ': \'A\': expected "P R O N" or ["P R O N", ...]'),
        ('{"A": [["AH"]]}', ': \'A\': expected "P R O N" or ["P R O N", ...]'),
        (
            '{"A": "AH"',
            ": unreadable: Expecting ',' delimiter: line 1 column 11 (char 10)",
        ),
    ],
)
def test_faults_of_pronunciations(tmp_path, text, message):
    file = manifest(tmp_path / "d", text)
    with pytest.raises(DataError) as caught:
        read_pronunciations(file)
    assert str(caught.value) == f"{file}{message}"
